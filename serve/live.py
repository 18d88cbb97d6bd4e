"""Keeping rankers current while they serve: the catalogue's file, titles put beside it, and the titles' statistics.

Each is looked at now and then; what is new is built and tried out beside the requests and then swapped in. What cannot
be loaded is refused with a log line and a count, and what was there before keeps answering. Which versions of the model
answer is the business of serve.rollout.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary, WeakSet

from features.additions import AddedTitles
from features.errors import FeaturesError
from features.popularity import TitleStatistics
from features.titles import Title
from serve.artifacts import Mark, mark_of
from serve.background import every
from serve.catalogue import load_titles
from serve.errors import PlayheadError
from serve.logs import get
from serve.memory import Memory
from serve.metrics import Metrics
from serve.ranking import Ranker, RankerSettings

_ERROR_LENGTH: Final = 500
_COUNT_S: Final = 1.0


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
    """Rankers of one catalogue, each with a version of the model or none. Belongs to one event loop.

    Args:
        settings: how they run.
        sources: where their parts come from.
        statistics: reads the titles' statistics.
        added: reads the titles that were put beside the catalogue's.
        metrics: where ages are shown.

    Attributes:
        ranker: goes without a model; the same object for ever.
    """

    def __init__(
        self,
        settings: RankerSettings,
        sources: Sources,
        statistics: TitleStatistics,
        added: AddedTitles,
        metrics: Metrics,
    ) -> None:
        self.ranker = Ranker(settings)
        self._settings = settings
        self._rankers = WeakSet([self.ranker])
        self._sources = sources
        self._statistics = statistics
        self._added = added
        self._metrics = metrics
        self._changing = asyncio.Lock()
        self._log = get("live")
        self._catalogue_mark: Mark = None
        self._own = tuple[Title, ...]()
        self._revision: bytes | None = None
        self._beside: list[Title] = []
        self._counted = WeakKeyDictionary[Memory, tuple[int, int]]()

    async def start(self) -> None:
        """Load all there is. Statistics that cannot be had leave the ranker without them.

        Raises:
            InvalidInput: the catalogue is missing or damaged: there would be nothing to show.
        """
        self._catalogue_mark = await asyncio.to_thread(mark_of, self._sources.titles)
        self._own = await asyncio.to_thread(load_titles, self._sources.titles)
        await self._look_at_added()
        await self._show_catalogue()
        await self.look_at_statistics()

    async def another(self) -> Ranker:
        """One more ranker, without a model yet; it is kept current for as long as anyone has it."""
        async with self._changing:
            ranker = self.ranker.twin()
            self._rankers.add(ranker)
        return ranker

    async def run(self) -> None:
        """Look at everything now and then, until cancelled."""
        sources = self._sources
        async with asyncio.TaskGroup() as group:
            group.create_task(every(_COUNT_S, self._count_memory))
            group.create_task(every(sources.catalogue_poll_s, self.look_at_catalogue))
            group.create_task(every(sources.title_stats_poll_s, self.look_at_statistics))

    async def look_at_catalogue(self) -> None:
        """Show the catalogue if its file, or what was put beside it, is another than last time."""
        mark = await asyncio.to_thread(mark_of, self._sources.titles)
        changed = await self._look_at_added()
        if mark == self._catalogue_mark and not changed:
            self._metrics.refreshed("catalogue", time.time())
            return
        try:
            if mark != self._catalogue_mark:
                self._catalogue_mark = mark
                self._own = await asyncio.to_thread(load_titles, self._sources.titles)
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
        async with self._changing:
            for ranker in self._all():
                await ranker.note(dict(stats), int(now * 1000))
        self._metrics.refreshed("title_stats", now)

    async def close(self) -> None:
        """Close the connection to the store."""
        await asyncio.gather(self._statistics.close(), self._added.close())

    def _all(self) -> list[Ranker]:
        """All rankers that there are; one may go at any moment, in another thread."""
        while True:
            with suppress(RuntimeError):  # it went just as the set was read
                return list(self._rankers)

    async def _look_at_added(self) -> bool:
        """Read the titles beside the catalogue's if they changed; those read before stay where the store fails."""
        try:
            revision = await self._added.revision()
            if revision == self._revision:
                return False
            self._beside = await self._added.read()
        except FeaturesError as error:
            self._metrics.stage_failure("added_titles", type(error).__name__)
            return False
        self._revision = revision
        return True

    async def _show_catalogue(self) -> None:
        titles = (*self._own, *self._beside)  # of titles with one id the last counts
        async with self._changing:
            await self.ranker.show(titles)
            for ranker in self._all():
                if ranker is self.ranker:
                    continue
                try:
                    await ranker.show_as(self.ranker)
                except PlayheadError as error:  # its model does not take them: it goes on with those before
                    told = {"version": ranker.version, "error": str(error)[:_ERROR_LENGTH]}
                    self._log.error("catalogue refused by a model, the one before stays there", extra=told)
        self._metrics.catalogue_titles(self.ranker.n_titles)
        self._metrics.refreshed("catalogue", time.time())

    async def _count_memory(self) -> None:
        for ranker in self._all():
            memory = ranker.memory
            if memory is not None:
                hits, misses = self._counted.get(memory, (0, 0))
                self._metrics.cache("encoder", hits=memory.hits - hits, misses=memory.misses - misses)
                self._counted[memory] = memory.hits, memory.misses
