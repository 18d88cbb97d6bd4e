"""Point-in-time frames from event files."""

import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from features.errors import InvalidData
from features.events import Event, EventKind
from features.offline import FRAME_SCHEMA, features_at, fold, point_in_time, replay, title_statistics
from features.popularity import HALF_LIFE_MS, NO_TREND, add_logs, subtract_logs
from features.profiles import ProfileFeatures, ProfileState
from features.sink import EVENTS

KIND = st.sampled_from(list(EventKind))
PROFILES = pl.DataFrame({"profile_id": ["p", "quiet"], "region": ["JP", "FR"], "kids": [False, True]})


def an_event(index, title, kind, ts, position=0.0, region=None):
    return Event(event_id=f"e{index}", profile_id="p", title_id=f"t{title}", kind=kind, ts=ts, position_s=position,
                 duration_s=10.0, region=region)  # fmt: skip


@st.composite
def logs(draw):
    places = st.sampled_from([None, "FR", "DE"])
    row = st.tuples(st.integers(0, 8), KIND, st.integers(0, 40), st.floats(0, 12), places)
    return [an_event(index, *fields) for index, fields in enumerate(draw(st.lists(row, max_size=60)))]


def as_frame(events):
    return pl.DataFrame([event.model_dump(mode="json") for event in events], schema=EVENTS.schema)


def rows(*moments, profile="p"):
    schema = {"profile_id": pl.String, "ts": pl.Int64}
    return pl.DataFrame({"profile_id": [profile] * len(moments), "ts": list(moments)}, schema=schema)


def test_the_moment_itself_is_in_unless_asked_otherwise():
    events = as_frame([an_event(1, 1, EventKind.PLAY, 10), an_event(2, 2, EventKind.PLAY, 20)])
    assert [f.history.n_events for f in features_at(events, rows(20, 9, 10))] == [2, 0, 1]
    assert [f.history.n_events for f in features_at(events, rows(20, 9, 10), inclusive=False)] == [1, 0, 0]
    assert [f.known for f in features_at(events, rows(20, 9, 10))] == [True, False, True]


def test_what_is_known_beside_events_is_known_from_the_start():
    events = as_frame([an_event(1, 1, EventKind.PLAY, 10, region="DE")])
    asked = pl.concat([rows(9, 10), rows(5, profile="quiet"), rows(5, profile="nobody")])
    found = features_at(events, asked, PROFILES)
    assert [(f.known, f.stats.region, f.stats.kids) for f in found] == [
        (True, "JP", False), (True, "DE", False), (True, "FR", True), (False, "", False),
    ]  # fmt: skip
    assert found[3] == ProfileFeatures("nobody")


@given(logs(), st.lists(st.integers(0, 45), max_size=5), st.booleans())
def test_every_row_is_the_fold_of_its_past(events, moments, inclusive):
    def expected(moment):
        state = ProfileState()
        past = [e for e in events if e.ts < moment or (inclusive and e.ts == moment)]
        for event in past:
            state.apply(event)
        return state.features("p") if past else ProfileFeatures("p")

    found = features_at(as_frame(events), rows(*moments), inclusive=inclusive)
    assert found == [expected(moment) for moment in moments]


@given(logs())
def test_replay_shows_what_was_known_before_each_instant(events):
    frame = as_frame(events)
    seen = []
    for moment in replay(frame):
        (expected,) = features_at(frame, rows(moment.ts_ms), inclusive=False)
        assert moment.state.features("p").history == expected.history
        assert moment.state.stats() == expected.stats
        assert {events[row].ts for row in moment.rows} == {moment.ts_ms}
        seen += moment.rows
    assert sorted(seen) == list(range(len(events)))


@given(logs())
def test_fold_ends_where_replay_ends(events):
    states = fold(as_frame(events), PROFILES)
    assert set(states) == {"p", "quiet"}
    last = max((event.ts for event in events), default=0)
    assert features_at(as_frame(events), rows(last), PROFILES) == [states["p"].features("p")]


def test_frames_have_one_row_for_each_asked_row():
    events = [an_event(i, i, EventKind.FINISH, 10 * i, position=5.0) for i in range(3)]
    frame = point_in_time(as_frame(events), rows(20, 0, 10), PROFILES)
    assert dict(frame.schema) == FRAME_SCHEMA
    assert frame["ts"].to_list() == [20, 0, 10]
    assert frame["title_ids"].to_list() == [["t0", "t1", "t2"], ["t0"], ["t0", "t1"]]
    assert frame["progress"].to_list()[0] == [0.5, 0.5, 0.5]
    assert frame["counts"].to_list()[0] == [0, 0, 0, 3, 0, 0, 0, 0]
    assert_frame_equal(frame, point_in_time(as_frame(events[::-1]), rows(20, 0, 10), PROFILES))


def test_optional_columns_may_be_missing():
    full = as_frame([an_event(1, 1, EventKind.PLAY, 10)])
    bare = full.drop("request_id", "row", "rank", "device", "region")
    assert features_at(bare, rows(10)) == features_at(full, rows(10))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda f: f.drop("kind"), "events"),
        (lambda f: f.with_columns(kind=pl.lit("watched")), "events, row 0"),
        (lambda f: f.with_columns(ts=pl.lit(None, pl.Int64)), "events, row 0"),
    ],
)
def test_bad_events_are_named(change, field):
    frame = change(as_frame([an_event(1, 1, EventKind.PLAY, 10)]))
    with pytest.raises(InvalidData) as told:
        features_at(frame, rows(10))
    assert told.value.field == field


def test_title_statistics_at_a_moment():
    events = [an_event(i, 1, EventKind.PLAY, i * HALF_LIFE_MS) for i in range(4)]
    events.append(an_event(9, 1, EventKind.IMPRESSION, 9 * HALF_LIFE_MS))
    frame = as_frame(events)
    stats = title_statistics(frame)["t1"]
    assert (stats.plays, stats.impressions, stats.last_ts_ms) == (4, 1, 3 * HALF_LIFE_MS)
    assert stats.decayed_plays(3 * HALF_LIFE_MS) == pytest.approx(1 + 1 / 2 + 1 / 4 + 1 / 8)
    assert title_statistics(frame, HALF_LIFE_MS)["t1"].plays == 2
    assert title_statistics(frame, HALF_LIFE_MS, inclusive=False)["t1"].plays == 1
    only_shown = title_statistics(as_frame(events[-1:]))["t1"]
    assert (only_shown.trend, only_shown.last_ts_ms, only_shown.plays) == (NO_TREND, 0, 0)


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_logs_are_added_and_subtracted(first, second):
    whole = add_logs(first, second)
    assert whole == pytest.approx(np.logaddexp2(first, second))
    assert add_logs(first, NO_TREND) == subtract_logs(first, NO_TREND) == first
    assert subtract_logs(first, first) == NO_TREND
    if second - first > -20:
        assert subtract_logs(whole, first) == pytest.approx(second, abs=1e-6)


def test_a_large_log_takes_seconds():
    rng, size = np.random.default_rng(1), 100_000
    ts = np.sort(rng.integers(0, 10**9, size)) + 1_700_000_000_000
    events = pl.DataFrame(
        {
            "event_id": [f"e{i}" for i in range(size)],
            "profile_id": [f"p{i}" for i in rng.integers(0, 900, size)],
            "title_id": [f"t{i}" for i in rng.zipf(1.3, size) % 2000],
            "kind": rng.choice([kind.value for kind in EventKind], size),
            "ts": ts,
            "position_s": rng.random(size) * 5000,
            "duration_s": np.full(size, 5000.0),
        }
    )
    began = time.process_time()
    assert sum(len(moment.rows) for moment in replay(events)) == size
    assert time.process_time() - began < 20  # twenty times what it takes: it must not become quadratic
