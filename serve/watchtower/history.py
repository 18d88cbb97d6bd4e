"""The recent windows that outages are judged by: counts of leaves, one by one for minutes, then in blocks.

Leaves are known by numbers, so that what is in a slice is one comparison of arrays. Times UTC ms, by the log's clock.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from serve.telemetry.reports import DIMENSIONS
from serve.telemetry.windows import ATTEMPTS, METRICS, WIDTH, Leaf, Window
from serve.watchtower.alarms import MISSING, Slice
from serve.watchtower.localisation_table import LeafTable

FINE: Final = 36
"""Latest windows that are kept one by one; older ones are kept in blocks."""
BLOCK: Final = 30
BLOCKS: Final = 6

_PLACE: Final = {dimension: place for place, dimension in enumerate(DIMENSIONS)}

Ints = NDArray[np.int64]


@dataclass(slots=True)
class _Block:
    """Counts of one or more windows: leaves' numbers (L,) and counts (L, WIDTH)."""

    start_ms: int
    windows: int
    leaves: Ints
    counts: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Excerpt:
    """What is kept of one metric, as localisation takes it.

    Attributes:
        table: counts since a moment and before it.
        leaves: numbers of the table's leaves (L,).
    """

    table: LeafTable
    leaves: Ints

    @property
    def trouble(self) -> NDArray[np.float64]:
        """Bad ones of each leaf; of MISSING, those that did not come (L,)."""
        table = self.table
        return table.bad if table.bad.any() else np.maximum(table.total_before - table.total, 0.0)


class History:
    """Windows come in order, each once; what is too old is forgotten."""

    def __init__(self) -> None:
        self._leaves: dict[Leaf, int] = {}
        self._names: list[Leaf] = []
        self._values: list[dict[str, int]] = [{} for _ in DIMENSIONS]
        self._codes = np.zeros((1024, len(DIMENSIONS)), np.int64)  # of names, by the values' places in _values
        self._fine: deque[_Block] = deque()
        self._coarse: deque[_Block] = deque()
        self._filling: list[_Block] = []

    @property
    def latest_ms(self) -> int:
        """When the latest window began."""
        return self._fine[-1].start_ms

    def keep(self, window: Window) -> None:
        """Keep a window's leaves; what leaves the fine ones goes into blocks."""
        numbers = [self._leaves.get(leaf, -1) for leaf in window.counts]
        if -1 in numbers:
            self._learn(leaf for leaf, number in zip(window.counts, numbers, strict=True) if number < 0)
            numbers = [self._leaves[leaf] for leaf in window.counts]
        self._fine.append(_Block(window.start_ms, 1, np.array(numbers, np.int64), window.table()))
        if len(self._fine) > FINE:
            self._filling.append(self._fine.popleft())
            if len(self._filling) == BLOCK:
                self._coarse.append(_added(self._filling))
                self._filling = []
                if len(self._coarse) > BLOCKS:
                    self._coarse.popleft()
                    self._forget_leaves()

    def members(self, slice_: Slice) -> NDArray[np.bool_]:
        """Which leaves are in a slice, by number (N,)."""
        inside = np.ones(len(self._names), np.bool_)
        for dimension, value in slice_:
            place = _PLACE[dimension]
            inside &= self._codes[: len(inside), place] == self._values[place].get(value, -1)
        return inside

    def since(self, slice_: Slice, since_ms: int) -> tuple[Ints, int]:
        """Counts of a slice (WIDTH,) over those of the FINE latest windows that began then or later; how many."""
        return self._sums(slice_, [block for block in self._fine if block.start_ms >= since_ms])

    def before(self, slice_: Slice, until_ms: int) -> tuple[Ints, int]:
        """Counts of a slice (WIDTH,) over all windows kept that began before a moment, and how many those are."""
        return self._sums(slice_, [block for block in self._blocks() if block.start_ms < until_ms])

    def excerpt(self, metric: str, since_ms: int) -> Excerpt | None:
        """The leaves since a moment, and before it; None where nothing is known of before."""
        column = ATTEMPTS if metric == MISSING else 2 * METRICS.index(metric)
        size = len(self._names)
        sums = np.zeros((4, size))
        windows = 0
        for block in self._blocks():
            place = 0 if block.start_ms >= since_ms else 2
            windows += block.windows if place else 0
            sums[place] += np.bincount(block.leaves, block.counts[:, column], size)
            if metric != MISSING:
                sums[place + 1] += np.bincount(block.leaves, block.counts[:, column + 1], size)
        there = np.flatnonzero(sums[0] + sums[2] > 0)
        if not windows or not len(there):
            return None
        dimensions, values, columns = [], [], []
        for place, dimension in enumerate(DIMENSIONS):
            known, numbers = _renumbered(self._codes[there, place], list(self._values[place]))
            if len(known) > 1:  # else its one value is everyone
                dimensions.append(dimension)
                values.append(known)
                columns.append(numbers)
        if not dimensions:
            return None
        now = sum(block.windows for block in self._fine if block.start_ms >= since_ms) or 1
        total, bad, total_before, bad_before = sums[:, there]
        if metric == MISSING:  # sessions a window, whatever the number of windows now
            total_before, windows = total_before * now / windows, 1
        table = LeafTable(
            dimensions=tuple(dimensions), values=tuple(values), codes=np.array(columns, np.int64).T, total=total,
            bad=np.minimum(bad, total), total_before=total_before, bad_before=bad_before, windows=windows,
        )  # fmt: skip
        return Excerpt(table, there)

    def overlap(self, one: Slice, other: Slice, excerpt: Excerpt) -> float:
        """Share of one slice's trouble that lies in another, 0 to 1."""
        first, second = (self.members(slice_)[excerpt.leaves] for slice_ in (one, other))
        trouble = excerpt.trouble
        return float(trouble[first & second].sum()) / max(float(trouble[first].sum()), 1.0)

    def _blocks(self) -> list[_Block]:
        return [*self._coarse, *self._filling, *self._fine]

    def _sums(self, slice_: Slice, blocks: Sequence[_Block]) -> tuple[Ints, int]:
        inside = self.members(slice_)
        counts = np.zeros(WIDTH, np.int64)
        for block in blocks:
            counts += block.counts[inside[block.leaves]].sum(axis=0)
        return counts, sum(block.windows for block in blocks)

    def _learn(self, leaves: Iterable[Leaf]) -> None:
        """Number leaves that are new."""
        for leaf in leaves:
            number = self._leaves[leaf] = len(self._names)
            self._names.append(leaf)
            if number == len(self._codes):
                self._codes = np.concatenate([self._codes, np.zeros_like(self._codes)])
            self._codes[number] = [
                known.setdefault(value, len(known)) for known, value in zip(self._values, leaf, strict=True)
            ]

    def _forget_leaves(self) -> None:
        """Renumber the leaves that are still in use."""
        blocks = self._blocks()
        used = np.unique(np.concatenate([block.leaves for block in blocks]))
        if len(used) > len(self._names) // 2:
            return
        for block in blocks:
            block.leaves = np.searchsorted(used, block.leaves)
        kept = [self._names[number] for number in used.tolist()]
        self._leaves, self._names, self._values = {}, [], [{} for _ in DIMENSIONS]
        self._learn(kept)

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able."""
        return {
            "names": self._names,
            **{name: [_dumped(block) for block in blocks]
               for name, blocks in (("fine", self._fine), ("coarse", self._coarse), ("filling", self._filling))},
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The history that wrote this checkpoint."""
        history = cls()
        history._learn(tuple(leaf) for leaf in state["names"])
        history._fine = deque(_undumped(block) for block in state["fine"])
        history._coarse = deque(_undumped(block) for block in state["coarse"])
        history._filling = [_undumped(block) for block in state["filling"]]
        return history


def _renumbered(codes: Ints, names: Sequence[str]) -> tuple[tuple[str, ...], Ints]:
    """Values in the order in which they first come, and the codes by their places there (L,)."""
    first = np.full(len(names), -1)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    there = np.flatnonzero(first >= 0)
    there = there[np.argsort(first[there])]
    places = np.zeros(len(names), np.int64)
    places[there] = np.arange(len(there))
    return tuple(names[code] for code in there.tolist()), places[codes]


def _added(blocks: Sequence[_Block]) -> _Block:
    leaves, ids = np.unique(np.concatenate([block.leaves for block in blocks]), return_inverse=True)
    counts = np.zeros((len(leaves), WIDTH), np.int64)
    np.add.at(counts, ids, np.concatenate([block.counts for block in blocks]))
    return _Block(blocks[0].start_ms, sum(block.windows for block in blocks), leaves, counts)


def _dumped(block: _Block) -> list[Any]:
    return [block.start_ms, block.windows, block.leaves.tolist(), block.counts.tolist()]


def _undumped(dumped: Sequence[Any]) -> _Block:
    leaves = np.array(dumped[2], np.int64)
    return _Block(dumped[0], dumped[1], leaves, np.array(dumped[3], np.int64).reshape(len(leaves), WIDTH))
