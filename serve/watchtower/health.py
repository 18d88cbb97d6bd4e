"""How Playhead itself does, as the Watchtower judges it: records, and where they lie in Redis.

playhead:health       what was judged last, JSON; see `Health`
playhead:health:log   each episode's beginning and end, a stream; see `Change`

No detectors are imported here: gateways and rollouts read this.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import orjson
import redis

HEALTH: Final = "playhead:health"
LOG: Final = "playhead:health:log"
CHANGE: Final = b"change"
"""Field of the log's entries."""
MOST_LOGGED: Final = 10_000
STALE_MS: Final = 60_000
"""What was judged so long ago says nothing of now: the Watchtower does not run, or cannot keep up."""

_LAYOUT: Final = 1

Status = Literal["ok", "suspect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One signal of a version or a route: counts before and now, over all replicas.

    Attributes:
        signal: `errors` (5xx), `degraded` (of a route: answers that are less than they could be; of a version:
            decisions that something simpler made, or nobody in time), `slow`, `score_high` and `score_low` (beyond,
            below what nine in ten were).
        threshold: what is slow (seconds), high or low; None where nothing is measured, or it is not learned yet.
        before_bad: bad ones in the past that now is judged by; older ones count less.
        before_total: of so many.
        now_bad: bad ones in the latest minute with any.
        now_total: of so many.
        p_value: probability of the latest window, or the latest few, given the past; 1 where it cannot be judged yet.
        since_ts: when the episode that goes on was opened, UTC ms; None: none goes on.
    """

    signal: str
    threshold: float | None
    before_bad: float
    before_total: float
    now_bad: int
    now_total: int
    p_value: float
    since_ts: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionHealth:
    """How a version of a model does.

    Attributes:
        model: which model.
        version: which of its versions.
        status: `suspect` while any signal is in an episode.
        judged: whether any signal has enough of a past to be judged by; `ok` says nothing before.
        reasons: what is wrong, in words; empty when nothing is.
        readings: each signal.
    """

    model: str
    version: str
    status: Status
    judged: bool
    reasons: tuple[str, ...]
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteHealth:
    """How a route does; fields as of VersionHealth.

    Attributes:
        route: path template.
        status: `suspect` while any signal is in an episode.
        judged: whether any signal has enough of a past.
        reasons: what is wrong, in words.
        readings: each signal.
    """

    route: str
    status: Status
    judged: bool
    reasons: tuple[str, ...]
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartHealth:
    """How fresh a part is that answers are made from, on the replica where it is worst.

    Attributes:
        part: `title_stats`, `catalogue` or `outages`.
        status: `suspect` while it is too old.
        age_s: how long ago it was last read, seconds.
        limit_s: the largest age that is no trouble, seconds.
    """

    part: str
    status: Status
    age_s: float
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """Episodes of one signal of one subject.

    Attributes:
        what: `signal:subject`, such as `slow:recommend`, `errors:/v1/home` or `stale:catalogue`.
        version: of a model; empty where the subject is none.
        total: episodes that were opened since the Watchtower knows the subject.
        is_open: whether one goes on.
    """

    what: str
    version: str
    total: int
    is_open: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An episode begins or ends.

    Attributes:
        what: as Alarms has it.
        version: of a model; empty where the subject is none.
        is_open: True: it begins, False: it is over.
        at_ms: end of the window that shows it, UTC ms.
        said: in words; empty where there is nothing to say.
    """

    what: str
    version: str
    is_open: bool
    at_ms: int
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How Playhead does.

    Attributes:
        as_of_ms: end of the last window that was judged, UTC ms.
        versions: of all models, those that answered lately.
        routes: all that were asked for.
        parts: all that replicas told of in that window.
        alarms: all signals that ever were in an episode.
    """

    as_of_ms: int
    versions: tuple[VersionHealth, ...]
    routes: tuple[RouteHealth, ...]
    parts: tuple[PartHealth, ...]
    alarms: tuple[Alarms, ...]

    def version(self, model: str, version: str) -> VersionHealth | None:
        """How a version does; None where it made no decision lately."""
        return next((one for one in self.versions if (one.model, one.version) == (model, version)), None)

    def is_stale(self, at_ms: int) -> bool:
        """Whether it says nothing of a moment, UTC ms."""
        return at_ms - self.as_of_ms > STALE_MS


def dump_health(health: Health) -> bytes:
    """As JSON."""
    return orjson.dumps({"layout": _LAYOUT, **asdict(health)})


def load_health(dumped: bytes) -> Health:
    """The reverse of `dump_health`.

    Raises:
        ValueError: it is something else, or of another layout.
    """
    document: Any = orjson.loads(dumped)
    try:
        if document["layout"] != _LAYOUT:
            raise ValueError(f"layout {document['layout']!r} of health, expected {_LAYOUT}")
        return Health(
            as_of_ms=int(document["as_of_ms"]),
            versions=tuple(VersionHealth(**_judged(one)) for one in document["versions"]),
            routes=tuple(RouteHealth(**_judged(one)) for one in document["routes"]),
            parts=tuple(PartHealth(**one) for one in document["parts"]),
            alarms=tuple(Alarms(**one) for one in document["alarms"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"no health: {error!r}") from error


def _judged(document: Mapping[str, Any]) -> dict[str, Any]:
    readings = tuple(Reading(**one) for one in document["readings"])
    return {**document, "reasons": tuple(document["reasons"]), "readings": readings}


def dump_change(change: Change) -> bytes:
    """As JSON."""
    return orjson.dumps(asdict(change))


def load_change(dumped: bytes) -> Change:
    """The reverse of `dump_change`."""
    document: dict[str, Any] = orjson.loads(dumped)
    return Change(**document)


def read_health(store: redis.Redis) -> Health | None:
    """What was judged last; None where nothing ever was. See `Health.is_stale`.

    Args:
        store: Redis or Valkey; replies are bytes.

    Raises:
        ValueError: what is there is no health, or of another release's layout.
        redis.RedisError: the store does not answer.
    """
    dumped: Any = store.get(HEALTH)
    return None if dumped is None else load_health(dumped)
