"""`playhead eval anomaly`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deployments.commands.output import Json, Output, answering, reporting

if TYPE_CHECKING:
    from rich.table import Table

    from deployments.progress import Reporter


def anomaly(
    file: Annotated[Path | None, typer.Argument(help="CSV of timestamp,value: its strongest anomalies.")] = None,
    *,
    nab: Annotated[
        Path | None,
        typer.Option(help="Instead: a folder with data/ and labels/combined_windows.json, scored by rules."),
    ] = None,
    rivals: Annotated[bool, typer.Option("--rivals", help="With --nab: River's detectors in the same run.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="With --nab: write timestamp,value,anomaly_score,label files here.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many anomalies of a file.")] = 10,
    as_json: Json = False,
) -> None:
    """Find anomalies in a file of timestamp,value; or score the detector by the Numenta Anomaly Benchmark's rules."""
    with answering(as_json=as_json) as output:
        from serve.errors import InvalidInput  # noqa: PLC0415

        if (file is None) == (nab is None):
            raise InvalidInput(
                field="FILE, --nab", got="neither" if file is None else "both", expected="one of them",
                next_step="Name a CSV file of timestamp,value, or a benchmark's folder with --nab.",
            )  # fmt: skip
        if nab is not None:
            _benchmark(output, nab, out, rivals=rivals)
        elif file is not None:
            if rivals or out is not None:
                raise InvalidInput(
                    field="--rivals" if rivals else "--out", got="a file", expected="--nab",
                    next_step="Leave it out, or name a benchmark's folder with --nab.",
                )  # fmt: skip
            _file(output, file, top)


def _benchmark(output: Output, folder: Path, out: Path | None, *, rivals: bool) -> None:
    from training.watchtower.detection import PLAYHEAD, RIVALS, evaluate, playhead, write_scores  # noqa: PLC0415
    from training.watchtower.nab import read_corpus  # noqa: PLC0415

    corpus = read_corpus(folder)
    with reporting(output) as reporter:
        report, scores = evaluate(corpus, playhead, PLAYHEAD, _told(reporter))
        beside = {}
        for name, detector in RIVALS.items() if rivals else ():
            beside[name] = evaluate(corpus, detector, name, _told(reporter))[0]
    if out is not None:
        write_scores(out, corpus, scores)
    output.console.print(_table({PLAYHEAD: report, **beside}))
    output.console.print(_groups(report))
    if out is not None:
        output.console.print(f"  written  {out}", markup=False, soft_wrap=True)
    output.answer({**report, **({"rivals": beside} if rivals else {})})


def _told(reporter: "Reporter") -> Any:
    from deployments.progress import Moment, Notice  # noqa: PLC0415

    def tell(stage: str, done: int, total: int, note: str = "") -> None:
        moment = Moment.DONE if done == total else Moment.ADVANCE
        reporter.tell(Notice(phase=stage, moment=moment, share=done / total, text=note))

    return tell


def _file(output: Output, path: Path, top: int) -> None:
    from training.watchtower.detection import playhead, score, strongest  # noqa: PLC0415
    from training.watchtower.series import read_series  # noqa: PLC0415

    series = read_series(path)
    scored = score(series, playhead())
    rows = len(series.values)
    found = strongest(series, scored.scores, top)
    output.console.print(_anomalies(found) if found else f"  no anomaly in {rows} rows")
    output.answer({
        "file": str(path), "rows": rows, "us_per_value": scored.seconds / rows * 1e6, "anomalies": found
    })  # fmt: skip


def _table(reports: dict[str, dict[str, Any]]) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    table = Table("detector", box=None, pad_edge=False)
    for name in ("standard", "low FP", "low FN", "windows found", "false alarms", "µs a value"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, one in reports.items():
        counted = one["detections"]["standard"]
        table.add_row(
            name, *(f"{one[profile]:.1f}" for profile in ("standard", "reward_low_fp", "reward_low_fn")),
            f"{counted['hits']} of {counted['hits'] + counted['misses']}", str(counted["false_alarms"]),
            f"{one['us_per_value']:.1f}",
        )  # fmt: skip
    return table


def _groups(report: dict[str, Any]) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    table = Table("folder", box=None, pad_edge=False)
    for name in ("windows", "standard", "by the others' threshold"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, one in report["groups"].items():
        table.add_row(name, str(one["windows"]), f"{one['own_threshold']:.1f}", f"{one['others_threshold']:.1f}")
    return table


def _anomalies(found: list[dict[str, Any]]) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for name in ("score", "row", "value"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("timestamp", no_wrap=True)
    for one in found:
        table.add_row(f"{one['score']:.3f}", str(one["row"]), f"{one['value']:g}", escape(one["timestamp"]))
    return table
