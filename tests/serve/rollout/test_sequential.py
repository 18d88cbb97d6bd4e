"""Tests that may be looked at every second: they are fair bets under the null, find effects, and keep their word."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, hypergeom

from serve.errors import InvalidInput
from serve.rollout.sequential import DELTAS, CountTest, evidence_text

DIRECTIONS = st.sampled_from(["more", "fewer", "either"])
SHARES = st.floats(0.005, 0.995)
TOLERATED = st.sampled_from([0.7, 0.95, 1.0, 1.25])
PAST = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30), SHARES), max_size=4)


def seen(direction, past, tolerated=1.0):
    test = CountTest(direction, 0.01, tolerated)
    for challenger, champion, share in past:
        test.see(challenger, champion, share)
    return test


def odds(share, ratio):
    return share * ratio / (1.0 - share + share * ratio)


def mean_after(test, total, share, law):
    """Mean of the e-value after another window, over how many of its events are the challenger's."""
    state = test.state()
    values = []
    for challenger in range(total + 1):
        after = CountTest.from_state(state)
        after.see(challenger, total - challenger, share)
        values.append(math.exp(after.log_e - test.log_e))
    return float(np.dot(law, values))


@given(DIRECTIONS, PAST, st.integers(1, 25), SHARES, TOLERATED)
def test_under_the_null_no_window_is_worth_a_bet(direction, past, total, share, tolerated):
    test = seen(direction, past, tolerated)
    law = binom.pmf(np.arange(total + 1), total, odds(share, tolerated))
    assert mean_after(test, total, share, law) == pytest.approx(1.0, abs=1e-9)


@given(st.sampled_from(["more", "fewer"]), PAST, st.integers(1, 25), SHARES, st.floats(1.0, 5.0))
def test_on_the_harmless_side_it_loses(direction, past, total, share, factor):
    law = binom.pmf(np.arange(total + 1), total, odds(share, 1.0 / factor if direction == "more" else factor))
    assert mean_after(seen(direction, past), total, share, law) <= 1.0 + 1e-9


@given(DIRECTIONS, st.integers(1, 40), st.integers(1, 40), st.data())
def test_outcomes_of_a_few_requests_are_no_worse_than_rare_events(direction, challengers, champions, data):
    """Given how many of a window's requests were played, the challenger's are hypergeometric: less spread out."""
    requests = challengers + champions
    total = data.draw(st.integers(1, min(requests, 25)))
    law = hypergeom.pmf(np.arange(total + 1), requests, challengers, total)
    assert mean_after(seen(direction, []), total, challengers / requests, law) <= 1.0 + 1e-9


def crossings(direction, ratio, runs, looks, *, alpha=0.05, tolerated=1.0, seed=0):
    """Runs that were ever rejected, looked at after each window; shares change on the way."""
    rng = np.random.default_rng(seed)
    shares = np.repeat([0.01, 0.1, 0.5], looks // 3)
    totals = rng.poisson(40.0 * (1.0 + 0.8 * np.sin(np.arange(len(shares)) / 9.0)), (runs, len(shares)))
    challengers = rng.binomial(totals, odds(shares, ratio))
    hits = 0
    for run in range(runs):
        test = CountTest(direction, alpha, tolerated)
        hits += any(
            test.see(one, total - one, share)
            for one, total, share in zip(challengers[run].tolist(), totals[run].tolist(), shares.tolist(), strict=True)
        )
    return hits


@pytest.mark.parametrize("direction", ["more", "fewer", "either"])
def test_looking_often_does_not_reject_more_than_alpha(direction):
    runs = 300
    hits = crossings(direction, 1.0, runs, 150)
    assert hits <= binom.ppf(0.999, runs, 0.05)
    assert hits > 0  # or the test could not tell a fair test from one that never speaks


def test_a_loss_as_large_as_the_margin_is_seldom_called_harmless():
    assert crossings("more", 0.8, 200, 150, tolerated=0.8, seed=1) <= binom.ppf(0.999, 200, 0.05)


@pytest.mark.parametrize(("direction", "ratio"), [("more", 1.3), ("fewer", 0.7), ("either", 1.3), ("either", 0.7)])
def test_effects_are_found(direction, ratio):
    assert crossings(direction, ratio, 20, 240, alpha=0.001) == 20


@pytest.mark.parametrize(("direction", "ratio"), [("more", 0.5), ("fewer", 2.0)])
def test_a_one_sided_test_leaves_the_other_side_alone(direction, ratio):
    assert crossings(direction, ratio, 50, 150) == 0


def test_the_ratio_is_held_at_every_look():
    rng = np.random.default_rng(2)
    missed = 0
    for run in range(200):
        ratio = (0.5, 1.0, 3.0)[run % 3]
        test = CountTest("more", 0.01)
        held = True
        for look in range(60):
            total = int(rng.poisson(30))
            challenger = int(rng.binomial(total, odds(0.1, ratio)))
            test.see(challenger, total - challenger, 0.1)
            bounds = test.ratio(0.05)
            held &= bounds.low <= ratio <= (bounds.high or math.inf)
            if look == 59:
                assert bounds.low < bounds.estimate < bounds.high
        missed += not held
    assert missed <= binom.ppf(0.999, 200, 0.05)


def test_bounds_narrow_and_the_estimate_is_near():
    widths = []
    for times in (1, 10, 100, 1000):
        test = CountTest("more", 0.01)
        test.see(15 * times, 90 * times, 0.1)
        bounds = test.ratio(0.05)
        widths.append(math.log(bounds.high / bounds.low))
    assert all(later < earlier for earlier, later in pairwise(widths))
    assert bounds.estimate == pytest.approx(1.5, rel=0.03)


@given(DIRECTIONS, PAST, PAST)
def test_a_restored_test_goes_on_the_same(direction, before, after):
    test = seen(direction, before)
    restored = CountTest.from_state(json.loads(json.dumps(test.state())))
    for window in after:
        assert restored.see(*window) == test.see(*window)
    assert restored.state() == test.state()
    assert restored.ratio(0.05) == test.ratio(0.05)


@pytest.mark.parametrize(
    "change", [{"kind": "series"}, {"version": 99}, {"log_likelihoods": [0.0]}, {"direction": "up"}]
)
def test_another_state_is_refused(change):
    with pytest.raises(InvalidInput):
        CountTest.from_state({**CountTest("more", 0.01).state(), **change})


@pytest.mark.parametrize("window", [(0, 0, 0.1), (3, 5, 0.0), (3, 5, 1.0), (0, 0, 0.0)])
def test_windows_with_nothing_to_compare_say_nothing(window):
    test = CountTest("either", 0.01)
    assert test.see(*window) is False
    assert (test.log_e, test.e_value, test.challenger) == (0.0, 1.0, 0)
    bounds = test.ratio(0.05)
    assert (bounds.estimate, bounds.low, bounds.high) == (None, 0.0, None)


@pytest.mark.parametrize("window", [(-1, 0, 0.1), (0, -1, 0.1), (1, 1, 1.1), (1, 1, -0.1), (1, 1, math.nan)])
def test_windows_that_cannot_be_are_refused(window):
    with pytest.raises(InvalidInput):
        CountTest("more", 0.01).see(*window)


@pytest.mark.parametrize("arguments", [("up", 0.01), ("more", 0.0), ("more", 1.0), ("more", 0.01, 0.0)])
def test_settings_that_cannot_be_are_refused(arguments):
    with pytest.raises(InvalidInput):
        CountTest(*arguments)


def test_a_billion_events_are_no_trouble():
    alike, worse = CountTest("more", 0.001), CountTest("more", 0.001)
    for _ in range(1000):
        alike.see(10_000, 990_000, 0.01)
        worse.see(20_000, 980_000, 0.01)
    assert not alike.rejected
    assert alike.e_value < 1e-3
    bounds = alike.ratio(0.05)
    assert 0.98 < bounds.low < 1.0 < bounds.high < 1.02
    assert worse.rejected
    assert math.isfinite(worse.e_value)
    json.dumps(worse.state(), allow_nan=False)
    far = CountTest("more", 0.001)
    far.see(10**9, 0, 1e-6)
    assert far.ratio(0.05).high is None
    assert math.isfinite(far.e_value)
    assert math.isfinite(far.log_e)


def test_what_was_rejected_once_stays_so():
    test = CountTest("more", 0.01)
    assert test.see(30, 10, 0.1)
    assert test.see(0, 5000, 0.1)
    assert test.e_value < 1.0


def test_the_grid_is_fine_near_one_and_reaches_far():
    assert np.all(np.diff(DELTAS) > 0)
    assert np.exp(DELTAS[[0, -1]]) == pytest.approx([1 / 50, 50])
    assert np.abs(DELTAS).min() < 1e-12
    assert np.diff(DELTAS).min() < 0.006


def test_evidence_is_told_as_people_write_numbers() -> None:
    assert [evidence_text(value) for value in (0.0123, 4.857, 99.94, 100.0, 750.0, 1_022.8, 3.2e12)] == [
        "0.0123", "4.86", "99.9", "100", "750", "1,023", "3.2e+12",
    ]  # fmt: skip
