import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.arrivals import poisson_arrivals_s, zipf_draws
from serve.errors import InvalidInput

seeds = st.integers(0, 2**32)


@given(rate_rps=st.floats(0.5, 500), duration_s=st.floats(0.5, 60), seed=seeds)
def test_arrivals_are_sorted_within_the_run_and_have_the_asked_rate(rate_rps, duration_s, seed):
    times_s = poisson_arrivals_s(rate_rps=rate_rps, duration_s=duration_s, seed=seed)
    assert np.all(np.diff(times_s) >= 0)
    assert np.all((times_s >= 0) & (times_s <= duration_s))
    expected = rate_rps * duration_s
    assert abs(len(times_s) - expected) <= 6 * np.sqrt(expected) + 6


@given(rate_rps=st.floats(1, 200), seed=seeds)
def test_same_seed_same_arrivals_and_another_seed_others(rate_rps, seed):
    first, again, other = (poisson_arrivals_s(rate_rps=rate_rps, duration_s=20, seed=s) for s in (seed, seed, seed + 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_gaps_are_exponential():
    gaps_s = np.diff(poisson_arrivals_s(rate_rps=100, duration_s=1000, seed=3))
    assert gaps_s.mean() == pytest.approx(0.01, rel=0.02)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.02)  # a paced sender would have 0
    assert np.mean(gaps_s > 0.02) == pytest.approx(np.exp(-2), rel=0.05)


@pytest.mark.parametrize("wrong", [{"rate_rps": 0}, {"rate_rps": float("nan")}, {"duration_s": -1}, {"rate_rps": 1e12}])
def test_absurd_rates_and_durations_are_refused_by_name(wrong):
    with pytest.raises(InvalidInput) as caught:
        poisson_arrivals_s(**{"rate_rps": 10.0, "duration_s": 10.0, "seed": 0} | wrong)
    assert next(iter(wrong)) in caught.value.field


@given(population=st.integers(1, 500), exponent=st.floats(0, 3), seed=seeds)
def test_draws_are_members_and_reproducible(population, exponent, seed):
    first, again = (zipf_draws(population=population, size=200, exponent=exponent, seed=seed) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.min() >= 0
    assert first.max() < population


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1.5])
def test_activity_falls_with_rank_by_the_asked_exponent(exponent):
    counts = np.bincount(zipf_draws(population=50, size=400_000, exponent=exponent, seed=5), minlength=50)
    weights = np.arange(1, 51, dtype=float) ** -exponent
    expected = 400_000 * weights / weights.sum()
    assert np.allclose(np.sort(counts)[::-1], expected, rtol=0.08)


def test_the_most_active_member_is_not_simply_the_first():
    most_active = {int(np.bincount(zipf_draws(population=99, size=999, exponent=1, seed=s)).argmax()) for s in range(9)}
    assert len(most_active) > 5


def test_nobody_to_draw_from_is_refused():
    with pytest.raises(InvalidInput, match="population"):
        zipf_draws(population=0, size=1, exponent=1, seed=0)
