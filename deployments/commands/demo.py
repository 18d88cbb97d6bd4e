"""`playhead demo`: what Playhead does, shown on a running one."""

from typing import Annotated

import typer

from deployments.commands.output import Json, answering

app = typer.Typer(help="Show on a running Playhead what it does.", no_args_is_help=True)


@app.callback()
def demo() -> None:
    """Show on a running Playhead what it does."""


@app.command("outage")
def outage(
    *,
    viewers: Annotated[int, typer.Option(min=100, max=5000, help="Simulated, at a time.")] = 600,
    warm_up: Annotated[
        float, typer.Option(min=0, max=60, help="Minutes before anything breaks: detectors learn what is usual.")
    ] = 8.0,
    broken: Annotated[float, typer.Option(min=0.5, max=30, help="Minutes that the CDN is down.")] = 2.5,
    url: Annotated[str, typer.Option(help="The service; the one that is up on this machine if not given.")] = "",
    as_json: Json = False,
) -> None:
    """A CDN fails under live simulated viewers: it is found and named, they are steered away, and back."""
    import os  # noqa: PLC0415

    from deployments.demo import DemoSettings, require, run  # noqa: PLC0415
    from deployments.state import service_url  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415
    from serve.arguments import TOKEN_VARIABLE  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        token = os.environ.get(TOKEN_VARIABLE)
        settings = DemoSettings(
            url=url or service_url(Settings.from_env().home), viewers=viewers, warm_up_s=warm_up * 60,
            broken_s=broken * 60, headers={"Authorization": f"Bearer {token}"} if token else None,
        )  # fmt: skip

        def tell(at_s: float, text: str) -> None:
            sign = "-" if at_s < 0 else "+"
            output.console.print(f"  {sign}{int(abs(at_s)) // 60}:{int(abs(at_s)) % 60:02d}  {text}", soft_wrap=True)

        report = run(settings, tell)
        require(report)
        output.answer(report)
