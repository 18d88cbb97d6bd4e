"""Detectors of counts by simulation: calibrated false alarms, delay, silence, shifts, seasons."""

import numpy as np
import pytest

from serve.errors import InvalidInput
from serve.watchtower.counts import CountDetector, RatioDetector

WARM = 200
ALARM = 1e-6
DAY = 8640  # windows of 10 s


def p_values(detector, xs):
    found = []
    for x in xs:
        found.append(detector.p_value(x))
        detector.learn_one(x)
    return np.array(found)


def ratios(bad, totals):
    pairs = zip(bad, np.broadcast_to(totals, len(bad)), strict=True)
    return [{"bad": int(one), "total": int(total)} for one, total in pairs]


def counts(numbers, *, timed=False):
    return [{"count": int(one), **({"timestamp": 10.0 * place} if timed else {})} for place, one in enumerate(numbers)]


def assert_calibrated(found, *, slack=1.0):
    """No more than a share a of the windows has p <= a; four standard errors of grace, and windows overlap."""
    judged = found[WARM:]
    for level in (0.1, 0.01, 0.001):
        grace = 4 * np.sqrt(4 * level / len(judged))
        assert (judged <= level).mean() <= slack * level + grace, level
    assert (judged <= ALARM).sum() == 0


@pytest.mark.parametrize(("total", "share"), [(5, 0.02), (20, 0.01), (20, 0.1), (200, 0.005), (2000, 0.02), (50, 0.5)])
def test_binomial_is_calibrated(total, share):
    bad = np.random.default_rng(11).binomial(total, share, 4000)
    assert_calibrated(p_values(RatioDetector(), ratios(bad, total)))


def test_a_share_that_varies_by_itself_is_calibrated():
    """Beta-binomial with totals that vary: five times the variance of a binomial."""
    source = np.random.default_rng(12)
    totals = source.poisson(300, 4000)
    bad = source.binomial(totals, source.beta(2, 98, 4000))
    assert_calibrated(p_values(RatioDetector(), ratios(bad, totals)), slack=1.5)


@pytest.mark.parametrize("mean", [0.05, 0.3, 2, 20, 500])
@pytest.mark.parametrize("direction", ["both", "fewer"])
def test_poisson_is_calibrated(mean, direction):
    numbers = np.random.default_rng(13).poisson(mean, 4000)
    assert_calibrated(p_values(CountDetector(direction=direction), counts(numbers)))


@pytest.mark.parametrize(("mean", "shape"), [(2, 2), (20, 5), (500, 20)])
def test_negative_binomial_is_calibrated(mean, shape):
    numbers = np.random.default_rng(14).negative_binomial(shape, shape / (shape + mean), 4000)
    assert_calibrated(p_values(CountDetector(), counts(numbers)), slack=1.5)


def delays(detector, make, at, until):
    found = []
    for seed in range(10):
        p = p_values(detector(), make(np.random.default_rng(seed)))
        assert (p[WARM:at] < ALARM).sum() == 0
        alarms = np.flatnonzero(p[at:until] < ALARM)
        found.append(int(alarms[0]) if len(alarms) else until)
    return np.array(found)


@pytest.mark.parametrize(
    ("total", "before", "after", "within"),
    [(20, 0.01, 0.1, 12), (200, 0.01, 0.03, 8), (200, 0.01, 0.2, 0), (2000, 0.02, 0.04, 1)],
)
def test_a_jump_of_the_share_is_seen_soon(total, before, after, within):
    def make(source):
        share = np.full(700, before)
        share[600:] = after
        return ratios(source.binomial(total, share), total)

    assert np.median(delays(RatioDetector, make, 600, 700)) <= within


@pytest.mark.parametrize(("before", "after", "within"), [(20, 0, 0), (2, 0, 12), (20, 40, 3), (200, 100, 0)])
def test_a_jump_and_a_silence_of_counts_are_seen_soon(before, after, within):
    def make(source):
        mean = np.full(700, float(before))
        mean[600:] = after
        return counts(source.poisson(mean))

    assert np.median(delays(CountDetector, make, 600, 700)) <= within


def test_directions():
    drop, rise = [{"count": 20}] * 600 + [{"count": 0}], [{"count": 20}] * 600 + [{"count": 100}]
    for direction, falls, rises in (("more", False, True), ("fewer", True, False), ("both", True, True)):
        assert bool(p_values(CountDetector(direction=direction), drop)[-1] < ALARM) is falls
        assert bool(p_values(CountDetector(direction=direction), rise)[-1] < ALARM) is rises
    better = ratios([20] * 600 + [0], 100)
    assert p_values(RatioDetector(), better)[-1] == 1.0
    assert p_values(RatioDetector(direction="fewer"), better)[-1] < ALARM


@pytest.mark.parametrize("kind", ["ratio", "count"])
def test_a_shift_is_one_episode_and_then_the_new_normal(kind):
    source = np.random.default_rng(15)
    shifted = np.arange(2500) >= 600
    if kind == "ratio":
        detector, xs = RatioDetector(), ratios(source.binomial(200, np.where(shifted, 0.06, 0.01)), 200)
    else:
        detector, xs = CountDetector(), counts(source.poisson(np.where(shifted, 60, 20)))
    p = p_values(detector, xs)
    alarms = np.flatnonzero(p < ALARM)
    assert alarms[0] >= 600
    assert alarms[0] <= 603
    assert alarms[-1] <= 600 + detector.adopt_after + 40  # bounded
    assert_calibrated(p[900:])
    usual = detector.share if kind == "ratio" else detector.expected({})
    assert usual == pytest.approx(0.06 if kind == "ratio" else 60, rel=0.1)
    back = p_values(detector, [xs[0]] * 30)
    assert kind == "ratio" or back.min() < ALARM  # the new normal is guarded like the old: counts fall back
    worse = p_values(detector, ratios([40] * 3, 200) if kind == "ratio" else counts([200] * 3))
    assert worse.min() < ALARM


def test_an_outage_that_ends_leaves_the_baseline_as_it_was():
    source = np.random.default_rng(16)
    share = np.full(1500, 0.01)
    share[600:700] = 0.3
    detector = RatioDetector()
    xs = ratios(source.binomial(200, share), 200)
    p = p_values(detector, xs[:720])
    assert detector.share == pytest.approx(0.01, rel=0.3)
    assert (p[600:700] < ALARM).all()
    assert (p[712:] < ALARM).sum() == 0  # over within 12 windows
    assert (p_values(detector, xs[720:]) < ALARM).sum() == 0
    assert detector.share == pytest.approx(0.01, rel=0.3)


def test_seasons_are_learned_and_a_drop_within_them_is_seen():
    source = np.random.default_rng(17)
    time_of_day = 2 * np.pi * np.arange(3 * DAY) / DAY
    mean = 30 * (1.2 + np.sin(time_of_day))
    fall = slice(2 * DAY + 4000, 2 * DAY + 4100)
    mean[fall] *= 0.4
    detector = CountDetector()
    p = p_values(detector, counts(source.poisson(mean), timed=True))
    alarms = np.flatnonzero(p < ALARM)
    assert alarms[0] >= fall.start
    assert alarms[0] <= fall.start + 3
    assert alarms[-1] < fall.stop + 40
    assert_calibrated(p[DAY : 2 * DAY])
    night, noon = {"timestamp": 10.0 * (3 * DAY + 6480)}, {"timestamp": 10.0 * (3 * DAY + 2160)}
    assert detector.expected(noon) > 3 * detector.expected(night)


def test_silence_while_warming_up():
    xs = counts([5] * 50 + [500] * 30)
    assert set(p_values(CountDetector(warm_up=90), xs)) == {1.0}
    assert {RatioDetector().score_one({"bad": 5, "total": 5}), CountDetector().score_one({"count": 10**6})} == {0.0}


@pytest.mark.parametrize(
    "x",
    [
        *({}, {"bad": 3}, {"bad": 1, "total": 0}, {"bad": -1, "total": 5}, {"bad": "1", "total": 5}),
        *({"bad": float("nan"), "total": 5}, {"bad": 1, "total": float("inf")}),
    ],
)
def test_windows_that_cannot_be_judged_change_nothing(x):
    detector = RatioDetector()
    p_values(detector, ratios([1] * 300, 100))
    before = detector.state()
    assert detector.score_one(x) == 0.0
    detector.learn_one(x)
    assert detector.state() == before


def test_more_bad_ones_than_all_are_all():
    detector = RatioDetector()
    p_values(detector, ratios([1] * 300, 100))
    assert detector.p_value({"bad": 500, "total": 100}) == detector.p_value({"bad": 100, "total": 100}) < 1e-20


def test_numpy_numbers_are_numbers():
    plain, numpy = RatioDetector(), RatioDetector()
    for x in ratios([1] * 300, 100):
        plain.learn_one(x)
        numpy.learn_one({key: np.int32(value) for key, value in x.items()})
    assert plain.state() == numpy.state()


def test_an_unknown_direction():
    with pytest.raises(InvalidInput, match="sideways"):
        CountDetector(direction="sideways")


def test_scores_are_bounded_for_any_counts():
    source = np.random.default_rng(18)
    ratio, count = RatioDetector(direction="both"), CountDetector()
    for _ in range(600):
        total = int(10 ** source.uniform(0, 7))
        x = {"bad": int(source.integers(0, total + 1)), "total": total, "count": total}
        for detector in (ratio, count):
            assert 0.0 <= detector.score_one(x) <= 1.0
            detector.learn_one(x)
