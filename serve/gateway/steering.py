"""Routes for players that ask where to fetch from: content steering for DASH (ETSI TS 103 998) and HLS (RFC 8216bis).

Both ask for the same document. A player asks in the middle of a title, so nothing that it says is refused: what cannot
be used is named in a header, and where nothing is known of outages the default split or what was last known is the
answer. What has to be remembered of a viewing travels in RELOAD-URI.
"""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlencode

import orjson
from fastapi import FastAPI, Request, Response

from serve.clock import now_ms
from serve.errors import NotFound
from serve.gateway.crossorigin import ANY_ORIGIN, preflight
from serve.gateway.entrance import Handler, context_of
from serve.gateway.errors import Words, problem_response, responses
from serve.gateway.requests import OpenRoute, read_leniently
from serve.steering.clients import Client, SeenClients
from serve.steering.pathways import Clone, Pathways
from serve.steering.steerer import Steerer, Steering
from serve.telemetry.reports import DIMENSIONS
from serve.watchtower.outages import Outage

VERSION: Final = 1
"""Of the steering manifest."""

OUTAGES_UNKNOWN: Final = "outages_unknown"
OUTAGES_STALE: Final = "outages_stale"

Format = Literal["dash", "hls"]
MEDIA_TYPES: Final[Mapping[Format, str]] = {
    "dash": "application/json",
    "hls": "application/vnd.apple.steering-list",
}

_PATHWAY: Final[Mapping[Format, str]] = {"dash": "_DASH_pathway", "hls": "_HLS_pathway"}
_THROUGHPUT: Final[Mapping[Format, str]] = {"dash": "_DASH_throughput", "hls": "_HLS_throughput"}
_CONTEXT: Final[tuple[str, ...]] = tuple(name for name in DIMENSIONS if name != "cdn")
_SANE: Final = re.compile(r"[\x20-\x7e]{1,128}")
_THROUGHPUTS: Final = re.compile(r"[0-9]{0,12}(,[0-9]{0,12}){0,31}")
"""Bits per second; DASH has one for each pathway, empty where there is none."""

_DEFAULT_PATHWAY: Final = "."
"""What HLS calls variants that name no pathway."""

_MOST_CARRIED: Final = 1024
"""Characters of other parameters that RELOAD-URI repeats."""


class OutageSource(Protocol):
    """Where outages come from. Answers at once, from memory."""

    def current(self) -> tuple[Sequence[Outage], int]:
        """The outages that are known (closed ones may be among them), and when that was known, UTC milliseconds.

        0 says that nothing was ever known.
        """
        ...


class OutagesInMemory:
    """Outages as they were put here last; at first nothing is known."""

    def __init__(self) -> None:
        self._known: tuple[tuple[Outage, ...], int] = ((), 0)

    def put(self, outages: Sequence[Outage], as_of_ms: int) -> None:
        """All that are known now."""
        self._known = (tuple(outages), as_of_ms)

    def current(self) -> tuple[Sequence[Outage], int]:
        """As OutageSource has it."""
        return self._known


class SteeringStage:
    """The steerer, what it is told of outages, and whom it has seen.

    Who looks, and whose plan the steerer goes by, is the business of serve.steering.sharing.

    Args:
        config: what may be steered to.
        outages: where outages come from.
        now_ms: the clock, UTC milliseconds.

    Attributes:
        config: the same.
        steerer: what answers; another replica's plan comes as another steerer.
    """

    def __init__(
        self,
        config: Pathways,
        outages: OutageSource,
        now_ms: Callable[[], int] = now_ms,
    ) -> None:
        self.config = config
        self.steerer = Steerer(config)
        self.ids: Final = frozenset(pathway.id for pathway in config.pathways)
        self.clones: Final = [_clone(pathway.id, pathway.clone) for pathway in config.pathways if pathway.clone]
        self._outages = outages
        self._now_ms = now_ms
        self._seen = SeenClients()
        self._known = False

    def steer(self, client: Client) -> tuple[Steering, str | None]:
        """What a client should be told, and why it is less than it could be."""
        now_ms = self._now_ms()
        self._seen.note(client, now_ms)
        told = self.steerer.steer(client, now_ms)
        if not told.stale:
            return told, None
        return told, OUTAGES_STALE if self._known or self.steerer.plan.as_of_ms else OUTAGES_UNKNOWN

    def look(self) -> None:
        """Take what is known of outages now into account, and take the steps that are due."""
        now_ms = self._now_ms()
        try:
            outages, as_of_ms = self._outages.current()
        except Exception:  # noqa: BLE001 - whatever became of the source, players are answered
            return
        self._known = as_of_ms > 0
        self._seen.forget(now_ms)
        self.steerer.update(
            outages, as_of_ms=as_of_ms, now_ms=now_ms, share_of=self._seen.share, load=self._seen.load()
        )


class SteeringRoutes:
    """The routes.

    Args:
        stage: what decides; None: steering is not configured.
    """

    def __init__(self, stage: SteeringStage | None) -> None:
        self._stage = stage

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        routes: dict[Format, Handler] = {"dash": self.dash, "hls": self.hls}
        for kind, endpoint in routes.items():
            app.router.add_api_route(
                f"/v1/steering/{kind}",
                endpoint,
                response_class=Response,
                tags=["streaming"],
                summary=f"Which delivery network a player should use: the {kind.upper()} steering manifest",
                responses=responses(401, 404, 422) | {200: _answer_schema(kind)},
                openapi_extra={"parameters": _parameters(kind)},
                route_class_override=OpenRoute,
            )
            app.router.add_api_route(
                f"/v1/steering/{kind}",
                preflight,
                methods=["OPTIONS"],
                include_in_schema=False,
                route_class_override=OpenRoute,
            )

    async def dash(self, request: Request) -> Response:
        """Answer a DASH player (ETSI TS 103 998), whose manifest has `ContentSteering`."""
        return self._answer(request, "dash")

    async def hls(self, request: Request) -> Response:
        """Answer an HLS player (draft-pantos-hls-rfc8216bis), whose playlist has `EXT-X-CONTENT-STEERING`."""
        return self._answer(request, "hls")

    def _answer(self, request: Request, kind: Format) -> Response:
        context = context_of(request)
        if self._stage is None:
            missing = NotFound(
                field="steering",
                got=Words("no configuration"),
                expected="a file of pathways, named by `steering` under `args` of the Serve configuration",
                next_step="Write one as docs/steering.md shows, name it, and start Playhead again.",
            )
            return problem_response(missing, context.request_id, ANY_ORIGIN)
        client, carried, wrong = _read(read_leniently(request), kind, self._stage.ids)
        told, reason = self._stage.steer(client)
        reload = {**carried, "sid": client.session, "home": told.home}
        manifest: dict[str, Any] = {
            "VERSION": VERSION,
            "TTL": told.ttl_s,
            "RELOAD-URI": "?" + urlencode(reload),
            "PATHWAY-PRIORITY": told.priority,
        }
        if self._stage.clones:
            manifest["PATHWAY-CLONES"] = self._stage.clones
        headers = {
            **ANY_ORIGIN,
            "Access-Control-Expose-Headers": "Playhead-Degraded",
            "Cache-Control": "no-store",
            "Timing-Allow-Origin": "*",
        }
        context.degraded = tuple(f"bad_field:{name}" for name in wrong) + ((reason,) if reason else ())
        if context.degraded:
            headers["Playhead-Degraded"] = ", ".join(context.degraded)
        return Response(orjson.dumps(manifest), headers=headers, media_type=MEDIA_TYPES[kind])


def _read(query: dict[str, str] | None, kind: Format, ids: frozenset[str]) -> tuple[Client, dict[str, str], list[str]]:
    """Who asks, the parameters that later requests should repeat, and the names of those that cannot be used."""
    wrong = []
    if query is None:
        query, wrong = {}, ["query"]
    told = {name: query.pop(name, None) for name in ("home", "cdn", _PATHWAY[kind], _THROUGHPUT[kind])}
    throughput = told[_THROUGHPUT[kind]]
    if throughput is not None and not _THROUGHPUTS.fullmatch(throughput.strip('"')):
        wrong.append(_THROUGHPUT[kind])
    on: dict[str, str | None] = {}
    for name in ("home", "cdn", _PATHWAY[kind]):
        value = told[name]
        on[name] = None
        if value is not None and value.strip('"') not in {"", _DEFAULT_PATHWAY}:
            known = [one for one in value.strip('"')[:_MOST_CARRIED].split(",") if one in ids]
            on[name] = known[-1] if known else None  # DASH names all that were used since it asked last
            if not known:
                wrong.append(name)
    carried: dict[str, str] = {}
    room = _MOST_CARRIED
    for name, value in query.items():
        if name in {"sid", *_CONTEXT}:
            if _SANE.fullmatch(value):
                carried[name] = value
            else:
                wrong.append(name)
        elif not name.startswith(("_DASH_", "_HLS_")) and len(name) + len(value) <= room:
            carried[name] = value
            room -= len(name) + len(value)
    context = {name: carried[name] for name in _CONTEXT if name in carried}
    client = Client(
        session=carried.get("sid") or secrets.token_hex(8),
        context={"protocol": kind, **context},
        home=on["home"],
        current=on[_PATHWAY[kind]] or on["cdn"],
    )
    return client, carried, wrong


def _clone(name: str, clone: Clone) -> dict[str, Any]:
    replacement: dict[str, Any] = {"HOST": clone.host}
    if clone.params:
        replacement["PARAMS"] = clone.params
    return {"BASE-ID": clone.base_id, "ID": name, "URI-REPLACEMENT": replacement}


def _parameters(kind: Format) -> list[dict[str, Any]]:
    about: dict[str, str] = {
        "sid": "Names the viewing; one is made where there is none.",
        **dict.fromkeys(_CONTEXT, "Where the player is and what it plays, as far as that is known."),
        "home": "The pathway of this viewing, as RELOAD-URI repeats it.",
        "cdn": f"The pathway that the player is on, where it does not say so in `{_PATHWAY[kind]}`.",
        _PATHWAY[kind]: "The pathway that the player is on; players add it.",
        _THROUGHPUT[kind]: "What the player measures there, bit/s; players add it.",
    }
    return [
        {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in about.items()
    ]


def _answer_schema(kind: Format) -> dict[str, Any]:
    properties = {
        "VERSION": {"const": VERSION},
        "TTL": {"type": "integer", "minimum": 1, "maximum": 300, "description": "Ask again after so many seconds."},
        "RELOAD-URI": {"type": "string", "description": "Where, relative to this address."},
        "PATHWAY-PRIORITY": {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
        "PATHWAY-CLONES": {
            "type": "array",
            "items": {"type": "object", "required": ["BASE-ID", "ID", "URI-REPLACEMENT"]},
        },
    }
    schema = {"type": "object", "required": [*list(properties)[:-1]], "properties": properties}
    return {
        "description": "The steering manifest.",
        "content": {MEDIA_TYPES[kind]: {"schema": schema}},
        "headers": {
            "Playhead-Degraded": {
                "schema": {"type": "string"},
                "description": "What of the request could not be used, and what is not known.",
            }
        },
    }
