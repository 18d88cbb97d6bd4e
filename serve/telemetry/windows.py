"""Windows of time: what was seen of sessions in ten seconds, by every combination of dimensions that there was."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from serve.telemetry.reports import DIMENSIONS

WINDOW_MS: Final = 10_000

METRICS: Final = (
    "start_failures", "start_timeouts", "slow_starts", "stalls", "errors", "failures", "low_bitrate", "silence",
)  # fmt: skip
"""What windows count, each as (total, bad); lengths of time are those of serve.telemetry.sessions:

start_failures: starts of which the player told the end; those that ended without a picture
start_timeouts: starts that succeeded, or of which nothing was heard for START_TIMEOUT_MS; the latter
slow_starts: starts that succeeded; those that took longer than SLOW_START_MS
stalls: sessions that played or stalled in the window; those that stalled, once in ONCE_MS
errors: sessions that were there in the window; those that told of an error that playback survived, once in ONCE_MS
failures: started sessions that were there in the window; those that ended in an error
low_bitrate: sessions that played, not low in the window before; those that fell below LOW_BITRATE of their offer
silence: sessions that were due to report; those that did not, with no farewell
"""

Leaf = tuple[str, ...]
"""A value of each of DIMENSIONS, empty where it is unknown."""

COLUMN: Final = {metric: 2 * place for place, metric in enumerate(METRICS)}
"""Of totals; that of the bad ones is the next."""

ATTEMPTS: Final = 2 * len(METRICS)
"""Column of the number of sessions that began."""

REPORTS: Final = ATTEMPTS + 1
"""Column of the number of reports that came."""

WIDTH: Final = REPORTS + 1


@dataclass(slots=True)
class Window:
    """What one window saw of some sessions.

    Attributes:
        start_ms: when it began; a multiple of WINDOW_MS.
        counts: leaf -> total and bad of each of METRICS in turn, then sessions that began, then reports.
    """

    start_ms: int
    counts: dict[Leaf, list[int]] = field(default_factory=dict)

    def row(self, leaf: Leaf) -> list[int]:
        """The counts of a leaf, to be added to."""
        row = self.counts.get(leaf)
        if row is None:
            row = self.counts[leaf] = [0] * WIDTH
        return row

    def add(self, leaf: Leaf, metric: str, *, bad: bool) -> None:
        """Count one for a metric."""
        row, column = self.row(leaf), COLUMN[metric]
        row[column] += 1
        row[column + 1] += bad

    def table(self) -> NDArray[np.int64]:
        """The counts as an array (leaves, WIDTH), in the order of `counts`."""
        numbers = np.fromiter(chain.from_iterable(self.counts.values()), np.int64, len(self.counts) * WIDTH)
        return numbers.reshape(-1, WIDTH)

    def merge(self, other: Self) -> None:
        """Add what another window of the same time saw of other sessions."""
        for leaf, counts in other.counts.items():
            row = self.row(leaf)
            for column, count in enumerate(counts):
                row[column] += count

    def dump(self) -> list[Any]:
        """As JSON takes it."""
        return [self.start_ms, [[*leaf, *row] for leaf, row in self.counts.items()]]

    @classmethod
    def load(cls, dumped: Sequence[Any]) -> Self:
        """The reverse of `dump`."""
        width = len(DIMENSIONS)
        return cls(dumped[0], {tuple(row[:width]): list(row[width:]) for row in dumped[1]})
