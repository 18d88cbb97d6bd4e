"""Held-out starts: what viewers began after both versions' training data ended, with what was known just before.

A start is the first play of a title by a profile at or after the cut, of a title that the profile's kept history does
not hold: a page would not recommend that again. Its features are those of a read at that moment (features.offline), and
title statistics are as old as MOMENTS quantiles of the starts' times make them, as serving refreshes them now and then.

Shapes: I starts. Units: *_ms UTC milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.events import EventKind
from features.offline import features_at, title_statistics
from features.popularity import TitleStats
from features.profiles import ProfileFeatures
from features.titles import Title
from training.datasets.dataset import Dataset
from training.gates.intervals import Integers, codes_of

MOMENTS: Final = 32
NEW_PROFILE_TITLES: Final = 5
"""A profile whose history holds fewer titles is new."""
NEW_TITLE_MS: Final = 7 * 24 * 3_600_000
"""A title whose first event is younger than that, or that has none, is new."""
HEAVY_SHARE: Final = 0.1
"""Starts of profiles with the longest histories, as a share of all starts: heavy viewers."""
OUTCOME_MS: Final = 6 * 3_600_000
"""What came of a start is known if the data go on for that long."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Starts at or after a cut, oldest first.

    Attributes:
        cut_ms: the cut.
        features: what was known just before each.
        targets: title of each.
        times_ms: int64 (I,).
        units: int64 (I,), profile of each as a code.
        moments: int64 (I,), place in `statistics`.
        statistics: title_id -> statistics, at each moment.
        finished: whether it was finished then or later, bool (I,).
        liked: whether it got a thumbs-up then or later, bool (I,).
        settled: whether the data go on long enough to tell the two, bool (I,).
        slices: name -> which starts belong to it, bool (I,).
        titles: the catalogue.
        shares: title_id -> share of all plays before the cut.
        last_ts_ms: newest event of the data.
        found: starts that there were before some profiles were drawn.
    """

    cut_ms: int
    features: tuple[ProfileFeatures, ...]
    targets: tuple[str, ...]
    times_ms: Integers
    units: Integers
    moments: Integers
    statistics: tuple[Mapping[str, TitleStats], ...]
    finished: Flags
    liked: Flags
    settled: Flags
    slices: Mapping[str, Flags]
    titles: tuple[Title, ...]
    shares: Mapping[str, float]
    last_ts_ms: int
    found: int

    def __len__(self) -> int:
        """Starts."""
        return len(self.targets)

    @property
    def profiles(self) -> int:
        """Profiles that they are of."""
        return len(np.unique(self.units))


def held_out(dataset: Dataset, cut_ms: int, *, most: int, seed: int) -> HeldOut:
    """The starts of a data set at or after a cut.

    Args:
        dataset: the data.
        cut_ms: first moment that may be used.
        most: about as many starts are taken; whole profiles are drawn where there are more.
        seed: of that draw.

    Raises:
        InvalidData: the data's columns are not those of events.
    """
    events, profiles, titles = dataset.frame("events"), dataset.frame("profiles"), dataset.titles()
    kind = pl.col("kind").cast(pl.String)
    live = [title.title_id for title in titles]
    plays = (
        events.filter((kind == EventKind.PLAY) & (pl.col("ts") >= cut_ms) & pl.col("title_id").is_in(live))
        .unique(["profile_id", "title_id"], keep="first", maintain_order=True)
        .select("profile_id", "title_id", "ts", "device", "region")
    )
    found = plays.height
    plays = _drawn(plays, most, seed)
    known = features_at(events, plays.select("profile_id", "ts"), profiles, inclusive=False)
    fresh = [
        title not in {entry.title_id for entry in features.history.entries}
        for title, features in zip(plays["title_id"].to_list(), known, strict=True)
    ]
    kept = plays.filter(pl.Series(fresh, dtype=pl.Boolean)).with_row_index("place").sort("ts", maintain_order=True)
    features = [one for one, new in zip(known, fresh, strict=True) if new]
    features = [features[place] for place in kept["place"].to_list()]
    times_ms = kept["ts"].to_numpy().astype(np.int64)
    moments, statistics = _statistics(events, times_ms)
    outcomes = _outcomes(events.filter(pl.col("ts") >= cut_ms), kept)
    before = events.filter((kind == EventKind.PLAY) & (pl.col("ts") < cut_ms))
    counts = dict(before.group_by("title_id").len().iter_rows())
    last_ts_ms = int(events["ts"].max() or 0)  # type: ignore[arg-type]
    return HeldOut(
        cut_ms=cut_ms, features=tuple(features), targets=tuple(kept["title_id"].to_list()), times_ms=times_ms,
        units=codes_of(kept["profile_id"].to_list()), moments=moments, statistics=statistics,
        finished=outcomes["finished"].to_numpy(), liked=outcomes["liked"].to_numpy(),
        settled=times_ms <= last_ts_ms - OUTCOME_MS, slices=_slices(kept, features, events), titles=tuple(titles),
        shares={title: count / max(before.height, 1) for title, count in counts.items()},
        last_ts_ms=last_ts_ms, found=found,
    )  # fmt: skip


def _drawn(plays: pl.DataFrame, most: int, seed: int) -> pl.DataFrame:
    """All plays of as many profiles, in random order, as bring `most` of them."""
    if plays.height <= most:
        return plays
    sizes = plays.group_by("profile_id").len().sort("profile_id")
    order = np.random.default_rng(seed).permutation(sizes.height)
    reached = np.cumsum(sizes["len"].to_numpy()[order])
    taken = sizes["profile_id"].gather(order[: int(np.searchsorted(reached, most)) + 1])
    return plays.filter(pl.col("profile_id").is_in(taken.to_list()))


def _statistics(events: pl.DataFrame, times_ms: Integers) -> tuple[Integers, tuple[Mapping[str, TitleStats], ...]]:
    if not len(times_ms):
        return times_ms, ()
    shares = np.linspace(0, 1, MOMENTS, endpoint=False)
    edges = np.unique(np.quantile(times_ms, shares, method="lower").astype(np.int64))
    moments = (np.searchsorted(edges, times_ms, side="right") - 1).astype(np.int64)
    return moments, tuple(title_statistics(events, edge, inclusive=False) for edge in edges.tolist())


def _outcomes(later: pl.DataFrame, starts: pl.DataFrame) -> pl.DataFrame:
    """Columns finished and liked of each start, by what happened at or after it."""
    kind = pl.col("kind").cast(pl.String)
    marks = later.filter(kind.is_in([EventKind.FINISH.value, EventKind.THUMBS_UP.value])).select(
        "profile_id", "title_id", pl.col("ts").alias("then"), kind.alias("mark")
    )
    return (
        starts.select("profile_id", "title_id", "ts")
        .join(marks, on=["profile_id", "title_id"], how="left", maintain_order="left")
        .with_columns(pl.when(pl.col("then") >= pl.col("ts")).then("mark").alias("mark"))
        .group_by("profile_id", "title_id", maintain_order=True)
        .agg(
            (pl.col("mark") == EventKind.FINISH).any().alias("finished"),
            (pl.col("mark") == EventKind.THUMBS_UP).any().alias("liked"),
        )
    )


def _slices(starts: pl.DataFrame, features: list[ProfileFeatures], events: pl.DataFrame) -> dict[str, Flags]:
    titles = np.array([len({entry.title_id for entry in one.history.entries}) for one in features])
    lengths = np.array([one.history.n_events for one in features])
    first: dict[str, Any] = dict(events.group_by("title_id").agg(pl.col("ts").min()).iter_rows())
    ages = np.array(
        [ts - first[title] for title, ts in zip(starts["title_id"].to_list(), starts["ts"].to_list(), strict=True)]
    )
    slices = {
        "new profiles": titles < NEW_PROFILE_TITLES,
        "new titles": ages < NEW_TITLE_MS,
        "heavy viewers": lengths >= np.quantile(lengths, 1 - HEAVY_SHARE) if len(lengths) else lengths > 0,
        "kids": np.array([one.stats.kids for one in features], dtype=np.bool_),
    }
    devices = [device or one.stats.device for device, one in zip(starts["device"].to_list(), features, strict=True)]
    regions = [region or one.stats.region for region, one in zip(starts["region"].to_list(), features, strict=True)]
    for name, values in (("device", np.array(devices, dtype=str)), ("region", np.array(regions, dtype=str))):
        slices |= {f"{name} {value}": values == value for value in sorted(set(values.tolist()) - {""})}
    return slices
