"""The whole watch in one process: reports in, outages out.

The service spreads it over replicas; evaluations and tests run it as it is.
"""

from collections.abc import Callable

from serve.telemetry.reports import Report
from serve.telemetry.sessions import Sessions, Summary
from serve.telemetry.windows import Window
from serve.watchtower.outages import Outage
from serve.watchtower.slices import SliceWatch
from serve.watchtower.tracker import OutageTracker


class Watchtower:
    """Sessions, detectors and outages of one log.

    Args:
        now: the log's clock, UTC ms.
        closed: told of each session that is over.

    Attributes:
        sessions: those that are known.
        watch: the detectors.
        tracker: the outages.
    """

    def __init__(self, now: int, *, closed: Callable[[Summary], None] = lambda _: None) -> None:
        self.sessions = Sessions(now, closed=closed)
        self.watch = SliceWatch()
        self.tracker = OutageTracker()

    def hear(self, report: Report, now: int) -> list[Outage]:
        """Take a report in; gives the outages that changed.

        Args:
            report: what a player said.
            now: when it was logged, by the log's clock, never before the last.
        """
        changed = self.advance(now)
        self.sessions.take(report, now)
        return changed

    def advance(self, now: int) -> list[Outage]:
        """Judge the windows that are over by the log's clock; gives the outages that changed."""
        return [outage for window in self.sessions.advance(now) for outage in self.see(window)]

    def see(self, window: Window) -> list[Outage]:
        """Judge a window; gives the outages that changed."""
        return self.tracker.see(window, self.watch.see(window))
