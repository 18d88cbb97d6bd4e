"""Leave-one-out evaluation: Playhead, SASRec, item-kNN and popularity on the same split in the same run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from serve.errors import InvalidInput
from training.recommend.baselines import ItemKnn, SasRec, popularity
from training.recommend.interactions import Interactions
from training.recommend.metrics import Ranked, ndcg
from training.recommend.model import EncoderConfig, Retrieval
from training.recommend.progress import ProgressReport, silent
from training.recommend.split import Split
from training.recommend.train import FitSettings, fit, rank_by_model
from training.recommend.trend import choose_weight, rank_with_trend

MODELS: Final = ("playhead", "sasrec", "item_knn", "popularity")

SETTINGS: Final = {"playhead": FitSettings(), "sasrec": FitSettings(averaging=0.0, learning_rate=2e-3)}
"""How the sequence models are fitted: SASRec is the plain one, without averaging of weights, which asks for smaller
steps."""

_Trial = Callable[[int], tuple[Ranked, dict[str, Any]]]
"""Seed -> where the test targets stand, and facts about the run."""


def evaluate(
    interactions: Interactions,
    seeds: Sequence[int],
    *,
    content: NDArray[np.float32] | None = None,
    models: Sequence[str] = MODELS,
    settings: FitSettings | None = None,
    budget_s: float | None = None,
    progress: ProgressReport = silent,
    checkpoints: Path | None = None,
) -> dict[str, Any]:
    """Train with each seed and report leave-one-out metrics over all titles.

    The newest interaction of each user tests, the one before it validates (early stopping, choices of settings), the
    rest trains; seen titles are left out of every ranking. No model is told when the target happened; Playhead's trend
    is that of the user's newest known visit.

    Args:
        interactions: the data; at least one user with three interactions.
        seeds: of the models that have any randomness.
        content: float32 (N, CONTENT_SIZE), content features by row; only Playhead looks at them.
        models: which of MODELS.
        settings: of the sequence models' fits; theirs unless given.
        budget_s: each fit stops after the epoch that passes this wall time; None: early stopping alone ends it.
        progress: told how far it is.
        checkpoints: folder of resumable states; None: a killed run starts over.

    Returns:
        {"models": {name: {metric: {"mean", "std"}}}, "runs": {name: [facts]}, "seeds", "data", "seconds"}; std is the
        sample standard deviation over seeds, 0 for one seed.

    Raises:
        InvalidInput: nobody has three interactions, no seeds, or an unknown model.
    """
    started = time.monotonic()
    split = Split.leave_one_out(interactions)
    _check(interactions, split, seeds, models)
    report: dict[str, Any] = {"models": {}, "runs": {}}
    for name in models:
        fitting = settings or SETTINGS.get(name, FitSettings())
        if budget_s is not None:
            fitting = replace(fitting, budget_s=budget_s)
        trial = _trial(name, interactions, split, content, fitting, progress, checkpoints)
        own = seeds if name in {"playhead", "sasrec"} else seeds[:1]
        runs = []
        for number, seed in enumerate(own):
            begun = time.monotonic()
            ranked, facts = trial(seed)
            runs.append({"seed": seed, **ranked.metrics(), **facts, "seconds": round(time.monotonic() - begun, 1)})
            progress(name, number + 1, len(own), f"NDCG@10 {runs[-1]['ndcg@10']:.4f}")
        report["models"][name] = {metric: _spread([run[metric] for run in runs]) for metric in ranked.metrics()}
        report["runs"][name] = runs
    report["seeds"] = list(seeds)
    report["data"] = interactions.facts() | {"test_users": len(split.test), "content": content is not None}
    report["seconds"] = round(time.monotonic() - started, 1)
    return report


def _check(interactions: Interactions, split: Split, seeds: Sequence[int], models: Sequence[str]) -> None:
    if not split.test:
        raise InvalidInput(
            field=interactions.source, got=f"{len(interactions)} users, none with three interactions",
            expected="users with at least three interactions (train, validation, test)",
            next_step="Bring longer histories.",
        )  # fmt: skip
    if not seeds:
        raise InvalidInput(field="seeds", got=0, expected="at least one seed", next_step="Ask for --seeds 1 or more.")
    unknown = [name for name in models if name not in MODELS]
    if unknown:
        raise InvalidInput(field="models", got=unknown, expected=", ".join(MODELS), next_step="Name known models.")


def _trial(
    name: str,
    interactions: Interactions,
    split: Split,
    content: NDArray[np.float32] | None,
    settings: FitSettings,
    progress: ProgressReport,
    checkpoints: Path | None,
) -> _Trial:
    def sequence(seed: int) -> tuple[Ranked, dict[str, Any]]:
        torch.manual_seed(seed)
        model = playhead(interactions, content) if name == "playhead" else sasrec(interactions)
        path = checkpoints / f"{name}-{seed}.pt" if checkpoints is not None else None
        outcome = fit(
            model, interactions, split, settings, seed=seed, stage=f"{name} seed {seed}",
            progress=progress, checkpoint=path,
        )  # fmt: skip
        facts = {
            "epochs": outcome.epochs,
            "best_epoch": outcome.best_epoch,
            "validation_ndcg@10": outcome.validation_ndcg,
        }
        if name != "playhead":
            return rank_by_model(model, interactions, split.test, split.test_targets), facts
        weight = choose_weight(model, interactions, split)
        plain, ranked = rank_with_trend(model, interactions, split, split.test, split.test_targets, (0.0, weight))
        return ranked, facts | {"trend_weight": weight, "ndcg@10_without_trend": ndcg(plain.ranks)}

    def knn(seed: int) -> tuple[Ranked, dict[str, Any]]:
        del seed
        model = ItemKnn.fit(interactions, split)
        facts = {"neighbours": model.neighbours, "shrinkage": model.shrinkage}
        return model.rank(interactions, split.test, split.test_targets), facts

    def popular(seed: int) -> tuple[Ranked, dict[str, Any]]:
        del seed
        return popularity(interactions, split), {}

    return {"item_knn": knn, "popularity": popular}.get(name, sequence)


def sequence_length(interactions: Interactions, most: int = 100) -> int:
    """Visits that a sequence model takes: all of nearly every user's, within bounds."""
    longest = float(np.quantile(interactions.lengths(), 0.95)) if len(interactions) else 1.0
    return int(np.clip(np.ceil(longest), 5, most))


def playhead(
    interactions: Interactions, content: NDArray[np.float32] | None, *, length: int | None = None
) -> Retrieval:
    """Playhead's model for some data, with fresh weights.

    Args:
        interactions: the data.
        content: float32 (N, CONTENT_SIZE), content features by row.
        length: the most visits that it takes; None: as the data's users have them.
    """
    config = EncoderConfig(
        vocabulary=len(interactions.titles), length=length or sequence_length(interactions), timed=interactions.timed
    )
    return Retrieval(config, None if content is None else torch.from_numpy(content))


def sasrec(interactions: Interactions) -> SasRec:
    """The SASRec it is compared with, with fresh weights."""
    return SasRec(vocabulary=len(interactions.titles), length=sequence_length(interactions))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
