"""From a data set to an artifact that serves: fit, rank, measure, export."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from features.events import EventKind
from features.titles import CONTENT_SIZE, Title, content_features
from serve.artifacts import Artifact
from serve.errors import InvalidInput
from training.datasets.dataset import Dataset, open_dataset
from training.lineage import lineage_of
from training.recommend.evaluate import playhead
from training.recommend.export import export_recommend
from training.recommend.frames import Frames, frames_at, interactions_of
from training.recommend.interactions import Interactions, Prefix
from training.recommend.model import Retrieval
from training.recommend.objectives import CUTOFF, Examples, fit_ranker, next_title_gains
from training.recommend.progress import ProgressReport, silent
from training.recommend.ranker import Ranker
from training.recommend.reference import reference_of
from training.recommend.split import Split, split_since
from training.recommend.train import Fit, FitSettings, fit
from training.recommend.trend import choose_weight, rank_with_trend
from training.recommend.warm import Parent, read_parent, take_over, warm_settings

CANDIDATES: Final = 200
"""Titles that the ranker orders, or all that there are."""

OUTCOME_FRAMES: Final = 10_000
"""The most training starts that the outcome heads learn from."""

REFERENCE_EVENTS: Final = 5_000_000
"""Of data that is read in parts, so many of the newest events are what live traffic is compared with."""

VALIDATION_FRAMES: Final = 10_000
"""The most validation and the most test starts that the ranker is fitted to and measured by."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model that is ready to be exported.

    Attributes:
        retrieval: titles and encoder.
        ranker: the ranker.
        vocabulary: title ids; the title of row r is vocabulary[r - 1].
        metrics: what was measured on test starts, by name; higher is better.
        report: how the fits went.
        curve: validation NDCG@10 by epoch of the encoder's fit.
    """

    retrieval: Retrieval
    ranker: Ranker
    vocabulary: tuple[str, ...]
    metrics: Mapping[str, float]
    report: Mapping[str, Any]
    curve: tuple[float, ...] = ()


def content_of(titles: Sequence[Title], vocabulary: Sequence[str]) -> NDArray[np.float32]:
    """Content features by row, float32 (N, CONTENT_SIZE); zeros for row 0 and for titles that the catalogue lacks."""
    by_id = {title.title_id: title for title in titles}
    matrix = np.zeros((len(vocabulary) + 1, CONTENT_SIZE), dtype=np.float32)
    rows = [row for row, title_id in enumerate(vocabulary, start=1) if title_id in by_id]
    matrix[rows] = content_features([by_id[vocabulary[row - 1]] for row in rows])
    return matrix


def train(
    events: pl.DataFrame,
    titles: Sequence[Title],
    *,
    profiles: pl.DataFrame | None = None,
    seed: int = 0,
    settings: FitSettings | None = None,
    progress: ProgressReport = silent,
    checkpoint: Path | None = None,
    parent: Parent | None = None,
    workers: int = 1,
) -> Trained:
    """Fit the three graphs to watch events.

    Args:
        events: columns of features.events.Event.
        titles: the catalogue.
        profiles: profile_id, region, kids.
        seed: of everything random.
        settings: of the encoder's fit.
        progress: told how far it is.
        checkpoint: file of the encoder's resumable state; None: a killed run starts over.
        parent: whose weights the encoder and its titles start from; None: it starts cold.
        workers: processes that share the encoder's fit; above 1 Ray must be connected.

    Raises:
        InvalidInput: nobody watched three titles, the parent does not fit, or several workers without a checkpoint.
        Unavailable: workers died too often.
    """
    return train_on(
        Source(interactions=_interactions(events), events=events, titles=titles, profiles=profiles), seed=seed,
        settings=settings, progress=progress, checkpoint=checkpoint, parent=parent, workers=workers,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a model is trained on.

    Attributes:
        interactions: all visits.
        events: the events, in memory, or a scan of which only what is needed is read.
        titles: the catalogue.
        profiles: profile_id, region, kids.
    """

    interactions: Interactions
    events: pl.DataFrame | pl.LazyFrame
    titles: Sequence[Title]
    profiles: pl.DataFrame | None = None


def train_on(
    source: Source,
    *,
    seed: int = 0,
    settings: FitSettings | None = None,
    progress: ProgressReport = silent,
    checkpoint: Path | None = None,
    parent: Parent | None = None,
    workers: int = 1,
    since_ms: int = 0,
    most_frames: int = VALIDATION_FRAMES,
) -> Trained:
    """As `train`, on visits that are made already; where `since_ms` is given, on what is new since (`split_since`)."""
    interactions, vocabulary, since_s = source.interactions, source.interactions.titles, since_ms // 1000
    split = split_since(interactions, since_s, seed=seed)
    if not split.test:
        raise InvalidInput(
            field="events", got=f"{len(interactions)} profiles, none with three titles",
            expected="profiles that watched at least three titles", next_step="Bring more events.",
        )  # fmt: skip
    torch.manual_seed(seed)
    model = playhead(interactions, content_of(source.titles, vocabulary), length=parent.length if parent else None)
    settings, begun = settings or FitSettings(), {}
    if parent is not None:
        begun = {"parent": parent.version, "known_titles": take_over(model, vocabulary, parent)}
        settings = warm_settings(settings)
    outcome = _fit_encoder(
        model, interactions, split, settings, seed=seed, progress=progress, checkpoint=checkpoint, workers=workers,
        origin=f"{parent.version} {split.since_s}" if parent else f"{split.since_s or ''}", since_s=since_s,
    )  # fmt: skip
    rows = {title_id: row for row, title_id in enumerate(vocabulary, start=1)}
    random = np.random.default_rng(seed)

    def frames(asked: Sequence[tuple[str, str]]) -> Frames:
        return frames_at(source.events, source.profiles, rows, asked, model.length)

    chosen = _sample(range(len(split.validation)), most_frames, random)
    starts = [_start(interactions, split.validation[place], split.validation_targets[place]) for place in chosen]
    validation = frames(starts)
    test = frames([_start(interactions, split.test[place], split.test_targets[place]) for place in chosen])
    learned = frames(_training_starts(interactions, split, random))
    weight = choose_weight(model, interactions, split)
    ranker, report = fit_ranker(
        model, learned, validation, candidates=min(CANDIDATES, len(vocabulary)), trend_weight=weight, seed=seed,
        progress=progress,
    )  # fmt: skip
    (ranked,) = rank_with_trend(model, interactions, split, split.test, split.test_targets, (weight,))
    metrics = ranked.metrics()
    metrics |= _served_metrics(model, ranker, test)
    return Trained(
        retrieval=model, ranker=ranker, vocabulary=vocabulary, metrics=metrics,
        report=report | begun | {"since_s": split.since_s, "epochs": outcome.epochs, "best_epoch": outcome.best_epoch},
        curve=outcome.curve,
    )  # fmt: skip


def _fit_encoder(
    model: Retrieval,
    interactions: Interactions,
    split: Split,
    settings: FitSettings,
    *,
    seed: int,
    progress: ProgressReport,
    checkpoint: Path | None,
    workers: int,
    origin: str,
    since_s: int,
) -> Fit:
    if workers == 1:
        return fit(
            model, interactions, split, settings, seed=seed, progress=progress, checkpoint=checkpoint, origin=origin
        )
    if checkpoint is None:
        raise InvalidInput(
            field="checkpoint", got=None, expected="a file for the state that workers share", next_step="Name one."
        )
    from training.recommend.parallel import fit_parallel  # noqa: PLC0415  (imports Ray Train)

    return fit_parallel(
        model, interactions, settings, seed=seed, workers=workers, checkpoint=checkpoint, progress=progress,
        origin=origin, since_s=since_s,
    )  # fmt: skip


def _served_metrics(model: Retrieval, ranker: Ranker, test: Frames) -> dict[str, float]:
    """NDCG@10 of the next title as a request would have been answered: with the history that the store keeps."""
    examples = Examples.of(model, ranker, test, only_targets=False)
    in_first = (examples.rows[:, :CUTOFF] == examples.targets.unsqueeze(1)).float()
    by_retrieval = (in_first / torch.log2(torch.arange(in_first.shape[1]) + 2.0)).sum(dim=1).mean()
    return {
        "served_retrieval_ndcg@10": float(by_retrieval),
        "served_final_ndcg@10": float(next_title_gains(ranker, examples).mean()),
    }


def _sample(places: Sequence[int], most: int, random: np.random.Generator) -> list[int]:
    if len(places) <= most:
        return list(places)
    return sorted(random.choice(np.asarray(places), most, replace=False).tolist())


def _start(interactions: Interactions, prefix: Prefix, row: int) -> tuple[str, str]:
    return interactions.users[prefix.user], interactions.titles[int(row) - 1]


def _training_starts(interactions: Interactions, split: Split, random: np.random.Generator) -> list[tuple[str, str]]:
    """Some (profile, title) that the encoder was fitted to."""
    places = [(prefix, place) for prefix in split.train for place in range(prefix.start, prefix.stop)]
    chosen = _sample(range(len(places)), OUTCOME_FRAMES, random)
    return [_start(interactions, places[i][0], int(interactions.rows[places[i][1]])) for i in chosen]


def train_recommend(
    dataset_dir: Path,
    destination: Path,
    seed: int = 0,
    progress: ProgressReport = silent,
    *,
    settings: FitSettings | None = None,
    checkpoint: Path | None = None,
    parent: Artifact | None = None,
    until_ms: int | None = None,
    workers: int = 1,
    streaming: bool = False,
    run: str = "",
    since_ms: int | None = None,
    most_frames: int = VALIDATION_FRAMES,
) -> Artifact:
    """Train on a prepared data set and write the artifact `destination/<version>`; the champion is not changed.

    Args:
        dataset_dir: folder of a data set (training.datasets).
        destination: folder of the model's versions, such as `.playhead/models/recommend`.
        seed: of everything random.
        progress: told how far it is.
        settings: of the encoder's fit; a warm start takes fewer epochs and a lower learning rate than they say.
        checkpoint: file of the encoder's resumable state; it is removed once the artifact is there.
        parent: version whose weights the encoder starts from; None: it starts cold.
        until_ms: only events before this time are used, UTC milliseconds; None: all are.
        workers: processes that share the encoder's fit; above 1 Ray must be connected.
        streaming: read events in parts, for data that is too large for memory; Ray must be connected.
        run: id of the tracked run.
        since_ms: events after this time are new, UTC milliseconds: they are what a warm start learns; None: those that
            the parent has not seen. 0: all are.
        most_frames: validation and test starts that the ranker is fitted to and measured by.

    Raises:
        NotFound: there is no data set.
        DatasetError: it is altered.
        InvalidInput: it is too small.
        UnfitParent: the parent's weights can't be started from.
        ArtifactError: the export failed.
        Unavailable: workers died too often.
    """
    dataset = open_dataset(dataset_dir)
    before = None if parent is None else read_parent(parent)
    source = _source(dataset, until_ms=until_ms, streaming=streaming)
    if since_ms is None:
        since_ms = parent.manifest.lineage.last_ts_ms if parent is not None and parent.manifest.lineage else 0
    trained = train_on(
        source, seed=seed, settings=settings, progress=progress, checkpoint=checkpoint, parent=before, workers=workers,
        since_ms=since_ms, most_frames=most_frames,
    )  # fmt: skip
    lineage = lineage_of(
        dataset, seed=seed, parent="" if before is None else before.version, run=run, until_ms=until_ms
    )
    artifact = export_recommend(
        destination, trained.retrieval, trained.ranker, trained.vocabulary, metrics=trained.metrics,
        report=trained.report, data_snapshot=_snapshot(dataset, until_ms), seed=seed, lineage=lineage,
        reference=reference_of(_newest(source.events), source.titles),
    )  # fmt: skip
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return artifact


def _source(dataset: Dataset, *, until_ms: int | None, streaming: bool) -> Source:
    titles, profiles = dataset.titles(), dataset.frame("profiles")
    events = dataset.scan("events")
    if until_ms is not None:
        events = events.filter(pl.col("ts") < until_ms)
    if streaming:
        from training.recommend.streaming import stream_interactions  # noqa: PLC0415  (imports Ray Data)

        interactions = stream_interactions([dataset.path / "events.parquet"], "events", until_ms=until_ms)
        return Source(interactions=interactions, events=events, titles=titles, profiles=profiles)
    loaded = events.collect()
    return Source(interactions=_interactions(loaded), events=loaded, titles=titles, profiles=profiles)


def _interactions(events: pl.DataFrame) -> Interactions:
    """Visits of all titles that were more than shown.

    Raises:
        InvalidInput: there are none.
    """
    played = events.filter(pl.col("kind").cast(pl.String) != EventKind.IMPRESSION)
    if played.is_empty():
        raise InvalidInput(
            field="events", got="no event but impressions", expected="plays",
            next_step="Bring more events, or a later time up to which they are used.",
        )  # fmt: skip
    return interactions_of(played, played["title_id"].unique().sort().to_list(), "events")


def _newest(events: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """Events that live traffic is compared with: all that are in memory, or the newest of those that are not."""
    return events if isinstance(events, pl.DataFrame) else events.tail(REFERENCE_EVENTS).collect()


def _snapshot(dataset: Dataset, until_ms: int | None) -> str:
    """Names the training data: the set's content, and where it was cut."""
    cut = until_ms is not None and until_ms <= dataset.last_ts_ms
    return f"{dataset.snapshot}<{until_ms}" if cut else dataset.snapshot
