"""The lattice of slices: every combination of values of up to so many dimensions, scanned for the largest gain."""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.watchtower.localisation_likelihood import Likelihood, peak
from serve.watchtower.localisation_table import Ints, add_up, group

Floats = NDArray[np.float64]
Slice = tuple[tuple[int, int], ...]
"""(dimension, code) pairs, dimensions rising; () is everything."""

DEPTH_TAX: Final = 0.02
"""Share of its gain that a slice has to earn for each dimension after the first: rates differ inside any slice, and a
narrower one can always leave the calmest part out."""
_WORK: Final = 2_400_000
"""Leaves times cuboids that are scanned whole; what is deeper is reached from the best slices above it."""
_LEAST_DEPTH: Final = 2
_PER_CUBOID: Final = 8
_LOOKED_AT: Final = 48
"""Slices of a cuboid whose gain is worked out beyond the effects tried."""
_BEAM: Final = 12
_PROMISING: Final = 0.3
"""Of the largest gain: slices below it are not looked into."""


@dataclass(frozen=True)
class Candidate:
    """A slice that a scan found.

    Attributes:
        slice_: what it is.
        gain: in nats, less what history says of the slice itself.
        net: `gain` less the tax on depth and the cost of naming the slice.
    """

    slice_: Slice
    gain: float
    net: float


@dataclass(frozen=True, eq=False)
class _Cuboid:
    dimensions: tuple[int, ...]
    ids: NDArray[np.intp]
    first: NDArray[np.intp]
    factor: Floats
    """(M,) by how much the slice was above its leaves' expectations before the incident, 1 and more: exp(theta)."""


class Lattice:
    """Slices of one table's leaves.

    Args:
        codes: (L, D).
        expected_before: (L,) as of Baseline.
        counted_before: (L,).
        clumping: variance of these counts over Poisson's.
    """

    def __init__(self, codes: Ints, expected_before: Floats, counted_before: Floats, clumping: float) -> None:
        self._codes = codes
        self._before = (expected_before, counted_before)
        self._sigmas = 1.5 * math.sqrt(clumping)
        cards = [max(len(np.unique(column)), 2) for column in codes.T]
        self._words = [math.log(card) for card in cards]
        self._layers = [math.log(math.comb(len(cards), depth) * (len(cards) + 1)) for depth in range(len(cards) + 1)]
        self._cuboids: list[_Cuboid] = []
        self._thetas: Floats | None = None
        self.depth = 0
        dimensions = codes.shape[1]
        for depth in range(1, dimensions + 1):
            count = len(self._cuboids) + math.comb(dimensions, depth)
            if depth > _LEAST_DEPTH and count * len(codes) > _WORK:
                break
            self.depth = depth
            for chosen in combinations(range(dimensions), depth):
                ids, first = group(codes, chosen)
                self._cuboids.append(_Cuboid(chosen, ids, first, self._factor(ids, len(first))))

    def _factor(self, ids: NDArray[np.intp], count: int, rows: NDArray[np.intp] | slice = np.s_[:]) -> Floats:
        expected, counted = (add_up(ids, counts[rows], count) for counts in self._before)
        factor: Floats = np.maximum((counted - self._sigmas * np.sqrt(counted)) / np.maximum(expected, 1e-9), 1.0)
        return factor

    def cost(self, slice_: Slice) -> float:
        """Nats that naming a slice takes: which dimensions, and which value of each."""
        return self._layers[len(slice_)] + sum(self._words[dimension] for dimension, _ in slice_)

    def net(self, slice_: Slice, gain: float) -> float:
        """`gain` less the tax and the cost."""
        return gain * (1.0 - DEPTH_TAX * max(len(slice_) - 1, 0)) - self.cost(slice_)

    def members(self, slice_: Slice) -> NDArray[np.intp]:
        """Which leaves a slice has, (N,)."""
        inside = np.ones(len(self._codes), dtype=np.bool_)
        for dimension, code in slice_:
            inside &= self._codes[:, dimension] == code
        return np.flatnonzero(inside)

    def scan(self, likelihood: Likelihood, rate: Floats, count: int) -> list[Candidate]:
        """The `count` slices with the largest net gain over the present rates, largest first.

        Args:
            likelihood: of the counts; its last form is the one that history's factor is in.
            rate: (L,) rates so far.
            count: how many to return at most.
        """
        rows = slice(None)
        last = likelihood.grid[-1]
        self._thetas = np.array([effect.size for effect in last]) if last[0].form == "odds" else None
        gains = [
            np.stack([likelihood.gain(rate, likelihood.move(rate, effect), rows) for effect in effects])
            for effects in likelihood.grid
        ]
        found: list[Candidate] = []
        for cuboid in self._cuboids:
            found += self._best(cuboid, gains, rows)
        level = [one for one in found if len(one.slice_) == self.depth]
        while level and len(level[0].slice_) < self._codes.shape[1]:
            bound = _PROMISING * max(one.gain for one in found)
            level = self._deeper([one for one in level if one.gain >= bound], gains)
            found += level
        found.sort(key=lambda one: -one.net)
        return found[:count]

    def _best(self, cuboid: _Cuboid, gains: list[Floats], rows: NDArray[np.intp] | slice) -> list[Candidate]:
        count = len(cuboid.first)
        ids = cuboid.ids
        rough = np.maximum.reduce([add_up(ids, row[rows], count) for of_form in gains for row in of_form[::2]])
        chosen = np.flatnonzero(rough > 0.0)
        if len(chosen) > _LOOKED_AT:
            chosen = chosen[np.argpartition(-rough[chosen], _LOOKED_AT)[:_LOOKED_AT]]
        if not len(chosen):
            return []
        number = np.full(count, -1)
        number[chosen] = np.arange(len(chosen))
        among = number[ids]
        inside = np.flatnonzero(among >= 0)
        among = among[inside]
        inside = inside if isinstance(rows, slice) else rows[inside]
        sums: list[Floats] = [
            np.stack([add_up(among, row[inside], len(chosen)) for row in of_form]) for of_form in gains
        ]
        top = np.maximum.reduce([peak(of_form) for of_form in sums]) - self._known(cuboid.factor[chosen], sums[-1])
        found = []
        for at in np.argsort(-top)[:_PER_CUBOID]:
            if top[at] > 0.0:
                leaf = self._codes[cuboid.first[chosen[at]]]
                slice_ = tuple((dimension, int(leaf[dimension])) for dimension in cuboid.dimensions)
                found.append(Candidate(slice_, float(top[at]), self.net(slice_, float(top[at]))))
        return found

    def _known(self, factor: Floats, sums: Floats) -> Floats:
        """(M,) what of the gain a slice would have had before the incident: that of its factor then."""
        if self._thetas is None:
            return np.zeros(len(factor))
        thetas = np.concatenate([[0.0], self._thetas])
        padded = np.vstack([np.zeros(len(factor)), sums])
        theta = np.clip(np.log(factor), 0.0, thetas[-1])
        at = np.clip(np.searchsorted(thetas, theta, side="right") - 1, 0, len(thetas) - 2)
        columns = np.arange(len(factor))
        part = (theta - thetas[at]) / (thetas[at + 1] - thetas[at])
        known: Floats = padded[at, columns] * (1.0 - part) + padded[at + 1, columns] * part
        return np.maximum(known, 0.0)

    def _deeper(self, above: list[Candidate], gains: list[Floats]) -> list[Candidate]:
        found: dict[Slice, Candidate] = {}
        for candidate in sorted(above, key=lambda one: -one.net)[:_BEAM]:
            rows = self.members(candidate.slice_)
            taken = {dimension for dimension, _ in candidate.slice_}
            for dimension in set(range(self._codes.shape[1])) - taken:
                _, at, ids = np.unique(self._codes[rows, dimension], return_index=True, return_inverse=True)
                cuboid = _Cuboid(tuple(sorted({*taken, dimension})), ids, rows[at], self._factor(ids, len(at), rows))
                for one in self._best(cuboid, gains, rows):
                    found[one.slice_] = one
        return list(found.values())
