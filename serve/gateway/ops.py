"""Routes for operators and their tools: probes, metrics, which model answers and how it does."""

import asyncio
from dataclasses import asdict
from typing import Literal

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from serve.errors import Unavailable
from serve.gateway.entrance import context_of
from serve.gateway.errors import Words, responses
from serve.gateway.health import HealthBoard, ModelHealth
from serve.gateway.stages import Stages
from serve.metrics import CONTENT_TYPE, Metrics


class Probe(BaseModel):
    """Answer of a probe."""

    status: Literal["ok"]


class Model(BaseModel):
    """One version of a model as the answering replica sees it.

    Attributes:
        name: the model.
        version: the version that answers; null while there is none.
        loaded_ts: when it went live on this replica, UTC milliseconds; null while there is none.
        state: `live`; `loading`;
            `missing` (none yet: popular titles, or the simple bitrate rule, answer); `refused` (the newest
            cannot be loaded: the one before answers); `unreachable` (its stage does not answer).
        detail: what is wrong; empty when nothing is.
        role: `champion`; `challenger`, which answers a share; or `shadow`, which works beside the answers.
        share: of the profiles or sessions that it answers, 0 to 1.
        health: how the version does on all replicas; null while there is none.
    """

    name: str
    version: str | None
    loaded_ts: int | None
    state: Literal["live", "loading", "missing", "refused", "unreachable"]
    detail: str
    role: Literal["champion", "challenger", "shadow"]
    share: float
    health: ModelHealth | None


class Models(BaseModel):
    """Answer of GET /v1/models."""

    request_id: str
    models: tuple[Model, ...]


class OpsRoutes:
    """The routes.

    Args:
        stages: what is asked about.
        metrics: what is shown.
        health: how versions do.
    """

    def __init__(self, stages: Stages, metrics: Metrics, health: HealthBoard) -> None:
        self._stages = stages
        self._metrics = metrics
        self._health = health

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application whose route class is ModelRoute."""
        app.add_api_route(
            "/healthz",
            self.health,
            response_model=Probe,
            tags=["operations"],
            summary="Is the process alive",
            responses=responses(422),
        )
        app.add_api_route(
            "/readyz",
            self.ready,
            response_model=Probe,
            tags=["operations"],
            summary="May it take traffic",
            responses=responses(422, 503),
        )
        app.add_api_route(
            "/metrics",
            self.metrics,
            response_class=Response,
            tags=["operations"],
            summary="Prometheus metrics of this node's replicas",
            responses=responses(401, 422)
            | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Text exposition."}},
        )
        app.add_api_route(
            "/v1/models",
            self.models,
            response_model=Models,
            tags=["operations"],
            summary="Which model versions answer",
            responses=responses(401, 422),
        )

    async def health(self, request: Request) -> Response:  # noqa: ARG002 - every endpoint is given its request
        """Answers as long as the event loop turns."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def ready(self, request: Request) -> Response:  # noqa: ARG002
        """Answers 200 once pages can be made; a missing model or store does not stop that."""
        waiting = self._stages.not_ready()
        if waiting:
            raise Unavailable(
                field="replica",
                got=Words(f"no {', no '.join(waiting)} yet"),
                expected="all that a page needs",
                next_step="Ask again in a second; `playhead doctor` tells what is missing.",
            )
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """All replicas of this node where they share a metrics folder, else the answering one."""
        self._metrics.flush()
        text = await asyncio.to_thread(self._metrics.render)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        """Versions, when they went live on the answering replica, what is wrong with them and how they do."""
        models = [
            asdict(state) | {"health": self._health.shown(state.name, state.version) if state.version else None}
            for state in self._stages.models()
        ]
        body = {"request_id": context_of(request).request_id, "models": models}
        return Response(orjson.dumps(body), media_type="application/json")
