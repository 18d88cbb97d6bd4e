"""What is measured, counted: values beyond a threshold that is learned as a quantile, judged as a share of all.

What is judged is the share of values beyond it and not their mean alone: a spread that doubles shows as both more high
and more low ones, one that collapses as fewer of both.
"""

from collections.abc import Mapping
from typing import Any, Final

from serve.histograms import Histogram, beyond, dump, load, merge, quantile, size
from serve.watchtower.episodes import Series
from serve.watchtower.health import Reading

SLOW: Final = "slow"
SCORE_HIGH: Final = "score_high"
SCORE_LOW: Final = "score_low"

SLOW_QUANTILE: Final = 0.95
SLACK: Final = 1.25
"""A duration is slow above its learned quantile times this: what is 25 % slower on a busy machine is no alarm."""
SCORE_QUANTILE: Final = 0.9
LEARN_WINDOWS: Final = 12
LEARN_VALUES: Final = 100
"""A threshold is learned from at least so many windows with values, and so many values."""
_USELESS: Final = 0.4
"""Above this usual share of values beyond it, a threshold is learned anew."""


class Threshold:
    """One end of what is usual: the series of values beyond it.

    Args:
        signal: SLOW, SCORE_HIGH or SCORE_LOW.
    """

    def __init__(self, signal: str) -> None:
        self.signal = signal
        self._begin()

    def _begin(self) -> None:
        self.series = Series(self.signal, "more" if self.signal == SLOW else "both")
        self.value: float | None = None
        self._learned: Histogram = {}
        self._windows = 0

    def see(self, values: Histogram, at_ms: int) -> bool | None:
        """Take a window in: learn from it, or judge it. Arguments and what is returned are as of Series.see."""
        if self.value is None:
            self._learn(values)
            return None
        below, above = beyond(values, self.value)
        changed = self.series.see(below if self.signal == SCORE_LOW else above, size(values), at_ms)
        if self.series.since_ms is None and self.series.judged and self.series.detector.share > _USELESS:
            self._begin()
        return changed

    def _learn(self, values: Histogram) -> None:
        if not values:
            return
        merge(self._learned, values)
        self._windows += 1
        if self._windows >= LEARN_WINDOWS and size(self._learned) >= LEARN_VALUES:
            share = {SLOW: SLOW_QUANTILE, SCORE_HIGH: SCORE_QUANTILE, SCORE_LOW: 1.0 - SCORE_QUANTILE}[self.signal]
            self.value = quantile(self._learned, share) * (SLACK if self.signal == SLOW else 1.0)
            self._learned = {}

    def heir(self) -> "Threshold":
        """One with the same value that is judged by this one's past and has none of its own."""
        heir = Threshold(self.signal)
        heir.value, heir.series = self.value, self.series.heir()
        return heir

    def reading(self) -> Reading:
        """Counts before and now."""
        return self.series.reading(self.value)

    def state(self) -> dict[str, Any]:
        """What `from_state` needs: JSON-able."""
        return {
            "series": self.series.state(), "value": self.value, "learned": dump(self._learned), "windows": self._windows
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Threshold":
        """The threshold that wrote this state."""
        threshold = cls(state["series"]["signal"])
        threshold.series, threshold.value = Series.from_state(state["series"]), state["value"]
        threshold._learned, threshold._windows = load(state["learned"]), state["windows"]
        return threshold
