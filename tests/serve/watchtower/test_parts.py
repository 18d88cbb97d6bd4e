"""The detectors' parts, each against a plain computation of the same."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from serve.watchtower.likelihoods import beta_binomial_tail, negative_binomial_tail, poisson_tail
from serve.watchtower.neighbours import REFRESH, Neighbours
from serve.watchtower.seasonality import DAY_S, WEEK_S, Profile, SeasonalBaseline
from serve.watchtower.spread import RecentValues, Spread
from serve.watchtower.tails import Tail

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.mark.parametrize("draw", ["normal", "lognormal", "exponential", "student"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_surprise_keeps_its_promise_on_any_scale(draw, scale):
    """Exact within the body and where the tail is heavy, too modest where it is light."""
    source = np.random.default_rng(5)
    readings = {
        "normal": np.abs(source.normal(size=12000)), "lognormal": source.lognormal(0, 1, 12000),
        "exponential": source.exponential(size=12000), "student": np.abs(source.standard_t(3, 12000)),
    }[draw] * scale  # fmt: skip
    tail = Tail()
    surprises = []
    for reading in readings.tolist():
        surprises.append(tail.surprise(reading))
        tail.learn(reading)
    judged = np.array(surprises[1000:])
    found = [(judged >= -math.log10(level)).mean() for level in (0.1, 0.01, 0.001)]
    assert found[0] == pytest.approx(0.1, rel=0.2)
    assert found[1] == pytest.approx(0.01, rel=0.4)
    assert found[2] <= 0.0015
    if draw == "student":
        assert found[2] == pytest.approx(0.001, rel=0.5)


def test_surprise_grows_with_the_reading_and_past_all_that_was_seen():
    tail = Tail()
    for reading in np.random.default_rng(6).lognormal(0, 1, 3000).tolist():
        tail.learn(reading)
    surprises = [tail.surprise(reading) for reading in np.geomspace(0.01, 1e9, 200).tolist()]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(surprises))
    assert surprises[0] == pytest.approx(0.0, abs=1e-3)
    assert surprises[-1] > 8


def test_a_tail_is_silent_until_it_has_a_past_and_takes_zeros():
    tail = Tail()
    for _ in range(30):
        assert tail.surprise(5.0) == 0.0
        tail.learn(0.0)
    for _ in range(100):
        tail.learn(0.0)
    assert tail.surprise(0.0) < 0.5
    assert tail.surprise(1.0) > 3


def test_a_tail_forgets():
    tail = Tail()
    for _ in range(60000):
        tail.learn(1000.0)
    rare = tail.surprise(2000.0)
    for _ in range(20000):
        tail.learn(1.0)
    assert tail.surprise(1000.0) < 1.5 < rare  # a sixteenth of the weight after four half-lives


@given(st.lists(numbers, min_size=1, max_size=60), numbers, st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_recent_values_against_numpy(values, value, size):
    recent = RecentValues(size)
    for one in values:
        recent.learn(one)
    held = np.array(values[-size:])
    assert len(recent) == len(held)
    for share in (0.0, 0.25, 0.5, 0.9, 1.0):
        assert recent.quantile(share) == pytest.approx(float(np.quantile(held, share)), rel=1e-9, abs=1e-6)
    nearest = np.sort(np.abs(held - value))[:3]
    assert recent.isolation(value, 3) == pytest.approx(nearest.mean() if len(held) >= 3 else 0.0, rel=1e-9, abs=1e-6)
    again = RecentValues.from_state(json.loads(json.dumps(recent.state())))
    assert again.location_and_spread() == recent.location_and_spread()


def test_half_of_the_values_may_be_wild():
    recent = RecentValues(100)
    for place in range(100):
        recent.learn(1e9 if place % 5 == 0 else float(place % 7))
    location, spread = recent.location_and_spread()
    assert 0 <= location <= 6
    assert spread < 5


@given(st.lists(numbers, min_size=2, max_size=50))
@settings(max_examples=60, deadline=None)
def test_spread_against_numpy_while_nothing_is_forgotten(values):
    spread = Spread(100)
    for one in values:
        spread.learn(one)
    assert spread.mean == pytest.approx(np.mean(values), rel=1e-6, abs=1e-3)
    assert spread.deviation == pytest.approx(np.std(values), rel=1e-6, abs=1e-2)


@pytest.mark.parametrize(("length", "memory", "step"), [(1, 100, 1), (5, 400, 1), (20, 300, 2)])
def test_neighbours_against_brute_force(length, memory, step):
    source = np.random.default_rng(7)
    values = source.normal(size=3 * REFRESH).cumsum() * 0.1 + source.normal(size=3 * REFRESH)
    one = Neighbours(length=length, memory=memory, step=step)
    for latest, value in enumerate(values.tolist()):
        found = one.isolation(value)
        if latest < 2 * length + 3 * step:
            assert found == 0.0
        elif latest % 13 == 0:
            run = values[latest - length + 1 : latest + 1]
            ends = range(latest - length, max(length, latest - memory) - 1, -step)
            apart = sorted(math.sqrt(np.mean((values[end - length + 1 : end + 1] - run) ** 2)) for end in ends)
            assert found == pytest.approx(np.mean(apart[:3]), rel=1e-9, abs=1e-9)
        one.learn(value)


def test_a_run_seen_before_is_near_and_a_new_one_far():
    one = Neighbours(length=20, memory=2000, step=1)
    wave = [math.sin(2 * math.pi * place / 50) for place in range(1000)]
    for value in wave:
        one.learn(value)
    assert one.isolation(wave[1000 % 50]) < 0.01
    for _ in range(15):
        one.learn(0.0)
    assert one.isolation(0.0) > 0.2


@pytest.mark.parametrize("seed", range(30))
def test_tails_against_scipy(seed):
    source = np.random.default_rng(seed)
    trials = int(10 ** source.uniform(0, 4))
    share, concentration = source.uniform(0.001, 0.6), 10 ** source.uniform(0.5, 4)
    count = int(min(trials, trials * share + source.uniform(0, 5) * math.sqrt(trials * share + 1)))
    law = stats.betabinom(trials, share * concentration, (1 - share) * concentration)
    if count > trials * share:
        assert beta_binomial_tail(count, trials, share, concentration, upper=True) == pytest.approx(
            law.sf(count - 1), rel=1e-3
        )
    low = int(source.uniform(0, trials * share))
    if low < trials * share:
        assert beta_binomial_tail(low, trials, share, concentration, upper=False) == pytest.approx(
            law.cdf(low), rel=1e-3
        )
    mean, spread = 10 ** source.uniform(-1, 3), 10 ** source.uniform(-3, 0.5)
    count = int(mean * source.uniform(0, 3))
    law = stats.nbinom(1 / spread, 1 / (1 + spread * mean))
    assert negative_binomial_tail(count, mean, spread, upper=True) == pytest.approx(law.sf(count - 1), rel=1e-6)
    assert negative_binomial_tail(count, mean, spread, upper=False) == pytest.approx(law.cdf(count), rel=1e-6)
    law = stats.poisson(mean)
    assert poisson_tail(count, mean, upper=True) == pytest.approx(law.sf(count - 1), rel=1e-6)
    assert negative_binomial_tail(count, mean, 0.0, upper=False) == pytest.approx(law.cdf(count), rel=1e-6)


@pytest.mark.parametrize(("trials", "share"), [(1, 0.01), (50, 0.02), (3000, 0.5), (10**7, 0.001), (10**7, 0.3)])
def test_a_certain_share_gives_the_binomial(trials, share):
    count = min(trials, int(trials * share + 4 * math.sqrt(trials * share) + 1))
    for concentration in (1e10, 1e13):
        got = beta_binomial_tail(count, trials, share, concentration, upper=True)
        assert got == pytest.approx(stats.binom.sf(count - 1, trials, share), rel=0.05)
    assert beta_binomial_tail(0, trials, share, 100.0, upper=True) == 1.0


def timed(function, days, step_s=600.0):
    for row in range(int(days * DAY_S / step_s)):
        ts_s = 1_400_000_000.0 + row * step_s
        yield ts_s, function(ts_s)


def daily(ts_s):
    return 10 + 5 * math.sin(2 * math.pi * ts_s / DAY_S)


def weekly(ts_s):
    weekend = (ts_s // DAY_S) % 7 >= 5
    return daily(ts_s) * (0.3 if weekend else 1.0)


def noise(ts_s):
    return float(np.random.default_rng(int(ts_s)).normal())


@pytest.mark.parametrize(
    ("function", "days", "period_s"), [(daily, 12, DAY_S), (weekly, 30, WEEK_S), (noise, 20, None)]
)
def test_the_period_is_learned(function, days, period_s):
    baseline = SeasonalBaseline()
    for ts_s, value in timed(function, days):
        baseline.learn(ts_s, value)
    assert baseline.period_s == period_s
    if period_s is not None:
        errors = []
        for ts_s, value in timed(function, days + 7):
            if ts_s >= 1_400_000_000.0 + days * DAY_S:
                errors.append(abs(baseline.predict(ts_s) - value))
                baseline.learn(ts_s, value)
        assert np.mean(errors) < 0.5


def test_without_timestamps_the_level_predicts():
    baseline = SeasonalBaseline()
    assert baseline.predict(None) is None
    for _ in range(10):
        baseline.learn(None, 4.0)
    assert baseline.predict(None) == pytest.approx(4.0)
    assert baseline.predict(1e9) is None  # no period of this time was seen
    assert baseline.period_s is None


def test_a_profile_follows_a_change_within_a_few_visits():
    profile = Profile(DAY_S, 900.0)
    for day in range(12):
        for step in range(96):
            profile.learn(day * DAY_S + step * 900.0, 10.0 if day < 6 else 50.0)
    assert profile.usual(20 * DAY_S) == pytest.approx(50.0, rel=0.1)
