"""The role that decides: what fails is rolled back, what does not goes on, and an operator's word stands."""

import random
from typing import Any

import orjson
import pytest
import redis

from serve.rollout import board as rollouts
from serve.rollout.decisions import Limits
from serve.rollout.exposures import FIELD, STREAM
from serve.rollout.plans import RolloutPlan
from serve.watchtower import health
from serve.watchtower.board import ROLLOUT_ROLE
from serve.watchtower.leases import Leases
from serve.watchtower.roles.rollouts import RolloutRole
from tests.serve.rollout.test_trials import page, play

A, B = "a" * 12, "b" * 12
NOTE: dict[str, Any] = {"action": "test", "by": "test", "reason": "", "evidence": {}}


class Clock:
    """A role with a clock of its own, and what it reads."""

    def __init__(self, store: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.now_ms = 1_790_000_000_000
        self.number = 0
        self.told = 0
        self.rng = random.Random(3)
        monkeypatch.setattr("serve.watchtower.roles.rollouts.store_ms", lambda _: self.now_ms)
        self.leases = Leases(store, "only", [ROLLOUT_ROLE])
        self.begin()

    def begin(self) -> None:
        self.leases._renewed_s = 0.0
        self.leases.tick()
        self.role = RolloutRole(self.store, self.leases, self.leases.held[ROLLOUT_ROLE], Limits(least_s=5.0))

    def plan(self) -> RolloutPlan:
        return rollouts.load_plan(self.store.get(rollouts.plan_key("recommend")))

    def change(self, plan: RolloutPlan) -> None:
        assert self.store.execute_command("EVAL", *rollouts.change_arguments(plan, NOTE))

    def second(self, *, count: int = 60, fails: float = 0.0, plays: float = 0.5) -> RolloutPlan:
        """One second: pages of new profiles, the challenger's failing; and a step of the role."""
        self.now_ms += 1_000
        plan = self.plan()
        pipe = self.store.pipeline(transaction=False)
        for _ in range(count if plan.challenger else 0):
            self.number += 1
            one = page(self.number, f"p{self.number}", plan)
            one["failed"] = one["challenged"] and self.rng.random() < fails
            for told in [one, play(self.number)] if self.rng.random() < plays else [one]:
                self.told += 1
                pipe.xadd(STREAM, {FIELD: orjson.dumps(told)}, id=f"{self.now_ms - 500}-{self.told}")
        pipe.execute()
        self.role.step()
        return self.plan()

    def changes(self) -> list[dict[str, Any]]:
        return rollouts.load_changes(self.store.xrevrange(rollouts.LOG))


@pytest.fixture
def clock(store: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(store, monkeypatch)


def begin(clock: Clock, share: float = 0.5) -> None:
    clock.change(RolloutPlan(model="recommend", champion=A).begun(B, share, clock.now_ms))


def test_a_challenger_that_fails_is_rolled_back_with_its_evidence(clock: Clock) -> None:
    begin(clock)
    seconds = 0
    while (plan := clock.second(fails=0.5)).challenger is not None:
        seconds += 1
        assert seconds < 20
    assert (plan.champion, plan.previous) == (A, None)
    change = clock.changes()[0]
    assert (change["action"], change["by"], change["evidence"]["metric"]) == ("rollback", "playhead", "errors")
    assert "errors" in change["reason"]
    (errors,) = [one for one in change["evidence"]["evidence"] if one["metric"] == "errors"]
    assert errors["challenger"] > errors["champion"] == 0
    before = len(clock.changes())
    clock.second()
    assert len(clock.changes()) == before, "and that is that"


def test_one_that_is_as_good_goes_from_stage_to_stage(clock: Clock) -> None:
    begin(clock, 0.1)
    shares = []
    for _ in range(400):
        plan = clock.second(count=300)
        shares.append(plan.share)
        if plan.champion == B:
            break
    assert plan.champion == B, shares[-1]
    assert list(dict.fromkeys(shares)) == [0.1, 0.5, 0.0]
    assert [one["action"] for one in clock.changes()] == ["promote", "promote", "test"]
    assert "ruled out" in clock.changes()[0]["reason"]


def test_a_paused_rollout_stays_and_is_rolled_back_all_the_same(clock: Clock) -> None:
    begin(clock, 0.5)
    clock.change(clock.plan().held(paused=True, now_ms=clock.now_ms))
    for _ in range(150):
        plan = clock.second(count=100)
    assert (plan.challenger, plan.share, plan.paused) == (B, 0.5, True)
    for _ in range(100):
        plan = clock.second(fails=0.8)
    assert plan.challenger is None


def test_a_role_that_is_taken_over_goes_on(clock: Clock) -> None:
    begin(clock, 0.5)
    seconds = 0
    while clock.second(count=20, fails=0.2).challenger is not None:
        seconds += 1
        assert seconds < 60
        clock.leases.close()
        clock.begin()
    assert seconds > 3, "one second alone was not enough"


def test_the_watchtowers_suspicion_of_the_challenger_alone_rolls_back(clock: Clock, store: redis.Redis) -> None:
    begin(clock, 0.1)

    def judged(**status: str) -> None:
        versions = tuple(
            health.VersionHealth(model="recommend", version=version, status=status[role], judged=True,  # type: ignore[arg-type]
                                 reasons=("slow: too often",) if status[role] == "suspect" else (), readings=())
            for version, role in ((A, "champion"), (B, "challenger"))
        )  # fmt: skip
        known = health.Health(as_of_ms=clock.now_ms, versions=versions, routes=(), parts=(), alarms=())
        store.set(health.HEALTH, health.dump_health(known))

    judged(champion="suspect", challenger="suspect")
    assert clock.second().challenger == B, "both: it is not the version"
    judged(champion="ok", challenger="suspect")
    assert clock.second().challenger is None
    assert "slow: too often" in clock.changes()[0]["reason"]


def test_what_cannot_be_read_is_left_out(clock: Clock, store: redis.Redis) -> None:
    begin(clock, 0.5)
    store.xadd(STREAM, {FIELD: b"{"}, id=f"{clock.now_ms + 1}-1")
    store.xadd(STREAM, {"strange": b"x"}, id=f"{clock.now_ms + 2}-1")
    store.sadd(rollouts.MODELS, "other")
    store.set(rollouts.plan_key("other"), b"rubbish")
    assert clock.second().challenger == B
