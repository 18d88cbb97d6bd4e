"""The gateway's ASGI application: routes, documentation and error answers, behind the entrance."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from serve.bitrate.decisions import Decider
from serve.bitrate.schemas import BitrateBatch
from serve.errors import PlayheadError
from serve.gateway.bitrate import BitrateRoutes
from serve.gateway.detectors import DetectorsBoard
from serve.gateway.entrance import Entrance, EntranceSettings, context_of
from serve.gateway.errors import Problem, internal_response, no_such_method, no_such_path, problem_response
from serve.gateway.health import HealthBoard
from serve.gateway.ops import OpsRoutes
from serve.gateway.outages import OutageBoard, OutageRoutes
from serve.gateway.player import PlayerRoutes
from serve.gateway.quality import QualityRoutes, QualityStage
from serve.gateway.requests import ModelRoute
from serve.gateway.stages import Stages
from serve.gateway.steering import SteeringRoutes, SteeringStage
from serve.gateway.telemetry import TelemetryRoutes
from serve.logs import RequestLog, RequestLogSettings
from serve.metrics import Metrics
from serve.quality.estimates import MODEL
from serve.quality.schemas import QualityRequest
from serve.vitals import ModelVitals, Vitals

_DESCRIPTION: Final = (
    "What to watch, in milliseconds, changed by the viewer's last event. Every answer carries a request_id, the "
    "versions that made it, and `degraded` with reasons when a part fell back. Errors are RFC 9457 problem details "
    "that name the field, what came, what was expected and what to do next."
)


class Routes(Protocol):
    """Some routes."""

    def add_to(self, app: FastAPI) -> None:
        """Add them to an application whose route class is ModelRoute."""


def create(
    stages: Stages,
    metrics: Metrics,
    *,
    quality: QualityStage,
    outages: OutageBoard,
    detectors: DetectorsBoard,
    health: HealthBoard,
    vitals: Vitals,
    recommend_model: str,
    bitrate_model: str,
    operations: Sequence[Routes],
    steering: SteeringStage | None = None,
    entrance: EntranceSettings,
    request_log: RequestLogSettings,
    store_deadline_ms: float,
    background: Callable[[], AbstractAsyncContextManager[None]],
) -> Entrance:
    """Build the application.

    Args:
        stages: what answers.
        metrics: where requests are counted and stages timed.
        quality: what answers the quality routes.
        outages: what the Watchtower tells of playback.
        detectors: what it finds that by.
        health: what it tells of Playhead itself.
        vitals: where answers and decisions are counted for it.
        recommend_model: name of the ranker's model.
        bitrate_model: name of the planner's.
        operations: routes of those who run the service: which versions answer, what came of it, what people say.
        steering: what answers the steering routes; None: they are not configured.
        entrance: how requests are let in.
        request_log: which answered requests are logged.
        store_deadline_ms: longest wait for a profile's features, milliseconds.
        background: what runs beside the requests from start to shutdown.
    """

    def counted(model: str) -> ModelVitals:
        return vitals.model(model, partial(stages.version, model))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with background():
            yield

    app = FastAPIOffline(
        title="Playhead",
        version=version("playhead"),
        description=_DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.router.route_class = ModelRoute
    decider = Decider(stages.planner, stages.lookups, metrics, counted(bitrate_model), stages.asked.decided)
    PlayerRoutes(stages, metrics, store_deadline_ms, counted(recommend_model)).add_to(app)
    BitrateRoutes(decider).add_to(app)
    QualityRoutes(quality, counted(MODEL)).add_to(app)
    OutageRoutes(outages, detectors).add_to(app)
    SteeringRoutes(steering).add_to(app)
    TelemetryRoutes(stages.telemetry, metrics).add_to(app)
    OpsRoutes(stages, metrics, health).add_to(app)
    for routes in operations:
        routes.add_to(app)

    async def on_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, PlayheadError)
        return problem_response(error, context_of(request).request_id)

    async def on_no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = headers["Allow"] = ", ".join(_methods(app, request))
            told: PlayheadError = no_such_method(request.method, path, allowed)
        else:
            told = no_such_path(path, [*app.openapi()["paths"], "/docs"])
        return problem_response(told, context_of(request).request_id, headers)

    async def on_failure(request: Request, _: Exception) -> Response:
        return internal_response(context_of(request).request_id)

    app.add_exception_handler(PlayheadError, on_refusal)
    app.add_exception_handler(HTTPException, on_no_route)
    app.add_exception_handler(Exception, on_failure)
    app.openapi = lambda: _openapi(app, bearer=entrance.token is not None)  # type: ignore[method-assign]
    direct = {
        (method, route.path): route.get_route_handler()
        for route in app.routes
        if isinstance(route, ModelRoute) and "{" not in route.path
        for method in route.methods or ()
    }
    log = RequestLog(request_log)
    return Entrance(app, direct=direct, settings=entrance, metrics=metrics, vitals=vitals, log=log)


def _methods(app: FastAPI, request: Request) -> list[str]:
    """Methods that a path has, in order: several routes may share it, each with its own."""
    found: set[str] = set()
    for route in app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)


def _openapi(app: FastAPI, *, bearer: bool) -> dict[str, Any]:
    """The OpenAPI document, with problems as every route's errors."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (Problem, BitrateBatch, QualityRequest):  # what no route's signature names
            described = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(described.pop("$defs", {}))
            schemas[model.__name__] = described
        if bearer:
            document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"token": []}]
        app.openapi_schema = document
    return app.openapi_schema
