"""Routes for encoding and operations: full-reference quality of clips on the service's own storage, as jobs."""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final

import orjson
from fastapi import FastAPI, Path, Request, Response

from serve.gateway.entrance import context_of
from serve.gateway.errors import responses
from serve.gateway.player import _TIMEOUT_HEADER
from serve.quality.intake import Intake
from serve.quality.jobs import Job, JobStore, error_of
from serve.quality.runner import QualityRunner
from serve.quality.schemas import JobId, QualityJob, QualityRequest

_MOST_WAIT_S: Final = 8.0
"""The ingress gives a request up after 10 s."""

_LEFT_S: Final = 0.1
"""Of a caller's own deadline, kept for the way back."""

_POLL_S: Final = 0.1
_MOST_WAITING: Final = 64
"""Requests that wait for their report at a time; the rest are answered at once."""

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
    """

    store: JobStore
    intake: Intake
    runner: QualityRunner


class QualityRoutes:
    """The routes.

    Args:
        stage: what answers.
    """

    def __init__(self, stage: QualityStage) -> None:
        self._stage = stage
        self._waiting = 0

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application whose route class is ModelRoute."""
        extra = {"parameters": [_TIMEOUT_HEADER]}
        app.add_api_route(
            "/v1/quality",
            self.ask,
            methods=["POST"],
            response_model=QualityJob,
            tags=["quality"],
            summary="VMAF of a clip against its reference",
            responses=responses(400, 401, 404, 408, 413, 415, 422, 503) | _LATER,
            openapi_extra=extra,
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

    async def ask(self, request: Request, asked: QualityRequest) -> Response:
        """Measure a distorted clip against its reference, both files under the service's media folder.

        200 with the report where it is there within `wait_s`, else 202 and the job's address in `Location`. Asking the
        same of the same files again is the same job; one that was cancelled begins anew.
        """
        context = context_of(request)
        left_s = context.left_ms() / 1000 - _LEFT_S if "x-request-timeout-seconds" in request.headers else _MOST_WAIT_S
        until = asyncio.get_running_loop().time() + min(asked.wait_s, left_s, _MOST_WAIT_S)
        name = await asyncio.to_thread(self._stage.intake.ask, asked)
        self._stage.runner.wake()
        job = await self._wait(name, until)
        if job.status.state == "failed" and job.status.problem is not None:
            raise error_of(job.status.problem)
        location = {"Location": f"/v1/quality/{name}"}
        return _answer(context.request_id, job, HTTPStatus.OK if job.ended else HTTPStatus.ACCEPTED, location)

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
        "created_ts": task.created_ts,
        "updated_ts": state.updated_ts,
        "progress": {"done": state.done, "total": state.total},
        "report": None if job.report is None else orjson.Fragment(job.report),
        "problem": None if state.problem is None else state.problem.model_dump(),
    }
    return Response(orjson.dumps(body), status_code=status, headers=headers, media_type="application/json")
