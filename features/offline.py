"""Point-in-time features from event files: what a read would have said at a moment of the past.

The features as of t hold every event with ts <= t: what a read at t says once the events of that millisecond are in.
With `inclusive=False` they hold the events with ts < t: what was known before anything that happened at t. Training on
an event must use the latter, or the answer is in the question.

Events are taken by their own time, each id once. A late event is therefore in the features of its time, although a read
at that time could not have known it; once all events are in, both agree exactly (tests/features/test_skew.py).

Event frames have the columns of features.sink.EVENTS, in any order of rows; request_id, row, rank, region and device
may be missing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from features.errors import InvalidData
from features.events import EventKind
from features.popularity import COUNTED, HALF_LIFE_MS, NO_TREND, TitleStats
from features.profiles import ProfileFeatures, ProfileState

_NEEDED: Final = ("event_id", "profile_id", "title_id", "kind", "ts", "position_s", "duration_s")

FRAME_SCHEMA: Final[dict[str, Any]] = {
    "profile_id": pl.String,
    "ts": pl.Int64,
    "known": pl.Boolean,
    "title_ids": pl.List(pl.String),
    "kinds": pl.List(pl.Int32),
    "ts_ms": pl.List(pl.Int64),
    "progress": pl.List(pl.Float32),
    "n_events": pl.Int64,
    "counts": pl.List(pl.Int64),
    "first_ts_ms": pl.Int64,
    "last_ts_ms": pl.Int64,
    "my_list": pl.List(pl.String),
    "region": pl.String,
    "device": pl.String,
    "kids": pl.Boolean,
}
"""Columns of a point-in-time frame: the features of profile_history and profile_stats as Feast names them."""


@dataclass(slots=True)
class Moment:
    """One profile at one instant of its past, just before what happened then.

    Attributes:
        profile_id: whose.
        ts_ms: the instant, UTC milliseconds.
        state: what was known before; the same object grows from moment to moment, so take what is needed at once.
        rows: positions in the given frame of the events of that instant.
    """

    profile_id: str
    ts_ms: int
    state: ProfileState
    rows: list[int]


def replay(events: pl.DataFrame, profiles: pl.DataFrame | None = None) -> Iterator[Moment]:
    """Every instant at which something happened, profile by profile and oldest first: the rows to train on.

    Nothing is copied, so a whole log costs one fold. Repeated event ids are left out.

    Args:
        events: an event frame.
        profiles: profile_id, region, kids; what is known of profiles beside their events.

    Raises:
        InvalidData: a column is missing or holds what it must not.
    """
    states = _initial(profiles)
    current: Moment | None = None
    pending: list[tuple[Any, ...]] = []
    for row, profile_id, *happened in _sorted(events):
        if current is not None and (profile_id != current.profile_id or happened[2] != current.ts_ms):
            yield current
            for fields in pending:
                current.state.fold(*fields)
            current, pending = None, []
        if current is None:
            current = Moment(profile_id, happened[2], states.setdefault(profile_id, ProfileState()), [])
        current.rows.append(row)
        pending.append(tuple(happened))
    if current is not None:
        yield current


def fold(events: pl.DataFrame, profiles: pl.DataFrame | None = None) -> dict[str, ProfileState]:
    """The state of every profile after all events.

    Args:
        events: an event frame.
        profiles: profile_id, region, kids; what is known of profiles beside their events.

    Raises:
        InvalidData: a column is missing or holds what it must not.
    """
    states = _initial(profiles)
    for _, profile_id, *happened in _sorted(events):
        states.setdefault(profile_id, ProfileState()).fold(*happened)
    return states


def features_at(
    events: pl.DataFrame, rows: pl.DataFrame, profiles: pl.DataFrame | None = None, *, inclusive: bool = True
) -> list[ProfileFeatures]:
    """The features of profiles at moments, in the order of the rows.

    Args:
        events: an event frame.
        rows: profile_id (string) and ts (UTC milliseconds), in any order.
        profiles: profile_id, region, kids; what is known of profiles beside their events.
        inclusive: whether the events of the moment itself are in.

    Raises:
        InvalidData: a column is missing or holds what it must not.
    """
    _check(rows, "rows", ("profile_id", "ts"))
    asked: dict[str, list[tuple[int, int]]] = {}
    for index, (profile_id, ts) in enumerate(rows.select("profile_id", "ts").iter_rows()):
        asked.setdefault(profile_id, []).append((ts, index))
    happened: dict[str, list[tuple[Any, ...]]] = {}
    for _, profile_id, *fields in _sorted(events.filter(pl.col("profile_id").is_in(list(asked)))):
        happened.setdefault(profile_id, []).append(tuple(fields))
    states = _initial(profiles)
    found: dict[int, ProfileFeatures] = {}
    for profile_id, moments in asked.items():
        state = states.get(profile_id, ProfileState())
        known = profile_id in states
        log = happened.get(profile_id, [])
        position = 0
        for ts, index in sorted(moments):
            while position < len(log) and (log[position][2] <= ts if inclusive else log[position][2] < ts):
                state.fold(*log[position])
                position += 1
            found[index] = state.features(profile_id) if known or position else ProfileFeatures(profile_id)
    return [found[index] for index in range(rows.height)]


def point_in_time(
    events: pl.DataFrame, rows: pl.DataFrame, profiles: pl.DataFrame | None = None, *, inclusive: bool = True
) -> pl.DataFrame:
    """The same as features_at, as a frame of FRAME_SCHEMA with one row for each asked row, in their order."""
    columns: dict[str, list[Any]] = {name: [] for name in FRAME_SCHEMA}
    times = rows["ts"].to_list()
    for ts, features in zip(times, features_at(events, rows, profiles, inclusive=inclusive), strict=True):
        entries, stats = features.history.entries, features.stats
        row = {
            "profile_id": features.profile_id,
            "ts": ts,
            "known": features.known,
            "title_ids": [entry.title_id for entry in entries],
            "kinds": [entry.kind for entry in entries],
            "ts_ms": [entry.ts_ms for entry in entries],
            "progress": [entry.progress for entry in entries],
            "n_events": features.history.n_events,
            "counts": list(stats.counts.values()),
            "first_ts_ms": stats.first_ts_ms,
            "last_ts_ms": stats.last_ts_ms,
            "my_list": stats.my_list,
            "region": stats.region,
            "device": stats.device,
            "kids": stats.kids,
        }
        for name, value in row.items():
            columns[name].append(value)
    return pl.DataFrame(columns, schema=FRAME_SCHEMA)


def title_statistics(events: pl.DataFrame, ts: int | None = None, *, inclusive: bool = True) -> dict[str, TitleStats]:
    """Statistics of every title that has events, as the online store has them.

    Args:
        events: an event frame.
        ts: as of when, UTC milliseconds; None after all events.
        inclusive: whether the events of the moment itself are in.

    Raises:
        InvalidData: a column is missing.
    """
    _check(events, "events", _NEEDED)
    if ts is not None:
        events = events.filter(pl.col("ts") <= ts if inclusive else pl.col("ts") < ts)
    kind = pl.col("kind").cast(pl.String)
    steps = pl.col("ts").filter(kind == EventKind.PLAY) / HALF_LIFE_MS
    frame = (
        events.unique("event_id", keep="first", maintain_order=True)
        .group_by("title_id")
        .agg(
            *((kind == counted).sum().cast(pl.Int64).alias(name) for counted, name in COUNTED.items()),
            pl.col("ts").filter(kind != EventKind.IMPRESSION).max().fill_null(0).alias("last_ts_ms"),
            (steps.max() + (pl.lit(2.0).pow(steps - steps.max())).sum().log(2.0)).fill_null(NO_TREND).alias("trend"),
        )
        .select("title_id", *COUNTED.values(), "last_ts_ms", "trend")
    )
    return {title: TitleStats(*values) for title, *values in frame.iter_rows()}


def _sorted(events: pl.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Events by profile and time, each id once: row, profile_id, then the arguments of ProfileState.fold."""
    _check(events, "events", _NEEDED)
    optional = [
        name if name in events.columns else pl.lit(None, pl.String).alias(name) for name in ("region", "device")
    ]
    frame = (
        events.with_row_index("line")
        .unique("event_id", keep="first", maintain_order=True)
        .sort("profile_id", "ts", "line")
        .select("line", "profile_id", pl.col("kind").cast(pl.String), "title_id", "ts", _progress(), *optional)
    )
    kinds = {kind.value: kind for kind in EventKind}
    unknown = frame.filter(~pl.col("kind").is_in(list(kinds)) | pl.any_horizontal(pl.col(frame.columns[:5]).is_null()))
    if unknown.height:
        raise InvalidData(
            field=f"events, row {unknown['line'][0]}",
            got=unknown.row(0)[1:5],
            expected=f"a kind among {', '.join(kinds)}, and a profile_id, title_id and ts",
            next_step="Correct the row.",
        )
    for line, profile_id, kind, *rest in frame.iter_rows():
        yield line, profile_id, kinds[kind], *rest


def _progress() -> pl.Expr:
    """Event.progress as an expression, rounded to float32 as there."""
    position, duration = pl.col("position_s").cast(pl.Float64), pl.col("duration_s").cast(pl.Float64)
    share = pl.when(duration > 0).then((position / duration).clip(upper_bound=1.0)).otherwise(0.0)
    return share.fill_null(0.0).cast(pl.Float32).cast(pl.Float64).alias("progress")


def _initial(profiles: pl.DataFrame | None) -> dict[str, ProfileState]:
    """What is known of profiles before any event."""
    if profiles is None:
        return {}
    _check(profiles, "profiles", ("profile_id", "region", "kids"))
    rows = profiles.select("profile_id", pl.col("region").fill_null(""), pl.col("kids").fill_null(value=False))
    return {profile: ProfileState(region=(-1, region), kids=kids) for profile, region, kids in rows.iter_rows()}


def _check(frame: pl.DataFrame, what: str, needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise InvalidData(
            field=what,
            got=frame.columns,
            expected=f"columns {', '.join(needed)}",
            next_step=f"Add {', '.join(missing)}.",
        )
