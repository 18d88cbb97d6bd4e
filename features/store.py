"""Setting the feature store up: telling Feast what there is, and filling the online store from a data set.

Filling is safe to run at any time and any number of times. Each profile and title remembers which data set it was
filled from and what that contributed (its base), in the same atomic step that stored it; so a run that died half way is
simply run again, a newer snapshot takes the counts of the one before away, and events that came through the API
meanwhile stay. What the snapshot before left in histories and lists stays, too, until newer events push it out. Events
of the data set that came through the API themselves (a data set made from the event log) are left out as long as their
ids are remembered (features.stream.REMEMBERED_S).

A store holds one data set, by name: two audiences in one would see each other's past. Another one takes its place only
while no event came through the API; else it is refused, because what viewers did would be lost or belong to strangers.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import redis
from pydantic import ValidationError
from redis.asyncio.connection import SSLConnection, parse_url

from features import offline
from features.errors import CorruptRecord, FeaturesError, InvalidData, StoreUnavailable
from features.layout import PROJECT
from features.popularity import TitleStats, add_logs, decode_title_stats, subtract_logs, title_key
from features.profiles import ProfileState
from features.records import STATE_FIELDS, decode_state, encode_state, profile_key
from features.settings import Settings
from features.stream import BASE_FIELD, FILLED_KEY, STREAM, VERSION_FIELD, seen_key
from features.titles import Title
from features.views import TITLE_METADATA, TITLE_STATS

if TYPE_CHECKING:
    from feast import FeatureStore

DATASET_KEY: Final = "playhead:dataset"
"""Key that holds the name of the data set that the store was filled from."""

_NO_BASE: Final[dict[str, Any]] = {"snapshot": "", "counts": [], "n_events": 0, "stats": {}}
_TIMEOUT_S: Final = 10.0
_CHUNK: Final = 250

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What filling did.

    Attributes:
        snapshot: names the data set's content.
        profiles: profiles written; those filled from this data set before are left alone.
        titles: titles written, likewise.
        events: events in the data set, each id once.
        already_live: events left out because they had come through the API.
    """

    snapshot: str
    profiles: int
    titles: int
    events: int
    already_live: int


def open_store(settings: Settings, *, registry: str | None = None) -> "FeatureStore":
    """Feast's own store on the same registry and online store. Imports Feast, which takes seconds.

    Args:
        settings: where registry and online store are.
        registry: another registry path or SQL URL.

    Raises:
        FeaturesError: the store's URL is of a kind that Feast cannot use.
    """
    from feast import FeatureStore, RepoConfig  # noqa: PLC0415  (its import takes seconds)

    path = registry or settings.feast_registry
    kind = "sql" if "://" in path else "file"
    return FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            provider="local",
            registry={"registry_type": kind, "path": path, "cache_mode": "thread", "cache_ttl_seconds": 60},
            online_store={"type": "redis", "connection_string": _connection_string(settings)},
            offline_store={"type": "file"},
            entity_key_serialization_version=3,
        )
    )


def apply(settings: Settings) -> None:
    """Tell Feast's registry what there is; the same again changes nothing.

    A registry file is made beside the old one and then takes its place, so a crash leaves the old one or the new one.

    Args:
        settings: where registry and online store are.
    """
    from features.definitions import definitions  # noqa: PLC0415  (imports Feast)

    if "://" in settings.feast_registry:
        open_store(settings).apply(definitions(settings))
        return
    target = Path(settings.feast_registry)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.with_name(f".{target.name}.new")
    made.unlink(missing_ok=True)
    open_store(settings, registry=str(made)).apply(definitions(settings))
    made.replace(target)


def materialise(settings: Settings, dataset: Path, *, progress: Progress | None = None) -> Filled:
    """Fill the online store from a data set's events, titles and profiles.

    Args:
        settings: where the online store is.
        dataset: folder with events.parquet, titles.parquet and profiles.parquet; its name is the data set's.
        progress: told how far it is.

    Raises:
        InvalidData: a file is missing or does not hold what it must, or the store holds what viewers of another data
            set did.
        StoreUnavailable: the store does not answer; run it again.
    """
    snapshot = _snapshot(dataset)
    client = redis.Redis.from_url(settings.redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
    try:
        with client:
            _claim(client, dataset.name)
            if client.get(FILLED_KEY) == snapshot.encode():
                return Filled(snapshot, 0, 0, 0, 0)
            return _fill(client, snapshot, dataset, progress or (lambda _done, _total: None))
    except redis.RedisError as error:
        raise StoreUnavailable(
            field="online store",
            got=str(error),
            expected="a Redis or Valkey server that answers",
            next_step="Start the store or correct REDIS_URL; run it again.",
        ) from error


def _claim(client: redis.Redis, name: str) -> None:
    """Make the store this data set's, empty where it was another's.

    A run that died half way leaves the other's name, and no word that the store is full: either may claim it again.
    """
    before: Any = client.get(DATASET_KEY)
    if before is not None and before != name.encode():
        client.delete(FILLED_KEY)
        for key in (profile_key(""), title_key("")):
            named = key[: key.index(b"_id") + len(b"_id")]  # the record of any profile, of any title
            records: list[Any] = list(client.scan_iter(named + b"*", count=_CHUNK))
            for start in range(0, len(records), _CHUNK):
                _drop(client, records[start : start + _CHUNK], before.decode(), name)
    client.set(DATASET_KEY, name)


def _drop(client: redis.Redis, records: list[bytes], before: str, name: str) -> None:
    """Remove records of another data set unless an event came through the API, at the latest while they are removed.

    Raises:
        InvalidData: one did.
    """
    with client.pipeline() as pipe:
        pipe.watch(STREAM)  # type: ignore[no-untyped-call]
        log: Any = pipe.xinfo_stream(STREAM) if pipe.exists(STREAM) else {"entries-added": 0}
        untouched = log.get("entries-added") == 0  # unknown to servers before 7.0
        pipe.multi()
        pipe.unlink(*records)
        try:
            if untouched:
                pipe.execute()
        except redis.WatchError:
            untouched = False
    if not untouched:
        raise InvalidData(
            field="online store",
            got=f"what viewers of the data set {before} did",
            expected=f"a store for the data set {name}",
            next_step=f"Go on with --data {before}, or give {name} a store of its own: another PLAYHEAD_HOME or, with "
            "REDIS_URL, another database in it.",
        )


def _fill(client: redis.Redis, snapshot: str, dataset: Path, progress: Progress) -> Filled:
    all_events = _read(dataset / "events.parquet").unique("event_id", keep="first", maintain_order=True)
    events = _not_live(client, all_events)
    titles = _titles(_read(dataset / "titles.parquet"))
    states = offline.fold(events, _read(dataset / "profiles.parquet"))
    stats = offline.title_statistics(events)
    title_ids = list(titles | dict.fromkeys(stats, None))
    total = len(states) + len(title_ids)
    replacer = _Replacer(client, lambda done: progress(done, total))
    profiles_written = replacer.run(
        [profile_key(profile_id) for profile_id in states],
        [VERSION_FIELD, BASE_FIELD, *STATE_FIELDS],
        lambda row: _profile_change(row, snapshot, states),
        list(states),
    )
    titles_written = replacer.run(
        [title_key(title_id) for title_id in title_ids],
        [BASE_FIELD, *TITLE_STATS.fields()],
        lambda row: _title_change(row, snapshot, titles.get(row.name), stats.get(row.name, TitleStats())),
        title_ids,
    )
    client.set(FILLED_KEY, snapshot)
    return Filled(snapshot, profiles_written, titles_written, all_events.height, all_events.height - events.height)


@dataclass(frozen=True, slots=True)
class _Row:
    """What the store holds of one profile or title now."""

    name: str
    values: list[bytes | None]


@dataclass(frozen=True, slots=True)
class _Change:
    """Fields to set, if the first `compared` fields that were read are still the same."""

    compared: int
    fields: list[bytes]


class _Replacer:
    """Reads hashes, has them changed and writes them back, again where somebody else was faster."""

    def __init__(self, client: redis.Redis, progress: Callable[[int], None]) -> None:
        self._client = client
        self._script = client.register_script(files("features").joinpath("replace.lua").read_text(encoding="utf-8"))
        self._progress = progress
        self._done = 0

    def run(
        self,
        keys: Sequence[bytes],
        fields: Sequence[bytes],
        change: Callable[[_Row], _Change | None],
        names: Sequence[str],
    ) -> int:
        """Change every hash once; how many were changed."""
        written = 0
        for start in range(0, len(keys), _CHUNK):
            waiting = dict(zip(keys[start : start + _CHUNK], names[start : start + _CHUNK], strict=True))
            self._done += len(waiting)
            while waiting:
                written_now, waiting = self._round(waiting, fields, change)
                written += written_now
            self._progress(self._done)
        return written

    def _round(
        self, waiting: dict[bytes, str], fields: Sequence[bytes], change: Callable[[_Row], _Change | None]
    ) -> tuple[int, dict[bytes, str]]:
        with self._client.pipeline(transaction=False) as pipe:
            for key in waiting:
                pipe.hmget(key, list(fields))  # type: ignore[arg-type]  # keys are binary
            rows = [self._held(reply, len(fields)) for reply in pipe.execute(raise_on_error=False)]
        tried = []
        with self._client.pipeline(transaction=False) as pipe:
            for (key, name), values in zip(waiting.items(), rows, strict=True):
                made = change(_Row(name, values))
                if made is not None:
                    tried.append(key)
                    compared = [
                        part
                        for field, value in zip(fields[: made.compared], values, strict=False)
                        for part in (field, b"0" if value is None else b"1", value or b"")
                    ]
                    self._script(keys=[key], args=[made.compared, *compared, *made.fields], client=pipe)
            replies = pipe.execute() if tried else []
        lost = {key: waiting[key] for key, reply in zip(tried, replies, strict=True) if reply == 0}
        return len(tried) - len(lost), lost

    @staticmethod
    def _held(reply: Any, count: int) -> list[bytes | None]:
        """The values of a hash: none where the key is of another type, and so none of ours."""
        if isinstance(reply, redis.RedisError):
            if not str(reply).startswith("WRONGTYPE"):
                raise reply
            return [None] * count
        return list(reply)


def _profile_change(row: _Row, snapshot: str, states: dict[str, ProfileState]) -> _Change | None:
    """The profile's record with the data set folded in; None where it is in already."""
    version, encoded, *record = row.values
    base: dict[str, Any] = json.loads(encoded) if encoded else _NO_BASE
    folded = states[row.name]
    try:
        stored = decode_state(row.name, record)
    except CorruptRecord:
        stored, base = None, _NO_BASE
    if base["snapshot"] == snapshot:
        return None
    contributed = {"snapshot": snapshot, "counts": folded.counts, "n_events": folded.history.n_events}
    state = ProfileState()
    if stored is not None:
        n_events = stored.history.n_events
        own = stored.region if stored.region[0] >= 0 else (-1, "")  # the data set says the profile's own anew
        state = ProfileState(history=stored.history, counts=list(stored.counts), region=own)
        state.first_ts_ms, state.last_ts_ms = stored.first_ts_ms, stored.last_ts_ms
        state.list_marks, state.device = stored.list_marks, stored.device
        for position, count in enumerate(base["counts"]):
            state.counts[position] -= count
        state.history.n_events -= base["n_events"]
        state.merge(folded)
        state.history.n_events = max(state.history.n_events, n_events + 1)  # a new content never has an old number
    else:
        state.merge(folded)
    fields = [VERSION_FIELD, b"%d" % (int(version or 0) + 1), BASE_FIELD, json.dumps(contributed).encode()]
    return _Change(1, fields + encode_state(state))


def _title_change(row: _Row, snapshot: str, title: Title | None, folded: TitleStats) -> _Change | None:
    """The title's record with the data set folded in; None where it is in already."""
    encoded, *values = row.values
    base: dict[str, Any] = json.loads(encoded) if encoded else _NO_BASE
    try:
        stored = decode_title_stats(row.name, values)
    except CorruptRecord:
        stored, base = TitleStats(), _NO_BASE
    if base["snapshot"] == snapshot:
        return None
    before = TitleStats(**base["stats"])
    counts = {
        name: getattr(stored, name) - getattr(before, name) + getattr(folded, name)
        for name in TITLE_STATS.features
        if name not in ("last_ts_ms", "trend")
    }
    merged = {
        **counts,
        "last_ts_ms": max(stored.last_ts_ms, folded.last_ts_ms),
        "trend": add_logs(subtract_logs(stored.trend, before.trend), folded.trend),
    }
    contributed = {name: getattr(folded, name) for name in TITLE_STATS.features}
    fields = [BASE_FIELD, json.dumps({"snapshot": snapshot, "stats": contributed}).encode()]
    fields += TITLE_STATS.row(merged, merged["last_ts_ms"])
    if title is not None:
        metadata = title.model_dump(exclude={"title_id", "added_ts"}) | {"added_ts_ms": title.added_ts}
        fields += TITLE_METADATA.row(metadata, title.added_ts)
    return _Change(len(row.values), fields)


def _not_live(client: redis.Redis, events: pl.DataFrame) -> pl.DataFrame:
    """The events whose ids the online store has not seen."""
    if not client.exists(STREAM):
        return events
    ids = events["event_id"].to_list()
    seen: list[bool] = []
    for start in range(0, len(ids), 1000):
        marks: Any = client.mget([seen_key(event_id) for event_id in ids[start : start + 1000]])
        seen += [mark is not None for mark in marks]
    return events.filter(~pl.Series(seen, dtype=pl.Boolean))


def _titles(frame: pl.DataFrame) -> dict[str, Title]:
    titles = {}
    for index, row in enumerate(frame.iter_rows(named=True)):
        try:
            title = Title.model_validate({name: value for name, value in row.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidData(
                field=f"titles.parquet, row {index}, {'.'.join(map(str, first['loc']))}",
                got=first["input"],
                expected=first["msg"],
                next_step="Correct the row.",
            ) from None
        titles[title.title_id] = title
    return titles


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InvalidData(
            field=path.name,
            got=str(error),
            expected="a Parquet file",
            next_step=f"Prepare the data set {path.parent} again.",
        ) from None


def _snapshot(dataset: Path) -> str:
    """A name of a data set's content: hash over its files."""
    digest = hashlib.sha256()
    for name in ("events.parquet", "titles.parquet", "profiles.parquet"):
        try:
            with (dataset / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InvalidData(
                field=name,
                got=str(error),
                expected="a Parquet file",
                next_step=f"Prepare the data set {dataset} again.",
            ) from None
    return digest.hexdigest()[:16]


def _connection_string(settings: Settings) -> str:
    """Feast's way of writing a Redis URL, with timeouts, which Feast lacks by default."""
    parts: dict[str, Any] = dict(parse_url(settings.redis_url))
    secrets = [str(parts.get(name) or "") for name in ("username", "password")]
    if "path" in parts or any("," in secret for secret in secrets):
        raise FeaturesError(
            field="REDIS_URL",
            got=settings.redis_url.rpartition("@")[2],
            expected="for Feast, a TCP address and a password without commas",
            next_step="Use redis://host:port or rediss://host:port.",
        )
    timeout_s = max(settings.store_deadline_ms / 1000, 0.5)
    options = {"db": parts.get("db", 0), "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    options |= {name: json.dumps(parts[name]) for name in ("username", "password") if parts.get(name)}
    if parts.get("connection_class") is SSLConnection:
        options["ssl"] = "true"
    address = f"{parts.get('host', 'localhost')}:{parts.get('port', 6379)}"
    return ",".join([address, *(f"{name}={value}" for name, value in options.items())])
