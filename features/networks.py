"""Throughput seen through one delivery network from one viewer's network: expected before a session's first sample.

The record is a distribution of ln(kbit/s).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from features.errors import InvalidData
from features.layout import entity_key
from features.link import StoreLink
from features.rows import Rows, writing
from features.settings import Settings
from features.views import NETWORK_THROUGHPUT

Network = tuple[str, str]
"""A cdn and an asn."""


KEPT_S: Final = 7 * 86_400
"""What is known of a network is forgotten when nothing was heard of it for so long: players name them."""

TIMEOUT_S: Final = 2.0
"""Longest wait of a writer, who has other work to do."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was seen on a network.

    Attributes:
        log_mean_kbps: mean of ln(kbit/s).
        log_std_kbps: its standard deviation, above 0.
        sessions: how many sessions it comes from.
        last_ts_ms: newest of them, UTC milliseconds.
    """

    log_mean_kbps: float
    log_std_kbps: float
    sessions: int
    last_ts_ms: int


class NetworkReader:
    """Reads what was seen on networks. Belongs to one event loop."""

    def __init__(self, settings: Settings, *, link: StoreLink | None = None) -> None:
        """Connects at the first read.

        Args:
            settings: where the store is.
            link: a connection to share; without one, its own.
        """
        self._link = link or StoreLink(settings.redis_url)

    async def read(self, networks: Sequence[Network], deadline_ms: float) -> dict[Network, Throughput | None]:
        """What was seen on networks, in one round trip; None where nothing was.

        Args:
            networks: which.
            deadline_ms: longest wait in milliseconds.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        return await _ROWS.read(self._link, networks, deadline_ms)

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()


def network_key(network: Network) -> bytes:
    """Redis key of a network's record."""
    return entity_key({"cdn": network[0], "asn": network[1]})


def store_throughput(settings: Settings, networks: Mapping[Network, Throughput]) -> None:
    """Write what was seen on networks, in the place of what was known before.

    Args:
        settings: where the store is.
        networks: (cdn, asn) -> what was seen.

    Raises:
        InvalidData: a mean that is not finite, or a deviation that is not above 0.
        StoreUnavailable: the store does not answer; write them again.
    """
    for network, seen in networks.items():
        if not _is_usable(seen):
            raise InvalidData(
                field=f"throughput of network {network}",
                got=(seen.log_mean_kbps, seen.log_std_kbps),
                expected="a finite mean and a deviation above 0, of ln(kbit/s)",
                next_step="Leave the network out until enough of it is known.",
            )
    with writing(settings, timeout_s=TIMEOUT_S) as pipe:
        _ROWS.put(pipe, networks)


def _is_usable(seen: Throughput) -> bool:
    return math.isfinite(seen.log_mean_kbps) and 0 < seen.log_std_kbps < math.inf


_ROWS: Final = Rows(NETWORK_THROUGHPUT, network_key, Throughput, _is_usable, kept_s=KEPT_S)
