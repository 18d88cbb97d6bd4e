"""What settings call on a day whose incidents are known, and how right that is.

A day is watched once: its windows and the signs of alarms in them depend on no settings (serve.watchtower.settings).
Settings are then replayed over it, any number of them beside each other on one scene, so that a search for causes is
made once for all. Times UTC ms, delays seconds from an incident's start.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from serve.telemetry.windows import WINDOW_MS, Window
from serve.watchtower.alarms import Alarm
from serve.watchtower.outages import Outage
from serve.watchtower.settings import DetectorSettings
from serve.watchtower.tracker import OutageTracker

MISSED_S: Final = 1800.0
"""What a missed outage is taken to be late; later than that is no worse."""
FALSE_ALARM_S: Final = 1800.0
"""Delay that a false alarm is as bad as: somebody is called for nothing."""
FALSE_SUSPICION_S: Final = 300.0
"""The same of a suspicion that is dropped: players may be steered for nothing."""
MISNAMED_S: Final = 120.0
"""The same of an outage whose cause is not named first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """An outage that was called.

    Attributes:
        outage: as it stood in the end.
        confirmed_ms: when it was confirmed; None: it never was.
    """

    outage: Outage
    confirmed_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What became of an incident that hurts viewers.

    Attributes:
        incident_id: names it.
        kind: such as `cdn_down`.
        counts: whether it hurts enough to have to be found.
        suspected_s: delay to the first alarm of an outage that was confirmed; None: it was missed.
        confirmed_s: delay to the confirmation; None: it was missed.
        first: whether its cause was named first.
    """

    incident_id: str
    kind: str
    counts: bool
    suspected_s: float | None = None
    confirmed_s: float | None = None
    first: bool = False

    @property
    def is_found(self) -> bool:
        """Whether an outage about it was confirmed."""
        return self.confirmed_s is not None

    @property
    def cost_s(self) -> float:
        """What its delay, its being missed or its being misnamed costs, seconds; lower is better."""
        if self.suspected_s is None or self.confirmed_s is None:
            return MISSED_S
        delay_s = (min(self.suspected_s, MISSED_S) + min(self.confirmed_s, MISSED_S)) / 2
        return min(delay_s + (0.0 if self.first else MISNAMED_S), MISSED_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class DayScore:
    """How right a day's calls were.

    Attributes:
        day: names the day.
        false_alarms: confirmed outages of which no incident hurt anybody.
        false_suspicions: the same of suspicions that were dropped.
        found: incidents that hurt viewers.
        states: outage's id -> state in the end, so that equal calls can be told.
    """

    day: str
    false_alarms: int
    false_suspicions: int
    found: tuple[Found, ...]
    states: Mapping[str, str] = field(default_factory=dict)

    @property
    def suspected_falsely(self) -> int:
        """Suspicions of which no incident hurt anybody, confirmed or not: players may be steered by each."""
        return self.false_alarms + self.false_suspicions

    @property
    def counted(self) -> list[Found]:
        """Incidents that have to be found."""
        return [one for one in self.found if one.counts]

    @property
    def cost_s(self) -> float:
        """What was wrong, in seconds of delay: lower is better. Small incidents that were missed cost nothing."""
        incidents = sum(one.cost_s for one in self.found if one.counts or one.is_found)
        return incidents + FALSE_ALARM_S * self.false_alarms + FALSE_SUSPICION_S * self.false_suspicions


class Day(Protocol):
    """A day that was watched, and what is true of it."""

    @property
    def name(self) -> str:
        """Names it."""
        ...

    def seen(self) -> Iterator[tuple[Window, Sequence[Alarm]]]:
        """Its windows in order, and the signs in each."""
        ...

    def score(self, called: Sequence[Called]) -> DayScore:
        """How right some calls are."""
        ...


def replay(day: Day, tried: Sequence[DetectorSettings]) -> list[DayScore]:
    """What each of some settings calls on a day, scored; in their order.

    Args:
        day: that was watched.
        tried: settings, one at least.
    """
    first = OutageTracker(tried[0])
    trackers = [first, *[first.beside(settings) for settings in tried[1:]]]
    outages: list[dict[str, Outage]] = [{} for _ in tried]
    confirmed: list[dict[str, int]] = [{} for _ in tried]
    for window, signs in day.seen():
        for place, tracker in enumerate(trackers):
            changed = tracker.judge(window.start_ms, signs) if place else tracker.see(window, signs)
            for outage in changed:
                outages[place][outage.outage_id] = outage
                if outage.state == "confirmed":
                    confirmed[place].setdefault(outage.outage_id, window.start_ms + WINDOW_MS)
    return [
        day.score([Called(outage=outage, confirmed_ms=when.get(name)) for name, outage in known.items()])
        for known, when in zip(outages, confirmed, strict=True)
    ]
