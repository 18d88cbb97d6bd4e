"""Routes for streaming controllers, CDN edges and players: which rung to fetch next.

A request here comes from a player in the middle of a title, so these routes refuse as little as they can: what a
session says wrong is named in `degraded`, unknown query parameters and content types do not matter, and only a body
that is no JSON, or more of it than is read, gets a 4xx.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response

from serve.bitrate.decisions import Decider, Decision
from serve.bitrate.planner import INLINE
from serve.bitrate.players import AUDIO_TYPE, VIDEO_TYPES, Players, session_of
from serve.bitrate.schemas import (
    MAX_SESSIONS,
    SESSION_EXAMPLE,
    BitrateBatch,
    BitrateDecision,
    BitrateDecisions,
    BitrateSession,
)
from serve.bitrate.sessions import Session, read_session
from serve.errors import InvalidInput
from serve.gateway.entrance import Context, context_of
from serve.gateway.errors import Malformed, Words, responses, shortened
from serve.gateway.player import _TIMEOUT_HEADER
from serve.gateway.requests import THREAD_BYTES, OpenRoute, read_bytes, read_leniently
from serve.telemetry.cmcd import HEADERS, read
from serve.telemetry.cmsd import DYNAMIC, dynamic

MAX_BODY_BYTES: Final = 4 << 20
"""1,000 sessions with sizes and VMAF of all upcoming segments take 1 to 2 MiB."""

BAD_SESSIONS: Final = "bad_field:sessions"

_DEADLINE_SHARE: Final = 0.8
"""Share of a request's deadline that a decision may take; the rest is for the way back."""

_MAX_DIGITS: Final = 300
_MAX_RUNGS_LENGTH: Final = 1024

_CMCD_EXAMPLE: Final = 'bl=11300,br=1850,cid="242",d=4000,mtp=2100,ot=v,sid="s-81",tb=4300'
_CMSD_ANSWER: Final[dict[str, Any]] = {
    "description": "No body; the headers are the answer.",
    "headers": {
        DYNAMIC: {
            "schema": {"type": "string", "examples": ['"playhead";etp=2200;mb=1946;rtt=24']},
            "description": "To be attached to the media answer.",
        },
        "Playhead-Versions": {"schema": {"type": "string"}, "description": "Which policy decided."},
        "Playhead-Degraded": {"schema": {"type": "string"}, "description": "Why the answer is less than it could be."},
    },
}


def _parameter(name: str, place: str, about: str, **schema: Any) -> dict[str, Any]:
    told = {"name": name, "in": place, "required": False, "description": about}
    return told | {"schema": {"type": "string", **schema}}


_CMSD_PARAMETERS: Final = [
    _parameter("CMCD", "query", "What the player says, CTA-5004 version 1 or 2.", examples=[_CMCD_EXAMPLE]),
    *(_parameter(name, "header", "Likewise, where the player sends headers.") for name in HEADERS),
    _parameter("rungs_kbps", "query", "The title's ladder: bitrates with commas between.", examples=["300,750,1200"]),
    _parameter("title_id", "query", "The title whose ladder is looked up; default: CMCD's `cid`."),
    _parameter("cdn", "query", "The delivery network; default: CMCD's `cdn`."),
    _parameter("asn", "query", "The viewer's network."),
    _parameter("rtt_us", "query", "Round trip to the player in microseconds, as nginx has it in `$tcpinfo_rtt`."),
    _TIMEOUT_HEADER,
]


class BitrateRoutes:
    """The routes.

    Args:
        decider: what decides.
    """

    def __init__(self, decider: Decider) -> None:
        self._decider = decider
        self._players = Players()

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        body = {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"anyOf": [_reference(BitrateSession), _list(BitrateSession), _reference(BitrateBatch)]},
                    "examples": {
                        "one": {"value": SESSION_EXAMPLE},
                        "list": {"value": [SESSION_EXAMPLE]},
                        "batch": {"value": {"sessions": [SESSION_EXAMPLE]}},
                    },
                }
            },
        }
        app.router.add_api_route(
            "/v1/bitrate",
            self.bitrate,
            methods=["POST"],
            response_model=BitrateDecision | BitrateDecisions,
            tags=["streaming"],
            summary="Which rung to fetch next, for one session or up to 1,000",
            responses=responses(400, 401, 408, 413, 415, 422),
            openapi_extra={"requestBody": body, "parameters": [_TIMEOUT_HEADER]},
            route_class_override=OpenRoute,
        )
        app.router.add_api_route(
            "/v1/bitrate/cmsd",
            self.cmsd,
            response_class=Response,
            tags=["streaming"],
            summary="CMCD in, CMSD out: the highest bitrate that a player should play",
            responses=responses(401, 422) | {200: _CMSD_ANSWER},
            openapi_extra={"parameters": _CMSD_PARAMETERS},
            route_class_override=OpenRoute,
        )

    async def cmsd(self, request: Request) -> Response:
        """Take what a player says of itself (CTA-5004) and answer with CMSD-Dynamic (CTA-5006) to attach.

        `mb` is the bitrate of the rung that the session should fetch next, plus that of its separate audio where the
        player requests one; `etp` the median throughput expected; `rtt` as the edge measured it. What is not known is
        left out; the answer is 200 with no body in any case.
        """
        context = context_of(request)
        query = read_leniently(request) or {}
        headers = request.headers
        cmcd = read([query.get("CMCD", ""), *(headers[name] for name in HEADERS if name in headers)])
        player = self._players.meet(cmcd.text("sid"))
        kind = cmcd.text("ot")
        version = None
        if kind in VIDEO_TYPES or (not kind and "br" in cmcd.values):
            session = session_of(
                cmcd,
                player,
                rungs_kbps=_rungs(query.get("rungs_kbps", "")),
                title_id=query.get("title_id", ""),
                cdn=query.get("cdn", ""),
                asn=query.get("asn", ""),
            )
            within_s = context.left_ms() / 1000 * _DEADLINE_SHARE
            (decision,), version = await self._decider.decide([session], within_s)
            context.degraded = tuple(session.reasons)
            player.mb_kbps, player.etp_kbps = decision.bitrate_kbps, decision.throughput_kbps[1]
        elif kind == AUDIO_TYPE:
            player.audio_kbps = cmcd.number("br", kind) or player.audio_kbps
        cap_kbps = player.mb_kbps
        if cap_kbps is not None and kind != "av":
            cap_kbps += player.audio_kbps
        told = {
            DYNAMIC: dynamic(etp_kbps=player.etp_kbps, mb_kbps=cap_kbps, rtt_ms=_rtt_ms(query.get("rtt_us", ""))),
            "Cache-Control": "no-store",
        }
        if version is not None:
            told["Playhead-Versions"] = f"bitrate={version}"
        if context.degraded:
            told["Playhead-Degraded"] = ", ".join(context.degraded)
        return Response(headers=told)

    async def bitrate(self, request: Request) -> Response:
        """Decide for one session, a list of sessions, or `{"sessions": [...]}`.

        Always a decision: what a session says wrong or not at all is made up for and named in `degraded`; without a
        model, or without its answer in time, a simple rule decides.
        """
        context = context_of(request)
        body = await read_bytes(request, MAX_BODY_BYTES)
        if len(body) > THREAD_BYTES:
            sessions, single = await asyncio.to_thread(read_sessions, body)
        else:
            sessions, single = read_sessions(body)
        decisions, version = await self._decider.decide(sessions or (), context.left_ms() / 1000 * _DEADLINE_SHARE)
        head: dict[str, Any] = {
            "request_id": context.request_id,
            "versions": {} if version is None else {"bitrate": version},
        }
        if single:
            reasons = decisions[0].session.reasons
            if reasons:
                context.degraded = tuple(reasons)
            return Response(orjson.dumps(head | decisions[0].members()), media_type="application/json")
        _tell(context, decisions, readable=sessions is not None)
        head["degraded"] = context.degraded
        content = (
            await asyncio.to_thread(rendered, head, decisions) if len(decisions) > INLINE else rendered(head, decisions)
        )
        return Response(content, media_type="application/json")


def _rungs(text: str) -> list[float]:
    """Bitrates of a list, without what is none."""
    rungs = []
    for part in text[:_MAX_RUNGS_LENGTH].split(","):
        try:
            rungs.append(float(part))
        except ValueError:
            continue
    return rungs


def _rtt_ms(text: str) -> float | None:
    """Microseconds in milliseconds; None where they are none, or absurd."""
    return int(text) / 1000 if re.fullmatch("[0-9]{1,8}", text) else None


def _reference(model: type) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _list(model: type) -> dict[str, Any]:
    return {"type": "array", "items": _reference(model), "maxItems": MAX_SESSIONS}


def _tell(context: Context, decisions: Sequence[Decision], *, readable: bool) -> None:
    """Give the answer all reasons of its decisions."""
    reasons = {} if readable else {BAD_SESSIONS: None}
    for decision in decisions:
        if decision.session.reasons:
            reasons |= dict.fromkeys(decision.session.reasons)
    context.degraded = tuple(reasons)


def rendered(head: dict[str, Any], decisions: Sequence[Decision]) -> bytes:
    """The answer to a list, as JSON: the members of `head`, then the decisions."""
    return orjson.dumps({**head, "decisions": [decision.members() for decision in decisions]})


def read_sessions(body: bytes) -> tuple[list[Session] | None, bool]:
    """The sessions of a body, None where `sessions` is no list; and whether it is a single one.

    Raises:
        Malformed: no JSON.
        InvalidInput: neither an object nor a list; or too many sessions, of which none is decided then.
    """
    document = parse(body)
    if type(document) is dict:
        if "sessions" not in document:
            return [read_session(document)], True
        document = document["sessions"]
        if type(document) is not list:
            return None, False
    if type(document) is not list:
        raise InvalidInput(
            field="body",
            got=Words(shortened(document)),
            expected="a session, a list of sessions, or an object with `sessions`",
            next_step="See the examples at /docs.",
        )
    if len(document) > MAX_SESSIONS:
        raise InvalidInput(
            field="sessions",
            got=Words(f"{len(document)} sessions"),
            expected=f"at most {MAX_SESSIONS}",
            next_step="Split them into several requests; none of these was decided.",
        )
    return [read_session(session) for session in document], False


def parse(body: bytes) -> object:
    """Decoded JSON, with the NaN and Infinity that many encoders write though JSON has none.

    Raises:
        Malformed: no JSON, or not UTF-8.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body.decode(), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise Malformed(
            field="body",
            got=Words(str(error)[:100] or "nothing"),
            expected="JSON in UTF-8",
            next_step="Send one session as a JSON object, or a list of them.",
        ) from error


def _integer(text: str) -> float:
    return int(text) if len(text) < _MAX_DIGITS else float(text)
