"""The search for causes: fit one, look at what is left, fit all again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from serve.watchtower.localisation_baseline import Baseline, bad_baseline, lost_baseline, unit_groups
from serve.watchtower.localisation_lattice import Candidate, Lattice, Slice
from serve.watchtower.localisation_likelihood import (
    BadLikelihood,
    Effect,
    Likelihood,
    LostLikelihood,
    fit,
    relative_noise,
)
from serve.watchtower.localisation_table import LeafTable, add_up

Floats = NDArray[np.float64]
Metric = Literal["bad", "missing"]

SHORTLIST: Final = 40
_MOST_CAUSES: Final = 6
_LEAST_NET: Final = 5.0
"""Nats beyond the cost of its name that a slice's gain has to reach."""
_NEGLIGIBLE: Final = 0.002
"""Of the largest gain: the search ends with a slice that explains less."""
CLEAR: Final = 0.1
"""Of the largest gain: causes below it count as part of what differs between slices anyway."""
_FEWEST_GROUPS: Final = 20
_LEAF_COUNT: Final = 5.0
_SLICE_COUNT: Final = 30.0
_MUCH_CALMER: Final = 0.6
"""Noise is estimated again once causes are known; below this share of the first guess they are sought again."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A slice and its effect.

    Attributes:
        slice_: () for the whole.
        rows: (N,) its leaves.
        effect: on them.
        gain: nats, beside the effects that it was fitted with.
    """

    slice_: Slice
    rows: NDArray[np.intp]
    effect: Effect
    gain: float


class Search:
    """One metric's leaves, and causes that are fitted together.

    Args:
        table: with sessions in some leaf now (metric `bad`) or before (`missing`).
        metric: what to explain.

    Attributes:
        table: its leaves that count.
        rate: (L,) expected bad ratio, or sessions, of each.
        exposure: (L,) what `rate` is a share of.
        count: (L,) what was counted now.
        mean: (L,) what was expected.
        noise: relative variance of leaves beyond counting.
        clumping: as of LeafTable, of the metric's counts.
        lattice: the slices.
        first: best slices when nothing is explained yet, largest net gain first.
    """

    def __init__(self, table: LeafTable, metric: Metric) -> None:
        self.table, self.metric = table, metric
        baseline: Baseline = bad_baseline(table) if metric == "bad" else lost_baseline(table)
        kept = np.flatnonzero(table.total > 0 if metric == "bad" else table.total_before > 0)
        self.table = table = replace(
            table, codes=table.codes[kept], total=table.total[kept], bad=table.bad[kept],
            total_before=table.total_before[kept], bad_before=table.bad_before[kept],
        )  # fmt: skip
        self.rate = baseline.rate[kept]
        self.exposure = table.total if metric == "bad" else np.ones(len(kept))
        self.count = table.bad if metric == "bad" else table.total
        self.mean = self.exposure * self.rate
        self._uncertainty = baseline.uncertainty[kept]
        self.clumping = table.clumping if metric == "bad" else table.clumping_total
        self.lattice = Lattice(
            table.codes, baseline.expected_before[kept], baseline.counted_before[kept], self.clumping
        )
        self._weigh(self._noise(self.mean))
        self.first: list[Candidate] = []

    def _weigh(self, noise: float) -> None:
        table = self.table
        self.noise = noise
        weight = 1.0 / (self.clumping + (noise + self._uncertainty) * (self.mean + self.count) / 2.0)
        self.likelihood: Likelihood = LostLikelihood(table.total, weight)
        if self.metric == "bad":
            self.likelihood = BadLikelihood(table.total, table.bad, weight)

    def _noise(self, mean: Floats) -> float:
        """Relative variance, beyond counting, of leaves, or of the finest groups that have counts enough."""
        ids, size = unit_groups(self.table, mean, least=_LEAF_COUNT, fewest=_FEWEST_GROUPS)
        count, expected = (add_up(ids, part, size) for part in (self.count, mean))
        unsure = add_up(ids, self._uncertainty * mean**2, size) / np.maximum(expected, 1e-12) ** 2
        enough = expected >= _LEAF_COUNT
        lift = float(np.median(count[enough] / expected[enough])) if enough.any() else 1.0
        return relative_noise(count[enough], max(lift, 0.1) * expected[enough], unsure[enough], self.clumping)

    def spread(self, fitted: Sequence["Fitted"]) -> float:
        """Relative variance beyond counting of whole values (one dimension's), with these effects in place."""
        mean = self.exposure * self.rates(fitted)
        columns = list(zip(self.table.codes.T, (len(values) for values in self.table.values), strict=True))
        count, expected = (
            np.concatenate([add_up(codes, part, size) for codes, size in columns]) for part in (self.count, mean)
        )
        enough = expected >= _SLICE_COUNT
        return relative_noise(count[enough], expected[enough], np.zeros(int(enough.sum())), self.clumping)

    def rates(self, fitted: Sequence[Fitted]) -> Floats:
        """(L,) rates with these effects in place."""
        rate = self.rate.copy()
        for one in fitted:
            rate[one.rows] = np.clip(self.likelihood.move(rate[one.rows], one.effect), 1e-6, self._ceiling)
        return rate

    @property
    def _ceiling(self) -> float:
        return 1.0 - 1e-6 if self.metric == "bad" else math.inf

    def fit(self, slice_: Slice, rate: Floats) -> Fitted:
        """The slice's best effect over given rates."""
        rows = self.lattice.members(slice_) if slice_ else np.arange(len(rate))
        present = rate[rows]

        def gain(effect: Effect) -> float:
            return float(self.likelihood.gain(present, self.likelihood.move(present, effect), rows).sum())

        forms = self.likelihood.grid if slice_ else self.likelihood.overall
        best, effect = fit(gain, forms)
        return Fitted(slice_, rows, effect, best)

    def refit(self, fitted: list[Fitted]) -> list[Fitted]:
        """All effects again, each beside the others; then without those that are no longer worth their names."""
        while True:
            for _ in range(2 if len(fitted) > 1 else 1):
                for at in range(len(fitted)):
                    others = fitted[:at] + fitted[at + 1 :]
                    fitted[at] = self.fit(fitted[at].slice_, self.rates(others))
            worst = min(fitted, key=self._net, default=None)
            if worst is None or self._net(worst) >= _LEAST_NET:
                return fitted
            fitted.remove(worst)

    def _net(self, one: Fitted) -> float:
        return self.lattice.net(one.slice_, one.gain)

    def step(self, fitted: list[Fitted]) -> Fitted | None:
        """The slice that explains most of what the fitted ones leave."""
        rate = self.rates(fitted)
        known = {one.slice_ for one in fitted}
        found = self.lattice.scan(self.likelihood, rate, SHORTLIST)
        if not fitted:
            self.first = found
        best = next((one for one in found if one.slice_ not in known), None)
        whole = None if () in known else self.fit((), rate)
        if whole is not None and (best is None or self._net(whole) > best.net):
            return whole if self._net(whole) >= _LEAST_NET else None
        if best is None or best.net < _LEAST_NET:
            return None
        return self.fit(best.slice_, rate)

    def explain(self) -> list[Fitted]:
        """Causes until what remains is noise, estimated without them; then each once more against all other slices."""
        fitted = self._explain()
        if fitted and self.noise > 0.0:
            noise = self._noise(self.exposure * self.rates(fitted))
            if noise < _MUCH_CALMER * self.noise:
                self._weigh(noise)
                fitted = self._explain()
        return fitted

    def _explain(self) -> list[Fitted]:
        fitted: list[Fitted] = []
        seen: set[frozenset[Slice]] = set()
        while len(fitted) < _MOST_CAUSES:
            one = self.step(fitted)
            if one is None or one.gain < _NEGLIGIBLE * max((each.gain for each in fitted), default=0.0):
                break
            fitted = self.refit([*fitted, one])
            state = frozenset(each.slice_ for each in fitted)
            if state in seen:
                break
            seen.add(state)
        least = CLEAR * max((one.gain for one in fitted), default=0.0)
        for one in [each for each in fitted if each.gain >= least and self._overlaps(each, fitted)]:
            others = [each for each in fitted if each.slice_ != one.slice_]
            better = self.step(others) if len(others) < len(fitted) else None
            if better is not None and better.slice_ != one.slice_:
                fitted = self.refit([*others, better])
        return self._merge(fitted)

    def _overlaps(self, one: Fitted, fitted: Sequence[Fitted]) -> bool:
        """Whether the cause, no whole itself, has leaves in common with another."""
        others = [other.rows for other in fitted if other.slice_ and other.slice_ != one.slice_]
        return bool(one.slice_ and any(len(np.intersect1d(one.rows, rows, assume_unique=True)) for rows in others))

    def _merge(self, fitted: list[Fitted]) -> list[Fitted]:
        """One slice in place of two that differ in one value, where it explains as much for what its name saves."""
        for one, other in combinations([one.slice_ for one in fitted], 2):
            common = tuple(pair for pair in one if pair in other)
            names = {each.slice_ for each in fitted}
            if not common or len(common) != len(one) - 1 or len(one) != len(other) or not {one, other} <= names:
                continue
            rest = [each for each in fitted if each.slice_ not in {one, other, common}]
            merged = self.refit([*rest, self.fit(common, self.rates(rest))])
            if self._worth(merged) >= self._worth(fitted):
                fitted = merged
        return fitted

    def _worth(self, fitted: Sequence[Fitted]) -> float:
        """Nats that these causes explain together, less the taxes on depth and the costs of their names."""
        everything = slice(None)
        gain = float(self.likelihood.gain(self.rate, self.rates(fitted), everything).sum())
        return gain - sum(one.gain - self._net(one) for one in fitted)

    def excess(self, one: Fitted, fitted: Sequence[Fitted]) -> float:
        """Counts that the cause adds (or, below 0, takes away) beside the others."""
        others = self.rates([other for other in fitted if other is not one])[one.rows]
        return float((self.exposure[one.rows] * (self.likelihood.move(others, one.effect) - others)).sum())
