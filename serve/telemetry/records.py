"""Sessions that are over, as records: their log, the table that it becomes, and what many of them come down to."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
import polars as pl

from features.sink import Log
from serve.telemetry.reports import DIMENSIONS
from serve.telemetry.sessions import LEAST_WAIT_MS, Summary

STREAM: Final = "playhead:telemetry:sessions"
FIELD: Final = b"session"
MOST_WAITING: Final = 200_000
"""Records that wait for a sink, about; where none runs, the oldest make room."""

_SCHEMA: Final[Mapping[str, Any]] = {
    "session": pl.String,
    **dict.fromkeys(DIMENSIONS, pl.String),
    "first_ts": pl.Int64,
    "last_ts": pl.Int64,
    "started": pl.Boolean,
    "startup_ms": pl.Float64,
    "played_ms": pl.Int64,
    "stall_ms": pl.Float64,
    "stalls": pl.Int64,
    "mean_kbps": pl.Float64,
    "mean_vmaf": pl.Float64,
    "switches": pl.Int64,
    "errors": pl.Int64,
    "end": pl.String,
}
_TYPES: Final[Mapping[Any, Any]] = {pl.String: str, pl.Boolean: bool, pl.Int64: int, pl.Float64: (int, float)}


def dump_record(summary: Summary, mean_vmaf: float | None) -> bytes:
    """A session as JSON.

    Args:
        summary: what is known of it.
        mean_vmaf: time-weighted VMAF of what was played, 0 to 100; None where nobody measured the title.
    """
    return orjson.dumps(
        {
            "session": summary.session,
            **{name: value or None for name, value in zip(DIMENSIONS, summary.leaf, strict=True)},
            "first_ts": summary.first_ms, "last_ts": summary.last_ms, "started": summary.started,
            "startup_ms": summary.startup_ms if summary.started else None, "played_ms": summary.played_ms,
            "stall_ms": summary.stall_ms, "stalls": summary.stalls, "mean_kbps": summary.mean_kbps or None,
            "mean_vmaf": mean_vmaf, "switches": summary.switches, "errors": summary.errors, "end": summary.end,
        }
    )  # fmt: skip


def _read_record(dumped: bytes) -> dict[str, Any]:
    document = orjson.loads(dumped)
    if not isinstance(document, dict) or document.keys() != _SCHEMA.keys():
        raise ValueError(dumped)
    for name, kind in _SCHEMA.items():
        if document[name] is not None and not isinstance(document[name], _TYPES[kind]):
            raise ValueError(name)
    if document["last_ts"] is None:
        raise ValueError("last_ts")
    return document


SESSIONS: Final = Log(
    name="sessions", stream=STREAM, field=FIELD, read=_read_record, schema=_SCHEMA, time="last_ts"
)  # fmt: skip
"""Sessions that are over: Summary's fields by its dimensions, null where unknown; startup_ms null without a start."""


def experience(sessions: pl.DataFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """What sessions come down to, by dimensions: one row a combination, most sessions first.

    Args:
        sessions: with the columns of SESSIONS.
        by: of serve.telemetry.reports.DIMENSIONS; none: one row for all.

    Returns:
        The dimensions; `sessions`; shares of them, 0 to 1: `failed_starts` (an error, or nothing shown after
        serve.telemetry.sessions.LEAST_WAIT_MS), `left_before_start` (sooner than that), `failed` (after the start),
        `vanished` (no farewell);
        `startup_p50_s` and `startup_p95_s` of those that started; `rebuffer_ratio` of all stalling and playing time;
        `stalls_per_hour` and `switches_per_hour` of playing; `kbps` and `vmaf`, weighted by playing time; `played_h`.
    """
    hours = pl.col("played_ms").sum() / 3_600_000
    unstarted = ~pl.col("started")
    gave_up = (pl.col("end") == "failed") | (pl.col("last_ts") - pl.col("first_ts") >= LEAST_WAIT_MS)
    stalled, played = pl.col("stall_ms").sum(), pl.col("played_ms").sum()
    frame = sessions.with_columns(pl.lit(0).alias("_all"))
    keys = list(by) or ["_all"]
    return (
        frame.group_by(keys)
        .agg(
            pl.len().alias("sessions"),
            (unstarted & gave_up).mean().alias("failed_starts"),
            (unstarted & ~gave_up).mean().alias("left_before_start"),
            (pl.col("started") & (pl.col("end") == "failed")).mean().alias("failed"),
            (pl.col("end") == "vanished").mean().alias("vanished"),
            (pl.col("startup_ms").quantile(0.5) / 1000).alias("startup_p50_s"),
            (pl.col("startup_ms").quantile(0.95) / 1000).alias("startup_p95_s"),
            pl.when(stalled + played > 0).then(stalled / (stalled + played)).alias("rebuffer_ratio"),
            pl.when(hours > 0).then(pl.col("stalls").sum() / hours).alias("stalls_per_hour"),
            pl.when(hours > 0).then(pl.col("switches").sum() / hours).alias("switches_per_hour"),
            _weighted("mean_kbps").alias("kbps"),
            _weighted("mean_vmaf").alias("vmaf"),
            hours.alias("played_h"),
        )
        .sort("sessions", *keys, descending=[True, *[False] * len(keys)], nulls_last=True)
        .drop("_all", strict=False)
    )


def _weighted(name: str) -> pl.Expr:
    """Mean by playing time, of sessions of which it is known."""
    weight = pl.when(pl.col(name).is_not_null()).then(pl.col("played_ms")).otherwise(0)
    return pl.when(weight.sum() > 0).then((pl.col(name).fill_null(0) * weight).sum() / weight.sum())
