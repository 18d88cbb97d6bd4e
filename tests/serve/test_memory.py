import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.events import Event, EventKind
from features.profiles import ProfileFeatures, ProfileState
from features.ranking import request_context
from features.titles import Title
from serve.catalogue import Catalogue
from serve.memory import Memory

CATALOGUE = Catalogue.build(Title(title_id=f"t{row}", name="T") for row in range(1, 9))
KINDS = list(EventKind)


def profile(profile_id: str, events: list[tuple[int, EventKind]], *, known: bool = True) -> ProfileFeatures:
    state = ProfileState()
    for second, (number, kind) in enumerate(events):
        state.apply(
            Event(event_id=str(second), profile_id=profile_id, title_id=f"t{number}", kind=kind, ts=5000 * second)
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


def test_whom_it_met_ahead_is_forgotten_by_when_they_were_seen() -> None:
    memory = Memory(3)
    for name in ("last", "before", "first"):
        memory.meet(profile(name, []), CATALOGUE)
    memory.prefer(["last", "before", "first", "nobody"])
    assert memory.recent() == ["last", "before", "first"]
    memory.meet(profile("new", []), CATALOGUE)
    assert memory.recent() == ["new", "last", "before"]
