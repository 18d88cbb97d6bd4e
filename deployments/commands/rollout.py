"""`playhead eval rollout`: decisions about canaries whose harm is known, on simulated viewers."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.commands.output import Json, answering, reporting

if TYPE_CHECKING:
    from rich.table import Table


class Model(StrEnum):
    """Whose versions are rolled out."""

    RECOMMEND = "recommend"
    BITRATE = "bitrate"


def evaluate(
    *,
    seed: Annotated[int, typer.Option(min=0, help="Of the viewers and of each rollout.")] = 0,
    runs: Annotated[
        int,
        typer.Option(min=1, max=100_000, help="Rollouts of a challenger like the champion; a tenth of each worse one."),
    ] = 1000,
    model: Annotated[
        Model, typer.Option(help="Whose versions: judged by pages, or by playback sessions.")
    ] = Model.RECOMMEND,
    as_json: Json = False,
) -> None:
    """Canaries, looked at again and again: how often a good one is rolled back, and how soon a bad one is."""
    with answering(as_json=as_json) as output:
        from deployments.progress import Moment, Notice  # noqa: PLC0415
        from training.rollout.trials import evaluate as of_pages  # noqa: PLC0415
        from training.rollout.trials import evaluate_policy as of_sessions  # noqa: PLC0415

        with reporting(output) as reporter:

            def progress(name: str, done: int, total: int) -> None:
                moment = Moment.DONE if done == total else Moment.ADVANCE
                reporter.tell(Notice(phase=name, moment=moment, share=done / total))

            run, counted = (of_pages, "requests") if model is Model.RECOMMEND else (of_sessions, "sessions")
            report = {"model": model.value, **run(seed=seed, runs=runs, progress=progress)}
        output.console.print(
            f"  rolled back for nothing  {report['false_rollback_rate']:.2%} of {runs} rollouts, "
            f"at most {report['false_rollback_rate_upper_95']:.2%} (95 %), {report['looks']} looks", markup=False,
            soft_wrap=True,
        )  # fmt: skip
        if naive := report.get("every_event_counted"):
            output.console.print(
                f"  if every event counted   {naive['false_rollback_rate']:.1%} of {naive['runs']}", markup=False
            )
        output.console.print(f"  promoted                 {report['promoted']:.1%}", markup=False)
        output.console.print(
            f"  {counted} until then, of both arms and of the challenger's own; stages where caught:", soft_wrap=True
        )
        output.console.print(_table(report))
        output.answer(report)


def _table(report: dict[str, Any]) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    shares = list(next(iter(report["requests_at_one_stage"].values())))
    table = Table(box=None, pad_edge=False)
    table.add_column("challenger", no_wrap=True)
    for name in ("median", "p90", "its own", "p90", "caught", *(f"{float(share):.0%}" for share in shares)):
        table.add_column(name, justify="right", no_wrap=True)
    rows = {"alike, promoted after": report["requests_to_promote"], **report["requests_to_detect"]}
    for effect, stages in report["requests_at_one_stage"].items():
        rows |= {f"{effect}, {float(share):.0%} only": row for share, row in stages.items()}
    for name, row in rows.items():
        keys = ("median", "p90", "challenger_median", "challenger_p90")
        figures = ("-" if row[key] is None else f"{row[key]:,}" for key in keys)
        if "detected" in row:
            by_stage = (str(row["by_stage"].get(share, 0)) for share in shares)
            table.add_row(name, *figures, f"{row['detected']:.0%}", *by_stage)
        else:
            table.add_row(name, *figures)
    return table
