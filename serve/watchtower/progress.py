"""Which window is a role's first, and which is whole by now, for roles that go on window by window."""

from typing import Any

from serve.telemetry.log import PARTITIONS, stream_key
from serve.telemetry.windows import WINDOW_MS, Window
from serve.watchtower import board
from serve.watchtower.board import Store
from serve.watchtower.checkpoints import store_ms
from serve.watchtower.networks import NetworkSums


def first_ms(store: Store, partition: int) -> int:
    """When a partition's sessions begin that were never read: at its first entry, or now; UTC ms.

    Args:
        store: Redis or Valkey.
        partition: of the log.

    Raises:
        redis.RedisError: the store does not answer.
    """
    first: Any = store.xrange(stream_key(partition), count=1)
    now = store_ms(store)
    return min(int(first[0][0].split(b"-")[0]), now) if first else now


def begin(store: Store) -> int:
    """The first window of all, where the log began: the same for all roles, whichever comes first.

    Args:
        store: Redis or Valkey.

    Returns:
        When it begins, UTC ms.

    Raises:
        redis.RedisError: the store does not answer.
    """
    known: Any = store.get(board.BEGAN)
    if known is None:
        first = min(first_ms(store, partition) for partition in range(PARTITIONS))
        store.set(board.BEGAN, first // WINDOW_MS * WINDOW_MS, nx=True)
        known = store.get(board.BEGAN)
    return int(known)


def first_window(store: Store, role: str) -> int:
    """Where a role begins that knows of nothing: at the first window; where it is done with some, that is kept.

    Args:
        store: Redis or Valkey.
        role: which.

    Returns:
        When the window begins, UTC ms.

    Raises:
        redis.RedisError: the store does not answer.
    """
    first = begin(store)
    if not store.exists(board.state_key(role)):
        return first
    kept_since = store_ms(store) - 1000 * board.WINDOW_TTL_S
    return max(first, kept_since // WINDOW_MS * WINDOW_MS)


def next_window(store: Store, start_ms: int, since_ms: int) -> tuple[Window, NetworkSums] | None:
    """A window, and what was seen of networks in it, once all partitions have told of it; None before.

    Args:
        store: Redis or Valkey.
        start_ms: when the window begins.
        since_ms: when whoever asks began to.

    Raises:
        redis.RedisError: the store does not answer.
    """
    if not board.is_complete(store, start_ms + WINDOW_MS, store_ms(store), since_ms):
        return None
    return board.read_window(store, start_ms)
