"""Checkpoints: JSON and nothing else, and a detector restored halfway scores bit for bit the same."""

import json
import math

import numpy as np
import pytest

from serve.errors import InvalidInput
from serve.watchtower.counts import CountDetector, RatioDetector
from serve.watchtower.series import SeriesDetector

START_S = 1_400_000_000.0


def windows(kind, rows, seed=1):
    source = np.random.default_rng(seed)
    for row in range(rows):
        ts_s = START_S + 600 * row
        busy = 1.5 + math.sin(2 * math.pi * ts_s / 86400)
        wild = source.random() < 0.01 or 2500 <= row < 2600
        if kind is SeriesDetector:
            yield {"timestamp": ts_s, "value": float(busy * 10 + source.standard_t(3) + 30 * wild)}
        elif kind is RatioDetector:
            total = int(source.poisson(100 * busy))
            yield {"bad": int(source.binomial(total, 0.3 if wild else 0.03)), "total": total}
        else:
            yield {"timestamp": ts_s, "count": int(source.poisson(20 * busy * (4 if wild else 1)))}


def run(detector, xs):
    scores = []
    for x in xs:
        scores.append(detector.score_one(x))
        detector.learn_one(x)
    return scores


@pytest.mark.parametrize("kind", [SeriesDetector, RatioDetector, CountDetector])
@pytest.mark.parametrize("halfway", [0, 30, 1003, 2550])
def test_restored_halfway(kind, halfway):
    rows = 4600 if kind is SeriesDetector and halfway == 2550 else 3000  # past the neighbours' buffer being moved
    xs = list(windows(kind, rows))
    whole = kind()
    run(whole, xs[:halfway])
    text = json.dumps(whole.state(), allow_nan=False)
    restored = kind.from_state(json.loads(text))
    first, second = run(whole, xs[halfway:]), run(restored, xs[halfway:])
    assert first == second
    assert max(first) > 0.5
    assert json.dumps(restored.state()) == json.dumps(whole.state())


def test_settings_are_kept():
    for detector in (
        SeriesDetector(value="kbps", timestamp="at", warm_up=5, hold=0),
        RatioDetector(bad="errors", total="plays", direction="both", half_life=50, warm_up=10, adopt_after=20),
        CountDetector(count="plays", direction="fewer", alarm=1e-3),
    ):
        again = type(detector).from_state(json.loads(json.dumps(detector.state())))
        assert again._get_params() == detector._get_params()


def test_a_state_is_refused_by_another_kind_and_another_version():
    with pytest.raises(InvalidInput, match="ratio"):
        SeriesDetector.from_state(RatioDetector().state())
    state = CountDetector().state() | {"version": 99}
    with pytest.raises(InvalidInput) as refused:
        CountDetector.from_state(state)
    assert "99" in refused.value.got
    assert refused.value.field == "state"
    with pytest.raises(InvalidInput):
        RatioDetector.from_state({})
