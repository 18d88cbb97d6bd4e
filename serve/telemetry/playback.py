"""Playback as players tell it, report by report, and what that adds up to.

Units: time ms by the player's clock, bitrate kbit/s. States are CMCD's (CTA-5004-B, `sta`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

STARTING: Final = "s"
PRELOADING: Final = "d"
PLAYING: Final = "p"
STALLED: Final = "r"
OVER: Final = frozenset("efq")
LIVELY: Final = frozenset("spd")
_WAITING: Final = frozenset("sdwrk")
"""States in which nothing was shown yet, if nothing was before: a start-up time told with them is none."""

_PICTURES: Final = frozenset({"v", "av"})
"""Types of objects whose bitrate is the session's: what comes with a request for sound is the sound's."""

_RESPONSE: Final = "rr"
"""The event of a response: its `ts` is the request's, and what it says of playback is of when the response had come."""

MOST_GAP_MS: Final = 120_000
"""Of silence that still counts as the state before it."""

MOST_BITRATES: Final = 24
"""That a session's playing time is told apart by; what is played at others counts as the nearest of them."""

SOUND_ALONE_MS: Final = 10_000
"""A session of version 1 that has asked for sound alone for so long plays it."""

Beat = tuple[
    int, int, str, str, float | None, float | None, float | None, bool, bool | None, float | None, float | None
]  # fmt: skip
"""What a report says, as far as sessions are concerned; None where it does not say: ts, number, event, state, kbps,
top_kbps, startup_ms, starved, starting, stalls, stall_ms. Of starting None is what came with another object than
pictures. There are 32 a session, so it is a plain tuple: of those the garbage collector keeps no account."""


class Fold:
    """What beats add up to. Times ms, all 0 at the start; `at_kbps` is bitrate -> ms played at it."""

    __slots__ = (
        "at_kbps", "errors", "failed", "first", "kbps", "played_ms", "since", "stall_ms", "stalls", "started",
        "startup_ms", "state", "switches", "top_kbps",
    )  # fmt: skip

    def __init__(self) -> None:
        self.first = 0
        self.since = 0
        self.state = ""
        self.started = 0
        self.startup_ms = 0.0
        self.played_ms = 0
        self.stall_ms = 0.0
        self.stalls = 0.0
        self.kbps = 0.0
        self.top_kbps = 0.0
        self.at_kbps: dict[float, int] = {}
        self.switches = 0
        self.errors = 0
        self.failed = False

    def copy(self) -> "Fold":
        """Another with the same values."""
        other = Fold.__new__(Fold)
        for name in Fold.__slots__:
            setattr(other, name, getattr(self, name))
        other.at_kbps = self.at_kbps.copy()
        return other

    def apply(self, beat: Beat) -> None:
        """Take in the next beat."""
        ts, _, event, told, _, _, startup_ms, _, starting, stalls, _ = beat
        state = self.state
        if not self.first:
            self.first = self.since = ts
        elif ts > self.since:
            elapsed = min(ts - self.since, MOST_GAP_MS)
            if state == PLAYING:
                self.played_ms += elapsed
                self._play(elapsed)
            elif state == STALLED and self.started:
                self.stall_ms += elapsed
            self.since = ts
        self._hear_numbers(beat)
        entered = told or ("" if event else self._implied(ts, starting=starting))
        if startup_ms and not told and state in {"", STARTING}:
            entered = PLAYING  # who says no states says so when it has started
        if entered and entered != state and state not in OVER:
            self._enter(entered, ts, counts_stalls=stalls is not None)

    def shift(self, by_ms: int) -> None:
        """Go by another clock, which shows so much more; below 0: one that was set back."""
        self.since = max(1, self.since + by_ms)
        self.first = max(1, self.first + by_ms)
        if self.started:
            self.started = max(1, self.started + by_ms)

    @property
    def mean_kbps(self) -> float:
        """Time-weighted bitrate of what was played since one was told; 0 unknown."""
        told_ms = sum(self.at_kbps.values())
        return sum(kbps * ms for kbps, ms in self.at_kbps.items()) / told_ms if told_ms else 0.0

    def _play(self, elapsed: int) -> None:
        kbps, at_kbps = self.kbps, self.at_kbps
        if not kbps:
            return
        if kbps not in at_kbps and len(at_kbps) >= MOST_BITRATES:  # no rungs, but what was measured
            kbps = min(at_kbps, key=lambda known: abs(known - kbps))
        at_kbps[kbps] = at_kbps.get(kbps, 0) + elapsed

    def _hear_numbers(self, beat: Beat) -> None:
        _, _, event, told, kbps, top_kbps, startup_ms, starved, _, stalls, stall_ms = beat
        if kbps and kbps != self.kbps:
            self.switches += bool(self.kbps)
            self.kbps = kbps
        if top_kbps and top_kbps > self.top_kbps:
            self.top_kbps = top_kbps
        if startup_ms and not self.startup_ms:
            self.startup_ms = startup_ms
        if event == "e":
            self.errors += 1
        if stalls is not None:
            self.stalls = max(self.stalls, stalls)
        elif starved and self.started and STALLED not in {told, self.state}:
            self.stalls += 1
        if stall_ms is not None:
            self.stall_ms = max(self.stall_ms, stall_ms)

    def _implied(self, ts: int, *, starting: bool | None) -> str:
        """The state of a player that says none (version 1): its requests for start-up, then for playback."""
        if starting is None:  # sound is often fetched ahead of the first picture
            starting = self.kbps > 0 or ts - self.first < SOUND_ALONE_MS
        if self.state in {"", STARTING}:
            return STARTING if starting or not self.state else PLAYING
        return ""

    def _enter(self, state: str, ts: int, *, counts_stalls: bool) -> None:
        if self.state == PRELOADING and not self.started:
            self.first = ts  # nobody waited before
        if state == PLAYING and not self.started:
            self.started = ts
            if not self.startup_ms:
                self.startup_ms = float(max(ts - self.first, 1))
        elif state == STALLED and self.started and not counts_stalls:
            self.stalls += 1
        elif state == "f":
            self.failed = True
        self.state = state


def beat_of(values: Mapping[str, Any], ts: int, *, timed: bool) -> Beat:
    """What a report says, as far as sessions are concerned.

    Args:
        values: of the report.
        ts: when it happened, by the player's clock.
        timed: whether the player said so.
    """
    number, event, state = values.get("sn"), values.get("e"), values.get("sta")
    number = number if isinstance(number, int) else -1
    state = state if isinstance(state, str) else ""
    startup_ms = None if state in _WAITING else number_of(values, "msd")
    kbps, top_kbps = number_of(values, "br"), number_of(values, "tb") or number_of(values, "tpb")
    starting: bool | None = values.get("su") is True
    if "ot" in values and values["ot"] not in _PICTURES:
        kbps = top_kbps = None
        starting = starting or None
    stalls, stall_ms = number_of(values, "bsa"), number_of(values, "bsda")
    if event == _RESPONSE:
        ts += int(min(number_of(values, "ttlb") or 0, MOST_GAP_MS)) if timed else 0
        return ts, number, _RESPONSE, "", None, top_kbps, startup_ms, False, False, stalls, stall_ms
    return (
        ts, number, event if isinstance(event, str) else "", state, kbps, top_kbps, startup_ms,
        values.get("bs") is True, starting, stalls, stall_ms,
    )  # fmt: skip


def number_of(values: Mapping[str, Any], key: str) -> float | None:
    """Report.number of video, without the report: seven a report."""
    value = values.get(key)
    if value is None:
        return None
    if type(value) is dict:
        value = value["v"] if "v" in value else next(iter(value.values()), None)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def dump_fold(fold: Fold) -> list[Any]:
    """As JSON takes it."""
    return [list(fold.at_kbps.items()) if name == "at_kbps" else getattr(fold, name) for name in Fold.__slots__]


def load_fold(dumped: Sequence[Any]) -> Fold:
    """The reverse of `dump_fold`."""
    fold = Fold()
    for name, value in zip(Fold.__slots__, dumped, strict=True):
        setattr(fold, name, value)
    fold.at_kbps = dict(fold.at_kbps)
    return fold
