"""The general detector: silent while it learns and on what is usual, loud once on what is not, never looking ahead."""

import math
from datetime import UTC, datetime

import numpy as np
import pytest

from serve.watchtower.series import MEMORY, SeriesDetector, seconds

START_S = 1_400_000_000.0
CALM = 0.85
"""Below it is noise: one value in thousands of plain noise scores more."""


def scores(values, detector=None, step_s=300.0):
    detector = detector or SeriesDetector()
    found = []
    for row, value in enumerate(values):
        x = {"timestamp": START_S + row * step_s, "value": float(value)}
        found.append(detector.score_one(x))
        detector.learn_one(x)
    return np.array(found)


def noise(rows, seed=1):
    return np.random.default_rng(seed).normal(100, 5, rows)


def test_no_look_ahead():
    values = noise(1500)
    changed = values.copy()
    changed[1000:] = 0.0
    assert np.array_equal(scores(values)[:1000], scores(changed)[:1000])


def test_silent_while_warming_up():
    values = noise(150)
    values[50] = 1e6
    found = scores(values)
    assert found[:100].max() == 0.0
    values[[50, 120]] = 100.0, 1e6
    assert scores(values)[120] > CALM


@pytest.mark.parametrize("size", [+60, -60])
def test_a_spike_speaks_at_once(size):
    values = noise(2000)
    values[1500] += size
    found = scores(values)
    assert found[1500] > CALM
    assert 1500 <= found.argmax() < 1505  # the runs that hold it are as unusual


def test_plain_noise_rarely_speaks():
    above = [(scores(noise(3000, seed))[500:] > CALM).sum() for seed in range(4)]
    assert sum(above) <= 4


def test_a_level_shift_speaks_once_and_is_then_usual():
    values = noise(4000)
    values[1500:] += 60
    found = scores(values)
    loud = np.flatnonzero(found > CALM)
    assert loud[0] in {1500, 1501, 1502}
    assert ((loud > 1510) & (loud < 1500 + MEMORY // 2)).sum() <= 2
    assert (loud >= 1500 + MEMORY // 2).sum() <= 1
    values[3500] += 60  # and the detector isn't frozen
    assert scores(values)[3500] > 0.65


def test_a_missing_peak_is_seen_against_the_season():
    rows = 288 * 10
    ts_s = START_S + 300.0 * np.arange(rows)
    values = 100 + 50 * np.sin(2 * np.pi * ts_s / 86400) + np.random.default_rng(3).normal(0, 2, rows)
    calm = scores(values)
    values[288 * 8 : 288 * 9] = 100 + np.random.default_rng(4).normal(0, 2, 288)  # each value is usual, the day isn't
    found = scores(values)
    assert found[288 * 8 : 288 * 9].max() > calm[288 * 5 :].max()
    assert found[288 * 8 : 288 * 8 + 120].max() > 0.7


def test_a_repeat_within_the_hold_is_silent_and_after_it_speaks():
    values = noise(2500)
    values[[1500, 1530, 1900]] += 80
    found = scores(values)
    assert found[1500] > CALM
    assert found[1530] == 0.0
    assert found[1900] > 0.6
    free = scores(values, SeriesDetector(hold=0))
    assert free[1530] > 0.6


@pytest.mark.parametrize("value", [0.0, -7.5, 1e12])
def test_a_flat_line_is_silent(value):
    assert scores([value] * 1200).max() == 0.0


def test_a_flat_line_that_moves_speaks():
    found = scores([5.0] * 1000 + [6.0] + [5.0] * 50)
    assert found[1000] > 0.7


def test_scale_and_offset_do_not_matter():
    values = noise(1200)
    values[900] += 70
    plain = scores(values)
    for scale, offset in ((1e-3, 0.0), (1e4, 0.0), (-1.0, 0.0), (1.0, 5000.0)):
        assert scores(values * scale + offset)[900] == pytest.approx(plain[900], abs=0.02)


@pytest.mark.parametrize("x", [{}, {"timestamp": 1.0}, {"value": None}, {"value": math.nan}, {"value": math.inf},
                               {"value": "5"}])  # fmt: skip
def test_values_that_are_none_change_nothing(x):
    detector = SeriesDetector()
    scores(noise(300), detector)
    before = detector.state()
    assert detector.score_one(x) == 0.0
    assert detector.explain_one(x) == {}
    detector.learn_one(x)
    assert detector.state() == before


def test_it_works_without_timestamps_and_with_ones_that_go_back():
    plain = SeriesDetector()
    for row, value in enumerate(noise(1500)):
        wild = 100.0 * (row == 1400)
        score = plain.score_one({"value": value + wild})
        assert row != 1400 or score > 0.7
        plain.learn_one({"value": value + wild})
    back = SeriesDetector()
    for row, value in enumerate(noise(400)):
        x = {"timestamp": START_S + 300 * (row - 24 * (row // 100)), "value": value}
        assert 0.0 <= back.score_one(x) < 1.0
        back.learn_one(x)


def test_forms_of_a_moment():
    moment = datetime(2015, 3, 1, 0, 5, tzinfo=UTC)
    for form in (
        1425168300,
        1425168300.0,
        moment,
        moment.replace(tzinfo=None),
        "2015-03-01T00:05:00Z",
        "2015-03-01 00:05",
    ):
        assert seconds(form) == 1425168300.0
    assert seconds(None) is seconds(math.nan) is None
    with pytest.raises(ValueError, match="isoformat"):
        seconds("yesterday")


def test_scoring_and_asking_why_change_nothing():
    detector = SeriesDetector()
    scores(noise(600), detector)
    before = detector.state()
    x = {"timestamp": START_S + 600 * 300.0, "value": 300.0}
    assert detector.score_one(x) == detector.score_one(x) > CALM
    why = detector.explain_one(x)
    assert why["median"] > 3
    assert set(why) == {"season", "season_run", "median", "value", "run", "long_run"}
    assert detector.state() == before


def test_state_is_bounded():
    sizes = []
    detector = SeriesDetector()
    for part in range(3):
        scores(noise(4500, part), detector)
        sizes.append(len(str(detector.state())))
    assert sizes[2] < 1.3 * sizes[1]
