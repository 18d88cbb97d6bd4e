"""The fold: a history is a set of events."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.events import Event, EventKind
from features.history import CAPACITY, KIND_CODES, LIST_CAPACITY, Entry, History
from features.profiles import KINDS, ProfileState

KIND = st.sampled_from(list(EventKind))


def an_event(index, title, kind, ts, position=0.0, region=None, device=None):
    return Event(
        event_id=f"e{index}", profile_id="p", title_id=f"t{title}", kind=kind, ts=ts, position_s=position,
        duration_s=10.0, region=region, device=device,
    )  # fmt: skip


@st.composite
def logs(draw, longest=60):
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 8), KIND, st.integers(0, 40), st.floats(0, 12), st.sampled_from([None, "FR", "DE"]),
                st.sampled_from([None, "tv", "phone"]),
            ),
            max_size=longest,
        )
    )  # fmt: skip
    return [an_event(index, *row) for index, row in enumerate(rows)]


def folded(events):
    state = ProfileState()
    for event in events:
        state.apply(event)
    return state


@given(logs(), st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_nothing(events, rng):
    shuffled = list(events)
    rng.shuffle(shuffled)
    assert folded(shuffled).features("p") == folded(events).features("p")
    assert folded(shuffled).list_marks == folded(events).list_marks


def test_the_order_of_arrival_changes_nothing_beyond_capacity():
    rng = random.Random(7)
    events = [
        an_event(i, rng.randrange(400), rng.choice(list(EventKind)), rng.randrange(900), rng.random() * 10)
        for i in range(3 * CAPACITY)
    ]
    expected = folded(events)
    assert len(expected.history.entries) == CAPACITY
    for _ in range(20):
        rng.shuffle(events)
        assert folded(events).features("p") == expected.features("p")


@given(logs())
def test_what_is_remembered_twice_is_remembered_once(events):
    once, twice = History(), History()
    for event in events:
        once.apply(event)
    for event in events + events:
        twice.apply(event)
    assert twice.entries == once.entries


@given(logs(), logs())
def test_merging_is_folding_both(first, second):
    merged = folded(first)
    merged.merge(folded(second))
    assert merged.features("p") == folded(first + second).features("p")
    assert merged.list_marks == folded(first + second).list_marks


@given(logs())
def test_entries_are_sorted_and_version_grows(events):
    history = History()
    for event in events:
        before = history.n_events
        history.apply(event)
        assert history.n_events == before + (event.kind is not EventKind.IMPRESSION)
        assert history.entries == sorted(history.entries)


def test_an_impression_is_not_history():
    assert not History().apply(an_event(1, 1, EventKind.IMPRESSION, 5))


def test_of_progress_only_the_newest_of_a_title_is_kept():
    history = History()
    assert history.apply(an_event(1, 1, EventKind.PROGRESS, 5, 2.0))
    assert not history.apply(an_event(2, 1, EventKind.PROGRESS, 4, 9.0))
    assert history.apply(an_event(3, 1, EventKind.PROGRESS, 6, 3.0))
    assert history.entries == [Entry(6, KIND_CODES[EventKind.PROGRESS], "t1", pytest.approx(0.3))]


def test_a_late_addition_does_not_undo_a_newer_removal():
    state = folded([an_event(1, 1, EventKind.REMOVE_FROM_LIST, 9), an_event(2, 1, EventKind.ADD_TO_LIST, 8)])
    assert state.stats().my_list == ()
    state.apply(an_event(3, 2, EventKind.ADD_TO_LIST, 10))
    state.apply(an_event(4, 1, EventKind.ADD_TO_LIST, 11))
    assert state.stats().my_list == ("t1", "t2")


def test_the_list_is_bounded():
    state = folded([an_event(i, i, EventKind.ADD_TO_LIST, i) for i in range(LIST_CAPACITY + 5)])
    assert len(state.stats().my_list) == LIST_CAPACITY
    assert state.stats().my_list[-1] == "t5"


def test_region_and_device_come_from_the_newest_event_that_has_them():
    state = folded(
        [
            an_event(1, 1, EventKind.PLAY, 10, region="FR"),
            an_event(2, 1, EventKind.IMPRESSION, 20, device="tv"),
            an_event(3, 1, EventKind.PLAY, 5, region="DE", device="phone"),
            an_event(4, 1, EventKind.PLAY, 30),
        ]
    )
    assert (state.stats().region, state.stats().device) == ("FR", "tv")


def test_counts_name_every_kind():
    stats = folded([an_event(1, 1, EventKind.PLAY, 10), an_event(2, 1, EventKind.IMPRESSION, 11)]).stats()
    assert set(stats.counts) == set(EventKind) == set(KINDS)
    assert stats.counts[EventKind.PLAY] == stats.counts[EventKind.IMPRESSION] == 1
    assert (stats.first_ts_ms, stats.last_ts_ms) == (10, 10)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_progress_is_a_share_exact_in_float32(position_s, duration_s):
    event = Event(event_id="e", profile_id="p", title_id="t", kind="play", ts=1, position_s=position_s,
                  duration_s=duration_s)  # fmt: skip
    assert 0 <= event.progress <= 1
    assert float(np.float32(event.progress)) == event.progress


def test_codes_are_never_renumbered():
    assert {kind.value: code for kind, code in KIND_CODES.items()} == {
        "play": 1, "progress": 2, "finish": 3, "thumbs_up": 4, "thumbs_down": 5, "add_to_list": 6,
        "remove_from_list": 7,
    }  # fmt: skip
