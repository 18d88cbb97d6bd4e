"""Gateways that share the steering plan in a real Valkey: one leads, the others follow, and nobody is moved back."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
from prometheus_client import generate_latest

from serve.gateway.steering import OutagesInMemory, SteeringStage
from serve.logs import get
from serve.metrics import Metrics
from serve.steering import sharing
from serve.steering.clients import Client
from serve.steering.pathways import Pathway, Pathways
from serve.steering.sharing import LEASE, LEASE_MS, MOST_BYTES, PLAN, SharedPlan
from serve.steering.steerer import Steerer
from tests.conftest import ValkeyProcess
from tests.serve.steering.audience import START_MS, outage
from tests.waiting import eventually

TWO = Pathways(pathways=(Pathway(id="alpha"), Pathway(id="beta")))
SESSIONS = [f"s{number}" for number in range(90)]
"""Of alpha; too few for a sample."""

SHORT_MS = 1_000
"""Of a lease that a test waits for."""


class Network:
    """What all gateways hear: one time, one list of outages."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.outages = OutagesInMemory()

    def pass_s(self, seconds: float, *, broken: bool = True) -> None:
        """Time goes by, and alpha is broken, or is not."""
        self.now_ms += int(seconds * 1000)
        self.outages.put([outage(cdn="alpha")] if broken else [], self.now_ms)


class Gateway:
    """A gateway's steering, with a clock that may be ahead of the others'."""

    def __init__(self, url: str, name: str, network: Network, lease_ms: int = LEASE_MS, ahead_ms: int = 0) -> None:
        self.metrics = Metrics()
        self.stage = SteeringStage(TWO, network.outages, lambda: network.now_ms + ahead_ms)
        self.plan = SharedPlan(self.stage, url, name, self.metrics, lease_ms)
        self.looks = 0
        look = self.stage.look

        def counted() -> None:
            self.looks += 1
            look()

        self.stage.look = counted  # type: ignore[method-assign]

    async def look(self) -> None:
        await self.plan.look()

    def moved(self) -> set[str]:
        """Sessions of alpha that are told to use beta."""
        asked = [Client(session=name, context={}, home="alpha", current="alpha") for name in SESSIONS]
        return {client.session for client in asked if self.stage.steer(client)[0].priority[0] == "beta"}

    async def until(self, done: Callable[[], bool]) -> None:
        """Look until something holds."""

        async def holds() -> bool:
            await self.plan.look()
            return done()

        await eventually(holds)


OpenGateway = Callable[..., Gateway]


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
async def start(valkey_url: str, network: Network) -> AsyncIterator[OpenGateway]:
    """Starts gateways."""
    started: list[Gateway] = []

    def of(name: str, *, url: str = valkey_url, **named: Any) -> Gateway:
        started.append(Gateway(url, name, network, **named))
        return started[-1]

    yield of
    for gateway in started:
        await gateway.plan.close()


@pytest.fixture
def store(valkey_url: str) -> Iterator[Any]:
    with closing(redis.Redis.from_url(valkey_url)) as client:
        yield client


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Messages of the log, as they come."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, collector = get("steering"), Collector()
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    yield messages
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(collector)


def leads(gateway: Gateway) -> float:
    """What the metrics say."""
    text = generate_latest(gateway.metrics.registry).decode()
    return float(text.partition("\nplayhead_steering_leads ")[2].split()[0])


@pytest.mark.parametrize("ahead_ms", [-7_000, 0, 7_000])
async def test_gateways_share_a_plan_and_only_the_leader_takes_steps(
    start: OpenGateway, network: Network, lines: list[str], ahead_ms: int
) -> None:
    leader, follower = start("one"), start("two", ahead_ms=ahead_ms)
    counts = []
    for after_s in (0, 10, 1, 8, 1, 10):
        network.pass_s(after_s)
        await leader.look()
        await follower.look()
        assert follower.moved() == leader.moved()
        counts.append(len(leader.moved()))
    assert 0 < counts[0] == counts[0]
    assert counts[0] < counts[1] == counts[-1] == len(SESSIONS)
    assert (leader.looks, follower.looks) == (6, 0)
    assert (leader.plan.leads, follower.plan.leads) == (True, False)
    assert (leads(leader), leads(follower)) == (1, 0)
    assert lines == ["leads"]


@pytest.mark.parametrize("ahead_ms", [-7_000, 0, 55_000])
async def test_where_the_leader_dies_in_mid_detour_a_follower_goes_on_and_takes_no_step_twice(
    start: OpenGateway, network: Network, ahead_ms: int
) -> None:
    leader = start("one", lease_ms=SHORT_MS, ahead_ms=ahead_ms)
    follower = start("two", lease_ms=SHORT_MS)
    network.pass_s(0)
    await leader.look()
    before = leader.moved()
    assert 0 < len(before) < len(SESSIONS)
    await follower.until(lambda: follower.plan.leads)
    assert follower.looks == 1
    assert follower.moved() == before
    network.pass_s(2)
    await follower.look()
    assert follower.moved() == before
    network.pass_s(11)
    await follower.look()
    assert follower.moved() > before
    network.pass_s(119, broken=False)
    await follower.look()
    assert len(follower.moved()) == len(SESSIONS)
    network.pass_s(2, broken=False)
    await follower.look()
    assert len(follower.moved()) < len(SESSIONS)


@pytest.mark.parametrize("end", ["stopped", "killed"])
async def test_a_restarted_gateway_goes_on_from_the_stored_plan_before_it_knows_of_outages(
    start: OpenGateway, network: Network, lines: list[str], end: str
) -> None:
    first = start("one", lease_ms=SHORT_MS)
    network.pass_s(0)
    await first.look()
    before = first.moved()
    assert before
    if end == "stopped":
        await first.plan.close()
    network.outages.put([], 0)
    second = start("two", lease_ms=SHORT_MS)
    assert not second.moved()
    await second.look()
    assert second.moved() == before
    assert second.plan.leads is (end == "stopped")
    await second.until(lambda: second.plan.leads)
    assert second.moved() == before
    network.pass_s(10)
    await second.look()
    assert second.moved() > before
    assert [line for line in lines if line != "leads no more"] == ["leads"] * 2


@pytest.mark.parametrize("end", ["keeps its plan", "loses its plan"])
async def test_without_the_store_answers_go_on_and_nothing_jumps_back_when_it_returns(
    start: OpenGateway, network: Network, valkey_process: ValkeyProcess, end: str
) -> None:
    leader = start("one", url=valkey_process.url, lease_ms=SHORT_MS)
    follower = start("two", url=valkey_process.url, lease_ms=SHORT_MS)
    network.pass_s(0)
    await leader.look()
    await follower.look()
    before = leader.moved()
    assert follower.moved() == before
    valkey_process.kill()
    await leader.look()
    await follower.look()
    assert leader.moved() == follower.moved() == before
    assert not leader.plan.leads
    assert leads(leader) == 0
    network.pass_s(10)
    await leader.look()
    await follower.until(lambda: follower.moved() > before)
    assert leader.moved() == follower.moved() > before
    moved = leader.moved()
    if end == "loses its plan":
        for path in valkey_process.folder.rglob("*"):
            if path.is_file():
                path.unlink()
    valkey_process.start()
    await leader.until(lambda: leader.plan.leads)
    assert leader.moved() == moved
    await follower.look()
    assert follower.moved() == moved
    assert not follower.plan.leads


async def test_a_store_that_lost_what_was_written_last_sets_nobody_back(
    start: OpenGateway, network: Network, store: Any
) -> None:
    first, second = start("one"), start("two")
    network.pass_s(0)
    await first.look()
    older = store.get(PLAN)
    network.pass_s(10)
    await first.look()
    await second.look()
    moved = first.moved()
    network.outages.put([], 0)  # so that nobody makes up for a step that is lost
    for gateway in (first, second):  # whichever is the first to look
        store.delete(LEASE)
        store.set(PLAN, older)
        await gateway.look()
        assert gateway.plan.leads
        assert gateway.moved() == moved
        assert store.get(PLAN) != older


async def test_a_leader_that_was_away_goes_by_what_was_decided_meanwhile(
    start: OpenGateway, network: Network, store: Any
) -> None:
    away, other = start("one"), start("two")
    network.pass_s(0)
    await away.look()
    store.delete(LEASE)  # it was away for longer than its lease
    for _ in range(2):
        network.pass_s(10)
        await other.look()
    assert other.plan.leads
    await other.plan.close()
    store.delete(LEASE)
    network.pass_s(0, broken=False)
    assert away.moved() < other.moved()
    await away.look()
    assert away.plan.leads
    assert away.moved() == other.moved()


async def test_a_plan_that_is_not_written_any_more_is_not_waited_for(
    start: OpenGateway, network: Network, store: Any
) -> None:
    store.set(LEASE, "stuck")
    alone = start("one", lease_ms=SHORT_MS)
    leader = Steerer(TWO)
    store.set(PLAN, json.dumps({"turn": 7, "plan": leader.state()}))
    network.pass_s(0)
    await alone.look()
    assert (alone.looks, alone.moved()) == (0, set())
    await alone.until(lambda: bool(alone.moved()))
    assert not alone.plan.leads
    store.set(PLAN, json.dumps({"turn": 8, "plan": leader.state()}))
    await alone.look()
    assert not alone.moved()


async def test_a_plan_is_written_by_nobody_but_who_leads(
    start: OpenGateway, network: Network, store: Any, lines: list[str]
) -> None:
    late, others = start("one"), [start("two"), start("three")]
    network.pass_s(0)
    await late.look()
    look = late.stage.look

    def away() -> None:
        """The lease ends between two calls of the store, and others take over."""
        look()
        store.set(LEASE, "two")
        store.set(PLAN, b"theirs")

    late.stage.look = away  # type: ignore[method-assign]
    network.pass_s(10)
    await late.look()
    assert store.get(PLAN) == b"theirs"
    assert not late.plan.leads
    late.stage.look = look  # type: ignore[method-assign]
    lines.clear()
    for _ in range(10):
        network.pass_s(1)
        await asyncio.gather(*(gateway.look() for gateway in (late, *others)))
        assert [gateway.plan.leads for gateway in (late, *others)] == [False, True, False]
    assert late.moved() == others[0].moved() == others[1].moved()
    assert others[1].looks == 1  # by itself, for `theirs` cannot be read
    assert lines.count("leads") == 1


def broken_states() -> dict[str, bytes]:
    steerer = Steerer(TWO)
    steerer.update([outage(cdn="alpha")], as_of_ms=START_MS, now_ms=START_MS)
    state = steerer.state()
    (detour,), (trouble,) = state["detours"], state["troubles"]
    plans = {
        "another version": {**state, "version": 2},
        "no pathway": {**state, "detours": [{**detour, "pathway": None, "scope": []}]},
        "no level": {**state, "detours": [{**detour, "level": "high"}]},
        "no time": {**state, "detours": [{**detour, "confirmed_ms": None}]},
        "no band": {**state, "detours": [{**detour, "bands": [{"upto": 0.5, "to": {"beta": "all"}}]}]},
        "no share": {**state, "troubles": [{**trouble, "spare": []}]},
        "no load": {**state, "load": [1]},
        "no plan": 5,
    }
    texts = {"empty": b"", "no JSON": b"{\xff", "a list": b"[]", "no turn": json.dumps({"plan": state}).encode()}
    texts["a turn too far"] = json.dumps({"turn": 2**64 - 1, "plan": state}).encode()
    texts["too large"] = json.dumps({"turn": 9, "plan": state, "more": "x" * MOST_BYTES}).encode()
    return texts | {name: json.dumps({"turn": 9, "plan": plan}).encode() for name, plan in plans.items()}


@pytest.mark.parametrize("stored", [*broken_states().values(), None], ids=[*broken_states(), "no string"])
async def test_a_plan_that_cannot_be_read_is_told_once_and_replaced(
    start: OpenGateway, network: Network, store: Any, lines: list[str], stored: bytes | None
) -> None:
    def spoil() -> None:
        store.delete(PLAN)
        if stored is None:
            store.rpush(PLAN, 1)
        else:
            store.set(PLAN, stored)

    spoil()
    leader, follower = start("one"), start("two")
    network.pass_s(0)
    await leader.look()
    assert lines == ["a plan cannot be shared", "leads"]
    await follower.look()
    assert follower.moved() == leader.moved() != set()
    spoil()
    for _ in range(3):
        await follower.look()
    assert lines.count("a plan cannot be shared") == 2
    assert follower.moved() == leader.moved()
    await leader.look()
    assert json.loads(store.get(PLAN))["turn"] == 2
    assert 0 < store.pttl(PLAN) <= sharing.PLAN_TTL_MS
    assert 0 < store.pttl(LEASE) <= LEASE_MS


async def test_a_plan_that_is_too_large_is_not_written(
    start: OpenGateway, network: Network, store: Any, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MOST_BYTES", 100)
    leader = start("one")
    for _ in range(3):
        network.pass_s(10)
        await leader.look()
    assert len(leader.moved()) == len(SESSIONS)
    assert store.get(PLAN) is None
    assert lines == ["leads", "a plan cannot be shared"]
