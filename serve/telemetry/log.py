"""The log of what players said: Redis Streams, one a partition, in which a report lies before its player is answered.

Reports of one session lie in one partition, in order, so that whoever reads a partition sees whole sessions. An entry
holds what one request brought of a partition. How durable it is, is the store's setting, as of features.stream.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from hiredis import ReplyError

from features.errors import StoreUnavailable
from features.layout import command
from features.link import StoreLink
from features.settings import Settings
from serve.telemetry.reports import Plain, Report, context_of

PARTITIONS: Final = 8
"""Streams that sessions are spread over; another number would tear running sessions apart."""

FIELD: Final = b"said"
MOST_ENTRIES: Final = 50_000
"""Of a partition; the service refuses reports beyond it, for nothing that was acknowledged may be dropped."""


MOST_BYTES: Final = 128 << 20
"""Of a partition, likewise, about: an entry may hold as much as a request."""

_ASKED_EVERY_BYTES: Final = 4 << 20
"""A gateway asks how large a partition is after so much of its own, and each time while it is full."""


def stream_key(partition: int) -> str:
    """Key of a partition's stream."""
    return f"playhead:telemetry:{partition}"


def partition_of(session: str) -> int:
    """The partition of a session, 0 to PARTITIONS - 1; the same for ever."""
    return zlib.crc32(session.encode()) % PARTITIONS


@dataclass(frozen=True, slots=True)
class Said:
    """What one request brought.

    Attributes:
        received_ms: when, UTC milliseconds.
        given: dimensions that the request as a whole was about.
        reports: what the player said each time, with a `sid` each.
    """

    received_ms: int
    given: Mapping[str, str]
    reports: Sequence[Mapping[str, Plain]]

    def parts(self) -> dict[int, bytes]:
        """Partition -> entry."""
        by_partition: dict[int, list[Mapping[str, Plain]]] = {}
        for values in self.reports:
            by_partition.setdefault(partition_of(str(values["sid"])), []).append(values)
        return {
            partition: orjson.dumps({"at": self.received_ms, "given": self.given, "said": reports})
            for partition, reports in by_partition.items()
        }


def reports_of(entry: bytes) -> list[Report]:
    """The reports of an entry."""
    document: dict[str, Any] = orjson.loads(entry)
    received_ms, given = document["at"], document["given"]
    return [Report(str(values["sid"]), received_ms, values, context_of(values, given)) for values in document["said"]]


class TelemetryWriter:
    """Appends to the log. Belongs to one event loop.

    Args:
        settings: where the store is.
    """

    def __init__(self, settings: Settings) -> None:
        self._link = StoreLink(settings.redis_url)
        self._lengths: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._since_asked: dict[int, int] = {}

    async def write(self, said: Said, deadline_s: float) -> None:
        """Append; all of it is in the log when this returns.

        Args:
            said: what came, at least one report.
            deadline_s: longest wait for the store.

        Raises:
            StoreUnavailable: some of it may be in the log and some not: the caller may send all of it again.
        """
        parts = said.parts()
        unsure = [partition for partition in parts if self._is_full(partition) or self._is_due(partition)]
        if unsure:
            await self._measure(unsure, deadline_s)
            if any(map(self._is_full, unsure)):
                raise StoreUnavailable(
                    field="telemetry",
                    got=f"{MOST_ENTRIES} entries, or {MOST_BYTES >> 20} MiB, that nothing has read yet",
                    expected="a Watchtower that keeps up",
                    next_step="Look whether the Watchtower runs; reports are taken again once it caught up.",
                )  # fmt: skip
        appends = [("XADD", stream_key(partition), "*", FIELD, entry) for partition, entry in parts.items()]
        lengths = [("XLEN", stream_key(partition)) for partition in parts]
        replies = await self._call([*appends, *lengths], deadline_s)
        self._lengths.update(zip(parts, replies[len(parts) :], strict=True))
        for partition, entry in parts.items():
            self._since_asked[partition] = self._since_asked.get(partition, 0) + len(entry)

    def _is_full(self, partition: int) -> bool:
        return self._lengths.get(partition, 0) >= MOST_ENTRIES or self._sizes.get(partition, 0) >= MOST_BYTES

    def _is_due(self, partition: int) -> bool:
        return self._since_asked.get(partition, 0) >= _ASKED_EVERY_BYTES

    async def _measure(self, partitions: Sequence[int], deadline_s: float) -> None:
        """Ask how long and how large partitions are."""
        keys = [stream_key(partition) for partition in partitions]
        replies = await self._call(
            [*(("XLEN", key) for key in keys), *(("MEMORY", "USAGE", key) for key in keys)], deadline_s
        )
        self._lengths.update(zip(partitions, replies[: len(keys)], strict=True))
        self._sizes.update(zip(partitions, [size or 0 for size in replies[len(keys) :]], strict=True))
        self._since_asked.update(dict.fromkeys(partitions, 0))

    async def _call(self, commands: Sequence[tuple[str | bytes, ...]], deadline_s: float) -> list[Any]:
        """Send commands; their replies."""
        payload = b"".join([command(*one) for one in commands])
        replies = await self._link.call(payload, count=len(commands), deadline_s=deadline_s)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise StoreUnavailable(
                    field="online store", got=str(reply), expected="a store that takes writes",
                    next_step="See the store's log (memory, disk, read-only replica); send the same reports again.",
                )  # fmt: skip
        return replies

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()
