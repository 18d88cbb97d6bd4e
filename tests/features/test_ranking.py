"""What the ranker knows of titles and of a request."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.history import Entry, History
from features.popularity import TitleStats
from features.profiles import ProfileStats
from features.ranking import CONTEXT, CONTEXT_SIZE, STATISTICS, STATISTICS_SIZE, request_context, title_statistics

counts = st.integers(0, 10**9)


@given(
    st.lists(
        st.none()
        | st.builds(
            TitleStats, plays=counts, finishes=counts, thumbs_up=counts, thumbs_down=counts,
            trend=st.floats(-1e6, 1e6) | st.just(-math.inf),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_statistics_are_bounded(stats):
    matrix = title_statistics(stats)
    assert matrix.shape == (len(stats), STATISTICS_SIZE)
    assert matrix.dtype == np.float32
    assert np.isfinite(matrix).all()
    assert (np.abs(matrix) <= 1).all()


def test_a_title_of_which_nothing_is_known_has_the_catalogues_rates():
    liked = TitleStats(plays=100, finishes=50, thumbs_up=20, trend=5.0)
    unknown, known = title_statistics([None, liked])
    rate = STATISTICS.index("finish_rate")
    assert unknown[rate] == known[rate] == np.float32(0.5)
    assert unknown[STATISTICS.index("played")] == 0
    assert known[STATISTICS.index("popularity")] == 1


def test_more_plays_and_newer_plays_count_more():
    few, many = title_statistics([TitleStats(plays=1, trend=1.0), TitleStats(plays=50, trend=9.0)])
    for name in ("popularity", "trend"):
        assert many[STATISTICS.index(name)] > few[STATISTICS.index(name)]


@given(
    st.lists(
        st.builds(Entry, st.integers(0, 4_000_000_000_000), st.integers(1, 7), st.sampled_from("abc"), st.floats(0, 1)),
        max_size=20,
    ),
    st.integers(0, 4_102_444_800_000),
)
def test_context_is_bounded(entries, now_ms):
    context = request_context(History(sorted(entries)), ProfileStats(), now_ms)
    assert context.shape == (CONTEXT_SIZE,)
    assert context.dtype == np.float32
    assert np.isfinite(context).all()
    assert (np.abs(context) <= 2).all()


def test_context_tells_the_time_since_the_last_event_and_the_hour():
    history = History([Entry(1_000_000, 3, "a", 1.0)])
    soon = dict(zip(CONTEXT, request_context(history, ProfileStats(), 1_000_000), strict=True))
    later = dict(zip(CONTEXT, request_context(history, ProfileStats(), 1_000_000 + 6 * 3_600_000), strict=True))
    assert soon["any_history"] == soon["finish_rate"] == 1
    assert soon["gap"] == 0 < later["gap"]
    assert later["hour_sin"] > 0.99
