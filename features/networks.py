"""Throughput seen through one delivery network from one viewer's network: expected before a session's first sample.

The record is a distribution of ln(kbit/s).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
from hiredis import ReplyError

from features.errors import CorruptRecord, InvalidData, StoreUnavailable
from features.layout import command, decode, entity_key
from features.link import StoreLink
from features.settings import Settings
from features.views import NETWORK_THROUGHPUT

Network = tuple[str, str]
"""A cdn and an asn."""

_FIELDS: Final = NETWORK_THROUGHPUT.fields()
_KINDS: Final = tuple(NETWORK_THROUGHPUT.features.values())
_TIMEOUT_S: Final = 10.0


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
        if not networks:
            return {}
        payload = b"".join(command("HMGET", network_key(network), *_FIELDS) for network in networks)
        rows = await self._link.call(payload, count=len(networks), deadline_s=deadline_ms / 1000)
        return {network: _throughput(values) for network, values in zip(networks, rows, strict=True)}

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
        if not math.isfinite(seen.log_mean_kbps) or not 0 < seen.log_std_kbps < math.inf:
            raise InvalidData(
                field=f"throughput of network {network}",
                got=(seen.log_mean_kbps, seen.log_std_kbps),
                expected="a finite mean and a deviation above 0, of ln(kbit/s)",
                next_step="Leave the network out until enough of it is known.",
            )
    client = redis.Redis.from_url(settings.redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
    try:
        with client, client.pipeline(transaction=False) as pipe:
            for network, seen in networks.items():
                row = {name: getattr(seen, name) for name in NETWORK_THROUGHPUT.features}
                fields = NETWORK_THROUGHPUT.row(row, seen.last_ts_ms)
                pipe.hset(network_key(network), items=fields)  # type: ignore[arg-type]  # keys are binary
            pipe.execute()
    except redis.RedisError as error:
        raise StoreUnavailable(
            field="online store",
            got=str(error),
            expected="a Redis or Valkey server that answers",
            next_step="Start the store or correct REDIS_URL; write them again.",
        ) from error


def _throughput(values: Any) -> Throughput | None:
    if isinstance(values, ReplyError) or values[0] is None:
        return None
    try:
        seen = Throughput(*[decode(kind, value or b"") for kind, value in zip(_KINDS, values, strict=True)])
    except CorruptRecord:
        return None
    usable = math.isfinite(seen.log_mean_kbps) and 0 < seen.log_std_kbps < math.inf
    return seen if usable else None
