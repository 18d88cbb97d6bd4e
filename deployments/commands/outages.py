"""`playhead eval outages`: the whole watch on a simulated audience whose incidents are known."""

from typing import Annotated, Any

import typer

from deployments.commands.output import Json, answering


def evaluate(
    *,
    seed: Annotated[int, typer.Option(min=0, help="Of the world, its viewers and its incidents.")] = 1,
    days: Annotated[int, typer.Option(min=1, max=30, help="Simulated.")] = 1,
    peak: Annotated[int, typer.Option(min=50, max=20_000, help="Viewers at a time at the evening peak.")] = 1500,
    as_json: Json = False,
) -> None:
    """Outages found in what a simulated audience reports: delay, precision, recall, root causes, false alarms."""
    with answering(as_json=as_json) as output:
        from rich.progress import Progress  # noqa: PLC0415

        from deployments.outages import watch_audience  # noqa: PLC0415
        from loadtests.audience.world import FIRST_DAY_MS  # noqa: PLC0415

        with Progress(console=output.console, transient=True) as progress:
            task = progress.add_task(f"{days} day(s) of reports", total=1.0)
            report = watch_audience(
                seed=seed, days=days, peak=peak, start_ms=FIRST_DAY_MS,
                advance=lambda share: progress.update(task, completed=share),
            )  # fmt: skip
        for finding in report["incidents"]:
            output.console.print(_line(finding), markup=False, soft_wrap=True)
        for alarm in report["false_alarms"]:
            output.console.print(f"  false alarm  {alarm['slice']} by {alarm['metrics']}", markup=False, soft_wrap=True)
        for name in (
            "median_delay_s", "precision", "recall", "top1", "top3", "false_alarms_per_day", "harmless_called",
            "us_per_report",
        ):  # fmt: skip
            output.console.print(f"  {name:22} {report[name]}", markup=False)
        output.answer(report)


def _line(finding: dict[str, Any]) -> str:
    slice_ = ", ".join(f"{name} {value}" for name, value in finding["slice"].items()) or "everyone"
    found = "not found" if finding["delay_s"] is None else f"after {finding['delay_s']:.0f} s"
    if finding["harmless"]:
        found = "called an outage" if finding["delay_s"] is not None else "left alone"
    named = "" if finding["named"] is None else f", named {finding['named']}"
    return f"  {finding['kind']:16} {slice_:42} hurts {finding['share']:.1%}: {found}{named}"
