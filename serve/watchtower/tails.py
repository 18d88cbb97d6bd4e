"""How rare a positive reading is, given all that came before it: a streaming tail likelihood.

The body of the distribution is a histogram of logarithms that forgets slowly; the tail above its `SHARE` quantile is a
Pareto law whose index is Hill's estimate (Hill, 1975), drawn towards a prior while there are few exceedances. So a
reading beyond all that was ever seen still has a finite probability, on any scale: the right one where tails are heavy
and one that is too large, so too few surprises, where they are light. (A tail that also fits light ones, by the moment
estimator of Dekkers, Einmahl and de Haan, 1989, is calibrated on both but finds less: docs/watchtower.md.)
"""

import math
from collections.abc import Mapping
from typing import Any, Final

SHARE: Final = 0.05
"""Of the readings, how many make the tail."""
HALF_LIFE: Final = 5000
"""Readings after which one counts half."""
PRIOR_INDEX: Final = 0.4
"""Of the tail before it is known: a reading twice the tail's start is 5.7 times rarer."""
PRIOR_EXCEEDANCES: Final = 30.0
LEAST_INDEX: Final = 0.02
FIRST: Final = 40
"""Readings before any is called rare."""
BINS_PER_E: Final = 10
LOWEST_LOG: Final = -30.0
BINS: Final = 900
MOST: Final = 30.0
"""The largest surprise, -log10 of the smallest probability."""
RENORMALISE: Final = 1e6


class Tail:
    """Surprise of a stream of readings of at least zero: -log10 of the probability of one so large or larger."""

    def __init__(self) -> None:
        self._weights = [0.0] * BINS
        self._total = 0.0
        self._above = 0.0  # weight in bins above the tail's start
        self._above_bins = 0.0  # the same, times the bin
        self._start = BINS - 1  # bins above this one are the tail
        self._weight = 1.0
        self._count = 0
        self._growth = 2.0 ** (1.0 / HALF_LIFE)

    def surprise(self, reading: float) -> float:
        """-log10 of the probability of a reading at least this large, in [0, MOST]; 0 until `FIRST` were learned."""
        if self._count < FIRST:
            return 0.0
        place = self._place(reading)
        start = self._start + 1
        if place >= start:
            prior = PRIOR_EXCEEDANCES * self._weight
            mean_log = (self._above_bins + (0.5 - start) * self._above) / BINS_PER_E
            index = max((mean_log + prior * PRIOR_INDEX) / (self._above + prior), LEAST_INDEX)
            share = max(self._above, 0.5 * self._weight) / self._total
            return min(-math.log10(share) + (place - start) / BINS_PER_E / index / math.log(10.0), MOST)
        bin_ = int(place)
        above = self._above + sum(self._weights[bin_ + 1 : start]) + self._weights[bin_] * (1.0 - (place - bin_))
        return -math.log10(min(max(above / self._total, 1e-9), 1.0))

    def learn(self, reading: float) -> None:
        """Take one reading into the past."""
        bin_ = int(self._place(reading))
        self._weights[bin_] += self._weight
        self._total += self._weight
        if bin_ > self._start:
            self._above += self._weight
            self._above_bins += self._weight * bin_
        self._count += 1
        self._weight *= self._growth
        self._move()
        if self._weight > RENORMALISE:
            self._renormalise()

    def _place(self, reading: float) -> float:
        log = math.log(reading) if reading > 1e-13 else LOWEST_LOG
        return min(max((log - LOWEST_LOG) * BINS_PER_E, 0.0), BINS - 1.0)

    def _move(self) -> None:
        """Move the tail's start so that the tail holds the most whole bins with at most SHARE of the weight."""
        target = SHARE * self._total
        while self._start > 0 and self._above + self._weights[self._start] <= target:
            self._above += self._weights[self._start]
            self._above_bins += self._weights[self._start] * self._start
            self._start -= 1
        while self._above > target and self._start < BINS - 1:
            self._start += 1
            self._above -= self._weights[self._start]
            self._above_bins -= self._weights[self._start] * self._start

    def _renormalise(self) -> None:
        """Divide all weights, and sum the tail afresh, so that neither overflow nor rounding builds up."""
        scale = 1.0 / self._weight
        self._weights = [weight * scale for weight in self._weights]
        self._total = math.fsum(self._weights)
        self._weight = 1.0
        tail = range(self._start + 1, BINS)
        self._above = math.fsum(self._weights[bin_] for bin_ in tail)
        self._above_bins = math.fsum(self._weights[bin_] * bin_ for bin_ in tail)

    def state(self) -> dict[str, Any]:
        """What `from_state` needs: JSON-able."""
        return {
            "weights": {str(bin_): weight for bin_, weight in enumerate(self._weights) if weight},
            "total": self._total, "above": self._above, "above_bins": self._above_bins, "start": self._start,
            "weight": self._weight, "count": self._count,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Tail":
        """The tail that wrote this state."""
        tail = cls()
        for bin_, weight in state["weights"].items():
            tail._weights[int(bin_)] = weight
        tail._total, tail._above, tail._above_bins = state["total"], state["above"], state["above_bins"]
        tail._start, tail._weight, tail._count = state["start"], state["weight"], state["count"]
        return tail
