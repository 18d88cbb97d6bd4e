"""A signal of Playhead itself: bad ones out of a total by window, judged against their past, and episodes of trouble.

An episode is opened by ALARMED improbable windows of which the excess matters, too, and is over once CALM windows
together are as usual: as usual as before it began, though the detector's own baseline adopts what lasts.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from serve.watchtower.counts import RatioDetector
from serve.watchtower.health import Reading
from serve.watchtower.rates import SPANS

ALARM: Final = 1e-6
"""Windows less probable than this are alarmed; some 50 series are judged, 400,000 windows a day."""
ALARMED: Final = 2
ALARMED_WITHIN: Final = 6
"""So many alarmed windows within so many open an episode: one hiccup is none."""
CALM: Final = 12
"""Windows that must together be as usual before an episode is over."""
SILENT: Final = 36
"""Windows without a count after which an episode is over: nobody is answered any more."""
LASTING: Final = 8640
"""Windows (a day) after which what an episode is about is what is usual."""
WARM_UP: Final = 90
"""Windows that are learned before any is judged: a quarter of an hour."""
LIFT: Final = 1.5
EXCESS: Final = 4.0
"""Least times the usual share, and least number beyond it, over some span, of an alarm."""
_NEAR: Final = 1.25
_NOW_WINDOWS: Final = 6
"""Of a reading: the latest with a count."""


class Series:
    """Bad ones out of a total, window by window, and the episode that goes on, if any.

    Args:
        signal: names it.
        direction: what is trouble: `more` bad ones than usual, or `both`: fewer, too.
    """

    def __init__(self, signal: str, direction: str) -> None:
        self.signal = signal
        self.detector = RatioDetector(direction=direction, warm_up=WARM_UP)
        self.windows = 0
        self.p_value = 1.0
        self.recent: deque[tuple[int, int]] = deque(maxlen=SPANS[-1])
        self.alarmed: deque[bool] = deque(maxlen=ALARMED_WITHIN)
        self.since_ms: int | None = None
        self.usual = 0.0  # share, when the episode was opened
        self.more = True  # which way the episode goes
        self.lasted = 0
        self.silent = 0

    @property
    def judged(self) -> bool:
        """Whether it has enough of a past to judge by."""
        return self.windows > max(WARM_UP, SPANS[-1])

    def see(self, bad: int, total: int, at_ms: int) -> bool | None:
        """Take a window in.

        Args:
            bad: bad ones, 0 to total.
            total: of so many.
            at_ms: when the window ended, UTC ms.

        Returns:
            True where it opens an episode, False where it ends one, else None.
        """
        if not total:
            self.silent += 1
            return self._over() if self.since_ms is not None and self.silent >= SILENT else None
        self.silent = 0
        window = {"bad": bad, "total": total}
        usual, self.p_value = self.detector.share, self.detector.p_value(window)
        self.detector.learn_one(window)
        self.windows += 1
        self.recent.append((bad, total))
        if self.since_ms is None:
            more = self._is_large(usual) if self.p_value < ALARM else None
            self.alarmed.append(more is not None)
            if more is None or sum(self.alarmed) < ALARMED:
                return None
            self.since_ms, self.usual, self.more, self.lasted = at_ms, usual, more, 0
            return True
        self.lasted += 1
        calm = self.p_value >= ALARM and self._is_as_usual()
        return self._over() if calm or self.lasted >= LASTING else None

    def _sums(self, windows: int) -> tuple[int, int]:
        """Bad and total of the latest windows."""
        latest = list(self.recent)[-windows:]
        return sum(bad for bad, _ in latest), sum(total for _, total in latest)

    def _is_large(self, usual: float) -> bool | None:
        """Whether so many more, or so many fewer, are bad that it matters: True: more, False: fewer, None: neither."""
        for span in SPANS:
            bad, total = self._sums(span)
            expected = total * usual
            if bad - expected >= EXCESS and bad >= LIFT * expected:
                return True
            if self.detector.direction == "both" and expected - bad >= EXCESS and LIFT * bad <= expected:
                return False
        return None

    def _is_as_usual(self) -> bool:
        bad, total = self._sums(CALM)
        expected = total * self.usual
        return bad <= _NEAR * expected + 1.0 if self.more else bad >= expected / _NEAR - 1.0

    def _over(self) -> bool:
        self.since_ms = None
        self.alarmed.clear()
        return False

    def heir(self) -> "Series":
        """A series that is judged by this one's past and has none of its own."""
        series = Series(self.signal, self.detector.direction)
        state = self.detector.state()
        shift = state["shift"] | {"sums": [0.0, 0.0], "windows": 0, "calm": 0}
        series.detector = RatioDetector.from_state(state | {"recent": [], "shift": shift})
        series.windows = self.windows
        return series

    def reading(self, threshold: float | None) -> Reading:
        """Counts before and now.

        Args:
            threshold: beyond which a value is bad; None where none is measured.
        """
        before_bad, before_total = self.detector.state()["past"]
        now_bad, now_total = self._sums(_NOW_WINDOWS)
        return Reading(
            signal=self.signal, threshold=threshold, before_bad=round(before_bad, 1),
            before_total=round(before_total, 1), now_bad=now_bad, now_total=now_total, p_value=self.p_value,
            since_ts=self.since_ms,
        )  # fmt: skip

    def said(self) -> str:
        """The latest episode in words."""
        bad, total = self._sums(_NOW_WINDOWS)
        return f"{self.signal}: {bad} of the latest {total}, usually {100 * self.usual:.2g} %"

    def state(self) -> dict[str, Any]:
        """What `from_state` needs: JSON-able."""
        return {
            "signal": self.signal, "detector": self.detector.state(), "windows": self.windows, "p_value": self.p_value,
            "recent": [list(one) for one in self.recent], "alarmed": list(self.alarmed), "since_ms": self.since_ms,
            "usual": self.usual, "more": self.more, "lasted": self.lasted, "silent": self.silent,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Series":
        """The series that wrote this state."""
        series = cls(state["signal"], "more")
        series.detector = RatioDetector.from_state(state["detector"])
        series.recent.extend((bad, total) for bad, total in state["recent"])
        series.alarmed.extend(state["alarmed"])
        for name in ("windows", "p_value", "since_ms", "usual", "more", "lasted", "silent"):
            setattr(series, name, state[name])
        return series
