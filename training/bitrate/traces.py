"""Throughput traces: what a network carried, and the files that hold it.

Units: time s, throughput kbit/s (1 kbit = 1000 bit). Row i of a trace holds the throughput between times i-1 and i.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput, NotFound

Floats = NDArray[np.float64]
MIN_SPAN_S: Final = 1.0
MIN_MEAN_KBPS: Final = 1.0


@dataclass(frozen=True, eq=False)
class Trace:
    """What one network path carried over time.

    Attributes:
        name: of its file.
        times_s: strictly ascending, the first is 0 (T,).
        kbps: throughput of the span that ends at that time, at least 0; the first entry is never used (T,).
        rtt_s: mean round trip, where the format tells it.
    """

    name: str
    times_s: Floats
    kbps: Floats
    rtt_s: float | None = None

    def __post_init__(self) -> None:
        if self.times_s.shape != self.kbps.shape or self.times_s.ndim != 1 or len(self.times_s) < 2:
            self._refuse(self.times_s.shape, "two equally long columns of at least 2 rows")
        if not (np.isfinite(self.times_s).all() and self.times_s[0] == 0 and (np.diff(self.times_s) > 0).all()):
            self._refuse(self.times_s[:5].tolist(), "times that start at 0 and rise")
        if not (np.isfinite(self.kbps).all() and (self.kbps >= 0).all()):
            self._refuse(float(self.kbps.min()), "throughputs of at least 0")
        if self.times_s[-1] < MIN_SPAN_S or self.mean_kbps < MIN_MEAN_KBPS:
            self._refuse(
                (float(self.times_s[-1]), self.mean_kbps),
                f"at least {MIN_SPAN_S:g} s with a mean of at least {MIN_MEAN_KBPS:g} kbit/s",
            )

    def _refuse(self, got: object, expected: str) -> None:
        raise InvalidInput(field=self.name, got=got, expected=expected, next_step="Correct the trace or leave it out.")

    @property
    def mean_kbps(self) -> float:
        """Mean over time."""
        return float(self.kbps[1:] @ np.diff(self.times_s) / self.times_s[-1])


def read_trace(path: Path, format: Literal["auto", "pensieve"] = "auto") -> Trace:  # noqa: A002
    """Read one file."""
    rows = np.loadtxt(path, ndmin=2)
    return Trace(path.name, rows[:, 0] - rows[0, 0], rows[:, 1] * 1000)


def read_traces(folder: Path, format: Literal["auto", "pensieve"] = "auto") -> list[Trace]:  # noqa: A002
    """Read all files of a folder, by name."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    if not paths:
        raise NotFound(field="traces", got=str(folder), expected="trace files", next_step="Name a folder of traces.")
    return [read_trace(path, format) for path in paths]
