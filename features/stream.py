"""Events in: durable in the log, and in the profile's features, before the caller is told.

One Lua script commits the events of one profile: it appends them to the log, marks their ids as seen, replaces the
profile's record, adds to the titles' statistics, and counts plays. The store runs a script whole or not at all, so at
every moment an event is either in all of these places or in none. The record is replaced only if nobody else replaced
it since it was read (its version is compared); a writer that lost reads again and folds again, so no event is lost to a
race. Within one process writers of one profile take turns instead.

What a caller's retry meets, by when the writer, the connection or the store died:
- before the script ran: nothing is stored; the retry is the first try;
- after the script ran, before the answer came: all is stored; the retry finds the ids seen and counts duplicates;
- in a batch of many profiles, between two scripts: some profiles are done; the retry does the others.
So a batch that was not acknowledged may be sent again with the same event ids, at any time within REMEMBERED_S.

How durable "stored" is, is the store's own setting: an append-only file with `appendfsync always` survives power loss;
with `everysec` it survives a killed process, and a lost machine takes up to a second of events with it.

The script touches keys of several slots, so it needs one Redis or Valkey, not a Cluster.
"""

import asyncio
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final
from weakref import WeakValueDictionary

from hiredis import ReplyError

from features.errors import CorruptRecord, InvalidBatch, StoreTimeout, StoreUnavailable
from features.events import Event, EventKind
from features.layout import command, corrupt
from features.link import StoreLink
from features.popularity import COUNTED, HALF_LIFE_MS, NO_TREND, add_logs, title_key
from features.profiles import ProfileState
from features.records import STATE_FIELDS, begun_anew, decode_state, encode_state, profile_key
from features.settings import Settings
from features.views import TITLE_STATS

STREAM: Final = "playhead:events"
"""The event log: a Redis Stream whose entries hold one field, `event`, an Event as JSON."""

PLAYS: Final = "playhead:plays"
"""Key of the number of plays that the log ever took in: what models learn from. Of another type, it is left alone."""

VERSION_FIELD: Final = b"playhead:version"
"""Field of a profile's record that grows by one with each commit; Feast does not look at it."""

BASE_FIELD: Final = b"playhead:base"
"""Field of a record that says which data set it was filled from, and what that contributed (JSON; empty: none)."""

FILLED_KEY: Final = "playhead:filled"
"""Key that names the data set from which the whole store was filled last."""

REMEMBERED_S: Final = 7 * 24 * 3600
"""How long an event id is remembered."""

MAX_BATCH: Final = 1000

_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.05
_TITLE_FIELDS: Final = [*TITLE_STATS.fields(), TITLE_STATS.ts_field]


_log = logging.getLogger(__name__)


def seen_key(event_id: str) -> str:
    """Key whose existence says that the event was stored."""
    return f"playhead:seen:{event_id}"


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """What became of a batch.

    Attributes:
        accepted: events stored by this call.
        duplicates: events whose id was stored before, or came twice in the batch.
    """

    accepted: int
    duplicates: int


class CommitScript:
    """The Lua script and how it is called."""

    def __init__(self) -> None:
        self.source: Final = files("features").joinpath("commit.lua").read_text(encoding="utf-8")
        self.digest: Final = sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def arguments(
        self, profile_id: str, version: bytes, fields: Sequence[bytes], events: Sequence[Event], remembered_s: int
    ) -> list[bytes | str | float]:
        """Number of keys, keys and arguments that commit a profile's new state together with its new events.

        Args:
            profile_id: whose.
            version: the record's version when it was read; empty where there was none.
            fields: the record with the events folded in, as field, value, field, value, ...
            events: the events, none of them seen before.
            remembered_s: how long their ids are remembered, in seconds.
        """
        changes = title_changes(events)
        keys = [profile_key(profile_id), STREAM.encode(), *(seen_key(event.event_id).encode() for event in events)]
        keys += [*(title_key(title) for title in changes), PLAYS.encode()]
        return [
            len(keys),
            *keys,
            version,
            remembered_s,
            len(events),
            len(changes),
            len(fields),
            *fields,
            *(event.model_dump_json(exclude_defaults=True) for event in events),
            *_TITLE_FIELDS,
            *(number for change in changes.values() for number in change),
            sum(event.kind is EventKind.PLAY for event in events),
        ]


def title_changes(events: Sequence[Event]) -> dict[str, list[float]]:
    """What events add to their titles' statistics.

    Returns:
        title_id -> counts to add (in the order of COUNTED), newest time in ms, log2 of plays (see popularity.py).
    """
    positions = {kind: position for position, kind in enumerate(COUNTED)}
    changes: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0, 0, 0, NO_TREND])
    for event in events:
        change = changes[event.title_id]
        if event.kind in positions:
            change[positions[event.kind]] += 1
        if event.kind is not EventKind.IMPRESSION:
            change[5] = max(change[5], event.ts)
        if event.kind is EventKind.PLAY:
            change[6] = add_logs(change[6], event.ts / HALF_LIFE_MS)
    return changes


class EventWriter:
    """Writes events. Belongs to one event loop; any number of writers may write the same profiles.

    Attributes:
        outcomes: how many events were "accepted" and "duplicate", and how many profiles' commits were a "conflict"
            (retried) or found the record "corrupt" (begun anew; the log still has all events).
    """

    def __init__(
        self,
        settings: Settings,
        *,
        link: StoreLink | None = None,
        deadline_ms: float = 2000.0,
        remembered_s: int = REMEMBERED_S,
    ) -> None:
        """Connects at the first write.

        Args:
            settings: where the store is.
            link: a connection to share; without one, its own.
            deadline_ms: longest time for a batch, in milliseconds.
            remembered_s: how long event ids are remembered, in seconds.
        """
        self.outcomes: Counter[str] = Counter({"accepted": 0, "duplicate": 0, "conflict": 0, "corrupt": 0})
        self._link = link or StoreLink(settings.redis_url)
        self._deadline_s = deadline_ms / 1000
        self._remembered_s = remembered_s
        self._script = CommitScript()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def write(self, events: Sequence[Event]) -> WriteReceipt:
        """Store events and apply them to their profiles' features; both are done when this returns.

        Args:
            events: up to MAX_BATCH, of any profiles, in any order.

        Raises:
            InvalidBatch: too many events.
            StoreUnavailable: the store is down or too slow. Some profiles' events may be stored: send the same events
                again.
        """
        if len(events) > MAX_BATCH:
            raise InvalidBatch(
                field="events", got=len(events), expected=f"at most {MAX_BATCH}", next_step="Send smaller batches."
            )
        unique = {event.event_id: event for event in reversed(events)}  # the first of each id wins
        groups: dict[str, list[Event]] = defaultdict(list)
        for event in reversed(unique.values()):
            groups[event.profile_id].append(event)
        locks = [self._locks.setdefault(profile_id, asyncio.Lock()) for profile_id in sorted(groups)]
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._deadline_s):
                    for lock in locks:  # in one order for all, so that two batches cannot wait for each other
                        await held.enter_async_context(lock)
                    accepted = await self._commit_all(groups)
            except TimeoutError:
                raise StoreTimeout(
                    field="online store",
                    got=f"{len(groups)} profiles not written within {1000 * self._deadline_s:g} ms",
                    expected="a write",
                    next_step="Send the same events again.",
                ) from None
        self.outcomes["accepted"] += accepted
        self.outcomes["duplicate"] += len(events) - accepted
        return WriteReceipt(accepted=accepted, duplicates=len(events) - accepted)

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    async def _commit_all(self, groups: dict[str, list[Event]]) -> int:
        """Commit every profile's events, again where another process was faster; how many events were new."""
        accepted, pause_s = 0, _FIRST_PAUSE_S
        while groups:
            done = await self._round(groups)
            accepted += sum(done.values())
            for profile_id in done:
                del groups[profile_id]
            if groups:
                self.outcomes["conflict"] += len(groups)
                await asyncio.sleep(random.uniform(0, pause_s))  # noqa: S311  (spreads writers, guards nothing)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return accepted

    async def _round(self, groups: dict[str, list[Event]]) -> dict[str, int]:
        """Try to commit each profile once: how many events each profile that got through had new."""
        reads = [part for profile_id, events in groups.items() for part in _read_commands(profile_id, events)]
        replies = await self._call(reads, reading=True)
        done: dict[str, int] = {}
        commits: list[tuple[str, int, list[Any]]] = []
        for index, (profile_id, events) in enumerate(groups.items()):
            found, seen = replies[2 * index : 2 * index + 2]
            version, *record = [None] * (1 + len(STATE_FIELDS)) if isinstance(found, ReplyError) else found
            fresh = [event for event, mark in zip(events, seen, strict=True) if mark is None]
            if not fresh:
                done[profile_id] = 0
                continue
            try:
                if isinstance(found, ReplyError):
                    raise corrupt(f"record of profile {profile_id}", str(found))
                state = decode_state(profile_id, record) or ProfileState()
                reset = False
            except CorruptRecord as error:
                _log.warning("begun anew, the log still has all events: %s", error)
                state, reset = begun_anew(record), True
                self.outcomes["corrupt"] += 1
                await self._call([["DEL", FILLED_KEY]])  # so that the next start fills the profile again
            for event in fresh:
                state.apply(event)
            fields = encode_state(state) + ([BASE_FIELD, b""] if reset else [])
            arguments = self._script.arguments(profile_id, version or b"", fields, fresh, self._remembered_s)
            commits.append((profile_id, len(fresh), arguments))
        if commits:
            for (profile_id, count, _), committed in zip(commits, await self._commit(commits), strict=True):
                if committed:
                    done[profile_id] = count
        return done

    async def _commit(self, commits: list[tuple[str, int, list[Any]]]) -> list[Any]:
        batch = [["EVALSHA", self._script.digest, *arguments] for _, _, arguments in commits]
        try:
            return await self._call(batch)
        except _NoScript:  # a store that started anew
            return await self._call([["EVAL", self._script.source, *call[2:]] for call in batch])

    async def _call(self, batch: list[list[Any]], *, reading: bool = False) -> list[Any]:
        """The replies; while reading, an error among them for a key of another type: it concerns one profile alone."""
        payload = b"".join([command(*arguments) for arguments in batch])
        replies = await self._link.call(payload, count=len(batch), deadline_s=self._deadline_s)
        for reply in replies:
            if isinstance(reply, ReplyError) and not (reading and str(reply).startswith("WRONGTYPE")):
                if str(reply).startswith("NOSCRIPT"):
                    raise _NoScript
                raise StoreUnavailable(
                    field="online store",
                    got=str(reply),
                    expected="a store that takes writes",
                    next_step="See the store's log (memory, disk, read-only replica); send the same events again.",
                )
        return replies


class _NoScript(Exception):
    """The store does not know the script yet."""


def _read_commands(profile_id: str, events: Sequence[Event]) -> list[list[Any]]:
    """The two commands that read a profile's record and which of its events were seen."""
    return [
        ["HMGET", profile_key(profile_id), VERSION_FIELD, *STATE_FIELDS],
        ["MGET", *(seen_key(event.event_id) for event in events)],
    ]
