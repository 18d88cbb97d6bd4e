"""Routes for player clients: the home page, similar titles, and what viewers did."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Final

import orjson
from fastapi import FastAPI, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from features.errors import FeaturesError, StoreUnavailable
from features.events import CLOCK_TOLERANCE_MS, Event, EventKind, Identifier
from features.profiles import ProfileFeatures
from serve.clock import now_ms
from serve.errors import InvalidInput, PlayheadError, Unavailable
from serve.gateway.entrance import MAX_DEADLINE_S, MIN_DEADLINE_S, Context, context_of
from serve.gateway.errors import DeadlineExceeded, Words, responses
from serve.gateway.stages import Assigns, Recommender, Stages, StageUnreachable
from serve.logs import RequestLog, RequestLogSettings, get
from serve.metrics import Metrics
from serve.schemas import (
    MAX_ITEMS,
    MAX_ROWS,
    Answer,
    Assigned,
    EventBatch,
    EventReceipt,
    HomePage,
    HomeQuery,
    SimilarTitles,
)
from serve.vitals import ModelVitals

EXAMPLE_PROFILE: Final = "196"
EXAMPLE_TITLE: Final = "242"

_LAST_RESORT_S: Final = 0.05
"""Kept back from the deadline for the stand-in's page and the way out."""

_ORDINARY: Final = RequestLogSettings().ordinary
"""Reasons for less that are nobody's fault."""

_MAX_AHEAD: Final = 8
"""Most profiles of one request that the ranker is readied for, and most requests that are worked on."""

_TIMEOUT_HEADER: Final = {
    "name": "x-request-timeout-seconds",
    "in": "header",
    "required": False,
    "schema": {"type": "number", "minimum": MIN_DEADLINE_S, "maximum": MAX_DEADLINE_S},
    "description": "The caller's deadline in seconds; the answer comes before it, degraded if it must be.",
}

Region = Annotated[
    str | None, Field(min_length=1, max_length=64, description="Where the player is; default: the profile's last.")
]
Device = Annotated[str | None, Field(min_length=1, max_length=64, description="The player's kind of device.")]
_KIDS_TEXT: Final = (
    "Show only titles for kids; a known kids profile stays one in any case. While the store cannot say what it is "
    "(`degraded`), `false` is believed; otherwise titles for kids are shown."
)
Kids = Annotated[bool | None, Field(description=_KIDS_TEXT)]
Items = Annotated[int, Field(ge=1, le=MAX_ITEMS, description="Most titles of a row.")]


class HomeParameters(BaseModel):
    """Query of GET /v1/home."""

    model_config = ConfigDict(extra="forbid")

    profile_id: Annotated[Identifier, Field(description="Whose page.", examples=[EXAMPLE_PROFILE])]
    region: Region = None
    device: Device = None
    kids: Kids = None
    rows: Annotated[int, Field(ge=1, le=MAX_ROWS, description="Most rows of the page.")] = 10
    items: Items = 20


class SimilarParameters(BaseModel):
    """Query of GET /v1/titles/{title_id}/similar."""

    model_config = ConfigDict(extra="forbid")

    region: Region = None
    device: Device = None
    kids: Kids = None
    items: Items = 20


class PlayerRoutes:
    """The routes.

    Args:
        stages: what answers.
        metrics: where stages are timed.
        store_deadline_ms: longest wait for a profile's features, milliseconds.
        vitals: told of each page of the ranker's.
    """

    def __init__(self, stages: Stages, metrics: Metrics, store_deadline_ms: float, vitals: ModelVitals) -> None:
        self._stages = stages
        self._assigns = stages.ranker if isinstance(stages.ranker, Assigns) else None
        self._metrics = metrics
        self._vitals = vitals
        self._store_deadline_ms = store_deadline_ms
        self._log = RequestLog(RequestLogSettings(), get("player"))
        self._ahead: set[asyncio.Task[None]] = set()

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application whose route class is ModelRoute."""
        extra = {"parameters": [_TIMEOUT_HEADER]}
        app.add_api_route(
            "/v1/home",
            self.home,
            response_model=HomePage,
            tags=["player"],
            summary="A profile's home page",
            responses=responses(400, 401, 422),
            openapi_extra=extra,
        )
        app.add_api_route(
            "/v1/titles/{title_id:path}/similar",
            self.similar,
            response_model=SimilarTitles,
            tags=["player"],
            summary="Titles like a title",
            responses=responses(400, 401, 404, 422, 503, 504),
            openapi_extra=extra,
        )
        app.add_api_route(
            "/v1/events",
            self.events,
            methods=["POST"],
            response_model=EventReceipt,
            tags=["player"],
            summary="What viewers did",
            responses=responses(400, 401, 408, 413, 415, 422, 503),
            openapi_extra=extra,
        )

    async def home(self, request: Request, query: Annotated[HomeParameters, Query()]) -> Response:
        """Rows of titles for one profile, changed by its own last event.

        Always a page: an unknown profile, a store that is down or a model that is missing show in `degraded`.
        """
        context = context_of(request)
        started = time.perf_counter()
        left_ms = context.left_ms()
        profile = await self._stages.features.read(query.profile_id, min(self._store_deadline_ms, left_ms / 2))
        self._metrics.observe("features", time.perf_counter() - started)
        asked = HomeQuery(
            region=query.region,
            device=query.device,
            kids=query.kids,
            rows=query.rows,
            items=query.items,
            within_s=_ranker_s(context),
            request_id=context.request_id,
        )
        assigned = self._assigns.assigned(query.profile_id) if self._assigns is not None else None
        answer = await self._recommend(context, lambda ranker: ranker.home(profile, asked), assigned)
        if isinstance(answer, str):
            answer = replace(Answer.empty_home(query.profile_id, (answer,), now_ms()), assigned=_missed(assigned))
        response = self._rendered(context, answer, profile.degraded)
        where: dict[str, str | int] = {
            name: value for name, value in (("device", query.device), ("region", query.region)) if value
        }
        if not profile.degraded:
            where["visits"] = profile.stats.counts[EventKind.PLAY]
            if profile.stats.last_ts_ms:
                where["gap_s"] = max(0, answer.generated_ts - profile.stats.last_ts_ms) // 1000
        degraded = not _ORDINARY.issuperset(context.degraded)
        self._stages.exposures.shown(context.request_id, query.profile_id, answer, degraded=degraded, where=where)
        return response

    async def similar(
        self,
        request: Request,
        title_id: Annotated[Identifier, Path(description="The title.", examples=[EXAMPLE_TITLE])],
        query: Annotated[SimilarParameters, Query()],
    ) -> Response:
        """Titles like one title, nearest first."""
        context = context_of(request)
        asked = HomeQuery(region=query.region, device=query.device, kids=query.kids, items=query.items)
        answer = await self._recommend(context, lambda ranker: ranker.similar(title_id, asked))
        if isinstance(answer, str):
            kind = DeadlineExceeded if answer.endswith("_timeout") else Unavailable
            raise kind(
                field="title_id",
                got=Words(answer),
                expected="an answer of the ranker before the deadline",
                next_step="Try again after a second.",
            )
        return self._rendered(context, answer, ())

    async def events(self, request: Request, batch: EventBatch) -> Response:
        """Store events for good and apply them: the very next home page knows them.

        Repeating a request is safe: an event counts once, by its event_id. An answer other than 200 means that nothing
        was promised; send the same events again.
        """
        context = context_of(request)
        started = time.perf_counter()
        _refuse_future(batch.events)
        try:
            async with asyncio.timeout_at(context.deadline):
                receipt = await self._stages.events.write(batch.events)
        except (StoreUnavailable, TimeoutError) as error:
            self._metrics.stage_failure("events", type(error).__name__)
            raise Unavailable(
                field="events",
                got=Words("no acknowledgement by the event log"),
                expected="an acknowledgement before the deadline",
                next_step="Send the same events again after the seconds in Retry-After; none counts twice.",
            ) from error
        except FeaturesError as error:
            raise _as_invalid(error) from error
        self._metrics.observe("events", time.perf_counter() - started)
        self._metrics.events(accepted=receipt.accepted, duplicates=receipt.duplicates)
        self._stages.exposures.happened(batch.events)
        if self._stages.prepare is not None and receipt.accepted:
            self._prepare(context, {event.profile_id for event in batch.events}, self._stages.prepare)
        body = {"request_id": context.request_id, "accepted": receipt.accepted, "duplicates": receipt.duplicates}
        return Response(orjson.dumps(body), media_type="application/json")

    def _prepare(self, context: Context, profile_ids: set[str], prepare: Callable[[ProfileFeatures], None]) -> None:
        """Ready the ranker for the next pages of these profiles, after the answer."""
        if len(profile_ids) > _MAX_AHEAD or len(self._ahead) >= _MAX_AHEAD:
            return  # a bulk load, or more to do than there is time for

        async def work() -> None:
            for profile_id in profile_ids:
                prepare(await self._stages.features.read(profile_id))

        task = asyncio.create_task(work())
        self._ahead.add(task)
        task.add_done_callback(partial(self._prepared, context))

    def _prepared(self, context: Context, task: asyncio.Task[None]) -> None:
        self._ahead.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.failed(request_id=context.request_id, route=context.route, error=error)

    async def _recommend(
        self, context: Context, ask: Callable[[Recommender], Awaitable[Answer]], assigned: Assigned | None = None
    ) -> Answer | str:
        """The ranker's answer, else the stand-in's, else why there is none; `assigned` is who should answer."""
        reason = await self._asked(context, self._stages.ranker, ask, _ranker_s(context))
        if isinstance(reason, Answer):
            self._vitals.answered(reason)
            return reason
        if assigned is not None and assigned.version:
            self._vitals.decided(assigned.version, failed=1)
        else:
            self._vitals.failed()
        if self._stages.stand_in is None:
            return reason
        answer = await self._asked(context, self._stages.stand_in, ask, context.left_ms() / 1000)
        if isinstance(answer, Answer):
            degraded = tuple(dict.fromkeys((reason, *answer.degraded)))
            return replace(answer, degraded=degraded, assigned=_missed(assigned))
        return reason

    async def _asked(
        self,
        context: Context,
        ranker: Recommender,
        ask: Callable[[Recommender], Awaitable[Answer]],
        within_s: float,
    ) -> Answer | str:
        """The answer, or the reason why there is none."""
        try:
            async with asyncio.timeout(within_s):
                return await ask(ranker)
        except TimeoutError:
            reason = "ranker_timeout"
        except StageUnreachable as error:
            reason = error.reason
        except PlayheadError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model does, the viewer gets a page
            self._log.failed(request_id=context.request_id, route=context.route, error=error)
            reason = "ranker_failed"
        self._metrics.stage_failure("ranking", reason)
        return reason

    def _rendered(self, context: Context, answer: Answer, degraded: tuple[str, ...]) -> Response:
        if degraded or answer.degraded:
            context.degraded = tuple(dict.fromkeys(degraded + answer.degraded))
            if context.degraded != answer.degraded:
                answer = replace(answer, degraded=context.degraded)
        for stage, milliseconds in answer.timings_ms.items():
            self._metrics.observe(stage, milliseconds / 1000)
        return Response(answer.body(context.request_id), media_type="application/json")


def _ranker_s(context: Context) -> float:
    """Seconds that the ranker has."""
    left_s = context.left_ms() / 1000
    return max(left_s - _LAST_RESORT_S, left_s / 2)


def _missed(assigned: Assigned | None) -> Assigned | None:
    """Who should have answered, and did not."""
    return None if assigned is None else replace(assigned, missed=True)


def _refuse_future(events: Sequence[Event]) -> None:
    """An event dated ahead of its time would lead every trend until then.

    Raises:
        InvalidInput: names the first such event.
    """
    latest = now_ms() + CLOCK_TOLERANCE_MS
    for number, event in enumerate(events):
        if event.ts > latest:
            raise InvalidInput(
                field=f"events[{number}].ts",
                got=event.ts,
                expected=f"UTC milliseconds, at most {CLOCK_TOLERANCE_MS // 60_000} minutes ahead of now ({latest})",
                next_step="Correct the player's clock or the unit, and send the batch again.",
            )


def _as_invalid(error: FeaturesError) -> InvalidInput:
    invalid = InvalidInput(field=error.field, got=None, expected=error.expected, next_step=error.next_step)
    invalid.got = error.got
    return invalid
