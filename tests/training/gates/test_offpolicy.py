"""Estimators on logs whose truth is known."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.errors import InvalidInput
from training.gates.exposed import LEAST_EFFECTIVE, check_estimate, estimate, read_pages
from training.gates.offpolicy import LoggedSlots, doubly_robust, effective_size, ips, snips, weights_of

ACTIONS = 5
CONTEXTS = 3
REWARD = np.random.default_rng(0).uniform(0.05, 0.6, (CONTEXTS, ACTIONS))
LOGGING = np.random.default_rng(1).dirichlet(np.ones(ACTIONS) * 2, CONTEXTS) * 0.8 + 0.2 / ACTIONS
TARGET = np.random.default_rng(2).dirichlet(np.ones(ACTIONS), CONTEXTS)
TRUTH = float((TARGET * REWARD).sum(axis=1).mean())


def drawn(random, count):
    contexts = random.integers(0, CONTEXTS, count)
    actions = (LOGGING[contexts].cumsum(axis=1) < random.random((count, 1))).sum(axis=1).clip(max=ACTIONS - 1)
    rewards = (random.random(count) < REWARD[contexts, actions]).astype(float)
    log = LoggedSlots(rewards=rewards, propensities=LOGGING[contexts, actions], units=np.arange(count))
    return log, TARGET[contexts, actions], contexts, actions


def test_ips_and_dr_are_unbiased_and_their_intervals_hold_the_truth():
    random = np.random.default_rng(3)
    runs, wrong = 400, np.full((CONTEXTS, ACTIONS), 0.9)
    values, held = {"ips": [], "right": [], "wrong": []}, dict.fromkeys(("ips", "right", "wrong"), 0)
    for _ in range(runs):
        log, target, contexts, actions = drawn(random, 500)
        found = {"ips": ips(log, target)}
        for name, model in (("right", REWARD), ("wrong", wrong)):
            value = (TARGET * model).sum(axis=1)[contexts]
            found[name] = doubly_robust(log, target, model[contexts, actions], value)
        for name, one in found.items():
            values[name].append(one.interval.value)
            held[name] += one.interval.low <= TRUTH <= one.interval.high
    for name, seen in values.items():
        assert np.mean(seen) == pytest.approx(TRUTH, abs=4 * np.std(seen) / runs**0.5), name
        assert held[name] / runs > 0.91, name
    assert np.std(values["right"]) < np.std(values["ips"])


def test_dr_is_right_with_a_right_model_where_propensities_are_wrong():
    log, target, contexts, actions = drawn(np.random.default_rng(4), 60_000)
    off = LoggedSlots(rewards=log.rewards, propensities=np.minimum(log.propensities * 1.6, 1.0), units=log.units)
    value = (TARGET * REWARD).sum(axis=1)[contexts]
    found = doubly_robust(off, target, REWARD[contexts, actions], value).interval
    assert found.value == pytest.approx(TRUTH, abs=0.006)
    assert abs(ips(off, target).interval.value - TRUTH) > 0.05


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_snips_stays_within_the_rewards_and_no_size_exceeds_the_log(seed, count):
    log, target, _, _ = drawn(np.random.default_rng(seed), count)
    found = snips(log, target)
    assert log.rewards.min() - 1e-9 <= found.interval.value <= log.rewards.max() + 1e-9
    assert 0 < found.effective <= count + 1e-9


def test_clipping_bounds_weights_and_is_told():
    log, target, _, _ = drawn(np.random.default_rng(5), 2000)
    weights, clipped = weights_of(log, target, most=1.2)
    assert weights.max() == pytest.approx(1.2)
    assert 0 < clipped < 1
    assert effective_size(weights) > effective_size(weights_of(log, target)[0])


def test_what_can_not_be_weighted_is_refused():
    for field, given_ in (("propensity", (1.0, 0.0)), ("propensity", (1.0, 1.5)), ("reward", (np.nan, 0.5))):
        with pytest.raises(InvalidInput, match=field):
            LoggedSlots(rewards=np.array([given_[0]]), propensities=np.array([given_[1]]), units=np.zeros(1, int))
    with pytest.raises(InvalidInput, match="slots"):
        LoggedSlots(rewards=np.zeros(0), propensities=np.zeros(0), units=np.zeros(0, int))
    log, target, _, _ = drawn(np.random.default_rng(6), 10)
    with pytest.raises(InvalidInput, match="target"):
        ips(log, target + 2)


def exposures(random, pages, *, good="a"):
    """Two slots; each shows `a` to `d`, the first three quarters of the time its own; `good` is played most."""
    rows = []
    for number in range(pages):
        slots = []
        for own in ("b", "c"):
            title = own if random.random() < 0.7 else random.choice(["a", "d", "e"])
            slots.append([str(title), 0.7 if title == own else 0.1])
        shown = {"kind": "shown", "request_id": f"r{number}", "slots": json.dumps(slots), "title_id": None}
        rows.append(shown)
        rows += [
            {"kind": "played", "request_id": f"r{number}", "slots": None, "title_id": title}
            for title, _ in slots
            if random.random() < (0.4 if title == good else 0.1)
        ]
    common = {"model": "recommend", "failed": False, "device": "tv", "region": None}
    return pl.DataFrame(
        [{"ts": place, "profile_id": f"p{place % 50}", **common, **row} for place, row in enumerate(rows)],
        infer_schema_length=None,
    )


def test_logged_pages_tell_which_of_two_would_be_played_more():
    log = exposures(np.random.default_rng(7), 6000)
    pages = read_pages(log, "recommend")
    assert len(pages) == 6000
    assert read_pages(log, "another") == []
    assert read_pages(log.drop("slots"), "recommend") == []
    good, usual = [("a", "c")] * len(pages), [("b", "c")] * len(pages)
    found = estimate(pages, good, usual)
    assert found.advantage.low > 0
    assert found.estimates[2].interval.value == pytest.approx(0.25, abs=0.03)
    assert found.champion[2].interval.value == pytest.approx(0.1, abs=0.02)
    assert check_estimate(found).passed
    harmful = check_estimate(estimate(pages, usual, good))
    assert harmful.decides
    assert not harmful.passed
    few = check_estimate(estimate(pages[:100], usual[:100], good[:100]))
    assert f"decides from {LEAST_EFFECTIVE:.0f}" in few.text
    assert few.passed
    assert not few.decides
