"""The synthetic catalogue: titles in series, with genres, popularity, availability.

T titles, R regions, G genres. Titles of one series have neighbouring rows, in the order in which they are watched.
"""

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

REGIONS: Final = ("us", "eu", "in", "br")
GENRES: Final = (
    "Action", "Adventure", "Animation", "Comedy", "Crime", "Documentary", "Drama", "Family",
    "Fantasy", "History", "Horror", "Music", "Romance", "Science Fiction", "Sport", "Thriller",
)  # fmt: skip
_SHARES: Final = (0.10, 0.06, 0.06, 0.14, 0.07, 0.07, 0.16, 0.06, 0.04, 0.03, 0.05, 0.02, 0.05, 0.04, 0.02, 0.03)
_KIDS_SHARE: Final = {"Animation": 0.8, "Family": 0.9, "Adventure": 0.15, "Fantasy": 0.15, "Music": 0.2, "Sport": 0.1}
_SERIES_LENGTHS: Final = (0.70, 0.12, 0.09, 0.05, 0.04)
"""Share of series with 1, 2, ... titles."""

_FIRST_WORDS: Final = (
    "Amber", "Broken", "Crimson", "Distant", "Electric", "Forgotten", "Gentle", "Hidden", "Iron", "Jade", "Lost",
    "Midnight", "Northern", "Open", "Paper", "Quiet", "Restless", "Silent", "Tangled", "Velvet", "Wild", "Winter",
)  # fmt: skip
_SECOND_WORDS: Final = (
    "Atlas", "Bridge", "City", "Dawn", "Echo", "Fields", "Garden", "Harbour", "Island", "Journey", "Kingdom",
    "Letters", "Mountain", "Night", "Orchard", "Passage", "River", "Shore", "Tide", "Voices", "Wolves", "Year",
)  # fmt: skip
_THIRD_WORDS: Final = ("", " of Glass", " at Sea", " in Blue", " of Stars", " by Train", " of Dust", " in Bloom")

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Titles as arrays of T rows.

    Attributes:
        series: series number of each title.
        place: place within its series, from 0.
        left: how many titles of its series follow.
        genre: index of the first genre.
        second: index of the second genre, or -1.
        weight: chance of being chosen, Zipf: 1 / rank ** exponent, not normalised.
        appeal: how much better than expected viewers like it, in logits.
        duration_s: running time.
        kids: whether kids profiles may see it.
        available: (T, R) where it may be shown.
        year: release year.
    """

    series: Integers
    place: Integers
    left: Integers
    genre: Integers
    second: Integers
    weight: Floats
    appeal: Floats
    duration_s: Floats
    kids: Booleans
    available: Booleans
    year: Integers

    def pool(self, region: int, genre: int, *, kids: bool) -> Integers:
        """Titles of a first genre that a viewer of that region may see."""
        seen = (self.genre == genre) & self.available[:, region]
        return np.flatnonzero(seen & self.kids if kids else seen)

    def frame(self, ids: pl.Series, added_ts: int) -> pl.DataFrame:
        """The table of titles, in the columns of features.titles.Title."""
        stems = [f"{a} {b}{c}" for c, a, b in product(_THIRD_WORDS, _FIRST_WORDS, _SECOND_WORDS)]
        stride = 397  # coprime to the number of stems, so that neighbours do not share words
        return pl.DataFrame(
            {
                "title_id": ids,
                "name": [
                    stems[series * stride % len(stems)] + (f" {place + 1}" if place else "")
                    for series, place in zip(self.series.tolist(), self.place.tolist(), strict=True)
                ],
                "year": self.year,
                "genres": [
                    [GENRES[one]] if two < 0 else [GENRES[one], GENRES[two]]
                    for one, two in zip(self.genre.tolist(), self.second.tolist(), strict=True)
                ],
                "duration_s": self.duration_s,
                "kids": self.kids,
                "regions": [
                    [] if all(row) else [region for region, shown in zip(REGIONS, row, strict=True) if shown]
                    for row in self.available.tolist()
                ],
                "added_ts": np.full(len(ids), added_ts, dtype=np.int64),
            },
            schema_overrides={"genres": pl.List(pl.String), "regions": pl.List(pl.String)},
        )


def draw_catalogue(rng: np.random.Generator, titles: int, exponent: float) -> Catalogue:
    """Draw a catalogue; its first series is for kids and shown everywhere, so that nobody finds it empty.

    Args:
        rng: source of all chance.
        titles: T.
        exponent: of Zipf's law.
    """
    lengths = 1 + rng.choice(len(_SERIES_LENGTHS), size=titles, p=_SERIES_LENGTHS)
    series = np.repeat(np.arange(titles), lengths)[:titles]
    n_series = int(series[-1]) + 1
    first_row = np.searchsorted(series, np.arange(n_series))
    place = np.arange(titles) - first_row[series]
    size = np.bincount(series)

    genre = rng.choice(len(GENRES), size=n_series, p=_SHARES)
    kids_share = np.array([_KIDS_SHARE.get(name, 0.0) for name in GENRES])
    kids = rng.random(n_series) < kids_share[genre]
    everywhere = rng.random(n_series) < 0.8
    available = everywhere[:, None] | (rng.random((n_series, len(REGIONS))) < 0.5)
    available[~available.any(axis=1), 0] = True
    genre[0], kids[0], available[0] = GENRES.index("Family"), True, True

    # a kids title's second genre is one that has kids titles, so that no genre name contradicts the flag
    gentle = np.flatnonzero(kids_share > 0)
    second = np.where(kids, gentle[rng.integers(0, len(gentle), n_series)], rng.integers(0, len(GENRES), n_series))
    second = np.where((rng.random(n_series) < 0.6) & (second != genre), second, -1)

    shuffled = np.argsort(rng.random(titles))
    weight = np.empty(titles)
    weight[shuffled] = 1.0 / np.arange(1, titles + 1) ** exponent
    return Catalogue(
        series=series,
        place=place,
        left=size[series] - place - 1,
        genre=genre[series],
        second=second[series],
        weight=weight,
        appeal=rng.normal(0.0, 0.7, titles),
        duration_s=np.round(np.clip(rng.normal(5700.0, 1300.0, titles), 1200.0, 12_000.0) / 60) * 60,
        kids=kids[series],
        available=available[series],
        year=np.minimum(1975 + (rng.beta(3.0, 1.0, n_series) * 50).astype(np.int64)[series] + 2 * place, 2026),
    )
