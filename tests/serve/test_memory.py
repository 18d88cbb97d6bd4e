import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.events import Event, EventKind
from features.profiles import ProfileFeatures, ProfileState
from features.ranking import request_context
from features.titles import Title
from serve.catalogue import Catalogue
from serve.memory import Memory

GENRES = ("Drama", "Crime", "War")
CATALOGUE = Catalogue.build(
    Title(title_id=f"t{row}", name="T", genres=(GENRES[row % 2], *GENRES[row % 3 : 1])) for row in range(1, 9)
)
KINDS = list(EventKind)


def profile(profile_id: str, events: list[tuple[int, EventKind]], *, known: bool = True) -> ProfileFeatures:
    state = ProfileState()
    for second, (number, kind) in enumerate(events):
        state.apply(
            Event(
                event_id=str(second),
                profile_id=profile_id,
                title_id=f"t{number}",
                kind=kind,
                ts=5000 * second,
                position_s=10 * number,
                duration_s=100,
            )
        )
    return ProfileFeatures(profile_id, known, state.history, state.stats())


@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from(KINDS)), max_size=40), st.integers(0, 10**13))
def test_the_context_is_the_one_that_training_uses(events: list[tuple[int, EventKind]], now_ms: int) -> None:
    who = profile("p", events)
    np.testing.assert_array_equal(
        Memory(1).meet(who, CATALOGUE).context(now_ms), request_context(who.history, who.stats, now_ms)
    )


def test_a_history_is_folded_once_and_again_after_an_event() -> None:
    memory = Memory(10)
    events = [(1, EventKind.PLAY), (2, EventKind.FINISH)]
    first = memory.meet(profile("p", events), CATALOGUE)
    assert memory.meet(profile("p", events), CATALOGUE) is first
    later = memory.meet(profile("p", [*events, (1, EventKind.FINISH)]), CATALOGUE)
    assert later is not first
    assert later.viewer.loved.tolist() == [1, 2]
    assert (memory.hits, memory.misses, len(memory)) == (1, 2, 1)


def test_a_history_of_the_same_length_is_another_one() -> None:
    memory = Memory(10)
    memory.meet(profile("p", [(1, EventKind.PLAY)]), CATALOGUE)
    assert memory.meet(profile("p", [(2, EventKind.PLAY)]), CATALOGUE).viewer.playing.tolist() == [2]


def test_what_lies_beside_the_history_is_always_the_newest() -> None:
    memory = Memory(10)
    memory.meet(profile("p", []), CATALOGUE)
    who = ProfileFeatures("p", known=True, stats=ProfileState(region=(1, "se"), kids=True).stats())
    assert memory.meet(who, CATALOGUE).stats.kids
    assert memory.hits == 1


def test_the_least_recently_seen_is_forgotten() -> None:
    memory = Memory(2)
    for name in ("a", "b", "a", "c"):
        memory.meet(profile(name, []), CATALOGUE)
    assert memory.recall("a") is not None
    assert memory.recall("b") is None
    assert memory.recall("c") is not None
    assert len(memory) == 2


def test_unknown_profiles_push_nobody_out() -> None:
    memory = Memory(2)
    memory.meet(profile("a", []), CATALOGUE)
    for number in range(50):
        memory.meet(profile(f"stranger{number}", [], known=False), CATALOGUE)
    assert memory.recall("a") is not None


def test_whom_another_knew_is_forgotten_first_and_by_when_they_were_seen() -> None:
    before, memory = Memory(3), Memory(3)
    for name in ("last", "first", "own"):
        before.meet(profile(name, []), CATALOGUE)
    before.meet(profile("stranger", [], known=False), CATALOGUE)
    assert list(before.known()) == ["own", "first"], "the last seen first; unknown ones are nobody"
    before = Memory(3)
    for name in ("last", "first", "own"):
        before.meet(profile(name, []), CATALOGUE)
    own = memory.meet(profile("own", [(1, EventKind.PLAY)]), CATALOGUE)
    memory.inherit(before.known())
    assert list(memory.known()) == ["own", "first", "last"]
    assert memory.recall("own") is own
    memory.meet(profile("new", []), CATALOGUE)
    assert list(memory.known()) == ["new", "own", "first"]
    small = Memory(1)
    small.inherit(before.known())
    assert list(small.known()) == ["own"]


@given(st.lists(st.tuples(st.integers(1, 12), st.sampled_from(KINDS)), max_size=40))
def test_a_viewer_moved_to_other_rows_is_the_one_that_is_met_there(events: list[tuple[int, EventKind]]) -> None:
    one = CATALOGUE.laid_out({"t3": 1, "t9": 2, "t1": 3})
    other = CATALOGUE.laid_out({"t5": 1, "t1": 2, "gone": 3, "t9": 4})
    rows = np.array([other.rows.get(title_id, 0) for title_id in one.title_ids])
    who = profile("p", events)
    moved = Memory(1).meet(who, one).moved(rows)
    met = Memory(1).meet(who, other)
    assert moved is not None
    assert moved.state is None
    np.testing.assert_array_equal(moved.visits, met.visits)
    assert (moved.stamp, moved.counts, moved.last_ts_ms) == (met.stamp, met.counts, met.last_ts_ms)
    assert (moved.viewer.liked, moved.viewer.genres) == (met.viewer.liked, met.viewer.genres)
    assert moved.viewer.progress == met.viewer.progress
    for name in ("watched", "disliked", "playing", "loved"):
        np.testing.assert_array_equal(getattr(moved.viewer, name), getattr(met.viewer, name))


def test_a_viewer_of_a_title_that_has_no_row_there_is_met_anew() -> None:
    who = Memory(1).meet(profile("p", [(1, EventKind.PLAY), (2, EventKind.PLAY)]), CATALOGUE)
    rows = np.arange(9)
    assert who.moved(rows) is not None
    rows[2] = 0
    assert who.moved(rows) is None
