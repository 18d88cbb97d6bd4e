"""The ranker: from a profile's features to a rendered page, on whatever model, catalogue and statistics are live.

All that an answer is made from hangs on one reference (`_Live`), which is replaced as a whole when a model is loaded,
the catalogue changes or statistics are read. A request takes it once, so it never sees half of a change, and nothing
waits for a change. What is new is built and tried out in a thread before.

Requests whose turn comes in the same round of the event loop share one engine call; none waits for another.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import orjson
from numpy.typing import NDArray

from features.popularity import TitleStats
from features.profiles import ProfileFeatures, ProfileStats
from features.ranking import title_statistics
from features.titles import Title
from serve.catalogue import Catalogue
from serve.engines import Device
from serve.errors import NotFound
from serve.exploration import Draw, Exploration, Slots
from serve.inheritance import Inheritance
from serve.logs import get
from serve.memory import Acquaintance, Memory
from serve.pages import ESTIMATES, PageBuilder, Ranking, Setting
from serve.rendering import render_items, render_rows
from serve.schemas import MODEL_FAILED, Answer, HomeQuery
from serve.scoring import RankingModel, Scorer
from serve.shelves import Popularity, Shelf, Stock, directions

CATALOGUE_MISSING: Final = "catalogue_missing"
MODEL_MISSING: Final = "model_missing"
STATISTICS_MISSING: Final = "statistics_missing"
UNKNOWN_PROFILE: Final = "unknown_profile"
EMPTY_HISTORY: Final = "empty_history"
STALE_PROFILE: Final = "stale_profile"

_ORDINARY: Final = frozenset({UNKNOWN_PROFILE, EMPTY_HISTORY})
"""Reasons for less that are nobody's fault: such pages are explored as others are."""

_log = get("ranking")


@dataclass(frozen=True, kw_only=True)
class RankerSettings:
    """How a ranker runs.

    Attributes:
        device: where the engines run.
        threads: CPU threads of one engine call.
        remembered: viewers whose folded history and state are kept, about 8 KB each.
        pages: which rows there are, and how varied.
        exploration: how much of them is explored.
    """

    device: Device = "auto"
    threads: int = 1
    remembered: int = 10_000
    pages: PageBuilder = field(default_factory=PageBuilder)
    exploration: Exploration = field(default_factory=Exploration)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Live:
    """All that answers are made from, at one moment."""

    stock: Stock
    scorer: Scorer | None
    memory: Memory
    versions: dict[str, str]
    degraded: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Job:
    """One viewer to rank for."""

    scorer: Scorer
    who: Acquaintance
    eligible: NDArray[np.bool_]
    context: NDArray[np.float32]
    done: asyncio.Future[Ranking]
    encode_ms: float = 0.0
    rank_ms: float = 0.0


class Ranker:
    """Makes home pages and lists of similar titles. Belongs to one event loop.

    Without a catalogue it answers with empty pages, without a model with popular titles; both are said in `degraded`.
    """

    def __init__(self, settings: RankerSettings | None = None) -> None:
        """Start with nothing; see `show`, `load` and `note`.

        Args:
            settings: how it runs.
        """
        self._settings = settings or RankerSettings()
        self._changing = asyncio.Lock()
        self._live: _Live | None = None
        self._model: RankingModel | None = None
        self._plain: Catalogue | None = None
        """The catalogue in rows of its own; what answers has it in the model's."""
        self._stats: Mapping[str, TitleStats] = {}
        self._stats_ts = 0
        self._jobs: list[_Job] = []

    @property
    def version(self) -> str | None:
        """Version of the model that answers; None without one."""
        live = self._live
        return live.scorer.version if live is not None and live.scorer is not None else None

    @property
    def n_titles(self) -> int:
        """Titles in the catalogue."""
        return 0 if self._live is None else len(self._live.stock.catalogue)

    @property
    def title_ids(self) -> tuple[str, ...]:
        """Ids of the catalogue's titles: those whose statistics are wanted."""
        return () if self._plain is None else self._plain.title_ids[1:]

    @property
    def memory(self) -> Memory | None:
        """What is remembered of viewers, with its hits and misses; a new one with each model and catalogue."""
        return None if self._live is None else self._live.memory

    async def load(self, path: Path) -> str:
        """Load a model and make it answer; requests are served by the one before until then.

        Args:
            path: the artifact's folder.

        Returns:
            Its version.

        Raises:
            ArtifactError: it is damaged or does not fit; the one before keeps answering.
            Unavailable: the device is not there; likewise.
        """
        settings = self._settings
        async with self._changing:
            model = await asyncio.to_thread(RankingModel.load, path, device=settings.device, threads=settings.threads)
            await self._change(model=model)
        return model.version

    async def show(self, titles: Iterable[Title]) -> None:
        """Make this the catalogue: new titles can be recommended from now on, others no longer.

        Raises:
            ArtifactError: the live model does not take this catalogue; the one before stays.
        """
        async with self._changing:
            await self._change(plain=await asyncio.to_thread(Catalogue.build, titles))

    async def show_as(self, other: "Ranker") -> None:
        """Make the other's catalogue this one's, too.

        Raises:
            ArtifactError: as `show`.
        """
        async with self._changing:
            await self._change(plain=other._plain)  # noqa: SLF001

    def twin(self) -> "Ranker":
        """Another ranker of the same catalogue and statistics, without a model; this one must have none."""
        twin = Ranker(self._settings)
        twin._plain, twin._stats, twin._stats_ts = self._plain, self._stats, self._stats_ts
        if self._live is not None:
            twin._live = replace(self._live, memory=Memory(self._settings.remembered))
        return twin

    async def note(self, stats: Mapping[str, TitleStats], read_ts: int) -> None:
        """Make these the titles' statistics.

        Args:
            stats: title_id -> statistics.
            read_ts: when they were read, UTC milliseconds.
        """
        async with self._changing:
            await self._change(stats=stats, stats_ts=read_ts)

    async def home(self, profile: ProfileFeatures, query: HomeQuery) -> Answer:
        """A home page; never raises, but says in `degraded` what is wrong.

        Args:
            profile: who asks.
            query: what for.
        """
        began = time.perf_counter()
        now_ms = int(time.time() * 1000) if query.now_ms is None else query.now_ms
        live = self._live
        if live is None:
            return Answer.empty_home(profile.profile_id, (*profile.degraded, CATALOGUE_MISSING), now_ms)
        who, reasons = _recognise(profile, live)
        shelf = _shelf(live, query, who.stats, safe=not profile.degraded or STALE_PROFILE in reasons)
        timings_ms = {}
        ranking = None
        if live.scorer is not None:
            eligible = shelf.available.copy()
            eligible[who.viewer.watched] = False
            job = _Job(live.scorer, who, eligible, who.context(now_ms), asyncio.get_running_loop().create_future())
            if not self._jobs:
                asyncio.get_running_loop().call_soon(self._work)
            self._jobs.append(job)
            try:
                ranking = await job.done
                timings_ms = {"ranker": job.rank_ms}
                if job.encode_ms:
                    timings_ms["encoder"] = job.encode_ms
            except Exception:  # noqa: BLE001 - a page is made in any case
                _log.exception("model %s failed; popular titles answer", live.scorer.version)
                reasons.append(MODEL_FAILED)
        if ranking is None:
            ranking = _popular(live.stock, shelf)
        turned = time.perf_counter()
        rows = live.stock.catalogue.rows
        listed = [row for title_id in who.stats.my_list if (row := rows.get(title_id)) is not None]
        setting = Setting(
            stock=live.stock,
            shelf=shelf,
            viewer=who.viewer,
            my_list=np.array(listed, dtype=np.int64),
            ranking=ranking,
        )
        page, free = self._settings.pages.fill(setting, rows=query.rows, items=query.items)
        slots = None
        if _ORDINARY.issuperset(reasons) and not live.degraded:
            draw = Draw.of(query.request_id, profile.profile_id) if query.request_id else None
            slots = self._settings.exploration.explore(page, ranking, free, draw)
        rendered = render_rows(page, live.stock.catalogue.fragments, ranking)
        title_ids = live.stock.catalogue.title_ids
        ended = time.perf_counter()
        timings_ms["page"] = (ended - turned) * 1000
        timings_ms["ranking"] = (ended - began) * 1000
        return Answer(
            members=b'"profile_id":%b,"rows":%b' % (orjson.dumps(profile.profile_id), rendered),
            versions=live.versions,
            degraded=(*reasons, *live.degraded),
            generated_ts=now_ms,
            n_items=sum(len(slate.rows) for slate in page),
            timings_ms=timings_ms,
            shown=tuple((slate.id, tuple(map(title_ids.__getitem__, slate.rows.tolist()))) for slate in page),
            slots=None if slots is None else _slots(slots, title_ids),
            explored=None if slots is None else slots.explored,
        )

    async def similar(self, title_id: str, query: HomeQuery) -> Answer:
        """Titles near a title, by the model's vectors; by content for one without events, or without a model.

        Args:
            title_id: the title.
            query: for whom: region, kids, and how many items.

        Raises:
            NotFound: the catalogue does not hold the title.
        """
        began = time.perf_counter()
        now_ms = int(time.time() * 1000) if query.now_ms is None else query.now_ms
        live = self._live
        row = None if live is None else live.stock.catalogue.rows.get(title_id)
        if live is None or row is None or not live.stock.catalogue.listed[row]:
            raise NotFound(
                field="title_id",
                got=title_id,
                expected="a title of the catalogue",
                next_step="Take an id from a home page.",
            )
        shelf = _shelf(live, query, ProfileStats(), safe=True)
        rows, closeness = shelf.neighbours(row)
        items = render_items(rows[: query.items], live.stock.catalogue.fragments, closeness[: query.items])
        return Answer(
            members=b'"title_id":%b,"items":%b' % (orjson.dumps(title_id), items),
            versions=live.versions,
            degraded=tuple(reason for reason in live.degraded if reason != STATISTICS_MISSING),
            generated_ts=now_ms,
            n_items=min(len(rows), query.items),
            timings_ms={"ranking": (time.perf_counter() - began) * 1000},
        )

    def prepare(self, profile: ProfileFeatures) -> None:
        """Encode a history ahead of its next request, such as when its last event was written.

        Args:
            profile: features, read after the event.
        """
        live = self._live
        if live is not None and live.scorer is not None and not profile.degraded:
            _encode(live.scorer, live.memory.meet(profile, live.stock.catalogue))

    def inheritance(self, before: "Ranker") -> Inheritance | None:
        """What another ranker remembers of viewers, for this one; None where it has no model, or another catalogue."""
        live, theirs, same = self._live, before._live, self._plain is before._plain  # noqa: SLF001
        if live is None or live.scorer is None or theirs is None or not same:
            return None
        return Inheritance(theirs.memory, theirs.stock.catalogue, live.memory, live.stock.catalogue, live.scorer)

    def _work(self) -> None:
        """Run the engines for all that wait, in batches of one model."""
        jobs, self._jobs = self._jobs, []
        while jobs:
            scorer = jobs[0].scorer
            batch = [job for job in jobs if job.scorer is scorer]
            jobs = [job for job in jobs if job.scorer is not scorer]
            try:
                _rank(scorer, batch)
            except Exception:  # noqa: BLE001 - one viewer's history must not cost the others their page
                for job in batch:
                    try:
                        _rank(scorer, [job])
                    except Exception as error:  # noqa: BLE001 - its request tells, and falls back
                        if not job.done.done():
                            job.done.set_exception(error)

    async def _change(
        self,
        *,
        model: RankingModel | None = None,
        plain: Catalogue | None = None,
        stats: Mapping[str, TitleStats] | None = None,
        stats_ts: int = 0,
    ) -> None:
        """Build what follows from the change in a thread, then make it live. Called under the lock."""
        model = model or self._model
        plain = self._plain if plain is None else plain  # an empty one counts
        if stats is None:
            stats, stats_ts = self._stats, self._stats_ts
        live = self._live
        if plain is not None:
            same_layout = plain is self._plain and model is self._model
            live = await asyncio.to_thread(
                _build,
                model=model,
                plain=plain,
                stats=stats,
                stats_ts=stats_ts,
                before=self._live if same_layout else None,
                remembered=self._settings.remembered,
            )
        self._live, self._model, self._plain, self._stats, self._stats_ts = live, model, plain, stats, stats_ts


def _build(
    *,
    model: RankingModel | None,
    plain: Catalogue,
    stats: Mapping[str, TitleStats],
    stats_ts: int,
    before: _Live | None,
    remembered: int,
) -> _Live:
    """What answers from now on; `before` lends what does not depend on statistics."""
    made_ts = int(time.time() * 1000)
    laid_out = plain.laid_out(model.vocabulary) if model and before is None else plain
    catalogue = laid_out if before is None else before.stock.catalogue
    popularity = Popularity.build(catalogue, stats, stats_ts)
    statistics = title_statistics([stats.get(title_id) for title_id in catalogue.title_ids])
    scorer: Scorer | None = None
    if before is not None:
        stock = before.stock.later(popularity, made_ts)
        scorer = before.scorer.rebind(statistics) if before.scorer else None
    else:
        vectors = catalogue.content
        if model is not None:
            vectors = model.table(catalogue)
            scorer = model.bind(vectors, statistics)
        stock = Stock(
            catalogue=catalogue, popularity=popularity, vectors=directions(vectors, catalogue.listed), made_ts=made_ts
        )
        for kids in (False, True):
            stock.shelf("", kids=kids)
    missing = [reason for reason, absent in ((MODEL_MISSING, not model), (STATISTICS_MISSING, not stats_ts)) if absent]
    return _Live(
        stock=stock,
        scorer=scorer,
        memory=before.memory if before else Memory(remembered),
        versions={"model": model.version} if model else {},
        degraded=tuple(missing),
    )


def _recognise(profile: ProfileFeatures, live: _Live) -> tuple[Acquaintance, list[str]]:
    """Who asks, and what is wrong with what is known: without the store, the viewer as last seen."""
    reasons = list(profile.degraded)
    if reasons:
        known = live.memory.recall(profile.profile_id)
        if known is not None:
            reasons.append(STALE_PROFILE)
            return known, reasons
    who = live.memory.meet(profile, live.stock.catalogue)
    if not reasons:
        if not profile.known:
            reasons.append(UNKNOWN_PROFILE)
        elif not len(who.viewer.watched):
            reasons.append(EMPTY_HISTORY)
    return who, reasons


def _shelf(live: _Live, query: HomeQuery, stats: ProfileStats, *, safe: bool) -> Shelf:
    """What may be shown. Where it is not `safe` to say that this is no kids profile, it is treated as one."""
    region = stats.region if query.region is None else query.region
    kids = (query.kids or stats.kids) if safe else query.kids is not False
    return live.stock.shelf(region, kids=bool(kids))


def _slots(slots: Slots, title_ids: Sequence[str]) -> tuple[tuple[str, float], ...]:
    return tuple(zip([title_ids[row] for row in slots.rows], slots.propensities, strict=True))


def _popular(stock: Stock, shelf: Shelf) -> Ranking:
    """What stands in for a model's ranking."""
    rows = shelf.popular
    unknown = np.full(len(rows), np.nan, dtype=np.float32)
    estimates = (stock.popularity.share[rows], *[unknown] * (len(ESTIMATES) - 1))
    return Ranking.build(rows, estimates, personal=False)


def _encode(scorer: Scorer, who: Acquaintance) -> NDArray[np.float32]:
    """The viewer's state, worked out once."""
    if who.state is None:
        who.state = scorer.encode(who.visits.tolist())
    return who.state


def _rank(scorer: Scorer, jobs: list[_Job]) -> None:
    """Rank for one group and hand the results over."""
    began = time.perf_counter()
    encodes = any(job.who.state is None for job in jobs)
    states = np.stack([_encode(scorer, job.who) for job in jobs])
    encoded = time.perf_counter()
    rankings = scorer.rank(states, np.stack([job.eligible for job in jobs]), np.stack([job.context for job in jobs]))
    ranked = time.perf_counter()
    for job, ranking in zip(jobs, rankings, strict=True):
        job.encode_ms = (encoded - began) * 1000 if encodes else 0.0
        job.rank_ms = (ranked - encoded) * 1000
        if not job.done.done():  # the caller may have given up
            job.done.set_result(ranking)
