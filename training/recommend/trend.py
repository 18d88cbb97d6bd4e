"""The trend term of the retrieval: score = state . vector + weight * trend.

The encoder knows what follows on what; the trend knows what is watched these days. It is column TREND of the titles'
statistics: log2 of the plays, each worth half as much every HALF_LIFE_MS, against the strongest title. Online it comes
from the store (features.popularity); here it is worked out from visits as of the moment of each request, which is the
newest visit that is known: when the target happened is not looked at, nor what happened then or later.

Shapes: P prefixes, N title rows (row 0 is padding).
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.popularity import HALF_LIFE_MS, NO_TREND
from features.ranking import relative_trend
from training.recommend.interactions import PLAYED, Interactions, Ints, Prefix
from training.recommend.metrics import Ranked, gains_of, rank_targets
from training.recommend.split import Split
from training.recommend.train import final_states

WEIGHTS: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Weights of the trend that are tried; the first is none at all."""

VALIDATION_USERS: Final = 5_000
"""The most users that the weight is chosen by."""


class Trends:
    """The titles' trends as time goes on; each visit with a play counts as a play at its time."""

    def __init__(self, interactions: Interactions, known: Sequence[Prefix]) -> None:
        """Before the first visit.

        Args:
            interactions: the data.
            known: stretches whose visits count, each visit once.
        """
        counted = np.zeros(len(interactions.rows), dtype=np.bool_)
        for prefix in known:
            counted[prefix.start : prefix.stop] = True
        counted &= interactions.actions & PLAYED > 0
        order = np.argsort(interactions.times[counted], kind="stable")
        self._times = interactions.times[counted][order]
        self._rows = interactions.rows[counted][order]
        self._steps = self._times * 1000 / HALF_LIFE_MS
        self._trend = np.full(len(interactions.titles) + 1, NO_TREND)
        self._folded = 0

    def at(self, times: Ints) -> NDArray[np.float32]:
        """Column TREND of `features.ranking.title_statistics` just before each time, float32 (len(times), N).

        Args:
            times: UTC seconds, not decreasing, from call to call either.
        """
        found = np.empty((len(times), len(self._trend)), dtype=np.float32)
        for place, stop in enumerate(np.searchsorted(self._times, times, side="left").tolist()):
            new = slice(self._folded, stop)
            np.logaddexp2.at(self._trend, self._rows[new], self._steps[new])
            self._folded = stop
            found[place] = relative_trend(self._trend)
        return found


def rank_with_trend(
    model: Any,
    interactions: Interactions,
    split: Split,
    prefixes: Sequence[Prefix],
    targets: Ints,
    weights: Sequence[float],
) -> list[Ranked]:
    """Ranks of targets with each weight of the trend; see `rank_targets`.

    Args:
        model: a fitted SequenceModel.
        interactions: the data.
        split: its training part and the prefixes are all that trends are made from.
        prefixes: P, none of them empty.
        targets: int64 (P,), rows.
        weights: which to try.
    """
    times = interactions.times[[prefix.stop - 1 for prefix in prefixes]]
    order = np.argsort(times, kind="stable")  # trends are folded as time goes on
    ordered, times, back = [prefixes[place] for place in order], times[order], np.argsort(order)
    states = final_states(model, interactions, ordered)
    with torch.no_grad():
        table = model.title_vectors()

    def ranked(weight: float) -> Ranked:
        trends = Trends(interactions, (*split.train, *prefixes))

        def scores(part: slice) -> Tensor:
            plain: Tensor = states[part] @ table.T
            return plain + weight * torch.from_numpy(trends.at(times[part])) if weight else plain

        found = rank_targets(scores, interactions, ordered, targets[order])
        return Ranked(ranks=found.ranks[back], shown=found.shown)

    return [ranked(weight) for weight in weights]


def choose_weight(model: Any, interactions: Interactions, split: Split) -> float:
    """The trend's weight with the best validation NDCG@10, if it gains more than a standard error; else 0.

    Args:
        model: a fitted SequenceModel.
        interactions: the data; without times there is no trend.
        split: of which the validation targets are looked at.
    """
    if not interactions.timed:
        return 0.0
    prefixes, targets = split.validation[:VALIDATION_USERS], split.validation_targets[:VALIDATION_USERS]
    tried = rank_with_trend(model, interactions, split, prefixes, targets, WEIGHTS)
    gains = np.stack([gains_of(ranked.ranks) for ranked in tried])  # (weights, users)
    best = int(gains.mean(1).argmax())
    paired = gains[best] - gains[0]
    error = paired.std(ddof=1) / math.sqrt(len(paired)) if len(paired) > 1 else math.inf
    return WEIGHTS[best] if paired.mean() > error else 0.0
