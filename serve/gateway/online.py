"""What is measured of each model's answers all the time, as the Watchtower wrote it last: routes, and gauges."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from features.layout import command
from features.settings import Settings
from serve.artifacts import ModelName
from serve.errors import Unavailable
from serve.gateway.entrance import context_of
from serve.gateway.errors import Words, responses
from serve.gateway.operations import ModelOperations
from serve.gateway.stages import Stages
from serve.logs import get
from serve.metrics import Metrics
from serve.online.board import DRIFTING, PLAY_RATE, QUALITY, drift_key, load_drift, load_online, online_key
from serve.online.reference import FEATURES

ONLINE_MISSING: Final = "online_missing"
"""In `degraded`: nothing was measured for ten minutes: no pages, or the Watchtower does not run."""

LOOK_S: Final = 5.0
GAUGED: Final = ("play_rate", "finish_rate", "thumbs_up_rate", "thumbs_down_rate", "hr@10", "ndcg@10", "degraded_share")
"""Figures with intervals that are gauges, too; beside `coverage`, `novelty_bits`, `ranker_p99_s` and `calibration`."""
ROLES: Final = ("champion", "challenger")
RANKS: Final = 5


class Window(BaseModel):
    """Figures over a window.

    Attributes:
        window_s: its length, seconds.
        versions: version -> figures: see serve.online.tallies.VersionTally.measure; and its `role`.
    """

    window_s: int
    versions: dict[str, dict[str, Any]]


class Online(BaseModel):
    """Answer of GET /v1/models/{name}/online.

    Attributes:
        request_id: names this answer.
        model: the model.
        ts: end of the windows, UTC milliseconds; null where nothing is known.
        windows: shortest first.
        degraded: why there is nothing.
    """

    request_id: str
    model: str
    ts: int | None
    windows: tuple[Window, ...]
    degraded: tuple[str, ...]


class Signal(BaseModel):
    """One thing that may drift.

    Attributes:
        name: a feature of plays, `play_rate` or `ndcg@10`.
        kind: `psi`: shares against those of the training data; `adwin`: a mean against its own past.
        value: the stability index, or the mean; null while there is too little to tell.
        bound: from which it is a drift; of a mean, what it was before it fell.
        state: `waiting` for plays, `steady`, `warning` or `drifting`.
        since_ts: since when it drifts, UTC milliseconds; null while it does not.
        n: plays, or numbers, that it was judged by.
        from_start: it was a drift from the first judgement on: data and traffic never were alike.
    """

    name: str
    kind: Literal["psi", "adwin"]
    value: float | None
    bound: float | None
    state: Literal["waiting", "steady", "warning", "drifting"]
    since_ts: int | None
    n: int
    from_start: bool


class Drift(BaseModel):
    """Answer of GET /v1/models/{name}/drift.

    Attributes:
        request_id: names this answer.
        model: the model.
        ts: up to when it was judged, UTC milliseconds; null where nothing is known.
        version: the champion, whose training data is the reference; null where nothing is known.
        reference: whether the version has one; it is older than references are, where not.
        status: `drifting` while any signal is; `unknown` where nothing is known.
        since_ts: since when, UTC milliseconds; null while it is not.
        signals: each signal.
        degraded: why there is nothing.
    """

    request_id: str
    model: str
    ts: int | None
    version: str | None
    reference: bool
    status: Literal["steady", "drifting", "unknown"]
    since_ts: int | None
    signals: tuple[Signal, ...]
    degraded: tuple[str, ...]


class OnlineRoutes(ModelOperations):
    """The routes, and the gauges of one model.

    Args:
        settings: where the store is.
        stages: which models there are.
        metrics: where gauges are.
        model: whose figures are gauges.
    """

    def __init__(self, settings: Settings, stages: Stages, metrics: Metrics, model: str) -> None:
        super().__init__(settings, stages)
        self._metrics = metrics
        self._model = model

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application whose route class is ModelRoute."""
        app.add_api_route(
            "/v1/models/{name}/online", self.online, response_model=Online, tags=["operations"],
            summary="What each version's answers led to", responses=responses(401, 404, 422, 503),
        )  # fmt: skip
        app.add_api_route(
            "/v1/models/{name}/drift", self.drift, response_model=Drift, tags=["operations"],
            summary="Whether live traffic drifts from what the champion learned",
            responses=responses(401, 404, 422, 503),
        )  # fmt: skip

    async def online(self, request: Request, name: ModelName) -> Response:
        """Clicks, finishes, thumbs, coverage, calibration and more, by version, over sliding windows."""
        self.check_known(name)
        (dumped,) = await self.call(command("GET", online_key(name)))
        found = {} if dumped is None else _loaded(load_online, dumped)
        return _answer(Online, request, name, {
            "ts": found.get("ts"), "windows": found.get("windows", []), "degraded": [] if found else [ONLINE_MISSING],
        })  # fmt: skip

    async def drift(self, request: Request, name: ModelName) -> Response:
        """Features of plays against the training data of the champion, and means that fall."""
        self.check_known(name)
        (dumped,) = await self.call(command("GET", drift_key(name)))
        found = {} if dumped is None else _loaded(load_drift, dumped)
        told = {field: found.get(field) for field in ("ts", "version", "since_ts")}
        return _answer(Drift, request, name, {
            **told, "reference": bool(found.get("reference")), "status": found.get("status", "unknown"),
            "signals": found.get("signals", []), "degraded": [] if found else [ONLINE_MISSING],
        })  # fmt: skip

    async def look(self) -> None:
        """Show what is known now as gauges; call it each LOOK_S."""
        try:
            commands = command("GET", online_key(self._model)) + command("GET", drift_key(self._model))
            figures, drift = await self.call(commands, count=2)
            versions = {} if figures is None else load_online(figures)["versions"]
            signals = {} if drift is None else {one["name"]: one for one in load_drift(drift)["signals"]}
            for role in ROLES:
                found = [one for one in versions.values() if one.get("role") == role]
                for name, value in _gauges(found[0] if found else {}).items():
                    self._metrics.online(self._model, role, name, value)
            for name in (*FEATURES, PLAY_RATE, QUALITY):
                one = signals.get(name, {})
                self._metrics.drift(self._model, name, one.get("value"), drifting=one.get("state") == DRIFTING)
        except Unavailable as error:
            self._metrics.stage_failure("online", type(error).__name__)
        except (KeyError, TypeError, ValueError):
            get("online").exception("failed", extra={"work": "reading what is measured online"})


def _loaded(load: Any, dumped: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = load(dumped)
    except ValueError as error:
        raise Unavailable(
            field="online", got=Words(str(error)[:200]), expected="a record of this version of Playhead",
            next_step="Wait until the Watchtower of this version has written one, some 10 s.",
        ) from error  # fmt: skip
    return found


def _answer(kind: type[BaseModel], request: Request, name: str, found: Mapping[str, Any]) -> Response:
    body = {"request_id": context_of(request).request_id, "model": name, **found}
    return Response(orjson.dumps({field: body[field] for field in kind.model_fields}), media_type="application/json")


def _gauges(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Name -> value; None: there is none now."""
    calibration = figures.get("calibration") or {}
    ranks = {one["rank"]: one["value"] for one in figures.get("ctr_by_rank", ())}
    return {
        "pages": figures.get("pages"),
        **{name: (figures.get(name) or {}).get("value") for name in GAUGED},
        **{name: figures.get(name) for name in ("coverage", "novelty_bits", "ranker_p99_s")},
        "calibration_ratio": calibration.get("ratio"),
        "calibration_error": calibration.get("error"),
        **{f"ctr_rank_{rank}": ranks.get(rank) for rank in range(RANKS)},
    }
