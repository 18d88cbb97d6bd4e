"""Playhead watches itself: windows of what all gateways counted are judged against their past.

A version that begins to answer is judged by what was usual of the version before, so one that is bad from its first
decision shows. Windows are as serve.vitals has them; those in which nothing was counted are skipped. Times UTC ms.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from serve.vitals import Age, RouteCounts, VersionCounts, Window
from serve.watchtower.episodes import ALARMED, Series
from serve.watchtower.health import Alarms, Change, Health, PartHealth, Reading, RouteHealth, VersionHealth
from serve.watchtower.state import checked, stamped
from serve.watchtower.thresholds import SCORE_HIGH, SCORE_LOW, SLOW, Threshold

MOST_ROUTES: Final = 64
MOST_MODELS: Final = 16
MOST_VERSIONS: Final = 4
"""Versions of a model that are remembered; the one that was silent for longest goes first."""

ERRORS: Final = "errors"
DEGRADED: Final = "degraded"
STALE: Final = "stale"

_KIND: Final = "selfwatch"
_VERSION: Final = 1

_Changed = list[tuple[Series, bool]]


class _Subject:
    """What a route and a version of a model have in common: series of counts, and of values beyond thresholds."""

    counted: tuple[str, ...]
    measured: tuple[str, ...]

    def __init__(self) -> None:
        self.series = {signal: Series(signal, "more") for signal in self.counted}
        self.thresholds = {signal: Threshold(signal) for signal in self.measured}

    @property
    def all_series(self) -> list[Series]:
        return [*self.series.values(), *(one.series for one in self.thresholds.values())]

    @property
    def judged(self) -> bool:
        return any(one.judged for one in self.all_series)

    @property
    def open(self) -> list[Series]:
        return [one for one in self.all_series if one.since_ms is not None]

    def readings(self) -> tuple[Reading, ...]:
        return (
            *(one.reading(None) for one in self.series.values()),
            *(one.reading() for one in self.thresholds.values()),
        )

    def state(self) -> dict[str, Any]:
        return {
            "series": {signal: one.state() for signal, one in self.series.items()},
            "thresholds": {signal: one.state() for signal, one in self.thresholds.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.series = {signal: Series.from_state(one) for signal, one in state["series"].items()}
        self.thresholds = {signal: Threshold.from_state(one) for signal, one in state["thresholds"].items()}


class _Route(_Subject):
    """Answers of one route."""

    counted = (ERRORS, DEGRADED)
    measured = (SLOW,)

    def see(self, counts: RouteCounts, at_ms: int) -> _Changed:
        """Take a window in; the series whose episodes begin (True) or end."""
        errors, degraded, slow = self.series[ERRORS], self.series[DEGRADED], self.thresholds[SLOW]
        return _changed(
            (errors, errors.see(counts.errors, counts.total, at_ms)),
            (degraded, degraded.see(counts.degraded, counts.total, at_ms)),
            (slow.series, slow.see(counts.seconds, at_ms)),
        )


class _Version(_Subject):
    """Decisions of one version."""

    counted = (DEGRADED,)
    measured = (SLOW, SCORE_HIGH, SCORE_LOW)

    def __init__(self, before: "_Version | None" = None) -> None:
        super().__init__()
        self.silent = 0
        if before is not None:  # another version's scores may well have another scale
            self.series[DEGRADED] = before.series[DEGRADED].heir()
            self.thresholds[SLOW] = before.thresholds[SLOW].heir()

    def see(self, counts: VersionCounts, at_ms: int) -> _Changed:
        """Take a window in; the series whose episodes begin (True) or end."""
        self.silent = 0 if counts.total else self.silent + 1
        degraded, measured = self.series[DEGRADED], self.thresholds.items()
        return _changed(
            (degraded, degraded.see(counts.failed, counts.total, at_ms)),
            *(
                (one.series, one.see(counts.seconds if signal == SLOW else counts.scores, at_ms))
                for signal, one in measured
            ),
        )


def _changed(*seen: tuple[Series, bool | None]) -> _Changed:
    return [(series, is_open) for series, is_open in seen if is_open is not None]


class SelfWatch:
    """The judge of all windows, in order. Memory is bounded."""

    def __init__(self) -> None:
        self._routes: dict[str, _Route] = {}
        self._models: dict[str, dict[str, _Version]] = {}
        self._late: dict[str, int] = {}  # part -> windows in which it was too old, in a row
        self._parts: dict[str, Age] = {}
        self._alarms: dict[tuple[str, str], tuple[int, bool]] = {}  # episodes opened, and whether one goes on
        self._as_of_ms = 0

    def see(self, window: Window, end_ms: int) -> list[Change]:
        """Judge a window.

        Args:
            window: what all replicas counted.
            end_ms: when it ended, UTC ms.

        Returns:
            Episodes that begin and end with it.
        """
        self._as_of_ms = end_ms
        changes: list[Change] = []
        for route in sorted(self._routes.keys() | window.routes.keys()):
            known = self._routes.get(route) or (_Route() if len(self._routes) < MOST_ROUTES else None)
            if known is not None:
                self._routes[route] = known
                changed = known.see(window.routes.get(route, RouteCounts()), end_ms)
                changes += self._tell(changed, route, "", end_ms)
        for model in sorted(self._models.keys() | window.models.keys()):
            if model in self._models or len(self._models) < MOST_MODELS:
                changes += self._see_model(model, window.models.get(model, {}), end_ms)
        return changes + self._see_parts(window.parts, end_ms)

    def health(self) -> Health:
        """How all that is known does."""
        return Health(
            as_of_ms=self._as_of_ms,
            versions=tuple(
                VersionHealth(model=model, version=version, **_judged(one))
                for model, versions in self._models.items()
                for version, one in versions.items()
            ),
            routes=tuple(RouteHealth(route=route, **_judged(one)) for route, one in self._routes.items()),
            parts=tuple(
                PartHealth(
                    part=part, status="suspect" if self._is_open(f"{STALE}:{part}") else "ok", age_s=age.age_s,
                    limit_s=age.limit_s,
                )
                for part, age in self._parts.items()
            ),
            alarms=tuple(
                Alarms(what=what, version=version, total=total, is_open=is_open)
                for (what, version), (total, is_open) in sorted(self._alarms.items())
            ),
        )  # fmt: skip

    def _see_model(self, model: str, counts: Mapping[str, VersionCounts], end_ms: int) -> list[Change]:
        versions = self._models.setdefault(model, {})
        for version in sorted(counts.keys() - versions.keys()):
            versions[version] = _Version(_champion(versions.values()))
        changes: list[Change] = []
        for version, known in versions.items():
            changed = known.see(counts.get(version, VersionCounts()), end_ms)
            changes += self._tell(changed, model, version, end_ms)
        while len(versions) > MOST_VERSIONS:
            gone = max(versions, key=lambda one: versions[one].silent)
            changes += self._tell([(series, False) for series in versions.pop(gone).open], model, gone, end_ms)
            for what, version in list(self._alarms):
                if version == gone and what.endswith(f":{model}"):
                    del self._alarms[what, version]
        return changes

    def _see_parts(self, parts: Mapping[str, Age], end_ms: int) -> list[Change]:
        self._parts = dict(parts)
        self._late = {
            part: self._late.get(part, 0) + 1 if age.age_s > age.limit_s else 0 for part, age in sorted(parts.items())
        }
        late = {f"{STALE}:{part}" for part, windows in self._late.items() if windows >= ALARMED}
        was = {what for (what, _), (_, is_open) in self._alarms.items() if is_open and what.startswith(f"{STALE}:")}
        changes = []
        for what in sorted(late ^ was):
            age = parts.get(what.partition(":")[2])
            said = "" if age is None else f"{STALE}: read {age.age_s:.0f} s ago, {age.limit_s:.0f} s are allowed"
            changes.append(self._change(what, "", end_ms, said, is_open=what in late))
        return changes

    def _tell(self, changed: _Changed, subject: str, version: str, at_ms: int) -> list[Change]:
        return [
            self._change(f"{series.signal}:{subject}", version, at_ms, series.said(), is_open=is_open)
            for series, is_open in changed
        ]

    def _change(self, what: str, version: str, at_ms: int, said: str, *, is_open: bool) -> Change:
        total, _ = self._alarms.get((what, version), (0, False))
        self._alarms[what, version] = (total + is_open, is_open)
        return Change(what=what, version=version, is_open=is_open, at_ms=at_ms, said=said)

    def _is_open(self, what: str) -> bool:
        return self._alarms.get((what, ""), (0, False))[1]

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned. A watch restored from it judges the same."""
        return stamped(_KIND, _VERSION, {
            "routes": {route: one.state() for route, one in self._routes.items()},
            "models": {
                model: {version: [one.silent, one.state()] for version, one in versions.items()}
                for model, versions in self._models.items()
            },
            "late": self._late, "parts": {part: [age.age_s, age.limit_s] for part, age in self._parts.items()},
            "alarms": [[what, version, *told] for (what, version), told in self._alarms.items()],
            "as_of_ms": self._as_of_ms,
        })  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "SelfWatch":
        """The watch that wrote this checkpoint.

        Raises:
            InvalidInput: something else, or another version, wrote it.
        """
        state = checked(state, _KIND, _VERSION)
        watch = cls()
        for route, told in state["routes"].items():
            watch._routes[route] = _Route()
            watch._routes[route].restore(told)
        for model, versions in state["models"].items():
            watch._models[model] = {}
            for version, (silent, told) in versions.items():
                known = watch._models[model][version] = _Version()
                known.restore(told)
                known.silent = silent
        watch._late = dict(state["late"])
        watch._parts = {part: Age(*age) for part, age in state["parts"].items()}
        watch._alarms = {(what, version): (total, is_open) for what, version, total, is_open in state["alarms"]}
        watch._as_of_ms = state["as_of_ms"]
        return watch


def _champion(versions: Iterable[_Version]) -> _Version | None:
    """The version that a new one is judged by: the one that has been judged for longest of those that answer."""
    judged = [one for one in versions if one.series[DEGRADED].judged]
    return max(judged, key=lambda one: (-one.silent, one.series[DEGRADED].windows), default=None)


def _judged(subject: _Subject) -> dict[str, Any]:
    reasons = tuple(one.said() for one in subject.open)
    return {
        "status": "suspect" if reasons else "ok", "judged": subject.judged, "reasons": reasons,
        "readings": subject.readings(),
    }  # fmt: skip
