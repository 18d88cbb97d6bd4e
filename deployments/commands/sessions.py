"""`playhead sessions`."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from deployments.commands.output import Json, Output, answering

if TYPE_CHECKING:
    import polars as pl

_COLUMNS: Final = {
    "sessions": ("sessions", ","),
    "unstarted": ("failed_starts", ".1%"),
    "left": ("left_before_start", ".1%"),
    "failed": ("failed", ".1%"),
    "start s": ("startup_p50_s", ".2f"),
    "p95": ("startup_p95_s", ".2f"),
    "stalling": ("rebuffer_ratio", ".2%"),
    "kbit/s": ("kbps", ",.0f"),
    "VMAF": ("vmaf", ".1f"),
}
"""Heading -> column of serve.telemetry.records.experience, and how it is written; 80 characters with a dimension."""


def sessions(
    *,
    by: Annotated[
        str, typer.Option(help="Dimensions, with commas: cdn, asn, region, device, app, title, protocol.")
    ] = "",
    minutes: Annotated[float, typer.Option(min=1, max=525_600, help="Of those that ended in so many minutes.")] = 60,
    top: Annotated[int, typer.Option(min=1, max=10_000, help="Rows.")] = 20,
    as_json: Json = False,
) -> None:
    """How playback went in sessions that are over: starts, stalls, bitrate, VMAF, by what they are told apart by."""
    with answering(as_json=as_json) as output:
        import polars as pl  # noqa: PLC0415

        from features.settings import Settings  # noqa: PLC0415
        from features.sink import read_log  # noqa: PLC0415
        from serve.clock import now_ms  # noqa: PLC0415
        from serve.errors import InvalidInput  # noqa: PLC0415
        from serve.telemetry.records import SESSIONS, experience  # noqa: PLC0415
        from serve.telemetry.reports import DIMENSIONS  # noqa: PLC0415

        names = [name.strip() for name in by.split(",") if name.strip()]
        if not set(names) <= set(DIMENSIONS) or len(set(names)) != len(names):
            raise InvalidInput(
                field="--by", got=by, expected=f"some of {', '.join(DIMENSIONS)}, each once", next_step="Correct --by."
            )
        since_ms = now_ms() - int(minutes * 60_000)
        frame = read_log(Settings.from_env().home / SESSIONS.name, SESSIONS, since_ms=since_ms)
        frame = frame.filter(pl.col("last_ts") >= since_ms)
        found = experience(frame, names).head(top)
        _tell(output, found, names, minutes)
        output.answer({"minutes": minutes, "by": names, "sessions": frame.height, "rows": found.to_dicts()})


def _tell(output: Output, found: "pl.DataFrame", names: list[str], minutes: float) -> None:
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    if found.is_empty():
        output.console.print(f"no session ended in the last {minutes:g} minutes; they are written a minute after that")
        return
    table = Table(*names, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.iter_rows(named=True):
        values = [_shown(row[name], form) for name, form in _COLUMNS.values()]
        table.add_row(*[escape(row[name] or "?") for name in names], *values)
    output.console.print(table)


def _shown(value: Any, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
