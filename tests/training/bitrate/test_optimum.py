import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.errors import InvalidInput
from training.bitrate.evaluate import play
from training.bitrate.optimum import Optimum, find_plan
from training.bitrate.published import Replay
from training.bitrate.qoe import LINEAR, PERCEPTUAL, Qoe
from training.bitrate.references import REFERENCES
from training.bitrate.simulator import LIVE, PENSIEVE, Sessions, Settings
from training.bitrate.synthetic import generate_traces, generate_videos
from training.bitrate.traces import Trace, read_traces
from training.bitrate.video import Video, read_video

QOES = (LINEAR, PERCEPTUAL, Qoe("user", -8.0, -0.2, -2.0, 1.5, 0.1, "log"))
EXACT = Settings(sleep_s=0.0)
FINE = {"levels": 1_000_000, "room": 64}


def small(seed, rules=EXACT, scale=1.0):
    """One short session with few rungs: all sequences can be tried."""
    random = np.random.default_rng(seed)
    rungs, segments, segment_s = int(random.integers(2, 4)), int(random.integers(1, 6)), float(random.uniform(1, 6))
    ladder = np.sort(random.uniform(300, 5000, rungs))
    sizes = ladder * segment_s * 125 * random.uniform(0.6, 1.6, (segments, 1))
    vmaf = np.sort(random.uniform(10, 100, (segments, rungs)), axis=1)
    steps_s = random.uniform(0.3, 3, 20)
    kbps = random.lognormal(7.3, 0.8, 21) * scale
    trace = Trace("small", np.append(0.0, np.cumsum(steps_s)), kbps)
    rules = dataclasses.replace(rules, max_buffer_s=float(random.uniform(segment_s, 25)))
    return Sessions([trace], Video("small", segment_s, ladder, sizes, vmaf), QOES[seed % 3], rules)


def brought(sessions, path):
    """What a sequence of rungs brings in the simulator: QoE from the second segment on."""
    played = play(Replay("path", {sessions.traces[0].name: np.array(path)}), sessions)
    return float(played.counted(played.reward)[0])


def best_of_all(sessions):
    values = []
    for path in itertools.product(
        range(len(sessions.videos[0].rungs_kbps)), repeat=len(sessions.videos[0].segment_bytes)
    ):
        sessions.reset()
        values.append(brought(sessions, path))
    sessions.reset()
    return max(values)


@pytest.mark.parametrize("first_rung", [None, 1])
@pytest.mark.parametrize("seed", range(40))
def test_a_fine_grid_finds_the_best_of_all_sequences(seed, first_rung):
    sessions = small(seed, dataclasses.replace(EXACT, first_rung=first_rung))
    best, planned = best_of_all(sessions), find_plan(sessions, 0, **FINE)
    assert planned.value == pytest.approx(best, abs=1e-7)
    assert planned.bound == pytest.approx(best, abs=1e-7)


@pytest.mark.parametrize("seed", range(60))
def test_even_a_coarse_grid_gives_a_plan_below_and_a_bound_above(seed):
    sessions = small(seed, PENSIEVE)
    best, planned = best_of_all(sessions), find_plan(sessions, 0, levels=2, room=1)
    assert planned.value <= best + 1e-7
    assert planned.bound >= best - 1e-7


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), more=st.floats(1, 4))
def test_more_bandwidth_never_lowers_the_optimum(seed, more):
    """Counted from the first segment on: what comes after a slower, uncounted start may meet a better network."""

    def best(scale):
        sessions = small(seed, scale=scale)
        plan = find_plan(sessions, 0, **FINE)
        return play(Replay("plan", {"small": plan.rungs}), sessions).reward.sum()

    assert best(more) >= best(1.0) - 1e-7


@pytest.fixture(scope="module")
def generated():
    return generate_traces(6, seed=5), generate_videos(1, seed=7)[0]


@pytest.mark.parametrize("qoe", QOES, ids=lambda qoe: qoe.name)
def test_no_policy_is_better_and_the_plan_brings_what_it_says(generated, qoe):
    traces, video = generated
    video = dataclasses.replace(video, segment_bytes=video.segment_bytes[:30], vmaf=video.vmaf[:30])
    optimum = Optimum()
    played = play(optimum, Sessions(traces, video, qoe))
    counted = played.counted(played.reward)
    assert counted == pytest.approx([plan.value for plan in optimum.plans], abs=1e-6)
    assert (optimum.bounds >= played.values - 1e-9).all()
    for make in REFERENCES.values():
        values = play(make(), Sessions(traces, video, qoe)).values
        assert (values <= optimum.bounds + 1e-9).all()
        assert values.mean() <= played.values.mean() + 1e-9


def test_it_plans_anew_for_each_batch():
    traces, video = generate_traces(4, seed=2), generate_videos(1, seed=7)[0]
    video = dataclasses.replace(video, segment_bytes=video.segment_bytes[:20], vmaf=video.vmaf[:20])
    optimum = Optimum()
    first = play(optimum, Sessions(traces[:2], video)).values
    play(optimum, Sessions(traces[2:], video))
    assert play(optimum, Sessions(traces[:2], video)).values.tolist() == first.tolist()


@pytest.mark.parametrize(
    "rules",
    [
        LIVE,
        Settings(noise=0.1),
        Settings(leave_per_s=0.1),
        Settings(leave_per_rebuffer_s=1.0),
        Settings(startup_s=50.0),
    ],
)
def test_a_future_that_is_not_known_is_refused(rules):
    with pytest.raises(InvalidInput, match="settings"):
        find_plan(small(1, rules), 0)


def test_on_norway_plan_and_bound_agree_above_the_best_plan_known_before(abr_data):
    traces = read_traces(abr_data / "norway")[::8]
    video = read_video(abr_data / "envivio" / "size", ladder_kbps=(300, 750, 1200, 1850, 2850, 4300))
    optimum = Optimum()
    played = play(optimum, Sessions(traces, video))
    assert played.values == pytest.approx(optimum.bounds, abs=1e-9)
