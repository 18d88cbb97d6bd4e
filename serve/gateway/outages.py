"""Routes for operators: what is broken, for whom and why; as an answer, or as a stream of changes.

The replicas of the Watchtower write outages to the store; each gateway reads them once a second, keeps them in memory
for these routes and for steering, and goes on with what it knew where the store does not answer.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import zip_longest
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from features.errors import StoreUnavailable
from features.layout import command
from features.link import StoreLink
from features.settings import Settings
from serve.clock import now_ms
from serve.gateway.detectors import DetectorsBoard
from serve.gateway.entrance import context_of
from serve.gateway.errors import responses
from serve.gateway.steering import OUTAGES_STALE, OUTAGES_UNKNOWN
from serve.logs import get
from serve.metrics import Metrics
from serve.watchtower import board
from serve.watchtower.outages import Outage

POLL_S: Final = 1.0
STALE_MS: Final = 60_000
"""Outages that were not judged for so long are old: the Watchtower does not run, or cannot keep up."""

STREAM_S: Final = 8.0
"""A stream ends by itself before the ingress ends it; browsers ask again, from where they were."""

_DEADLINE_S: Final = 2.0
_MOST_STREAMS: Final = 256
_HEARTBEAT: Final = b": here\n\n"


class OutageQuery(BaseModel):
    """Query of GET /v1/outages.

    Attributes:
        state: `open` for those that go on, or `all` for those that closed lately, too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: Literal["open", "all"] = "open"


class OutageEffect(BaseModel):
    """How far one metric is from what was expected.

    Attributes:
        metric: such as `start_failures`.
        expected: share of bad ones that was usual, 0 to 1.
        now: share that was seen.
        total: how many were seen.
        bad: how many of them were bad.
    """

    metric: str
    expected: float
    now: float
    total: int
    bad: int


class OutageView(BaseModel):
    """Something that is broken for a slice of the audience. Times UTC milliseconds.

    Attributes:
        outage_id: names it for ever.
        state: `suspected`, `confirmed`, `recovering` or `closed`.
        slice: dimension -> value that all that are hurt have in common; empty: everyone.
        effects: worst metric first.
        started_ts: when it began, as far as can be told.
        detected_ts: when the first alarm was raised.
        updated_ts: when this was last changed.
        closed_ts: when it was over; null before.
        sessions_hurt: sessions that were bad beyond what is usual.
        severity: share of all sessions that are hurt.
        evidence: the causes that were weighed, the best first.
    """

    outage_id: str
    state: Literal["suspected", "confirmed", "recovering", "closed"]
    slice: dict[str, str]
    effects: tuple[OutageEffect, ...]
    started_ts: int
    detected_ts: int
    updated_ts: int
    closed_ts: int | None
    sessions_hurt: int
    severity: float = Field(ge=0, le=1)
    evidence: tuple[dict[str, Any], ...]


class OutageList(BaseModel):
    """Answer of GET /v1/outages.

    Attributes:
        request_id: names this answer.
        as_of_ts: up to when outages are known, UTC milliseconds; null where nothing ever was.
        outages: newest first.
        degraded: why they may be incomplete: `outages_unknown`, `outages_stale`, or, where the settings that detectors
            should go by can't be loaded and others are in force, `stale_model`.
    """

    request_id: str
    as_of_ts: int | None
    outages: tuple[OutageView, ...]
    degraded: tuple[str, ...]


class OutageBoard:
    """What the Watchtower told last. Belongs to one event loop.

    Args:
        settings: where the store is.
        metrics: where open outages are shown.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._link = StoreLink(settings.redis_url)
        self._metrics = metrics
        self._dumped: dict[bytes, bytes] = {}
        self._known: dict[bytes, Outage] = {}
        self._as_of_ms = 0
        self._changed = asyncio.Event()

    def current(self) -> tuple[Sequence[Outage], int]:
        """As serve.gateway.steering.OutageSource has it."""
        return tuple(self._known.values()), self._as_of_ms

    async def look(self) -> None:
        """Read what there is now."""
        commands = command("GET", board.AS_OF) + command("HGETALL", board.OUTAGES)  # so that all up to then is there
        try:
            as_of, fields = await self._link.call(commands, count=2, deadline_s=_DEADLINE_S)
            dumped = dict(zip(fields[::2], fields[1::2], strict=True))
            known = {
                name: self._known[name] if self._dumped.get(name) == told else board.load_outage(told)
                for name, told in dumped.items()
            }
            as_of_ms = int(as_of or 0)
        except StoreUnavailable as error:
            self._metrics.stage_failure("outages", type(error).__name__)
            return
        except (AttributeError, KeyError, TypeError, ValueError):
            get("outages").exception("failed", extra={"work": "reading outages"})
            return
        changed = dumped != self._dumped
        self._dumped, self._known, self._as_of_ms = dumped, known, as_of_ms
        self._metrics.outages([outage.state for outage in known.values() if outage.is_open], as_of_ms / 1000)
        if changed:
            self._changed.set()
            self._changed = asyncio.Event()

    async def wait(self, within_s: float) -> None:
        """Until something changes, or the time is up."""
        changed = self._changed
        try:
            async with asyncio.timeout(within_s):
                await changed.wait()
        except TimeoutError:
            return

    def told(self, *, closed: bool) -> list[tuple[Outage, bytes]]:
        """Outages with their JSON, newest first."""
        found = [(outage, self._dumped[name]) for name, outage in self._known.items() if closed or outage.is_open]
        return sorted(found, key=lambda one: (-one[0].detected_ts, one[0].outage_id))

    @property
    def degraded(self) -> tuple[str, ...]:
        """Why what is known may be incomplete."""
        if not self._as_of_ms:
            return (OUTAGES_UNKNOWN,)
        return (OUTAGES_STALE,) if now_ms() - self._as_of_ms > STALE_MS else ()

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()


class OutageRoutes:
    """The routes.

    Args:
        outages: what is known.
        detectors: what finds them; None: nothing is known of it.
    """

    def __init__(self, outages: OutageBoard, detectors: DetectorsBoard | None = None) -> None:
        self._board = outages
        self._detectors = detectors
        self._streams = 0

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application whose route class is ModelRoute."""
        app.add_api_route(
            "/v1/outages", self.outages, response_model=OutageList, tags=["operations"],
            summary="What is broken, for whom and why", responses=responses(401, 422),
        )  # fmt: skip
        app.add_api_route(
            "/v1/outages/stream", self.stream, response_class=Response, tags=["operations"],
            summary="Changes of outages as server-sent events",
            responses=responses(401, 422) | {
                200: {"description": "Events `outage`, each an outage as GET /v1/outages shows it.",
                      "content": {"text/event-stream": {"schema": {"type": "string"}}}}
            },
        )  # fmt: skip

    async def outages(self, request: Request, query: Annotated[OutageQuery, Query()]) -> Response:
        """Outages that go on, or all that closed within a week, too."""
        context = context_of(request)
        context.degraded = self._board.degraded + (self._detectors.degraded if self._detectors else ())
        _, as_of_ms = self._board.current()
        body = {
            "request_id": context.request_id,
            "as_of_ts": as_of_ms or None,
            "outages": [orjson.Fragment(dumped) for _, dumped in self._board.told(closed=query.state == "all")],
            "degraded": context.degraded,
        }
        return Response(orjson.dumps(body), media_type="application/json")

    async def stream(self, request: Request) -> Response:
        """Open outages at once, then each change.

        A stream ends after some seconds; EventSource asks again by itself with Last-Event-ID, and gets what changed
        since; what was under way when the connection broke comes again.
        """
        since_ms = _moment(request.headers.get("last-event-id", ""))
        until = asyncio.get_running_loop().time() + STREAM_S
        if "x-request-timeout-seconds" in request.headers:
            until = min(until, context_of(request).deadline)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._changes(since_ms, until), media_type="text/event-stream", headers=headers)

    async def _changes(self, since_ms: int, until: float) -> AsyncGenerator[bytes]:
        yield b"retry: 500\n\n"
        if self._streams >= _MOST_STREAMS:
            return
        clock = asyncio.get_running_loop().time
        told: dict[str, bytes] | None = None
        self._streams += 1
        try:
            while True:
                _, as_of_ms = self._board.current()
                if as_of_ms:  # else nothing was read yet
                    told = self._told_before(since_ms, as_of_ms) if told is None else told
                    for event in self._new(told):
                        yield event
                if as_of_ms > since_ms:  # who was told of nothing yet has a place to go on from, too
                    since_ms = as_of_ms
                    yield b"id: %d\n\n" % as_of_ms
                left_s = until - clock()
                if left_s <= 0:
                    return
                await self._board.wait(left_s)
                yield _HEARTBEAT
        finally:
            self._streams -= 1

    def _told_before(self, since_ms: int, as_of_ms: int) -> dict[str, bytes]:
        """What need not be told: what changed no later than `since_ms`; at first, what is over.

        Where the Watchtower is far behind that moment, it began anew: then nothing that was told before counts.
        """
        since_ms = since_ms if since_ms <= as_of_ms + STALE_MS else 0
        return {
            outage.outage_id: dumped
            for outage, dumped in self._board.told(closed=True)
            if (outage.updated_ts <= since_ms if since_ms else not outage.is_open)
        }

    def _new(self, told: dict[str, bytes]) -> Iterator[bytes]:
        """Events of what is not told yet, which it is then; the oldest change first.

        Only the last of a moment has an id, for that says that all up to then was told: outages that changed in the
        same window share it, and whoever is cut off between them must get them again.
        """
        changed = [one for one in self._board.told(closed=True) if told.get(one[0].outage_id) != one[1]]
        changed.sort(key=lambda one: one[0].updated_ts)
        for (outage, dumped), after in zip_longest(changed, changed[1:]):
            told[outage.outage_id] = dumped
            is_last = after is None or after[0].updated_ts > outage.updated_ts
            name = b"id: %d\n" % outage.updated_ts if is_last else b""
            yield b"%bevent: outage\ndata: %b\n\n" % (name, dumped)


def _moment(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 16 else 0
