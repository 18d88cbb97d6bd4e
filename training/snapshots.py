"""Snapshots: a data set and what viewers did since, as a data set that training takes like any other.

The live part is the event log as its sink wrote it (HOME/events, features.sink); what the sink has not written yet
comes with the next snapshot. Live events are judged by the rules of an import, and one that breaks them is left out and
counted: no player may stop the training of all. The catalogue is the one that is served: the base's titles with those
that were put beside it (features.additions), in the place of ones with the same id. Another title, or a profile, that
the base does not know is taken as the online store knows it; events of a title that nobody knows are left out and
counted.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl
import redis
from pydantic import ValidationError

from features.additions import read_added
from features.errors import CorruptRecord, FeaturesError
from features.events import CLOCK_TOLERANCE_MS
from features.layout import View, decode, entity_key
from features.settings import Settings
from features.sink import EVENTS, read_log
from features.titles import Title
from features.views import PROFILE_STATS, TITLE_METADATA
from training.datasets.dataset import Dataset, DatasetError, write_dataset
from training.datasets.preparation import prepare, refuse_built_in
from training.datasets.schema import Profile, conform
from training.datasets.validation import wrong_rows

NAME: Final = "live"
LOG_FOLDER: Final = EVENTS.name
"""Of the sink, within HOME."""

_TIMEOUT_S: Final = 5.0
_CHUNK: Final = 500


def take_snapshot(
    settings: Settings, base: str, *, name: str = NAME, until_ms: int | None = None, now_ms: int | None = None
) -> Dataset:
    """Write the base data set's events and the live ones as a data set, in place of one of the same name.

    Events are deduplicated by event_id, the base's first. The notes say what was left out, and why.

    Args:
        settings: where data sets, the event log and the online store are.
        base: name of a data set: ml-100k, synthetic or an imported one.
        name: of the snapshot.
        until_ms: events at this time and later are left out, UTC milliseconds; None: none are.
        now_ms: live events later than an hour after it are refused, UTC milliseconds; the clock's time if not given.

    Raises:
        InvalidInput: the name is none, or is taken by a data set of ours; or no event lies before until_ms.
        NotFound: there is no such base.
        DatasetError: the base, or a file of the event log, is damaged.
        Unavailable: the base is ml-100k, is not here and can't be downloaded.
    """
    refuse_built_in(name)
    if now_ms is None:
        now_ms = time.time_ns() // 1_000_000
    source = prepare(base, settings)
    before = source.frame("events")
    live, notes = _live(settings.home / LOG_FOLDER, before["event_id"], now_ms)
    titles, told = _catalogue(settings, base, source.frame("titles"), now_ms)
    notes += told
    profiles = source.frame("profiles")
    new_titles, told = _unknown_titles(settings, live, titles)
    notes += told
    live = live.filter(pl.col("title_id").is_in(pl.concat([titles, new_titles])["title_id"].implode()))
    new_profiles, told = _unknown_profiles(settings, live, profiles)
    notes += told
    events = pl.concat([before, live])
    if until_ms is not None:
        late = events.filter(pl.col("ts") >= until_ms)
        live = live.filter(pl.col("ts") < until_ms)
        events = events.filter(pl.col("ts") < until_ms)
        if late.height:
            notes.append(f"{late.height:,} events at {until_ms} and later were left out, as asked.")
    return write_dataset(
        settings.datasets / name,
        source=f"{base} ({source.snapshot[:12]}) and {live.height:,} live events",
        events=events,
        titles=pl.concat([titles, new_titles]),
        profiles=pl.concat([profiles, new_profiles]),
        shift_ms=source.shift_ms,
        notes=(*source.notes, *notes),
    )


def _catalogue(settings: Settings, base: str, titles: pl.DataFrame, now_ms: int) -> tuple[pl.DataFrame, list[str]]:
    """The base's titles with those that were put beside it; in words what became of these."""
    try:
        added = read_added(settings, base)
    except FeaturesError as error:
        return titles, [f"Titles that were put beside {base} are left out: {str(error)[:200]}"]
    if not added:
        return titles, []
    rows = [title.model_dump() for title in added]
    frame = conform(pl.DataFrame(rows, schema_overrides=dict(titles.schema)), "titles")
    wrong = wrong_rows(frame, "titles", now_ms)
    kept = frame.filter(~wrong)
    notes = [f"{kept.height:,} titles were put beside {base} while it was served."] if kept.height else []
    if wrong.any():
        notes.append(f"{wrong.sum():,} titles beside {base} break the rules of an import and were left out.")
    own = titles.filter(~pl.col("title_id").is_in(kept["title_id"].implode()))
    return pl.concat([own, kept]), notes


def _live(folder: Path, known: pl.Series, now_ms: int) -> tuple[pl.DataFrame, list[str]]:
    """Live events that are new and right, and in words which were not."""
    frame = conform(_read(folder), "events")
    notes = []
    fresh = frame.filter(~pl.col("event_id").is_in(known.implode()))
    if frame.height > fresh.height:
        notes.append(f"{frame.height - fresh.height:,} live events were in the base already and were dropped.")
    future = fresh["ts"] > now_ms + CLOCK_TOLERANCE_MS
    if future.any():
        notes.append(f"{future.sum():,} live events from more than an hour in the future were refused.")
    fresh = fresh.filter(~future)
    wrong = wrong_rows(fresh, "events", now_ms)
    if wrong.any():
        notes.append(f"{wrong.sum():,} live events break the rules of an import and were dropped.")
    fresh = fresh.filter(~wrong)
    if fresh.is_empty():
        notes.append("There were no live events to add.")
    return fresh, notes


def _read(folder: Path) -> pl.DataFrame:
    try:
        return read_log(folder, EVENTS)
    except (OSError, pl.exceptions.PolarsError) as error:
        for file in sorted(folder.glob("date=*/part-*.parquet")):
            try:
                pl.read_parquet(file, hive_partitioning=False).select(list(EVENTS.schema))
            except (OSError, pl.exceptions.PolarsError) as found:
                raise DatasetError(
                    field=f"{folder.name}/{file.parent.name}/{file.name}",
                    got=str(found)[:300],
                    expected="Parquet as the sink wrote it",
                    next_step="Restore the file, or move it out of the folder: its events are lost to training.",
                ) from error
        raise DatasetError(
            field=str(folder), got=str(error)[:300], expected="the event log's files", next_step="Read them again."
        ) from error


def _unknown_titles(settings: Settings, live: pl.DataFrame, titles: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Rows of titles that the base does not know and the online store does; in words what became of all of them."""
    seen = live.filter(~pl.col("title_id").is_in(titles["title_id"].implode()))
    if seen.is_empty():
        return titles.clear(), []
    wanted = seen["title_id"].unique(maintain_order=True).to_list()
    found, trouble = _known(settings, TITLE_METADATA, "title_id", wanted)
    rows = []
    for title_id, values in found.items():
        fields = {name: value for name, value in values.items() if name != "added_ts_ms"}
        try:
            rows.append(Title(title_id=title_id, added_ts=values["added_ts_ms"], **fields).model_dump())
        except ValidationError:
            continue
    kept = conform(pl.DataFrame(rows, schema_overrides=dict(titles.schema)), "titles") if rows else titles.clear()
    lost = seen.filter(~pl.col("title_id").is_in(kept["title_id"].implode()))
    notes = [f"{kept.height:,} titles came from the online store."] if kept.height else []
    if lost.height:
        names = lost["title_id"].unique(maintain_order=True)
        listed = ", ".join(names.head(5).to_list()) + (" ..." if names.len() > 5 else "")
        notes.append(
            f"{lost.height:,} live events of {names.len():,} titles ({listed}) that neither the base nor the online "
            f"store knows were dropped{trouble}."
        )
    return kept, notes


def _unknown_profiles(settings: Settings, live: pl.DataFrame, profiles: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Rows of profiles that the base does not know: as the online store knows them, else with the defaults."""
    seen = live.filter(~pl.col("profile_id").is_in(profiles["profile_id"].implode()))["profile_id"]
    wanted = seen.unique(maintain_order=True).to_list()
    if not wanted:
        return profiles.clear(), []
    found, trouble = _known(settings, PROFILE_STATS, "profile_id", wanted, ("region", "kids"))
    rows = [Profile(profile_id=profile_id, **found.get(profile_id, {})).model_dump() for profile_id in wanted]
    note = f"{len(wanted):,} profiles are new, {len(found):,} of them known to the online store{trouble}."
    return conform(pl.DataFrame(rows), "profiles"), [note]


def _known(
    settings: Settings, view: View, key: str, ids: Sequence[str], features: Sequence[str] | None = None
) -> tuple[dict[str, Mapping[str, Any]], str]:
    """What the online store holds of a view, id -> feature -> value; and in words why nothing, where it is away."""
    chosen = tuple(view.features if features is None else features)
    fields = view.fields(chosen)
    found: dict[str, Mapping[str, Any]] = {}
    try:
        with redis.Redis.from_url(
            settings.redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        ) as client:
            for start in range(0, len(ids), _CHUNK):
                some = ids[start : start + _CHUNK]
                with client.pipeline(transaction=False) as pipe:
                    for one in some:
                        pipe.hmget(entity_key({key: one}), fields)
                    replies = pipe.execute(raise_on_error=False)
                for one, values in zip(some, replies, strict=True):
                    if isinstance(values, list) and all(value is not None for value in values):
                        try:
                            found[one] = {
                                name: decode(view.features[name], value)
                                for name, value in zip(chosen, values, strict=True)
                            }
                        except CorruptRecord:
                            continue
    except (redis.RedisError, ValueError) as error:
        return found, f" (the online store does not answer: {str(error)[:120]})"
    return found, ""
