"""Playback sessions: what reports add up to, and what each window of time saw of them.

A session is a fold over its reports in the order in which things happened. Reports that come late or out of order are
put into their place and the fold is made again from a little before; one that comes twice counts once. Sessions that
say nothing more are closed, and there are never more than a number that is set. One that is over is told of after a
minute and then known by little more than its name for some minutes: players send again what was not acknowledged.

Units: time ms, bitrate kbit/s. Two clocks: `ts` is the player's, which may be wrong by any constant and still gives
right lengths; `now` is the log's, which windows and time-outs go by, so that the same log gives the same windows
whenever it is read.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, cast

from serve.telemetry.playback import (
    LIVELY,
    OVER,
    PLAYING,
    PRELOADING,
    STALLED,
    Beat,
    Fold,
    beat_of,
    dump_fold,
    load_fold,
    number_of,
)
from serve.telemetry.reports import DIMENSIONS, Report
from serve.telemetry.windows import ATTEMPTS, COLUMN, REPORTS, WINDOW_MS, Leaf, Window

SLOW_START_MS: Final = 5_000
START_TIMEOUT_MS: Final = 45_000
"""A start that shows nothing for so long has failed."""

LEAST_WAIT_MS: Final = 2_000
"""Who leaves sooner than this had not waited: no failed start."""

LOW_BITRATE: Final = 0.3
"""Of the highest bitrate that the session has been offered; below it a session counts as low."""

QUIET_AFTER: Final = 2.5
"""A session is quiet when it has said nothing for so many of its own intervals."""

INTERVAL_MS: Final = 30_000
"""Between reports of a session that has not shown its own interval yet (CTA-5004-B's default)."""

DEAD_MS: Final = 300_000
"""A session that has said nothing for so long is closed; one that is over is forgotten, and may come again."""

LINGER_MS: Final = 60_000
"""A session that is over may be put right for so long, by what comes late; what comes after does not count."""

ONCE_MS: Final = 60_000
"""A session's stalls, and its errors, count as bad once in so long: one session in trouble is one, not one a window."""

_RECENT: Final = 32
"""Reports of a session that can still be put into another order."""

_SET_BACK: Final = 3
"""Reports that show, at least, that a player's clock was set back."""

_REPLAY_MS: Final = 1_000
_ERRORS, _SILENCE, _STALLS, _LOW, _FAILURES = (
    COLUMN[name] for name in ("errors", "silence", "stalls", "low_bitrate", "failures")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A session that is over.

    Attributes:
        session: its `sid`.
        leaf: what it is told apart by.
        first_ms: its first report, or when it ceased to preload; the player's clock, set by the fastest report.
        last_ms: its last.
        started: whether a picture was ever shown.
        startup_ms: from the wish to the first picture; 0 where there was none.
        played_ms: of playing.
        stall_ms: of stalling after the start.
        stalls: how often.
        mean_kbps: time-weighted bitrate of what was played since one was told; 0 unknown.
        at_kbps: bitrate -> time played at it.
        switches: changes of bitrate.
        errors: errors that it told of.
        end: `ended`, `quit`, `failed`, or `vanished` without a word.
    """

    session: str
    leaf: Leaf
    first_ms: int
    last_ms: int
    started: bool
    startup_ms: float
    played_ms: int
    stall_ms: float
    stalls: int
    mean_kbps: float
    at_kbps: Mapping[float, int]
    switches: int
    errors: int
    end: str

    @property
    def rebuffer_ratio(self) -> float:
        """Stalling as a share of stalling and playing, 0 to 1."""
        whole = self.played_ms + self.stall_ms
        return self.stall_ms / whole if whole else 0.0


class Session:
    """One session as it is known; see the module for what is what."""

    __slots__ = (
        "began", "ended", "erred", "erred_told", "fold", "heard", "interval", "leaf", "lost", "low", "name", "offset",
        "outcome", "recent", "settled", "stalled", "stalled_told", "strays", "ticked", "told", "told_quiet",
    )  # fmt: skip

    def __init__(self, name: str, now: int) -> None:
        self.name = name
        self.leaf: Leaf = ("",) * len(DIMENSIONS)
        self.began = now
        self.heard = now
        self.interval = 0
        self.ticked = 0  # when its first report of an interval came
        self.offset: int | None = None
        self.settled = Fold()
        self.fold = Fold()
        self.recent: list[Beat] = []
        self.outcome = ""  # of the start: "", "ok", "failed", "left"
        self.stalled = False  # in this window
        self.erred = False  # in this window
        self.told_quiet = False
        self.ended = False  # and counted
        self.low = False  # in the window before
        self.stalled_told = 0  # when it was counted last
        self.erred_told = 0
        self.lost = 0
        self.strays: list[tuple[int, Beat]] = []  # beats lost in a row, each with when it was received
        self.told = False  # all of it, as of one that is over

    @property
    def over(self) -> bool:
        """Whether the player said that it is."""
        return self.fold.state in OVER

    def beat(self, report: Report) -> Beat:
        """What a report says, at the time that it happened by the player's clock."""
        told = number_of(report.values, "ts")
        if not told:
            return beat_of(report.values, report.received_ms - (self.offset or 0), timed=False)
        ts = int(told)
        ahead = report.received_ms - ts
        if self.offset is None or ahead < self.offset:
            self.offset = ahead
        return beat_of(report.values, ts, timed=True)

    def place(self, beat: Beat, received_ms: int) -> bool:
        """Put a beat into its place; whether it is new."""
        recent = self.recent
        if not recent or beat[0] > recent[-1][0]:  # as nearly all do: so it's new, too
            recent.append(beat)
            self.fold.apply(beat)
        elif beat in recent:
            return False
        elif beat[:2] >= recent[-1][:2]:
            recent.append(beat)
            self.fold.apply(beat)
        elif len(recent) < _RECENT or beat[:2] > recent[0][:2]:
            insort(recent, beat, key=_order)
            self._again()
        else:
            return self._stray(beat, received_ms)
        if self.strays:
            self.strays.clear()
        if len(recent) > _RECENT:
            self.settled.apply(recent.pop(0))
        return True

    def _stray(self, beat: Beat, received_ms: int) -> bool:
        """A beat older than what can be put right; whether it is new.

        Several in a row, that come as far apart as they happened, and for so long that a report at the clock of before
        would have come, are of a clock that was set back. What was only late comes at once, or between others.
        """
        strays = self.strays
        if any(beat == other for _, other in strays):
            return False
        self.lost += 1
        strays.append((received_ms, beat))
        if len(strays) > _RECENT:
            strays.pop(0)
        between_ms = received_ms - strays[0][0]
        keeps_time = abs(beat[0] - strays[0][1][0] - between_ms) <= between_ms / 4
        if len(strays) >= _SET_BACK and between_ms >= (self.interval or INTERVAL_MS) and keeps_time:
            self._set_back()
        return True

    def _set_back(self) -> None:
        """Go on by the clock of the strays, which are lost no more; what is recent by the one before is settled."""
        strays, self.strays, self.recent = self.strays, [], []
        offset = min(received_ms - beat[0] for received_ms, beat in strays)
        self.fold.shift((self.offset or 0) - offset)
        self.offset, self.settled = offset, self.fold.copy()
        self.lost -= len(strays)
        for received_ms, beat in strays:
            self.place(beat, received_ms)

    def shrink(self) -> None:
        """Keep no more than what shows that something is of this session, which is over."""
        self.told = True
        self.recent, self.strays = [], []
        self.fold.at_kbps = {}
        self.settled = self.fold

    def _again(self) -> None:
        self.fold = self.settled.copy()
        for beat in self.recent:
            self.fold.apply(beat)

    def summary(self) -> Summary:
        """What there is to say of it now."""
        fold = self.fold
        end = {"e": "ended", "q": "quit", "f": "failed"}.get(fold.state, "vanished")
        return Summary(
            session=self.name, leaf=self.leaf, first_ms=fold.first + (self.offset or 0),
            last_ms=fold.since + (self.offset or 0), started=bool(fold.started),
            startup_ms=fold.startup_ms if fold.started else 0.0, played_ms=fold.played_ms, stall_ms=fold.stall_ms,
            stalls=int(fold.stalls), mean_kbps=fold.mean_kbps, at_kbps=fold.at_kbps, switches=fold.switches,
            errors=fold.errors, end=end,
        )  # fmt: skip

    def dump(self) -> list[Any]:
        """As JSON takes it."""
        return [
            self.name, list(self.leaf), self.began, self.heard, self.interval, self.offset, dump_fold(self.settled),
            dump_fold(self.fold), [list(beat) for beat in self.recent], self.outcome, self.stalled, self.erred,
            self.told_quiet, self.ended, self.lost, self.low, self.stalled_told, self.erred_told, self.ticked,
            self.told, [[received_ms, list(beat)] for received_ms, beat in self.strays],
        ]  # fmt: skip

    @classmethod
    def load(cls, dumped: Sequence[Any]) -> Self:
        """The reverse of `dump`."""
        session = cls(dumped[0], dumped[2])
        session.leaf = tuple(dumped[1])
        session.heard, session.interval, session.offset = dumped[3:6]
        session.settled, session.fold = load_fold(dumped[6]), load_fold(dumped[7])
        session.recent = [cast("Beat", tuple(beat)) for beat in dumped[8]]
        (
            session.outcome, session.stalled, session.erred, session.told_quiet, session.ended, session.lost,
            session.low, session.stalled_told, session.erred_told, session.ticked, session.told,
        ) = dumped[9:20]  # fmt: skip
        session.strays = [(received_ms, cast("Beat", tuple(beat))) for received_ms, beat in dumped[20]]
        return session


@dataclass(slots=True)
class Tally:
    """What became of reports.

    Attributes:
        reports: all.
        duplicates: those that were there already.
        late: those that came too late to be put into their place, or when all of their session was told.
        evicted: sessions that made room for others.
    """

    reports: int = 0
    duplicates: int = 0
    late: int = 0
    evicted: int = 0


class Sessions:
    """The sessions of one partition of the log.

    Args:
        now: the log's clock, ms; windows begin from there.
        most: sessions at a time; the one longest silent makes room.
        closed: told of each session that is over.

    Attributes:
        tally: what became of reports.
        touched: names of sessions that changed since it was cleared, for checkpoints.
    """

    def __init__(self, now: int, *, most: int = 200_000, closed: Callable[[Summary], None] = lambda _: None) -> None:
        self._known: dict[str, Session] = {}
        self._most = most
        self._closed = closed
        self._window = Window(now // WINDOW_MS * WINDOW_MS)
        self.tally = Tally()
        self.touched: set[str] = set()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    @property
    def window_ms(self) -> int:
        """When the open window began."""
        return self._window.start_ms

    def advance(self, now: int) -> Iterator[Window]:
        """Close the windows that are over by the log's clock, in order."""
        while now >= self._window.start_ms + WINDOW_MS:
            yield self._close_window()

    def take(self, report: Report, now: int) -> None:
        """Take a report in; `advance` comes first.

        Args:
            report: what a player said.
            now: when it was logged, by the log's clock.
        """
        self.tally.reports += 1
        known = self._known.pop(report.session, None)
        session = known or self._begin(report.session, now)
        beat = session.beat(report)
        ts, _, _, state, _, _, _, starved, _, _, _ = beat
        if session.over and state in LIVELY and ts > session.fold.since + _REPLAY_MS:
            self._forget(session)  # the same id plays again
            known, session = None, self._begin(report.session, now)
        self._known[report.session] = session  # the longest silent comes first
        if session.told:  # players send again for minutes what was not acknowledged
            self.tally.late += 1
            return
        self.touched.add(report.session)
        errors, lost = session.fold.errors, session.lost
        if not session.place(beat, report.received_ms):
            self.tally.duplicates += 1
            return
        self.tally.late += session.lost - lost
        self._hear(session, report, now)
        row = self._window.row(session.leaf)
        row[REPORTS] += 1
        if known is None:
            row[ATTEMPTS] += 1
        fold = session.fold
        if fold.state == PRELOADING:
            session.began = now
        if fold.errors > errors and not fold.failed:
            session.erred = True
        if (state == STALLED or starved) and fold.started:
            session.stalled = True
        if not session.outcome:
            self._settle_start(session, now)
        if session.over and not session.ended:
            self._count_end(session)

    def _begin(self, name: str, now: int) -> Session:
        if len(self._known) >= self._most:
            longest_silent = next(iter(self._known.values()))
            self.tally.evicted += not longest_silent.told
            self._forget(longest_silent)
        return Session(name, now)

    def _hear(self, session: Session, report: Report, now: int) -> None:
        if session.interval == 0 and report.event == "t":
            gap = now - session.ticked
            if not session.ticked:
                session.ticked = now
            elif gap > 1000:
                session.interval = min(max(gap, 5_000), 120_000)
        session.heard = max(session.heard, now)
        session.told_quiet = False
        leaf = tuple(map(report.context.get, DIMENSIONS))
        if leaf != session.leaf:
            session.leaf = tuple([new or old for new, old in zip(leaf, session.leaf, strict=True)])

    def _settle_start(self, session: Session, now: int) -> None:
        fold = session.fold
        if fold.started:
            session.outcome = "ok"
            self._window.add(session.leaf, "start_failures", bad=False)
            self._window.add(session.leaf, "start_timeouts", bad=False)
            self._window.add(session.leaf, "slow_starts", bad=fold.startup_ms > SLOW_START_MS)
        elif fold.failed:
            session.outcome = "failed"
            self._window.add(session.leaf, "start_failures", bad=True)
        elif session.over:
            waited = max(fold.since - fold.first, now - session.began)
            session.outcome = "failed" if waited >= LEAST_WAIT_MS else "left"
            if session.outcome == "failed":
                self._window.add(session.leaf, "start_failures", bad=True)

    def _count_end(self, session: Session) -> None:
        session.ended = True
        if session.fold.started:
            self._window.add(session.leaf, "failures", bad=session.fold.failed)
            stalled = session.stalled and self._window.start_ms - session.stalled_told >= ONCE_MS
            self._window.add(session.leaf, "stalls", bad=stalled)

    def _close_window(self) -> Window:
        window = self._window
        end = window.start_ms + WINDOW_MS
        dead = []
        for session in self._known.values():
            fold = session.fold
            over = fold.state in OVER
            silent = end - session.heard
            if silent > DEAD_MS:
                dead.append(session)
                continue
            if over:
                if silent > LINGER_MS and not session.told:
                    self._tell(session)
                continue
            waits = not session.outcome and fold.state != PRELOADING
            if waits and end - session.began > START_TIMEOUT_MS:
                session.outcome = "failed"
                window.add(session.leaf, "start_timeouts", bad=True)
                self.touched.add(session.name)
            limit = QUIET_AFTER * (session.interval or INTERVAL_MS)
            if silent > limit:
                if not session.told_quiet and fold.state in {PLAYING, STALLED}:
                    window.add(session.leaf, "silence", bad=True)
                    session.told_quiet = True
                    self.touched.add(session.name)
                continue
            self._count(session, window)
        for session in dead:
            self._forget(session)
        self._window = Window(end)
        return window

    def _count(self, session: Session, window: Window) -> None:
        """What a session that is there was in the window."""
        fold, leaf, start = session.fold, session.leaf, window.start_ms
        erred = session.erred and start - session.erred_told >= ONCE_MS
        row = window.row(leaf)
        row[_ERRORS] += 1
        row[_ERRORS + 1] += erred
        row[_SILENCE] += 1
        if fold.started:
            row[_FAILURES] += 1
        if fold.started and fold.state in {PLAYING, STALLED}:
            stalled = (session.stalled or fold.state == STALLED) and start - session.stalled_told >= ONCE_MS
            row[_STALLS] += 1
            row[_STALLS + 1] += stalled
            if stalled:
                session.stalled_told = start
                self.touched.add(session.name)
            if fold.state == PLAYING and fold.top_kbps and fold.kbps:
                low = fold.kbps < LOW_BITRATE * fold.top_kbps
                if not session.low:
                    row[_LOW] += 1
                    row[_LOW + 1] += low
                if low != session.low:
                    session.low = low
                    self.touched.add(session.name)
        if erred:
            session.erred_told = start
        if session.stalled or session.erred:
            session.stalled = session.erred = False
            self.touched.add(session.name)

    def _forget(self, session: Session) -> None:
        self._known.pop(session.name, None)
        self.touched.add(session.name)
        if not session.told:
            self._closed(session.summary())

    def _tell(self, session: Session) -> None:
        """Tell of a session that is over, and keep little of it."""
        self._closed(session.summary())
        session.shrink()
        self.touched.add(session.name)

    def dump(self) -> dict[str, Any]:
        """All but the sessions, as JSON takes it."""
        tally = self.tally
        return {
            "window": self._window.dump(),
            "tally": [tally.reports, tally.duplicates, tally.late, tally.evicted],
        }

    def session(self, name: str) -> Session | None:
        """A session; None where there is none of that name."""
        return self._known.get(name)

    @classmethod
    def load(
        cls, dumped: Mapping[str, Any], sessions: Iterable[Sequence[Any]], *, most: int = 200_000,
        closed: Callable[[Summary], None] = lambda _: None,
    ) -> Self:  # fmt: skip
        """The reverse of `dump`.

        Args:
            dumped: what `dump` gave.
            sessions: what Session.dump gave of each.
            most: as of the class.
            closed: as of the class.
        """
        window = Window.load(dumped["window"])
        loaded = cls(window.start_ms, most=most, closed=closed)
        loaded._window = window
        loaded.tally = Tally(*dumped["tally"])
        found = sorted((Session.load(one) for one in sessions), key=lambda session: session.heard)
        loaded._known = {session.name: session for session in found}
        return loaded


def _order(beat: Beat) -> tuple[int, int]:
    return beat[0], beat[1]
