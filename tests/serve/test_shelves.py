import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.popularity import NO_TREND, TitleStats
from features.titles import Title
from serve.catalogue import Catalogue
from serve.shelves import ARRIVAL_MS, POPULARITY_BONUS, Popularity, Stock, directions

NOW_MS = 1_767_225_600_000


def stock_of(titles: list[Title], stats: dict[str, TitleStats] | None = None, *, seed: int = 0) -> Stock:
    catalogue = Catalogue.build(titles)
    vectors = np.random.default_rng(seed).standard_normal((len(catalogue.title_ids), 6)).astype(np.float32)
    read_ts = 0 if stats is None else 1
    return Stock(
        catalogue=catalogue,
        popularity=Popularity.build(catalogue, stats or {}, read_ts),
        vectors=directions(vectors, catalogue.listed),
        made_ts=NOW_MS,
    )


def titles(count: int, **fields: object) -> list[Title]:
    return [
        Title.model_validate({"title_id": f"t{number}", "name": "T", "kids": number % 2 == 0} | fields)
        for number in range(1, count + 1)
    ]


def ids(stock: Stock, rows: np.ndarray) -> list[str]:
    return [stock.catalogue.title_ids[row] for row in rows.tolist()]


def test_trend_and_popularity_are_different_orders() -> None:
    stats = {
        "t1": TitleStats(plays=9, trend=3.0),
        "t2": TitleStats(plays=5, trend=7.0),
        "t3": TitleStats(plays=1, trend=5.0),
    }
    stock = stock_of(titles(4), stats)
    shelf = stock.shelf("", kids=False)
    assert ids(stock, shelf.trending) == ["t2", "t3", "t1"]
    assert ids(stock, shelf.popular) == ["t1", "t2", "t3", "t4"]
    assert ids(stock, stock.shelf("", kids=True).trending) == ["t2"]
    assert stock.popularity.share[stock.catalogue.rows["t2"]] == pytest.approx(5 / 9)


def test_arrivals_are_young_or_unplayed_newest_first() -> None:
    old = NOW_MS - 2 * ARRIVAL_MS
    entries = [
        *titles(1, added_ts=old),
        Title(title_id="young", name="Y", added_ts=NOW_MS - 5),
        Title(title_id="younger", name="Y", added_ts=NOW_MS - 1),
        Title(title_id="unplayed", name="U", added_ts=old),
    ]
    played = TitleStats(plays=1, trend=0.0)
    stock = stock_of(entries, {"t1": played, "young": played})
    assert ids(stock, stock.shelf("", kids=False).arrivals) == ["younger", "young", "unplayed"]
    unread = stock_of(entries)
    assert ids(unread, unread.shelf("", kids=False).arrivals) == ["younger", "young"], "unknown is not unplayed"


@given(seed=st.integers(0, 1000), count=st.integers(1, 130), kids=st.booleans())
def test_neighbours_are_the_nearest_available_titles(seed: int, count: int, *, kids: bool) -> None:
    stats = {f"t{number}": TitleStats(plays=number % 7, trend=1.0) for number in range(1, count + 1)}
    stock = stock_of(titles(count), stats, seed=seed)
    shelf = stock.shelf("", kids=kids)
    row = seed % count + 1
    rows, closeness = shelf.neighbours(row)
    plays = np.array([stats[title_id].plays if title_id else 0 for title_id in stock.catalogue.title_ids])
    bonus = POPULARITY_BONUS * np.log1p(plays) / np.log1p(max(plays.max(), 1))
    scores = (stock.vectors @ stock.vectors[row] + bonus).astype(np.float32)
    expected = [place for place in np.argsort(-scores, kind="stable") if shelf.available[place] and place != row]
    assert len(rows) == min(len(expected), 96)
    np.testing.assert_allclose(closeness, scores[expected[: len(rows)]], atol=1e-6)
    np.testing.assert_allclose(closeness, scores[rows], atol=1e-6)


def test_genre_shelves_hold_only_their_genre() -> None:
    entries = [
        Title(title_id=f"t{number}", name="T", genres=("War",) if number % 3 else ("Drama",)) for number in range(1, 20)
    ]
    stock = stock_of(entries, {f"t{number}": TitleStats(plays=number, trend=1.0) for number in range(1, 20)})
    war = stock.catalogue.genres.index("War")
    shelf = stock.shelf("", kids=False)
    assert ids(stock, shelf.in_genre(war)) == [f"t{number}" for number in range(19, 0, -1) if number % 3]
    assert shelf.leading_genres[0] == war


def test_unknown_regions_share_one_shelf() -> None:
    stock = stock_of([*titles(3), Title(title_id="local", name="L", regions=("se",))])
    assert stock.shelf("xx", kids=False) is stock.shelf("yy", kids=False) is stock.shelf("", kids=False)
    assert stock.shelf("se", kids=False) is not stock.shelf("", kids=False)


def test_later_statistics_leave_the_moment_before_as_it_was() -> None:
    stock = stock_of(titles(30), {})
    stock.shelf("", kids=True)
    later = stock.later(Popularity.build(stock.catalogue, {"t5": TitleStats(plays=2, trend=1.0)}, 2), NOW_MS + 1)
    assert ids(later, later.shelf("", kids=False).trending) == ["t5"]
    assert len(stock.shelf("", kids=False).trending) == 0
    assert later.vectors is stock.vectors


def test_directions_are_centred_and_of_length_one() -> None:
    vectors = np.random.default_rng(1).normal(3.0, 1.0, (50, 8)).astype(np.float32)
    listed = np.ones(50, dtype=np.bool_)
    listed[:5] = False
    vectors[7] = vectors[listed].mean(axis=0)
    vectors[7] = vectors[listed].mean(axis=0)  # once more, since it is part of the mean
    got = directions(vectors, listed)
    lengths = np.linalg.norm(got, axis=1)
    assert np.delete(lengths, 7) == pytest.approx(1.0, abs=1e-5)
    assert abs((got[listed] @ got[listed].T).mean()) < 0.05 < (vectors @ vectors.T).mean()
    assert not directions(vectors[:1], np.array([True])).any(), "a single title has no direction"
    assert not directions(vectors, np.zeros(50, dtype=np.bool_)).any()


def test_nothing_known_is_not_popular() -> None:
    stock = stock_of(titles(2), None)
    assert (stock.popularity.trend == NO_TREND).all()
    assert not stock.popularity.share.any()
