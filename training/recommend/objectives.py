"""Fits the ranker to point-in-time frames, and keeps of it only what held-out frames confirm.

The encoder has seen its own training targets, so its scores for them say nothing of its scores for what comes next.
The correction of the order is therefore fitted to validation starts, which the encoder was not fitted to; the outcome
heads (finish, thumbs_up) need many examples and only the title that was started, so training starts serve them as well.

Shapes: F frames, K candidates, d width.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from features.ranking import TREND
from training.recommend.frames import Frames
from training.recommend.model import Retrieval
from training.recommend.progress import ProgressReport, silent
from training.recommend.ranker import Judged, Ranker, RankerConfig

OUTCOME_EPOCHS: Final = 10
CORRECTION_EPOCHS: Final = 10
BATCH: Final = 64
WEIGHTS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Weights of finish and thumbs_up that are tried."""

FOLDS: Final = 5
"""The correction is judged on each fifth of the frames by what was fitted to the others."""

CUTOFF: Final = 10

MARGIN: Final = 0.02
"""Share of NDCG@10 that the weights of finish and thumbs_up may cost at one standard error below their mean."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Frames as the ranker sees them; the encoder is fixed, so they are made once.

    Attributes:
        states: float32 (F, d).
        vectors: float32 (F, K, d).
        rows: int64 (F, K).
        log_play: float32 (F, K).
        statistics: float32 (F, K, S).
        context: float32 (F, C).
        targets: int64 (F,), row that was started.
        finished: float32 (F,), 0 or 1.
        liked: float32 (F,), 0 or 1.
    """

    states: Tensor
    vectors: Tensor
    rows: Tensor
    log_play: Tensor
    statistics: Tensor
    context: Tensor
    targets: Tensor
    finished: Tensor
    liked: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: Retrieval, ranker: Ranker, frames: Frames, *, only_targets: bool) -> "Examples":
        """Encode the frames and retrieve their candidates.

        Args:
            model: the fitted encoder.
            ranker: retrieves.
            frames: the frames.
            only_targets: whether the title that was started is the one candidate.
        """
        model.eval()
        table = model.title_vectors()
        parts: list[tuple[Tensor, ...]] = []
        for part in torch.split(torch.arange(len(frames)), 256):
            state = model.encoder(frames.titles[part], frames.actions[part], frames.times[part], table)
            target = frames.targets[part].unsqueeze(1)
            eligible = frames.eligible(part).scatter(1, target, value=True)
            moment = frames.moment[part]
            trend = frames.statistics[moment, :, TREND]  # (part, N)
            found = ranker.retrieve(state, table, eligible, trend, target if only_targets else None)
            statistics = frames.statistics[moment.unsqueeze(1), found.rows]
            parts.append((state, F.embedding(found.rows, table), found.rows, found.log_play, statistics))
        states, vectors, rows, log_play, statistics = (torch.cat(column) for column in zip(*parts, strict=True))
        return cls(
            states=states, vectors=vectors, rows=rows, log_play=log_play, statistics=statistics, context=frames.context,
            targets=frames.targets, finished=frames.finished, liked=frames.liked,
        )  # fmt: skip

    def __len__(self) -> int:
        """How many frames."""
        return len(self.targets)

    def __getitem__(self, chosen: Tensor) -> "Examples":
        """Some of them."""
        return Examples(**{name: getattr(self, name)[chosen] for name in self.__dataclass_fields__})

    def judged(self, ranker: Ranker) -> Judged:
        """What the ranker says of the candidates."""
        return ranker.judge(self.states, self.vectors, self.log_play, self.statistics, self.context)


@torch.no_grad()
def next_title_gains(ranker: Ranker, examples: Examples) -> NDArray[np.float64]:
    """1 / log2(1 + rank) of the title that was started, by the final order, 0 below the tenth; (F,).

    Its mean is NDCG@10.
    """
    order = ranker.utility(examples.judged(ranker)).argsort(dim=1, descending=True, stable=True)
    hits = examples.rows.gather(1, order)[:, :CUTOFF] == examples.targets.unsqueeze(1)
    gains = (hits / torch.log2(torch.arange(hits.shape[1]) + 2.0)).sum(dim=1)
    return gains.numpy().astype(np.float64)


def fit_ranker(
    model: Retrieval,
    training: Frames,
    validation: Frames,
    *,
    candidates: int,
    trend_weight: float,
    seed: int,
    progress: ProgressReport = silent,
) -> tuple[Ranker, dict[str, float]]:
    """Fit a ranker on top of a fitted encoder.

    Args:
        model: the encoder and its titles; not changed.
        training: starts that the encoder was fitted to; only their outcomes are learned from.
        validation: starts that it was not fitted to.
        candidates: K.
        trend_weight: of the titles' trend in the retrieval.
        seed: of everything random.
        progress: told after each epoch.

    Returns:
        the ranker in evaluation mode, and what was chosen, with NDCG@10 of held-out profiles by retrieval order and by
        final order.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    ranker = Ranker(RankerConfig(width=model.config.vector_size, candidates=candidates, trend_weight=trend_weight))
    fresh = Examples.of(model, ranker, validation, only_targets=False)
    sources = [Examples.of(model, ranker, frames, only_targets=True) for frames in (training, validation)]
    _fit_outcomes(ranker, sources, random, progress)
    blank = copy.deepcopy(ranker.correction.state_dict())
    retrieved = next_title_gains(ranker, fresh)
    ranker.gate.fill_(1.0)
    folds = torch.from_numpy(np.arange(len(fresh)) % FOLDS)
    corrections = []
    for fold in range(FOLDS):
        ranker.correction.load_state_dict(blank)
        _fit_correction(ranker, fresh[torch.nonzero(folds != fold).squeeze(1)], random)
        corrections.append(copy.deepcopy(ranker.correction.state_dict()))
        progress("ranker order", fold + 1, FOLDS + 1)

    def held_out() -> NDArray[np.float64]:
        """Gains of each frame by the correction that was fitted without it."""
        gains = np.empty(len(fresh))
        for fold, weights in enumerate(corrections):
            ranker.correction.load_state_dict(weights)
            chosen = torch.nonzero(folds == fold).squeeze(1)
            gains[chosen.numpy()] = next_title_gains(ranker, fresh[chosen])
        return gains

    if _surely(held_out(), retrieved) <= 0:
        ranker.gate.fill_(0.0)
    final = _choose_weights(ranker, held_out, retrieved)
    ranker.correction.load_state_dict(blank)
    if float(ranker.gate):
        _fit_correction(ranker, fresh, random)
    progress("ranker order", FOLDS + 1, FOLDS + 1, f"NDCG@10 {final:.4f}, by retrieval {retrieved.mean():.4f}")
    return ranker.eval(), {
        "held_out_ndcg@10_retrieval": float(retrieved.mean()),
        "held_out_ndcg@10_final": final,
        "correction": float(ranker.gate),
        "finish_weight": ranker.config.finish_weight,
        "thumbs_up_weight": ranker.config.thumbs_up_weight,
    }


def _surely(gains: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Mean of the paired difference, less one standard error; -inf for fewer than two."""
    difference = gains - reference
    if len(difference) < 2:
        return -math.inf
    return float(difference.mean() - difference.std(ddof=1) / math.sqrt(len(difference)))


def _choose_weights(ranker: Ranker, gains: Callable[[], NDArray[np.float64]], reference: NDArray[np.float64]) -> float:
    """The largest weight of finish and thumbs_up that costs no NDCG@10 out of fold, and surely not MARGIN of it.

    Returns:
        NDCG@10 with it.
    """
    chosen, measured = ranker.config, float(gains().mean())
    for weight in WEIGHTS:
        ranker.config = replace(chosen, finish_weight=weight, thumbs_up_weight=weight)
        found = gains()
        if found.mean() < reference.mean() or _surely(found, reference) < -MARGIN * reference.mean():
            break
        chosen, measured = ranker.config, float(found.mean())
    ranker.config = chosen
    return measured


def _batches(examples: Examples, random: np.random.Generator) -> Iterator[Examples]:
    order = torch.from_numpy(random.permutation(len(examples)))
    for chosen in torch.split(order, BATCH):
        yield examples[chosen]


def _fit_outcomes(
    ranker: Ranker, sources: Sequence[Examples], random: np.random.Generator, progress: ProgressReport
) -> None:
    """Binary cross-entropy of finish and thumbs_up of the titles that were started."""
    heads = [*ranker.outcomes.parameters(), *ranker.state_side.parameters(), *ranker.title_side.parameters()]
    optimizer = torch.optim.AdamW(heads, lr=2e-3, weight_decay=0.01)
    for epoch in range(OUTCOME_EPOCHS):
        losses = []
        for source in sources:
            for examples in _batches(source, random):
                judged = examples.judged(ranker)
                logits = torch.cat([judged.finish, judged.thumbs_up], dim=1)
                wanted = torch.stack([examples.finished, examples.liked], dim=1)
                losses.append(_step(optimizer, F.binary_cross_entropy_with_logits(logits, wanted)))
        progress("ranker outcomes", epoch + 1, OUTCOME_EPOCHS, f"loss {np.mean(losses):.4f}")


def _fit_correction(ranker: Ranker, examples: Examples, random: np.random.Generator) -> None:
    """Softmax over the candidates of those frames whose target is among them."""
    optimizer = torch.optim.AdamW(ranker.correction.parameters(), lr=1e-3, weight_decay=0.1)
    hits = examples.rows == examples.targets.unsqueeze(1)  # (F, K)
    found = examples[torch.nonzero(hits.any(dim=1)).squeeze(1)]
    for _ in range(CORRECTION_EPOCHS):
        for batch in _batches(found, random):
            place = (batch.rows == batch.targets.unsqueeze(1)).int().argmax(dim=1)
            _step(optimizer, F.cross_entropy(batch.judged(ranker).order, place))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()
