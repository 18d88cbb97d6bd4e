"""`playhead models`, `playhead models diff`, `playhead models prune`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.commands.output import FAILED, Json, Output, answering

if TYPE_CHECKING:
    from deployments.overview import Version

app = typer.Typer(help="Versions of models: which there are, who answers, what differs.")

Url = Annotated[str, typer.Option(help="The service; the one that is up on this machine if not given.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context, *, url: Url = "", as_json: Json = False) -> None:
    """List the versions of models: on this machine and in the registry, with what the running service says of them."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table  # noqa: PLC0415

    from deployments.overview import look_over  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        found = look_over(Settings.from_env(), url)
        table = Table(box=None, pad_edge=False)
        widths = {"model": 9, "version": 12, "role": 10}  # what other commands take is shown whole
        for title in ("model", "version", "role", "answers", "created", "metric", ""):
            table.add_column(title, no_wrap=True, min_width=widths.get(title))
        table.add_column("from")
        for entry in found.versions:
            table.add_row(*_cells(entry))
        output.console.print(table if found.versions else "no models yet: playhead train recommend")
        words = [f"{entry.name} {entry.version}: {text}" for entry in found.versions for text in _troubles(entry)]
        for note in (*words, *found.notes):
            output.console.print(f"  {note}", markup=False, soft_wrap=True)
        answer = {"models": [entry.as_json() for entry in found.versions], "notes": found.notes}
        output.answer({**answer, "service": found.service})


@app.command("diff")
def diff(
    names: Annotated[
        list[str],
        typer.Argument(metavar="[MODEL] A B", help="Two versions: champion, challenger, previous, or hex digits."),
    ],
    *,
    as_json: Json = False,
) -> None:
    """Say what differs between two versions: lineage, parameters, metrics, graphs, files, vocabulary."""
    from deployments.differences import compare  # noqa: PLC0415
    from deployments.overview import find_two, look_over  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415
    from serve.errors import InvalidInput  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        if len(names) not in (2, 3):
            raise InvalidInput(
                field="versions", got=" ".join(names), expected="[MODEL] A B", next_step="Name two versions."
            )
        settings = Settings.from_env()
        versions = look_over(settings).versions
        *model, first, second = names
        given = model[0] if model else None
        found = compare(settings, *find_two(versions, given, first, second))
        _tell(output, found)
        output.answer(found)


@app.command("prune")
def prune(
    *,
    keep: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="The newest of each model; else PLAYHEAD_KEEP_VERSIONS, 10.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Take away old versions with their registry copies, gate reports, and snapshots that no kept version learned from.

    Versions that a plan, an alias or a folder names stay, however old. Where the plan can't be read nothing goes.
    """
    from dataclasses import replace  # noqa: PLC0415

    from deployments.state import store_url  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415
    from training import retention  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        settings = replace(settings, redis_url=store_url(settings))
        number = retention.kept_from_env() if keep is None else keep
        found = [
            retention.prune(settings, model, keep=number, dry_run=dry_run) for model in retention.models_of(settings)
        ]
        for one in found:
            gone = (*one.versions, *one.snapshots)
            words = f"{len(one.kept)} kept, {len(one.versions)} versions and {len(one.snapshots)} snapshots"
            words += f" {'would go' if dry_run else 'went'}, {one.freed_bytes / 1e6:.1f} MB"
            output.console.print(f"  {one.model:<10} {words}{': ' if gone else ''}{', '.join(gone)}", markup=False,
                                 soft_wrap=True)  # fmt: skip
            if one.trouble:
                output.console.print(f"  {one.model:<10} not all: {one.trouble}", markup=False, soft_wrap=True)
        output.answer({"dry_run": dry_run, "models": [one.as_json() for one in found]})
        if any(one.trouble for one in found):
            raise typer.Exit(FAILED)


def _troubles(entry: "Version") -> list[str]:
    reasons = entry.health["reasons"] if entry.health is not None else ()
    return [text for text in (entry.trouble, *reasons) if text]


def _cells(entry: "Version") -> tuple[str, ...]:
    lineage = entry.lineage
    data = f"{lineage['dataset']} {lineage['rows']:,}" if lineage.get("dataset") else entry.data_snapshot[:12]
    if lineage.get("parent"):
        data += f", after {lineage['parent']}"
    if not entry.here:
        data += ", only in the registry"
    answers = "" if entry.share is None else f"{entry.share:.0%}"
    if entry.health is not None and entry.health["state"] != "unknown":
        answers += f" {entry.health['state']}"
    return (
        entry.name,
        entry.version,
        entry.role,
        answers,
        entry.created[5:16].replace("T", " "),
        f"{entry.headline} {entry.value:.4f}" if entry.value is not None else "",
        "" if entry.difference is None else f"{entry.difference:+.4f}",
        data,
    )


def _tell(output: Output, found: Mapping[str, Any]) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table("", "", found["first"], found["second"], "", box=None, pad_edge=False)
    for part in ("manifest", "lineage", "parameters", "metrics"):
        for name, pair in found[part].items():
            difference = f"{pair['difference']:+.4g}" if "difference" in pair else ""
            table.add_row(part, name, _shown(pair["first"]), _shown(pair["second"]), difference)
    for part in ("graphs", "files"):
        for change, names in found[part].items():
            if names:
                table.add_row(part, change, "", ", ".join(names), "")
    if (titles := found["vocabulary"]) is not None:
        table.add_row("vocabulary", "titles", f"{titles['first']:,}", f"{titles['second']:,}", "")
        for change in ("added", "removed"):
            if titles[change]:
                more = " ..." if titles[change] > len(titles[f"{change}_titles"]) else ""
                listed = ", ".join(titles[f"{change}_titles"]) + more
                table.add_row("vocabulary", f"{change} {titles[change]:,}", "", listed, "")
    output.console.print(table)


def _shown(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)[:200]
