"""The audience: its reports in the order in which a collector has them, and the truth about its incidents.

    audience = Audience(seed=1, start_ms=START, duration_s=86_400, incidents=schedule(1, 1, world=..., start_ms=START))
    for report in audience.reports(): ...
    audience.truths()

Viewers are advanced an epoch at a time, in machine code; their reports are then put in order and handed out one by one.
With a `route`, an epoch begins only once all reports before it were taken, so that whoever reads them can steer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from loadtests.audience.collector import ROW, collected, context_of
from loadtests.audience.incidents import HARMLESS, Incident, records
from loadtests.audience.playback import (
    CODES,
    EVENTS,
    HURT,
    OVER,
    SAID,
    STATES,
    VIEWER,
    advance,
)
from loadtests.audience.viewers import MEAN_VIEWING_S, STRETCH_MS, arrivals
from loadtests.audience.world import World, build_world
from serve.errors import InvalidInput
from serve.telemetry.reports import DIMENSIONS, Report

Route = Callable[[Mapping[str, str], int], str]
"""Asked with a session's context, its viewer as `sid`, and the time, UTC ms; answers the name of the CDN to use."""

EPOCH_MS: Final = 60_000
STEERED_EPOCH_MS: Final = 10_000
WARM_UP_S: Final = 5400.0
"""Simulated before the first report, so that as many watch then as at any time."""

_ROOM: Final = 16_384
_MOST_CACHED: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What an incident did.

    Attributes:
        incident: the incident.
        sessions: sessions that were there while it lasted.
        inside: those of them in its slice.
        hurt: `sid` of sessions that failed to start, waited for more than 4 s to start, stalled or met an error because
            of it, in the order in which they were hurt.
        first_hurt_ms: when the first was hurt, UTC ms; None where none was.
    """

    incident: Incident
    sessions: int
    inside: int
    hurt: tuple[str, ...]
    first_hurt_ms: int | None

    @property
    def share(self) -> float:
        """Share of all sessions that were hurt, 0 to 1."""
        return len(self.hurt) / self.sessions if self.sessions else 0.0


class Audience:
    """Viewers over some time, the same for the same arguments.

    Args:
        seed: of all that is drawn.
        start_ms: when the first report may come, UTC ms.
        duration_s: length, above 0.
        peak_concurrency: sessions at a time at an ordinary weekday's evening peak.
        interval_s: between time-interval reports: 30 by default of the standard; 10 is usual too.
        incidents: what happens.
        world: where; None: that of the seed.
        route: asked for the CDN at each viewer's start and every `route_ttl_s`; None: a weighted split by region.
        route_ttl_s: TTL of a steering answer.
        warm_up_s: simulated before the first report; shorter, and the first hour is watched by fewer than it should be.

    Raises:
        InvalidInput: a number out of range, or an incident in a slice that the world lacks.
    """

    def __init__(
        self, *, seed: int, start_ms: int, duration_s: float, peak_concurrency: float = 1500.0,
        interval_s: float = 30.0, incidents: Sequence[Incident] = (), world: World | None = None,
        route: Route | None = None, route_ttl_s: float = 300.0, warm_up_s: float = WARM_UP_S,
    ) -> None:  # fmt: skip
        positive = {
            "duration_s": duration_s, "peak_concurrency": peak_concurrency, "interval_s": interval_s,
            "route_ttl_s": route_ttl_s, "warm_up_s": warm_up_s,
        }  # fmt: skip
        for field, value in positive.items():
            if not (np.isfinite(value) and value > 0):
                raise InvalidInput(field=field, got=value, expected="a finite number above 0", next_step="Correct it.")
        self.seed = seed
        self.start_ms = start_ms
        self.end_ms = start_ms + int(duration_s * 1000)
        self.world = world or build_world(seed)
        self.incidents = tuple(incidents)
        self._starts_per_s = peak_concurrency / MEAN_VIEWING_S
        self._interval_ms = interval_s * 1000.0
        self._route = route
        self._warm_up_ms = int(warm_up_s * 1000)
        self._route_ttl_ms = route_ttl_s * 1000.0
        self._records = records(self.incidents, self.world)
        self._truths: tuple[Truth, ...] | None = None

    def reports(self) -> Iterator[Report]:
        """Its reports by `received_ms`, from the start each time this is called."""
        sessions: dict[int, str] = {}
        contexts: dict[int, dict[str, str]] = {}
        for rows in self.rows():
            if len(sessions) > _MOST_CACHED:
                sessions.clear()
            if len(contexts) > _MOST_CACHED:
                contexts.clear()
            yield from _reports(rows, sessions, contexts, self.world)

    def rows(self) -> Iterator[NDArray[np.void]]:
        """The same as arrays of collector.ROW, one an epoch: for counting, a hundred times faster."""
        run = _Run(self, self._records)
        step_ms = STEERED_EPOCH_MS if self._route else EPOCH_MS
        first = (self.start_ms - self._warm_up_ms) // step_ms * step_ms
        pending = np.zeros(0, dtype=ROW)
        for epoch in range(first, self.end_ms, step_ms):
            until = min(epoch + step_ms, self.end_ms)
            came = np.concatenate([pending, *run.advance(until)])
            due = came["at"] < until
            pending = came[~due]
            ready = came[due & (came["at"] >= self.start_ms)]
            if len(ready):
                yield ready[np.lexsort((ready["number"], ready["sid"], ready["at"]))]
        self._truths = run.truths()

    def truths(self) -> tuple[Truth, ...]:
        """What each incident did, in the order of `incidents`.

        Those of the last run of `reports` or `rows` that came to its end; where there is none, one is made (10 s a
        day).

        Raises:
            InvalidInput: a steered audience of which no run has come to its end.
        """
        if self._truths is None:
            if self._route is not None:
                raise InvalidInput(
                    field="truths", got="a steered audience that has not run",
                    expected="a run that came to its end: what is true depends on the steering",
                    next_step="Take all of reports() first.",
                )  # fmt: skip
            for _ in self.rows():
                pass
        assert self._truths is not None
        return self._truths

    def context(self, code: int) -> dict[str, str]:
        """The dimensions of a row's `context`."""
        return context_of(code, self.world)

    def _steer(self, viewers: NDArray[np.void], from_ms: int, until_ms: int) -> None:
        """Ask the route for those whose answer runs out before a time."""
        if self._route is None:
            return
        cdns = self.world.names[0]
        for place in np.flatnonzero((viewers["route"] < until_ms) & (viewers["phase"] != OVER)):
            viewer = viewers[place]
            now_ms = max(float(viewer["route"]), float(from_ms))
            context = {name: self.world.names[at][viewer[name]] for at, name in enumerate(DIMENSIONS)}
            answer = self._route({**context, "sid": f"{int(viewer['viewer']):016x}"}, int(now_ms))
            if answer not in cdns:
                raise InvalidInput(
                    field="route", got=answer, expected=f"one of {', '.join(cdns)}", next_step="Answer a CDN's name."
                )
            viewer["cdn"] = cdns.index(answer)
            viewer["route"] = now_ms + self._route_ttl_ms


class _Run:
    """One pass over an audience's time."""

    def __init__(self, audience: Audience, incidents: NDArray[np.void]) -> None:
        self._audience = audience
        self._incidents = incidents
        self._crowds = [one for one in audience.incidents if one.kind == "flash_crowd"]
        self._viewers = np.zeros(0, dtype=VIEWER)
        self._coming = np.zeros(0, dtype=VIEWER)
        self._stretch = -1
        self._exposed = np.zeros((max(1, len(incidents)), 2), dtype=np.int64)
        self._hurt: list[NDArray[np.void]] = []
        self._rows = np.zeros(_ROOM, dtype=SAID)
        self._hurt_room = np.zeros(_ROOM, dtype=HURT)
        self._until = 0

    def advance(self, until_ms: int) -> Iterator[NDArray[np.void]]:
        """Let everybody play until a time; what they reported, unordered."""
        audience = self._audience
        self._admit(until_ms)
        audience._steer(self._viewers, self._until, until_ms)  # noqa: SLF001 - two halves of one class
        self._until = until_ms
        going_on = (self._incidents["start"] < until_ms) & (self._incidents["end"] > until_ms - EPOCH_MS)
        active = self._incidents[going_on]
        place = 0
        while True:
            counts = np.zeros(2, dtype=np.int64)
            place = advance(
                self._viewers, place, float(until_ms), active, audience.world.log_kbps, self._exposed, self._rows,
                self._hurt_room, counts,
            )  # fmt: skip
            yield collected(self._rows[: counts[0]], self._viewers, active)
            if counts[1]:
                self._hurt.append(self._hurt_room[: counts[1]].copy())
            if place == len(self._viewers):
                break
        self._viewers = self._viewers[self._viewers["phase"] != OVER]

    def _admit(self, until_ms: int) -> None:
        """Let in those who come before a time."""
        audience = self._audience
        last = (until_ms - 1) // STRETCH_MS
        first = last if self._stretch < 0 else self._stretch + 1
        for stretch in range(first, last + 1):
            came = arrivals(
                seed=audience.seed, stretch=stretch, start_ms=audience.start_ms, world=audience.world,
                starts_per_s=audience._starts_per_s, interval_ms=audience._interval_ms, crowds=self._crowds,  # noqa: SLF001
            )  # fmt: skip
            self._coming = np.concatenate([self._coming, came])
            self._stretch = stretch
        count = int(np.searchsorted(self._coming["act"], until_ms))
        self._viewers = np.concatenate([self._viewers, self._coming[:count]])
        self._coming = self._coming[count:]

    def truths(self) -> tuple[Truth, ...]:
        """What each incident did so far."""
        hurt = np.concatenate([np.zeros(0, dtype=HURT), *self._hurt])
        hurt = hurt[np.lexsort((hurt["sid"], hurt["at"]))]
        found = []
        for place, incident in enumerate(self._audience.incidents):
            own = hurt[hurt["place"] == place]
            assert not (len(own) and incident.kind in HARMLESS)
            found.append(
                Truth(
                    incident=incident, sessions=int(self._exposed[place, 0]), inside=int(self._exposed[place, 1]),
                    hurt=tuple(f"{sid:016x}" for sid in own["sid"].tolist()),
                    first_hurt_ms=int(own["at"][0]) if len(own) else None,
                )
            )  # fmt: skip
        return tuple(found)


def _reports(
    rows: NDArray[np.void], sessions: dict[int, str], contexts: dict[int, dict[str, str]], world: World
) -> Iterator[Report]:
    """Rows in the form that the log gives them."""
    for at, ts, sid, code, number, event, state, error, br, bl, mtp, tb, msd, bsa, bsd, bsda in rows.tolist():
        context = contexts.get(code)
        if context is None:
            context = contexts[code] = context_of(code, world)
        session = sessions.get(sid)
        if session is None:
            session = sessions[sid] = f"{sid:016x}"
        values: dict[str, Any] = {
            "cdn": context["cdn"], "cid": context["title"], "e": EVENTS[event],
            "sf": "h" if context["protocol"] == "hls" else "d", "sid": session, "sn": number, "st": "v",
            "sta": STATES[state], "tb": {"v": tb}, "ts": ts, "v": 2, "br": {"v": br}, "bl": {"v": bl},
        }  # fmt: skip
        if mtp >= 0:
            values["mtp"] = {"v": mtp}
        if bsa >= 0:
            values["bsa"] = {"v": bsa}
            values["bsda"] = {"v": bsda}
            if bsd >= 0:
                values["bsd"] = {"v": bsd}
        if msd >= 0:
            values["msd"] = msd
        if error >= 0:
            values["ec"] = [CODES[error]]
        yield Report(session, at, values, context)
