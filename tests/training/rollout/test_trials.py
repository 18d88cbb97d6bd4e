"""Simulated rollouts: decided as they should be, alike for the same seed, with the dependence that they claim."""

import numpy as np
import pytest

from serve.rollout.decisions import STAGES
from training.rollout.trials import ALIKE, EFFECTS, roll_out, upper
from training.rollout.viewers import Population, Traffic


@pytest.fixture(scope="module")
def population():
    return Population.draw(np.random.default_rng(0), 100_000)


def totals(population, effect, *, share, once, minutes=2):
    windows = Traffic(np.random.default_rng(1), population, effect, once=once).stage(share)
    seconds = [next(windows)[0] for _ in range(60 * minutes)]
    return {
        arm: {
            kind: sum(getattr(getattr(one, arm), kind) for one in seconds)
            for kind in ("requests", "profiles", "plays", "errors", "degraded", "slow", "very_slow")
        }
        for arm in ("challenger", "champion")
    }


def test_a_challenger_that_is_alike_is_promoted(population):
    trial = roll_out((0, 0), population, ALIKE)
    assert (trial.ended, trial.metric, trial.share) == ("promoted", None, STAGES[-1].share)
    assert trial == roll_out((0, 0), population, ALIKE)


@pytest.mark.parametrize("name", ["plays -50 %", "p99 x2", "errors x3", "degraded x3"])
def test_harm_is_rolled_back(population, name):
    trial = roll_out((0, 1), population, EFFECTS[name])
    assert trial.ended == "rolled_back"
    assert (
        trial.metric == {"plays": "plays", "p99": "slow", "errors": "errors", "degraded": "degraded"}[name.split()[0]]
    )


def test_once_counts_a_profile_once(population):
    once = totals(population, ALIKE, share=0.1, once=True, minutes=10)
    every = totals(population, ALIKE, share=0.1, once=False, minutes=10)
    for arm in ("challenger", "champion"):
        assert once[arm]["requests"] == every[arm]["requests"] == every[arm]["profiles"] > once[arm]["profiles"]
        for kind in ("errors", "degraded", "slow", "very_slow"):
            assert 0 < once[arm][kind] <= every[arm][kind]
    assert every["champion"]["errors"] > 2 * once["champion"]["errors"]  # the few with broken data, again and again


def test_effects_are_the_challengers_alone(population):
    alike = totals(population, ALIKE, share=0.5, once=False)
    for name, kind, factor in [("plays -50 %", "plays", 0.5), ("errors x3", "errors", 1.5), ("p99 x2", "slow", 3.0)]:
        worse = totals(population, EFFECTS[name], share=0.5, once=False)
        changed = worse["challenger"][kind] / alike["challenger"][kind]
        assert (changed < factor * 1.1) if factor < 1 else (changed > factor)
        assert worse["champion"][kind] == pytest.approx(alike["champion"][kind], rel=0.1)


def test_about_one_answer_in_a_hundred_is_slow(population):
    every = totals(population, ALIKE, share=0.1, once=False, minutes=5)["champion"]
    assert 0.005 < every["slow"] / every["requests"] < 0.02


def test_upper_bounds():
    assert upper(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert upper(3, 3) == 1.0
    assert upper(5, 1000) > 0.005
