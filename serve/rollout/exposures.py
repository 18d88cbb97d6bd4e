"""What was shown to whom, by which version and with which propensity; and what came of it.

playhead:exposures   a stream of pages that were shown and of what followed from them (plays, finishes, thumbs), in the
                     order in which it happened
playhead:exposures:versions:MINUTE
                     request_id -> version of the pages that were told of in a minute; for NAMED_MIN minutes

Exposures are told after the answer, from memory, in batches; what the store does not take is dropped and counted, for
nobody waits for it. An outcome names the page that it came from (`request_id`), so both can be joined. A batch of
events that a player sends again is told again: who counts outcomes counts each once. Entries stay until about MOST_KEPT
newer ones came: whoever decides rollouts, whoever measures online, and the sink, read the same stream.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from types import NoneType
from typing import Any, Final

import hiredis
import orjson
import polars as pl

from features.errors import StoreUnavailable
from features.events import Event, EventKind
from features.layout import command
from features.link import StoreLink
from features.sink import Log
from serve.clock import now_ms
from serve.metrics import Metrics
from serve.schemas import MODEL_FAILED, Answer

STREAM: Final = "playhead:exposures"
FIELD: Final = b"exposure"
MOST_KEPT: Final = 100_000
FLUSH_S: Final = 0.25

NAMED_MIN: Final = 60
"""Minutes for which a page's version is found by its request id; about 60 bytes of the store a page."""

_MOST_WAITING: Final = 20_000
_BATCH: Final = 1_000
_DEADLINE_S: Final = 2.0

SHOWN: Final = "shown"
PLAYED: Final = "played"
FINISHED: Final = "finished"
THUMBS_UP: Final = "thumbs_up"
THUMBS_DOWN: Final = "thumbs_down"
OUTCOMES: Final[Mapping[EventKind, str]] = {
    EventKind.PLAY: PLAYED,
    EventKind.FINISH: FINISHED,
    EventKind.THUMBS_UP: THUMBS_UP,
    EventKind.THUMBS_DOWN: THUMBS_DOWN,
}
"""Events that are told where they name a page, and the kind of their record."""

MOST_CHANCES: Final = 30
"""First titles of a page whose estimated chances of a play are told."""


def versions_key(minute: int) -> str:
    """Key of the versions of the pages that were told of in a minute since the epoch."""
    return f"{STREAM}:versions:{minute}"


def version_lookup(request_id: str, at_ms: int) -> tuple[bytes, int]:
    """Commands that find the version of a page that was told of in the last NAMED_MIN minutes, and how many they are.

    Each replies with the version, empty where no model made the page, or None; newest first.
    """
    minute = at_ms // 60_000
    keys = [versions_key(minute - ago) for ago in range(-1, NAMED_MIN)]  # clocks may be apart
    return b"".join([command("HGET", key, request_id) for key in keys]), len(keys)


class ExposureWriter:
    """Tells of pages and of what came of them. Belongs to one event loop.

    Args:
        redis_url: where the store is.
        model: the recommender's name.
        metrics: where what was dropped is counted, as failures of the stage `exposures`.
    """

    def __init__(self, redis_url: str, model: str, metrics: Metrics) -> None:
        self._link = StoreLink(redis_url)
        self._model = model
        self._metrics = metrics
        self._waiting: deque[bytes] = deque()
        self._versions: dict[str, str] = {}

    def shown(
        self, request_id: str, profile_id: str, answer: Answer, *, degraded: bool, where: Mapping[str, str | int]
    ) -> None:
        """A page is about to be answered.

        Args:
            request_id: names the answer.
            profile_id: whose page it is.
            answer: the page.
            degraded: whether it is less than it could be, for more than an ordinary reason.
            where: `device` and `region`, as far as they were given; `visits` (plays of the profile so far) and
                `gap_s` (seconds since its last event), as far as they are known.
        """
        assigned, seconds = answer.assigned, answer.timings_ms.get("ranker")
        rollout: dict[str, Any] = {"assigned": None, "challenged": False, "propensity": 1.0, "salt": ""}
        if assigned is not None:
            rollout = {
                "assigned": assigned.version, "challenged": assigned.challenged, "propensity": assigned.propensity,
                "salt": assigned.salt,
            }  # fmt: skip
        if len(self._versions) < _MOST_WAITING:
            self._versions[request_id] = answer.versions.get("model", "")
        self._tell({
            "kind": SHOWN, "ts": answer.generated_ts, "request_id": request_id, "profile_id": profile_id,
            "model": self._model, "version": answer.versions.get("model"),
            "failed": MODEL_FAILED in answer.degraded or (assigned is not None and assigned.missed),
            "degraded": degraded, "seconds": None if seconds is None else seconds / 1000, **rollout, **where,
            "rows": answer.shown, "chances": answer.chances(MOST_CHANCES), "slots": answer.slots,
            "explored": answer.explored,
        })  # fmt: skip

    def happened(self, events: Sequence[Event]) -> None:
        """Events were accepted: plays, finishes and thumbs that name the page they came from are told."""
        for event in events:
            kind = OUTCOMES.get(event.kind)
            if kind is not None and event.request_id:
                self._tell({
                    "kind": kind, "ts": event.ts, "request_id": event.request_id, "profile_id": event.profile_id,
                    "title_id": event.title_id, "row": event.row, "rank": event.rank,
                })  # fmt: skip

    async def flush(self) -> None:
        """Write what waits; call it each FLUSH_S."""
        if self._versions:
            named, self._versions = self._versions, {}
            key = versions_key(now_ms() // 60_000)
            naming = command("HSET", key, *chain.from_iterable(named.items()))
            naming += command("EXPIRE", key, 60 * (NAMED_MIN + 1))
            with suppress(StoreUnavailable):  # these pages can't be told either, which is counted
                await self._link.call(naming, count=2, deadline_s=_DEADLINE_S)
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            appends = [command("XADD", STREAM, "MAXLEN", "~", MOST_KEPT, "*", FIELD, one) for one in batch]
            try:
                replies = await self._link.call(b"".join(appends), count=len(batch), deadline_s=_DEADLINE_S)
            except StoreUnavailable as error:
                self._drop(type(error).__name__, len(batch))
                return
            refused = sum(isinstance(reply, hiredis.ReplyError) for reply in replies)
            if refused:
                self._drop("ReplyError", refused)

    async def close(self) -> None:
        """Write what waits, and close the connection."""
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await self.flush()
        except TimeoutError:
            pass
        await self._link.close()

    def _tell(self, record: dict[str, Any]) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            self._drop("full", 1)
            return
        self._waiting.append(orjson.dumps(record))

    def _drop(self, why: str, count: int) -> None:
        for _ in range(count):
            self._metrics.stage_failure("exposures", why)


_SCHEMA: Final[Mapping[str, Any]] = {
    "kind": pl.String, "ts": pl.Int64, "request_id": pl.String, "profile_id": pl.String, "model": pl.String,
    "version": pl.String, "assigned": pl.String, "challenged": pl.Boolean, "propensity": pl.Float64, "salt": pl.String,
    "failed": pl.Boolean, "degraded": pl.Boolean, "seconds": pl.Float64, "device": pl.String, "region": pl.String,
    "visits": pl.Int64, "gap_s": pl.Int64, "rows": pl.String, "chances": pl.String, "title_id": pl.String,
    "row": pl.String, "rank": pl.Int64, "slots": pl.String, "explored": pl.Int64,
}  # fmt: skip


_UNSAID: Final = dict.fromkeys(_SCHEMA) | {"failed": False, "degraded": False, "challenged": False, "propensity": 1.0}

_TYPES: Final[Mapping[Any, frozenset[type]]] = {
    pl.String: frozenset({str}), pl.Boolean: frozenset({bool}), pl.Int64: frozenset({int}),
    pl.Float64: frozenset({int, float}),
}  # fmt: skip
_SAID: Final = frozenset({"kind", "ts", "request_id", "profile_id", "challenged", "propensity", "failed", "degraded"})
_LATEST_MS: Final = 253_402_300_799_999
"""Of year 9999."""


def _is_rows(value: Any) -> bool:
    pairs = [one for one in value if type(one) is list and list(map(type, one)) == [str, list]]
    return len(pairs) == len(value) and {type(title) for _, titles in pairs for title in titles} <= {str}


def _is_chances(value: Any) -> bool:
    return {*map(type, value)} <= {int, float, NoneType}


def _is_slots(value: Any) -> bool:
    return all(type(one) is list and list(map(type, one)) in ([str, float], [str, int]) for one in value)


_LISTS: Final[Mapping[str, Callable[[Any], bool]]] = {"rows": _is_rows, "chances": _is_chances, "slots": _is_slots}
_KINDS: Final[Mapping[str, frozenset[type]]] = {
    name: (frozenset({list}) if name in _LISTS else _TYPES[kind]) | (frozenset() if name in _SAID else {NoneType})
    for name, kind in _SCHEMA.items()
}


def read_exposure(dumped: bytes) -> dict[str, Any]:
    """An entry of the log; what it does not say is None, or as it is without a rollout.

    Raises:
        ValueError: it is none, or a value is of another kind: whoever reads need not look at kinds again.
    """
    told = orjson.loads(dumped)
    if type(told) is not dict:
        raise ValueError("no exposure: expected an object")
    document = {**_UNSAID, **told}
    wrong = [name for name, kinds in _KINDS.items() if type(document[name]) not in kinds]
    if not wrong:
        wrong = [name for name, holds in _LISTS.items() if document[name] is not None and not holds(document[name])]
        wrong += [] if 0 <= document["ts"] <= _LATEST_MS else ["ts"]
    if wrong:
        raise ValueError(f"no exposure: {', '.join(wrong)}")
    return document


def _read_row(dumped: bytes) -> dict[str, Any]:
    document = read_exposure(dumped)
    lists = {name: json.dumps(document[name]) for name in ("rows", "chances")}
    slots = document["slots"]
    return {name: document[name] for name in _SCHEMA} | lists | {"slots": None if slots is None else json.dumps(slots)}


EXPOSURES: Final = Log(
    name="exposures", stream=STREAM, field=FIELD, read=_read_row, schema=_SCHEMA, time="ts", trims=False
)
"""Pages that were shown, and plays, finishes and thumbs that came of them.

JSON in columns: `rows` [[row, [title_id, ...]], ...]; `chances` of the first titles in reading order, null where none
was estimated; `slots` [[title_id, propensity], ...], null where nothing would have been explored. `explored` is the
slot that was."""
