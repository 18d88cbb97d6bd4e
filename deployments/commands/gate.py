"""`playhead gate`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from deployments.commands.output import FAILED, Json, answering, reporting
from deployments.progress import advance, phase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from training.detectors.days import Day
    from training.gates.verdict import Verdict


def gate(
    name: Annotated[str, typer.Argument(help="Model: recommend, bitrate, quality or detectors.")],
    version: Annotated[str, typer.Argument(help="The candidate's version.")],
    *,
    against: Annotated[
        str | None, typer.Option(help="Version to compare with; by default the champion that answers.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set with later events (recommend); by default the candidate's own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask whether a version may become a canary. Exit status 1 where it may not.

    The report lies in HOME/gates/NAME/VERSION/, as gate.json and gate.html.
    """
    from dataclasses import replace  # noqa: PLC0415

    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        from deployments.learning.verdicts import tell_if_up  # noqa: PLC0415
        from deployments.state import store_url  # noqa: PLC0415
        from training.datasets.dataset import check_name, open_dataset  # noqa: PLC0415  (imports polars)
        from training.gates.gate import gate as ask  # noqa: PLC0415
        from training.gates.gate import reports_of  # noqa: PLC0415

        settings = Settings.from_env()
        settings = replace(settings, redis_url=store_url(settings))
        if data is not None:
            check_name(data)
        dataset = None if data is None else open_dataset(settings.datasets / data)
        with reporting(output) as reporter:

            def watched(settings: Settings) -> "Sequence[Day]":
                from deployments.evenings import gate_evenings  # noqa: PLC0415  (imports numba)

                with phase(reporter, "evenings"):
                    return gate_evenings(settings.home / "cache" / "detectors", advance(reporter, "evenings"))

            verdict = ask(name, version, settings, dataset=dataset, against=against, days=watched)
        told = tell_if_up(verdict, settings.redis_url)
        report = reports_of(settings, name, verdict.candidate) / "gate.html"
        output.console.print(_table(verdict))
        word = "[green]passed[/]" if verdict.passed else "[bold red]rejected[/]"
        better = ", better" if verdict.better else ""
        output.console.print(f"{word}{better}: {name} {verdict.candidate} against {verdict.champion}")
        for check in verdict.failed:
            output.console.print(f"  [red]{escape(check.name)}[/]: {escape(check.text)}", soft_wrap=True)
        output.console.print(f"  report  {report}", markup=False, soft_wrap=True)
        if not told:
            output.console.print("  no store answers: a rollout can't see this verdict; run it again once it is up")
        output.answer(verdict.as_json() | {"report": str(report), "told": told})
        if not verdict.passed:
            raise typer.Exit(FAILED)


def _table(verdict: "Verdict") -> "Table":
    from rich.table import Table  # noqa: PLC0415

    table = Table("check", "", "in words", box=None, pad_edge=False)
    for check in verdict.checks:
        mark = "[green]ok[/]" if check.passed else ("[red]failed[/]" if check.decides else "[yellow]told[/]")
        table.add_row(escape(check.name), mark, escape(check.text))
    return table
