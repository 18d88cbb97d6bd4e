"""Versions of the model `quality` beside the champion's estimates: how far apart they are, by class of content.

An estimate has no outcome that would tell which of two versions is right, and answers of two versions at once would be
two rulers for the same encodes. So the champion makes all of them; a challenger or a shadow estimates some of the same
segments afterwards, and people look at the differences before they promote it.

playhead:rollout:compared:MODEL   replica -> {"ts", "versions": sums of differences by version and class}, JSON

What a replica told counts for a day after it told it last: replicas that are gone take their figures with them.

Differences are the other version's median minus the champion's, points of VMAF.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import hiredis
import orjson

from features.errors import StoreUnavailable
from features.layout import command
from features.link import StoreLink
from serve.clock import now_ms
from serve.logs import get
from serve.metrics import Metrics
from serve.quality.bitstream import BitstreamFacts
from serve.quality.estimates import MODEL, BitstreamEstimator, Estimate
from serve.rollout.fleet import Fleet

FLUSH_S: Final = 5.0

_MOST_SEGMENTS: Final = 64
"""Of a request that are compared."""
_HEIGHTS: Final = (360, 480, 720, 1080, 2160)
_DEADLINE_S: Final = 2.0
KEPT_S: Final = 86_400
_SWEEP_S: Final = 600.0


def compared_key(model: str) -> str:
    """Key of what was compared."""
    return f"playhead:rollout:compared:{model}"


def class_of(facts: BitstreamFacts) -> str:
    """A segment's class: its codec, and the usual height that it is nearest below or at."""
    height = next((usual for usual in _HEIGHTS if facts.height <= usual), _HEIGHTS[-1])
    return f"{facts.codec} {height}p"


@dataclass(slots=True)
class Differences:
    """Of one version, in one class.

    Attributes:
        segments: that both estimated.
        total: sum of the differences.
        absolute: sum of their sizes.
        largest: size of the largest.
    """

    segments: int = 0
    total: float = 0.0
    absolute: float = 0.0
    largest: float = 0.0

    def add(self, difference: float) -> None:
        """Count one."""
        self.merge(Differences(1, difference, abs(difference), abs(difference)))

    def merge(self, other: "Differences") -> None:
        """Add another one's."""
        self.segments += other.segments
        self.total += other.total
        self.absolute += other.absolute
        self.largest = max(self.largest, other.largest)

    def as_json(self) -> list[float]:
        """As JSON takes it."""
        return [self.segments, self.total, self.absolute, self.largest]

    @classmethod
    def from_json(cls, dumped: Sequence[Any]) -> Self:
        """The reverse of `as_json`.

        Raises:
            ValueError: it is something else.
            TypeError: likewise.
        """
        segments, total, absolute, largest = dumped
        return cls(int(segments), float(total), float(absolute), float(largest))


class EstimateComparison:
    """Compares, beside the answers. Belongs to one event loop.

    Args:
        fleet: the versions.
        redis_url: where the store is.
        replica: names this one.
        metrics: where failures are counted.
    """

    def __init__(self, fleet: Fleet[BitstreamEstimator], redis_url: str, replica: str, metrics: Metrics) -> None:
        self._fleet = fleet
        self._link = StoreLink(redis_url)
        self._replica = replica
        self._metrics = metrics
        self._sums: dict[str, dict[str, Differences]] = {}
        self._is_changed = False
        self._swept_s = -math.inf
        self._task: asyncio.Task[None] | None = None
        self._log = get("rollout")

    def compare(self, facts: Sequence[BitstreamFacts], estimates: Sequence[Estimate]) -> None:
        """Have other versions estimate what was answered; while one request is compared, others are left out.

        Args:
            facts: of the segments.
            estimates: the champion's, in their order.
        """
        lineup = self._fleet.lineup
        others = [one for one in (lineup.challenger, lineup.shadow) if one is not None and one.version is not None]
        if others and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._compare(others, facts[:_MOST_SEGMENTS], estimates[:_MOST_SEGMENTS]))

    async def _compare(
        self, others: Iterable[BitstreamEstimator], facts: Sequence[BitstreamFacts], estimates: Sequence[Estimate]
    ) -> None:
        for other in others:
            model = other.model
            try:
                made = await asyncio.to_thread(model.estimate, facts)
            except Exception:  # noqa: BLE001 - nobody waits for it
                self._metrics.stage_failure("compared", "estimate")
                self._log.exception("comparison failed", extra={"version": model.version})
                continue
            sums = self._sums.setdefault(model.version, {})
            for one, mine, theirs in zip(facts, estimates, made, strict=True):
                sums.setdefault(class_of(one), Differences()).add(theirs.vmaf - mine.vmaf)
            self._is_changed = True

    async def flush(self) -> None:
        """Tell what was compared since; call it each FLUSH_S."""
        wanted = self._fleet.lineup.plan.versions
        self._sums = {version: sums for version, sums in self._sums.items() if version in wanted}
        if not self._is_changed:
            return
        self._is_changed = False
        versions = {
            version: {name: found.as_json() for name, found in sums.items()} for version, sums in self._sums.items()
        }
        key, told = compared_key(MODEL), orjson.dumps({"ts": now_ms(), "versions": versions})
        try:
            await self._call(command("HSET", key, self._replica, told) + command("EXPIRE", key, KEPT_S), count=2)
            await self._sweep(key)
        except StoreUnavailable as error:
            self._is_changed = True
            self._metrics.stage_failure("compared", type(error).__name__)

    async def _sweep(self, key: str) -> None:
        """Now and then, remove what replicas told that are gone."""
        if time.monotonic() - self._swept_s < _SWEEP_S:
            return
        (held,) = await self._call(command("HGETALL", key))
        oldest_ms = now_ms() - KEPT_S * 1000
        pairs = zip(held[::2], held[1::2], strict=True) if isinstance(held, list) else ()
        if gone := [replica for replica, dumped in pairs if not _versions(dumped, oldest_ms)]:
            await self._call(command("HDEL", key, *gone))
        self._swept_s = time.monotonic()

    async def _call(self, payload: bytes, count: int = 1) -> list[Any]:
        replies = await self._link.call(payload, count=count, deadline_s=_DEADLINE_S)
        if any(isinstance(reply, hiredis.ReplyError) for reply in replies):
            self._metrics.stage_failure("compared", "ReplyError")
        return replies

    async def close(self) -> None:
        """End what goes on, and close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._link.close()


def _versions(dumped: bytes, oldest_ms: int) -> dict[str, Any]:
    """What a replica told, by version; empty where it was told before `oldest_ms`, or is something else."""
    try:
        told = orjson.loads(dumped)
        return dict(told["versions"]) if told["ts"] >= oldest_ms else {}
    except (KeyError, TypeError, ValueError):
        return {}


def read_compared(replicas: Iterable[bytes], versions: Mapping[str, str], at_ms: int) -> list[dict[str, Any]]:
    """What all replicas compared in KEPT_S, by version and class, most segments first.

    Args:
        replicas: what each told; what is too old, or cannot be read, is left out.
        versions: version -> role; others are left out.
        at_ms: the time now, UTC milliseconds.
    """
    together: dict[tuple[str, str], Differences] = {}
    for dumped in replicas:
        try:
            found = [
                ((version, name), Differences.from_json(sums))
                for version, classes in _versions(dumped, at_ms - KEPT_S * 1000).items()
                for name, sums in classes.items()
            ]
        except (AttributeError, TypeError, ValueError):
            continue
        for key, differences in found:
            together.setdefault(key, Differences()).merge(differences)
    return [
        {
            "version": version, "role": versions[version], "content": name, "segments": one.segments,
            "mean": round(one.total / one.segments, 3), "mean_absolute": round(one.absolute / one.segments, 3),
            "largest": round(one.largest, 3),
        }
        for (version, name), one in sorted(together.items(), key=lambda item: -item[1].segments)
        if version in versions and one.segments
    ]  # fmt: skip
