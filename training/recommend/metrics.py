"""Ranking metrics over all titles: no sampled negatives (Krichene and Rendle 2020).

Shapes: P prefixes (one a user), N title rows (row 0 is padding).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.recommend.interactions import Interactions, Ints, Prefix

HIT_CUTOFFS: Final = (1, 5, 10, 50)
NDCG_CUTOFFS: Final = (5, 10)
COVERAGE_CUTOFF: Final = 10

_CHUNK: Final = 256


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Where the targets stand.

    Attributes:
        ranks: float64 (P,), from 1; titles of the same score as the target count half.
        shown: bool (N,), titles that are among the first COVERAGE_CUTOFF of anybody.
    """

    ranks: NDArray[np.float64]
    shown: NDArray[np.bool_]

    def metrics(self) -> dict[str, float]:
        """hr@k, ndcg@k, mrr (means over users) and coverage@10 (share of titles); higher is better for all."""
        ranks = self.ranks
        values = {f"hr@{cutoff}": float((ranks <= cutoff).mean()) for cutoff in HIT_CUTOFFS}
        values |= {f"ndcg@{cutoff}": ndcg(ranks, cutoff) for cutoff in NDCG_CUTOFFS}
        values["mrr"] = float((1 / ranks).mean())
        values[f"coverage@{COVERAGE_CUTOFF}"] = float(self.shown[1:].mean())
        return values


def ndcg(ranks: NDArray[np.float64], cutoff: int = 10) -> float:
    """Mean NDCG with one relevant title each; 0 without ranks."""
    return float(gains_of(ranks, cutoff).mean()) if ranks.size else 0.0


def gains_of(ranks: NDArray[np.float64], cutoff: int = 10) -> NDArray[np.float64]:
    """NDCG of each ranking with one relevant title, from the title's rank."""
    return np.where(ranks <= cutoff, 1 / np.log2(ranks + 1), 0.0)


def rank_targets(
    scores: Callable[[slice], Tensor], interactions: Interactions, prefixes: Sequence[Prefix], targets: Ints
) -> Ranked:
    """Rank each target among all titles that its prefix does not hold.

    Args:
        scores: slice of prefixes -> float32 (part, N).
        interactions: the data.
        prefixes: P; what is known of each user.
        targets: int64 (P,), the rows asked for. A target that its prefix holds takes part all the same.
    """
    ranks = np.empty(len(prefixes))
    shown = np.zeros(len(interactions.titles) + 1, dtype=np.bool_)
    for start in range(0, len(prefixes), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(prefixes)))
        rows = torch.from_numpy(targets[part]).unsqueeze(1)
        unseen = _unseen(scores(part), interactions, prefixes[part], rows)
        target = unseen.gather(1, rows)
        above = (unseen > target).sum(dim=1)
        level = (unseen == target).sum(dim=1) - 1
        ranks[part] = (1 + above + level / 2).numpy()
        top = unseen.topk(min(COVERAGE_CUTOFF, unseen.shape[1]), dim=1)
        shown[top.indices[top.values > -torch.inf].numpy()] = True
    return Ranked(ranks=ranks, shown=shown)


def _unseen(scores: Tensor, interactions: Interactions, prefixes: Sequence[Prefix], rows: Tensor) -> Tensor:
    """Scores with -inf for padding and for what each prefix holds, the target aside."""
    unseen = scores.clone()
    owners = np.repeat(np.arange(len(prefixes)), [len(prefix) for prefix in prefixes])
    held = np.concatenate([interactions.rows[prefix.start : prefix.stop] for prefix in prefixes])
    unseen[torch.from_numpy(owners), torch.from_numpy(held)] = -torch.inf
    unseen[:, 0] = -torch.inf
    return unseen.scatter_(1, rows, scores.gather(1, rows))
