"""Histograms of any numbers that can be added up: buckets of one relative width, the same everywhere.

Charles Masson, Jee E. Rim and Homin K. Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
guarantees", VLDB 2019, sections 2.1 and 2.2. A bucket holds the numbers from GROWTH**n up to GROWTH**(n + 1), of either
sign; zero has its own. Counts of the same numbers are the same whoever counted which of them, and a quantile is off by
at most ERROR of itself.
"""

import math
from collections.abc import Iterable, Mapping
from math import log
from typing import Final

GROWTH: Final = 1.05
"""Upper end of a bucket over its lower."""
ERROR: Final = (GROWTH - 1.0) / (GROWTH + 1.0)
"""Largest relative error of a quantile: 2.4 %."""

_PER_LOG: Final = 1.0 / math.log(GROWTH)
_MIDDLE: Final = 1000
_LAST: Final = 2 * _MIDDLE
"""Codes reach from -_LAST to _LAST: numbers of 1e-21 to 1e21, and beyond them the outermost."""

Histogram = dict[int, int]
"""Code of a bucket -> numbers in it. Codes are in the order of the numbers: 0 for zero, negative for negative ones."""


def code_of(value: float) -> int:
    """The bucket of a number.

    Raises:
        ValueError: it is NaN.
        OverflowError: it is infinite.
    """
    if value > 0.0:
        code = int(log(value) * _PER_LOG + _MIDDLE)  # what is cut off is what makes it a floor
        return code if 1 <= code <= _LAST else min(max(code, 1), _LAST)
    if value < 0.0:
        return -code_of(-value)
    if value == 0.0:
        return 0
    raise ValueError(f"value {value}: expected a number; leave out what is none")


def value_of(code: int) -> float:
    """The number that all in a bucket are within ERROR of."""
    if not code:
        return 0.0
    return math.copysign(GROWTH ** (abs(code) - _MIDDLE) * 2.0 * GROWTH / (GROWTH + 1.0), code)


def add(histogram: Histogram, value: float) -> None:
    """Count a number; what it raises is as of `code_of`."""
    code = int(log(value) * _PER_LOG + _MIDDLE) if 1e-20 < value < 1e20 else code_of(value)  # spares the usual a call
    try:
        histogram[code] += 1
    except KeyError:
        histogram[code] = 1


def merge(histogram: Histogram, other: Mapping[int, int]) -> None:
    """Add another one's counts to a histogram."""
    for code, count in other.items():
        histogram[code] = histogram.get(code, 0) + count


def size(histogram: Mapping[int, int]) -> int:
    """Numbers that were counted."""
    return sum(histogram.values())


def quantile(histogram: Mapping[int, int], share: float) -> float:
    """The number below which a share of all lie, off by at most ERROR of itself.

    Args:
        histogram: of at least one number.
        share: 0 to 1; of n numbers in order, it asks for the one at place floor(share (n - 1)).

    Raises:
        ValueError: nothing was counted.
    """
    place = math.floor(share * (size(histogram) - 1))
    for code in sorted(histogram):
        place -= histogram[code]
        if place < 0:
            return value_of(code)
    raise ValueError("a quantile of nothing: got an empty histogram, expected at least one number; count some first")


def beyond(histogram: Mapping[int, int], value: float) -> tuple[int, int]:
    """Numbers in buckets below, and above, the bucket of a number."""
    edge = code_of(value)
    below = sum(count for code, count in histogram.items() if code < edge)
    return below, sum(count for code, count in histogram.items() if code > edge)


def dump(histogram: Mapping[int, int]) -> list[list[int]]:
    """Pairs of code and count in order, as JSON takes them."""
    return [[code, count] for code, count in sorted(histogram.items())]


def load(pairs: Iterable[Iterable[int]]) -> Histogram:
    """The reverse of `dump`.

    Raises:
        ValueError: these are no pairs of whole numbers with counts above 0.
    """
    histogram: Histogram = {}
    for pair in pairs:
        code, count = pair
        if type(code) is not int or type(count) is not int or count < 1 or abs(code) > _LAST:
            raise ValueError(f"pair {[code, count]} of a histogram: expected a code up to {_LAST} and a count above 0")
        histogram[code] = histogram.get(code, 0) + count
    return histogram
