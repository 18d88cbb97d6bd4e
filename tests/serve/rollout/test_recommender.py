"""Home pages of two versions: a challenger that does not answer costs no page, and is known."""

import asyncio
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from features.profiles import ProfileFeatures
from serve.clock import now_ms
from serve.rollout import recommender
from serve.rollout.assignment import assign
from serve.rollout.fleet import LOADING_MS, Lineup
from serve.rollout.plans import RolloutPlan
from serve.rollout.recommender import CHALLENGER_S, FleetRanker, acquaint
from serve.schemas import MODEL_FAILED, STALE_MODEL, Answer, HomeQuery

A, B = "a" * 12, "b" * 12
PLAN = RolloutPlan(model="recommend", champion=A, revision=1).begun(B, 0.5, 1)
NAME = next(name for name in map(str, range(99)) if assign(PLAN, name).challenged)


class Pages:
    """Makes pages after so long, or fails."""

    def __init__(self, version: str, takes_s: float = 0.0, error: Exception | None = None, *reasons: str) -> None:
        self.version = version
        self.takes_s = takes_s
        self.error = error
        self.reasons = reasons

    async def home(self, profile: ProfileFeatures, query: HomeQuery) -> Answer:
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        return Answer(members=b"", versions={"model": self.version}, degraded=self.reasons, generated_ts=1)


def ranker(challenger: Pages | None) -> FleetRanker:
    fleet: Any = SimpleNamespace(lineup=Lineup(PLAN, Pages(A), challenger))  # type: ignore[type-var]
    return FleetRanker(fleet)


@pytest.mark.timed
@pytest.mark.parametrize(
    "challenger", [Pages(B, 9.0), Pages(B, 0.0, ValueError("x")), Pages(B, 0.0, None, MODEL_FAILED), None]
)
async def test_the_champion_makes_the_page_in_time_and_says_who_should_have(challenger: Pages | None) -> None:
    began_s = time.monotonic()
    answer = await ranker(challenger).home(ProfileFeatures(NAME), HomeQuery(within_s=0.2))
    assert time.monotonic() - began_s < 0.2
    assert answer.versions == {"model": A}
    assert answer.assigned is not None
    assert (answer.assigned.version, answer.assigned.challenged, answer.assigned.missed) == (B, True, True)


@pytest.mark.timed
async def test_a_caller_that_waits_longer_does_not_wait_for_the_challenger() -> None:
    began_s = time.monotonic()
    answer = await ranker(Pages(B, 9.0)).home(ProfileFeatures(NAME), HomeQuery())
    assert CHALLENGER_S <= time.monotonic() - began_s < CHALLENGER_S + 0.5
    assert answer.versions == {"model": A}


async def test_a_loop_that_was_held_up_fails_no_challenger() -> None:
    class Batched(Pages):
        """As the ranker: the next round of the loop makes the pages of all that wait."""

        async def home(self, profile: ProfileFeatures, query: HomeQuery) -> Answer:
            loop = asyncio.get_running_loop()
            ranked = loop.create_future()
            loop.call_soon(ranked.set_result, None)
            await ranked
            return Answer(members=b"", versions={"model": self.version}, degraded=(), generated_ts=1)

    async def hold_up() -> None:
        for _ in range(4):
            time.sleep(1.3 * CHALLENGER_S)  # noqa: ASYNC251 - what holds a loop up
            await asyncio.sleep(0)

    page = asyncio.create_task(ranker(Batched(B)).home(ProfileFeatures(NAME), HomeQuery()))
    answer, _ = await asyncio.gather(page, hold_up())
    assert answer.versions == {"model": B}
    assert answer.assigned is not None
    assert not answer.assigned.missed


async def test_while_the_challenger_is_loaded_nothing_counts_and_what_never_comes_does() -> None:
    begun = RolloutPlan(model="recommend", champion=A).begun(B, 1.0, now_ms())
    lineups = {
        "loading": (Lineup(begun, Pages(A)), False),  # type: ignore[type-var]
        "refused": (Lineup(begun, Pages(A), refused=True), True),  # type: ignore[type-var]
        "never": (Lineup(replace(begun, started_ts=now_ms() - LOADING_MS), Pages(A)), True),  # type: ignore[type-var]
    }
    for lineup, counts in lineups.values():
        fleet: Any = SimpleNamespace(lineup=lineup)
        answer = await FleetRanker(fleet).home(ProfileFeatures(NAME), HomeQuery())
        assert (answer.assigned is not None and answer.assigned.missed) is counts
        assert (FleetRanker(fleet).assigned(NAME) is not None) is counts


async def test_what_stands_in_for_the_champion_says_so_and_the_challenger_does_not() -> None:
    fleet: Any = SimpleNamespace(lineup=Lineup(PLAN, Pages(A), Pages(B), stale=True))  # type: ignore[type-var]
    pages = [await FleetRanker(fleet).home(ProfileFeatures(str(name)), HomeQuery()) for name in range(50)]
    told = {(page.versions["model"], page.degraded) for page in pages}
    assert told == {(A, (STALE_MODEL,)), (B, ())}


async def test_a_challenger_that_stands_in_for_the_champion_makes_its_own_pages_as_well() -> None:
    both = Pages(B)
    fleet: Any = SimpleNamespace(lineup=Lineup(PLAN, both, both, stale=True))  # type: ignore[type-var]
    answer = await FleetRanker(fleet).home(ProfileFeatures(NAME), HomeQuery())
    assert answer.assigned is not None
    assert (answer.assigned.challenged, answer.assigned.missed) == (True, False)


def test_who_should_answer_is_known_before() -> None:
    known = ranker(Pages(B)).assigned(NAME)
    assert known is not None
    assert (known.version, known.salt, known.missed) == (B, PLAN.salt, False)
    steady: Any = SimpleNamespace(lineup=Lineup(RolloutPlan(model="recommend", champion=A), Pages(A)))  # type: ignore[type-var]
    assert FleetRanker(steady).assigned(NAME) is None


class Inherits:
    """A ranker that is to know 30 viewers; each takes so long."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.waiting, self.met, self.known = 30, 0, 0
        self.takes_s = takes_s
        self.memory: object = None
        self.changes_at = 0

    def inheritance(self, before: object) -> "Inherits | None":
        return None if before is None else before  # type: ignore[return-value]

    def __len__(self) -> int:
        return self.waiting

    def encode(self, count: int) -> None:
        count = min(count, self.waiting)
        until_s = time.thread_time() + count * self.takes_s
        while time.thread_time() < until_s:
            pass
        self.waiting -= count
        self.met += count
        if self.met == self.changes_at:
            self.memory = object()

    def hand_over(self) -> int:
        self.known = self.met
        return self.known


async def test_a_version_gets_acquainted_before_it_answers() -> None:
    ranker: Any = Inherits()
    assert await acquaint(ranker, ranker) == 30
    assert ranker.known == 30
    changed, other = Inherits(), Inherits()
    changed.changes_at = 16
    assert await acquaint(other, changed) == 0, "the catalogue changed"  # type: ignore[arg-type]
    assert (changed.waiting, changed.known) == (14, 0)
    nobody: Any = None
    assert await acquaint(Inherits(), nobody) == 0  # type: ignore[arg-type]


@pytest.mark.timed
async def test_it_takes_half_of_the_time_and_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker: Any = Inherits(0.01)
    began_s = time.monotonic()
    assert await acquaint(ranker, ranker) == 30
    assert time.monotonic() - began_s >= 2 * 30 * 0.01
    monkeypatch.setattr(recommender, "ACQUAINT_S", 0.1)
    ranker = Inherits(0.01)
    assert 0 < await acquaint(ranker, ranker) < 30
    assert 0 < ranker.known < 30
