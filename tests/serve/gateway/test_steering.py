"""The steering routes, in one process: manifests as players read them, whatever players say and whatever is known."""

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urljoin

import httpx
import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serve.arguments import Arguments
from serve.errors import InvalidInput
from serve.gateway.steering import OUTAGES_STALE, OUTAGES_UNKNOWN, OutagesInMemory, OutageSource, SteeringStage
from serve.steering.clients import Client
from serve.steering.pathways import Pathway, Pathways
from serve.steering.sharing import PLAN
from serve.watchtower.outages import Outage
from tests.serve.gateway.conftest import open_gateway
from tests.serve.steering.audience import START_MS, outage
from tests.waiting import HUNG_S

PATHWAYS = {
    "ttl_s": 60,
    "outage_ttl_s": 10,
    "pathways": [
        {"id": "alpha"},
        {"id": "beta"},
        {"id": "gamma", "weight": 0, "clone": {"base_id": "alpha", "host": "gamma.example", "params": {"via": "p"}}},
    ],
}
OpenSteering = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


class Broken:
    """A source that fails."""

    def current(self) -> tuple[Sequence[Outage], int]:
        raise ConnectionError


@pytest.fixture
def open_steering(arguments: Arguments) -> OpenSteering:
    """Opens a gateway that steers by a source of outages."""

    @asynccontextmanager
    async def opened(source: OutageSource, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
        assert arguments.home is not None
        path = arguments.home / "steering.json"
        path.write_text(json.dumps(PATHWAYS | changes))
        entrance = await open_gateway(arguments.model_copy(update={"steering": path}), outages=source)
        transport = httpx.ASGITransport(entrance, client=("127.0.0.1", 5))
        async with (
            entrance.app.router.lifespan_context(entrance.app),
            httpx.AsyncClient(transport=transport, base_url="http://playhead") as client,
        ):
            yield client

    return opened


def known(*outages: Outage) -> OutagesInMemory:
    source = OutagesInMemory()
    source.put(outages, time.time_ns() // 1_000_000)
    return source


@pytest.mark.parametrize(
    ("kind", "media_type"), [("dash", "application/json"), ("hls", "application/vnd.apple.steering-list")]
)
async def test_a_manifest_is_as_the_standards_have_it(open_steering: OpenSteering, kind: str, media_type: str) -> None:
    async with open_steering(known()) as client:
        url = f"http://playhead/v1/steering/{kind}?sid=s1&region=eu&asn=64500&edge=t0ken"
        answer = await client.get(url, headers={"Origin": "https://player.example"})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == media_type
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["cache-control"] == "no-store"
        assert "playhead-degraded" not in answer.headers
        manifest = answer.json()
        assert manifest["VERSION"] == 1
        assert manifest["TTL"] == 60
        assert sorted(manifest["PATHWAY-PRIORITY"]) == ["alpha", "beta", "gamma"]
        assert manifest["PATHWAY-CLONES"] == [
            {"BASE-ID": "alpha", "ID": "gamma", "URI-REPLACEMENT": {"HOST": "gamma.example", "PARAMS": {"via": "p"}}}
        ]
        again = urljoin(url, manifest["RELOAD-URI"])
        assert again.startswith(f"http://playhead/v1/steering/{kind}?")
        home = manifest["PATHWAY-PRIORITY"][0]
        told = {name: [value] for name, value in {"sid": "s1", "region": "eu", "asn": "64500", "edge": "t0ken"}.items()}
        assert parse_qs(again.partition("?")[2]) == told | {"home": [home]}
        assert (await client.get(again)).json() == manifest


async def test_a_player_without_a_session_id_is_given_one_that_it_keeps(open_steering: OpenSteering) -> None:
    async with open_steering(known()) as client:
        firsts = set()
        for _ in range(20):
            manifest = (await client.get("/v1/steering/dash")).json()
            assert len(parse_qs(manifest["RELOAD-URI"][1:])["sid"][0]) == 16
            again = (await client.get(urljoin("/v1/steering/dash", manifest["RELOAD-URI"]))).json()
            assert again == manifest
            firsts.add(manifest["PATHWAY-PRIORITY"][0])
        assert firsts == {"alpha", "beta"}


@pytest.mark.parametrize("kind", ["dash", "hls"])
async def test_an_outage_moves_players_of_its_pathway_within_two_steps_and_has_them_ask_often(
    open_steering: OpenSteering, kind: str
) -> None:
    source = known(outage(cdn="alpha", protocol=kind))
    async with open_steering(source, damping={"step_s": 0.1}) as client:
        query = {"home": "alpha", f"_{kind.upper()}_pathway": '"alpha"', f"_{kind.upper()}_throughput": "5140000"}
        deadline = time.monotonic() + HUNG_S
        sessions = {f"s{number}" for number in range(20)}
        while sessions:
            assert time.monotonic() < deadline
            for session in list(sessions):
                manifest = (await client.get(f"/v1/steering/{kind}", params=query | {"sid": session})).json()
                assert manifest["TTL"] == 10
                if manifest["PATHWAY-PRIORITY"][0] != "alpha":
                    assert manifest["PATHWAY-PRIORITY"][-1] == "alpha"
                    sessions.remove(session)
        other = "hls" if kind == "dash" else "dash"
        manifest = (await client.get(f"/v1/steering/{other}", params={"sid": "s1", "home": "alpha"})).json()
        assert manifest["PATHWAY-PRIORITY"][0] == "alpha"
        assert manifest["TTL"] == 60


@pytest.mark.parametrize(
    ("source", "reason"),
    [(OutagesInMemory(), OUTAGES_UNKNOWN), (Broken(), OUTAGES_UNKNOWN)],
    ids=["never told", "fails"],
)
async def test_with_nothing_known_the_default_split_is_the_answer(
    open_steering: OpenSteering, source: OutageSource, reason: str, valkey_url: str
) -> None:
    async with open_steering(known()) as client:
        usual = (await client.get("/v1/steering/dash?sid=s1")).json()
    with redis.Redis.from_url(valkey_url) as store:
        assert store.delete(PLAN)  # the gateway after it would know by it what this one knew
    async with open_steering(source) as client:
        answer = await client.get("/v1/steering/dash?sid=s1")
    assert (answer.status_code, answer.json()) == (200, usual)
    assert answer.headers["playhead-degraded"] == reason


def test_with_old_news_the_last_priorities_are_the_answer_with_the_default_ttl() -> None:
    source, now = OutagesInMemory(), [START_MS]
    stage = SteeringStage(Pathways(pathways=(Pathway(id="alpha"), Pathway(id="beta"))), source, lambda: now[0])
    client = Client(session="s1", context={}, home="alpha", current="alpha")
    for _ in range(4):
        now[0] += 10_000
        source.put([outage(cdn="alpha")], now[0])
        stage.look()
        told, reason = stage.steer(client)
    assert (told.priority, told.ttl_s, reason) == (("beta", "alpha"), 10, None)
    now[0] += 61_000
    stage.look()
    told, reason = stage.steer(client)
    assert (told.priority, told.ttl_s, reason) == (("beta", "alpha"), 60, OUTAGES_STALE)
    source.current = Broken().current  # type: ignore[method-assign]
    now[0] += 10_000
    stage.look()
    told, reason = stage.steer(client)
    assert (told.priority, told.ttl_s, reason) == (("beta", "alpha"), 60, OUTAGES_STALE)


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("_DASH_pathway=%22alpha,beta%22&_DASH_throughput=,900000", []),
        ("_DASH_pathway=%22unknown,beta%22", []),
        ("_DASH_pathway=.&_DASH_throughput=", []),
        ("_DASH_pathway=unknown&_DASH_throughput=fast", ["_DASH_throughput", "_DASH_pathway"]),
        ("home=elsewhere&cdn=unknown", ["home", "cdn"]),
        (f"sid={'x' * 200}&region=%00&asn=%E2%82%AC", ["sid", "region", "asn"]),
        ("&".join(["a=1"] * 100), ["query"]),
        ("_HLS_pathway=1&other=2&sid=s1&sid=s2", []),
        ("%FF%FE=%FF&=&&==", []),
    ],
)
async def test_what_a_player_says_wrong_is_named_and_never_refused(
    open_steering: OpenSteering, query: str, wrong: list[str]
) -> None:
    async with open_steering(known()) as client:
        answer = await client.get(f"/v1/steering/dash?{query}")
        assert answer.status_code == 200
        assert set(answer.json()["PATHWAY-PRIORITY"]) == {"alpha", "beta", "gamma"}
        named = answer.headers.get("playhead-degraded", "")
        assert named == ", ".join(f"bad_field:{name}" for name in wrong)


@pytest.mark.hypothesis  # one is inside
async def test_whatever_the_query_a_player_is_answered_and_reload_uri_does_not_grow(
    open_steering: OpenSteering,
) -> None:
    async with open_steering(known()) as client:

        @hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(names=st.lists(st.sampled_from(["sid", "home", "region", "cdn", "_HLS_pathway", "x"])), data=st.data())
        def collect(names: list[str], data: Any) -> None:
            pairs = [(name, data.draw(st.text(max_size=300))) for name in names]
            queries.append(str(httpx.QueryParams([(n, v.encode("utf-8", "replace").decode()) for n, v in pairs])))

        queries: list[str] = []
        collect()
        for query in queries:
            answer = await client.get(f"/v1/steering/hls?{query}")
            assert answer.status_code == 200
            reload = answer.json()["RELOAD-URI"]
            again = await client.get(urljoin("http://playhead/v1/steering/hls", reload))
            assert again.json()["RELOAD-URI"] == reload
            assert again.json()["PATHWAY-PRIORITY"] == answer.json()["PATHWAY-PRIORITY"]
            assert "playhead-degraded" not in again.headers


async def test_a_restarted_gateway_answers_at_once_by_what_the_one_before_it_decided(
    open_steering: OpenSteering,
) -> None:
    query = {"home": "alpha", "cdn": "alpha"}
    async with open_steering(known(outage(cdn="alpha")), damping={"step_share": 1}) as client:
        moved = (await client.get("/v1/steering/dash", params=query | {"sid": "s1"})).json()
        assert moved["PATHWAY-PRIORITY"][0] != "alpha"
    async with open_steering(OutagesInMemory(), damping={"step_share": 1}) as client:
        answer = await client.get("/v1/steering/dash", params=query | {"sid": "s1"})
        assert answer.json() == moved
        assert "playhead-degraded" not in answer.headers
        assert "\nplayhead_steering_leads 1.0\n" in (await client.get("/metrics")).text


async def test_browsers_may_ask_before_they_ask(open_steering: OpenSteering) -> None:
    async with open_steering(known()) as client:
        answer = await client.options("/v1/steering/hls", headers={"Access-Control-Request-Headers": "cmcd-session"})
        assert answer.status_code == 204
        assert "CMCD-Session".lower() in answer.headers["access-control-allow-headers"].lower()


async def test_without_a_configuration_the_answer_says_what_to_configure(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/steering/dash?sid=s1")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["access-control-allow-origin"] == "*"
    (error,) = answer.json()["errors"]
    assert error["field"] == "steering"
    assert "docs/steering.md" in error["next_step"]


async def test_a_configuration_that_cannot_be_read_stops_the_start(arguments: Arguments) -> None:
    assert arguments.home is not None
    with pytest.raises(InvalidInput, match="steering"):
        await open_gateway(arguments.model_copy(update={"steering": arguments.home / "none.yaml"}))
