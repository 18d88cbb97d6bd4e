"""What is measured online, as the gateway tells it: routes, gauges, and what is not there."""

import math
from pathlib import Path

import orjson
import pytest
import redis

from features.settings import Settings
from serve.arguments import Arguments
from serve.clock import now_ms
from serve.gateway.online import Drift, Online
from serve.online.board import drift_key, online_key
from serve.online.drift import DriftWatch
from serve.online.meter import OnlineMeter
from serve.rollout.exposures import FIELD, PLAYED, SHOWN, STREAM, read_exposure
from tests.serve.gateway.conftest import OpenClient, until_shown
from tests.waiting import eventually

V = "a" * 12
KINDS = ("play", "finish", "thumbs_up", "thumbs_down")


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
        await until_shown(client, 'playhead_online{figure="play_rate",model="recommend",role="champion"} 0.5')
        text = (await client.get("/metrics")).text
        assert 'playhead_online{figure="play_rate",model="recommend",role="challenger"} NaN' in text
        assert 'playhead_drifting{model="recommend",signal="genre"} 0.0' in text


async def test_a_real_page_and_its_play_are_measured(
    arguments: Arguments, open_client: OpenClient, store: redis.Redis, settings: Settings
) -> None:
    async with open_client(arguments) as client:
        events = [{"event_id": "e0", "profile_id": "p1", "title_id": "t9", "kind": "play", "ts": now_ms() - 7_200_000}]
        assert (await client.post("/v1/events", json={"events": events})).status_code == 200
        page = (await client.get("/v1/home", params={"profile_id": "p1", "rows": 3, "items": 5})).json()
        row = next(row for row in page["rows"] if row["id"] == "top_picks")
        asked = {"profile_id": "p1", "title_id": row["items"][2]["title_id"], "request_id": page["request_id"]}
        told = [{**asked, "event_id": f"e{kind}", "kind": kind, "rank": 2, "ts": now_ms() - 5} for kind in KINDS]
        for _ in range(2):  # a player that got no answer sends them again
            assert (await client.post("/v1/events", json={"events": told})).status_code == 200
        await eventually(lambda: store.xlen(STREAM) >= 1 + 2 * len(KINDS))
    meter = OnlineMeter(settings.models)
    meter.take(store, [(7, read_exposure(fields[FIELD])) for _, fields in store.xrange(STREAM)], lambda _: None)
    meter.close(7, {})
    figures = orjson.loads(meter.documents(7, {})[online_key("recommend")])["versions"][page["versions"]["model"]]
    assert [figures[name] for name in ("pages", "plays", "finished", "thumbs_up", "thumbs_down")] == [1, 1, 1, 1, 1]
    first = [item["title_id"] for one in page["rows"] if one["id"] != "continue_watching" for item in one["items"]][:10]
    gain = 1 / math.log2(first.index(asked["title_id"]) + 2)
    assert figures["ndcg@10"]["value"] == pytest.approx(gain)
    assert figures["calibration"]["n"] == len(first)
    (_, _, remembered) = meter.commands()[0][:3]
    assert (orjson.loads(remembered)["visits"], orjson.loads(remembered)["gap_s"] // 60) == (1, 120)


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
