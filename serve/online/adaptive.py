"""A mean that is compared with its own past: ADWIN over a series of numbers, each the mean of as many things.

Albert Bifet and Ricard Gavaldà, "Learning from time-changing data with adaptive windowing", SDM 2007; River's
implementation. Its bound (equation 3.1) takes numbers from 0 to 1, and the fewer of that range they fill the longer it
waits: so they are brought to it first: SPREADS deviations either way of the mean, as the first FIRST numbers have them.
River is imported when the first numbers come: it costs a second or two and 106 MB.
"""

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from river.drift import ADWIN

DELTA: Final = 1e-3
"""Of each comparison; what that makes of false alarms a day: docs/online.md."""

FIRST: Final = 30
"""Numbers without which nothing is judged."""
SPREADS: Final = 2.5

MOST: Final = 2_000
"""Numbers that are remembered; then the detector begins anew with the newer half."""

RECOVERED: Final = 0.95
"""Of what it was before the fall."""
LONGEST_MS: Final = 6 * 3_600_000
"""A fall that lasts is what is usual, after so long."""


class AdaptiveMean:
    """Tells when the mean of a series falls.

    Attributes:
        since_ts: when the fall that goes on was noticed, UTC milliseconds; None: none goes on.
        before: the mean before it; None: none goes on.
    """

    def __init__(self) -> None:
        self._values: list[float] = []
        self._adwin: ADWIN | None = None
        self._middle, self._spread = 0.0, 0.0
        self.since_ts: int | None = None
        self.before: float | None = None

    @property
    def mean(self) -> float | None:
        """Mean since the last change; None where nothing was seen."""
        return statistics.fmean(self._values[-self.count :]) if self._values else None

    @property
    def count(self) -> int:
        """Numbers since the last change, of those that are remembered."""
        seen = len(self._values) if self._adwin is None else int(self._adwin.width)
        return min(max(seen, 1), len(self._values))

    def see(self, value: float, ts: int) -> None:
        """Take the next number in.

        Args:
            value: 0 to 1.
            ts: when it was so, UTC milliseconds.
        """
        before = self.mean
        if len(self._values) >= MOST:
            self._restart(self._values[-MOST // 2 :])
        self._values.append(value)
        changed = self._feed(len(self._values) - 1)
        now = self.mean or 0.0
        if changed and before is not None and now < before:
            self.since_ts = self.since_ts or ts
            self.before = max(before, self.before or 0.0)
        elif self.since_ts is not None and self.before is not None:
            recovered = self.count >= FIRST and now >= RECOVERED * self.before
            if recovered or ts - self.since_ts > LONGEST_MS:
                self.since_ts = self.before = None

    def _restart(self, values: list[float]) -> None:
        self._adwin, self._values = None, values
        for place in range(len(values)):
            self._feed(place)

    def _feed(self, place: int) -> bool:
        """Give the detector the number at a place; whether the mean has changed."""
        if place + 1 < FIRST:
            return False
        if self._adwin is None:
            from river.drift import ADWIN  # noqa: PLC0415

            first = self._values[:FIRST]
            self._middle, self._spread = statistics.fmean(first), max(statistics.pstdev(first), 1e-3)
            self._adwin = ADWIN(delta=DELTA, clock=1)  # type: ignore[no-untyped-call]
            for value in first[:-1]:
                self._adwin.update(self._scaled(value))  # type: ignore[no-untyped-call]
        self._adwin.update(self._scaled(self._values[place]))  # type: ignore[no-untyped-call]
        return bool(self._adwin.drift_detected)

    def _scaled(self, value: float) -> float:
        return min(max(0.5 + (value - self._middle) / (2 * SPREADS * self._spread), 0.0), 1.0)

    def state(self) -> dict[str, Any]:
        """A checkpoint, JSON-able: the numbers, from which the same detector comes again."""
        return {"values": self._values, "since_ts": self.since_ts, "before": self.before}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The reverse of `state`."""
        series = cls()
        series._restart([float(value) for value in state["values"]])
        series.since_ts, series.before = state["since_ts"], state["before"]
        return series
