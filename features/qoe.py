"""How playback went lately, by network and by title: shares of what went wrong, from what players tell.

Shares are 0 to 1, and lower is better. Where little was heard they are near those of the whole audience.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from features.errors import InvalidData
from features.link import StoreLink
from features.networks import KEPT_S, TIMEOUT_S, Network, network_key
from features.popularity import title_key
from features.rows import Rows, writing
from features.settings import Settings
from features.views import NETWORK_QOE, TITLE_QOE


@dataclass(frozen=True, slots=True)
class Qoe:
    """How playback went on a network, or of a title.

    Attributes:
        weight: what it comes from: windows of ten seconds in which a session was there, each session's counted, and
            starts that failed; each worth half as much every half hour. 0 or more.
        start_failures: share of starts that ended without a picture, or of which nothing was heard for too long.
        slow_starts: share of starts that took too long, of those that succeeded.
        stalls: share of sessions by window that stalled, of those that played or stalled.
        failures: share of sessions by window that ended in an error, of those that had started.
        low_bitrate: share of sessions by window that fell far below the best they were offered, of those that played.
        last_ts_ms: end of the newest window that it comes from, UTC milliseconds.
    """

    weight: float
    start_failures: float
    slow_starts: float
    stalls: float
    failures: float
    low_bitrate: float
    last_ts_ms: int


class QoeReader:
    """Reads how playback went. Belongs to one event loop."""

    def __init__(self, settings: Settings, *, link: StoreLink | None = None) -> None:
        """Connects at the first read.

        Args:
            settings: where the store is.
            link: a connection to share; without one, its own.
        """
        self._link = link or StoreLink(settings.redis_url)

    async def read_networks(self, networks: Sequence[Network], deadline_ms: float) -> dict[Network, Qoe | None]:
        """How playback went on networks, in one round trip; None where too little was heard of one.

        Args:
            networks: each a cdn and an asn.
            deadline_ms: longest wait in milliseconds.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        return await _NETWORKS.read(self._link, networks, deadline_ms)

    async def read_titles(self, title_ids: Sequence[str], deadline_ms: float) -> dict[str, Qoe | None]:
        """How playback of titles went, in one round trip; None where too little was heard of one.

        Args:
            title_ids: which.
            deadline_ms: longest wait in milliseconds.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        return await _TITLES.read(self._link, title_ids, deadline_ms)

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()


def store_qoe(settings: Settings, networks: Mapping[Network, Qoe], titles: Mapping[str, Qoe]) -> None:
    """Write how playback went, in the place of what was known before; what is not named stays.

    Args:
        settings: where the store is.
        networks: (cdn, asn) -> how it went there.
        titles: title_id -> how it went; what players name and the store knows nothing else of is left out.

    Raises:
        InvalidData: a share that is not within 0 to 1, or a weight that is not finite or below 0; nothing is written.
        StoreUnavailable: the store does not answer; write them again.
    """
    for entity, seen in chain(networks.items(), titles.items()):
        if not _is_usable(seen):
            raise InvalidData(
                field=f"qoe of {entity}",
                got=seen,
                expected="shares of 0 to 1 and a weight of 0 or more",
                next_step="Leave it out until enough of it is known.",
            )
    with writing(settings, timeout_s=TIMEOUT_S) as pipe:
        _NETWORKS.put(pipe, networks)
        for title_id in titles:
            pipe.exists(title_key(title_id))
        known = pipe.execute()[-len(titles) :] if titles else []
        _TITLES.put(pipe, {one: seen for (one, seen), is_known in zip(titles.items(), known, strict=True) if is_known})


def _is_usable(seen: Qoe) -> bool:
    shares = seen.start_failures, seen.slow_starts, seen.stalls, seen.failures, seen.low_bitrate
    return 0 <= seen.weight < math.inf and all(0 <= share <= 1 for share in shares)


_NETWORKS: Final = Rows(NETWORK_QOE, network_key, Qoe, _is_usable, kept_s=KEPT_S)
_TITLES: Final = Rows(TITLE_QOE, title_key, Qoe, _is_usable)
