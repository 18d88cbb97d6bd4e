"""Bitrate policies by what became of sessions: who counts, as what, by which arm; on a real store."""

import random
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from serve.metrics import Metrics
from serve.rollout.asked import FIELD, STREAM, Asked, AskedWriter, read_asked
from serve.rollout.assignment import assign
from serve.rollout.decisions import Decision, Limits
from serve.rollout.outcomes import LEAST, Usual, kinds_of, learn
from serve.rollout.plans import RolloutPlan
from serve.rollout.session_trials import SESSION_LIMITS, SETTLED_MS, SessionTrial

BEGAN_MS = 1_790_000_000_000
PLAN = RolloutPlan(model="bitrate", champion="a" * 12).begun("b" * 12, 0.5, BEGAN_MS)
TENTH = PLAN.shared(0.1, BEGAN_MS)


def over(session: str, **values: Any) -> dict[str, Any]:
    """A session that began a minute after the stage, and was fine."""
    began_ms = BEGAN_MS + 60_000
    return {
        "session": session, "first_ts": began_ms, "last_ts": began_ms + 600_000, "started": True, "startup_ms": 800.0,
        "played_ms": 590_000, "stall_ms": 0.0, "stalls": 0, "mean_kbps": 3000.0, "mean_vmaf": 90.0, "switches": 3,
        "errors": 0, "end": "quit", **values,
    }  # fmt: skip


def asking(*names: str, plan: RolloutPlan = PLAN) -> list[Asked]:
    return [Asked(plan.salt, plan.share, names)]


def counted(trial: SessionTrial, metric: str) -> int:
    (found,) = [one for one in trial.judge.evidence() if one.metric == metric]
    return found.challenger + found.champion


def decide(trial: SessionTrial, seconds: float = 1.0) -> Decision:
    return trial.decide(seconds, is_drifting=False)


def usual(**values: float) -> Usual:
    """As sessions alike usually are."""
    found, window = Usual(), dict[str, dict[int, int]]()
    for _ in range(LEAST):
        learn(window, over("s", **values))
    found.see(window)
    return found


def test_a_session_is_counted_once_if_it_asked_and_began_in_the_stage(store: redis.Redis) -> None:
    trial = SessionTrial(PLAN)
    trial.ask(store, asking("s1", "s2", "s2", "old"))
    trial.ask(store, asking("s1", "s3"))
    early = over("old", first_ts=BEGAN_MS + SETTLED_MS - 1)
    trial.take(store, [over("s1", end="failed"), over("never", end="failed"), early])
    trial.take(store, [over("s1", end="failed")])
    decision = decide(trial)
    assert trial.told() == {"sessions_asked": 4, "sessions_over": 1}
    assert (counted(trial, "assignment"), counted(trial, "failures"), counted(trial, "bad_qoe")) == (4, 1, 1)
    assert decision.challenger_requests + decision.champion_requests == 1


def test_its_arm_is_that_of_its_id(store: redis.Redis) -> None:
    trial, names = SessionTrial(PLAN), [f"s{number}" for number in range(60)]
    trial.ask(store, asking(*names))
    trial.take(store, [over(name, stall_ms=60_000.0) for name in names])
    decide(trial)
    (found,) = [one for one in trial.judge.evidence() if one.metric == "rebuffered"]
    challenged = sum(assign(PLAN, name).challenged for name in names)
    assert (found.challenger, found.champion) == (challenged, 60 - challenged)


def test_other_rollouts_and_stages_are_left_out(store: redis.Redis) -> None:
    trial, before = SessionTrial(PLAN), PLAN.shared(0.1, BEGAN_MS)
    other = RolloutPlan(model="bitrate", champion="a" * 12).begun("b" * 12, 0.5, BEGAN_MS + 1)
    trial.ask(store, [*asking("s1", plan=before), *asking("s2", plan=other)])
    trial.take(store, [over("s1"), over("s2")])
    assert trial.told() == {"sessions_asked": 0, "sessions_over": 0}
    assert not any(trial.is_of(plan) for plan in (before, other, PLAN.rolled_back(5)))
    assert trial.is_of(PLAN)


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ({}, {"good_qoe"}),
        ({"stall_ms": 5_000.0}, {"good_qoe"}),
        ({"stall_ms": 7_000.0}, {"rebuffered", "bad_qoe"}),
        ({"mean_vmaf": 70.0}, {"low_quality", "bad_qoe"}),
        ({"startup_ms": 3_000.0}, {"slow_starts", "good_qoe"}),
        ({"end": "failed"}, {"failures", "bad_qoe"}),
        ({"started": False, "startup_ms": None, "played_ms": 0, "mean_vmaf": None, "mean_kbps": None},
         {"failures", "bad_qoe"}),
        ({"started": False, "startup_ms": None, "played_ms": 0, "last_ts": BEGAN_MS + 61_000}, set()),
        ({"mean_vmaf": None, "mean_kbps": None}, set()),
    ],
)  # fmt: skip
def test_what_a_session_counts_as(values: dict[str, Any], kinds: set[str]) -> None:
    known = Usual()
    window: dict[str, dict[int, int]] = {}
    for number in range(LEAST):
        learn(window, over("s", mean_vmaf=85.0 + number % 11, stall_ms=100.0 * (number % 60)))
    known.see(window)
    assert set(kinds_of(over("s", **values), known)) == kinds


def test_sessions_with_vmaf_and_without_are_held_against_their_like() -> None:
    told = usual(mean_vmaf=90.0)
    assert set(kinds_of(over("s", mean_vmaf=None, mean_kbps=100.0), told)) == set(), "nothing is known of such yet"
    guessed = usual(mean_vmaf=None, mean_kbps=3000.0)
    assert set(kinds_of(over("s", mean_vmaf=None, mean_kbps=100.0), guessed)) == {"low_quality", "bad_qoe"}
    assert set(kinds_of(over("s", mean_vmaf=1.0), guessed)) == set()


def test_before_anything_is_usual_only_failures_and_stalls_count() -> None:
    assert set(kinds_of(over("s", mean_vmaf=1.0, startup_ms=99_000.0, stall_ms=99_000.0), Usual())) == {"rebuffered"}


@given(st.integers(0, 10**7), st.floats(0, 1e7), st.floats(0, 100) | st.none(), st.floats(0, 1e5) | st.none())
def test_no_session_breaks_it(played_ms: int, stall_ms: float, vmaf: float | None, kbps: float | None) -> None:
    kinds = set(kinds_of(over("s", played_ms=played_ms, stall_ms=stall_ms, mean_vmaf=vmaf, mean_kbps=kbps), usual()))
    assert not {"bad_qoe", "good_qoe"} <= kinds


def sessions(
    count: int, rng: random.Random, plan: RolloutPlan, *, worse: float
) -> Iterator[tuple[list[Asked], list[dict[str, Any]]]]:
    """Forty a second, of whom one in five rebuffers, the challenger's `worse` times as often."""
    for second in range(count):
        names = [f"{second}-{number}" for number in range(40)]
        found = []
        for name in names:
            chance = 0.2 * (worse if assign(plan, name).challenged else 1.0)
            stall_ms = 30_000.0 if rng.random() < chance else 0.0
            found.append(over(name, stall_ms=stall_ms, mean_vmaf=rng.gauss(85, 5)))
        yield asking(*names, plan=plan), found


def see(trial: SessionTrial, store: redis.Redis, count: int, worse: float, seed: int = 1) -> Iterator[Decision]:
    plan = TENTH if trial.is_of(TENTH) else PLAN
    for asked, found in sessions(count, random.Random(seed), plan, worse=worse):
        trial.ask(store, asked)
        trial.take(store, found)
        yield decide(trial)


def test_more_rebuffering_is_rolled_back_and_as_much_passes(store: redis.Redis) -> None:
    worst = next(one for one in see(SessionTrial(PLAN), store, 200, 1.6) if one.action == "roll_back")
    assert worst.metric in {"rebuffered", "bad_qoe"}
    assert worst.reason.startswith(str(worst.metric))
    store.flushall()
    limits = Limits(metrics=SESSION_LIMITS.metrics, kept=SESSION_LIMITS.kept, least_s=30.0)
    alike = list(see(SessionTrial(TENTH, limits), store, 300, 1.0))
    assert {one.action for one in alike} == {"wait", "advance"}
    assert "sessions of good QoE isn't ruled out" in alike[100].reason


def test_a_trial_goes_on_where_it_was(store: redis.Redis) -> None:
    one = SessionTrial(PLAN)
    for _ in see(one, store, 70, 1.3):
        pass
    assert one.usual.limit("perceptual_qoe") is not None
    other = SessionTrial.from_state(orjson.loads(orjson.dumps(one.state())))
    assert other.state() == one.state()
    rest = [list(see(trial, store, 0, 1.3)) or decide(trial) for trial in (one, other)]
    assert rest[0] == rest[1]
    again = over("0-1", stall_ms=30_000.0)
    other.take(store, [again])
    assert other.told() == one.told(), "it was counted before"


async def test_sessions_are_told_once_a_stage_in_batches(store: redis.Redis, valkey_url: str) -> None:
    writer = AskedWriter(valkey_url, Metrics())
    writer.decided("", 0.0, ["nobody"])
    writer.decided("salt", 0.1, ["s1", None, "s2", "s1"])
    writer.decided("salt", 0.1, [f"n{number}" for number in range(700)])
    await writer.flush()
    writer.decided("salt", 0.5, ["s1"])
    await writer.flush()
    await writer.close()
    entries: Any = store.xrange(STREAM)
    told = [read_asked(fields[FIELD]) for _, fields in entries]
    assert [(one.share, len(one.sessions)) for one in told] == [(0.1, 500), (0.1, 202), (0.5, 1)]
    assert told[0].sessions[:2] == ("s1", "s2")


async def test_the_session_that_was_told_longest_ago_is_told_again(
    store: redis.Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.rollout.asked._MOST_REMEMBERED", 3)
    writer = AskedWriter(valkey_url, Metrics())
    for name in ("s1", "s2", "s3", "s4", "s3", "s2", "s1"):
        writer.decided("salt", 0.1, [name])
    await writer.flush()
    await writer.close()
    ((_, fields),) = store.xrange(STREAM)
    assert read_asked(fields[FIELD]).sessions == ("s1", "s2", "s3", "s4", "s1")


async def test_what_a_dead_store_does_not_take_is_dropped_and_counted() -> None:
    metrics = Metrics()
    writer = AskedWriter("redis://127.0.0.1:9", metrics)
    writer.decided("salt", 0.1, ["s1", "s2"])
    await writer.flush()
    await writer.close()
    metrics.flush()
    assert 'playhead_stage_failures_total{kind="StoreUnavailable",stage="asked"} 2.0' in metrics.render().decode()


@pytest.mark.parametrize("dumped", [b"", b"[]", b"{}", b'{"salt": 1, "share": 0.1, "sessions": []}'])
def test_what_is_no_entry_is_refused(dumped: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_asked(dumped)
