"""Robust location and spread of the recent past, exact over a sliding window."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

NORMAL_IQR: Final = 1.349
"""Distance between the quartiles of a standard normal."""


class RecentValues:
    """The last values, in order of time and of size.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._by_time: deque[float] = deque()
        self._by_size: list[float] = []

    def __len__(self) -> int:
        return len(self._by_size)

    def learn(self, value: float) -> None:
        """Take a value in; the oldest goes once `size` are held."""
        if len(self._by_time) == self.size:
            del self._by_size[bisect_left(self._by_size, self._by_time.popleft())]
        self._by_time.append(value)
        insort(self._by_size, value)

    def quantile(self, share: float) -> float:
        """The value that `share` of those held are below, interpolated.

        Raises:
            IndexError: none is held.
        """
        place = share * (len(self._by_size) - 1)
        below = int(place)
        low = self._by_size[below]
        return low if place == below else low + (place - below) * (self._by_size[below + 1] - low)

    def location_and_spread(self) -> tuple[float, float]:
        """Median, and a standard deviation from the quartiles: half of the values may be wild without moving them."""
        return self.quantile(0.5), (self.quantile(0.75) - self.quantile(0.25)) / NORMAL_IQR

    def isolation(self, value: float, neighbours: int) -> float:
        """Mean distance from `value` to its nearest `neighbours` among those held; 0 if fewer are held."""
        ordered = self._by_size
        if len(ordered) < neighbours:
            return 0.0
        right = bisect_left(ordered, value)
        left = right - 1
        total = 0.0
        for _ in range(neighbours):
            below = value - ordered[left] if left >= 0 else float("inf")
            above = ordered[right] - value if right < len(ordered) else float("inf")
            if below <= above:
                total += below
                left -= 1
            else:
                total += above
                right += 1
        return total / neighbours

    def state(self) -> dict[str, Any]:
        """What `from_state` needs: JSON-able."""
        return {"size": self.size, "values": list(self._by_time)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "RecentValues":
        """The window that wrote this state."""
        recent = cls(state["size"])
        recent._by_time.extend(state["values"])
        recent._by_size = sorted(state["values"])
        return recent


class Spread:
    """Mean and standard deviation that forget: the first values count evenly, later ones by their age.

    River's EWMean and EWVar are the same with a fixed weight; their state can only be pickled.

    Args:
        memory: how many values count.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.count = 0
        self.mean = 0.0
        self._variance = 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation; 0 before the second value."""
        return float(self._variance**0.5)

    def learn(self, value: float) -> None:
        """Take a value in."""
        self.count += 1
        weight = 1.0 / min(self.count, self.memory)
        away = value - self.mean
        self.mean += weight * away
        self._variance = (1.0 - weight) * (self._variance + weight * away * away)

    def state(self) -> dict[str, Any]:
        """What `from_state` needs: JSON-able."""
        return {"memory": self.memory, "count": self.count, "mean": self.mean, "variance": self._variance}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Spread":
        """The spread that wrote this state."""
        spread = cls(state["memory"])
        spread.count, spread.mean, spread._variance = state["count"], state["mean"], state["variance"]
        return spread
