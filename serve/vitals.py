"""What a gateway counts of itself: answers by route, decisions by version, ages of what answers are made from.

The request's path only adds to plain counters and histograms. Each WINDOW_MS they are written, as one field of a hash
in Redis, for the Watchtower, which adds all replicas' up and judges (serve.watchtower.selfwatch):

playhead:vitals:window:START   replica -> what it counted in the window that began at START, UTC ms; kept for an hour
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import hiredis
import orjson

from features.errors import StoreUnavailable
from features.layout import command
from features.link import StoreLink
from serve.clock import now_ms
from serve.histograms import Histogram, add, dump, load, merge
from serve.logs import RequestLogSettings, get
from serve.metrics import Metrics
from serve.schemas import MODEL_FAILED, Answer

WINDOW_MS: Final = 10_000
WINDOW_TTL_S: Final = 3600
LOOK_S: Final = 0.5
"""Seconds between looks at the clock: a window is written so long after its end at most, and then takes _DEADLINE_S."""
SAMPLE_EVERY: Final = 8
"""One in so many decisions is looked at for what was chosen."""

_SCORES: Final = 5
"""First titles of a page whose scores are looked at, of a sample."""

_DEADLINE_S: Final = 2.0
_LAYOUT: Final = 1
_ORDINARY: Final = RequestLogSettings().ordinary


def window_key(start_ms: int) -> str:
    """Key of what was counted in a window, by replica."""
    return f"playhead:vitals:window:{start_ms}"


@dataclass(slots=True)
class RouteCounts:
    """Answers of one route.

    Attributes:
        total: all.
        errors: with a status of 500 or more.
        degraded: less than they could be, but for what is ordinary (a new viewer).
        seconds: what they took.
    """

    total: int = 0
    errors: int = 0
    degraded: int = 0
    seconds: Histogram = field(default_factory=dict)

    def merge(self, other: "RouteCounts") -> None:
        """Add another one's."""
        self.total += other.total
        self.errors += other.errors
        self.degraded += other.degraded
        merge(self.seconds, other.seconds)


@dataclass(slots=True)
class VersionCounts:
    """Decisions of one version of a model.

    Attributes:
        total: all.
        failed: those that something simpler had to make, or nobody in time.
        seconds: what the version's own stage took.
        scores: what was chosen, of a sample.
    """

    total: int = 0
    failed: int = 0
    seconds: Histogram = field(default_factory=dict)
    scores: Histogram = field(default_factory=dict)

    def merge(self, other: "VersionCounts") -> None:
        """Add another one's."""
        self.total += other.total
        self.failed += other.failed
        merge(self.seconds, other.seconds)
        merge(self.scores, other.scores)


@dataclass(frozen=True, slots=True)
class Age:
    """How long ago a part was last read.

    Attributes:
        age_s: seconds.
        limit_s: the largest age that is no trouble, seconds.
    """

    age_s: float
    limit_s: float


@dataclass(slots=True)
class Window:
    """What was counted in one window, by one replica or by several.

    Attributes:
        routes: path template -> answers.
        models: model -> version -> decisions.
        parts: part -> age, the worst of all replicas; parts that were never read are not there.
    """

    routes: dict[str, RouteCounts] = field(default_factory=dict)
    models: dict[str, dict[str, VersionCounts]] = field(default_factory=dict)
    parts: dict[str, Age] = field(default_factory=dict)

    def merge(self, other: "Window") -> None:
        """Add another replica's."""
        for route, answers in other.routes.items():
            self.routes.setdefault(route, RouteCounts()).merge(answers)
        for model, versions in other.models.items():
            for version, decisions in versions.items():
                self.models.setdefault(model, {}).setdefault(version, VersionCounts()).merge(decisions)
        for part, age in other.parts.items():
            known = self.parts.get(part)
            if known is None or age.age_s * known.limit_s > known.age_s * age.limit_s:
                self.parts[part] = age

    def dump(self) -> bytes:
        """As JSON."""
        return orjson.dumps({
            "layout": _LAYOUT,
            "routes": {
                route: [one.total, one.errors, one.degraded, dump(one.seconds)] for route, one in self.routes.items()
            },
            "models": {
                model: {
                    version: [one.total, one.failed, dump(one.seconds), dump(one.scores)]
                    for version, one in versions.items()
                }
                for model, versions in self.models.items()
            },
            "parts": {part: [round(age.age_s, 3), age.limit_s] for part, age in self.parts.items()},
        })  # fmt: skip

    @classmethod
    def load(cls, dumped: bytes) -> "Window":
        """The reverse of `dump`.

        Raises:
            ValueError: it is something else, or of another layout.
        """
        document: Any = orjson.loads(dumped)
        try:
            if document["layout"] != _LAYOUT:
                raise ValueError(f"layout {document['layout']!r} of a window, expected {_LAYOUT}")
            return cls(
                routes={
                    route: RouteCounts(_count(total), _count(errors), _count(degraded), load(seconds))
                    for route, (total, errors, degraded, seconds) in document["routes"].items()
                },
                models={
                    model: {
                        version: VersionCounts(_count(total), _count(failed), load(seconds), load(scores))
                        for version, (total, failed, seconds, scores) in versions.items()
                    }
                    for model, versions in document["models"].items()
                },
                parts={part: Age(float(age_s), float(limit_s)) for part, (age_s, limit_s) in document["parts"].items()},
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no window of vitals: {error!r}") from error


def _count(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"count {number!r} of a window, expected a whole number, 0 or more")
    return number


class ModelVitals:
    """Where decisions of one model are told. Made by `Vitals.model`.

    Args:
        live: the version that should answer now, if any; asked where no answer says it.
    """

    def __init__(self, live: Callable[[], str | None]) -> None:
        self._live = live
        self._latest: str | None = None
        self._turn = 0
        self._versions: dict[str, VersionCounts] = {}

    def decided(self, version: str, total: int = 1, failed: int = 0, seconds: float | None = None) -> bool:
        """Count decisions that were made while this version answered.

        Args:
            version: which version.
            total: decisions.
            failed: of them, those that something simpler had to make.
            seconds: what the version's own stage took for them, above 0; None: it was not timed.

        Returns:
            Whether what was chosen is to be told (`scored`): of one in SAMPLE_EVERY timed calls.
        """
        known = self._versions.get(version)
        if known is None:
            known = self._versions[version] = VersionCounts()
            self._latest = version
        known.total += total
        known.failed += failed
        if seconds is None:
            return False
        add(known.seconds, seconds)
        self._turn += 1
        return not self._turn % SAMPLE_EVERY

    def answered(self, answer: Answer) -> None:
        """Count a page whose version is known: whether its model decided, and what it took and chose."""
        if answer.assigned is not None and answer.assigned.missed:
            self.decided(answer.assigned.version, failed=1)
        version = answer.versions.get("model")
        if version is None:
            return
        if answer.degraded and MODEL_FAILED in answer.degraded:
            self.decided(version, failed=1)
            return
        milliseconds = answer.timings_ms.get("ranker")
        if milliseconds is None:
            self.decided(version)
        elif self.decided(version, seconds=milliseconds / 1000) and (scores := answer.scores(_SCORES)):
            self.scored(version, sum(scores) / len(scores))

    def failed(self, total: int = 1) -> None:
        """Count decisions that had to be made without an answer, against the version that should have answered.

        Where none is known to be live, that is the one that began to answer last, if any.
        """
        version = self._live() or self._latest
        if version is not None:
            self.decided(version, total, total)

    def scored(self, version: str, score: float) -> None:
        """Note what was chosen, of a sample: the mean of a page's best scores, the place of a rung in its ladder."""
        add(self._versions.setdefault(version, VersionCounts()).scores, score)

    def take(self) -> dict[str, VersionCounts]:
        """What was counted since the last time."""
        taken, self._versions = self._versions, {}
        return taken


class Vitals:
    """What one process counts of itself. Belongs to one event loop; what it holds is one window's."""

    def __init__(self) -> None:
        self._routes: dict[str, RouteCounts] = {}
        self._models: dict[str, ModelVitals] = {}

    def model(self, name: str, live: Callable[[], str | None]) -> ModelVitals:
        """Where decisions of a model are told.

        Args:
            name: the model.
            live: the version that should answer now, if any.
        """
        return self._models.setdefault(name, ModelVitals(live))

    def answered(self, route: str, status: int, seconds: float, degraded: Sequence[str]) -> None:
        """Count one answer.

        Args:
            route: a path template, never a caller's path.
            status: of HTTP.
            seconds: what it took, above 0.
            degraded: why it is less than it could be.
        """
        known = self._routes.get(route)
        if known is None:
            known = self._routes[route] = RouteCounts()
        known.total += 1
        if status >= 500:
            known.errors += 1
        if degraded and not _ORDINARY.issuperset(degraded):
            known.degraded += 1
        add(known.seconds, seconds)

    def take(self) -> Window:
        """What was counted since the last time; counting begins anew."""
        routes, self._routes = self._routes, {}
        return Window(routes=routes, models={name: model.take() for name, model in self._models.items()})


class VitalsWriter:
    """Writes a process's windows for the Watchtower. Belongs to one event loop.

    A window that the store does not take is dropped, and counted as a failure of the stage `vitals`.

    Args:
        vitals: what is written.
        metrics: where ages are read from and failures are counted.
        redis_url: where the store is.
        replica: names this process among all.
        fresh_within_s: part, as Metrics.refreshed has it -> its largest age that is no trouble, seconds.
    """

    def __init__(
        self, vitals: Vitals, metrics: Metrics, redis_url: str, replica: str, fresh_within_s: Mapping[str, float]
    ) -> None:
        self._vitals = vitals
        self._metrics = metrics
        self._link = StoreLink(redis_url)
        self._replica = replica
        self._fresh_within_s = dict(fresh_within_s)
        self._start_ms = _window_of(now_ms())
        self._dropped = 0
        self._log = get("vitals")

    async def look(self) -> None:
        """Write the window that was counted in, if it is over; call it each LOOK_S."""
        at_ms = now_ms()
        if _window_of(at_ms) <= self._start_ms:  # or the clock was put back: what is counted goes on
            return
        start_ms, self._start_ms = self._start_ms, _window_of(at_ms)
        window = self._vitals.take()
        for part, limit_s in self._fresh_within_s.items():
            read_s = self._metrics.marks.get(part)
            if read_s is not None:
                window.parts[part] = Age(max(0.0, at_ms / 1000 - read_s), limit_s)
        key = window_key(start_ms)
        commands = command("HSET", key, self._replica, window.dump()) + command("EXPIRE", key, WINDOW_TTL_S)
        try:
            replies = await self._link.call(commands, count=2, deadline_s=_DEADLINE_S)
            for reply in replies:
                if isinstance(reply, hiredis.ReplyError):
                    raise reply
        except (StoreUnavailable, hiredis.ReplyError) as error:
            self._metrics.stage_failure("vitals", type(error).__name__)
            if not self._dropped:
                self._log.warning("windows are dropped", extra={"error": f"{type(error).__name__}: {error}"[:300]})
            self._dropped += 1
            return
        if self._dropped:
            self._log.info("windows are written again", extra={"dropped": self._dropped})
            self._dropped = 0

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()


def _window_of(at_ms: int) -> int:
    """When the window that a moment is in began."""
    return at_ms // WINDOW_MS * WINDOW_MS
