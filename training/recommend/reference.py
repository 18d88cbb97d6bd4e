"""The reference of a recommender: its newest training plays in shares of bins; live traffic is held against them later.

The same events and titles give the same tables, byte for byte: the version of the artifact hashes them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import polars as pl
import pyarrow as pa

from features.events import EventKind
from features.titles import Title
from serve.online.reference import DEVICE, FEATURES, GENRE, HOUR, OTHER, REGION, Play, Reference, reference_tables

NEWEST: Final = 0.2
"""Share of the plays that are binned, the newest: histories grow and tastes change within a snapshot, too."""
LEAST_PLAYS: Final = 20_000
"""Plays that are binned where there are so many."""
MOST_PLAYS: Final = 200_000
"""Of more such plays each n-th is binned."""

LEAST_SHARE: Final = 0.01
"""A named value (a genre, a device, a region) with less is `other`; a feature that fewer plays tell is left out."""

MOST_NAMES: Final = 24
"""Named values of a feature."""


def reference_of(events: pl.DataFrame, titles: Sequence[Title]) -> dict[str, pa.Table]:
    """The tables `reference` and `reference_titles` of an artifact.

    Args:
        events: columns of features.events.Event; without plays the tables are empty, and nothing is judged by them.
        titles: the catalogue.
    """
    played = events.filter(pl.col("kind").cast(pl.String) == EventKind.PLAY)
    ordered = played["title_id"].value_counts().sort(["count", "title_id"], descending=[True, False])
    plays = dict(zip(ordered["title_id"].to_list(), ordered["count"].to_list(), strict=True))
    plays |= dict.fromkeys(sorted({title.title_id for title in titles} - plays.keys()), 0)
    genres = {title.title_id: tuple(dict.fromkeys(title.genres)) for title in titles}
    bare = Reference({}, genres, plays)
    counted: dict[str, Counter[str]] = {feature: Counter() for feature in FEATURES}
    told: Counter[str] = Counter()
    for play in _newest(events):
        for feature, bin_, weight in bare.bins(play):
            counted[feature][bin_] += weight  # type: ignore[assignment]  # genres count in parts
            told[feature] += weight  # type: ignore[assignment]
    total = told[HOUR]
    shares = {
        feature: _shares(counted[feature], named=feature in {GENRE, DEVICE, REGION})
        for feature in FEATURES
        if total and told[feature] >= LEAST_SHARE * total
    }
    counts = {
        feature: {bin_: round(share * told[feature]) for bin_, share in bins.items()}
        for feature, bins in shares.items()
    }
    return reference_tables(Reference(shares, genres, plays), counts)


def _shares(counted: Counter[str], *, named: bool) -> dict[str, float]:
    """Shares of bins; of named values, the rare ones together."""
    total = float(sum(counted.values()))
    shares = {bin_: count / total for bin_, count in sorted(counted.items())}
    if not named:
        return shares
    frequent = sorted(shares, key=lambda bin_: (-shares[bin_], bin_))[:MOST_NAMES]
    kept = {bin_: shares[bin_] for bin_ in frequent if shares[bin_] >= LEAST_SHARE and bin_ != OTHER}
    return {**kept, OTHER: max(0.0, 1.0 - sum(kept.values()))}


def plays_of(events: pl.DataFrame) -> pl.DataFrame:
    """Plays with what was known before each, oldest first.

    Args:
        events: columns of features.events.Event.

    Returns:
        profile_id, title_id, ts, visits (plays of the profile before), gap_s (seconds since its last event, impressions
        aside; null for its first), and device, region and rank where the events have them.
    """
    kind = pl.col("kind").cast(pl.String)
    optional = [name for name in ("device", "region", "rank") if name in events.columns]
    return (
        events.lazy()
        .filter(kind != EventKind.IMPRESSION)
        .sort("ts", "profile_id", "event_id")
        .with_columns(is_play=kind == EventKind.PLAY)
        .with_columns(
            visits=pl.col("is_play").cast(pl.Int64).cum_sum().over("profile_id") - 1,
            gap_s=(pl.col("ts") - pl.col("ts").shift(1).over("profile_id")) // 1000,
        )
        .filter("is_play")
        .select("profile_id", "title_id", "ts", "visits", "gap_s", *optional)
        .collect()
    )


def _newest(events: pl.DataFrame) -> Iterator[Play]:
    """The newest plays, with what was known before each."""
    known = plays_of(events)
    known = known.tail(max(LEAST_PLAYS, int(NEWEST * known.height)))
    known = known.gather_every(max(1, -(-known.height // MOST_PLAYS)))
    for row in known.iter_rows(named=True):
        values: dict[str, Any] = {name: row.get(name) or "" for name in ("device", "region")}
        yield Play(
            profile_id=row["profile_id"], title_id=row["title_id"], ts=row["ts"], visits=row["visits"],
            gap_s=row["gap_s"], rank=row.get("rank"), **values,
        )  # fmt: skip
