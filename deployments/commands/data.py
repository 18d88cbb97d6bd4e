"""`playhead data`: prepare, import, snapshot, check, drift."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.commands.output import FAILED, Json, Output, answering, reporting

if TYPE_CHECKING:
    from training.datasets import Dataset

app = typer.Typer(help="Data sets: make one of ours, or bring your own.", no_args_is_help=True)


@app.command("prepare")
def prepare(
    name: Annotated[str, typer.Argument(help="ml-100k, synthetic, or the name of an imported set.")],
    *,
    as_json: Json = False,
) -> None:
    """Make a data set where it is missing; check it where it is there."""
    from deployments.preparation import prepare_data  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        with reporting(output) as reporter:
            dataset = prepare_data(name, Settings.from_env(), reporter, fallback=False)
        _tell(output, dataset)


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="Folder with events, titles and, if you have them, profiles.")],
    *,
    name: Annotated[str, typer.Option(help="Name of the new data set; the folder's if not given.")] = "",
    as_json: Json = False,
) -> None:
    """Check your own events and catalogue, and take them in if all is right."""
    from features.settings import Settings  # noqa: PLC0415
    from training.datasets.importing import import_dataset  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        chosen = name or path.resolve().name.lower()
        report = import_dataset(path, Settings.from_env().datasets, chosen)
        if report.dataset is not None:
            _tell(output, report.dataset)
            return
        for problem in report.problems:
            output.console.print(f"  {problem}", markup=False, soft_wrap=True)
        output.console.print(f"{len(report.problems)} problems; nothing was written")
        output.answer({"name": chosen, "problems": [asdict(problem) for problem in report.problems]})
        raise typer.Exit(FAILED)


@app.command("snapshot")
def snapshot(
    base: Annotated[str, typer.Argument(help="The data set that the store was filled from.")] = "ml-100k",
    *,
    name: Annotated[str, typer.Option(help="Name of the snapshot.")] = "live",
    until: Annotated[str, typer.Option(help="Leave out what is of this time (ISO 8601, UTC) and later.")] = "",
    as_json: Json = False,
) -> None:
    """Write a data set and what viewers did since as a data set for training."""
    from dataclasses import replace  # noqa: PLC0415

    from deployments.state import store_url  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415
    from training.snapshots import take_snapshot  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        settings = replace(settings, redis_url=store_url(settings))  # which knows titles and profiles that are new
        _tell(output, take_snapshot(settings, base, name=name, until_ms=_milliseconds(until)))


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="ml-100k, synthetic, or the name of an imported set or a snapshot.")],
    *,
    until: Annotated[str, typer.Option(help="Nothing may be of this time (ISO 8601, UTC) or later.")] = "",
    as_json: Json = False,
) -> None:
    """Judge a data set as training does, beside what the recommender learned from last."""
    from features.settings import Settings  # noqa: PLC0415
    from training.checks import check_data, read_profile  # noqa: PLC0415
    from training.datasets import prepare as opened  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        until_ms = _milliseconds(until)
        report = check_data(opened(name, settings), read_profile(settings, "recommend"), until_ms=until_ms)
        for problem in report.problems:
            output.console.print(f"  {problem}", markup=False, soft_wrap=True)
        warnings = len(report.problems) - len(report.errors)
        output.console.print(f"{name}: {len(report.errors)} errors, {warnings} warnings")
        output.answer(report.as_json())
        if not report.ok:
            raise typer.Exit(FAILED)


def _milliseconds(until: str) -> int | None:
    """A time as UTC milliseconds; None where none is given.

    Raises:
        InvalidInput: it is none.
    """
    from datetime import UTC, datetime  # noqa: PLC0415

    from serve.errors import InvalidInput  # noqa: PLC0415

    if not until:
        return None
    try:
        at = datetime.fromisoformat(until)
    except ValueError:
        raise InvalidInput(
            field="--until", got=until, expected="a time such as 2026-11-28T12:00:00", next_step="Correct the time."
        ) from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


@app.command("drift")
def drift(
    *,
    out: Annotated[Path, typer.Option(help="The report, one HTML file.")],
    reference: Annotated[
        str, typer.Option(help="Data set; if not given, the one that the champion learned from.")
    ] = "",
    current: Annotated[str, typer.Option(help="Data set, or folder of live events; this machine's if not given.")] = "",
    as_json: Json = False,
) -> None:
    """How the newest plays differ from those of a data set: a report to look at (needs the extra `reports`)."""
    from dataclasses import replace  # noqa: PLC0415

    from deployments.state import store_url  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415
    from features.sink import read_log  # noqa: PLC0415
    from training.datasets.dataset import open_dataset  # noqa: PLC0415
    from training.datasets.drifting import drift_report, learned_from  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        settings = replace(settings, redis_url=store_url(settings))
        dataset = open_dataset(settings.datasets / reference) if reference else learned_from(settings)
        folder = Path(current) if current else settings.home / "events"
        if current and not folder.is_dir():
            events = open_dataset(settings.datasets / current).frame("events")
        else:
            events = read_log(folder)
        report = drift_report(dataset.frame("events"), events, dataset.titles(), out)
        for name, index in sorted(report["features"].items(), key=lambda one: -one[1]):
            output.console.print(f"  {name:<16}{index:.3f}{'  drifted' if name in report['drifted'] else ''}")
        output.console.print(f"  {out}", markup=False, soft_wrap=True)
        output.answer({**report, "dataset": dataset.name, "out": str(out)})


def _tell(output: Output, dataset: "Dataset") -> None:
    for note in dataset.notes:
        output.console.print(f"  {note}", markup=False, soft_wrap=True)
    output.console.print(f"  {dataset.path}", markup=False, soft_wrap=True)
    output.answer(
        {
            "name": dataset.name,
            "path": str(Path(dataset.path)),
            "snapshot": dataset.snapshot,
            "rows": dict(dataset.rows),
            "notes": list(dataset.notes),
        }
    )
