"""Other settings beside the champion's: what they would have called, on the same windows, and nobody is told of.

playhead:rollout:compared:detectors   `outages` -> what was called by version, JSON; for a day after the last

A call of one and a call of the other are about the same where their times overlap and one's slice lies in the other's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final, Self

import orjson

from serve.rollout.comparisons import compared_key
from serve.telemetry.windows import WINDOW_MS
from serve.watchtower.alarms import Alarm
from serve.watchtower.outages import Outage
from serve.watchtower.settings import MODEL, DetectorSettings
from serve.watchtower.tracker import OutageTracker

SEARCHES: Final = 4
"""For causes, a window, beside those that the champion made: what they cost is bounded so."""
MOST_OPEN: Final = 50
"""Outages open at once, with more of which settings are given up."""
MOST_CALLS: Final = 100
"""The newest that are kept of each."""
SHOWN: Final = 20
TTL_S: Final = 86_400


@dataclass(slots=True)
class Call:
    """An outage that was called; times UTC ms.

    Attributes:
        slice: dimension -> value, as it was named last.
        suspected_ts: when its first alarm was raised.
        confirmed_ts: None: it was not.
        closed_ts: None: it is open.
    """

    slice: dict[str, str]
    suspected_ts: int
    confirmed_ts: int | None = None
    closed_ts: int | None = None

    def is_same(self, other: "Call") -> bool:
        """Whether both are about the same."""
        apart = any(
            one.closed_ts is not None and one.closed_ts < two.suspected_ts
            for one, two in ((self, other), (other, self))
        )
        mine, others = self.slice.items(), other.slice.items()
        return not apart and (mine <= others or mine >= others)


@dataclass(slots=True)
class Calls:
    """What was called since a moment; outage's id -> call."""

    since_ms: int
    calls: dict[str, Call] = field(default_factory=dict)

    def note(self, changed: Iterable[Outage], now: int) -> None:
        """Note outages that changed in the window that ended now; those from before are left out."""
        for outage in changed:
            if outage.detected_ts < self.since_ms:
                continue
            call = self.calls.setdefault(outage.outage_id, Call({}, outage.detected_ts))
            call.slice, call.closed_ts = dict(outage.slice), outage.closed_ts
            if outage.state == "confirmed" and call.confirmed_ts is None:
                call.confirmed_ts = now
        for name in list(self.calls)[:-MOST_CALLS]:
            del self.calls[name]

    def state(self) -> list[Any]:
        """As JSON takes it."""
        return [self.since_ms, [[name, asdict(call)] for name, call in self.calls.items()]]

    @classmethod
    def from_state(cls, state: Sequence[Any]) -> Self:
        """The reverse of `state`."""
        return cls(int(state[0]), {name: Call(**call) for name, call in state[1]})


class Beside:
    """One version's settings beside the champion's.

    Args:
        version: whose settings.
        settings: the settings.
        champion: of whose scene they judge, and from what is open there they begin.
        now: when they begin, UTC ms.
        known: a checkpoint to go on from; None: they begin.

    Attributes:
        version: whose settings.
        settings: the settings.
        given_up: why they are not tried any more; empty: they are.
    """

    def __init__(
        self, version: str, settings: DetectorSettings, champion: OutageTracker, now: int,
        known: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.version = version
        self.settings = settings
        self.given_up = "" if known is None else str(known["given_up"])
        self._windows = 0 if known is None else int(known["windows"])
        self._theirs = Calls(now) if known is None else Calls.from_state(known["champion"])
        self._own = Calls(now) if known is None else Calls.from_state(known["own"])
        self._tracker = champion.beside(settings, None if known is None else known["tracker"])
        self._tracker.left_out = 0 if known is None else int(known["left_out"])

    def see(self, window_ms: int, signs: Sequence[Alarm], changed: Sequence[Outage]) -> None:
        """Judge a window after the champion has, and note what both call.

        Args:
            window_ms: when it began.
            signs: of it.
            changed: the champion's outages that changed.
        """
        if self.given_up:
            return
        now = window_ms + WINDOW_MS
        self._theirs.note(changed, now)
        self._own.note(self._tracker.judge(window_ms, signs, SEARCHES), now)
        self._windows += 1
        if len(self._tracker.outages) > MOST_OPEN:
            self.given_up = f"it had {len(self._tracker.outages)} outages open at once, {MOST_OPEN} are allowed"

    def told(self) -> dict[str, Any]:
        """What was called by both, for whoever asks."""
        pairs = self._pairs()
        both = [(mine, other) for mine, other in pairs if _are_confirmed(mine, other)]
        earlier = [(mine.confirmed_ts or 0) - (other.confirmed_ts or 0) for mine, other in both if mine and other]
        single = [(mine, other) for mine, other in pairs if not _are_confirmed(mine, other)]
        shown = sorted(pairs, key=lambda pair: -max(call.suspected_ts for call in pair if call is not None))
        return {
            "since_ts": self._own.since_ms, "windows": self._windows, "searches_left_out": self._tracker.left_out,
            "given_up": self.given_up, "both": len(both),
            "champion_only": sum(mine is not None and mine.confirmed_ts is not None for mine, _ in single),
            "other_only": sum(other is not None and other.confirmed_ts is not None for _, other in single),
            "champion_suspicions": sum(call.confirmed_ts is None for call in self._theirs.calls.values()),
            "other_suspicions": sum(call.confirmed_ts is None for call in self._own.calls.values()),
            "earlier_s": median(earlier) / 1000 if earlier else None,
            "calls": [
                {"champion": None if mine is None else asdict(mine), "other": None if other is None else asdict(other)}
                for mine, other in shown[:SHOWN]
            ],
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able."""
        return {
            "version": self.version, "settings": self.settings.model_dump(), "given_up": self.given_up,
            "windows": self._windows, "left_out": self._tracker.left_out, "tracker": self._tracker.own_state(),
            "champion": self._theirs.state(), "own": self._own.state(),
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any], champion: OutageTracker) -> Self:
        """The one that wrote this checkpoint, beside the champion's tracker as it was then.

        Raises:
            ArtifactError: its settings are out of their ranges.
        """
        return cls(str(state["version"]), DetectorSettings.read(state["settings"]), champion, 0, state)

    def _pairs(self) -> list[tuple[Call | None, Call | None]]:
        """The champion's calls beside those of these settings that are about the same."""
        left = list(self._own.calls.values())
        pairs: list[tuple[Call | None, Call | None]] = []
        for mine in self._theirs.calls.values():
            other = next((call for call in left if call.is_same(mine)), None)
            left = [call for call in left if call is not other]
            pairs.append((mine, other))
        return [*pairs, *[(None, call) for call in left]]


def _are_confirmed(*calls: Call | None) -> bool:
    return all(call is not None and call.confirmed_ts is not None for call in calls)


def compared_commands(beside: Iterable[Beside]) -> list[list[Any]]:
    """The commands that tell what was called beside."""
    told = {one.version: one.told() for one in beside}
    key = compared_key(MODEL)
    return [["HSET", key, "outages", orjson.dumps(told)], ["EXPIRE", key, TTL_S]] if told else []


def read_beside(replicas: Iterable[bytes], versions: Mapping[str, str]) -> list[dict[str, Any]]:
    """What versions called beside the champion.

    Args:
        replicas: what was told; what cannot be read is left out.
        versions: version -> role; others are left out.
    """
    found = []
    for dumped in replicas:
        try:
            told = dict(orjson.loads(dumped))
            found += [
                {"version": version, "role": versions[version], **one} for version, one in told.items()
                if version in versions
            ]  # fmt: skip
        except (TypeError, ValueError):
            continue
    return found
