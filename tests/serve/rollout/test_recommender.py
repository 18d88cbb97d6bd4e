"""Home pages of two versions: a challenger that does not answer costs no page, and is known."""

import asyncio
import time
from collections.abc import Collection
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
from serve.schemas import MODEL_FAILED, Answer, HomeQuery

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


def test_who_should_answer_is_known_before() -> None:
    known = ranker(Pages(B)).assigned(NAME)
    assert known is not None
    assert (known.version, known.salt, known.missed) == (B, PLAN.salt, False)
    steady: Any = SimpleNamespace(lineup=Lineup(RolloutPlan(model="recommend", champion=A), Pages(A)))  # type: ignore[type-var]
    assert FleetRanker(steady).assigned(NAME) is None


class Profiles:
    """Features of profiles; those in `down` are not to be had."""

    def __init__(self, down: Collection[str] = ()) -> None:
        self.down = down
        self.read_ids: list[str] = []

    async def read(self, profile_id: str) -> ProfileFeatures:
        self.read_ids.append(profile_id)
        return ProfileFeatures(profile_id, degraded=("features_timeout",) if profile_id in self.down else ())


class Prepares:
    """Notes whom it prepares for, and takes its time."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.known: list[str] = []
        self.takes_s = takes_s

    def prepare(self, profile: ProfileFeatures) -> None:
        if profile.profile_id == "5":
            raise ValueError("a history that the model does not take")
        time.sleep(self.takes_s)
        self.known.append(profile.profile_id)


IDS = [str(number) for number in range(30)]


async def test_a_version_meets_viewers_before_it_answers_the_last_seen_first() -> None:
    ranker: Any = Prepares()
    assert await acquaint(ranker, IDS, Profiles(down={"3"})) == 29
    assert ranker.known == [name for name in IDS if name not in {"3", "5"}]


async def test_where_the_store_fails_it_does_not_go_on() -> None:
    ranker: Any = Prepares()
    profiles = Profiles(down=IDS)
    assert await acquaint(ranker, IDS, profiles) == 0
    assert len(profiles.read_ids) < len(IDS)


@pytest.mark.timed
async def test_it_takes_half_of_the_time_and_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker: Any = Prepares(0.01)
    began_s = time.monotonic()
    await acquaint(ranker, IDS, Profiles())
    assert time.monotonic() - began_s >= 2 * 29 * 0.01
    monkeypatch.setattr(recommender, "ACQUAINT_S", 0.1)
    ranker.known.clear()
    assert 0 < await acquaint(ranker, IDS, Profiles()) < 30
