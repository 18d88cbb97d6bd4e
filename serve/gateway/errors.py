"""What a caller is told when a request cannot be answered: RFC 9457 problem details for every error.

Each problem lists what was wrong as {field, got, expected, next_step}. Nothing of the inside (stack traces, addresses,
class names) leaves the service; the request_id leads an operator to the log line that has it.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from http import HTTPStatus
from reprlib import Repr
from typing import Any, Final, TypedDict, get_args

import orjson
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails
from starlette.responses import Response

from serve.errors import InvalidInput, NotFound, PlayheadError, Unavailable

MEDIA_TYPE: Final = "application/problem+json"
_RETRY_AFTER_S: Final = "1"

MAX_ERRORS: Final = 20
"""Most errors that one problem lists."""

_UNTOLD_ERRORS: Final = 5_000
"""From this many on, errors are counted and not listed: making the list would take longer than the request may."""

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 120
_REPR.maxlist = _REPR.maxdict = _REPR.maxtuple = 4
_REPR.maxlevel = 3


_OPENINGS: Final = (
    ("Input should be greater", "a number greater"),
    ("Input should be less", "a number less"),
    ("Input should be ", ""),
    ("String should have", "text with"),
    ("String should match pattern", "text that matches"),
    ("Tuple should have", "a list with"),
    ("Value error, ", ""),
)
"""How pydantic's messages open, and what follows "expected" instead."""

_AFTERTHOUGHT = re.compile(r" after validation|, not \d+$")


class Words(str):
    """The service's own words, shown without quotes where a caller's value would have them."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class FieldError(TypedDict):
    """One thing that was wrong."""

    field: str
    got: str
    expected: str
    next_step: str


class ProblemItem(BaseModel):
    """One thing that was wrong.

    Attributes:
        field: its name, such as `rows` or `events[3].ts`.
        got: what came, shortened.
        expected: what would have been right.
        next_step: what to do.
    """

    field: str
    got: str
    expected: str
    next_step: str


class Problem(BaseModel):
    """An error (RFC 9457).

    Attributes:
        type: names the kind of problem; the same for all of its kind.
        title: the kind in words.
        status: the HTTP status.
        detail: this problem in one sentence.
        request_id: names the request; quote it when asking for help.
        errors: what was wrong; empty where the caller can do nothing about it.
    """

    type: str = Field(examples=["urn:playhead:problem:invalid-input"])
    title: str = Field(examples=["Invalid input"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["rows: got '0', expected greater than or equal to 1."])
    request_id: str = Field(examples=["9f1c2d7e5a"])
    errors: tuple[ProblemItem, ...]


class RequestRefused(InvalidInput):
    """A request with one or more values that cannot be used.

    Args:
        errors: what was wrong, at least one.
    """

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(**errors[0])
        self.errors = errors


class Malformed(InvalidInput):
    """A request that cannot even be read: not JSON, not UTF-8."""

    status = 400
    title = "Malformed request"


class Unauthorized(PlayheadError):
    """A request without the token that this service asks for."""

    status = 401
    title = "Unauthorized"


class Forbidden(PlayheadError):
    """A request that this service, as it is set up, grants to nobody."""

    status = 403
    title = "Forbidden"


class Conflict(PlayheadError):
    """A change that others came before."""

    status = 409
    title = "Conflict"


class MethodNotAllowed(PlayheadError):
    """A method that the path does not know."""

    status = 405
    title = "Method not allowed"


class TooLarge(PlayheadError):
    """A body over the limit."""

    status = 413
    title = "Content too large"


class TooManyRequests(PlayheadError):
    """More than one caller may send."""

    status = 429
    title = "Too many requests"


class UnsupportedMediaType(PlayheadError):
    """A body that is not declared as JSON."""

    status = 415
    title = "Unsupported media type"


class DeadlineExceeded(Unavailable):
    """No answer within the request's deadline, and none to fall back to."""

    status = 504
    title = "Deadline exceeded"


def shortened(value: object) -> str:
    """A value as shown to the caller: a short repr that never fails and never costs much."""
    try:
        return _REPR.repr(value)[:200]
    except ValueError:  # an int with more digits than Python prints
        return "a number that is too long to show"


def suggestion(name: str, known: Sequence[str]) -> str | None:
    """The known name that a misspelt one most resembles."""
    close = get_close_matches(name[:64], known, n=1, cutoff=0.6)
    return close[0] if close else None


def unknown_name(name: str, known: Sequence[str], *, path: str | None = None, got: object = None) -> FieldError:
    """The error for a name that the request may not hold.

    Args:
        name: the name that came.
        known: the names that may come.
        path: where it was, such as `events[0].titel_id`; default its name.
        got: the value that came with it.
    """
    near = suggestion(name, known)
    return FieldError(
        field=(path or name)[:200],
        got=shortened(got),
        expected=f"only {', '.join(known)}" if known else "nothing of that name",
        next_step=f"Did you mean {near!r}?" if near else "Leave it out.",
    )


def field_path(location: Sequence[int | str]) -> str:
    """A pydantic location as a path: ('events', 3, 'ts') -> 'events[3].ts'; empty -> 'body'."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path[:200] or "body"


def _names_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names of the fields of the model that a location lies in."""
    for part in location[:-1]:
        inner = model.model_fields.get(part) if isinstance(part, str) else None
        if inner is not None:
            model = next(
                (a for a in get_args(inner.annotation) if isinstance(a, type) and issubclass(a, BaseModel)), model
            )
    return list(model.model_fields)


def refused(error: ValidationError, model: type[BaseModel]) -> RequestRefused | Malformed:
    """What a pydantic error tells the caller; misspelt names come first, as they explain what is missing.

    Args:
        error: the error.
        model: the model that was validated; its field names serve for suggestions.
    """
    if error.error_count() > _UNTOLD_ERRORS:
        return RequestRefused(
            [
                FieldError(
                    field="body",
                    got=f"{error.error_count()} errors",
                    expected="a body as the schema at /openapi.json describes",
                    next_step="Send the first element alone to see what is wrong with it.",
                )
            ]
        )
    items = error.errors(include_url=False)
    if items[0]["type"] == "json_invalid":
        return Malformed(
            field="body",
            got=Words(items[0]["ctx"]["error"]),
            expected="JSON in UTF-8",
            next_step="Send one JSON object, encoded as UTF-8.",
        )
    inside = {item["loc"][:depth] for item in items for depth in range(len(item["loc"]))}
    items = [item for item in items if item["type"] != "too_short" or item["loc"] not in inside]  # of valid elements
    items.sort(key=lambda item: item["type"] != "extra_forbidden")
    return RequestRefused([_told(item, model) for item in items[:MAX_ERRORS]])


def _told(item: ErrorDetails, model: type[BaseModel]) -> FieldError:
    kind, location, value = item["type"], item["loc"], item["input"]
    path = field_path(location)
    if kind == "extra_forbidden":
        return unknown_name(str(location[-1]), _names_at(model, location), path=path, got=value)
    if kind == "missing":
        return FieldError(field=path, got="nothing", expected="a value", next_step=f"Add {path!r}.")
    expected = _AFTERTHOUGHT.sub("", item["msg"])
    for theirs, ours in _OPENINGS:
        if expected.startswith(theirs):
            expected = ours + expected.removeprefix(theirs)
            break
    return FieldError(
        field=path,
        got=shortened(value),
        expected=expected,
        next_step=f"Send {'one of ' if kind == 'enum' else ''}{expected}.",
    )


def problem_body(error: PlayheadError, request_id: str) -> bytes:
    """The problem+json document of an error."""
    told: Sequence[FieldError] = getattr(error, "errors", None) or [
        FieldError(field=error.field, got=error.got, expected=error.expected, next_step=error.next_step)
    ]
    first = told[0]
    more = f" And {len(told) - 1} more." if len(told) > 1 else ""
    return _document(
        title=error.title,
        status=error.status,
        detail=f"{first['field']}: got {first['got']}, expected {first['expected']}.{more}",
        request_id=request_id,
        errors=told,
    )


def internal_response(request_id: str) -> Response:
    """The whole answer for an error that nobody expected; says nothing of the inside."""
    body = _document(
        title="Internal error",
        status=500,
        detail="The service failed in a way that it does not know; the failure was logged under this request_id.",
        request_id=request_id,
        errors=[],
    )
    return Response(body, status_code=500, media_type=MEDIA_TYPE)


def _document(*, title: str, status: int, detail: str, request_id: str, errors: Sequence[FieldError]) -> bytes:
    return orjson.dumps(
        {
            "type": f"urn:playhead:problem:{title.lower().replace(' ', '-')}",
            "title": title,
            "status": status,
            "detail": detail,
            "request_id": request_id,
            "errors": errors,
        }
    )


def problem_response(error: PlayheadError, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """The whole answer for an error."""
    added = dict(headers or {})
    if isinstance(error, Unavailable | TooManyRequests):
        added["Retry-After"] = _RETRY_AFTER_S
    elif isinstance(error, Unauthorized):
        added["WWW-Authenticate"] = "Bearer"
    return Response(problem_body(error, request_id), status_code=error.status, headers=added, media_type=MEDIA_TYPE)


def no_such_path(path: str, known: Sequence[str]) -> NotFound:
    """The error for a path that no route has."""
    near = suggestion(path, known)
    return NotFound(
        field="path",
        got=path,
        expected=f"one of {', '.join(known)}",
        next_step=f"Did you mean {near}?" if near else "See /docs for what there is.",
    )


def no_such_method(method: str, path: str, allowed: str) -> MethodNotAllowed:
    """The error for a method that a path does not know."""
    return MethodNotAllowed(
        field="method", got=method, expected=f"{allowed} for {path}", next_step=f"Send {allowed} instead."
    )


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the problems that a route may answer with."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
