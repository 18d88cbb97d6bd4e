"""Reading a request by its declared models, with errors that name the field, and the route that does so.

FastAPI documents these routes from their signatures; reading the query, the path and the body is done here, because
FastAPI's own way costs twice the time, ignores names that it does not know, and reads a body of any size.
"""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.params import Query
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from serve.errors import PlayheadError
from serve.gateway.entrance import context_of
from serve.gateway.errors import (
    FieldError,
    Malformed,
    RequestRefused,
    TooLarge,
    UnsupportedMediaType,
    Words,
    refused,
    shortened,
)

M = TypeVar("M", bound=BaseModel)

MAX_QUERY_FIELDS: Final = 64
MAX_BODY_BYTES: Final = 1 << 20
THREAD_BYTES: Final = 64 << 10
"""A larger body is read in a thread: on the event loop it would hold other requests up."""


class BodyTimeout(PlayheadError):
    """A body that did not arrive within the request's deadline."""

    status = 408
    title = "Request timeout"


class NoQuery(BaseModel):
    """The query of a route that takes none."""

    model_config = ConfigDict(extra="forbid")


def read_query(request: Request, model: type[M]) -> M:
    """The query as a model.

    Raises:
        Malformed: the query is not UTF-8 when unquoted, or has too many parameters.
        RequestRefused: an unknown or repeated parameter, or a value out of range.
    """
    raw: bytes = request.scope["query_string"]
    try:
        pairs = (
            parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS)
            if raw
            else []
        )
    except UnicodeDecodeError as error:
        raise Malformed(
            field="query",
            got=raw[:100].decode("latin-1"),
            expected="percent-encoded UTF-8",
            next_step="Encode the parameters as UTF-8, then percent-encode them.",
        ) from error
    except ValueError as error:
        raise Malformed(
            field="query",
            got=Words(f"more than {MAX_QUERY_FIELDS} parameters"),
            expected=f"at most {MAX_QUERY_FIELDS} parameters",
            next_step="Leave out what the route does not know.",
        ) from error
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise RequestRefused(
            [
                FieldError(
                    field=name[:200],
                    got=shortened([value for key, value in pairs if key == name]),
                    expected="one value",
                    next_step="Send the parameter once.",
                )
                for name in dict.fromkeys(names)
                if names.count(name) > 1
            ]
        )
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise refused(error, model) from error


def read_leniently(request: Request) -> dict[str, str] | None:
    """The query's parameters, as far as they can be read; of one that comes twice the last; None: not at all."""
    raw: bytes = request.scope["query_string"]
    try:
        return dict(parse_qsl(raw.decode("latin-1"), max_num_fields=MAX_QUERY_FIELDS)) if raw else {}
    except ValueError:
        return None


async def read_body(request: Request, model: type[M], limit_bytes: int) -> M:
    """The JSON body as a model; a body over the limit is refused without reading the rest.

    Raises:
        UnsupportedMediaType: the content type is not JSON.
        TooLarge: more than `limit_bytes`, declared or sent.
        BodyTimeout: the deadline came first.
        Malformed: not JSON, not UTF-8.
        RequestRefused: JSON that the model does not allow.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType(
            field="Content-Type",
            got=content_type[:100] or Words("nothing"),
            expected="application/json",
            next_step="Send JSON with the header Content-Type: application/json.",
        )
    try:
        return model.model_validate_json(await read_bytes(request, limit_bytes))
    except ValidationError as error:
        raise refused(error, model) from error


async def read_bytes(request: Request, limit_bytes: int) -> bytes:
    """The body; one over the limit is refused without reading the rest.

    Raises:
        TooLarge: more than `limit_bytes`, declared or sent.
        BodyTimeout: the deadline came first.
        UnsupportedMediaType: it is compressed.
    """
    return b"".join([chunk async for chunk in body_chunks(request, limit_bytes, context_of(request).deadline)])


async def body_chunks(request: Request, limit_bytes: int, deadline: float) -> AsyncGenerator[bytes]:
    """The body as it comes.

    Args:
        request: whose body it is.
        limit_bytes: of all of it.
        deadline: when it must be there, on the event loop's clock.

    Raises:
        TooLarge, BodyTimeout, UnsupportedMediaType: as of `read_bytes`.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in {"", "identity"}:
        raise UnsupportedMediaType(
            field="Content-Encoding",
            got=encoding[:100],
            expected="none: bodies are read as they are",
            next_step="Send it uncompressed, and without that header.",
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit_bytes:
        raise _too_large(f"{declared[:20]} bytes", limit_bytes)
    size_bytes = 0
    async with aclosing(request.stream()) as stream:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(stream, None)
            except TimeoutError as error:
                raise BodyTimeout(
                    field="body",
                    got=Words(f"{size_bytes} bytes and no end"),
                    expected="the whole body before the deadline",
                    next_step="Send it faster, in smaller batches, or with a longer x-request-timeout-seconds.",
                ) from error
            if chunk is None:
                return
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                raise _too_large("more than that", limit_bytes)
            yield chunk


def _too_large(got: str, limit_bytes: int) -> TooLarge:
    return TooLarge(
        field="body",
        got=Words(got),
        expected=f"at most {limit_bytes} bytes",
        next_step="Split it into smaller requests.",
    )


class ModelRoute(APIRoute):
    """A route that is read by its declared models and answers with ready-made bytes.

    Its endpoint takes `request`, path parameters by name, one `Annotated[Model, Query()]` and one model for the body,
    any of them optional, and returns a Response. Unknown query parameters are refused, so a route with no query model
    takes none. A route that reads a body refuses what is over MAX_BODY_BYTES. Its `dependencies` are functions of the
    request that raise to refuse who asks, before anything is said about what was asked.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request of this route."""
        endpoint: Callable[..., Awaitable[Response]] = self.endpoint
        template = self.path_format
        query: tuple[str, type[BaseModel]] | None = None
        body: tuple[str, type[BaseModel]] | None = None
        in_path: dict[str, Any] = {}
        for name, parameter in inspect.signature(endpoint).parameters.items():
            kind = parameter.annotation
            if f"{{{name}}}" in template:
                in_path[name] = (kind, ...)
            elif get_origin(kind) is Annotated and any(isinstance(mark, Query) for mark in get_args(kind)):
                query = (name, get_args(kind)[0])
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                body = (name, kind)
        path = create_model("PathParameters", **in_path) if in_path else None

        async def handle(request: Request) -> Response:
            context_of(request).route = template
            await self.admit(request)
            values: dict[str, Any] = {}
            if path is not None:
                try:
                    values = dict(path.model_validate(request.path_params))
                except ValidationError as error:
                    raise refused(error, path) from error
            if query is not None:
                values[query[0]] = read_query(request, query[1])
            else:
                read_query(request, NoQuery)
            if body is not None:
                values[body[0]] = await read_body(request, body[1], MAX_BODY_BYTES)
            return await endpoint(request=request, **values)

        return handle

    async def admit(self, request: Request) -> None:
        """Ask the route's dependencies whether they take a request."""
        for mark in self.dependencies:
            if mark.dependency is not None:
                answer = mark.dependency(request)
                if inspect.isawaitable(answer):
                    await answer


class OpenRoute(ModelRoute):
    """A route whose endpoint reads the request itself, and so decides what to refuse."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request of this route."""
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        template = self.path_format

        async def handle(request: Request) -> Response:
            context_of(request).route = template
            await self.admit(request)
            return await endpoint(request)

        return handle
