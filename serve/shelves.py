"""Shelves: what one kind of viewer (region, kids or not) may see, in the orders that do not depend on the viewer.

A `Stock` is one immutable moment of the catalogue: titles, their statistics and their vectors. It is replaced as a
whole when any of them changes; what it works out on demand is a function of it and is kept in bounded numbers.

Shapes: N rows of the catalogue, d width of the vectors, G genres. Belongs to one thread once it serves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from features.popularity import NO_TREND, TitleStats
from serve.catalogue import Catalogue

Rows = NDArray[np.int64]
"""Rows of the catalogue, best first, each once."""

Neighbours = tuple[Rows, NDArray[np.float32]]
"""Rows, most similar first, and what they are ordered by, float32."""

ARRIVAL_MS: Final = 30 * 24 * 3600 * 1000
"""How long a title counts as a new arrival, in milliseconds."""

POPULARITY_BONUS: Final = 0.2
"""What the most played title gains on one without plays when similar titles are ordered, in units of cosine."""

_POPULAR: Final = 512
_ARRIVALS: Final = 256
_NEIGHBOURS: Final = 96
_MAX_NEIGHBOURHOODS: Final = 20_000

_NOTHING: Final = TitleStats()


@dataclass(frozen=True, kw_only=True, eq=False)
class Popularity:
    """How viewers take the titles of a catalogue, by row.

    Attributes:
        trend: float64 (N,), log2 of decayed plays; NO_TREND without plays. Only differences matter.
        plays: float64 (N,).
        share: float32 (N,), plays against the most played title's, 0 to 1.
        familiarity: float32 (N,), the same of log(1 + plays).
        read_ts: when it was read, UTC milliseconds; 0 where it never was.
    """

    trend: NDArray[np.float64]
    plays: NDArray[np.float64]
    share: NDArray[np.float32]
    familiarity: NDArray[np.float32]
    read_ts: int

    @classmethod
    def build(cls, catalogue: Catalogue, stats: Mapping[str, TitleStats], read_ts: int) -> Self:
        """Lay statistics out by row; titles without any count as never played."""
        by_row = [stats.get(title_id, _NOTHING) for title_id in catalogue.title_ids]
        plays = np.array([entry.plays for entry in by_row], dtype=np.float64)
        most = max(float(plays.max()), 1.0)
        return cls(
            trend=np.array([entry.trend for entry in by_row], dtype=np.float64),
            plays=plays,
            share=(plays / most).astype(np.float32),
            familiarity=(np.log1p(plays) / np.log1p(most)).astype(np.float32),
            read_ts=read_ts,
        )


class Shelf:
    """The titles that one kind of viewer may see.

    Attributes:
        available: bool (N,).
        trending: most decayed plays first; only titles with plays.
        popular: most plays first; titles without plays last, newest first.
        arrivals: newest first; titles of the last ARRIVAL_MS, and titles that nobody has played yet.
        leading_genres: genres by the plays of their titles, most first.
    """

    def __init__(self, stock: "Stock", available: NDArray[np.bool_]) -> None:
        self.available = available
        self._stock = stock
        self._by_genre: dict[int, Rows] = {}
        self._neighbours: dict[int, Neighbours] = {}
        rows = np.flatnonzero(available)
        catalogue, popularity = stock.catalogue, stock.popularity
        trend, plays, added = popularity.trend[rows], popularity.plays[rows], catalogue.added_ts[rows]
        by_trend = rows[np.lexsort((rows, -trend))]
        self.trending: Rows = by_trend[popularity.trend[by_trend] > NO_TREND][:_POPULAR]
        self._by_plays: Rows = rows[np.lexsort((rows, -added, -plays))]
        self.popular: Rows = self._by_plays[:_POPULAR]
        fresh = added > stock.made_ts - ARRIVAL_MS
        if popularity.read_ts:
            fresh |= plays == 0
        new, new_added = rows[fresh], added[fresh]
        self.arrivals: Rows = new[np.lexsort((new, -new_added))][:_ARRIVALS]
        weight = catalogue.members[:, rows] @ (plays + 1e-3)  # (G,)
        self.leading_genres: Rows = np.argsort(-weight, kind="stable")

    def in_genre(self, genre: int) -> Rows:
        """Popular titles of a genre, most plays first."""
        rows = self._by_genre.get(genre)
        if rows is None:
            rows = self._by_plays[self._stock.catalogue.members[genre, self._by_plays]][:_POPULAR]
            self._by_genre[genre] = rows
        return rows

    def neighbours(self, row: int) -> Neighbours:
        """The most similar titles, without the title itself.

        Ordered by cosine + POPULARITY_BONUS * log popularity: the vectors of hardly played titles are noise in part,
        and would crowd out the titles that a viewer may know.
        """
        found = self._neighbours.get(row)
        if found is None:
            if len(self._neighbours) >= _MAX_NEIGHBOURHOODS:
                self._neighbours.clear()
            found = self._neighbours[row] = self._nearest(row)
        return found

    def _nearest(self, row: int) -> Neighbours:
        stock = self._stock
        closeness = stock.vectors @ stock.vectors[row]  # (N,)
        closeness += POPULARITY_BONUS * stock.popularity.familiarity
        closeness[~self.available] = -np.inf
        closeness[row] = -np.inf
        if len(closeness) > _NEIGHBOURS:
            rows = np.argpartition(-closeness, _NEIGHBOURS)[:_NEIGHBOURS]
        else:
            rows = np.arange(len(closeness))
        rows = rows[closeness[rows] > -np.inf]
        rows = rows[np.lexsort((rows, -closeness[rows]))]
        return rows, closeness[rows]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stock:
    """One moment of the catalogue: what pages are made from.

    Attributes:
        catalogue: the titles.
        popularity: how they are taken.
        vectors: float32 (N, d), each of length 1 or 0: near vectors are similar titles.
        made_ts: when this moment was, UTC milliseconds.
    """

    catalogue: Catalogue
    popularity: Popularity
    vectors: NDArray[np.float32]
    made_ts: int
    _shelves: dict[tuple[str, bool], Shelf] = field(default_factory=dict, init=False, repr=False)

    def shelf(self, region: str, *, kids: bool) -> Shelf:
        """The shelf of a kind of viewer; there are at most twice as many as regions that titles name."""
        key = (self.catalogue.known_region(region), kids)
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = Shelf(self, self.catalogue.available(region, kids=kids))
        return shelf

    def later(self, popularity: Popularity, made_ts: int) -> Self:
        """The same titles with other statistics, and as many shelves ready."""
        later = replace(self, popularity=popularity, made_ts=made_ts)
        for region, kids in list(self._shelves):
            later.shelf(region, kids=kids)
        return later


def directions(vectors: NDArray[np.float32], listed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Centre vectors on the mean of the listed titles and scale them to length 1, so that cosines tell titles apart.

    Learned vectors share a large common part (Mu and Viswanath, "All-but-the-Top", ICLR 2018, section 2).

    Args:
        vectors: float32 (N, d).
        listed: bool (N,), which rows are titles.

    Returns:
        float32 (N, d); zeros where a vector is the mean.
    """
    if not listed.any():
        return np.zeros_like(vectors)
    centred = vectors - vectors[listed].mean(axis=0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = np.where(lengths > 1e-6, centred / np.maximum(lengths, 1e-6), 0).astype(np.float32)
    return scaled
