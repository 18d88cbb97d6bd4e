"""Watch events as training data: visits for the encoder, point-in-time frames for the ranker.

A frame is the moment just before a profile started a title: what was known then, which title it was, what came of it.
Frames are made by the functions that serve requests (features.offline, features.sequences, features.ranking).

Shapes: F frames, T time, C context, M moments at which title statistics are taken, N title rows, S statistics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.events import EventKind
from features.history import CAPACITY, KIND_CODES
from features.offline import features_at
from features.offline import title_statistics as statistics_at
from features.popularity import HALF_LIFE_MS, NO_TREND, TitleStats
from features.ranking import request_context, statistics_matrix, title_statistics
from features.sequences import encoder_inputs, visits
from training.recommend.interactions import Interactions

MOMENTS: Final = 32
"""Title statistics are taken at this many quantiles of the frames' times; each frame uses the newest before it, as
serving refreshes them in the background."""

_COUNTS: Final = {
    "plays": EventKind.PLAY,
    "finishes": EventKind.FINISH,
    "thumbs_up": EventKind.THUMBS_UP,
    "thumbs_down": EventKind.THUMBS_DOWN,
}
"""What title statistics count, in the order of `features.ranking.statistics_matrix`."""


def interactions_of(events: pl.DataFrame, vocabulary: Sequence[str], source: str) -> Interactions:
    """Each profile's visits, as `features.sequences.visits` would merge its whole log, oldest first.

    Args:
        events: an event frame; titles that the vocabulary does not hold are left out.
        vocabulary: title ids; the title of row r is vocabulary[r - 1].
        source: name for reports.
    """
    codes = {kind.value: 1 << (code - 1) for kind, code in KIND_CODES.items()}
    rows = pl.DataFrame({"title_id": list(vocabulary), "place": np.arange(1, len(vocabulary) + 1)})
    merged = (
        events.lazy()
        .with_columns(pl.col("kind").cast(pl.String).replace_strict(codes, default=0, return_dtype=pl.Int64))
        .filter(pl.col("kind") > 0)
        .join(rows.lazy(), on="title_id", how="inner", maintain_order="left")
        .group_by("profile_id", "place", maintain_order=True)
        .agg(pl.col("kind").unique().sum(), pl.col("ts").max())
        .sort("profile_id", "ts", maintain_order=True)
        .collect()
    )
    sizes = merged.group_by("profile_id", maintain_order=True).len()
    offsets = np.concatenate([[0], np.cumsum(sizes["len"].to_numpy())]).astype(np.int64)
    return Interactions(
        source=source, users=tuple(sizes["profile_id"].to_list()), titles=tuple(vocabulary), offsets=offsets,
        rows=merged["place"].to_numpy().astype(np.int64), actions=merged["kind"].to_numpy().astype(np.int64),
        times=merged["ts"].to_numpy().astype(np.int64) // 1000,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Frames:
    """What was known before each of F starts, and what came of them.

    Attributes:
        profiles: int64 (F,), index of the profile.
        titles: int64 (F, T), as `actions` and `times` input of the graph `encoder`.
        actions: int64 (F, T).
        times: int64 (F, T), UTC seconds.
        held: int64 (F, H), all titles of the histories, also those that the encoder is not given; zeros fill up.
        context: float32 (F, C).
        moment: int64 (F,), place in `statistics`.
        statistics: float32 (M, N, S).
        targets: int64 (F,), row of the title that was started.
        finished: float32 (F,), 1 if it was finished, then or later.
        liked: float32 (F,), 1 if it got a thumbs-up, then or later.
    """

    profiles: Tensor
    titles: Tensor
    actions: Tensor
    times: Tensor
    held: Tensor
    context: Tensor
    moment: Tensor
    statistics: Tensor
    targets: Tensor
    finished: Tensor
    liked: Tensor

    def __len__(self) -> int:
        """How many frames."""
        return len(self.targets)

    def eligible(self, part: Tensor) -> Tensor:
        """All titles that the frames' histories do not hold, bool (len(part), N)."""
        open_ = torch.ones(len(part), self.statistics.shape[1], dtype=torch.bool)
        open_.scatter_(1, self.held[part], value=False)
        open_[:, 0] = False
        return open_


def frames_at(
    events: pl.DataFrame | pl.LazyFrame,
    profiles: pl.DataFrame | None,
    rows: Mapping[str, int],
    asked: Sequence[tuple[str, str]],
    length: int,
) -> Frames:
    """The frames of first starts.

    Args:
        events: an event frame. Of a scan only the events of the asked profiles are brought into memory, and title
            statistics are made in one pass over it (`streamed_statistics`), which takes each event id to be there once.
        profiles: profile_id, region, kids.
        rows: title_id -> row.
        asked: (profile_id, title_id) of events that are plays or stand for one; each must be in `events`.
        length: the most visits that the encoder takes.
    """
    pairs = pl.DataFrame(asked, schema={"profile_id": pl.String, "title_id": pl.String}, orient="row")
    kind = pl.col("kind").cast(pl.String)
    whole = events
    if isinstance(events, pl.LazyFrame):
        events = events.filter(pl.col("profile_id").is_in(pairs["profile_id"].unique().implode())).collect(
            engine="streaming"
        )
    outcomes = (
        events.filter(kind != EventKind.IMPRESSION)
        .group_by("profile_id", "title_id")
        .agg(
            pl.col("ts").min(),
            (kind == EventKind.FINISH).any().alias("finished"),
            (kind == EventKind.THUMBS_UP).any().alias("liked"),
        )
    )
    happened = pairs.join(outcomes, on=["profile_id", "title_id"], how="inner", maintain_order="left")
    known = features_at(events, happened.select("profile_id", "ts"), profiles, inclusive=False)
    times_ms = happened["ts"].to_numpy()
    histories = [visits(features.history.entries, rows) for features in known]
    inputs = encoder_inputs(histories, length)
    context = [request_context(f.history, f.stats, int(ts)) for f, ts in zip(known, times_ms, strict=True)]
    edges = _edges(times_ms)
    if isinstance(whole, pl.LazyFrame):
        statistics = streamed_statistics(whole, rows, edges)
    else:
        statistics = _statistics(whole, rows, edges)
    moment = np.searchsorted(edges, times_ms, side="right") - 1
    codes = {profile: place for place, profile in enumerate(dict.fromkeys(happened["profile_id"].to_list()))}
    return Frames(
        profiles=torch.tensor([codes[profile] for profile in happened["profile_id"].to_list()], dtype=torch.int64),
        titles=torch.from_numpy(inputs["titles"]),
        actions=torch.from_numpy(inputs["actions"]),
        times=torch.from_numpy(inputs["times"]),
        held=torch.from_numpy(encoder_inputs(histories, CAPACITY)["titles"]),
        context=torch.from_numpy(np.stack(context)),
        moment=torch.from_numpy(moment.astype(np.int64)),
        statistics=torch.from_numpy(statistics),
        targets=torch.tensor([rows[title] for title in happened["title_id"].to_list()], dtype=torch.int64),
        finished=torch.from_numpy(happened["finished"].to_numpy().astype(np.float32)),
        liked=torch.from_numpy(happened["liked"].to_numpy().astype(np.float32)),
    )


def _edges(times_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Moments, oldest first and none after the first frame that uses it."""
    return np.unique(np.quantile(times_ms, np.linspace(0, 1, MOMENTS, endpoint=False), method="lower").astype(np.int64))


def _statistics(events: pl.DataFrame, rows: Mapping[str, int], edges: NDArray[np.int64]) -> NDArray[np.float32]:
    """Title statistics just before each moment, (M, N, S)."""
    size = max(rows.values(), default=0) + 1
    matrices = []
    for edge in edges.tolist():
        found = statistics_at(events, edge, inclusive=False)
        by_row: list[TitleStats | None] = [None] * size
        for title, statistics in found.items():
            if title in rows:
                by_row[rows[title]] = statistics
        matrices.append(title_statistics(by_row))
    return np.stack(matrices)


def streamed_statistics(events: pl.LazyFrame, rows: Mapping[str, int], edges: NDArray[np.int64]) -> NDArray[np.float32]:
    """Title statistics just before each moment, float32 (M, N, S), in one pass that holds titles and moments only.

    Events are summed by title and by the stretch of time between two moments that they fall into; the sums then add up
    over the stretches.

    Args:
        events: a scan of an event frame; each event id is taken to be there once, as a data set holds it.
        rows: title_id -> row.
        edges: M moments, UTC milliseconds, increasing.
    """
    size = max(rows.values(), default=0) + 1
    kind, ends = pl.col("kind").cast(pl.String), edges.tolist()
    # place of the first moment after the event; its end is the scale of its plays, which are then 1 or less each
    place = pl.sum_horizontal((pl.col("ts") >= end).cast(pl.Int64) for end in ends)
    happened = (
        events.filter(pl.col("ts") < ends[-1])
        .select("title_id", "ts", kind.alias("kind"), place.alias("place"))
        .join(pl.LazyFrame({"place": range(len(ends)), "end": ends}), on="place", how="inner")
    )
    steps = (pl.col("ts") - pl.col("end")) / HALF_LIFE_MS
    played = pl.col("kind") == EventKind.PLAY
    sums = (
        happened.group_by("title_id", "place")
        .agg(
            *((pl.col("kind") == counted).sum().cast(pl.Int64).alias(name) for name, counted in _COUNTS.items()),
            pl.when(played).then(pl.lit(2.0).pow(steps)).otherwise(0.0).sum().alias("weight"),
        )
        .collect(engine="streaming")
    )
    known = sums.filter(pl.col("title_id").is_in(list(rows)))
    at = known["place"].to_numpy(), np.array([rows[title] for title in known["title_id"].to_list()], dtype=np.int64)

    def laid_out(values: NDArray[Any], empty: float) -> NDArray[np.float64]:
        placed = np.full((len(ends), size), empty)
        placed[at] = values
        return placed

    plays, finishes, ups, downs = (laid_out(known[name].to_numpy(), 0.0).cumsum(axis=0) for name in _COUNTS)
    with np.errstate(divide="ignore"):
        steps_summed = np.log2(known["weight"].to_numpy()) + edges[at[0]] / HALF_LIFE_MS
    trend = np.logaddexp2.accumulate(laid_out(steps_summed, NO_TREND), axis=0)
    columns = zip(plays, finishes, ups, downs, trend, strict=True)
    return np.stack([statistics_matrix(*moment) for moment in columns])
