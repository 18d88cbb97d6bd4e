"""Keeping stages current while they serve: the champion of each model, the catalogue's file, the titles' statistics.

Each is looked at now and then; what is new is loaded and tried out beside the requests and then swapped in. What cannot
be loaded is refused with a log line and a count, and what was there before keeps answering.
"""

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from features.errors import FeaturesError
from features.popularity import TitleStatistics
from serve.artifacts import CHAMPION, read_champion
from serve.background import every
from serve.catalogue import load_titles
from serve.clock import now_ms
from serve.errors import PlayheadError
from serve.gateway.stages import ModelState
from serve.logs import get
from serve.metrics import Metrics
from serve.ranking import Ranker

_Mark = tuple[int, int, int] | None
"""What tells that a file is another one: modification time, size, inode; None where there is none."""

_ERROR_LENGTH: Final = 500
_COUNT_S: Final = 1.0
_RETRY_S: Final = 30.0
"""A refused model is tried again after so many seconds."""


class HasModel(Protocol):
    """A stage that answers with a model's version."""

    @property
    def version(self) -> str | None:
        """The version that answers; None without one."""
        ...

    async def load(self, path: Path) -> str:
        """Make the artifact in this folder answer; what it raises leaves the one before in its place."""
        ...


class LiveModel:
    """A stage's model and what keeps it the champion. Belongs to one event loop.

    Args:
        stage: loads the versions.
        models: folder of model artifacts.
        name: of the model.
        poll_s: seconds between looks at the champion.
        metrics: where versions and refusals are shown.

    Attributes:
        state: the version that answers, and what is wrong with the one that should.
    """

    def __init__(self, stage: HasModel, models: Path, name: str, poll_s: float, metrics: Metrics) -> None:
        self.state = ModelState(name=name, version=None, loaded_ts=None, state="missing")
        self._stage = stage
        self._models = models
        self._name = name
        self._poll_s = poll_s
        self._metrics = metrics
        self._log = get("live")
        self._mark: _Mark = None
        self._retry_at_s = 0.0

    async def run(self) -> None:
        """Look at the champion now and then, until cancelled."""
        await every(self._poll_s, self.look)

    async def look(self) -> None:
        """Load the champion if the pointer was written since last time, or if it was refused a while ago.

        What was wrong may have passed: a disk that came back, an artifact copied again.
        """
        name = self._name
        mark = await asyncio.to_thread(_mark, self._models / name / CHAMPION)
        again = self.state.state == "refused" and time.monotonic() >= self._retry_at_s
        if mark == self._mark and not again:
            return
        self._mark = mark
        before = self._stage.version
        try:
            path = await asyncio.to_thread(read_champion, self._models, name)
            if path is None:
                return
            if path.name != before:
                await self._stage.load(path)
        except Exception as error:  # noqa: BLE001 - whatever a model's files hold, the one before keeps answering
            detail = str(error)[:_ERROR_LENGTH]
            self.state = replace(self.state, state="refused", detail=detail)
            self._retry_at_s = time.monotonic() + _RETRY_S
            self._metrics.model_refused(name)
            self._log.error("model refused", extra={"model": name, "still": before, "error": detail})
            return
        loaded_ts = self.state.loaded_ts if path.name == before else now_ms()
        self.state = replace(self.state, version=self._stage.version, loaded_ts=loaded_ts, state="live", detail="")
        if before is not None:
            self._metrics.model_live(name, before, live=False)
        self._metrics.model_live(name, path.name, live=True)
        self._log.info("model live", extra={"model": name, "version": path.name, "before": before})


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where a ranker's parts come from, and how often they are looked at.

    Attributes:
        titles: the catalogue's titles.parquet.
        catalogue_poll_s: seconds between looks at the catalogue.
        title_stats_poll_s: seconds between reads of the statistics.
    """

    titles: Path
    catalogue_poll_s: float
    title_stats_poll_s: float


class LiveRanker:
    """A ranker and what keeps it current. Belongs to one event loop.

    Args:
        ranker: starts empty.
        sources: where its parts come from.
        statistics: reads the titles' statistics.
        metrics: where ages are shown.
        model: keeps its model current; None for a ranker that goes without.

    Attributes:
        ranker: makes pages; the same object for ever.
    """

    def __init__(
        self,
        ranker: Ranker,
        sources: Sources,
        statistics: TitleStatistics,
        metrics: Metrics,
        model: LiveModel | None = None,
    ) -> None:
        self.ranker = ranker
        self._model = model
        self._sources = sources
        self._statistics = statistics
        self._metrics = metrics
        self._log = get("live")
        self._catalogue_mark: _Mark = None
        self._memory: object = None
        self._counted = (0, 0)

    @property
    def states(self) -> tuple[ModelState, ...]:
        """The model that answers, and what is wrong with the one that should."""
        return () if self._model is None else (self._model.state,)

    async def start(self) -> None:
        """Load all there is. A model or statistics that cannot be had leave the ranker without them.

        Raises:
            InvalidInput: the catalogue is missing or damaged: there would be nothing to show.
        """
        self._catalogue_mark = await asyncio.to_thread(_mark, self._sources.titles)
        await self._show_catalogue()
        await self.look_at_statistics()
        if self._model is not None:
            await self._model.look()

    async def run(self) -> None:
        """Look at everything now and then, until cancelled."""
        sources = self._sources
        async with asyncio.TaskGroup() as group:
            group.create_task(every(_COUNT_S, self._count_memory))
            group.create_task(every(sources.catalogue_poll_s, self.look_at_catalogue))
            group.create_task(every(sources.title_stats_poll_s, self.look_at_statistics))
            if self._model is not None:
                group.create_task(self._model.run())

    async def look_at_catalogue(self) -> None:
        """Show the catalogue's file if it is another one than last time."""
        mark = await asyncio.to_thread(_mark, self._sources.titles)
        if mark == self._catalogue_mark:
            self._metrics.refreshed("catalogue", time.time())
            return
        self._catalogue_mark = mark
        try:
            await self._show_catalogue()
        except PlayheadError as error:
            self._log.error("catalogue refused, the one before stays", extra={"error": str(error)[:_ERROR_LENGTH]})
        else:
            self._log.info("catalogue shown", extra={"titles": self.ranker.n_titles})

    async def look_at_statistics(self) -> None:
        """Read the titles' statistics; those read before stay where the store does not answer."""
        try:
            stats = await self._statistics.read_all(self.ranker.title_ids)
        except FeaturesError as error:
            self._metrics.stage_failure("title_stats", type(error).__name__)
            return
        now = time.time()
        await self.ranker.note(stats, int(now * 1000))
        self._metrics.refreshed("title_stats", now)

    async def close(self) -> None:
        """Close the connection to the store."""
        await self._statistics.close()

    async def _show_catalogue(self) -> None:
        titles = await asyncio.to_thread(load_titles, self._sources.titles)
        await self.ranker.show(titles)
        self._metrics.catalogue_titles(self.ranker.n_titles)
        self._metrics.refreshed("catalogue", time.time())

    async def _count_memory(self) -> None:
        memory = self.ranker.memory
        if memory is not self._memory:
            self._memory, self._counted = memory, (0, 0)
        if memory is not None:
            hits, misses = memory.hits, memory.misses
            self._metrics.cache("encoder", hits=hits - self._counted[0], misses=misses - self._counted[1])
            self._counted = hits, misses


def _mark(path: Path) -> _Mark:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
