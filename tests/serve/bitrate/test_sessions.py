"""Reading sessions: whatever comes, something safe and within range goes on, and what was wrong is named."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.bitrate.observations import HISTORY, LIVE_REMAINING, LOOKAHEAD, PERCEPTUAL_WEIGHTS, RUNGS, SHAPES
from serve.bitrate.rules import choose
from serve.bitrate.schemas import SESSION_EXAMPLE, BitrateSession
from serve.bitrate.sessions import BAD_SESSION, LADDER_CUT, Session, observe, read_session

GOOD: dict[str, Any] = {
    "session_id": "s1",
    "segment_s": 4,
    "buffer_s": 12.5,
    "last_rung": 1,
    "throughput_kbps": [1500, 2000],
    "download_s": [1.0, 2.0],
    "rungs_kbps": [300, 750, 1200, 1850],
}

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-5, 5000),
    st.floats(),
    st.floats(-1, 5000),
    st.text(max_size=5),
    st.sampled_from([-0.0, 1e308, -1e308, math.nan, math.inf, -math.inf, 2**63, 10**400, "NaN", "\ud800", 5e-324]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=14) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=40,
)
NAMES = list(BitrateSession.model_fields)
SESSIONS = st.one_of(
    JSON,
    st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, JSON)),
    st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, JSON)).map(lambda changes: GOOD | changes),
)


def changed(**changes: Any) -> Session:
    return read_session(GOOD | changes)


@given(SESSIONS)
def test_whatever_comes_is_made_safe(document: Any) -> None:
    session = read_session(document)
    assert len(session.rungs_kbps) == len(session.places) <= RUNGS
    assert list(session.rungs_kbps) == sorted(set(session.rungs_kbps))
    assert len(session.throughput_kbps) == len(session.download_s) <= HISTORY
    choice = choose(session)
    assert 0 <= choice.rung < max(len(session.rungs_kbps), 1)
    assert 0 <= choice.safe_rung < max(len(session.rungs_kbps), 1)
    assert 0 <= choice.rebuffer_probability <= 1
    assert all(math.isfinite(kbps) and kbps >= 0 for kbps in choice.throughput_kbps)
    assert all(a <= b for a, b in zip(choice.throughput_kbps, choice.throughput_kbps[1:], strict=False))
    if session.rungs_kbps:
        observations = observe([session])
        for name, array in observations.as_inputs().items():
            assert array.shape == (1, *SHAPES[name])
            assert array.dtype == np.float32
            assert array.flags.c_contiguous
            assert np.isfinite(array).all(), name
        assert observations.last_rung[0] < len(session.rungs_kbps)


@given(SESSIONS, SESSIONS)
def test_a_session_does_not_depend_on_its_neighbours(first: Any, second: Any) -> None:
    sessions = [session for session in (read_session(first), read_session(second)) if session.rungs_kbps]
    if sessions:
        together = observe(sessions).as_inputs()
        for line, session in enumerate(sessions):
            for name, array in observe([session]).as_inputs().items():
                np.testing.assert_array_equal(array[0], together[name][line], err_msg=name)


def test_the_documented_example_is_read_without_remarks() -> None:
    BitrateSession.model_validate(SESSION_EXAMPLE)
    session = read_session(SESSION_EXAMPLE)
    assert (session.reasons, session.simple, session.last_rung, session.remaining) == ([], False, 2, 36.0)
    assert session.title_id == "242"


@pytest.mark.parametrize(
    ("changes", "reason", "simple"),
    [
        ({"buffer_s": math.nan}, "bad_field:buffer_s", True),
        ({"buffer_s": -1}, "bad_field:buffer_s", True),
        ({"buffer_s": "7"}, "bad_field:buffer_s", True),
        ({"buffer_s": None}, "missing_field:buffer_s", True),
        ({"segment_s": 0}, "bad_field:segment_s", True),
        ({"segment_s": True}, "bad_field:segment_s", True),
        ({"max_buffer_s": math.inf}, "bad_field:max_buffer_s", False),
        ({"last_rung": 9}, "bad_field:last_rung", False),
        ({"last_rung": 1.5}, "bad_field:last_rung", False),
        ({"throughput_kbps": [math.nan, 900]}, "bad_field:throughput_kbps", False),
        ({"throughput_kbps": [math.nan, -3]}, "bad_field:throughput_kbps", True),
        ({"throughput_kbps": "fast"}, "bad_field:throughput_kbps", True),
        ({"throughput_kbps": None}, "missing_field:throughput_kbps", True),
        ({"download_s": None}, "missing_field:download_s", False),
        ({"download_s": [1.0]}, "bad_field:download_s", False),
        ({"download_s": [1.0, 0]}, "bad_field:download_s", False),
        ({"rungs_kbps": None}, "missing_field:rungs_kbps", False),
        ({"rungs_kbps": []}, "bad_field:rungs_kbps", False),
        ({"rungs_kbps": [0, "x", None, math.nan]}, "bad_field:rungs_kbps", False),
        ({"rungs_kbps": [0, 300, 750]}, "bad_field:rungs_kbps", False),
        ({"segment_bytes": [[1, 2]]}, "bad_field:segment_bytes", False),
        ({"segment_bytes": 5}, "bad_field:segment_bytes", False),
        ({"segment_bytes": [[1, 2, 3, -4]]}, "bad_field:segment_bytes", False),
        ({"vmaf": [[10, 20, 30, 101]]}, "bad_field:vmaf", False),
        ({"segment_index": 9, "segment_count": 5}, "bad_field:segment_index", False),
        ({"segment_count": 0}, "bad_field:segment_count", False),
        ({"session_id": "x" * 200}, "bad_field:session_id", False),
        ({"session_id": "\ud800"}, "bad_field:session_id", False),
        ({"asn": []}, "bad_field:asn", False),
        ({"qoe": "best"}, "bad_field:qoe", False),
        ({"qoe": {"rebuffer": 1, "rise": 0, "fall": 0, "quality": 1}}, "bad_field:qoe", False),
        ({"live_latency_s": -1}, "bad_field:live_latency_s", False),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], reason: str, *, simple: bool) -> None:
    session = changed(**changes)
    assert session.reasons == [reason]
    assert session.simple is simple


@pytest.mark.parametrize("document", [None, 3, "x", [], [[]], True])
def test_what_is_no_session_is_named(document: Any) -> None:
    session = read_session(document)
    assert (session.reasons, session.simple) == ([BAD_SESSION], True)


def test_rungs_in_any_order_are_answered_in_the_callers() -> None:
    session = changed(rungs_kbps=[1200, 300, 1200, 750], last_rung=2, segment_bytes=[[12, 3, 99, 7]])
    assert (session.rungs_kbps, session.places) == ([300.0, 750.0, 1200.0], [1, 3, 0])
    assert session.last_rung == 2
    assert session.segment_bytes == [[3, 7, 12]]
    assert [session.place(rung) for rung in range(3)] == [1, 3, 0]


def test_of_many_rungs_the_ends_and_even_steps_are_used() -> None:
    ladder = [round(100 * 1.2**step, 1) for step in range(30)]
    session = changed(rungs_kbps=ladder, last_rung=29)
    assert len(session.rungs_kbps) == RUNGS
    assert (session.rungs_kbps[0], session.rungs_kbps[-1]) == (ladder[0], ladder[-1])
    steps = np.diff(np.log(session.rungs_kbps))
    assert steps.max() < 2 * steps.min()
    assert (session.reasons, session.last_rung) == ([LADDER_CUT], RUNGS - 1)


def test_samples_of_different_lengths_are_paired_from_the_newest() -> None:
    session = changed(throughput_kbps=[1000, 2000, 3000], download_s=[5.0, 7.0])
    assert list(session.throughput_kbps) == [1000, 2000, 3000]
    assert list(session.download_s)[1:] == [5.0, 7.0]
    assert session.download_s[0] == pytest.approx(4 * 750 / 1000)


def test_the_newest_samples_stand_last() -> None:
    session = changed(throughput_kbps=list(range(100, 130)), download_s=[1.0] * 30)
    observations = observe([session, changed()])
    assert observations.throughput_kbps[0].tolist() == list(range(130 - HISTORY, 130))
    assert observations.throughput_kbps[1].tolist() == [0.0] * (HISTORY - 2) + [1500, 2000]
    assert observations.download_s[1].tolist() == [0.0] * (HISTORY - 2) + [1.0, 2.0]


def test_sizes_and_quality_are_estimated_where_they_are_not_given() -> None:
    observations = observe([changed(segment_index=10, segment_count=13)])
    assert observations.remaining[0] == 3
    np.testing.assert_allclose(observations.segment_bytes[0, :3, :4], [[150_000, 375_000, 600_000, 925_000]] * 3)
    assert not observations.segment_bytes[0, 3:].any()
    assert not observations.segment_bytes[0, :, 4:].any()
    np.testing.assert_allclose(observations.quality[0, 0, :4], [0.3, 0.75, 1.2, 1.85])
    assert not observations.quality[0, 3:].any()
    assert observations.last_quality[0] == pytest.approx(0.75)
    assert observe([changed()]).remaining[0] == LIVE_REMAINING


def test_given_sizes_and_vmaf_are_used() -> None:
    sizes, vmaf = [[10, 20, 30, 40], [11, 21, 31, 41]], [[20, 40, 60, 80.5]]
    observations = observe([changed(segment_bytes=sizes, vmaf=vmaf, qoe="perceptual")])
    np.testing.assert_array_equal(observations.segment_bytes[0, :2, :4], sizes)
    assert observations.segment_bytes[0, 2, 0] == 150_000
    np.testing.assert_allclose(observations.quality[0, 0, :4], vmaf[0])
    assert observations.last_quality[0] == 40
    np.testing.assert_allclose(observations.weights[0], PERCEPTUAL_WEIGHTS, rtol=1e-6)
    assert (np.diff(observations.quality[0, 1, :4]) > 0).all()
    assert observations.quality[0, LOOKAHEAD - 1, 3] == pytest.approx(100)


def test_weights_of_ones_own_are_used() -> None:
    session = changed(qoe={"rebuffer": -10, "rise": 0, "fall": -2, "quality": 1, "measure": "vmaf"})
    assert (list(session.weights), session.perceptual, session.reasons) == ([-10, 0, -2, 1], True, [])
