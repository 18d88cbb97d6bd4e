import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.bitrate.observations import HISTORY, LIVE_REMAINING, LOOKAHEAD, RUNGS
from serve.errors import InvalidInput
from training.bitrate.qoe import LINEAR, PERCEPTUAL, Qoe
from training.bitrate.simulator import LIVE, PENSIEVE, Sessions, Settings
from training.bitrate.synthetic import generate_traces, generate_videos
from training.bitrate.traces import Trace
from training.bitrate.video import Video

QOES = (LINEAR, PERCEPTUAL, Qoe("user", -8.0, -0.2, -2.0, 1.5, 0.1, "log"))
SETTINGS = st.builds(
    Settings,
    max_buffer_s=st.floats(2, 90),
    rtt_s=st.none() | st.floats(0, 0.5),
    payload=st.floats(0.5, 1),
    sleep_s=st.sampled_from([0.0, 0.1, 0.5, 2.0]),
    noise=st.sampled_from([0.0, 0.1]),
    first_rung=st.none() | st.integers(0, 11),
    random_start=st.booleans(),
    startup_s=st.floats(0, 15),
    startup_weight=st.none() | st.floats(-5, 0),
    live_target_s=st.just(0.0) | st.floats(1, 20),
    latency_weight=st.floats(-1, 0),
    catch_up=st.sampled_from([0.0, 0.05, 0.2]),
    leave_per_s=st.sampled_from([0.0, 0.01]),
    leave_per_rebuffer_s=st.sampled_from([0.0, 0.2]),
    sizes_known=st.booleans(),
    prior_std=st.sampled_from([0.0, 0.5]),
)


def flat(kbps, *, rtt_s=None):
    return Trace("flat", np.array([0.0, 10.0, 20.0]), np.full(3, float(kbps)), rtt_s)


def title(*rungs_kbps, segments=10, segment_s=2.0, vmaf=None):
    ladder = np.array(rungs_kbps, float)
    return Video("title", segment_s, ladder, np.tile(ladder * segment_s * 125, (segments, 1)), vmaf)


def worlds(seed, rules, batch=24):
    return Sessions(
        generate_traces(8, seed=seed, span_s=60), generate_videos(8, seed=seed), QOES, rules, batch=batch, seed=seed
    )


def play(sessions, seed=0, steps=40):
    random = np.random.default_rng(seed)
    for _ in range(steps):
        before = sessions.state.copy()
        yield before, sessions.step(random.integers(-1, RUNGS + 1, len(sessions))), sessions.state


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rules=st.lists(SETTINGS, min_size=1, max_size=4))
def test_time_and_media_are_conserved_and_the_reward_is_its_parts(seed, rules):
    sessions = worlds(seed, rules)
    joined_s = sessions.state["latency_s"].copy()
    wall_s, halted_s = np.zeros(24), np.zeros(24)
    for before, outcome, state in play(sessions, seed):
        assert (state["buffer_s"] >= 0).all()
        np.testing.assert_array_less(state["buffer_s"] - 1e-9, np.maximum(state["max_buffer_s"], 0))
        assert (outcome.delay_s >= 0).all()
        assert (outcome.rebuffer_s >= 0).all()
        assert (outcome.rebuffer_s + outcome.startup_s <= outcome.delay_s + outcome.sleep_s + 1e-9).all()

        wall_s += outcome.delay_s + outcome.sleep_s
        halted_s += outcome.rebuffer_s + outcome.startup_s
        np.testing.assert_allclose(state["wall_s"], wall_s, atol=1e-7)
        live = state["live_target_s"] > 0
        fetched_s = state["segment"] * state["segment_s"]
        played_s = fetched_s - state["buffer_s"]
        even = ~live | (state["catch_up"] == 0)
        np.testing.assert_allclose(played_s[even], (wall_s - halted_s)[even], atol=1e-6)
        assert (played_s >= wall_s - halted_s - 1e-6).all()
        np.testing.assert_allclose((state["latency_s"] - joined_s)[live], (wall_s - played_s)[live], atol=1e-6)
        playing = live & (state["segment"] < state["segments"])
        ahead_s = state["latency_s"] - state["buffer_s"]  # encoded and not fetched: the next segment is whole
        assert (ahead_s[playing] >= state["segment_s"][playing] - 1e-6).all()

        acted = ~before["done"]
        quality = sessions.titles.quality[state["measure"], state["video"], before["segment"], outcome.rung]
        change = np.where(before["segment"] == 0, 0, quality - before["last_quality"])
        above_s = np.where(live, np.maximum(state["latency_s"] - state["live_target_s"], 0), 0)
        expected = (
            state["constant"] + state["quality"] * quality + state["rebuffer"] * outcome.rebuffer_s
            + np.where(change > 0, state["rise"], -state["fall"]) * change
            + np.nan_to_num(state["startup_weight"]) * outcome.startup_s + state["latency_weight"] * above_s
        )  # fmt: skip
        np.testing.assert_allclose(outcome.reward[acted], expected[acted], rtol=1e-9, atol=1e-6)
        parts = outcome.quality + outcome.switch + outcome.rebuffer + outcome.wait + outcome.latency
        np.testing.assert_allclose(outcome.reward, parts, atol=1e-9)
        assert (outcome.reward[~acted] == 0).all()
        assert (state["segment"][~acted] == before["segment"][~acted]).all()
        np.testing.assert_array_equal(
            state["done"], before["done"] | outcome.left | (state["segment"] == state["segments"])
        )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_trace_moves_on_by_what_passed_without_the_round_trip(seed):
    rules = Settings(rtt_s=0.2, random_start=True)
    sessions = worlds(seed, rules)
    start_s = sessions.state["at_s"].copy()
    passed_s = np.zeros(len(sessions))
    for before, outcome, state in play(sessions, seed):
        passed_s += np.where(before["done"], 0, outcome.delay_s + outcome.sleep_s - 0.2)
        spans_s = np.array([sessions.traces[trace].times_s[-1] for trace in state["trace"]])
        distance_s = (state["at_s"] - start_s - passed_s) % spans_s
        assert np.minimum(distance_s, spans_s - distance_s).max() < 1e-5


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_permuting_equal_rungs_changes_nothing(seed, data):
    rungs = data.draw(st.lists(st.sampled_from([300.0, 800.0, 2500.0]), min_size=2, max_size=12))
    video = title(*sorted(rungs), segments=12)
    traces = generate_traces(4, seed=seed, span_s=60)
    chosen = data.draw(st.lists(st.integers(0, len(rungs) - 1), min_size=12, max_size=12))
    ladder = video.rungs_kbps
    twins = [data.draw(st.sampled_from(np.flatnonzero(ladder == ladder[rung]).tolist())) for rung in chosen]
    one, other = Sessions(traces, video), Sessions(traces, video)
    for rung, twin in zip(chosen, twins, strict=True):
        first, second = one.step(np.full(4, rung)), other.step(np.full(4, twin))
        free = one.state["segment"] > 1  # the first segment's rung is fixed
        for field in ("reward", "delay_s", "sleep_s", "rebuffer_s"):
            np.testing.assert_array_equal(getattr(first, field)[free], getattr(second, field)[free])


def test_seed_reproduces_and_another_does_not():
    rules = [PENSIEVE, LIVE, Settings(noise=0.1, random_start=True, leave_per_s=0.01, prior_std=0.3)]

    def rewards(seed):
        sessions = Sessions(
            generate_traces(6, seed=1), generate_videos(6, seed=1), QOES, rules, batch=16, seed=seed
        )  # fmt: skip
        seen = sessions.observe().prior_log_kbps
        return np.stack([outcome.reward for _, outcome, _ in play(sessions)]), seen

    for one, same, other in zip(rewards(5), rewards(5), rewards(6), strict=True):
        np.testing.assert_array_equal(one, same)
        assert (one != other).any()


def test_observation_is_what_the_session_holds():
    video = title(500, 1000, 4000, segments=7)
    sessions = Sessions([flat(2000), flat(8000)], video)
    before = sessions.observe()
    assert before.last_rung.tolist() == [-1, -1]
    assert not before.throughput_kbps.any()
    assert not before.prior_log_kbps.any()
    outcome = sessions.step(np.array([2, 2]))
    assert outcome.rung.tolist() == [1, 1]  # PENSIEVE fixes the first
    seen = sessions.observe()
    for name, array in seen.as_inputs().items():
        assert array.dtype == np.float32, name
        assert array.flags.c_contiguous, name
    np.testing.assert_allclose(seen.throughput_kbps[:, -1], 2000 / outcome.delay_s, rtol=1e-6)
    np.testing.assert_allclose(seen.download_s[:, -1], outcome.delay_s, rtol=1e-6)
    assert not seen.throughput_kbps[:, :-1].any()
    assert seen.throughput_kbps.shape == (2, HISTORY)
    assert seen.last_rung.tolist() == [1, 1]
    assert seen.last_quality.tolist() == [1, 1]
    assert seen.remaining.tolist() == [6, 6]
    assert seen.rungs_kbps[0].tolist() == [500, 1000, 4000] + [0] * 9
    assert seen.segment_bytes[0, 0, :4].tolist() == [125_000, 250_000, 1_000_000, 0]
    assert seen.quality[0, 0, :4].tolist() == [0.5, 1, 4, 0]
    assert seen.weights[0].tolist() == pytest.approx([-4.3, -1, -1, 1])
    for _ in range(4):
        sessions.step(np.array([0, 0]))
    late = sessions.observe()
    assert late.segment_bytes[0, :, 0].tolist() == [125_000, 125_000] + [0] * (LOOKAHEAD - 2)
    assert seen.remaining.tolist() == [6, 6]  # its arrays are its own


def test_unknown_sizes_are_estimated():
    video = generate_videos(1, seed=4)[0]
    sessions = Sessions([flat(3000)], video, PERCEPTUAL, dataclasses.replace(LIVE, prior_std=0.2))
    seen = sessions.observe()
    rungs = len(video.rungs_kbps)
    nominal = np.tile(video.rungs_kbps * video.segment_s * 125, (LOOKAHEAD, 1))
    np.testing.assert_allclose(seen.segment_bytes[0, :, :rungs], nominal, rtol=1e-6)
    np.testing.assert_allclose(seen.quality[0, 2, :rungs], video.vmaf.mean(0), rtol=1e-5)
    assert seen.remaining[0] == LIVE_REMAINING
    assert seen.latency_s[0].tolist() == pytest.approx([max(6, video.segment_s), 6])
    assert seen.prior_log_kbps[0].tolist() == pytest.approx([np.log(3000), 0.2], abs=1)


def test_live_player_waits_for_the_edge_and_catches_up():
    """At 100 Mbit/s a segment of 2 s arrives at once: one each 2 s, and latency comes down to its target."""
    rules = dataclasses.replace(LIVE, live_target_s=3.0, catch_up=0.1, rtt_s=0.0)
    sessions = Sessions([flat(100_000)], title(500, 1000, segments=60), settings=rules)
    sessions.step(np.array([0]))
    sessions.state["latency_s"] += 2  # as after a stall of 2 s
    outcomes = [outcome for _, outcome, _ in play(sessions, steps=50)]
    assert sum(outcome.rebuffer_s[0] for outcome in outcomes) == pytest.approx(0, abs=1e-9)
    assert outcomes[0].latency[0] < 0
    assert sessions.state["latency_s"][0] == pytest.approx(3.0, abs=0.25)
    assert outcomes[-1].delay_s[0] + outcomes[-1].sleep_s[0] == pytest.approx(2.0, abs=0.25)


def test_startup_is_apart_where_asked():
    """2 Mbit/s at payload 1 and no round trip: a segment of 2 s at 1 Mbit/s takes 1 s."""
    base = Settings(rtt_s=0.0, payload=1.0, first_rung=None, startup_s=4.0)
    video = title(1000, 2000)
    apart = Sessions([flat(2000)], video, settings=dataclasses.replace(base, startup_weight=-0.5))
    as_rebuffer = Sessions([flat(2000)], video, settings=base)
    for sessions, fields in ((apart, ("startup_s", "wait")), (as_rebuffer, ("rebuffer_s", "rebuffer"))):
        outcomes = [sessions.step(np.array([0])) for _ in range(3)]
        assert [getattr(outcome, fields[0])[0] for outcome in outcomes] == pytest.approx([1, 1, 0])
        weight = -0.5 if sessions is apart else -4.3
        assert [getattr(outcome, fields[1])[0] for outcome in outcomes] == pytest.approx([weight, weight, 0])
        assert sessions.state["buffer_s"][0] == pytest.approx(5)


def test_viewers_leave_at_their_hazard():
    rules = Settings(leave_per_s=0.02, noise=0.0)
    sessions = Sessions([flat(5000)], title(500, 1000, segments=500), settings=rules, batch=4000, seed=2)
    wall_s = np.zeros(4000)
    while not sessions.state["done"].all():
        outcome = sessions.step(np.zeros(4000, int))
        wall_s += outcome.delay_s + outcome.sleep_s
    assert wall_s.mean() == pytest.approx(50, rel=0.06)  # the mean of an exponential of 0.02 a second
    rules = Settings(leave_per_rebuffer_s=1.0, startup_weight=0.0)
    calm = Sessions([flat(5000)], title(500, 1000), settings=rules, batch=200)
    for _, outcome, _ in play(calm, steps=10):
        assert not outcome.left.any()
    stalled = Sessions([flat(100)], title(500, 1000), settings=rules, batch=200)
    stalled.step(np.zeros(200, int))
    assert stalled.step(np.zeros(200, int)).left.mean() > 0.9  # about 10 s of rebuffering


def test_reset_begins_chosen_sessions_anew():
    sessions = worlds(3, [PENSIEVE])
    for _ in play(sessions, steps=5):
        pass
    kept = sessions.state[1].copy()
    sessions.reset(np.arange(24) % 2 == 0)
    assert (sessions.state["segment"][::2] == 0).all()
    assert not sessions.observe().throughput_kbps[::2].any()
    assert sessions.state[1].tobytes() == kept.tobytes()


def test_future_is_the_traces_mean():
    trace = Trace("steps", np.array([0.0, 1.0, 3.0]), np.array([7.0, 1000.0, 4000.0]))
    future = Sessions([trace], title(500, 1000)).future_kbps([0.5, 1, 2, 3, 6])
    np.testing.assert_allclose(future, [[1000, 1000, 2500, 3000, 3000]])


def test_round_trip_of_the_trace_is_used_where_asked():
    rules = Settings(rtt_s=None, payload=1.0, first_rung=None)
    sessions = Sessions([flat(2000, rtt_s=0.3), flat(2000)], title(1000, 2000), settings=rules)
    assert sessions.step(np.zeros(2, int)).delay_s.tolist() == pytest.approx([1.3, 1.08])


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_buffer_s", 0.1), ("max_buffer_s", float("nan")), ("payload", 0.0), ("noise", 1.0), ("rtt_s", -1.0)],
)
def test_absurd_settings_are_refused(field, value):
    with pytest.raises(InvalidInput, match=f"settings.{field}"):
        Settings(**{field: value})


def test_sessions_refuse_nothing_to_play_and_missing_vmaf():
    with pytest.raises(InvalidInput, match="traces"):
        Sessions([], title(500, 1000))
    with pytest.raises(InvalidInput, match="vmaf"):
        Sessions([flat(1000)], title(500, 1000), PERCEPTUAL)


def test_simulator_is_no_bottleneck():
    """A floor of 200,000 segments a second on one thread, far below what benchmark_simulator finds."""
    sessions = Sessions(generate_traces(64, seed=0), title(300, 1000, 3000, segments=60), batch=2000)
    rungs = np.ones(2000, int)
    sessions.step(rungs)
    best_s = float("inf")
    for _ in range(10):
        begin = time.process_time()
        sessions.step(rungs)
        best_s = min(best_s, time.process_time() - begin)
    assert 2000 / best_s > 200_000
