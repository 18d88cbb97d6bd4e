"""What every request passes first: its id, its deadline, its token; and what every answer passes last.

Plain ASGI, around the FastAPI application: a middleware of Starlette's would cost more than the routes behind it.
"""

import asyncio
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import InvalidInput, PlayheadError
from serve.gateway.errors import Unauthorized, Words, internal_response, problem_response
from serve.logs import RequestLog
from serve.metrics import Metrics
from serve.vitals import Vitals

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

OPEN_PATHS: Final = ("/healthz", "/readyz", "/docs", "/openapi.json", "/static-offline-docs/")
"""Openings of paths that need no token: probes and the documentation."""

MIN_DEADLINE_S: Final = 0.005
MAX_DEADLINE_S: Final = 60.0

UNMATCHED: Final = "unmatched"
"""Route label of a request that no route took."""

_SANE_ID = re.compile(rb"[\x21-\x7e]{1,64}")
_KEPT_SHARE: Final = 0.9
"""Share of a caller's timeout that is used; the rest is for the way back, so that the answer comes in time."""

_CLIENT_LEFT: Final = 499
"""Status that is counted where the caller closed the connection before its answer."""

_KEY: Final = "playhead"


@dataclass(slots=True)
class Context:
    """What is known of one request on its way.

    Attributes:
        request_id: names the request in the answer, the logs and the events that follow from it.
        deadline: when the answer is due, on the event loop's clock.
        route: path template of the route that took it.
        degraded: why its answer is less than it could be.
        status: HTTP status of the answer; 0 until it starts.
    """

    request_id: str
    deadline: float
    route: str = UNMATCHED
    degraded: tuple[str, ...] = ()
    status: int = 0

    def left_ms(self) -> float:
        """Milliseconds until the deadline, not below 0."""
        return max(0.0, (self.deadline - asyncio.get_running_loop().time()) * 1000)


def context_of(request: Request) -> Context:
    """The context that the entrance gave a request."""
    context: Context = request.scope[_KEY]
    return context


@dataclass(frozen=True, kw_only=True)
class EntranceSettings:
    """How requests are let in.

    Attributes:
        deadline_s: deadline of a request that brings none.
        token: the bearer token that requests must carry; None lets all in.
        server_echoes_id: whether the server around the application answers with the given X-Request-ID, as Ray
            Serve does.
    """

    deadline_s: float = 1.0
    token: str | None = None
    server_echoes_id: bool = False


class _GivenHeaders:
    """The headers that are read here; the last of each name counts, as it does for Ray Serve."""

    __slots__ = ("authorization", "request_id", "timeout")

    def __init__(self, scope: Scope) -> None:
        self.request_id = self.authorization = b""
        self.timeout: bytes | None = None
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                self.request_id = value
            elif name == b"x-request-timeout-seconds":
                self.timeout = value
            elif name == b"authorization":
                self.authorization = value


class Entrance:
    """The outermost ASGI application.

    Args:
        app: the FastAPI application.
        direct: handlers by (method, path) that answer without passing through `app`, whose layers and routing cost
            more than such a handler itself.
        settings: how requests are let in.
        metrics: where answers are counted.
        vitals: where they are counted for the Watchtower.
        log: where notable answers are logged.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        direct: Mapping[tuple[str, str], Handler],
        settings: EntranceSettings,
        metrics: Metrics,
        vitals: Vitals,
        log: RequestLog,
    ) -> None:
        self.app = app
        self._direct = direct
        self._settings = settings
        self._metrics = metrics
        self._vitals = vitals
        self._log = log
        self._authorization = f"Bearer {settings.token}".encode() if settings.token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through."""
        if scope["type"] == "http":
            await self._exchange(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self.app(scope, receive, send)

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        given = _GivenHeaders(scope)
        keeps_id = _SANE_ID.fullmatch(given.request_id) is not None
        request_id = given.request_id.decode() if keeps_id else secrets.token_hex(8)
        deadline = asyncio.get_running_loop().time() + self._settings.deadline_s
        context = scope[_KEY] = Context(request_id, deadline)
        adds_id = not (self._settings.server_echoes_id and keeps_id)

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                if adds_id:
                    message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if self._authorization is not None:
                self._authorize(scope, given.authorization)
            if given.timeout is not None:
                context.deadline += self._timeout_s(given.timeout) - self._settings.deadline_s
            await self._handle(scope, receive, send_on)
        except PlayheadError as error:
            await problem_response(error, request_id)(scope, receive, send_on)
        except ClientDisconnect:
            context.status = _CLIENT_LEFT
        except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, the caller gets an answer
            self._log.failed(request_id=request_id, route=context.route, error=error)
            if not context.status:
                await internal_response(request_id)(scope, receive, send_on)
        self._note(context, time.perf_counter() - started)

    def _note(self, context: Context, seconds: float) -> None:
        self._metrics.observe("gateway", seconds)
        self._metrics.request(context.route, context.status)
        if context.degraded:
            self._metrics.degraded(context.degraded)
        self._vitals.answered(context.route, context.status, seconds, context.degraded)
        self._log.answered(
            request_id=context.request_id,
            route=context.route,
            status=context.status,
            seconds=seconds,
            degraded=context.degraded,
        )

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        direct = None if scope["root_path"] else self._direct.get((scope["method"], scope["path"]))
        if direct is None:
            await self.app(scope, receive, send)
        else:
            response = await direct(Request(scope, receive))
            await response(scope, receive, send)

    def _authorize(self, scope: Scope, given: bytes) -> None:
        if scope["path"].startswith(OPEN_PATHS) or scope["method"] == "OPTIONS":  # browsers ask that with no token
            return
        if not hmac.compare_digest(given, self._authorization or b""):
            raise Unauthorized(
                field="Authorization",
                got=Words("another token" if given else "nothing"),
                expected="Bearer TOKEN",
                next_step="Send the token that the service was started with (PLAYHEAD_API_TOKEN).",
            )

    def _timeout_s(self, given: bytes) -> float:
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not MIN_DEADLINE_S <= seconds <= MAX_DEADLINE_S:  # true for NaN, too
            raise InvalidInput(
                field="x-request-timeout-seconds",
                got=given[:100].decode("latin-1"),
                expected=f"seconds, {MIN_DEADLINE_S:g} to {MAX_DEADLINE_S:g}",
                next_step="Correct the header, or leave it out for the default.",
            )
        return seconds * _KEPT_SHARE
