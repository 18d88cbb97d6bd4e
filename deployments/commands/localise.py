"""`playhead localise FILE` and `playhead eval localise`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.commands.output import Json, Output, answering, reporting

if TYPE_CHECKING:
    from serve.watchtower.localisation import Cause


def localise(
    file: Annotated[Path, typer.Argument(help="CSV: timestamp, total, bad, and one column per dimension.")],
    *,
    at: Annotated[str, typer.Option(help="The incident's window, or a moment in it: ISO 8601, or seconds or ms.")],
    history: Annotated[
        float | None, typer.Option(help="Minutes before it to compare with; else 60, or 12 windows if longer.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=100, help="How many causes and runners-up.")] = 5,
    metric: Annotated[str, typer.Option(help="bad: the ratio rose; missing: sessions are gone.")] = "bad",
    as_json: Json = False,
) -> None:
    """Name the smallest slices that explain an incident, with the counts behind them; or that no slice does."""
    with answering(as_json=as_json) as output:
        from serve.errors import InvalidInput  # noqa: PLC0415
        from serve.watchtower.localisation import METRICS, evidence_of  # noqa: PLC0415
        from serve.watchtower.localisation import localise as find  # noqa: PLC0415
        from serve.watchtower.localisation_windows import describe, read_windows  # noqa: PLC0415

        chosen = next((one for one in METRICS if one == metric), None)
        if chosen is None:
            raise InvalidInput(
                field="--metric", got=metric, expected=" or ".join(METRICS), next_step="Correct --metric."
            )
        start = time.perf_counter()
        windows = read_windows(file)
        at_ms = windows.at(at)
        table = windows.table(at_ms, history)
        read_s = time.perf_counter()
        found = find(table, metric=chosen, top=top)
        done = time.perf_counter()
        facts = describe(windows, table, at_ms)
        _tell(output, facts, found.external, found.causes or found.runners_up, found.overall_lift)
        output.answer(
            {
                "causes": [_fields(cause, evidence_of(cause)) for cause in found.causes],
                "external": found.external,
                "incident": found.external or any(cause.is_cause for cause in found.causes),
                "runners_up": [_fields(cause, evidence_of(cause)) for cause in found.runners_up],
                "metric": metric,
                **facts,
                "total": found.total,
                "bad": found.bad,
                "expected": found.expected,
                "overall_lift": found.overall_lift,
                "noise": found.noise,
                "read_ms": (read_s - start) * 1e3,
                "localise_ms": (done - read_s) * 1e3,
            }
        )


def _fields(cause: "Cause", evidence: dict[str, Any]) -> dict[str, Any]:
    role = "cause" if cause.is_cause else "runner-up"
    return {"slice": cause.slice_, "score": cause.score, "role": role, "evidence": evidence}


def _tell(output: Output, facts: dict[str, Any], external: bool, causes: "tuple[Cause, ...]", lift: float) -> None:  # noqa: FBT001
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    output.console.print(
        f"{facts['at']}  {facts['leaves']:,} leaves, against {facts['history_windows']} windows before", markup=False
    )
    if external:
        output.console.print(f"[bold]external[/]: everything changed alike, by a factor of {lift:.2f}")
    elif not any(cause.is_cause for cause in causes):
        output.console.print("no slice stands out from what is usual")
    if not causes:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("slice", min_width=20, overflow="fold")
    for name in ("score", "sessions", "bad", "expected", "before", "now", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for cause in causes:
        proof = cause.evidence
        table.add_row(
            escape(", ".join(f"{name}={value}" for name, value in cause.slice_.items())), f"{cause.score:.2f}",
            f"{proof.total:,.0f}", f"{proof.bad:,.0f}",
            f"{proof.expected:,.1f}", f"{proof.ratio_before:.3g}", f"{proof.ratio_now:.3g}", f"{proof.share:.0%}",
        )  # fmt: skip
    output.console.print(table)
    if any(cause.is_cause for cause in causes):
        output.console.print(
            "score: 0.5 and more is a cause, less a runner-up that would explain instead", markup=False
        )


def evaluate(
    *,
    seed: Annotated[int, typer.Option(min=0, help="Of the incidents.")] = 0,
    cases: Annotated[int, typer.Option(min=1, max=100_000, help="Graded incidents, level after level in turn.")] = 150,
    public: Annotated[int, typer.Option(min=0, max=100_000, help="More of the settings of RiskLoc's paper.")] = 0,
    method: Annotated[str, typer.Option(help="all, or some of playhead,riskloc,robustspot,adtributor.")] = "all",
    as_json: Json = False,
) -> None:
    """Localisers over the same generated incidents: Playhead, RiskLoc, a ranking like RobustSpot's, Adtributor."""
    with answering(as_json=as_json) as output:
        from itertools import chain  # noqa: PLC0415

        from deployments.progress import Moment, Notice  # noqa: PLC0415
        from serve.errors import InvalidInput  # noqa: PLC0415
        from training.watchtower.incidents import incidents  # noqa: PLC0415
        from training.watchtower.localisation_comparison import compare  # noqa: PLC0415
        from training.watchtower.public_incidents import public_incidents  # noqa: PLC0415
        from training.watchtower.rivals import METHODS  # noqa: PLC0415

        names = list(METHODS) if method == "all" else [name.strip() for name in method.split(",")]
        if not set(names) <= set(METHODS):
            raise InvalidInput(
                field="--method", got=method, expected=f"all, or some of {', '.join(METHODS)}",
                next_step="Correct --method.",
            )  # fmt: skip
        with reporting(output) as reporter:

            def progress(done: int) -> None:
                share = done / (cases + public)
                reporter.tell(Notice(phase="localise", moment=Moment.ADVANCE, share=share, text=f"{done} incidents"))

            graded = compare(incidents(seed, cases), methods=names, progress=progress)
            known = compare(public_incidents(seed, public), methods=names, progress=lambda done: progress(cases + done))
        _table(output, {name: dict(chain(graded[name].items(), _settings(known[name]).items())) for name in names})
        output.answer({"seed": seed, "methods": graded, "public": known})


def _settings(levels: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {level: row for level, row in levels.items() if level != "all"}


def _table(output: Output, report: dict[str, dict[str, dict[str, Any]]]) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, title="top-1 top-3 F1", title_justify="left")
    table.add_column("incidents", overflow="fold")
    table.add_column("cases", justify="right", no_wrap=True)
    for name in report:
        table.add_column(name, justify="right", no_wrap=True)
    rows = next(iter(report.values()))
    for level in sorted(rows, key=lambda level: level == "all"):
        cells = (report[name][level] for name in report)
        shown = (f"{one['top1']:.2f} {one['top3']:.2f} {one['f1']:.2f}" for one in cells)
        table.add_row(level, str(rows[level]["cases"]), *shown)
    table.add_row("ms a case", "", *(f"{report[name]['all']['ms']:.0f}" for name in report))
    output.console.print(table)
