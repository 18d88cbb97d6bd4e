"""`playhead load SCENARIO`."""

from pathlib import Path
from typing import Annotated

import typer

from deployments.commands.output import FAILED, Json, answering, reporting


def load(
    scenario: Annotated[str, typer.Argument(help="Name of a scenario (home, similar, events, mixed) or a .toml file.")],
    *,
    rps: Annotated[float | None, typer.Option(min=0.01, help="Mean requests a second.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="How long.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same arrivals.")] = 0,
    url: Annotated[str, typer.Option(help="The service; the one that is up on this machine if not given.")] = "",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Load another machine than this one; it may go down.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Where the page with the latency curve goes.")] = None,
    as_json: Json = False,
) -> None:
    """Open-loop load with Poisson arrivals; latency counts from the intended send time."""
    from deployments.progress import Moment, Notice  # noqa: PLC0415
    from deployments.service import token_header  # noqa: PLC0415
    from deployments.state import RunFolder, StackState, service_url  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415
    from loadtests.scenario import run_scenario  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        state = StackState.read(RunFolder(settings.home))
        folder = settings.datasets / state.data if state is not None else None
        with reporting(output) as reporter:

            def advance(share: float) -> None:
                reporter.tell(Notice(phase="load", moment=Moment.ADVANCE, share=share, text=scenario))

            report = run_scenario(
                scenario,
                base_url=url or service_url(settings.home),
                rps=rps,
                seconds=seconds,
                seed=seed,
                headers=token_header(),
                profiles=folder if folder is not None and not url else 1000,
                allow_remote=allow_remote,
                on_progress=advance,
            )
        page = report.write_html(html or settings.home / "load" / f"{report.scenario}.html")
        output.console.print(report.table())
        output.console.print(f"  page {page}", markup=False, soft_wrap=True)
        output.answer({**report.to_json(), "page": str(page)})
        if report.error_count == len(report.outcomes):
            raise typer.Exit(FAILED)
