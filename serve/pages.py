"""The home page: a list of row sources, each a small class that offers titles, and one pass that fills the page.

    sources (ROWS) -> filters (available, not watched, not yet on the page) -> re-rank (diversity) -> cut -> rows

A new kind of row is one class and one place in ROWS, which is the order on the page. A row with nothing left to show is
dropped. The page depends on its inputs alone: the same history, model and moment give the same page.

Shapes: N rows of the catalogue, K candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from serve.diversity import diverse_order
from serve.shelves import Rows, Shelf, Stock
from serve.viewer import Viewer

ESTIMATES: Final = ("score", "play", "finish", "thumbs_up")
"""Columns of a ranking's values, named as in the JSON."""

MAIN_ROW: Final = "top_picks"
"""Id of the personalised row that exploration may change."""

_DIVERSE_POOL: Final = 60
_RELEVANCE_SPAN: Final = 4.0
"""The pool's best and last scores are brought this far apart, about as many standard deviations as they are."""

# Where a title may stand. A watched title (3 & 1 == 1) only in rows made for it.
_NOWHERE: Final = np.uint8(0)
_ROWS_FOR_WATCHED: Final = np.uint8(1)
_ANY_ROW: Final = np.uint8(3)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """Candidates for one viewer, scored.

    Attributes:
        rows: int64 (K,), best first.
        values: float32 (4, K + 1), ESTIMATES of each; the last column is NaN, for titles that are no candidates.
        personal: whether a model ranked them for this viewer; else they are popular titles.
    """

    rows: Rows
    values: NDArray[np.float32]
    personal: bool

    @classmethod
    def build(cls, rows: Rows, values: Sequence[NDArray[np.float32]], *, personal: bool) -> Self:
        """Put candidates in their one order (score, then row), whatever order they come in.

        Args:
            rows: int64 (K,), each once.
            values: float32 (K,) for each of ESTIMATES.
            personal: whether a model ranked them for this viewer.
        """
        lines = np.empty((len(ESTIMATES), len(rows) + 1), dtype=np.float32)
        for line, value in zip(lines, values, strict=True):
            line[:-1] = value
        lines[:, -1] = np.nan
        scores = lines[0, :-1]
        if not (scores[:-1] > scores[1:]).all():
            order = np.lexsort((rows, -scores))
            rows, lines[:, :-1] = rows[order], lines[:, :-1][:, order]
        return cls(rows=rows, values=lines, personal=personal)


@dataclass(slots=True, kw_only=True, eq=False)
class Slate:
    """One row: what a source offers, and after the pass what is shown.

    Attributes:
        id: unique on a page.
        title: the heading.
        reason: why it is there.
        rows: titles, best first, each once.
        then: titles to fill up with where `rows` are not enough, best first; may repeat `rows`.
        progress: share watched of each of `rows`; None in rows that do not show it.
        watched: whether titles that the viewer watched may stand here.
        relevance: float32, score of each of `rows`, for re-ranking for diversity; None keeps the order.
    """

    id: str
    title: str
    reason: str
    rows: Rows
    then: Rows | None = None
    progress: tuple[float, ...] | None = None
    watched: bool = False
    relevance: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """What row sources see.

    Attributes:
        stock: catalogue, popularity and vectors of this moment.
        shelf: what this kind of viewer may see.
        viewer: the history.
        my_list: rows on the viewer's list, last added first.
        ranking: the candidates.
    """

    stock: Stock
    shelf: Shelf
    viewer: Viewer
    my_list: Rows
    ranking: Ranking


class RowSource(Protocol):
    """One kind of row."""

    def offer(self, setting: Setting) -> Slate | None:
        """Titles for this row, best first, before the page's filters; None where there is no cause for the row."""
        ...


class ContinueWatching:
    """Begun and not finished, last touched first."""

    def offer(self, setting: Setting) -> Slate | None:
        """The titles that the viewer is in the middle of."""
        viewer = setting.viewer
        return Slate(
            id="continue_watching",
            title="Continue watching",
            reason="You have not finished these",
            rows=viewer.playing,
            progress=viewer.progress,
            watched=True,
        )


class TopPicks:
    """The best candidates, varied."""

    def offer(self, setting: Setting) -> Slate | None:
        """All candidates."""
        ranking = setting.ranking
        if ranking.personal:
            title, reason = "Top picks for you", "Chosen for you from all that you watched"
        else:
            title, reason = "Popular on Playhead", "What most viewers watch"
        return Slate(id=MAIN_ROW, title=title, reason=reason, rows=ranking.rows, relevance=ranking.values[0, :-1])


@dataclass(frozen=True, slots=True)
class BecauseYouWatched:
    """Neighbours of a title that the viewer finished or liked.

    Attributes:
        place: which of these titles, 0 is the newest.
    """

    place: int

    def offer(self, setting: Setting) -> Slate | None:
        """The title's neighbours, nearest first."""
        loved = setting.viewer.loved
        loved = loved.compress(setting.shelf.available.take(loved))
        if self.place >= len(loved):
            return None
        seed = int(loved[self.place])
        catalogue = setting.stock.catalogue
        verb = "liked" if seed in setting.viewer.liked else "watched"
        return Slate(
            id=f"because_you_watched:{catalogue.title_ids[seed]}",
            title=f"Because you {verb} {catalogue.names[seed]}",
            reason=f"Similar to {catalogue.names[seed]}",
            rows=setting.shelf.neighbours(seed)[0],
        )


class TrendingNow:
    """Most played of late."""

    def offer(self, setting: Setting) -> Slate | None:
        """The shelf's trend."""
        return Slate(
            id="trending_now",
            title="Trending now",
            reason="Most played in the last days",
            rows=setting.shelf.trending,
        )


class MyList:
    """What the viewer put on the list."""

    def offer(self, setting: Setting) -> Slate | None:
        """The list, last added first."""
        return Slate(id="my_list", title="My list", reason="You added these", rows=setting.my_list, watched=True)


@dataclass(frozen=True, slots=True)
class NewToYou:
    """Titles of a genre that the viewer has not watched.

    Attributes:
        place: which of the viewer's genres, 0 is the most telling.
    """

    place: int

    def offer(self, setting: Setting) -> Slate | None:
        """Candidates of the genre, then its popular titles."""
        own = setting.viewer.genres
        genres = own or setting.shelf.leading_genres
        if self.place >= len(genres):
            return None
        genre = int(genres[self.place])
        catalogue = setting.stock.catalogue
        name = catalogue.genres[genre]
        rows = setting.ranking.rows
        return Slate(
            id=f"new_to_you:{name}",
            title=f"New to you: {name}",
            reason=f"You watch {name} more than others do" if own else f"{name} is popular here",
            rows=rows.compress(catalogue.members[genre].take(rows)),
            then=setting.shelf.in_genre(genre),
        )


class NewArrivals:
    """New in the catalogue, or played by nobody yet: where a title without events is found."""

    def offer(self, setting: Setting) -> Slate | None:
        """The newest titles, newest first."""
        return Slate(id="new_arrivals", title="New arrivals", reason="Just added", rows=setting.shelf.arrivals)


class WatchAgain:
    """What the viewer finished or liked."""

    def offer(self, setting: Setting) -> Slate | None:
        """These titles, newest first."""
        return Slate(
            id="watch_again",
            title="Watch again",
            reason="You finished or liked these",
            rows=setting.viewer.loved,
            watched=True,
        )


ROWS: Final[tuple[RowSource, ...]] = (
    ContinueWatching(),
    TopPicks(),
    BecauseYouWatched(0),
    TrendingNow(),
    MyList(),
    NewToYou(0),
    NewArrivals(),
    BecauseYouWatched(1),
    NewToYou(1),
    NewToYou(2),
    WatchAgain(),
)
"""The page from top to bottom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageBuilder:
    """Fills pages.

    Attributes:
        sources: the rows, top first.
        relevance_weight: how much top picks weigh relevance against variety, 0 to 1 (theta of serve.diversity).
    """

    sources: tuple[RowSource, ...] = ROWS
    relevance_weight: float = 0.8

    def build(self, setting: Setting, *, rows: int, items: int) -> list[Slate]:
        """Make one page.

        Args:
            setting: what is known.
            rows: most rows.
            items: most titles of a row.

        Returns:
            Rows, none empty; no title twice; only available titles, none that the viewer dislikes; watched titles only
            in rows made for them.
        """
        return self.fill(setting, rows=rows, items=items)[0]

    def fill(self, setting: Setting, *, rows: int, items: int) -> tuple[list[Slate], NDArray[np.bool_]]:
        """Make one page, and tell what it has left.

        Args:
            setting: what is known.
            rows: most rows.
            items: most titles of a row.

        Returns:
            Rows as of `build`; bool (N,), which titles are not on it and might be, in any of its rows.
        """
        viewer = setting.viewer
        places = setting.shelf.available.view(np.uint8) * _ANY_ROW  # (N,) where each title may still stand
        places[viewer.watched] &= _ROWS_FOR_WATCHED
        places[viewer.disliked] = _NOWHERE
        page: list[Slate] = []
        for source in self.sources:
            slate = source.offer(setting)
            if slate is None:
                continue
            needed = _ROWS_FOR_WATCHED if slate.watched else _ANY_ROW
            allowed = places.take(slate.rows) >= needed
            shown = slate.rows.compress(allowed)
            if slate.relevance is not None:
                shown = self._varied(shown, slate.relevance.compress(allowed), setting.stock, items)
            shown = shown[:items]
            places[shown] = _NOWHERE
            if slate.then is not None and len(shown) < items:
                more = slate.then.compress(places.take(slate.then) >= needed)[: items - len(shown)]
                places[more] = _NOWHERE
                shown = np.concatenate((shown, more))
            if not len(shown):
                continue
            if slate.progress is not None:
                slate.progress = tuple(compress(slate.progress, allowed.tolist()))[:items]
            slate.rows = shown
            page.append(slate)
            if len(page) == rows:
                break
        return page, places >= _ANY_ROW

    def _varied(self, rows: Rows, scores: NDArray[np.float32], stock: Stock, items: int) -> Rows:
        """The best of `rows`, which are best first, as a varied list."""
        count = max(_DIVERSE_POOL, 2 * items)
        pool, scores = rows[:count], scores[:count]
        if len(pool) < 2:
            return pool
        span = max(float(scores[0] - scores[-1]), 1e-6)
        relevance = scores * np.float32(_RELEVANCE_SPAN / span)
        return pool[diverse_order(relevance, stock.vectors[pool], relevance_weight=self.relevance_weight)]
