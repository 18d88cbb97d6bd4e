"""Gaps of telemetry: whose reports do not come, so that what looks like trouble there may be none.

A gap is heard of from those who know which sessions should report. Where nobody reports for long, no session is known
any more that should: that all is silent is therefore seen here, and it is a gap for as long as it lasts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from serve.telemetry.windows import WINDOW_MS
from serve.watchtower.alarms import GAP, Alarm, Slice, may_meet, slice_of

AFTERMATH: Final = 12
"""Windows after a gap that still hold what it left behind."""
_SILENCE: Final = 0.02
"""Of everyone's usual reports; with fewer nothing is known. Who remains of an audience that is gone reports more."""
_TELLING: Final = 10.0
"""Reports a window that are usual, so that none is no chance."""
_KEEP: Final = 2.0 ** (-1.0 / 30)
"""Of the usual reports, by window: half is forgotten in five minutes."""


class Gaps:
    """Slices whose telemetry is incomplete now. Windows come in order; nobody saw those that are left out."""

    def __init__(self) -> None:
        self._seen: dict[Slice, int] = {}  # slice -> the last window that lacked reports
        self._usual = 0.0  # everyone's reports in a window
        self._latest_ms = 0

    @property
    def slices(self) -> list[Slice]:
        """Which they are."""
        return list(self._seen)

    def see(self, window_ms: int, reports: int, alarms: Sequence[Alarm]) -> None:
        """Take a window in.

        Args:
            window_ms: when it began.
            reports: everyone's.
            alarms: of the window; those of GAP are heard.
        """
        was_seen = window_ms - self._latest_ms <= WINDOW_MS or not self._latest_ms
        self._latest_ms = window_ms
        for alarm in alarms:
            if alarm.metric == GAP:
                self._seen[alarm.slice] = window_ms
        if not was_seen or (self._usual >= _TELLING and reports < _SILENCE * self._usual):
            self._seen[()] = window_ms
        self._seen = {slice_: seen for slice_, seen in self._seen.items() if window_ms - seen < AFTERMATH * WINDOW_MS}
        if () not in self._seen:
            self._usual += (1.0 - _KEEP) * (reports - self._usual)

    def may_hold(self, slice_: Slice) -> bool:
        """Whether some of a slice's sessions may be in a gap."""
        return any(may_meet(slice_, gap) for gap in self._seen)

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able."""
        return {"seen": list(self._seen.items()), "usual": self._usual, "latest_ms": self._latest_ms}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The gaps that wrote this checkpoint."""
        gaps = cls()
        gaps._seen = {slice_of(pairs): seen for pairs, seen in state["seen"]}
        gaps._usual, gaps._latest_ms = state["usual"], state["latest_ms"]
        return gaps
