"""Routes for people who judge what models make: colleagues and partners say what was right and what was not.

A judgement is acknowledged once the store has it. Which version made what is judged is looked up where that is known:
of a home page by its request_id, of a quality score by its job, of an outage by its id; else the caller's word counts.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Final

import orjson
from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from features.errors import StoreUnavailable
from features.events import Identifier
from features.link import StoreLink
from features.settings import Settings
from serve.clock import now_ms
from serve.errors import InvalidInput, NotFound, Unavailable
from serve.feedback.limits import RateLimit
from serve.feedback.records import Feedback, Judgement, Kind, Source, Verdict
from serve.feedback.store import FeedbackStore, IdTaken
from serve.gateway.entrance import context_of
from serve.gateway.errors import Conflict, TooManyRequests, Words, responses
from serve.gateway.operations import PRINTED
from serve.quality.jobs import JobStore
from serve.quality.schemas import JOB_PATTERN
from serve.rollout.exposures import version_lookup

OUTAGE_MODEL: Final = "watchtower"
TAG_MODEL: Final = "tags"
QUALITY_MODEL: Final = "quality"

_DEADLINE_S: Final = 2.0
_PAGE: Final = "recommendation_row"

Text = Annotated[str, Field(min_length=1, max_length=128, pattern=PRINTED)]
VersionName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]
Detail = dict[
    Annotated[str, Field(min_length=1, max_length=64, pattern=PRINTED)],
    Annotated[str, Field(max_length=256, pattern=PRINTED)]
    | bool
    | Annotated[int, Field(ge=-(1 << 53), le=1 << 53)]
    | Annotated[float, Field(allow_inf_nan=False)],
]


class FeedbackBody(BaseModel):
    """Body of POST /v1/feedback: one judgement of one output.

    Attributes:
        feedback_id: names it: sending it again changes nothing. Left out: it follows from all else that is said, so
            that the same judgement by the same reporter counts once.
        kind: what is judged.
        request_id: of the answer that holds it; needed for a `recommendation_row`, and else one of this and subject_id.
        subject_id: of the output itself: outage, quality job, title of the tag, session.
        row: of a home page: the row's id; left out: the whole page.
        title_id: the title that is meant; left out: all of the row.
        verdict: `good`, `bad`, or `unsure`: it was looked at, and neither can be said.
        reason: why, in words.
        reporter: who judges: a person, a team, a partner's system.
        version: that made it, where the reporter knows; refused where the service knows better.
        detail: more, by name: at most 16 texts, numbers or flags.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "kind": "recommendation_row", "request_id": "9f1c2d7e5a", "row": "top_picks", "title_id": "242",
                    "verdict": "bad", "reason": "a horror film among cartoons", "reporter": "editorial.anna",
                },
                {
                    "kind": "outage", "subject_id": "o-17", "verdict": "good", "reporter": "noc",
                    "detail": {"ticket": "INC-4711"},
                },
            ]
        },
    )  # fmt: skip

    feedback_id: Identifier | None = None
    kind: Kind
    request_id: Identifier | None = None
    subject_id: Identifier | None = None
    row: Text | None = None
    title_id: Identifier | None = None
    verdict: Verdict
    reason: Annotated[str, Field(max_length=1000, pattern=PRINTED)] = ""
    reporter: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]
    version: VersionName | None = None
    detail: Annotated[Detail, Field(max_length=16)] = {}


class FeedbackReceipt(BaseModel):
    """Answer of POST /v1/feedback: the judgement is stored.

    Attributes:
        request_id: names this answer.
        feedback_id: names the judgement.
        accepted: whether it is new; false: it had been taken before.
        model: whose output is judged.
        version: which version made it; null: nobody knows, yet.
        version_from: who says so: `exposure`, `job`, `outage` or `caller`; null: nobody does.
    """

    request_id: str
    feedback_id: str
    accepted: bool
    model: str
    version: str | None
    version_from: Source | None


class FeedbackQuery(BaseModel):
    """Query of GET /v1/feedback: only what has these values.

    Attributes:
        kind: what was judged.
        verdict: how.
        model: whose output.
        version: made by which version.
        reporter: by whom.
        request_id: of the answer that was judged.
        subject_id: of the output.
        before: only what came before this `position`.
        limit: the newest so many.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind | None = None
    verdict: Verdict | None = None
    model: Text | None = None
    version: VersionName | None = None
    reporter: Text | None = None
    request_id: Identifier | None = None
    subject_id: Identifier | None = None
    before: Annotated[str, Field(pattern=r"^[0-9]{1,15}-[0-9]{1,9}$")] | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class FeedbackEntry(BaseModel):
    """One judgement, as of FeedbackBody, with what the service knows of it.

    Attributes:
        position: of it in the log; give it as `before` for those before.
        ts: when it came, UTC milliseconds.
        model: as of FeedbackReceipt.
        version: likewise.
        version_from: likewise.
    """

    position: str
    feedback_id: str
    ts: int
    kind: Kind
    verdict: Verdict
    reporter: str
    request_id: str | None
    subject_id: str | None
    row: str | None
    title_id: str | None
    reason: str
    model: str | None
    version: str | None
    version_from: Source | None
    detail: dict[str, str | bool | int | float]


class FeedbackCount(BaseModel):
    """How often outputs of one version were judged so or so.

    Attributes:
        model: whose outputs.
        version: made by which version; null: nobody knows.
        kind: what was judged.
        good: so many.
        bad: so many.
        unsure: so many.
    """

    model: str | None
    version: str | None
    kind: Kind
    good: int = Field(ge=0)
    bad: int = Field(ge=0)
    unsure: int = Field(ge=0)


class FeedbackList(BaseModel):
    """Answer of GET /v1/feedback.

    Attributes:
        request_id: names this answer.
        feedback: newest first.
        complete: whether the service keeps no older one of this kind; files hold all.
        counts: of all that was ever taken; of the filters, model, version and kind apply.
    """

    request_id: str
    feedback: tuple[FeedbackEntry, ...]
    complete: bool
    counts: tuple[FeedbackCount, ...]


class FeedbackRoutes:
    """The routes.

    Args:
        settings: where the store is.
        jobs: the quality jobs.
        outages: ids of the outages that are known.
        recommend_model: name of the ranker's model.
        bitrate_model: name of the planner's.
        per_reporter: how much one reporter may send to this replica.
        in_all: how much all of them may.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: JobStore,
        outages: Callable[[], Sequence[str]],
        recommend_model: str,
        bitrate_model: str,
        *,
        per_reporter: RateLimit | None = None,
        in_all: RateLimit | None = None,
    ) -> None:
        self._store = FeedbackStore(settings)
        self._link = StoreLink(settings.redis_url)
        self._jobs = jobs
        self._outages = outages
        self._models: Mapping[str, str] = {
            _PAGE: recommend_model, "tag": TAG_MODEL, "quality_score": QUALITY_MODEL,
            "bitrate_decision": bitrate_model, "outage": OUTAGE_MODEL,
        }  # fmt: skip
        self._per_reporter = per_reporter or RateLimit(20, 200)
        self._in_all = in_all or RateLimit(100, 500)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application whose route class is ModelRoute."""
        app.add_api_route(
            "/v1/feedback", self.give, methods=["POST"], response_model=FeedbackReceipt, tags=["operations"],
            summary="Judge an output of a model",
            responses=responses(400, 401, 404, 408, 409, 413, 415, 422, 429, 503),
        )  # fmt: skip
        app.add_api_route(
            "/v1/feedback", self.look, methods=["GET"], response_model=FeedbackList, tags=["operations"],
            summary="How outputs of models were judged", responses=responses(400, 401, 422, 503),
        )  # fmt: skip

    async def give(self, request: Request, body: FeedbackBody) -> Response:
        """Store one judgement for good. Repeating it is safe: it counts once, by its feedback_id.

        An answer other than 200 means that nothing was promised; send the same again.
        """
        _check_form(body)
        if not self._per_reporter.admits(body.reporter) or not self._in_all.admits(""):
            raise TooManyRequests(
                field="reporter", got=body.reporter, expected="20 judgements a second of one reporter, 100 of all",
                next_step="Send it again after the seconds in Retry-After.",
            )  # fmt: skip
        context = context_of(request)
        judgement = Judgement(**body.model_dump(exclude={"feedback_id"}))
        left_s = min(_DEADLINE_S, context.left_ms() / 1000)
        try:
            async with asyncio.timeout(left_s):
                model, version, source = await self._made_by(body)
                if source is None and body.version is not None:
                    version, source = body.version, "caller"
                if body.version is not None and body.version != version:
                    raise InvalidInput(
                        field="version", got=body.version, expected=f"{version}, as the {source} says, or none",
                        next_step="Leave it out, or judge the answer that this version made.",
                    )  # fmt: skip
                feedback = Feedback(
                    feedback_id=body.feedback_id or f"f-{judgement.digest}", ts=now_ms(), model=model,
                    version=version, version_from=source, judgement=judgement,
                )  # fmt: skip
                taken = await self._store.append(feedback, left_s)
        except IdTaken as error:
            raise Conflict(
                field="feedback_id", got=body.feedback_id, expected="an id that no other judgement has",
                next_step="Give this judgement an id of its own; one that was taken stays as it is.",
            ) from error  # fmt: skip
        except (StoreUnavailable, TimeoutError) as error:
            raise _unavailable(error) from error
        told = {
            "request_id": context.request_id, "feedback_id": feedback.feedback_id, "accepted": taken.accepted,
            "model": model, "version": taken.version, "version_from": source if taken.version else None,
        }  # fmt: skip
        return Response(orjson.dumps(told), media_type="application/json")

    async def look(self, request: Request, query: Annotated[FeedbackQuery, Query()]) -> Response:
        """The newest judgements that fit, and how many there are of each version."""
        wanted = query.model_dump(exclude={"before", "limit"}, exclude_none=True)
        counted = {name: value for name, value in wanted.items() if name in {"model", "version", "kind"}}
        context = context_of(request)
        left_s = min(_DEADLINE_S, context.left_ms() / 1000)
        try:
            async with asyncio.timeout(left_s):
                listed = await self._store.newest(wanted, before=query.before, limit=query.limit, deadline_s=left_s)
                counts = await self._store.counts(counted, left_s)
        except (StoreUnavailable, TimeoutError) as error:
            raise _unavailable(error) from error
        told = {
            "request_id": context.request_id, "feedback": listed.feedback, "complete": listed.complete,
            "counts": counts,
        }  # fmt: skip
        return Response(orjson.dumps(told), media_type="application/json")

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(self._store.close(), self._link.close())

    async def _made_by(self, body: FeedbackBody) -> tuple[str, str | None, Source | None]:
        """Model and version of what is judged, as far as the service knows, and how it does."""
        model = self._models[body.kind]
        if body.kind == _PAGE and body.request_id is not None:
            payload, count = version_lookup(body.request_id, now_ms())
            replies = await self._link.call(payload, count=count, deadline_s=_DEADLINE_S)
            found = next((reply.decode() for reply in replies if isinstance(reply, bytes)), "")
            return (model, found, "exposure") if found else (model, None, None)
        if body.kind == "quality_score" and body.subject_id is not None and re.fullmatch(JOB_PATTERN, body.subject_id):
            try:
                job = await asyncio.to_thread(self._jobs.read, body.subject_id)
            except NotFound:
                return model, None, None
            path = Path(job.task.artifact)
            return path.parent.name, path.name, "job"
        if body.kind == "outage" and body.subject_id in self._outages():
            return model, version_of("playhead"), "outage"
        return model, None, None


def _check_form(body: FeedbackBody) -> None:
    """Refuse a judgement of nothing.

    Raises:
        InvalidInput: names what is missing, or does not belong to the kind.
    """
    if body.kind == _PAGE and body.request_id is None:
        raise InvalidInput(
            field="request_id", got=None, expected="the request_id of the home page",
            next_step="Send the request_id that the answer carried.",
        )  # fmt: skip
    if body.request_id is None and body.subject_id is None:
        raise InvalidInput(
            field="subject_id", got=None, expected="a subject_id or a request_id: what is judged",
            next_step="Name the outage, the job, the title or the session, or the answer.",
        )  # fmt: skip
    if body.row is not None and body.kind != _PAGE:
        raise InvalidInput(
            field="row", got=body.row, expected=f"none: only a {_PAGE} has one", next_step="Leave it out."
        )


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable(
        field="feedback", got=Words(f"no answer of the store ({type(error).__name__})"),
        expected="an answer before the deadline",
        next_step="Send the same again after the seconds in Retry-After; it counts once.",
    )  # fmt: skip
