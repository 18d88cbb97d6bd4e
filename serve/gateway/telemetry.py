"""Routes for players that say how playback goes: CMCD of both versions in every form, or the same as JSON.

Whatever a player says, it must not be slowed or break: what can be used is in the log before the answer, what cannot is
named in it, and only a request in which nothing can be used is refused.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response

from features.errors import StoreUnavailable
from serve.clock import now_ms
from serve.errors import InvalidInput, Unavailable
from serve.gateway.crossorigin import ANY_ORIGIN, preflight
from serve.gateway.entrance import context_of
from serve.gateway.errors import Malformed, UnsupportedMediaType, Words, responses
from serve.gateway.requests import MAX_BODY_BYTES, THREAD_BYTES, OpenRoute, read_bytes, read_leniently
from serve.gateway.stages import TelemetrySink
from serve.metrics import Metrics
from serve.telemetry.cmcd import HEADERS, KINDS, MAX_TEXT, UNREADABLE, read
from serve.telemetry.log import Said
from serve.telemetry.reports import DIMENSIONS, Plain, counted, plain, read_lines, read_plain

CMCD_TYPE: Final = "application/cmcd"
MAX_REPORTS: Final = 1000
"""Reports of one request; those beyond are refused."""

_DEADLINE_SHARE: Final = 0.8
_MOST_NAMED: Final = 32
_TEXT_TYPES: Final = frozenset({CMCD_TYPE, "text/plain"})
"""Browsers' beacons of plain strings are text/plain."""

_EXAMPLE: Final = (
    'br=(3200;v),cid="t42",cdn="north",e=ps,msd=840,sf=d,sid="6e2fb550",sn=1,sta=p,ts=1790000000000,v=2\n'
    'bl=(11300;v),br=(3200;v),cid="t42",cdn="north",e=t,sf=d,sid="6e2fb550",sn=2,sta=p,ts=1790000030000,v=2'
)
_JSON_EXAMPLE: Final = {
    "context": {"asn": "64500", "region": "eu", "device": "tv", "app": "tv-9.2"},
    "events": [{"sid": "6e2fb550", "e": "ps", "sta": "p", "ts": 1_790_000_000_000, "br": {"v": 3200}, "cdn": "north"}],
}
_ANSWER: Final[dict[str, Any]] = {
    "description": "What became of the reports.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["request_id", "accepted", "rejected", "malformed"],
                "properties": {
                    "request_id": {"type": "string"},
                    "accepted": {"type": "integer", "description": "Reports in the log."},
                    "rejected": {
                        "type": "object",
                        "additionalProperties": {"type": "integer"},
                        "description": "Reports that could not be used, by reason.",
                    },
                    "malformed": {
                        "type": "object",
                        "additionalProperties": {"type": "integer"},
                        "description": "Keys whose values could not be used, each with how often.",
                    },
                },
            }
        }
    },
}


class TelemetryRoutes:
    """The routes.

    Args:
        log: where reports go.
        metrics: where they are counted.
    """

    def __init__(self, log: TelemetrySink, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        context = [
            {"name": name, "in": "query", "required": False, "schema": {"type": "string", "maxLength": MAX_TEXT},
             "description": "What the reports have in common, where they do not say it."}
            for name in DIMENSIONS
        ]  # fmt: skip
        said = [
            {"name": "CMCD", "in": "query", "required": False, "schema": {"type": "string"},
             "description": "What the player says, CTA-5004 version 1 or 2."},
            *({"name": name, "in": "header", "required": False, "schema": {"type": "string"},
               "description": "Likewise, where the player sends headers."} for name in HEADERS),
        ]  # fmt: skip
        body = {
            "required": True,
            "content": {
                CMCD_TYPE: {"schema": {"type": "string"}, "examples": {"events": {"value": _EXAMPLE}}},
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["events"],
                        "properties": {
                            "context": {"type": "object", "additionalProperties": {"type": "string"}},
                            "events": {"type": "array", "items": {"type": "object"}, "maxItems": MAX_REPORTS},
                        },
                    },
                    "examples": {"events": {"value": _JSON_EXAMPLE}},
                },
            },
        }
        app.router.add_api_route(
            "/v1/telemetry", self.post, methods=["POST"], response_class=Response, tags=["telemetry"],
            summary="What players say of their playback, up to 1,000 reports",
            responses=responses(400, 401, 408, 413, 415, 422, 503) | {200: _ANSWER},
            openapi_extra={"parameters": context, "requestBody": body}, route_class_override=OpenRoute,
        )  # fmt: skip
        app.router.add_api_route(
            "/v1/telemetry", self.get, response_class=Response, status_code=204, tags=["telemetry"],
            summary="One report, in the query or in headers, as players say it with a media request",
            responses=responses(401, 422, 503) | {204: {"description": "It is in the log."}},
            openapi_extra={"parameters": [*said, *context]}, route_class_override=OpenRoute,
        )  # fmt: skip
        app.router.add_api_route(
            "/v1/telemetry", preflight, methods=["OPTIONS"], include_in_schema=False, route_class_override=OpenRoute
        )

    async def post(self, request: Request) -> Response:
        """Take reports in: CMCD's event mode (one a line), or JSON with the same keys.

        200 once they are in the log. Keys that cannot be used are named in `malformed`, reports in `rejected`.
        Sending the same again is safe: a report that says the same of the same session and moment counts once.
        """
        received_ms = now_ms()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _TEXT_TYPES and kind != "application/json":
            raise UnsupportedMediaType(
                field="Content-Type", got=kind[:100] or Words("nothing"), expected=f"{CMCD_TYPE} or application/json",
                next_step="Send CMCD's event mode, one event a line, or JSON.",
            )  # fmt: skip
        body = await read_bytes(request, MAX_BODY_BYTES)
        reading = _read_text if kind in _TEXT_TYPES else _read_json
        if len(body) > THREAD_BYTES:
            taken = await asyncio.to_thread(reading, body, _given(request))
        else:
            taken = reading(body, _given(request))
        answer = await self._keep(request, taken, received_ms)
        return Response(orjson.dumps(answer), media_type="application/json", headers=ANY_ORIGIN)

    async def get(self, request: Request) -> Response:
        """Take one report in that comes as players say it with media requests, or as an event in the query."""
        received_ms = now_ms()
        query = read_leniently(request) or {}
        cmcd = read(filter(None, [query.get("CMCD", ""), *(request.headers.get(name, "") for name in HEADERS)]))
        taken = _Taken([plain(cmcd)], [cmcd.malformed], _dimensions(query), 0)
        answer = await self._keep(request, taken, received_ms)
        told = {**ANY_ORIGIN, "Cache-Control": "no-store"}
        if answer["malformed"]:
            told["Playhead-Malformed"] = ", ".join(answer["malformed"])
        return Response(status_code=204, headers=told)

    async def _keep(self, request: Request, taken: "_Taken", received_ms: int) -> dict[str, Any]:
        context = context_of(request)
        started = time.perf_counter()
        usable = [values for values in taken.said if isinstance(values.get("sid"), str) and values["sid"]]
        rejected = {"no sid": len(taken.said) - len(usable), "too many": taken.left_out}
        malformed = counted(taken.malformed)
        self._metrics.telemetry(
            rejected=sum(rejected.values()),
            malformed={key: count for key, count in malformed.items() if key in KINDS or key == UNREADABLE},
        )  # fmt: skip
        if not usable:
            raise InvalidInput(
                field="sid", got=Words("no report with a session id"), expected="CMCD with a `sid` in one at least",
                next_step="Have the player send a session id (CTA-5004: a GUID for each playback session).",
            )  # fmt: skip
        try:
            async with asyncio.timeout_at(context.deadline):
                await self._log.write(
                    Said(received_ms, taken.given, usable), context.left_ms() / 1000 * _DEADLINE_SHARE
                )
        except (StoreUnavailable, TimeoutError) as error:
            self._metrics.telemetry(refused=len(usable))
            self._metrics.stage_failure("telemetry", type(error).__name__)
            raise Unavailable(
                field="telemetry", got=Words("no acknowledgement by the log"),
                expected="an acknowledgement before the deadline",
                next_step="Send the same again after the seconds in Retry-After; none counts twice.",
            ) from error  # fmt: skip
        self._metrics.telemetry(accepted=len(usable))
        self._metrics.observe("telemetry", time.perf_counter() - started)
        return {
            "request_id": context.request_id,
            "accepted": len(usable),
            "rejected": {reason: count for reason, count in rejected.items() if count},
            "malformed": dict(list(malformed.items())[:_MOST_NAMED]),
        }


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a request brought, before anything is kept."""

    said: list[dict[str, Plain]]
    malformed: list[tuple[str, ...]]
    given: Mapping[str, str]
    left_out: int


def _read_text(body: bytes, given: Mapping[str, str]) -> _Taken:
    said, malformed, left_out = read_lines(body.decode("utf-8", "replace"), MAX_REPORTS)
    return _Taken(said, malformed, given, left_out)


def _read_json(body: bytes, given: Mapping[str, str]) -> _Taken:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(
            field="body", got=Words(str(error)), expected="JSON", next_step="Send an object with `events`."
        ) from error
    events = document.get("events") if isinstance(document, dict) else None
    if not isinstance(events, list):
        raise InvalidInput(
            field="events", got=Words("no list"), expected="an object with a list of reports in `events`",
            next_step="See the example in /docs.",
        )  # fmt: skip
    context = document.get("context")
    if isinstance(context, dict):
        given = {**given, **_dimensions(context)}
    read_ones = [read_plain(event if isinstance(event, dict) else {}) for event in events[:MAX_REPORTS]]
    return _Taken(
        [values for values, _ in read_ones], [keys for _, keys in read_ones], given, max(0, len(events) - MAX_REPORTS)
    )


def _given(request: Request) -> dict[str, str]:
    return _dimensions(read_leniently(request) or {})


def _dimensions(given: Mapping[str, object]) -> dict[str, str]:
    """The dimensions among parameters."""
    found = {}
    for name in DIMENSIONS:
        value = given.get(name)
        if isinstance(value, str) and value:
            found[name] = value[:MAX_TEXT]
    return found
