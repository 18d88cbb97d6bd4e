"""Pages that were shown with known propensities, and what a version would have put into their slots.

The exposure log (serve.rollout.exposures, drained to HOME/exposures) says what stood in the first slots of the main row
and how likely that was; a play of one of these titles that names the page is its reward. What a version would have put
there is asked of serving's own ranker (serve.ranking), with the profile's features of that moment, the titles'
statistics of about that moment, and the page made as serving makes it.

Shapes: P pages, I slots of all pages. Units: *_ms UTC milliseconds.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from features.offline import features_at, title_statistics
from features.sink import read_log
from serve.artifacts import Artifact
from serve.ranking import Ranker, RankerSettings
from serve.rollout.exposures import EXPOSURES, PLAYED, SHOWN
from serve.schemas import HomeQuery
from training.datasets.dataset import Dataset
from training.gates.intervals import Floats, Interval, codes_of
from training.gates.offpolicy import Estimate, LoggedSlots, advantage, doubly_robust, ips, snips
from training.gates.verdict import Check

FOLDER: Final = "exposures"
ROW: Final = "top_picks"
"""The row whose first slots are explored."""
MOST_PAGES: Final = 2000
"""Pages that are answered again; the newest."""
LEAST_EFFECTIVE: Final = 500.0
"""Effective slots of the candidate from which on the estimate decides; with fewer it is only told."""
MARGIN: Final = 0.1
"""Share of the champion's mean reward that may be lost; harm that is sure beyond it stops the candidate."""

_FOLDS: Final = 5
_PRIOR: Final = 20.0
_STATISTICS_MS: Final = 3_600_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """One page that was shown.

    Attributes:
        profile_id: to whom.
        ts_ms: when.
        request: device and region as they were given.
        titles: of the slots, first to last.
        propensities: of each of them.
        played: whether it was played from this page.
    """

    profile_id: str
    ts_ms: int
    request: tuple[str | None, str | None]
    titles: tuple[str, ...]
    propensities: tuple[float, ...]
    played: tuple[bool, ...]


def read_pages(log: pl.DataFrame, model: str) -> list[Page]:
    """The pages of an exposure log whose slots have propensities, oldest first; records that have none are left out.

    Args:
        log: columns of EXPOSURES; `slots` may be missing, where nothing is explored.
        model: whose pages.
    """
    if "slots" not in log.columns:
        return []
    plays = {
        (request_id, title_id)
        for request_id, title_id in log.filter(pl.col("kind") == PLAYED).select("request_id", "title_id").iter_rows()
    }
    shown = log.filter(
        (pl.col("kind") == SHOWN) & (pl.col("model") == model) & pl.col("slots").is_not_null() & ~pl.col("failed")
    ).sort("ts", maintain_order=True)
    pages = []
    for row in shown.iter_rows(named=True):
        slots = _slots(row["slots"])
        if slots:
            pages.append(_page(row, slots, plays))
    return pages


def _page(row: Mapping[str, Any], slots: Sequence[tuple[str, float]], plays: set[tuple[str, str]]) -> Page:
    titles = tuple(title for title, _ in slots)
    return Page(
        profile_id=row["profile_id"], ts_ms=row["ts"], request=(row["device"], row["region"]), titles=titles,
        propensities=tuple(propensity for _, propensity in slots),
        played=tuple((row["request_id"], title) in plays for title in titles),
    )  # fmt: skip


def _slots(text: str) -> list[tuple[str, float]]:
    """Titles and propensities; empty where the record is not what it should be."""
    try:
        found: Any = json.loads(text)
        slots = [(str(title), float(propensity)) for title, propensity in found or []]
    except (ValueError, TypeError):
        return []
    return slots if all(0 < propensity <= 1 for _, propensity in slots) else []


def would_show(artifact: Artifact, pages: Sequence[Page], dataset: Dataset) -> list[tuple[str, ...]]:
    """Titles of the main row that a version would have shown on each page, first to last.

    Args:
        artifact: the version.
        pages: oldest first.
        dataset: holds the events before each page, the catalogue and the profiles.

    Raises:
        ArtifactError: the version can't be served.
    """
    events = dataset.frame("events")
    asked = pl.DataFrame(
        {"profile_id": [page.profile_id for page in pages], "ts": [page.ts_ms for page in pages]},
        schema={"profile_id": pl.String, "ts": pl.Int64},
    )
    known = features_at(events, asked, dataset.frame("profiles"), inclusive=False)

    async def answer() -> list[tuple[str, ...]]:
        ranker = Ranker(RankerSettings(device="cpu"))
        await ranker.load(artifact.path)
        await ranker.show(dataset.titles())
        noted_ms, rows = -_STATISTICS_MS, []
        for page, features in zip(pages, known, strict=True):
            if page.ts_ms - noted_ms >= _STATISTICS_MS:
                noted_ms = page.ts_ms
                await ranker.note(title_statistics(events, noted_ms, inclusive=False), noted_ms)
            query = HomeQuery(device=page.request[0], region=page.request[1], now_ms=page.ts_ms)
            answer = await ranker.home(features, query)
            rows.append(next((titles for row, titles in answer.shown if row == ROW), ()))
        return rows

    return asyncio.run(answer())


@dataclass(frozen=True, kw_only=True)
class OffPolicy:
    """What logged exposures say of a candidate.

    Attributes:
        estimates: of the candidate, by estimator.
        champion: of the champion, by estimator.
        advantage: doubly robust difference of the mean reward of a slot.
        slots: logged.
        pages: logged.
    """

    estimates: tuple[Estimate, ...]
    champion: tuple[Estimate, ...]
    advantage: Interval
    slots: int
    pages: int


def estimate(
    pages: Sequence[Page], candidate: Sequence[tuple[str, ...]], champion: Sequence[tuple[str, ...]]
) -> OffPolicy:
    """Estimate both versions' mean reward of a slot.

    Args:
        pages: what was shown, at least one slot.
        candidate: what it would have shown on each page.
        champion: likewise.
    """
    titles = [title for page in pages for title in page.titles]
    places = np.array([place for page in pages for place in range(len(page.titles))], dtype=np.int64)
    owners = [page.profile_id for page in pages for _ in page.titles]
    log = LoggedSlots(
        rewards=np.array([played for page in pages for played in page.played], dtype=np.float64),
        propensities=np.array([one for page in pages for one in page.propensities], dtype=np.float64),
        units=codes_of(owners),
    )
    shown = [
        [row[place] if place < len(row) else "" for page, row in zip(pages, rows, strict=True)
         for place in range(len(page.titles))]
        for rows in (candidate, champion)
    ]  # fmt: skip
    targets = [np.array([a == b for a, b in zip(row, titles, strict=True)], dtype=np.float64) for row in shown]
    model = _RewardModel(titles, places, log)
    modelled = model(titles, places)
    values = [model(row, places) for row in shown]
    both = [
        (ips(log, target), snips(log, target), doubly_robust(log, target, modelled, value))
        for target, value in zip(targets, values, strict=True)
    ]
    return OffPolicy(
        estimates=both[0], champion=both[1],
        advantage=advantage(log, targets[0], targets[1], modelled, (values[0], values[1])), slots=len(titles),
        pages=len(pages),
    )  # fmt: skip


class _RewardModel:
    """A slot's reward by its place and its title's rate, smoothed; each profile by what others' slots showed."""

    def __init__(self, titles: Sequence[str], places: np.ndarray, log: LoggedSlots) -> None:
        self._folds = log.units % _FOLDS
        self._rates: list[tuple[Floats, dict[str, float], float]] = []
        count = int(places.max()) + 1
        named = np.array(titles, dtype=str)
        for fold in range(_FOLDS):
            used = self._folds != fold
            rewards = log.rewards[used]
            whole = (float(rewards.sum()) + 1e-6) / max(int(used.sum()), 1)
            shown = np.bincount(places[used], minlength=count)
            by_place = (np.bincount(places[used], rewards, count) + _PRIOR * whole) / (shown + _PRIOR)
            names, inverse = np.unique(named[used], return_inverse=True)
            expected = np.bincount(inverse, by_place[places[used]], len(names))
            factors = (np.bincount(inverse, rewards, len(names)) + _PRIOR * whole) / (expected + _PRIOR * whole)
            self._rates.append((by_place, dict(zip(names.tolist(), factors.tolist(), strict=True)), whole))

    def __call__(self, titles: Sequence[str], places: np.ndarray) -> Floats:
        """Expected reward of titles in slots (I,), 0 to 1."""
        values = np.array(
            [
                self._rates[fold][0][place] * self._rates[fold][1].get(title, 1.0) if title else 0.0
                for fold, title, place in zip(self._folds.tolist(), titles, places.tolist(), strict=True)
            ]
        )
        bounded: Floats = np.minimum(values, 1.0)
        return bounded


def check_exposures(
    home: Path, candidate: Artifact, champion: Artifact, dataset: Dataset, since_ms: int
) -> tuple[list[Check], dict[str, Any]]:
    """Off-policy checks from the exposure log, and what the report tells of them; nothing where there is no log.

    Args:
        home: state folder.
        candidate: the candidate.
        champion: the champion.
        dataset: holds the events before each page.
        since_ms: pages before are left out: both versions may have learned from them.
    """
    folder = home / FOLDER
    log = read_log(folder, EXPOSURES, since_ms=since_ms) if folder.is_dir() else None
    pages = [] if log is None else read_pages(log.filter(pl.col("ts") >= since_ms), candidate.manifest.name)
    pages = pages[-MOST_PAGES:]
    if not pages:
        return [], {}
    found = estimate(pages, *(would_show(one, pages, dataset) for one in (candidate, champion)))
    return [check_estimate(found)], {
        "offpolicy": {
            "slots": found.slots,
            "pages": found.pages,
            **{
                f"{who} {one.name}": {**vars(one.interval), "effective": one.effective, "clipped": one.clipped}
                for who, estimates in (("candidate", found.estimates), ("champion", found.champion))
                for one in estimates
            },
            "advantage": vars(found.advantage),
        }
    }


def check_estimate(found: OffPolicy) -> Check:
    """Whether the candidate's slots are not surely worse; it decides from LEAST_EFFECTIVE effective slots on."""
    effective = min(found.estimates[0].effective, found.champion[0].effective)
    usual = max(found.champion[2].interval.value, 0.0)
    bound = -MARGIN * usual
    enough = effective >= LEAST_EFFECTIVE
    difference = found.advantage
    words = ", ".join(f"{one.name} {one.interval.value:.4f}" for one in found.estimates)
    return Check(
        name="off-policy", passed=difference.high >= bound or not enough, measured=difference.high, bound=bound,
        decides=enough,
        text=f"plays of a slot: {words}, the champion's dr {found.champion[2].interval.value:.4f}; dr difference "
        f"{difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f}), {effective:.0f} effective of "
        f"{found.slots} slots" + ("" if enough else f"; decides from {LEAST_EFFECTIVE:.0f} on"),
    )  # fmt: skip
