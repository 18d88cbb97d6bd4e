"""Intervals that hold for a source that was never seen: conformal calibration with the source as the unit.

Segments of one source are alike, so a new source's errors are not those of a new segment of a known one. Each content
group therefore counts once, whatever its number of segments, and one group more than there are may be as bad as can be
(Lee, Barber and Willett 2023, Distribution-free inference with hierarchical data, section 4). With the errors of
held-out groups, a segment of a new group lies in its interval with the probability asked for, if the new group is drawn
as those were: content unlike all of them has no such promise.
Shapes: B segments, Q quantiles.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COVERAGE: Final = 0.9
"""Asked of intervals."""
WIDEST: Final = 100.0
"""What an interval is widened by where there are too few groups to tell: all scores then lie in it."""
MOST_FOLDS: Final = 40
"""Models fitted to hold each group out once; of more groups, several are held out together."""


def nonconformity(quantiles: Floats, truth: Floats) -> Floats:
    """How far scores lie outside of the outer quantiles, negative inside (Romano et al. 2019, eq. 6) (B,).

    Args:
        quantiles: lower, median and upper (B, Q).
        truth: scores (B,).
    """
    outside: Floats = np.maximum(quantiles[:, 0] - truth, truth - quantiles[:, -1])
    return outside


def widening(errors: Floats, groups: Sequence[str], coverage: float = COVERAGE) -> float:
    """What both ends of an interval must move outward by; negative where quantiles are too cautious.

    Args:
        errors: nonconformity of held-out segments (B,).
        groups: content group of each.
        coverage: share of segments of new groups that shall lie in their intervals, 0 to 1.

    Returns:
        In points of VMAF; WIDEST where there are fewer groups than tell, coverage / (1 - coverage).
    """
    names, places, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    weights = 1.0 / ((len(names) + 1) * sizes[places])
    order = np.argsort(errors, kind="stable")
    reached = np.cumsum(weights[order]) >= coverage - 1e-9
    return min(float(errors[order][np.argmax(reached)]), WIDEST) if reached.any() else WIDEST


def folds(groups: Sequence[str], most: int = MOST_FOLDS) -> list[list[str]]:
    """Groups that are held out together: one each, or several where there are more than `most`."""
    names = sorted(set(groups))
    count = min(len(names), most)
    return [names[place::count] for place in range(count)]


def held_out(
    groups: Sequence[str], predict: Callable[[Sequence[str]], Floats], told: Callable[[int, int], None]
) -> Floats:
    """Quantiles of each segment by a model that saw no segment of its group (B, Q).

    Args:
        groups: content group of each segment.
        predict: fits a model without the groups given, and gives its quantiles of all segments (B, Q).
        told: called with folds done and in all.
    """
    parts = folds(groups)
    result: Floats | None = None
    for done, part in enumerate(parts, start=1):
        quantiles = predict(part)
        result = np.full(quantiles.shape, math.nan) if result is None else result
        mine = np.isin(np.asarray(groups), part)
        result[mine] = quantiles[mine]
        told(done, len(parts))
    assert result is not None, "there are no groups"
    return result


def held_out_widths(errors: Floats, groups: Sequence[str], coverage: float = COVERAGE) -> Floats:
    """For each segment the widening that the other groups give (B,): what a new group would have got."""
    names = np.asarray(groups)
    result = np.empty(len(errors))
    for name in set(groups):
        mine = names == name
        result[mine] = widening(errors[~mine], [group for group in groups if group != name], coverage)
    return result
