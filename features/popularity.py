"""How viewers take each title: counts and a trend, kept by title.

The trend is the number of plays where each is worth half as much every HALF_LIFE_MS, kept as
    log2(sum over plays of 2 ** (ts / HALF_LIFE_MS)),
which needs no clock, never has to be decayed in place, and does not depend on the order in which plays arrive.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hiredis import ReplyError

from features.errors import CorruptRecord, StoreUnavailable
from features.events import EventKind
from features.layout import command, corrupt, decode, entity_key
from features.link import StoreLink
from features.settings import Settings
from features.views import TITLE_STATS

HALF_LIFE_MS: Final = 3 * 24 * 3600 * 1000

COUNTED: Final[dict[EventKind, str]] = {
    EventKind.IMPRESSION: "impressions",
    EventKind.PLAY: "plays",
    EventKind.FINISH: "finishes",
    EventKind.THUMBS_UP: "thumbs_up",
    EventKind.THUMBS_DOWN: "thumbs_down",
}
"""Which count of title_stats each kind of event adds to."""

NO_TREND: Final = -math.inf

_CHUNK: Final = 100
_FIELDS: Final = TITLE_STATS.fields()
_KINDS: Final = tuple(TITLE_STATS.features.values())
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TitleStats:
    """How viewers took one title so far.

    Attributes:
        impressions: times shown.
        plays: times started.
        finishes: times watched to the end.
        thumbs_up: times liked.
        thumbs_down: times disliked.
        last_ts_ms: newest event, impressions aside, UTC milliseconds; 0 none.
        trend: log2 of the decayed plays at time zero of the epoch; -inf without plays. Differences between titles are
            what matters; `decayed_plays` gives a number of plays.
    """

    impressions: int = 0
    plays: int = 0
    finishes: int = 0
    thumbs_up: int = 0
    thumbs_down: int = 0
    last_ts_ms: int = 0
    trend: float = NO_TREND

    def decayed_plays(self, now_ms: int) -> float:
        """Plays, each worth half as much every HALF_LIFE_MS; later plays than now_ms count as more than one."""
        return math.exp2(min(self.trend - now_ms / HALF_LIFE_MS, 1000.0))


def add_logs(first: float, second: float) -> float:
    """log2(2 ** first + 2 ** second) without overflow."""
    high, low = max(first, second), min(first, second)
    return high if low == NO_TREND else high + math.log2(1.0 + math.exp2(low - high))


def subtract_logs(whole: float, part: float) -> float:
    """log2(2 ** whole - 2 ** part); NO_TREND where nothing is left."""
    if part == NO_TREND:
        return whole
    left = 1.0 - math.exp2(part - whole)
    return whole + math.log2(left) if left > 0 else NO_TREND


def title_key(title_id: str) -> bytes:
    """Redis key of a title's record."""
    return entity_key({"title_id": title_id})


class TitleStatistics:
    """Reads the statistics of many titles. Belongs to one event loop."""

    def __init__(self, settings: Settings, *, link: StoreLink | None = None) -> None:
        """Connects at the first read.

        Args:
            settings: where the store is.
            link: a connection to share; without one, its own.
        """
        self._link = link or StoreLink(settings.redis_url)

    async def read_all(self, title_ids: Sequence[str], deadline_ms: float = 5000.0) -> dict[str, TitleStats]:
        """Statistics of titles, read in chunks between which other work of the loop runs.

        Args:
            title_ids: which.
            deadline_ms: longest wait for one chunk, in milliseconds.

        Returns:
            title_id -> statistics; zeros for a title without events, and, with a line in the log, for one whose record
            is none of ours: it must not keep all others from being read.

        Raises:
            StoreUnavailable: the store does not answer; keep what was read before.
        """
        found: dict[str, TitleStats] = {}
        for start in range(0, len(title_ids), _CHUNK):
            chunk = title_ids[start : start + _CHUNK]
            payload = b"".join([command("HMGET", title_key(title), *_FIELDS) for title in chunk])
            rows = await self._link.call(payload, count=len(chunk), deadline_s=deadline_ms / 1000)
            for title, values in zip(chunk, rows, strict=True):
                if isinstance(values, ReplyError) and not str(values).startswith("WRONGTYPE"):
                    raise StoreUnavailable(
                        field="online store",
                        got=str(values),
                        expected="a store that answers reads",
                        next_step="See the store's log; try again.",
                    )
                try:
                    found[title] = decode_title_stats(title, values)
                except CorruptRecord as error:
                    _log.warning("statistics of title %s: %s", title, error)
                    found[title] = TitleStats()
            await asyncio.sleep(0)
        return found

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()


def decode_title_stats(title_id: str, values: Sequence[bytes | None] | ReplyError) -> TitleStats:
    """Statistics in a title's record; zeros where there is none.

    Raises:
        CorruptRecord: the values are no record.
    """
    if isinstance(values, ReplyError):
        raise corrupt(f"record of title {title_id}", str(values))
    if values[0] is None:
        return TitleStats()
    return TitleStats(*[decode(kind, value or b"") for kind, value in zip(_KINDS, values, strict=True)])
