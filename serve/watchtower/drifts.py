"""Trouble that grows too slowly, or hurts too few, for a window to show: sums over minutes to more than an hour.

What a session does once for all (it fails to start, it dies) is counted in steps of two minutes and judged against
what was so before the last 72 minutes, in its share and in its spread: else a rise that takes an hour is learned as it
comes. Metrics that one viewer is bad in again and again, such as a low bitrate, are no use here: their counts are not
independent, and a few patient viewers would look like an outage.
"""

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from serve.telemetry.windows import METRICS
from serve.watchtower.alarms import Alarm, Slice
from serve.watchtower.bank import RatioBank
from serve.watchtower.rates import SPANS
from serve.watchtower.settings import SENSITIVE

DRIFTING: Final = ("start_failures", "failures")
"""Metrics that are judged."""
STEP: Final = 12
"""Windows that are added up: two minutes."""
LONGEST: Final = STEP * SPANS[-1]
"""Windows of the longest sum."""

_COLUMNS: Final = [2 * METRICS.index(metric) + place for metric in DRIFTING for place in (0, 1)]


class DriftWatch:
    """Shares of slices that rise slowly. Slices are known by their rows, 0 and up."""

    def __init__(self) -> None:
        self._bank = RatioBank(half_life=90, warm_up=30, adopt_after=180, alarm=1e-3, steady=True)
        self._sums = np.zeros((64, len(_COLUMNS)))  # by row: counts of the step
        self._windows = 0

    def see(
        self, window_ms: int, rows: NDArray[np.int64], counts: NDArray[np.int64], known: Mapping[Slice, int]
    ) -> Iterator[Alarm]:
        """Count a window; at the end of a step, judge it and learn it. Gives signs.

        Args:
            window_ms: when the window began.
            rows: of slices with counts, each once (R,).
            counts: of each, as of sessions.Window (R, WIDTH).
            known: slice -> row, of all that there are.
        """
        if len(rows) and rows.max() >= len(self._sums):
            more = np.zeros((max(int(rows.max()) + 1, 2 * len(self._sums)), len(_COLUMNS)))
            more[: len(self._sums)] = self._sums
            self._sums = more
        self._sums[rows] += counts[:, _COLUMNS]
        self._windows += 1
        if self._windows % STEP == 0:
            yield from self._judge(window_ms, known)
            self._sums[:] = 0.0

    def _judge(self, window_ms: int, known: Mapping[Slice, int]) -> Iterator[Alarm]:
        shares = self._sums.reshape(-1, 2)  # (rows x metrics, total and bad)
        there = np.flatnonzero(shares[:, 0] > 0)
        if not len(there):
            return
        self._bank.grow(int(there[-1]) + 1)
        usual = self._bank.shares(there)
        p_values = self._bank.see(there, shares[there, 1], shares[there, 0])
        evidence = -np.log10(np.maximum(p_values, 1e-300))
        high = np.flatnonzero(evidence >= SENSITIVE.slow_evidence).tolist()
        named = {row: slice_ for slice_, row in known.items()} if high else {}
        for place in high:
            at, share = int(there[place]), float(usual[place])
            bad, total, steps = self._worst(at, share)
            sign = Alarm(
                slice=named[at // len(DRIFTING)], metric=DRIFTING[at % len(DRIFTING)], window_ms=window_ms,
                evidence=float(evidence[place]), expected=share, total=total, bad=bad, windows=steps * STEP,
            )  # fmt: skip
            if SENSITIVE.is_alarm(sign) and self._bank.goes_on(at, share):
                yield sign

    def _worst(self, at: int, share: float) -> tuple[float, float, int]:
        """Bad, total and steps of the span with most bad ones beyond what is usual."""
        total, bad = self._sums.reshape(-1, 2)[at].tolist()
        spans = [(bad, total, 1)]
        for place, span in list(enumerate(SPANS))[1:]:
            some_bad, some = self._bank.recent(at, place)
            # The bank's sums are one step short of their spans, and have taken this one in.
            spans.append((some_bad, some, span - 1))
        return max(spans, key=lambda one: one[0] - share * one[1])

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Let rows know nothing again: they are other slices'."""
        own = (rows[:, None] * len(DRIFTING) + np.arange(len(DRIFTING))).reshape(-1)
        self._bank.reset(own[own < self._bank.length])
        self._sums[rows[rows < len(self._sums)]] = 0.0

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able."""
        filled = np.flatnonzero(self._sums.any(axis=1))
        return {
            "windows": self._windows, "bank": base64.b85encode(self._bank.dump()).decode(),
            "sums": [[int(row), *self._sums[row].tolist()] for row in filled],
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The watch that wrote this checkpoint.

        Raises:
            InvalidInput: another version wrote it, or it is damaged.
        """
        watch = cls()
        watch._windows = state["windows"]
        watch._bank = RatioBank.load(base64.b85decode(state["bank"]))
        watch._sums = np.zeros((1 + max([63, *(row[0] for row in state["sums"])]), len(_COLUMNS)))
        for row, *sums in state["sums"]:
            watch._sums[row] = sums
        return watch
