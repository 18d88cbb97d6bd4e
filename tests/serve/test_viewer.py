import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.events import Event, EventKind
from features.history import History
from features.titles import Title
from serve.catalogue import Catalogue
from serve.viewer import FINISHED, Viewer

CATALOGUE = Catalogue.build(
    [
        Title(title_id=f"t{row}", name=f"T{row}", genres=("Drama",) if row < 9 else ("Drama", "War"))
        for row in range(1, 13)
    ]
)
KINDS = [kind for kind in EventKind if kind is not EventKind.IMPRESSION]


def history(*events: tuple[int, str] | tuple[int, str, float]) -> History:
    """A history of (title number, kind[, progress]) one second apart."""
    folded = History()
    for second, (number, kind, *progress) in enumerate(events):
        folded.apply(
            Event(
                event_id=str(second),
                profile_id="p",
                title_id=f"t{number}",
                kind=EventKind(kind),
                ts=1000 * second,
                position_s=100 * (progress[0] if progress else 0.0),
                duration_s=100,
            )
        )
    return folded


def rows_of(*numbers: int) -> list[int]:
    return [CATALOGUE.rows[f"t{number}"] for number in numbers]


def view(*events: tuple[int, str] | tuple[int, str, float]) -> Viewer:
    return Viewer.of(history(*events), CATALOGUE)


def test_what_is_begun_and_not_finished_is_playing_newest_first() -> None:
    viewer = view((1, "play"), (2, "play"), (2, "progress", 0.25), (3, "play"), (3, "finish"), (1, "progress", 0.5))
    assert viewer.playing.tolist() == rows_of(1, 2)
    assert viewer.progress == (0.5, 0.25)
    assert viewer.loved.tolist() == rows_of(3)


def test_credits_count_as_finished() -> None:
    viewer = view((1, "play"), (1, "progress", FINISHED + 0.01))
    assert viewer.playing.tolist() == []
    assert viewer.loved.tolist() == rows_of(1)


def test_a_title_begun_again_is_playing_again() -> None:
    viewer = view((1, "finish"), (1, "play"))
    assert viewer.playing.tolist() == rows_of(1)
    assert viewer.loved.tolist() == []


def test_the_last_judgement_counts() -> None:
    viewer = view(
        (1, "thumbs_up"), (1, "thumbs_down"), (2, "thumbs_down"), (2, "thumbs_up"), (3, "play"), (3, "thumbs_down")
    )
    assert sorted(viewer.disliked.tolist()) == sorted(rows_of(1, 3))
    assert viewer.loved.tolist() == rows_of(2)
    assert viewer.liked == frozenset(rows_of(2))
    assert viewer.playing.tolist() == []


def test_the_list_is_no_watching() -> None:
    viewer = view((1, "add_to_list"), (2, "remove_from_list"))
    assert len(viewer.watched) == 0


def test_titles_outside_the_catalogue_are_left_out() -> None:
    assert len(view((99, "finish"), (99, "thumbs_up")).watched) == 0


def test_the_telling_genre_comes_first_and_disliked_ones_not_at_all() -> None:
    drama, war = CATALOGUE.genres.index("Drama"), CATALOGUE.genres.index("War")
    assert view((10, "finish"), (1, "finish")).genres == (war,)  # all titles are Drama: that tells nothing
    assert view((10, "thumbs_down")).genres == ()
    assert drama != war


@given(st.lists(st.tuples(st.integers(1, 14), st.sampled_from(KINDS), st.floats(0, 1)), max_size=60))
def test_groups_are_consistent(events: list[tuple[int, EventKind, float]]) -> None:
    viewer = Viewer.of(history(*[(number, kind.value, share) for number, kind, share in events]), CATALOGUE)
    groups = [set(rows.tolist()) for rows in (viewer.playing, viewer.loved, viewer.disliked)]
    assert sum(map(len, groups)) == len(set.union(*groups)), "a title is in one of them at most"
    assert set.union(*groups) <= set(viewer.watched.tolist())
    watched = {f"t{n}" for n, kind, _ in events if kind not in (EventKind.ADD_TO_LIST, EventKind.REMOVE_FROM_LIST)}
    assert set(viewer.watched.tolist()) == {CATALOGUE.rows[t] for t in watched if t in CATALOGUE.rows}
    for rows in (viewer.playing, viewer.loved, viewer.disliked, viewer.watched):
        assert rows.dtype == np.int64
        assert len(set(rows.tolist())) == len(rows)
    assert len(viewer.progress) == len(viewer.playing)
    assert all(0 <= share < FINISHED for share in viewer.progress)
