"""How unlike anything before the latest run of values is: its distance to its nearest neighbours in the recent past.

Squared distances between the latest run and all earlier ones are updated by one value in, one value out (the recurrence
of the matrix profile: Zhu et al., "Matrix Profile II", 2016, equation 7, for distances without normalisation), so a
value costs the same whatever the run's length. They are summed afresh every `REFRESH` values, which bounds rounding.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

REFRESH: Final = 512


class Neighbours:
    """Nearest-neighbour distances of the runs of `length` values that end at the latest one.

    Args:
        length: of a run; at least 1.
        memory: how many values back a neighbour may end.
        step: every how many of the past runs is compared.
        nearest: over how many neighbours distances are averaged.
    """

    def __init__(self, *, length: int, memory: int, step: int = 1, nearest: int = 3) -> None:
        self.length = length
        self.memory = memory
        self.step = step
        self.nearest = nearest
        self._kept = memory + length + 1
        self._values = np.zeros(2 * self._kept)
        self._squares = np.zeros(2 * self._kept)  # distance of the latest run to the one that ends at each value
        self._count = 0
        self._learned = 0
        self._asked: tuple[int, float, NDArray[np.float64]] | None = None  # `_next` of this place and value

    def isolation(self, value: float) -> float:
        """Root-mean-square distance of the run that `value` would end to its nearest neighbours; 0 until it has any."""
        count, length = self._count, self.length
        if count < 2 * length + self.nearest * self.step:
            return 0.0
        squares = self._next(value)
        apart = squares[len(squares) - length :: -self.step]
        closest = np.partition(apart, self.nearest - 1)[: self.nearest].tolist()
        return sum(math.sqrt(max(one, 0.0) / length) for one in closest) / self.nearest

    def learn(self, value: float) -> None:
        """Take a value in."""
        if self._count == len(self._values):
            kept = self._kept
            self._values[:kept] = self._values[-kept:].copy()
            self._squares[:kept] = self._squares[-kept:].copy()
            self._count = kept
        count, length = self._count, self.length
        if count >= 2 * length and self._learned % REFRESH:
            squares = self._next(value)
            self._squares[count - len(squares) : count] = squares
            self._squares[count] = 0.0
            self._values[count] = value
            if self._first() == length:  # the very first run has none before it to be updated from
                apart = self._values[:length] - self._values[count - length + 1 : count + 1]
                self._squares[length - 1] = (apart * apart).sum()
        else:
            self._values[count] = value
            self._refresh(count)
        self._count += 1
        self._learned += 1

    def _first(self) -> int:
        """The earliest place that a neighbour may end at."""
        return max(self.length, self._count - self.memory)

    def _next(self, value: float) -> NDArray[np.float64]:
        """Squared distances of the run that `value` would end to those that end at `_first()` up to the latest."""
        if self._asked is not None and self._asked[:2] == (self._learned, value):
            return self._asked[2]
        count, length, first = self._count, self.length, self._first()
        gained = self._values[first:count] - value
        lost = self._values[first - length : count - length] - self._values[count - length]
        gained *= gained
        lost *= lost
        gained -= lost
        gained += self._squares[first - 1 : count - 1]
        self._asked = (self._learned, value, gained)
        return gained

    def _refresh(self, latest: int) -> None:
        """Sum the distances of the run that ends at `latest` from the values themselves."""
        length = self.length
        if latest < length:
            return
        runs = np.lib.stride_tricks.sliding_window_view(self._values[: latest + 1], length)
        apart = runs[:-1] - runs[-1]
        self._squares[length - 1 : latest] = (apart * apart).sum(axis=1)
        self._squares[latest] = 0.0

    def state(self) -> dict[str, Any]:
        """What `from_state` needs: JSON-able."""
        return {
            "length": self.length, "memory": self.memory, "step": self.step, "nearest": self.nearest,
            "values": self._values[max(self._count - self._kept, 0) : self._count].tolist(),
            "squares": self._squares[max(self._count - self.memory - 1, 0) : self._count].tolist(),
            "learned": self._learned,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Neighbours":
        """The neighbours that wrote this state."""
        one = cls(length=state["length"], memory=state["memory"], step=state["step"], nearest=state["nearest"])
        one._count = len(state["values"])
        one._values[: one._count] = state["values"]
        one._squares[one._count - len(state["squares"]) : one._count] = state["squares"]
        one._learned = state["learned"]
        return one
