"""Leaf tables: counts per combination of dimension values, in the window of an incident and before it.

Units used throughout: timestamps and spans in milliseconds since the epoch, counts in sessions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from serve.errors import InvalidInput

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TIMESTAMP: Final = "timestamp"
TOTAL: Final = "total"
BAD: Final = "bad"
COUNTS: Final = (TIMESTAMP, TOTAL, BAD)

_LARGEST_KEY: Final = 2**62
_MOST_CELLS: Final = 20_000_000
_SMALL_BAD: Final = 3.0
"""Mean of a count that shows clumps, and hardly the noise of ratios, which grows with the mean."""
_SMALL_TOTAL: Final = 20.0
_LEAST_EVIDENCE: Final = 20.0
_LARGEST_CLUMPS: Final = 100.0
_FEWEST_WINDOWS: Final = 3
"""Of the baseline: the windows right before the incident are left out only while so many remain."""
_RISEN: Final = 0.5
"""Of the way from the usual ratio to the incident's: a last window past it belongs to the incident, not before it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LeafTable:
    """Counts per leaf: one combination of values, one per dimension. L leaves, D dimensions.

    Attributes:
        dimensions: names, D of them.
        values: per dimension its values; codes index them.
        codes: (L, D) int64.
        total: (L,) sessions in the incident's window, 0 and more.
        bad: (L,) of them bad, 0 to `total`.
        total_before: (L,) sessions in the baseline's windows together.
        bad_before: (L,) of them bad.
        windows: how many windows the baseline has, 1 and more.
        left_out: windows right before the incident that look like it and are not in the baseline.
        clumping: variance of small counts of bad sessions from window to window, over a binomial's; 1 and more. One
            viewer who is counted in many sessions makes clumps.
        clumping_total: the same of all sessions, over a Poisson's.
    """

    dimensions: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    codes: Ints
    total: Floats
    bad: Floats
    total_before: Floats
    bad_before: Floats
    windows: int
    left_out: int = 0
    clumping: float = 1.0
    clumping_total: float = 1.0

    def named(self, slice_: Sequence[tuple[int, int]]) -> dict[str, str]:
        """A slice of (dimension, code) pairs by its names."""
        return {self.dimensions[dimension]: self.values[dimension][code] for dimension, code in slice_}


def group(codes: Ints, dimensions: Sequence[int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Number the combinations of some columns' values.

    Args:
        codes: (L, D), 0 and more.
        dimensions: which columns.

    Returns:
        (L,) each row's combination, numbered densely from 0, and (M,) one row of each combination.
    """
    key = np.zeros(len(codes), dtype=np.int64)
    span = 1
    for dimension in dimensions:
        column = codes[:, dimension]
        card = int(column.max(initial=0)) + 1
        if span > _LARGEST_KEY // card:
            key = np.unique(key, return_inverse=True)[1].astype(np.int64)
            span = int(key.max(initial=0)) + 1
        key = key * card + column
        span *= card
    _, first, ids = np.unique(key, return_index=True, return_inverse=True)
    return ids, first


def add_up(ids: NDArray[np.intp], counts: Floats, size: int) -> Floats:
    """Sums of `counts` by group, (size,)."""
    return np.bincount(ids, counts, size).astype(np.float64)


def leaf_table(frame: pl.DataFrame, dimensions: Sequence[str], *, at_ms: int, history_ms: int) -> LeafTable:
    """The leaves of one window, beside the windows before it.

    Rows of one window and leaf are added up. Windows right before the incident whose overall bad ratio is nearer to
    the incident's than to the usual one are left out of the baseline, while at least three others remain.

    Args:
        frame: columns `timestamp` (Int64, ms), `total`, `bad` (Float64) and the dimensions (String, no nulls).
        dimensions: their names.
        at_ms: timestamp of the incident's window, as it stands in the frame.
        history_ms: how far back the baseline goes.

    Raises:
        InvalidInput: no rows at `at_ms`, or none in the `history_ms` before it.
    """
    frame = frame.filter(pl.col(TIMESTAMP).is_between(at_ms - history_ms, at_ms))
    times = frame[TIMESTAMP].to_numpy()
    total, bad = frame[TOTAL].to_numpy(), frame[BAD].to_numpy()
    now = times == at_ms
    if not now.any():
        raise InvalidInput(
            field="--at", got=str(at_ms), expected="the time of a window in the file", next_step="Correct --at."
        )
    if now.all():
        raise InvalidInput(
            field="history", got=f"no window in the {history_ms / 60_000:g} minutes before {at_ms}",
            expected="at least one window before the incident",
            next_step="Give a file that starts earlier, or a longer --history.",
        )  # fmt: skip
    windows, window = np.unique(times, return_inverse=True)
    left_out = _risen(add_up(window, total, len(windows)), add_up(window, bad, len(windows)))
    kept = len(windows) - 1 - left_out
    before = window < kept
    columns, values = zip(*(_encode(frame[name]) for name in dimensions), strict=True)
    codes = np.stack(columns, axis=1)
    ids, first = group(codes, range(len(dimensions)))

    def added(counts: Floats, which: NDArray[np.bool_]) -> Floats:
        return add_up(ids, np.where(which, counts, 0.0), len(first))

    clumping = _clumping(ids[before], window[before], total[before], bad[before], (len(first), kept))
    return LeafTable(
        dimensions=tuple(dimensions), values=values, codes=codes[first], total=added(total, now), bad=added(bad, now),
        total_before=added(total, before), bad_before=added(bad, before), windows=kept, left_out=left_out,
        clumping=clumping[0], clumping_total=clumping[1],
    )  # fmt: skip


def _clumping(
    leaf: NDArray[np.intp], window: NDArray[np.intp], total: Floats, bad: Floats, shape: tuple[int, int]
) -> tuple[float, float]:
    """Dispersion (Pearson's statistic by its degrees of freedom) of small counts, of bad and of all sessions."""
    leaves, windows = shape
    if windows < 2 or leaves * windows > _MOST_CELLS:
        return 1.0, 1.0
    cell = leaf * windows + window
    totals, bads = (add_up(cell, counts, leaves * windows).reshape(shape) for counts in (total, bad))
    whole = totals.sum(axis=1, keepdims=True)
    ratio = bads.sum(axis=1, keepdims=True) / np.maximum(whole, 1.0)
    mean = totals * ratio
    free = mean * (1.0 - ratio) * (1.0 - totals / np.maximum(whole, 1.0))
    of_bad = _dispersion((bads - mean) ** 2, free, mean < _SMALL_BAD)
    scale = totals.sum(axis=0) / max(float(totals.sum()), 1.0)
    mean = whole * scale
    of_all = _dispersion((totals - mean) ** 2, mean * (1.0 - 1.0 / windows), mean < _SMALL_TOTAL)
    return of_bad, of_all


def _dispersion(square: Floats, free: Floats, small: NDArray[np.bool_]) -> float:
    expected = float(free[small].sum())
    if expected < _LEAST_EVIDENCE:
        return 1.0
    return float(np.clip(square[small].sum() / expected, 1.0, _LARGEST_CLUMPS))


def _encode(column: pl.Series) -> tuple[Ints, tuple[str, ...]]:
    physical = column.cast(pl.Categorical).to_physical().to_numpy()
    _, first, codes = np.unique(physical, return_index=True, return_inverse=True)
    return codes.astype(np.int64), tuple(column.gather(first).to_list())


def _risen(total: Floats, bad: Floats) -> int:
    """How many of the last windows before the final one already look like it."""
    ratios = (bad + 0.5) / (total + 1.0)
    before, now = ratios[:-1], ratios[-1]
    usual = float(np.median(before[: max(_FEWEST_WINDOWS, len(before) // 2)]))
    if now <= usual:
        return 0
    bound = usual + _RISEN * (now - usual)
    most = min(len(before) - _FEWEST_WINDOWS, len(before) // 2)
    count = 0
    while count < most and before[-1 - count] > bound:
        count += 1
    return count
