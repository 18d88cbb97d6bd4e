"""How far two versions differ on the same units, and how sure that is.

A unit is what was drawn independently: a profile with all its starts, a trace, a clip. All of a unit's items stand or
fall together, so the intervals are taken over units, never over items.

Means are compared by their ratio. Its bounds are Fieller's (J. Roy. Stat. Soc. B 16, 1954) with the units as the
sample: all r for which sum(candidate - r * champion) is no farther from 0 than Student's t allows. What is no mean
(quantiles, calibration) is compared by a paired bootstrap that draws units.

Shapes: I items, U units, R bootstrap samples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CONFIDENCE: Final = 0.95
SAMPLES: Final = 1000
"""Bootstrap samples."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its bounds.

    Attributes:
        value: the estimate.
        low: lower bound; -infinity where the data can't tell.
        high: upper bound; infinity likewise.
        error: standard error; infinity where there are fewer than two units.
        items: that it rests on.
        units: that it rests on.
    """

    value: float
    low: float
    high: float
    error: float
    items: int
    units: int

    def shifted(self, by: float) -> "Interval":
        """The same with all three numbers moved."""
        return Interval(
            value=self.value + by, low=self.low + by, high=self.high + by, error=self.error, items=self.items,
            units=self.units,
        )  # fmt: skip


def sums(values: Floats, units: Integers, count: int) -> Floats:
    """Sum of the items of each unit (U,).

    Args:
        values: (I,).
        units: (I,), unit of each item, 0 to count - 1.
        count: U.
    """
    return np.bincount(units, weights=values, minlength=count).astype(np.float64)


def ratio(over: Floats, under: Floats, units: Integers, *, level: float = CONFIDENCE) -> Interval:
    """sum(over) / sum(under), with Fieller's bounds.

    Args:
        over: of each item (I,).
        under: of each item (I,), 0 or more; ones give a mean.
        units: (I,), any codes.
        level: share of such intervals that hold the truth, both sides together.

    Returns:
        The interval. It is unbounded where `under` can't be told from 0, and where there are fewer than two units.
    """
    _, units = np.unique(units, return_inverse=True)
    count = int(units.max()) + 1 if len(units) else 0
    a, b = sums(over, units, count), sums(under, units, count)
    total_a, total_b = float(a.sum()), float(b.sum())
    value = total_a / total_b if total_b > 0 else math.nan
    unknown = Interval(value=value, low=-math.inf, high=math.inf, error=math.inf, items=len(over), units=count)
    if count < 2 or total_b <= 0:
        return unknown
    q = float(student.ppf((1 + level) / 2, count - 1))
    (v_aa, v_ab), (_, v_bb) = np.cov(a, b) * count
    rest = max(v_aa - 2 * value * v_ab + value * value * v_bb, 0.0)
    error = math.sqrt(rest) / total_b
    # (total_a - r total_b)^2 <= q^2 (v_aa - 2 r v_ab + r^2 v_bb)
    square, linear, constant = total_b**2 - q * q * v_bb, total_a * total_b - q * q * v_ab, total_a**2 - q * q * v_aa
    if square <= 0:
        return unknown
    root = math.sqrt(max(linear * linear - square * constant, 0.0))
    if rest <= 1e-12 * v_bb:  # the same but for rounding
        root, linear = 0.0, value * square
    return Interval(
        value=value, low=(linear - root) / square, high=(linear + root) / square, error=error, items=len(over),
        units=count,
    )  # fmt: skip


def mean(values: Floats, units: Integers, *, level: float = CONFIDENCE) -> Interval:
    """Mean over items, with bounds over units; see `ratio`."""
    return ratio(values, np.ones(len(values)), units, level=level)


def bootstrap(
    statistic: Callable[[Floats], Floats], units: int, items: int, *, seed: int, level: float = CONFIDENCE
) -> Interval:
    """Percentile interval of a statistic over drawn units.

    Args:
        statistic: how often each unit is drawn (R, U) -> value of each sample (R,); NaN where a sample has none.
        units: U, at least 1.
        items: that they hold.
        seed: of the draws.
        level: share of such intervals that hold the truth.
    """
    random = np.random.default_rng(seed)
    draws = random.multinomial(units, np.full(units, 1 / units), size=SAMPLES).astype(np.float64)
    value = float(statistic(np.ones((1, units)))[0])
    found = statistic(draws)
    found = found[np.isfinite(found)]
    if units < 2 or len(found) < SAMPLES / 2:
        return Interval(value=value, low=-math.inf, high=math.inf, error=math.inf, items=items, units=units)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high), error=float(found.std()), items=items, units=units)


def weighted_quantile(values: Floats, weights: Floats, share: float) -> Floats:
    """Quantile of values that count as often as they are drawn.

    Args:
        values: (U,).
        weights: (R, U), 0 or more; no row all 0.
        share: 0 to 1.

    Returns:
        (R,), each the least value at which `share` of the weight is reached.
    """
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[:, order], axis=1)
    places = (reached < share * reached[:, -1:]).sum(axis=1)
    found: Floats = values[order][np.minimum(places, len(values) - 1)]
    return found


def units_needed(interval: Interval, margin: float, *, quantile: float) -> int:
    """Units with which an equal candidate's bound would stay within the margin, from the spread of these.

    Args:
        interval: what these units showed.
        margin: above 0.
        quantile: how many standard errors must fit into the margin.
    """
    if not math.isfinite(interval.error) or margin <= 0:
        return 0
    return math.ceil(interval.units * (quantile * interval.error / margin) ** 2)


def codes_of(names: Sequence[str]) -> Integers:
    """Codes of names, in order of appearance (I,)."""
    places: dict[str, int] = {}
    return np.array([places.setdefault(name, len(places)) for name in names], dtype=np.int64)
