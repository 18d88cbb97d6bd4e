"""`playhead demo`: what Playhead does, shown on a running one."""

from typing import Annotated

import typer

from deployments.commands.output import Json, Output, answering, reporting

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
    from deployments.demos.outage import DemoSettings, require, run  # noqa: PLC0415
    from deployments.service import token_header  # noqa: PLC0415
    from deployments.state import service_url  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = DemoSettings(
            url=url or service_url(Settings.from_env().home), viewers=viewers, warm_up_s=warm_up * 60,
            broken_s=broken * 60, headers=token_header(),
        )  # fmt: skip

        report = run(settings, lambda at_s, text: _tell(output, at_s, text))
        require(report)
        output.answer(report)


@app.command("learn")
def learn(
    *,
    viewers: Annotated[int, typer.Option(min=1_000, max=200_000, help="Profiles that come.")] = 20_000,
    rate: Annotated[float, typer.Option(min=1, max=500, help="Visits a second.")] = 50.0,
    warm_up: Annotated[float, typer.Option(min=0.2, max=60, help="Minutes before the taste shifts.")] = 3.0,
    stage: Annotated[float, typer.Option(min=0.1, max=60, help="Minutes that a stage of the rollout lasts.")] = 1.0,
    port: Annotated[int, typer.Option(min=1024, max=65535, help="Of the demo's own service.")] = 8010,
    seed: Annotated[int, typer.Option(min=0, help="Of the audience.")] = 0,
    as_json: Json = False,
) -> None:
    """The audience's taste shifts: drift, retraining, gate, canary, promotion; then a poisoned model is rolled back.

    It brings up a stack of its own, in the folder demo-learn of the home folder, and ends it.
    """
    from deployments.demos.learning import LearningDemo, run  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        demo = LearningDemo(
            home=settings.home / "demo-learn", port=port, profiles=viewers, pages_per_s=rate, warm_up_s=warm_up * 60,
            stage_s=stage * 60, seed=seed,
        )  # fmt: skip
        with reporting(output) as reporter:
            report = run(demo, settings, reporter, lambda at_s, text: _tell(output, at_s, text))
        for phase, versions in report["plays"].items():
            shown = ", ".join(f"{name} {one['plays']:.1%} of {one['pages']:,} pages" for name, one in versions.items())
            output.console.print(f"  {phase:<20} {shown}", markup=False, soft_wrap=True)
        output.console.print(
            f"  {report['visits']:,} visits, {report['failed']} failed {report['failures'] or ''}; {report['html']}",
            markup=False,
            soft_wrap=True,
        )
        output.answer(report)


def _tell(output: Output, at_s: float, text: str) -> None:
    sign = "-" if at_s < 0 else "+"
    output.console.print(
        f"  {sign}{int(abs(at_s)) // 60}:{int(abs(at_s)) % 60:02d}  {text}", markup=False, soft_wrap=True
    )
