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
        self.leases.tick()
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


def judge(clock: Clock, *suspects: str, age_ms: int = 0, since_ms: int | None = None) -> None:
    """What the Watchtower says: who of the two is suspect, since when, as judged so long ago."""
    since_ts = clock.now_ms if since_ms is None else since_ms
    versions = []
    for version in (A, B):
        suspect = version in suspects
        reading = health.Reading(signal="slow", threshold=0.1, before_bad=1, before_total=100, now_bad=50, now_total=60,
                                 p_value=0.0, since_ts=since_ts if suspect else None)  # fmt: skip
        versions.append(
            health.VersionHealth(model="recommend", version=version, status="suspect" if suspect else "ok", judged=True,
                                 reasons=("slow: too often",) if suspect else (), readings=(reading,))
        )  # fmt: skip
    known = health.Health(as_of_ms=clock.now_ms - age_ms, versions=tuple(versions), routes=(), parts=(), alarms=())
    clock.store.set(health.HEALTH, health.dump_health(known))


def test_the_watchtowers_suspicion_of_the_challenger_alone_rolls_back(clock: Clock) -> None:
    begin(clock, 0.1)
    judge(clock, A, B)
    assert clock.second().challenger == B, "both: it is not the version"
    judge(clock, B)
    assert clock.second().challenger is None
    assert "slow: too often" in clock.changes()[0]["reason"]


def test_a_suspicion_that_is_old_does_not(clock: Clock) -> None:
    begin(clock, 0.1)
    judge(clock, B, age_ms=health.STALE_MS + 1)
    assert clock.second().challenger == B, "the Watchtower does not run"
    judge(clock, B, since_ms=clock.plan().started_ts - 1)
    assert clock.second().challenger == B, "that was before the rollout began"


def tell(clock: Clock, count: int, begin_at: int = 0) -> None:
    pipe, plan = clock.store.pipeline(transaction=False), clock.plan()
    for number in range(begin_at, begin_at + count):
        pipe.xadd(STREAM, {FIELD: orjson.dumps(page(number, f"t{number}", plan))}, id=f"{clock.now_ms}-{number + 1}")
    pipe.execute()


def profiles(clock: Clock) -> int:
    evidence = clock.role._trials["recommend"].judge.evidence()
    return sum(one.challenger + one.champion for one in evidence if one.metric == "assignment")


def test_all_that_was_told_is_read_as_far_as_there_is_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serve.watchtower.roles.rollouts._ENTRIES", 100)
    monkeypatch.setattr("serve.watchtower.roles.rollouts.DRAIN_S", 60.0)
    begin(clock)
    tell(clock, 1_050)
    clock.now_ms += 1_000
    assert not clock.role.step()
    assert profiles(clock) == pytest.approx(1_050, abs=5)
    assert not caplog.records
    monkeypatch.setattr("serve.watchtower.roles.rollouts.DRAIN_S", 0.0)
    tell(clock, 250)
    clock.now_ms += 1_000
    assert clock.role.step(), "there is more"
    assert "more exposures are told" in caplog.text


def test_what_was_lost_is_said(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    begin(clock)
    tell(clock, 10)
    clock.store.xtrim(STREAM, maxlen=5, approximate=False)
    clock.now_ms += 1_000
    clock.role.step()
    assert not caplog.records, "nothing was read before"
    tell(clock, 20)
    clock.store.xtrim(STREAM, maxlen=5, approximate=False)
    clock.now_ms += 1_000
    clock.role.step()
    assert "exposures were lost" in caplog.text


def test_who_was_seen_is_forgotten_at_the_end_of_a_stage(clock: Clock) -> None:
    def seen() -> set[str]:
        keys: Any = clock.store.keys("playhead:rollout:seen:*")
        return {key.decode().split(":")[-2] for key in keys}

    begin(clock, 0.1)
    clock.second()
    assert seen() == {"0.1"}
    clock.change(clock.plan().shared(0.5, clock.now_ms))
    clock.second()
    clock.leases.close()
    clock.begin()
    clock.second()
    assert seen() == {"0.5"}
    clock.change(clock.plan().rolled_back(clock.now_ms))
    clock.second()
    assert seen() == set()


def test_what_a_rollout_waits_for_is_told(clock: Clock) -> None:
    begin(clock)
    times = []
    for _ in range(12):
        clock.second()
        told: Any = clock.store.get("playhead:rollout:status:recommend")
        status = orjson.loads(told)
        times.append(status["ts"])
    assert len(set(times)) == 3, "each 5 s"
    assert (status["action"], status["challenger"], status["share"]) == ("wait", B, 0.5)
    assert "plays" in status["reason"]
    assert {one["metric"] for one in status["evidence"]} >= {"plays", "errors"}
    assert 0 < clock.store.ttl("playhead:rollout:status:recommend") <= 60
    clock.change(clock.plan().rolled_back(clock.now_ms))
    clock.second()
    assert clock.store.get("playhead:rollout:status:recommend") is None


def test_what_cannot_be_read_is_left_out(clock: Clock, store: redis.Redis) -> None:
    begin(clock, 0.5)
    store.xadd(STREAM, {FIELD: b"{"}, id=f"{clock.now_ms + 1}-1")
    store.xadd(STREAM, {"strange": b"x"}, id=f"{clock.now_ms + 2}-1")
    store.sadd(rollouts.MODELS, "other")
    store.set(rollouts.plan_key("other"), b"rubbish")
    assert clock.second().challenger == B
