"""What the two detectors of counts share: sums over several spans, more spread than chance, shifts that have lasted.

Units: windows. A window is whatever length the caller counts over.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

SPANS: Final = (1, 3, 12, 36)
"""Windows that are summed: at 10 s a window, from ten seconds to six minutes."""
CAP: Final = 25.0
"""Of a squared residual, over the variance that is believed, so that one wild window doesn't blunt the detector."""
ANOMALOUS_CAP: Final = 4.0
"""The same for windows that are called anomalous: learned so slowly that an outage isn't taken for noise at once."""
SPREAD_SPANS: Final = 30
"""Of a span's spread: memory in its own lengths."""
LEAST_SIZE: Final = 3.0
"""Added to the mean size of sums in a ratio's spread: windows of one or two trials can't tell how they vary."""
TRIED_SPANS: Final = 4
"""Lengths of a span that must have been seen before it is judged."""
AGREES: Final = (1.0, 1.0, 0.5, 0.05)
"""A span speaks only if the next shorter one is less probable than this: what is over is over."""


class Spread:
    """How much more counts vary than chance, for sums over one span: the factor on the squared size of a sum.

    Variance of a sum with plain variance v is v (1 + value * size): the overdispersion of a negative binomial (size:
    the mean), the intra-class correlation of a beta-binomial (size: trials - 1). By moments, forgetting.

    Args:
        memory: how many sums count.
        least_size: added to the mean size, above 0 where small sums tell nothing.
    """

    def __init__(self, memory: int, least_size: float = 0.0) -> None:
        self.memory = memory
        self.least_size = least_size
        self.count = 0
        self._excess = 0.0
        self._size = 0.0

    @property
    def value(self) -> float:
        """At least 0; 0 where there is no more spread than chance, and before the first sum."""
        size = self._size + self.least_size
        return max(self._excess / size, 0.0) if size > 0.0 else 0.0

    def learn(self, squared_residual: float, size: float, *, anomalous: bool, trusted: bool) -> None:
        """Take one sum in.

        Args:
            squared_residual: its squared distance from the expected sum, over its plain variance.
            size: what the spread grows with; at least 0.
            anomalous: whether its last window was called so.
            trusted: whether the value so far may bound what is learned: false while it is still being found.
        """
        self.count += 1
        weight = 1.0 / min(self.count, self.memory)
        if trusted:
            most = (ANOMALOUS_CAP if anomalous else CAP) * (1.0 + self.value * size)
            squared_residual = min(squared_residual, most)
        self._excess += weight * (squared_residual - 1.0 - self._excess)
        self._size += weight * (size - self._size)

    def state(self) -> dict[str, Any]:
        """What `from_state` needs: JSON-able."""
        return {
            "memory": self.memory, "least_size": self.least_size, "count": self.count, "excess": self._excess,
            "size": self._size,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Spread":
        """The spread that wrote this state."""
        spread = cls(state["memory"], state["least_size"])
        spread.count, spread._excess, spread._size = state["count"], state["excess"], state["size"]
        return spread


def spreads(half_life: int, least_size: float = 0.0) -> list[Spread]:
    """One spread for each of SPANS."""
    return [Spread(max(half_life, SPREAD_SPANS * span), least_size) for span in SPANS]


class Recent:
    """The latest windows, not yet part of the baseline, with sums over each of SPANS.

    A window is a row of numbers (NaN: unknown) and whether it was called anomalous. Baselines learn what leaves here,
    so an anomaly is judged against a past that doesn't hold its own beginning.

    Args:
        width: numbers in a row.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._rows: deque[tuple[tuple[float, ...], bool]] = deque()

    def sums(self, row: Sequence[float]) -> list[tuple[float, ...] | None]:
        """Sums of the rows of each span that ends with `row`; None where too few windows were seen."""
        totals = list(row)
        found: list[tuple[float, ...] | None] = []
        taken = 1
        backwards = reversed(self._rows)
        for span in SPANS:
            if span > len(self._rows) + 1:
                found.append(None)
                continue
            for _ in range(span - taken):
                for place, number in enumerate(next(backwards)[0]):
                    totals[place] += number
            taken = span
            found.append(tuple(totals))
        return found

    def push(self, row: Sequence[float], *, anomalous: bool) -> tuple[tuple[float, ...], bool] | None:
        """Take a window in; the one that leaves, if any."""
        self._rows.append((tuple(row), anomalous))
        return self._rows.popleft() if len(self._rows) > SPANS[-1] else None

    def clear(self) -> None:
        """Forget all windows."""
        self._rows.clear()

    def state(self) -> list[Any]:
        """What `from_state` needs: JSON-able."""
        known = ([None if math.isnan(number) else number for number in row] for row, _ in self._rows)
        return [[row, anomalous] for row, (_, anomalous) in zip(known, self._rows, strict=True)]

    @classmethod
    def from_state(cls, width: int, state: Sequence[Any]) -> "Recent":
        """The windows that wrote this state."""
        recent = cls(width)
        for row, anomalous in state:
            recent._rows.append((tuple(math.nan if number is None else number for number in row), anomalous))
        return recent


class Shift:
    """Windows that were called anomalous, kept aside from the baseline until they are over or are the new normal.

    Args:
        width: numbers in a window's row.
        adopt_after: so many of them are the new normal.
    """

    def __init__(self, width: int, adopt_after: int) -> None:
        self.adopt_after = adopt_after
        self._sums = [0.0] * width
        self._windows = 0
        self._calm = 0

    def learn(self, row: Sequence[float], *, anomalous: bool) -> tuple[float, ...] | None:
        """Take a window in that has left `Recent`.

        Returns:
            Sums of the rows of the shift, once it has lasted long enough to be adopted; else None.
        """
        if not anomalous:
            self._calm += 1
            if self._calm >= SPANS[-1]:
                self._forget()
            return None
        self._calm = 0
        self._windows += 1
        for place, number in enumerate(row):
            self._sums[place] += number
        if self._windows < self.adopt_after:
            return None
        adopted = tuple(self._sums)
        self._forget()
        return adopted

    def _forget(self) -> None:
        self._sums = [0.0] * len(self._sums)
        self._windows = self._calm = 0

    def state(self) -> dict[str, Any]:
        """What `from_state` needs: JSON-able."""
        return {
            "adopt_after": self.adopt_after, "sums": list(self._sums), "windows": self._windows, "calm": self._calm
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Shift":
        """The shift that wrote this state."""
        shift = cls(len(state["sums"]), state["adopt_after"])
        shift._sums, shift._windows, shift._calm = list(state["sums"]), state["windows"], state["calm"]
        return shift


def combined(tails: Sequence[float | None]) -> float:
    """One probability from those of the spans, shortest first, corrected for having looked at several (Bonferroni)."""
    judged = [tail for tail in tails if tail is not None]
    if not judged:
        return 1.0
    allowed = [judged[0]]
    allowed += [tail for tail, shorter, most in zip(judged[1:], judged, AGREES[1:], strict=False) if shorter <= most]
    return min(1.0, len(judged) * min(allowed))


def sided(tail: Callable[..., float], direction: str) -> float:
    """The tail probability that a direction asks for: more, fewer or both.

    Args:
        tail: takes `upper`, which tail, and gives its probability.
        direction: one of DIRECTIONS.
    """
    if direction == "more":
        return tail(upper=True)
    return tail(upper=False) if direction == "fewer" else min(1.0, 2.0 * min(tail(upper=True), tail(upper=False)))


DIRECTIONS: Final = ("more", "fewer", "both")
