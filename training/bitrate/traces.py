"""Throughput traces: what a network carried, and the files that hold it.

Units: time s, throughput kbit/s (1 kbit = 1000 bit). Row i of a trace holds the throughput between times i-1 and i.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput
from training.bitrate.columns import MAX_NUMBER, list_files, read_columns, read_text, refuse

Floats = NDArray[np.float64]
MIN_SPAN_S: Final = 1.0
MAX_SPAN_S: Final = 7 * 86_400.0
MAX_KBPS: Final = 1e9
MIN_MEAN_KBPS: Final = 1.0
MAHIMAHI_SPAN_S: Final = 0.5
PACKET_KBIT: Final = 12.0
MS_STEP: Final = 50.0
Format = Literal["auto", "pensieve", "mahimahi", "sabre", "kbps"]
_Columns = tuple[Floats, Floats, float | None]


@dataclass(frozen=True, eq=False)
class Trace:
    """What one network path carried over time.

    Attributes:
        name: of its file.
        times_s: strictly ascending, the first is 0 (T,).
        kbps: throughput of the span that ends at that time, 0 to MAX_KBPS; the first entry is never used (T,).
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
        if not ((self.kbps >= 0) & (self.kbps <= MAX_KBPS)).all():
            self._refuse((float(self.kbps.min()), float(self.kbps.max())), f"throughputs from 0 to {MAX_KBPS:g} kbit/s")
        if not MIN_SPAN_S <= self.times_s[-1] <= MAX_SPAN_S or self.mean_kbps < MIN_MEAN_KBPS:
            self._refuse(
                (float(self.times_s[-1]), self.mean_kbps),
                f"{MIN_SPAN_S:g} to {MAX_SPAN_S:g} s with a mean of at least {MIN_MEAN_KBPS:g} kbit/s",
            )

    def _refuse(self, got: object, expected: str) -> None:
        raise InvalidInput(field=self.name, got=got, expected=expected, next_step="Correct the trace or leave it out.")

    @property
    def mean_kbps(self) -> float:
        """Mean over time."""
        return float(self.kbps[1:] @ np.diff(self.times_s) / self.times_s[-1])


def read_trace(path: Path, format: Format = "auto") -> Trace:  # noqa: A002  (as the command line calls it)
    """Read one file.

    Args:
        path: the file; its name is the trace's.
        format:
            `pensieve`: lines of `time_s Mbit/s`; a line holds from the time of the line before it.
            `mahimahi`: a line for each packet of 1,500 bytes: the ms when it can be delivered; gathered into spans of
            about 0.5 s.
            `sabre`: JSON [{"duration_ms", "bandwidth_kbps", "latency_ms"}, ...]; latency becomes the trace's rtt_s.
            `kbps`: lines of `ms kbit/s`; where the first column always rises these are times as in `pensieve`,
            else durations.
            `auto`: JSON is sabre, one column mahimahi; two columns are kbps where the typical step between times (or
            duration) is 50 or more, else pensieve.

    Raises:
        InvalidInput: with file and line: it is not of that format.
        NotFound: there is no such file.
    """
    if format == "auto":
        format = _detect(path)  # noqa: A001
    times_s, kbps, rtt_s = _READERS[format](path)
    try:
        return Trace(path.name, times_s, kbps, rtt_s)
    except InvalidInput as error:
        raise refuse(path, 0, error.got, error.expected) from None


def read_traces(folder: Path, format: Format = "auto") -> list[Trace]:  # noqa: A002
    """Read all files of a folder, in the order of their names; see `read_trace`."""
    return [read_trace(path, format) for path in list_files(folder)]


def _detect(path: Path) -> Format:
    if read_text(path).lstrip()[:1] in ("[", "{"):
        return "sabre"
    rows, _ = read_columns(path)
    if rows.shape[1] == 1:
        return "mahimahi"
    if rows.shape[1] != 2:
        raise refuse(path, 1, f"{rows.shape[1]} columns", "one column (mahimahi) or two (pensieve, kbps)")
    steps = np.diff(rows[:, 0])
    typical = np.median(steps if (steps > 0).all() and len(steps) else rows[:, 0])
    return "kbps" if typical >= MS_STEP else "pensieve"


def _rise(path: Path, times: Floats, lines: list[int]) -> None:
    wrong = np.flatnonzero(np.diff(times) <= 0)
    if len(wrong):
        raise refuse(path, lines[wrong[0] + 1], times[wrong[0] + 1], f"a time after {times[wrong[0]]}")


def _read_pensieve(path: Path) -> _Columns:
    rows, lines = read_columns(path, 2)
    _rise(path, rows[:, 0], lines)
    return rows[:, 0] - rows[0, 0], rows[:, 1] * 1000, None


def _read_kbps(path: Path) -> _Columns:
    rows, lines = read_columns(path, 2)
    times_s, kbps = rows[:, 0] / 1000, rows[:, 1]
    if len(rows) > 1 and (np.diff(times_s) > 0).all():
        return times_s - times_s[0], kbps, None
    if (times_s <= 0).any():
        raise refuse(path, lines[int(np.argmin(times_s))], 0.0, "a duration above 0 ms")
    return np.append(0.0, np.cumsum(times_s)), np.append(kbps[0], kbps), None


def _read_mahimahi(path: Path) -> _Columns:
    rows, lines = read_columns(path, 1)
    due_s = rows[:, 0] / 1000
    wrong = np.flatnonzero(np.diff(due_s) < 0)
    if len(wrong):
        raise refuse(path, lines[wrong[0] + 1], rows[wrong[0] + 1, 0], "a time not before the line above")
    if not MIN_SPAN_S <= due_s[-1] <= MAX_SPAN_S:
        raise refuse(path, lines[-1], rows[-1, 0], f"a last packet at {MIN_SPAN_S:g} to {MAX_SPAN_S:g} s")
    packets, edges_s = np.histogram(due_s, max(1, round(due_s[-1] / MAHIMAHI_SPAN_S)), (0.0, due_s[-1]))
    kbps = packets * PACKET_KBIT / np.diff(edges_s)
    return edges_s, np.append(kbps[0], kbps), None


def _read_sabre(path: Path) -> _Columns:
    try:
        spans = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise refuse(path, getattr(error, "lineno", 0), str(error), "JSON") from None
    if not isinstance(spans, list) or not spans:
        raise refuse(path, 0, spans, "a list of spans")
    rows = np.zeros((len(spans), 3))
    for i, span in enumerate(spans):
        try:
            rows[i] = span["duration_ms"], span["bandwidth_kbps"], span.get("latency_ms", 0)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise refuse(path, 0, span, f"duration_ms, bandwidth_kbps and latency_ms in span {i + 1}") from None
        if not ((rows[i] >= 0) & (rows[i] <= MAX_NUMBER)).all() or rows[i, 0] == 0:
            raise refuse(path, 0, span, f"numbers from 0 to {MAX_NUMBER:g} and a duration above 0 in span {i + 1}")
    durations_s, kbps, latencies_s = rows[:, 0] / 1000, rows[:, 1], rows[:, 2] / 1000
    rtt_s = float(durations_s @ latencies_s / durations_s.sum()) if latencies_s.any() else None
    return np.append(0.0, np.cumsum(durations_s)), np.append(kbps[0], kbps), rtt_s


_READERS: Final[dict[Format, Callable[[Path], _Columns]]] = {
    "pensieve": _read_pensieve,
    "mahimahi": _read_mahimahi,
    "sabre": _read_sabre,
    "kbps": _read_kbps,
}
