"""Variations of traces: like what they are made of, drawn by a seed, safe for the simulator."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.bitrate.synthetic import generate_traces
from training.bitrate.traces import MAX_KBPS, Trace
from training.bitrate.variations import SPAN_S, vary

GIVEN = generate_traces(12, seed=3, span_s=200.0)


def drawn(seed: int, count: int = 40, **options: tuple[float, float]) -> list[Trace]:
    return vary(GIVEN, count, np.random.default_rng(seed), **options)


def test_a_seed_gives_the_same_variations_and_another_seed_others() -> None:
    for one, same, other in zip(drawn(1), drawn(1), drawn(2), strict=True):
        np.testing.assert_array_equal(one.kbps, same.kbps)
        assert one.kbps.tobytes() != other.kbps.tobytes()


def test_they_are_long_and_of_the_speeds_asked_for() -> None:
    alike = drawn(1, 400)
    assert all(trace.times_s[-1] >= SPAN_S for trace in alike)
    usual = np.median([trace.mean_kbps for trace in GIVEN])
    assert np.median([trace.mean_kbps for trace in alike]) == pytest.approx(usual, rel=0.5)
    faster = drawn(1, 400, speed=(4.0, 4.0))
    ratio = np.median([trace.mean_kbps for trace in faster]) / np.median([trace.mean_kbps for trace in alike])
    assert ratio == pytest.approx(4.0, rel=0.05)


def test_none_is_what_it_is_made_of() -> None:
    rows = {round(float(value), 6) for trace in GIVEN for value in trace.kbps}
    assert all(rows.isdisjoint(round(float(value), 6) for value in trace.kbps) for trace in drawn(4))


def test_throughput_keeps_its_course_over_time() -> None:
    """What comes a second later is as near as in the traces given: no shuffle of rows."""
    step = Trace("step", np.arange(0.0, 401.0), np.where(np.arange(401) < 200, 100.0, 6400.0))
    for trace in vary([step], 20, np.random.default_rng(0)):
        high = trace.kbps[1:] > 800
        assert 1 <= np.count_nonzero(np.diff(high)) <= 20


@given(kbps=st.lists(st.sampled_from([0.0, 1.0, 500.0, MAX_KBPS]), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_any_trace_can_be_varied(kbps: list[float], seed: int) -> None:
    trace = Trace("any", 2.0 * np.arange(len(kbps) + 2), np.array([1.0, *kbps, 50.0]))
    for variation in vary([trace, *GIVEN[:2]], 5, np.random.default_rng(seed), speed=(0.1, 10.0)):
        assert variation.times_s[-1] >= SPAN_S
