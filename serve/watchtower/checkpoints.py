"""Checkpoints of roles in the store, and the clock that roles go by."""

import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import orjson

from serve.errors import InvalidInput
from serve.watchtower import board
from serve.watchtower.board import Store

CHECKPOINT_EVERY: Final = 6
"""Windows between checkpoints of slices and outages; those between are judged again, with the same outcome."""

_log = logging.getLogger(__name__)


def store_ms(store: Store) -> int:
    """The store's clock, which names the log's entries: UTC ms.

    Args:
        store: Redis or Valkey.

    Raises:
        redis.RedisError: the store does not answer.
    """
    told: Any = store.time()
    seconds, microseconds = told
    return int(seconds) * 1000 + int(microseconds) // 1000


def place_of(entry: bytes) -> tuple[int, int]:
    """A log entry's name as numbers, which are in order."""
    millisecond, _, number = entry.partition(b"-")
    return int(millisecond), int(number)


@contextmanager
def beginning_anew(role: str) -> Iterator[None]:
    """Ends, with a warning, where a checkpoint cannot be read: another version wrote it, or it is damaged.

    Args:
        role: whose checkpoint it is.
    """
    try:
        yield
    except (InvalidInput, AttributeError, IndexError, KeyError, TypeError, ValueError, zlib.error) as error:
        _log.warning("watchtower: %s begins anew, its checkpoint cannot be read: %r", role, error)


def read_state(store: Store, role: str) -> dict[str, Any] | None:
    """A role's checkpoint; None where there is none.

    Args:
        store: Redis or Valkey.
        role: any but those of sessions, whose checkpoints are hashes.

    Raises:
        ValueError: what is there is no JSON.
        zlib.error: it is not compressed, or is damaged.
        redis.RedisError: the store does not answer.
    """
    dumped: Any = store.get(board.state_key(role))
    if dumped is None:
        return None
    document: dict[str, Any] = orjson.loads(zlib.decompress(dumped))
    return document


def state_command(role: str, state: dict[str, Any]) -> list[Any]:
    """The command that writes a checkpoint, to be committed with what came out: the reverse of `read_state`.

    Args:
        role: whose it is.
        state: numbers, text, lists and dicts of them.

    Raises:
        TypeError: there is something else in it.
    """
    return ["SET", board.state_key(role), zlib.compress(orjson.dumps(state), 1)]
