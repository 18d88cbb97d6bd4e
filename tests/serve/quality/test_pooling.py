import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.quality.pooling import pool
from serve.quality.schemas import PooledQuality

SCORES = st.lists(st.floats(0, 100), min_size=1, max_size=200).map(np.array)


def _times(count: int) -> np.ndarray:
    return np.arange(count) / 25


@given(SCORES)
def test_figures_stand_in_order(scores):
    pooled = pool(scores, _times(len(scores)))
    slack = 1e-9
    assert scores.min() - slack <= pooled.p1 <= pooled.p5 + slack
    assert scores.min() - slack <= pooled.worst_second <= scores.max() + slack
    if len(scores) % 25 == 0 or len(scores) < 25:  # seconds that make up the clip: one is not above their mean
        assert pooled.worst_second <= pooled.mean + slack
    assert pooled.harmonic_mean <= pooled.mean + slack
    assert pooled.margin == 0


def test_the_worst_second_is_found_wherever_it_lies():
    scores = np.full(250, 90.0)
    scores[101:126] = 40.0
    pooled = pool(scores, _times(250))
    assert pooled.worst_second == pytest.approx(40)
    assert pooled.mean == pytest.approx(85)


def test_a_clip_of_less_than_a_second_is_its_own_worst_second():
    assert pool(np.array([80.0, 60.0]), _times(2)).worst_second == pytest.approx(70)


def test_the_margin_holds_the_mean_of_all_frames():
    random = np.random.default_rng(4)
    held = 0
    for _ in range(300):
        walk = 70 + np.cumsum(random.normal(0, 0.4, 1000)) * 0.3 + random.normal(0, 3, 1000)
        sampled = pool(walk[::5], _times(1000)[::5], every=5)
        assert sampled.margin > 0
        held += abs(sampled.mean - walk.mean()) <= sampled.margin
    assert 0.9 <= held / 300 <= 1.0


def test_one_sampled_frame_says_nothing_of_the_rest():
    pooled = pool(np.array([80.0]), _times(1), every=4)
    assert pooled.margin == np.inf
    assert PooledQuality.model_validate_json(orjson.dumps(pooled.as_json())).margin is None
