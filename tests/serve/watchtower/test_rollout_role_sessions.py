"""The role that decides, of bitrate policies: sessions in the logs as the gateway and the sink know them."""

import random
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from features.settings import Settings
from features.sink import LogSink
from serve.rollout import board as rollouts
from serve.rollout.asked import FIELD as ASKED_FIELD
from serve.rollout.asked import STREAM as ASKED
from serve.rollout.assignment import assign
from serve.rollout.decisions import LEAST_VARIABLE, Limits
from serve.rollout.plans import RolloutPlan
from serve.rollout.session_log import GROUP
from serve.rollout.session_trials import SESSION_LIMITS
from serve.telemetry import records
from serve.telemetry.reports import DIMENSIONS
from serve.watchtower.board import ROLLOUT_ROLE
from serve.watchtower.leases import Leases
from serve.watchtower.roles.rollouts import RolloutRole
from tests.serve.rollout.test_session_trials import over

A, B = "a" * 12, "b" * 12
NOTE: dict[str, Any] = {"action": "test", "by": "test", "reason": "", "evidence": {}}
LIMITS = Limits(metrics=SESSION_LIMITS.metrics, kept=SESSION_LIMITS.kept, least_s=5.0)


class Clock:
    """A role with a clock of its own, and sessions."""

    def __init__(self, store: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.now_ms = 1_790_000_000_000
        self.number = 0
        self.rng = random.Random(5)
        monkeypatch.setattr("serve.watchtower.roles.rollouts.store_ms", lambda _: self.now_ms)
        self.leases = Leases(store, "only", [ROLLOUT_ROLE])
        self.begin()

    def begin(self) -> None:
        self.leases._renewed_s = 0.0
        self.leases.tick()
        lease = self.leases.held[ROLLOUT_ROLE]
        self.role = RolloutRole(self.store, self.leases, lease, session_limits=LIMITS)

    def plan(self) -> RolloutPlan:
        return rollouts.load_plan(self.store.get(rollouts.plan_key("bitrate")))

    def change(self, plan: RolloutPlan) -> None:
        assert self.store.execute_command("EVAL", *rollouts.change_arguments(plan, NOTE))

    def tell(self, count: int, *, stalls: float = 1.0) -> None:
        """Sessions that asked, and are over; the challenger's rebuffer `stalls` times as often as one in five."""
        plan, pipe = self.plan(), self.store.pipeline(transaction=False)
        names = [f"s{self.number + place}" for place in range(count)]
        self.number += count
        asked = orjson.dumps({"salt": plan.salt, "share": plan.share, "sessions": names})
        pipe.xadd(ASKED, {ASKED_FIELD: asked}, id=f"{self.now_ms - 500}-{self.number}")
        for name in names:
            chance = 0.2 * (stalls if assign(plan, name).challenged else 1.0)
            one = over(name, stall_ms=30_000.0 if self.rng.random() < chance else 0.0,
                       mean_vmaf=self.rng.gauss(85, 5), first_ts=self.now_ms, last_ts=self.now_ms)  # fmt: skip
            record = orjson.dumps({**dict.fromkeys(DIMENSIONS), **one})
            pipe.xadd(records.STREAM, {records.FIELD: record})
        pipe.execute()

    def second(self, count: int = 60, **sessions: float) -> RolloutPlan:
        self.now_ms += 1_000
        if self.plan().challenger and count:
            self.tell(count, **sessions)
        self.leases.tick()
        self.role.step()
        return self.plan()

    def status(self) -> dict[str, Any]:
        dumped: Any = self.store.get(rollouts.status_key("bitrate"))
        found: dict[str, Any] = orjson.loads(dumped)
        return found

    def groups(self) -> list[bytes]:
        found: Any = self.store.xinfo_groups(records.STREAM) if self.store.exists(records.STREAM) else []
        return [group["name"] for group in found]


@pytest.fixture
def clock(store: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(store, monkeypatch)


def begin(clock: Clock, share: float) -> None:
    clock.change(RolloutPlan(model="bitrate", champion=A).begun(B, share, clock.now_ms))
    clock.second(0)
    clock.now_ms += 10_000


def test_a_policy_that_rebuffers_more_is_rolled_back_with_its_evidence(clock: Clock) -> None:
    begin(clock, 0.5)
    seconds = 0
    while (plan := clock.second(stalls=2.0)).challenger is not None:
        seconds += 1
        assert seconds < 60
    assert (plan.champion, plan.previous) == (A, None)
    change = rollouts.load_changes(clock.store.xrevrange(rollouts.LOG))[0]
    assert (change["action"], change["by"], change["evidence"]["metric"]) == ("rollback", "playhead", "rebuffered")
    clock.second()
    assert GROUP.encode() not in clock.groups(), "nobody waits for records any more"


def test_more_exposures_than_can_be_read_leave_time_for_sessions(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.watchtower.roles.rollouts.DRAIN_S", 0.3)
    begin(clock, 0.5)
    monkeypatch.setattr(clock.role, "_exposures", lambda: (2_000, []))  # always full, of other models
    salt, pipe = clock.plan().salt, clock.store.pipeline(transaction=False)
    last = f"{clock.now_ms}-400"
    for number in range(1, 401):  # eight reads' worth
        asked = orjson.dumps({"salt": salt, "share": 0.5, "sessions": [f"s{number}"]})
        pipe.xadd(ASKED, {ASKED_FIELD: asked}, id=f"{clock.now_ms}-{number}")
    pipe.execute()
    for _ in range(2):
        clock.second(0)
    assert clock.role._sessions.position == last


def test_one_that_is_as_good_goes_on_to_the_next_stage(clock: Clock) -> None:
    begin(clock, 0.1)
    for _ in range(200):
        plan = clock.second(count=150)
        if plan.share == 0.5:
            break
    assert plan.share == 0.5
    usual = clock.role._trials["bitrate"]
    clock.second()
    assert clock.role._trials["bitrate"] is not usual
    assert clock.role._trials["bitrate"].usual.limit("vmaf") is not None, "what was learned goes along"  # type: ignore[union-attr]


def test_a_stage_lasts_as_long_as_is_set_for_pages(clock: Clock) -> None:
    limits = Limits.from_env({LEAST_VARIABLE: "7"})
    clock.role = RolloutRole(clock.store, clock.leases, clock.leases.held[ROLLOUT_ROLE], limits)
    begin(clock, 0.5)
    clock.second(count=10)
    trial = clock.role._trials["bitrate"]
    assert (trial.judge.limits.least_s, trial.judge.limits.kept) == (7.0, SESSION_LIMITS.kept)


def test_what_a_rollout_waits_for_is_told(clock: Clock) -> None:
    begin(clock, 0.5)
    for _ in range(6):
        clock.second(count=10)
    status = clock.status()
    assert (status["action"], status["challenger"]) == ("wait", B)
    assert {one["metric"] for one in status["evidence"]} == set(SESSION_LIMITS.metrics)
    assert status["beside"]["sessions_asked"] == status["beside"]["sessions_over"] > 0


def test_sessions_that_never_asked_count_for_nothing(clock: Clock) -> None:
    begin(clock, 0.5)
    pipe = clock.store.pipeline(transaction=False)
    for number in range(20):
        record = orjson.dumps({**dict.fromkeys(DIMENSIONS), **over(f"n{number}", end="failed")})
        pipe.xadd(records.STREAM, {records.FIELD: record})
    pipe.xadd(records.STREAM, {records.FIELD: b"rubbish"})
    pipe.xadd(ASKED, {ASKED_FIELD: b"rubbish"}, id=f"{clock.now_ms}-1")
    pipe.execute()
    for _ in range(6):
        clock.second(count=0)
    assert clock.status()["beside"] == {"sessions_asked": 0, "sessions_over": 0}


def test_a_role_that_is_taken_over_goes_on_and_the_sink_keeps_what_it_needs(
    clock: Clock, settings: Settings, tmp_path: Path
) -> None:
    begin(clock, 0.5)
    sink = LogSink(settings, tmp_path / "sessions", records.SESSIONS, wait_ms=1)
    clock.tell(300)
    clock.now_ms += 1_000
    while sink.drain():
        pass
    assert clock.store.xlen(records.STREAM) == 300, "not read by whoever decides"
    clock.leases.close()
    clock.begin()
    for _ in range(6):
        clock.second(count=0)
    assert clock.status()["beside"]["sessions_over"] == 300
    clock.tell(1)
    sink.drain()
    sink.close()
    assert clock.store.xlen(records.STREAM) <= 1


def test_a_store_that_was_lost_is_read_again(clock: Clock) -> None:
    begin(clock, 0.5)
    clock.second(count=10)
    plan = clock.plan()
    clock.store.flushall()
    clock.leases.held.clear()
    clock.change(RolloutPlan.from_json({**plan.as_json(), "revision": 1}))
    clock.begin()
    for _ in range(7):
        clock.second(count=10)
    assert clock.status()["beside"]["sessions_over"] > 10
