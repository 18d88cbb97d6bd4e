"""Which sessions asked for a bitrate while a rollout of its policy went on: told after the answer, in batches.

playhead:rollout:asked   a stream; an entry holds ids of sessions that were decided for by one rollout at one share

A gateway tells a session once a stage, as far as it remembers; whoever reads counts each once. Whose arm a session is
follows from its id (serve.rollout.assignment), so an entry needs no more than the rollout and the ids. What the store
does not take is dropped and counted: such sessions are of no arm.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import hiredis
import orjson

from features.errors import StoreUnavailable
from features.layout import command
from features.link import StoreLink
from serve.metrics import Metrics

STREAM: Final = "playhead:rollout:asked"
FIELD: Final = b"asked"
MOST_KEPT: Final = 4_000
"""Entries; four replicas that are busy all the time write as many in 4 minutes."""

_MOST_IDS: Final = 500
"""Of an entry."""
_MOST_WAITING: Final = 20_000
_MOST_REMEMBERED: Final = 100_000
"""Sessions; the one that was told longest ago is told again."""
_DEADLINE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Asked:
    """An entry.

    Attributes:
        salt: of the rollout.
        share: of the challenger.
        sessions: ids.
    """

    salt: str
    share: float
    sessions: tuple[str, ...]


class AskedWriter:
    """Tells of sessions. Belongs to one event loop.

    Args:
        redis_url: where the store is.
        metrics: where what was dropped is counted, as failures of the stage `asked`.
    """

    def __init__(self, redis_url: str, metrics: Metrics) -> None:
        self._link = StoreLink(redis_url)
        self._metrics = metrics
        self._rollout = ("", 0.0)
        self._told: OrderedDict[str, None] = OrderedDict()  # a dict takes 50 to 100 us to find its oldest
        self._waiting: deque[str] = deque()

    def decided(self, salt: str, share: float, sessions: Iterable[str | None]) -> None:
        """Sessions were decided for.

        Args:
            salt: of the rollout by which their versions were chosen; empty: none went on, and nothing is told.
            share: of the challenger.
            sessions: their ids; those without one are nobody's.
        """
        if not salt:
            return
        if (salt, share) != self._rollout:
            self._drop("stage over", len(self._waiting))
            self._waiting.clear()
            self._told.clear()
            self._rollout = salt, share
        for session in sessions:
            if not session or session in self._told:
                continue
            if len(self._waiting) >= _MOST_WAITING:
                self._drop("full", 1)
                continue
            if len(self._told) >= _MOST_REMEMBERED:
                self._told.popitem(last=False)
            self._told[session] = None
            self._waiting.append(session)

    async def flush(self) -> None:
        """Write what waits."""
        while self._waiting:
            salt, share = self._rollout
            count = min(_MOST_IDS, len(self._waiting))
            ids = [self._waiting.popleft() for _ in range(count)]
            entry = orjson.dumps({"salt": salt, "share": share, "sessions": ids})
            payload = command("XADD", STREAM, "MAXLEN", "~", MOST_KEPT, "*", FIELD, entry)
            try:
                (reply,) = await self._link.call(payload, deadline_s=_DEADLINE_S)
            except StoreUnavailable as error:
                self._drop(type(error).__name__, count)
                return
            if isinstance(reply, hiredis.ReplyError):
                self._drop("ReplyError", count)

    async def close(self) -> None:
        """Close the connection; what still waits is lost."""
        await self._link.close()

    def _drop(self, why: str, count: int) -> None:
        for _ in range(count):
            self._metrics.stage_failure("asked", why)


def read_asked(dumped: bytes) -> Asked:
    """An entry of the stream.

    Raises:
        ValueError: it is none.
    """
    document: Any = orjson.loads(dumped)
    if not isinstance(document, dict):
        raise ValueError("no sessions that asked: expected an object")  # noqa: TRY004 - as for all that is unreadable
    salt, share, sessions = (document.get(name) for name in ("salt", "share", "sessions"))
    if not isinstance(salt, str) or not isinstance(share, float | int) or not isinstance(sessions, list):
        raise ValueError("no sessions that asked: expected salt, share and sessions")  # noqa: TRY004 - likewise
    return Asked(salt, float(share), tuple(one for one in islice(sessions, _MOST_IDS) if isinstance(one, str)))
