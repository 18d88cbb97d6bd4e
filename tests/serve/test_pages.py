"""Contracts of a page, over catalogues, histories and candidates of all kinds."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.events import Event, EventKind
from features.history import History
from features.popularity import TitleStats
from features.titles import Title
from serve.catalogue import Catalogue
from serve.pages import PageBuilder, Ranking, Setting, Slate
from serve.shelves import Popularity, Stock, directions
from serve.viewer import Viewer

NOW_MS = 1_767_225_600_000
GENRES = ("Comedy", "Drama", "War")
FOR_WATCHED = {"continue_watching", "my_list", "watch_again"}
KINDS = [kind for kind in EventKind if kind is not EventKind.IMPRESSION]


def make_setting(
    seed: int, titles: int, events: int, candidates: int, *, region: str = "", kids: bool = False
) -> Setting:
    """A random setting: candidates are unwatched available titles, as a model gives them."""
    numbers = np.random.default_rng(seed)
    catalogue = Catalogue.build(
        Title(
            title_id=f"t{number}",
            name=f"T{number}",
            genres=tuple(numbers.choice(GENRES, numbers.integers(0, 3), replace=False)),
            kids=bool(numbers.random() < 0.5),
            regions=("se",) if numbers.random() < 0.2 else (),
            added_ts=NOW_MS - int(numbers.integers(0, 10**10)),
        )
        for number in range(titles)
    )
    plays = {f"t{number}": TitleStats(plays=number, trend=float(number)) for number in range(0, titles, 2)}
    stock = Stock(
        catalogue=catalogue,
        popularity=Popularity.build(catalogue, plays, 1),
        vectors=directions(
            numbers.standard_normal((titles + 1, 5)).astype(np.float32), np.ones(titles + 1, dtype=np.bool_)
        ),
        made_ts=NOW_MS,
    )
    history = History()
    for second in range(events):
        history.apply(
            Event(
                event_id=str(second),
                profile_id="p",
                title_id=f"t{numbers.integers(0, titles + 2)}",
                kind=numbers.choice(KINDS),
                ts=1000 * second,
                position_s=float(numbers.random()),
                duration_s=1.0,
            )
        )
    viewer = Viewer.of(history, catalogue)
    shelf = stock.shelf(region, kids=kids)
    free = np.setdiff1d(np.flatnonzero(shelf.available), viewer.watched)
    rows = numbers.permutation(free)[:candidates]
    scores = numbers.integers(0, 40, len(rows)).astype(np.float32) / 8  # with ties
    chances = numbers.random((3, len(rows))).astype(np.float32)
    return Setting(
        stock=stock,
        shelf=shelf,
        viewer=viewer,
        my_list=numbers.permutation(titles)[: numbers.integers(0, 8)] + 1,
        ranking=Ranking.build(rows, (scores, *chances), personal=True),
    )


def shown(page: list[Slate]) -> list[tuple[str, list[int], tuple[float, ...] | None]]:
    return [(slate.id, slate.rows.tolist(), slate.progress) for slate in page]


def row_named(page: list[Slate], name: str) -> list[int]:
    return next((slate.rows.tolist() for slate in page if slate.id.split(":")[0] == name), [])


settings_of_all_kinds = st.builds(
    make_setting,
    seed=st.integers(0, 10**6),
    titles=st.integers(1, 150),
    events=st.integers(0, 60),
    candidates=st.integers(0, 80),
    region=st.sampled_from(["", "se", "us"]),
    kids=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(settings_of_all_kinds, st.integers(1, 12), st.integers(1, 30))
def test_every_page_keeps_its_promises(setting: Setting, rows: int, items: int) -> None:
    page = PageBuilder().build(setting, rows=rows, items=items)
    everything = [row for slate in page for row in slate.rows.tolist()]
    assert len(set(everything)) == len(everything), "no title twice"
    assert setting.shelf.available[everything].all(), "only what may be shown"
    assert not set(everything) & set(setting.viewer.disliked.tolist()), "nothing disliked"
    watched = set(setting.viewer.watched.tolist())
    for slate in page:
        assert 1 <= len(slate.rows) <= items
        if slate.id not in FOR_WATCHED:
            assert not watched & set(slate.rows.tolist()), slate.id
        if slate.progress is not None:
            share_of = dict(zip(setting.viewer.playing.tolist(), setting.viewer.progress, strict=True))
            assert slate.progress == tuple(share_of[row] for row in slate.rows.tolist())
    assert len(page) <= rows
    assert len({slate.id for slate in page}) == len(page)
    assert shown(page) == shown(PageBuilder().build(setting, rows=rows, items=items)), "the same each time"


@settings(max_examples=60, deadline=None)
@given(settings_of_all_kinds, st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(setting: Setting, random: object) -> None:
    ranking = setting.ranking
    order = list(range(len(ranking.rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = Ranking.build(ranking.rows[order], ranking.values[:, :-1][:, order], personal=True)
    np.testing.assert_array_equal(again.values, ranking.values)
    pages = [PageBuilder().build(replace(setting, ranking=each), rows=12, items=9) for each in (ranking, again)]
    assert shown(pages[0]) == shown(pages[1])


@settings(max_examples=60, deadline=None)
@given(settings_of_all_kinds)
def test_fewer_rows_are_the_top_of_more_rows(setting: Setting) -> None:
    page = PageBuilder().build(setting, rows=12, items=8)
    for rows in range(1, len(page)):
        assert shown(PageBuilder().build(setting, rows=rows, items=8)) == shown(page[:rows])


def test_continue_watching_is_newest_first_with_progress() -> None:
    setting = make_setting(seed=3, titles=60, events=40, candidates=30)
    first = PageBuilder().build(setting, rows=12, items=50)[0]
    assert first.id == "continue_watching"
    available = setting.shelf.available[setting.viewer.playing]
    assert first.rows.tolist() == setting.viewer.playing[available].tolist()


def test_because_you_watched_names_a_loved_title_and_shows_its_neighbours() -> None:
    setting = make_setting(seed=5, titles=120, events=40, candidates=20)
    page = PageBuilder().build(setting, rows=12, items=5)
    slate = next(slate for slate in page if slate.id.startswith("because_you_watched:"))
    seed = setting.stock.catalogue.rows[slate.id.split(":")[1]]
    assert seed in setting.viewer.loved
    assert slate.title.endswith(setting.stock.catalogue.names[seed])
    assert slate.title.startswith("Because you liked" if seed in setting.viewer.liked else "Because you watched")
    neighbours = setting.shelf.neighbours(seed)[0].tolist()
    places = [neighbours.index(row) for row in slate.rows.tolist()]
    assert places == sorted(places)


def test_a_title_hidden_from_the_viewer_is_no_reason_either() -> None:
    for seed in range(20):
        setting = make_setting(seed=seed, titles=80, events=40, candidates=20, kids=True)
        for slate in PageBuilder().build(setting, rows=12, items=5):
            if slate.id.startswith("because_you_watched:"):
                assert setting.shelf.available[setting.stock.catalogue.rows[slate.id.split(":")[1]]]


def test_genre_rows_start_with_candidates_and_fill_up_with_popular_titles() -> None:
    setting = make_setting(seed=8, titles=150, events=20, candidates=12)
    page = PageBuilder().build(setting, rows=12, items=30)
    genre_rows = [slate for slate in page if slate.id.startswith("new_to_you:")]
    assert genre_rows
    for slate in genre_rows:
        genre = setting.stock.catalogue.genres.index(slate.id.split(":")[1])
        assert setting.stock.catalogue.members[genre, slate.rows].all()
        is_candidate = np.isin(slate.rows, setting.ranking.rows).tolist()
        assert is_candidate == sorted(is_candidate, reverse=True)


def test_my_list_keeps_its_order() -> None:
    setting = make_setting(seed=2, titles=60, events=0, candidates=0)
    page = PageBuilder().build(setting, rows=12, items=4)
    above = {row for slate in page if slate.id == "trending_now" for row in slate.rows.tolist()}
    expected = [row for row in setting.my_list.tolist() if setting.shelf.available[row] and row not in above]
    assert row_named(page, "my_list") == expected[:4]


def test_the_newest_title_without_events_is_on_every_page() -> None:
    for seed in range(10):
        setting = make_setting(seed=seed, titles=80, events=30, candidates=20)
        new = int(setting.shelf.arrivals[0])
        if new in setting.viewer.watched:
            continue
        page = PageBuilder().build(setting, rows=12, items=10)
        assert new in [row for slate in page for row in slate.rows.tolist()]


def test_weight_one_shows_the_best_candidates_in_order_and_less_weight_varies_them() -> None:
    setting = make_setting(seed=4, titles=150, events=0, candidates=80)
    plain = row_named(PageBuilder(relevance_weight=1.0).build(setting, rows=1, items=10), "top_picks")
    assert plain == setting.ranking.rows[:10].tolist()

    def likeness(rows: list[int]) -> float:
        vectors = setting.stock.vectors[rows]
        return float(np.triu(vectors @ vectors.T, 1).sum())

    varied = row_named(PageBuilder(relevance_weight=0.2).build(setting, rows=1, items=10), "top_picks")
    score_of = dict(zip(setting.ranking.rows.tolist(), setting.ranking.values[0].tolist(), strict=False))
    assert score_of[varied[0]] == score_of[plain[0]], "the best comes first all the same"
    assert likeness(varied) < likeness(plain)
