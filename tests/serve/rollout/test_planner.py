"""Bitrate plans of two versions: neither costs the other its time, nor is charged for it."""

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from serve.bitrate.decisions import Decider
from serve.bitrate.planner import Plan
from serve.bitrate.sessions import Session
from serve.metrics import Metrics
from serve.rollout.assignment import assign
from serve.rollout.fleet import Lineup
from serve.rollout.planner import FleetPlanner
from serve.rollout.plans import RolloutPlan
from serve.schemas import STALE_MODEL
from serve.vitals import ModelVitals

A, B = "a" * 12, "b" * 12
PLAN = RolloutPlan(model="bitrate", champion=A, revision=1).begun(B, 0.5, 1)


def sessions() -> list[Session]:
    return [Session(rungs_kbps=(300.0, 900.0), places=(0, 1), session_id=f"s{number}") for number in range(20)]


SESSIONS = sessions()
WITHIN_S = 5.0
"""Long enough for a machine that stands still for a second or two: the champion has half of it."""
CHALLENGED = [place for place, one in enumerate(SESSIONS) if assign(PLAN, str(one.session_id)).challenged]


class Policy:
    """Takes so long, in the time that it is given."""

    def __init__(self, version: str, takes_s: float) -> None:
        self.version = version
        self.takes_s = takes_s
        self.within_s: list[float] = []
        self.asked_s = 0.0

    async def plan(self, sessions: Sequence[Session], within_s: float) -> Plan:
        self.within_s.append(within_s)
        self.asked_s = time.monotonic()
        async with asyncio.timeout(within_s):
            await asyncio.sleep(self.takes_s)
        count = len(sessions)
        return Plan(self.version, [0] * count, [0] * count, [0.0] * count, [[1.0, 1.0, 1.0]] * count)


class Nothing:
    async def fill(self, sessions: Sequence[Session], within_s: float) -> None:
        pass


def planner(champion: Policy, challenger: Policy) -> FleetPlanner:
    fleet: Any = SimpleNamespace(lineup=Lineup(PLAN, champion, challenger))  # type: ignore[type-var]
    return FleetPlanner(fleet)


async def test_the_champion_has_what_the_challenger_left(monkeypatch: pytest.MonkeyPatch) -> None:
    champion = Policy(A, 0.01)
    challenged = [SESSIONS[place] for place in CHALLENGED]
    began_s = time.monotonic()
    plan = await planner(champion, Policy(B, 60.0)).plan(challenged, WITHIN_S)
    assert plan.missing == {B: len(challenged)}
    (left_s,) = champion.within_s
    assert left_s <= WITHIN_S / 2
    assert left_s == pytest.approx(began_s + WITHIN_S - champion.asked_s, abs=0.1)


@pytest.mark.parametrize(
    ("challenger", "places", "told"),
    [
        (None, range(20), {A: [STALE_MODEL]}),
        (B, range(20), {A: [STALE_MODEL], B: []}),
        (B, CHALLENGED, {B: []}),
    ],
)
async def test_what_stands_in_for_the_champion_says_so_and_the_challenger_does_not(
    challenger: str | None, places: Sequence[int], told: dict[str, list[str]]
) -> None:
    plan = PLAN if challenger else RolloutPlan(model="bitrate", champion="c" * 12)
    other = Policy(challenger, 0.0) if challenger else None
    fleet: Any = SimpleNamespace(lineup=Lineup(plan, Policy(A, 0.0), other, stale=True))  # type: ignore[type-var]
    decider = Decider(FleetPlanner(fleet), Nothing(), Metrics(), ModelVitals(lambda: A))
    asking = sessions()
    decisions, _ = await decider.decide([asking[place] for place in places], 5.0)
    assert {one.version: one.session.reasons for one in decisions} == told


@pytest.mark.timed
async def test_they_plan_side_by_side_and_each_is_charged_its_own_time() -> None:
    vitals = ModelVitals(lambda: A)
    began_s = time.monotonic()
    decider = Decider(planner(Policy(A, 0.25), Policy(B, 0.45)), Nothing(), Metrics(), vitals)
    decisions, _ = await decider.decide(SESSIONS, 2.0)
    assert time.monotonic() - began_s < 0.65
    assert [place for place, one in enumerate(decisions) if one.version == B] == CHALLENGED
    told = vitals.take()
    assert {version: (one.total, one.failed) for version, one in told.items()} == {
        A: (20 - len(CHALLENGED), 0), B: (len(CHALLENGED), 0),
    }  # fmt: skip
    assert max(told[A].seconds) < min(told[B].seconds), "of the histogram's places"


async def test_what_the_challenger_leaves_of_a_batch_is_the_champions() -> None:
    champion = Policy(A, 0.01)
    plan = await planner(champion, Policy(B, 60.0)).plan(SESSIONS, WITHIN_S)
    assert (plan.version, plan.others, plan.missing) == (A, {}, {B: len(CHALLENGED)})
    assert len(plan.rungs) == len(SESSIONS)
    assert champion.within_s[1] <= WITHIN_S / 2


async def test_a_loop_that_was_held_up_fails_no_challenger_whose_plan_is_ready() -> None:
    class Threaded(Policy):
        """As a planner with many sessions: in a thread."""

        async def plan(self, sessions: Sequence[Session], within_s: float) -> Plan:
            async with asyncio.timeout(within_s):
                await asyncio.to_thread(time.sleep, 0.01)
            return await super().plan(sessions, within_s)

    async def hold_up() -> None:
        for _ in range(3):
            await asyncio.sleep(0)  # the thread has begun
        time.sleep(0.52 * WITHIN_S)  # noqa: ASYNC251 - what holds a loop up: more than half, less than all

    challenged = [SESSIONS[place] for place in CHALLENGED]
    planned = asyncio.create_task(planner(Policy(A, 0.0), Threaded(B, 0.0)).plan(challenged, WITHIN_S))
    plan, _ = await asyncio.gather(planned, hold_up())
    assert (plan.version, plan.missing) == (B, {})
