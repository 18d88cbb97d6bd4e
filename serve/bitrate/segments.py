"""What is known of titles and networks: read from the feature store in one round trip, then remembered for a while.

A title's segments do not change while it plays, so most requests find them in memory; the store is asked again after a
minute. While it does not answer, what was read before stays; what was not read is named in `degraded`.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from features.errors import FeaturesError, StoreTimeout
from features.link import StoreLink
from features.networks import Network, NetworkReader, Throughput
from features.renditions import Rendition, RenditionReader
from features.settings import Settings
from serve.bitrate.observations import LOOKAHEAD
from serve.bitrate.planner import INLINE
from serve.bitrate.sessions import MAX_KBPS, MIN_KBPS, Session, nearest

TIMEOUT: Final = "segments_timeout"
UNAVAILABLE: Final = "segments_unavailable"
UNKNOWN_TITLE: Final = "unknown_title"

_FRESH_S: Final = 60.0
_ABSENT_S: Final = 5.0
_PAUSE_S: Final = 0.5
"""A store that did not answer is left alone for so long, so that no other session waits for it."""

_TITLES: Final = 256
"""Titles that are remembered; a feature film of six rungs takes about 100 KB."""

_NETWORKS: Final = 10_000
_MOST_READ: Final = 32
"""Titles, and networks, that one request may have read; the rest of a batch goes without until the next tick."""

_SAME_RUNG: Final = 0.05
"""A caller's rung is a stored one if their bitrates differ by no larger share."""

K = TypeVar("K")
V = TypeVar("V")


class _Memory(Generic[K, V]):
    """Values by key, the least recently used leaving first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[K, tuple[float, V | None]] = OrderedDict()

    def get(self, key: K, now_s: float) -> tuple[bool, V | None]:
        """Whether the value is fresh, and the value."""
        found = self._kept.pop(key, None)
        if found is None:
            return False, None
        self._kept[key] = found
        return now_s < found[0], found[1]

    def put(self, key: K, value: V | None, now_s: float) -> None:
        self._kept.pop(key, None)
        self._kept[key] = (now_s + (_ABSENT_S if value is None else _FRESH_S), value)
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)


@dataclass(frozen=True, slots=True, eq=False)
class TitleSegments:
    """The segments of one title.

    Attributes:
        rungs_kbps: ascending (R,).
        segment_s: length of a segment.
        segment_bytes: float32 (S, R).
        vmaf: float32 (S, R), or (0, R) where nobody measured it.
    """

    rungs_kbps: tuple[float, ...]
    segment_s: float
    segment_bytes: NDArray[np.float32]
    vmaf: NDArray[np.float32]

    @classmethod
    def of(cls, renditions: Sequence[Rendition]) -> "TitleSegments | None":
        """From stored renditions; None where they cannot be used."""
        rungs = tuple(rendition.bitrate_kbps for rendition in renditions)
        lengths = {len(rendition.sizes_bytes) for rendition in renditions}
        rising = all(MIN_KBPS <= kbps <= MAX_KBPS for kbps in rungs) and list(rungs) == sorted(set(rungs))
        if not rising or len(lengths) != 1 or not 0.05 <= renditions[0].segment_s <= 120.0:
            return None
        count = lengths.pop()
        sizes = np.array([rendition.sizes_bytes for rendition in renditions], np.float32).T
        rated = all(len(rendition.vmaf) == count for rendition in renditions)
        vmaf = np.array([rendition.vmaf for rendition in renditions if rated], np.float32).T
        if not count or not (sizes >= 1).all() or (rated and not ((vmaf >= 0) & (vmaf <= 100)).all()):
            return None
        return cls(rungs, renditions[0].segment_s, sizes, vmaf if rated else np.zeros((0, len(rungs)), np.float32))

    def columns(self, rungs_kbps: Sequence[float]) -> list[int] | None:
        """Which stored rung each of a caller's rungs is; None where one of them is not stored."""
        if tuple(rungs_kbps) == self.rungs_kbps:
            return list(range(len(self.rungs_kbps)))
        known = np.array(self.rungs_kbps)
        columns = []
        for kbps in rungs_kbps:
            column = int(np.abs(known - kbps).argmin())
            if abs(known[column] - kbps) > _SAME_RUNG * kbps:
                return None
            columns.append(column)
        return columns


class FeatureLookups:
    """Fills in what sessions do not say. Belongs to one event loop.

    Args:
        settings: where the store is, and the longest wait for it.
    """

    def __init__(self, settings: Settings) -> None:
        self._link = StoreLink(settings.redis_url)
        self._renditions = RenditionReader(settings, link=self._link)
        self._networks = NetworkReader(settings, link=self._link)
        self._deadline_ms = settings.store_deadline_ms
        self._titles: _Memory[str, TitleSegments] = _Memory(_TITLES)
        self._seen: _Memory[Network, Throughput] = _Memory(_NETWORKS)
        self._asked_at_s = 0.0
        self._why = UNAVAILABLE

    async def fill(self, sessions: Sequence[Session], within_s: float) -> None:
        """Add sizes, quality and expected throughput where sessions lack them; never raises.

        Args:
            sessions: changed in place.
            within_s: longest wait, seconds.
        """
        titles = [session for session in sessions if session.title_id and _lacks_segments(session)]
        networks = [session for session in sessions if session.cdn and session.asn and not session.throughput_kbps]
        if not titles and not networks:
            return
        now_s = time.monotonic()
        absent_titles = {session.title_id for session in titles if not self._titles.get(session.title_id, now_s)[0]}
        absent_networks = {
            (session.cdn, session.asn)
            for session in networks
            if not self._seen.get((session.cdn, session.asn), now_s)[0]
        }
        why = None
        if absent_titles or absent_networks:
            why = await self._read(
                sorted(absent_titles)[:_MOST_READ], sorted(absent_networks)[:_MOST_READ], within_s, now_s
            )
        for place, session in enumerate(titles):
            if place % INLINE == INLINE - 1:
                await asyncio.sleep(0)  # for other requests
            fresh, known = self._titles.get(session.title_id, now_s)
            if known is None:
                session.note(UNKNOWN_TITLE if fresh else why or TIMEOUT)
            else:
                _add_segments(session, known)
        for session in networks:
            fresh, seen = self._seen.get((session.cdn, session.asn), now_s)
            if seen is not None:
                session.prior_log_kbps = (seen.log_mean_kbps, seen.log_std_kbps)
            elif not fresh:
                session.note(why or TIMEOUT)

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    async def _read(
        self, title_ids: Sequence[str], networks: Sequence[Network], within_s: float, now_s: float
    ) -> str | None:
        """Ask the store for all at once; why it did not answer, else None."""
        if now_s < self._asked_at_s:
            return self._why
        deadline_ms = min(self._deadline_ms, 1000 * within_s)
        try:
            titles, seen = await asyncio.gather(  # both leave in one write
                self._renditions.read(title_ids, deadline_ms), self._networks.read(networks, deadline_ms)
            )
        except FeaturesError as error:
            self._why = TIMEOUT if isinstance(error, StoreTimeout) else UNAVAILABLE
            self._asked_at_s = time.monotonic() + _PAUSE_S
            return self._why
        for title_id, renditions in titles.items():
            self._titles.put(title_id, TitleSegments.of(renditions) if renditions else None, now_s)
        for network, throughput in seen.items():
            self._seen.put(network, throughput, now_s)
        return None


def _lacks_segments(session: Session) -> bool:
    return not session.rungs_kbps or not session.segment_bytes or (session.perceptual and not session.vmaf)


def _add_segments(session: Session, known: TitleSegments) -> None:
    """Give a session what is stored of its title."""
    if session.guessed or (not session.rungs_kbps and not session.ladder_size):
        if session.last_rung >= 0:
            session.last_rung = nearest(known.rungs_kbps, session.rungs_kbps[session.last_rung])
        session.rungs_kbps, session.places = known.rungs_kbps, range(len(known.rungs_kbps))
    columns = known.columns(session.rungs_kbps) if session.rungs_kbps else None
    if columns is None or session.segment_index < 0:
        return
    index, count = session.segment_index, len(known.segment_bytes)
    if index >= count:
        session.note("bad_field:segment_index")
        return
    session.remaining = min(session.remaining, float(count - index))
    upcoming = slice(index, index + LOOKAHEAD)
    if not session.segment_bytes:
        session.segment_bytes = known.segment_bytes[upcoming, columns].tolist()
    if len(known.vmaf) and not session.vmaf:
        session.vmaf = known.vmaf[upcoming, columns].tolist()
        if index and session.last_rung >= 0:
            session.last_vmaf = float(known.vmaf[index - 1, columns[session.last_rung]])
