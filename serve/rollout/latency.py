"""What is slow in a rollout: above what the champion's slowest answers took in the windows before.

The threshold is known before the window that it judges, so whether an answer is slow doesn't depend on its own arm, and
slow answers can be counted as any event is (serve.rollout.sequential). A window's own quantile could not do that.
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from serve.histograms import Histogram, dump, load, merge, quantile, size
from serve.watchtower.state import checked, stamped

SHARE: Final = 0.99
"""Of the champion's answers are not slow."""
VERY: Final = 2.0
"""Times the threshold is very slow: a p99 that has doubled has at least 1 % of them, whatever became of the rest."""
LEAST: Final = 2000
"""Answers before there is a threshold: 20 above it."""

_KIND: Final = "slow"
_VERSION: Final = 1


class SlowThreshold:
    """The champion's p99 of the last windows.

    Args:
        windows: how many are remembered; of any length.
    """

    def __init__(self, windows: int = 30) -> None:
        self._windows: deque[Histogram] = deque(maxlen=windows)
        self._value: float | None = None

    @property
    def slow_s(self) -> float | None:
        """Seconds above which an answer is slow; None until LEAST answers were seen."""
        return self._value

    @property
    def very_slow_s(self) -> float | None:
        """Seconds above which an answer is very slow."""
        return None if self._value is None else VERY * self._value

    def see(self, champion: Mapping[int, int]) -> None:
        """Take in the champion's answers of a window, once they are judged.

        Args:
            champion: seconds, a histogram as serve.histograms has it.
        """
        self._windows.append(dict(champion))
        together: Histogram = {}
        for window in self._windows:
            merge(together, window)
        if size(together) >= LEAST:
            self._value = quantile(together, SHARE)

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned."""
        return stamped(_KIND, _VERSION, {
            "windows": [dump(window) for window in self._windows], "most": self._windows.maxlen, "value": self._value,
        })  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "SlowThreshold":
        """The threshold that wrote this checkpoint.

        Raises:
            InvalidInput: something else, or another version, wrote it.
            ValueError: it holds no histograms.
        """
        state = checked(state, _KIND, _VERSION)
        threshold = cls(state["most"])
        threshold._windows.extend(load(window) for window in state["windows"])
        threshold._value = state["value"]
        return threshold


def latency_bounds(times_s: Mapping[int, int], alpha: float = 0.05) -> dict[str, list[float | None]]:
    """Bounds of an arm's p50 and p99 that hold at every look, as a rollout's status tells them.

    Args:
        times_s: of all its answers in the stage, as serve.histograms has them.
        alpha: probability that a true one is ever outside, each by itself.

    Returns:
        Quantile -> lower and upper bound, seconds; None where nothing bounds it yet.
    """
    found = {}
    for name, share in (("p50", 0.5), ("p99", SHARE)):
        bounds = quantile_bounds(times_s, share, alpha)
        found[name] = [round(bound, 6) if math.isfinite(bound) else None for bound in bounds]
    return found


def quantile_bounds(histogram: Mapping[int, int], share: float, alpha: float) -> tuple[float, float]:
    """A confidence sequence of a quantile: with probability 1 - alpha it holds the true one at every look.

    S. R. Howard and A. Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm
    identification", Bernoulli 28, 2022, theorem 1 (the bound in closed form). For independent values: of answers, which
    come in bursts, it is told as a description and decides nothing. For the difference of two arms take alpha / 2 each.

    Args:
        histogram: of all values so far, as serve.histograms has it.
        share: which quantile, 0 to 1.
        alpha: probability that the true one is ever outside.

    Returns:
        Lower and upper bound, each off by the histogram's error; -inf and inf where nothing bounds it.
    """
    count = size(histogram)
    if not count:
        return -math.inf, math.inf
    doubt = (1.4 * math.log(max(math.log(2.1 * count), 1.0)) + math.log(10.0 / alpha)) / count
    margin = 1.5 * math.sqrt(share * (1.0 - share) * doubt) + 0.8 * doubt
    low = quantile(histogram, share - margin) if share - margin > 0.0 else -math.inf
    high = quantile(histogram, share + margin) if share + margin < 1.0 else math.inf
    return low, high
