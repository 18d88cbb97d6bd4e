"""What exposures say of a challenger, counted once a profile and kind, with a real store remembering who was seen."""

import random
from collections.abc import Iterator
from typing import Any

import orjson
import redis

from serve.rollout.assignment import assign
from serve.rollout.exposures import PLAYED, SHOWN, read_exposure
from serve.rollout.plans import RolloutPlan
from serve.rollout.trials import Trial

PLAN = RolloutPlan(model="recommend", champion="a" * 12).begun("b" * 12, 0.5, 1_000)


def page(number: int, profile: str, plan: RolloutPlan = PLAN, **values: Any) -> dict[str, Any]:
    found = assign(plan, profile)
    return read_exposure(orjson.dumps({
        "kind": SHOWN, "ts": number, "request_id": f"r{number}", "profile_id": profile, "model": plan.model,
        "challenged": found.challenged, "propensity": found.propensity, "salt": plan.salt, "seconds": 0.001, **values,
    }))  # fmt: skip


def play(number: int, profile: str = "p") -> dict[str, Any]:
    return read_exposure(
        orjson.dumps({"kind": PLAYED, "ts": number, "request_id": f"r{number}", "profile_id": profile})
    )


def counted(trial: Trial, metric: str) -> tuple[int, int]:
    (found,) = [one for one in trial.judge.evidence() if one.metric == metric]
    return found.challenger, found.champion


def test_a_profile_counts_once_a_kind_by_its_arm(store: redis.Redis) -> None:
    trial = Trial(PLAN)
    names = [f"p{number}" for number in range(40)]
    arms = [assign(PLAN, name).challenged for name in names]
    pages = [page(number, name, failed=number % 4 == 0) for number, name in enumerate(names)]
    again = [page(100 + number, name, failed=True) for number, name in enumerate(names)]
    decision = trial.see(store, [*pages, *again], 1.0, is_drifting=False)
    assert decision.action == "wait"
    assert counted(trial, "assignment") == (sum(arms), 40 - sum(arms))
    assert counted(trial, "errors") == (sum(arms), 40 - sum(arms)), "the first of each, whenever it came"
    assert decision.challenger_requests == 2 * sum(arms)
    trial.see(store, again, 1.0, is_drifting=False)
    assert counted(trial, "errors") == (sum(arms), 40 - sum(arms))
    assert counted(trial, "plays") == (0, 0)
    trial.see(store, [play(0), play(0), play(1), play(101), play(9999)], 1.0, is_drifting=False)
    assert sum(counted(trial, "plays")) == 2, "plays of first pages, each once"


def test_other_models_rollouts_and_stages_are_left_out(store: redis.Redis) -> None:
    trial = Trial(PLAN)
    before = PLAN.shared(0.1, 2_000)
    other = RolloutPlan(model="recommend", champion="a" * 12).begun("b" * 12, 0.5, 9_000)
    elsewhere = RolloutPlan(model="other", champion="a" * 12).begun("b" * 12, 0.5, 1_000)
    pages = [page(number, f"p{number}", plan) for number, plan in enumerate([before, other, elsewhere])]
    pages.append(page(7, "q", salt="", propensity=1.0, challenged=False))
    assert trial.see(store, pages, 1.0, is_drifting=False).champion_requests == 0
    assert counted(trial, "assignment") == (0, 0)
    assert trial.is_of(PLAN)
    assert not any(trial.is_of(plan) for plan in (before, other, PLAN.rolled_back(5)))


def test_a_trial_goes_on_where_it_was(store: redis.Redis) -> None:
    one = Trial(PLAN)
    pages = [page(number, f"p{number}", seconds=0.001 * (1 + number % 7)) for number in range(5_000)]
    one.see(store, pages, 12.0, is_drifting=False)
    other = Trial.from_state(orjson.loads(orjson.dumps(one.state())))
    slow = [page(9_000 + number, f"s{number}", seconds=1.0 + number / 1000) for number in range(50)]
    one.see(store, slow, 1.0, is_drifting=False)
    store.delete(*store.keys("playhead:rollout:seen:*:slow"), *store.keys("playhead:rollout:seen:*:very_slow"))
    other.see(store, slow, 1.0, is_drifting=False)
    assert counted(one, "slow") == counted(other, "slow")
    assert sum(counted(one, "slow")) == 50


def test_pages_of_one_batch_are_slow_once(store: redis.Redis) -> None:
    trial = Trial(PLAN)
    usual = [page(number, f"p{number}", seconds=0.001 * (1 + number % 7)) for number in range(5_000)]
    trial.see(store, usual, 12.0, is_drifting=False)
    names = [f"s{number}" for number in range(200)]
    mine = [name for name in names if assign(PLAN, name).challenged]
    paused = [page(9_000 + number, name, seconds=0.5) for number, name in enumerate(mine)]
    decision = trial.see(store, paused, 1.0, is_drifting=False)
    assert len(mine) > 50
    assert counted(trial, "slow") == counted(trial, "very_slow") == (1, 0)
    assert decision.action == "wait"


def traffic(seconds: int, rng: random.Random, *, plays: float, worse: float) -> Iterator[list[dict[str, Any]]]:
    """A second's exposures at a time: 40 new profiles, of whom a share plays, the challenger's `worse` as often."""
    number = 0
    for _ in range(seconds):
        told = []
        for _ in range(40):
            number += 1
            one = page(number, f"p{number}")
            told.append(one)
            if rng.random() < plays * (worse if one["challenged"] else 1.0):
                told.append(play(number))
        yield told


def test_fewer_plays_are_rolled_back_and_as_many_pass(store: redis.Redis) -> None:
    rng = random.Random(1)
    trial = Trial(PLAN)
    actions = [trial.see(store, told, 1.0, is_drifting=False) for told in traffic(300, rng, plays=0.3, worse=0.5)]
    worst = next(one for one in actions if one.action == "roll_back")
    assert worst.metric == "plays"
    (found,) = [one for one in worst.evidence if one.metric == "plays"]
    assert found.ratio is not None
    assert found.ratio < 0.8
    assert found.e_value >= found.needed
    store.flushall()
    alike = Trial(PLAN)
    actions = [alike.see(store, told, 1.0, is_drifting=False) for told in traffic(700, rng, plays=0.5, worse=1.0)]
    assert {one.action for one in actions} == {"wait", "advance"}
    assert next(one for one in actions if one.action == "advance").seconds >= 300


def test_the_watchtowers_word_is_enough(store: redis.Redis) -> None:
    assert Trial(PLAN).see(store, [], 1.0, is_drifting=True).action == "roll_back"
