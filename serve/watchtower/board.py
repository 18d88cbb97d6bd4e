"""What the replicas of the Watchtower tell each other and the rest of the service, in Redis: keys and records.

playhead:watchtower:lease:ROLE       who has a role, for as long as it lives
playhead:watchtower:replicas         replicas by when they were last heard of
playhead:watchtower:state:ROLE       a role's checkpoint (a hash; of sessions, one field a session)
playhead:watchtower:window:START     what each partition saw of a window
playhead:watchtower:alarms:START     signs of alarms that each shard of slices saw in it
playhead:outages                     outages by id: open ones, and those that closed lately
playhead:outages:log                 each change of an outage, a stream
playhead:outages:as_of               up to when outages are known, UTC ms

What gateways count of themselves is in serve.vitals, what is made of it in serve.watchtower.health.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson
import redis

from features.settings import Settings
from serve.telemetry.log import PARTITIONS
from serve.telemetry.windows import Window
from serve.watchtower.alarms import Alarm, slice_of
from serve.watchtower.networks import NetworkSums
from serve.watchtower.outages import Outage, as_json, from_json

Store = redis.Redis
"""Replies are bytes: no decoding is asked for."""

SHARDS: Final = 4
"""Of slices; another number begins their baselines anew."""

OUTAGES: Final = "playhead:outages"
LOG: Final = "playhead:outages:log"
AS_OF: Final = "playhead:outages:as_of"
CHANGE: Final = b"outage"
"""Field of the log's entries."""

MOST_LOGGED: Final = 10_000
KEPT_CLOSED_MS: Final = 7 * 86_400_000
WINDOW_TTL_S: Final = 3600
LATE_MS: Final = 15_000
"""A partition that stands still for so long is not waited for."""

_ALARM: Final = (
    "slice", "metric", "window_ms", "evidence", "expected", "total", "bad", "windows", "before", "excess",
)  # fmt: skip
_TIMEOUT_S: Final = 5.0
_PREFIX: Final = "playhead:watchtower"


def connect(settings: Settings) -> Store:
    """A connection with deadlines; it is made at the first call, and again after each loss."""
    return Store.from_url(settings.redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)


def lease_key(role: str) -> str:
    """Key of a role's lease."""
    return f"{_PREFIX}:lease:{role}"


def state_key(role: str) -> str:
    """Key of a role's checkpoint."""
    return f"{_PREFIX}:state:{role}"


def window_key(start_ms: int) -> str:
    """Key of what was seen of a window, by partition."""
    return f"{_PREFIX}:window:{start_ms}"


def alarms_key(start_ms: int) -> str:
    """Key of what is said of a window, by shard."""
    return f"{_PREFIX}:alarms:{start_ms}"


BEGAN: Final = f"{_PREFIX}:began"
PROGRESS: Final = f"{_PREFIX}:progress"
REPLICAS: Final = f"{_PREFIX}:replicas"


def session_roles() -> list[str]:
    """One role a partition of the log."""
    return [f"sessions:{partition}" for partition in range(PARTITIONS)]


def slice_roles() -> list[str]:
    """One role a shard of the slices."""
    return [f"slices:{shard}" for shard in range(SHARDS)]


OUTAGE_ROLE: Final = "outages"
VITALS_ROLE: Final = "vitals"
ROLLOUT_ROLE: Final = "rollouts"
ONLINE_ROLE: Final = "online"
WEBHOOK_ROLE: Final = "webhook"


def dump_window(window: Window, networks: NetworkSums) -> bytes:
    """What a partition saw of a window, as JSON."""
    return orjson.dumps([*window.dump(), networks.dump()])


def read_window(store: Store, start_ms: int) -> tuple[Window, NetworkSums]:
    """What all partitions saw of a window, and of networks in it."""
    found: Any = store.hgetall(window_key(start_ms))
    window, networks = Window(start_ms), NetworkSums()
    for _, dumped in sorted(found.items()):
        *part, measured = orjson.loads(dumped)
        window.merge(Window.load(part))
        networks.add(NetworkSums.load(measured))
    return window, networks


def is_complete(store: Store, end_ms: int, now_ms: int, since_ms: int) -> bool:
    """Whether every partition was read up to a moment, or has stood still for LATE_MS.

    Args:
        store: Redis or Valkey.
        end_ms: the moment.
        now_ms: by the store's clock.
        since_ms: when whoever asks began to: where nothing ran, partitions have stood still for long, and go on.
    """
    found: Any = store.hgetall(PROGRESS)
    progress = {int(partition): tuple(map(int, told.split(b":"))) for partition, told in found.items()}
    for partition in range(PARTITIONS):
        read_ms, written_ms = progress.get(partition, (0, 0))
        if read_ms < end_ms and now_ms - max(written_ms or end_ms, since_ms) < LATE_MS:
            return False
    return True


def dump_alarms(alarms: Sequence[Alarm]) -> bytes:
    """Alarms, or signs of them, as JSON."""
    return orjson.dumps([[getattr(alarm, name) for name in _ALARM] for alarm in alarms])  # infinity is null


def load_alarms(dumped: bytes) -> Iterator[Alarm]:
    """The reverse of `dump_alarms`; what a release before signs told is an alarm by any settings that it meets."""
    for pairs, metric, window_ms, evidence, expected, total, bad, windows, *more in orjson.loads(dumped):
        before, excess = more or (evidence, None)
        yield Alarm(
            slice=slice_of(pairs), metric=metric, window_ms=window_ms, evidence=evidence, expected=expected,
            total=total, bad=bad, windows=windows, before=before, excess=math.inf if excess is None else excess,
        )  # fmt: skip


def dump_outage(outage: Outage) -> bytes:
    """An outage as JSON."""
    return orjson.dumps(as_json(outage))


def load_outage(dumped: bytes) -> Outage:
    """The reverse of `dump_outage`."""
    document: dict[str, Any] = orjson.loads(dumped)
    return from_json(document)
