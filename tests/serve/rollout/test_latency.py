"""What is slow is known before the window that it judges; quantiles with bounds."""

import json
import math

import numpy as np
import pytest
from scipy.stats import binom

from serve.errors import InvalidInput
from serve.histograms import ERROR, Histogram, add
from serve.rollout.latency import LEAST, VERY, SlowThreshold, quantile_bounds


def counted(values):
    histogram: Histogram = {}
    for value in values:
        add(histogram, float(value))
    return histogram


def test_there_is_no_threshold_before_enough_answers():
    threshold = SlowThreshold()
    threshold.see(counted([0.01] * (LEAST - 1)))
    assert threshold.slow_s is None
    assert threshold.very_slow_s is None
    threshold.see(counted([0.01]))
    assert threshold.slow_s == pytest.approx(0.01, rel=2 * ERROR)
    assert threshold.very_slow_s == VERY * threshold.slow_s


def test_it_is_the_p99_of_the_last_windows():
    threshold = SlowThreshold(windows=2)
    fast = counted([0.01] * 1980 + [0.05] * 20 + [0.2] * 5)
    threshold.see(fast)
    threshold.see(fast)
    assert threshold.slow_s == pytest.approx(0.05, rel=2 * ERROR)
    threshold.see({})
    threshold.see(counted([1.0] * LEAST))
    assert threshold.slow_s == pytest.approx(1.0, rel=2 * ERROR)


def test_silence_keeps_what_was_known():
    threshold = SlowThreshold(windows=1)
    threshold.see(counted([0.01] * LEAST))
    threshold.see({})
    assert threshold.slow_s == pytest.approx(0.01, rel=2 * ERROR)


def test_a_restored_threshold_goes_on_the_same():
    rng = np.random.default_rng(0)
    threshold = SlowThreshold(windows=3)
    for _ in range(4):
        threshold.see(counted(rng.exponential(0.02, 900)))
    restored = SlowThreshold.from_state(json.loads(json.dumps(threshold.state())))
    for one in (threshold, restored):
        one.see(counted([0.5] * 700))
    assert restored.slow_s == threshold.slow_s
    assert restored.state() == threshold.state()
    with pytest.raises(InvalidInput):
        SlowThreshold.from_state({**threshold.state(), "version": 0})


def test_bounds_of_a_quantile_hold_at_every_look():
    rng = np.random.default_rng(1)
    true = -math.log(0.1)  # the 0.9 quantile of an exponential
    missed = 0
    for _ in range(60):
        histogram: Histogram = {}
        held = True
        for value in rng.exponential(1.0, 600).tolist():
            add(histogram, value)
            if sum(histogram.values()) % 20 == 0:
                low, high = quantile_bounds(histogram, 0.9, 0.05)
                held &= low * (1 - 2 * ERROR) <= true <= high * (1 + 2 * ERROR)
        missed += not held
    assert low > 0.5 * true
    assert high < 2.0 * true
    assert missed <= binom.ppf(0.999, 60, 0.05)


def test_little_bounds_nothing():
    assert quantile_bounds({}, 0.5, 0.05) == (-math.inf, math.inf)
    assert quantile_bounds(counted([1.0]), 0.99, 0.05)[1] == math.inf
