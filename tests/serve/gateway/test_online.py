"""What is measured online, as the gateway tells it: routes, gauges, and what is not there."""

import asyncio
from pathlib import Path

import httpx
import orjson
import redis

from features.settings import Settings
from serve.arguments import Arguments
from serve.gateway.online import Drift, Online
from serve.online.board import drift_key, online_key
from serve.online.drift import DriftWatch
from serve.online.meter import OnlineMeter
from serve.rollout.exposures import PLAYED, SHOWN, read_exposure
from tests.serve.gateway.conftest import OpenClient

V = "a" * 12


def measured(store: redis.Redis, folder: Path) -> None:
    """Write what a meter says of two pages and a play."""
    meter, at = OnlineMeter(folder), 179_000_000
    shown = {"kind": SHOWN, "ts": 1, "profile_id": "p", "model": "recommend", "version": V, "rows": [["r", ["t1"]]]}
    told = [{**shown, "request_id": name} for name in ("r1", "r2")]
    told.append({"kind": PLAYED, "ts": 2, "profile_id": "p", "request_id": "r1", "title_id": "t1", "rank": 0})
    entries = [(at, read_exposure(orjson.dumps(one))) for one in told]
    meter.take(store, entries, lambda _: None)
    meter.close(at, {"recommend": V})
    for key, document in meter.documents(at, {"recommend": {V: "champion"}}).items():
        store.set(key, document)


async def test_figures_and_drift_are_told(
    arguments: Arguments, open_client: OpenClient, store: redis.Redis, settings: Settings
) -> None:
    measured(store, settings.models)
    async with open_client(arguments) as client:
        answer = await client.get("/v1/models/recommend/online")
        online = Online.model_validate(answer.json())
        assert [window.window_s for window in online.windows] == [300, 3_600]
        figures = online.windows[0].versions[V]
        assert (figures["pages"], figures["play_rate"]["value"], figures["role"]) == (2, 0.5, "champion")
        drift = Drift.model_validate((await client.get("/v1/models/recommend/drift")).json())
        assert (drift.version, drift.status, drift.reference) == (V, "steady", False)
        assert {one.name: one.state for one in drift.signals} == {"play_rate": "waiting", "ndcg@10": "waiting"}
        assert (await client.get("/v1/models/nothing/online")).status_code == 404
        await gauged(client, 'playhead_online{figure="play_rate",model="recommend",role="champion"} 0.5')
        text = (await client.get("/metrics")).text
        assert 'playhead_online{figure="play_rate",model="recommend",role="challenger"} NaN' in text
        assert 'playhead_drifting{model="recommend",signal="genre"} 0.0' in text


async def gauged(client: httpx.AsyncClient, line: str) -> None:
    async with asyncio.timeout(15):
        while line not in (await client.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_where_nothing_is_known_or_it_is_something_else_that_is_said(
    arguments: Arguments, open_client: OpenClient, store: redis.Redis
) -> None:
    async with open_client(arguments) as client:
        online = Online.model_validate((await client.get("/v1/models/recommend/online")).json())
        assert (online.ts, online.windows, online.degraded) == (None, (), ("online_missing",))
        drift = Drift.model_validate((await client.get("/v1/models/recommend/drift")).json())
        assert (drift.status, drift.version) == ("unknown", None)
        store.set(online_key("recommend"), b"[]")
        store.set(drift_key("recommend"), orjson.dumps({"ts": "now"}))
        for route in ("online", "drift"):
            answer = await client.get(f"/v1/models/recommend/{route}")
            assert answer.status_code == 503
            assert "no record of what is measured online" in answer.text


def test_a_watch_tells_what_the_route_promises() -> None:
    told = DriftWatch(V, None).told(5)
    Drift.model_validate({"request_id": "r", "model": "recommend", "degraded": [], **told})
