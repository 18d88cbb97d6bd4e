"""Segments of a title's renditions: read by the bitrate planner, written by whoever packaged the title.

Units: bitrate kbit/s, time s, sizes bytes, VMAF 0 to 100.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import redis
from hiredis import ReplyError

from features.errors import CorruptRecord, InvalidData
from features.layout import ValueKind, command, corrupt, decode, entity_key
from features.link import StoreLink
from features.rows import writing
from features.settings import Settings
from features.views import RENDITION_SEGMENTS

MAX_RUNGS: Final = 12
"""Most rungs of a stored ladder, numbered from 0 by bitrate."""

_TITLES_AT_ONCE: Final = 64
_FIELDS: Final = RENDITION_SEGMENTS.fields()
_KINDS: Final = tuple(RENDITION_SEGMENTS.features.values())


@dataclass(frozen=True, slots=True)
class Rendition:
    """One rung of a title.

    Attributes:
        bitrate_kbps: nominal bitrate.
        segment_s: length of a segment.
        sizes_bytes: size of each segment.
        vmaf: quality of each segment; empty where nobody measured it.
    """

    bitrate_kbps: float
    segment_s: float
    sizes_bytes: Sequence[int]
    vmaf: Sequence[float] = ()


class RenditionReader:
    """Reads the renditions of titles. Belongs to one event loop."""

    def __init__(self, settings: Settings, *, link: StoreLink | None = None) -> None:
        """Connects at the first read.

        Args:
            settings: where the store is.
            link: a connection to share; without one, its own.
        """
        self._link = link or StoreLink(settings.redis_url)

    async def read(self, title_ids: Sequence[str], deadline_ms: float) -> dict[str, tuple[Rendition, ...]]:
        """Renditions of titles in one round trip.

        Args:
            title_ids: which.
            deadline_ms: longest wait in milliseconds.

        Returns:
            title_id -> renditions by rising rung; none for a title that nobody stored, or whose record is none of ours.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        if not title_ids:
            return {}
        payload = b"".join(
            command("HMGET", rendition_key(title_id, rung), *_FIELDS)
            for title_id in title_ids
            for rung in range(MAX_RUNGS)
        )
        rows = await self._link.call(payload, count=len(title_ids) * MAX_RUNGS, deadline_s=deadline_ms / 1000)
        return {
            title_id: _ladder(title_id, rows[place * MAX_RUNGS : (place + 1) * MAX_RUNGS])
            for place, title_id in enumerate(title_ids)
        }

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()


@dataclass(frozen=True, slots=True)
class Rung:
    """What one rung of a title is worth.

    Attributes:
        bitrate_kbps: nominal bitrate, above 0.
        mean_vmaf: of its segments.
    """

    bitrate_kbps: float
    mean_vmaf: float


def read_rungs(store: redis.Redis, titles: Sequence[str]) -> dict[str, tuple[Rung, ...]]:
    """Quality of titles' rungs by rising bitrate; none of a title that nobody measured, or whose record is not ours.

    Args:
        store: Redis or Valkey.
        titles: which; so many are asked for at a time that the answers stay small.

    Raises:
        redis.RedisError: the store does not answer.
    """
    fields: list[Any] = RENDITION_SEGMENTS.fields(["bitrate_kbps", "vmaf"])
    found = {}
    for start in range(0, len(titles), _TITLES_AT_ONCE):
        some = titles[start : start + _TITLES_AT_ONCE]
        with store.pipeline(transaction=False) as pipe:
            for title_id in some:
                for rung in range(MAX_RUNGS):
                    pipe.hmget(rendition_key(title_id, rung), fields)  # type: ignore[arg-type]  # keys are binary
            rows = pipe.execute(raise_on_error=False)
        for place, title_id in enumerate(some):
            found[title_id] = _rungs(rows[place * MAX_RUNGS : (place + 1) * MAX_RUNGS])
    return found


def rendition_key(title_id: str, rung: int) -> bytes:
    """Redis key of a rendition's record."""
    return entity_key({"title_id": title_id, "rung": str(rung)})


def store_renditions(settings: Settings, titles: Mapping[str, Iterable[Rendition]], ts_ms: int) -> int:
    """Write the renditions of titles; those of a title that were there before are replaced.

    Args:
        settings: where the store is.
        titles: title_id -> its renditions, in any order.
        ts_ms: when they were packaged, UTC milliseconds.

    Returns:
        Renditions written.

    Raises:
        InvalidData: a title has no rung or too many, or its renditions differ in their number of segments.
        StoreUnavailable: the store does not answer; write them again.
    """
    ladders = {title_id: _checked(title_id, renditions) for title_id, renditions in titles.items()}
    with writing(settings, transaction=True) as pipe:
        for title_id, ladder in ladders.items():
            for rung in range(MAX_RUNGS):
                key = rendition_key(title_id, rung)
                pipe.delete(key)
                if rung < len(ladder):
                    made = ladder[rung]
                    row = {name: getattr(made, name) for name in RENDITION_SEGMENTS.features}
                    pipe.hset(key, items=RENDITION_SEGMENTS.row(row, ts_ms))  # type: ignore[arg-type]  # keys are binary
    return sum(map(len, ladders.values()))


def _checked(title_id: str, renditions: Iterable[Rendition]) -> list[Rendition]:
    ladder = sorted(renditions, key=lambda rendition: rendition.bitrate_kbps)
    lengths = {len(rendition.sizes_bytes) for rendition in ladder}
    lengths |= {len(rendition.vmaf) for rendition in ladder if rendition.vmaf}
    if not 1 <= len(ladder) <= MAX_RUNGS or len(lengths) != 1:
        raise InvalidData(
            field=f"renditions of title {title_id}",
            got=f"{len(ladder)} rungs of {sorted(lengths)} segments",
            expected=f"1 to {MAX_RUNGS} rungs of one number of segments",
            next_step="Correct the title's renditions.",
        )
    return ladder


def _ladder(title_id: str, rows: Sequence[Any]) -> tuple[Rendition, ...]:
    ladder = []
    for values in rows:
        try:
            if isinstance(values, ReplyError):
                raise corrupt(f"renditions of title {title_id}", str(values))
            if values[0] is None:
                break
            ladder.append(Rendition(*[decode(kind, value or b"") for kind, value in zip(_KINDS, values, strict=True)]))
        except CorruptRecord:
            return ()
    return tuple(ladder)


def _rungs(rows: Sequence[Any]) -> tuple[Rung, ...]:
    rungs = []
    for row in rows:
        if isinstance(row, redis.ResponseError) or None in row:
            break
        try:
            kbps, vmaf = decode(ValueKind.FLOAT64, row[0]), decode(ValueKind.FLOAT32S, row[1])
        except CorruptRecord:
            return ()
        if kbps > 0 and vmaf:
            rungs.append(Rung(kbps, fmean(vmaf)))
    return tuple(rungs)
