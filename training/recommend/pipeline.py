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
from training.datasets.dataset import open_dataset
from training.recommend.evaluate import playhead
from training.recommend.export import export_recommend
from training.recommend.frames import Frames, frames_at, interactions_of
from training.recommend.interactions import Interactions, Prefix
from training.recommend.model import Retrieval
from training.recommend.objectives import CUTOFF, Examples, fit_ranker, next_title_gains
from training.recommend.progress import ProgressReport, silent
from training.recommend.ranker import Ranker
from training.recommend.reference import reference_of
from training.recommend.split import Split
from training.recommend.train import FitSettings, fit
from training.recommend.trend import choose_weight, rank_with_trend

CANDIDATES: Final = 200
"""Titles that the ranker orders, or all that there are."""

OUTCOME_FRAMES: Final = 10_000
"""The most training starts that the outcome heads learn from."""

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
    """

    retrieval: Retrieval
    ranker: Ranker
    vocabulary: tuple[str, ...]
    metrics: Mapping[str, float]
    report: Mapping[str, Any]


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

    Raises:
        InvalidInput: nobody watched three titles.
    """
    played = events.filter(pl.col("kind").cast(pl.String) != EventKind.IMPRESSION)
    vocabulary = tuple(played["title_id"].unique().sort().to_list())
    interactions = interactions_of(played, vocabulary, "events")
    split = Split.leave_one_out(interactions)
    if not split.test:
        raise InvalidInput(
            field="events", got=f"{len(interactions)} profiles, none with three titles",
            expected="profiles that watched at least three titles", next_step="Bring more events.",
        )  # fmt: skip
    torch.manual_seed(seed)
    model = playhead(interactions, content_of(titles, vocabulary))
    outcome = fit(
        model, interactions, split, settings or FitSettings(), seed=seed, progress=progress, checkpoint=checkpoint
    )
    rows = {title_id: row for row, title_id in enumerate(vocabulary, start=1)}
    random = np.random.default_rng(seed)

    def frames(asked: Sequence[tuple[str, str]]) -> Frames:
        return frames_at(events, profiles, rows, asked, model.length)

    held = _sample(range(len(split.test)), VALIDATION_FRAMES, random)
    validation = frames([_start(interactions, split.validation[user], split.validation_targets[user]) for user in held])
    test = frames([_start(interactions, split.test[user], split.test_targets[user]) for user in held])
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
        report=report | {"epochs": outcome.epochs, "best_epoch": outcome.best_epoch},
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
) -> Artifact:
    """Train on a prepared data set and write the artifact `destination/<version>`; the champion is not changed.

    Args:
        dataset_dir: folder of a data set (training.datasets).
        destination: folder of the model's versions, such as `.playhead/models/recommend`.
        seed: of everything random.
        progress: told how far it is.
        settings: of the encoder's fit.
        checkpoint: file of the encoder's resumable state; it is removed once the artifact is there.

    Raises:
        NotFound: there is no data set.
        DatasetError: it is altered.
        InvalidInput: it is too small.
        ArtifactError: the export failed.
    """
    dataset = open_dataset(dataset_dir)
    events, titles = dataset.frame("events"), dataset.titles()
    trained = train(
        events, titles, profiles=dataset.frame("profiles"), seed=seed, settings=settings,
        progress=progress, checkpoint=checkpoint,
    )  # fmt: skip
    artifact = export_recommend(
        destination, trained.retrieval, trained.ranker, trained.vocabulary, metrics=trained.metrics,
        report=trained.report, data_snapshot=dataset.snapshot, seed=seed,
        reference=reference_of(events, titles),
    )  # fmt: skip
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return artifact
