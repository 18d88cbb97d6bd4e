"""Routes for encoding and operations: quality of clips with a reference or without, as jobs; of facts at once."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, BinaryIO, Final

import numpy as np
import orjson
from fastapi import FastAPI, Path, Request, Response

from serve.errors import InvalidInput, PlayheadError, Unavailable
from serve.gateway.entrance import Context, context_of
from serve.gateway.errors import UnsupportedMediaType, Words, responses
from serve.gateway.player import _TIMEOUT_HEADER
from serve.gateway.requests import MAX_BODY_BYTES, NoQuery, OpenRoute, read_body, read_query
from serve.gateway.uploads import MULTIPART, read_form
from serve.quality.bitstream import DISPOSABLE, KEY, OTHER, BitstreamFacts
from serve.quality.estimates import MODEL, BitstreamEstimator, BitstreamModel, Estimate, mean
from serve.quality.intake import Intake, check_form
from serve.quality.jobs import Job, JobStore, QualityLimits, error_of
from serve.quality.runner import QualityRunner
from serve.quality.schemas import (
    ALONE_EXAMPLE,
    EXAMPLE,
    SEGMENTS_EXAMPLE,
    JobId,
    QualityEstimate,
    QualityJob,
    QualityRequest,
    SegmentFacts,
    Side,
)
from serve.rollout.comparisons import EstimateComparison
from serve.rollout.fleet import Lineup
from serve.schemas import STALE_MODEL
from serve.vitals import ModelVitals

_MOST_WAIT_S: Final = 8.0
"""The ingress gives a request up after 10 s."""

_LEFT_S: Final = 0.1
"""Of a caller's own deadline, kept for the way back."""

_POLL_S: Final = 0.1
_MOST_WAITING: Final = 64
"""Requests that wait for their report at a time; the rest are answered at once."""

INLINE: Final = 32
"""Segments that are estimated on the event loop, where a thread would cost more."""

_KINDS: Final = {"key": KEY, "other": OTHER, "disposable": DISPOSABLE}
_LOCATION: Final = {"Location": {"schema": {"type": "string"}, "description": "Where to ask for the job."}}
_LATER: Final[dict[int | str, dict[str, Any]]] = {
    202: {"model": QualityJob, "description": "The job goes on.", "headers": _LOCATION}
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityStage:
    """What answers the quality routes.

    Attributes:
        store: the jobs of all replicas.
        intake: makes jobs.
        runner: works on them.
        lineup: which version answers for facts of bitstreams now.
        compared: has other versions estimate beside it.
        limits: bounds of the jobs.
    """

    store: JobStore
    intake: Intake
    runner: QualityRunner
    lineup: Callable[[], Lineup[BitstreamEstimator]]
    compared: EstimateComparison
    limits: QualityLimits


class QualityRoutes:
    """The routes.

    Args:
        stage: what answers.
        vitals: told of each answer of the bitstream model.
    """

    def __init__(self, stage: QualityStage, vitals: ModelVitals) -> None:
        self._stage = stage
        self._vitals = vitals
        self._waiting = 0
        self._uploads = 0

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application whose route class is ModelRoute."""
        extra = {"parameters": [_TIMEOUT_HEADER]}
        app.router.add_api_route(
            "/v1/quality",
            self.ask,
            methods=["POST"],
            response_model=QualityJob | QualityEstimate,
            tags=["quality"],
            summary="VMAF of a clip against its reference, or an estimate without one",
            responses=responses(400, 401, 404, 408, 413, 415, 422, 503) | _LATER,
            openapi_extra=extra | {"requestBody": _body()},
            route_class_override=OpenRoute,
        )
        app.add_api_route(
            "/v1/quality/{job}",
            self.look,
            response_model=QualityJob,
            tags=["quality"],
            summary="How a quality job stands, and its report",
            responses=responses(401, 404, 422),
        )
        app.add_api_route(
            "/v1/quality/{job}",
            self.cancel,
            methods=["DELETE"],
            response_model=QualityJob,
            tags=["quality"],
            summary="Cancel a quality job",
            responses=responses(401, 404, 422),
        )

    async def ask(self, request: Request) -> Response:
        """Measure an encode against its reference, estimate it without one, or estimate from facts of bitstreams.

        Files are named by their paths under the service's media folder, or come along as multipart/form-data. 200 with
        the report where it is there within `wait_s`, else 202 and the job's address in `Location`. Asking the same of
        the same files again is the same job; one that was cancelled begins anew. Facts are answered at once.
        """
        context = context_of(request)
        read_query(request, NoQuery)
        content_type = request.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() == MULTIPART:
            return await self._ask_with_files(request)
        if not content_type:
            raise UnsupportedMediaType(
                field="Content-Type", got=Words("nothing"), expected=f"application/json or {MULTIPART}",
                next_step="Send a JSON question, or a form with files.",
            )  # fmt: skip
        asked = await read_body(request, QualityRequest, MAX_BODY_BYTES)
        check_form(asked)
        if asked.segments is not None:
            return await self._estimate(context, asked.segments)
        return await self._job(request, asked, {})

    async def _ask_with_files(self, request: Request) -> Response:
        limits = self._stage.limits
        if self._uploads >= limits.uploads:
            raise Unavailable(
                field="body", got=f"{self._uploads} uploads at a time", expected=f"fewer than {limits.uploads}",
                next_step="Ask again in a moment, or name files under the media folder by their paths.",
            )  # fmt: skip
        self._uploads += 1
        try:
            async with read_form(request, limits.max_upload_bytes, _due_s(request)) as form:
                return await self._job(request, form.asked, form.files)
        finally:
            self._uploads -= 1

    async def _job(self, request: Request, asked: QualityRequest, files: dict[Side, BinaryIO]) -> Response:
        context = context_of(request)
        until = min(asyncio.get_running_loop().time() + asked.wait_s, _due_s(request) - _LEFT_S)
        name = await asyncio.to_thread(self._stage.intake.ask, asked, files)
        self._stage.runner.wake()
        job = await self._wait(name, until)
        if job.status.state == "failed" and job.status.problem is not None:
            raise error_of(job.status.problem)
        context.degraded = job.task.degraded
        location = {"Location": f"/v1/quality/{name}"}
        return _answer(context.request_id, job, HTTPStatus.OK if job.ended else HTTPStatus.ACCEPTED, location)

    async def _estimate(self, context: Context, segments: tuple[SegmentFacts, ...]) -> Response:
        lineup = self._stage.lineup()
        model = lineup.champion.model
        started_s = time.perf_counter()
        try:
            if len(segments) <= INLINE:
                facts, estimates = _estimated(model, segments)
            else:
                facts, estimates = await asyncio.to_thread(_estimated, model, segments)
        except PlayheadError:
            raise
        except Exception:
            self._vitals.decided(model.version, failed=1)
            raise
        share = INLINE / max(len(segments), INLINE)  # a large one is measured as a small one
        self._vitals.decided(model.version, seconds=(time.perf_counter() - started_s) * share)
        self._stage.compared.compare(facts, estimates)
        context.degraded = (STALE_MODEL,) if lineup.stale else ()
        report = {
            "kind": "no_reference",
            "model": MODEL,
            "version": model.version,
            "method": "bitstream",
            "coverage": model.coverage,
            "segment_s": None,
            "clip": mean(estimates),
            "segments": estimates,
        }
        body = {"request_id": context.request_id, "degraded": context.degraded, "report": report}
        return Response(orjson.dumps(body), media_type="application/json")

    async def look(self, request: Request, job: Annotated[JobId, Path(description="The job's id.")]) -> Response:
        """200 whatever came of the job: see `state`, and `problem` where it failed."""
        found = await asyncio.to_thread(self._stage.store.read, job, with_report=True)
        return _answer(context_of(request).request_id, found)

    async def cancel(self, request: Request, job: Annotated[JobId, Path(description="The job's id.")]) -> Response:
        """End a job that waits or runs; one that has ended stays as it is."""
        await asyncio.to_thread(self._stage.store.cancel, job)
        self._stage.runner.wake()
        found = await asyncio.to_thread(self._stage.store.read, job, with_report=True)
        return _answer(context_of(request).request_id, found)

    async def _wait(self, name: str, until: float) -> Job:
        """The job once it has ended, or as it is when the time is up."""
        clock = asyncio.get_running_loop().time
        job = await asyncio.to_thread(self._stage.store.read, name, with_report=True)
        if job.ended or self._waiting >= _MOST_WAITING:
            return job
        self._waiting += 1
        try:
            while not job.ended and clock() < until:
                await asyncio.sleep(min(_POLL_S, max(0.0, until - clock())))
                job = await asyncio.to_thread(self._stage.store.read, name, with_report=True)
        finally:
            self._waiting -= 1
        return job


def _answer(request_id: str, job: Job, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    task, state = job.task, job.status
    body = {
        "request_id": request_id,
        "job": job.name,
        "state": state.state,
        "reference": task.reference,
        "distorted": task.distorted,
        "model": task.model,
        "every": task.every,
        "display_height": task.display_height,
        "created_ts": task.created_ts,
        "updated_ts": state.updated_ts,
        "progress": {"done": state.done, "total": state.total},
        "degraded": task.degraded,
        "report": None if job.report is None else orjson.Fragment(job.report),
        "problem": None if state.problem is None else state.problem.model_dump(),
    }
    return Response(orjson.dumps(body), status_code=status, headers=headers, media_type="application/json")


def _due_s(request: Request) -> float:
    """When the answer is due, on the event loop's clock: as the caller says, or before the ingress gives up."""
    deadline = context_of(request).deadline
    if "x-request-timeout-seconds" in request.headers:
        return deadline
    return asyncio.get_running_loop().time() + _MOST_WAIT_S


def _estimated(
    model: BitstreamModel, segments: tuple[SegmentFacts, ...]
) -> tuple[list[BitstreamFacts], tuple[Estimate, ...]]:
    """Segments as the model takes them, and its estimates.

    Raises:
        InvalidInput: what is said of a segment does not go together.
    """
    facts = _facts(segments)
    return facts, model.estimate(facts)


def _facts(segments: tuple[SegmentFacts, ...]) -> list[BitstreamFacts]:
    """Segments as the model takes them.

    Raises:
        InvalidInput: what is said of a segment does not go together; names the field.
    """
    found = []
    for place, one in enumerate(segments):
        try:
            found.append(
                BitstreamFacts(
                    codec=one.codec, width=one.width, height=one.height,
                    display_height=one.display_height or one.height, fps=one.fps, duration_s=one.duration_s,
                    size_bytes=one.size_bytes, frame_bytes=np.array(one.frame_bytes, np.int64),
                    frame_kinds=np.array([_KINDS[kind] for kind in one.frame_kinds], np.int8),
                )
            )  # fmt: skip
        except InvalidInput as error:
            error.field = f"segments[{place}].{error.field.removeprefix('bitstream.')}"
            raise
    return found


def _body() -> dict[str, Any]:
    """What the route takes, for the OpenAPI document: JSON, or the same as a form whose clips may be files."""
    reference = {"$ref": "#/components/schemas/QualityRequest"}
    file = {"type": "string", "format": "binary", "description": "A file, or its path under the media folder."}
    whole = {"type": "integer", "minimum": 1}
    form = {
        "reference": file, "distorted": file, "model": {"type": "string"}, "every": whole, "display_height": whole,
        "wait_s": {"type": "number", "minimum": 0},
    }  # fmt: skip
    examples = {"against a reference": EXAMPLE, "alone": ALONE_EXAMPLE, "facts": SEGMENTS_EXAMPLE}
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": reference, "examples": {name: {"value": value} for name, value in examples.items()}
            },
            MULTIPART: {"schema": {"type": "object", "properties": form, "required": ["distorted"]}},
        },
    }  # fmt: skip
