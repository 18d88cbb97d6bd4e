"""Intervals hold the truth as often as they say, over units that hold several items each."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from training.gates.intervals import bootstrap, mean, ratio, units_needed, weighted_quantile


def gains(random, profiles, *, worse=0.0, alike=0.0):
    """NDCG@10 of starts: few are hits, and profiles differ in taste and number; (candidate, champion, unit)."""
    starts = 1 + random.poisson(2 * np.minimum(random.lognormal(0, 0.9, profiles), 12))
    units = np.repeat(np.arange(profiles), starts)
    taste = random.uniform(0.1, 0.35, profiles)[units]

    def answer(hit):
        return np.where(random.random(len(units)) < hit, 1 / np.log2(1 + random.integers(1, 11, len(units))), 0.0)

    champion = answer(taste)
    candidate = np.where(random.random(len(units)) < alike, champion, answer(taste)) * (1 - worse)
    return candidate, champion, units


@pytest.mark.parametrize(("profiles", "alike"), [(100, 0.0), (100, 0.9), (300, 0.9)])
def test_an_interval_misses_the_truth_as_rarely_as_it_says(profiles, alike):
    random = np.random.default_rng(1)
    runs = 800
    below = above = 0
    for _ in range(runs):
        found = ratio(*gains(random, profiles, alike=alike))
        below += found.high < 1
        above += found.low > 1
    # 2.5 % each; 4 standard errors of the count are 2.2 %
    assert below / runs < 0.047
    assert above / runs < 0.047
    assert (below + above) / runs > 0.015


def test_bounds_of_the_same_are_a_point():
    _, champion, units = gains(np.random.default_rng(2), 200)
    found = ratio(champion, champion, units)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_too_little_says_nothing():
    one = ratio(np.array([1.0]), np.array([1.0]), np.array([0]))
    assert (one.low, one.high) == (-math.inf, math.inf)
    nothing = ratio(np.ones(5), np.zeros(5), np.arange(5))
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (-math.inf, math.inf)
    unsure = ratio(np.ones(5), np.array([0, 0, 0, 0, 1.0]), np.arange(5))  # one hit can't be told from none
    assert unsure.high == math.inf


def test_units_needed_grow_with_the_square():
    random = np.random.default_rng(3)
    found = mean(random.normal(0, 1, 400), np.arange(400))
    assert units_needed(found, 0.1, quantile=3.6) == pytest.approx((3.6 / 0.1) ** 2, rel=0.15)
    assert units_needed(found, 0.05, quantile=3.6) == pytest.approx(
        4 * units_needed(found, 0.1, quantile=3.6), rel=0.01
    )


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, st.integers(2, 30), elements=st.floats(-5, 5)), st.floats(0.02, 0.98))
def test_a_weighted_quantile_is_that_of_the_repeated_values(values, share):
    drawn = np.random.default_rng(0).integers(0, 4, (3, len(values))) + np.eye(3, len(values), dtype=int)
    for row, found in zip(drawn, weighted_quantile(values, drawn.astype(float), share), strict=True):
        repeated = np.sort(np.repeat(values, row))
        place = math.ceil(round(share * len(repeated), 9)) - 1
        assert found in repeated
        assert repeated[max(place - 1, 0)] <= found <= repeated[min(place + 1, len(repeated) - 1)]


def test_a_bootstrap_interval_is_about_that_of_the_mean():
    values = np.random.default_rng(4).normal(3, 2, 300)
    found = bootstrap(lambda drawn: drawn @ values / drawn.sum(axis=1), 300, 300, seed=0)
    exact = mean(values, np.arange(300))
    assert found.value == pytest.approx(exact.value)
    assert found.high - found.low == pytest.approx(exact.high - exact.low, rel=0.1)
