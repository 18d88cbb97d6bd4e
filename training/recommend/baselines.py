"""What Playhead is compared with: popularity, item-kNN and a plain SASRec, each given its best.

Shapes: B batch, T time, N title rows (row 0 is padding), V titles, d width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from training.recommend.interactions import Interactions, Ints, Prefix
from training.recommend.metrics import Ranked, ndcg, rank_targets
from training.recommend.model import MASKED
from training.recommend.split import Split

_NEIGHBOURS: Final = (20, 50, 100, 300)
_SHRINKAGE: Final = (0.0, 10.0, 50.0)
_BLOCK: Final = 512


def popularity(interactions: Interactions, split: Split) -> Ranked:
    """Ranks of the test targets where every user gets the titles that the training part holds most often."""
    counts = np.zeros(len(interactions.titles) + 1, dtype=np.float32)
    for prefix in split.train:
        np.add.at(counts, interactions.rows[prefix.start : prefix.stop], 1.0)
    scores = torch.from_numpy(counts)
    return rank_targets(
        lambda part: scores.expand(len(split.test[part]), -1), interactions, split.test, split.test_targets
    )


@dataclass(frozen=True, kw_only=True)
class ItemKnn:
    """Item-item cosine similarity of who took what (Sarwar et al. 2001), summed over a history.

    Attributes:
        similarity: (N, N), each row's largest `neighbours` kept.
        neighbours: kept similarities a title.
        shrinkage: added to the denominator, against chance similarities of rare titles.
    """

    similarity: Any
    neighbours: int
    shrinkage: float

    @classmethod
    def fit(cls, interactions: Interactions, split: Split) -> "ItemKnn":
        """Choose neighbours and shrinkage by validation NDCG@10."""
        matrix = _matrix(interactions, split.train)
        candidates = (  # made one at a time: a large catalogue's similarities fill memory
            cls(similarity=_similarity(matrix, neighbours, shrinkage), neighbours=neighbours, shrinkage=shrinkage)
            for neighbours, shrinkage in product(_NEIGHBOURS, _SHRINKAGE)
        )
        prefixes, targets = split.validation[:5000], split.validation_targets[:5000]
        return max(candidates, key=lambda candidate: ndcg(candidate.rank(interactions, prefixes, targets).ranks))

    def rank(self, interactions: Interactions, prefixes: Sequence[Prefix], targets: Ints) -> Ranked:
        """Ranks of targets; see `rank_targets`."""
        return rank_targets(lambda part: self.scores(interactions, prefixes[part]), interactions, prefixes, targets)

    def scores(self, interactions: Interactions, prefixes: Sequence[Prefix]) -> Tensor:
        """Scores of all titles, float32 (len(prefixes), N)."""
        profiles = _matrix(interactions, prefixes)
        return torch.from_numpy(np.asarray((profiles @ self.similarity).todense(), dtype=np.float32))


def _matrix(interactions: Interactions, prefixes: Sequence[Prefix]) -> Any:
    """Who took what, float32 0 or 1, (len(prefixes), N)."""
    rows = np.concatenate([interactions.rows[prefix.start : prefix.stop] for prefix in prefixes])
    owners = np.repeat(np.arange(len(prefixes)), [len(prefix) for prefix in prefixes])
    shape = (len(prefixes), len(interactions.titles) + 1)
    matrix = sparse.csr_matrix((np.ones(rows.size, dtype=np.float32), (owners, rows)), shape=shape)
    matrix.data[:] = 1.0
    return matrix


def _similarity(matrix: Any, neighbours: int, shrinkage: float) -> Any:
    columns = matrix.tocsc()
    counts = np.asarray(matrix.sum(axis=0), dtype=np.float32).ravel()
    norms = np.sqrt(counts)
    blocks = []
    for start in range(0, matrix.shape[1], _BLOCK):
        together = np.asarray((columns[:, start : start + _BLOCK].T @ matrix).todense(), dtype=np.float32)
        places = np.arange(together.shape[0])
        together[places, start + places] = 0.0
        together /= np.outer(norms[start : start + _BLOCK], norms) + shrinkage + 1e-9
        if neighbours < together.shape[1]:
            least = np.partition(together, -neighbours, axis=1)[:, -neighbours, None]
            together[together < least] = 0.0
        blocks.append(sparse.csr_matrix(together))
    return sparse.vstack(blocks).tocsr()


class SasRec(nn.Module):
    """SASRec (Kang and McAuley 2018) as later reproductions run it: pre-norm, GELU, cross-entropy over all titles."""

    members: Final = 1
    starts: Final = False

    def __init__(
        self, *, vocabulary: int, length: int, width: int = 64, layers: int = 2, heads: int = 2, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.length = length
        self.heads = heads
        self.embedding = nn.Embedding(vocabulary + 1, width)
        self.places = nn.Embedding(length, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention_norm": nn.LayerNorm(width),
                    "projection": nn.Linear(width, 3 * width),
                    "output": nn.Linear(width, width),
                    "feed_norm": nn.LayerNorm(width),
                    "feed_in": nn.Linear(width, width),
                    "feed_out": nn.Linear(width, width),
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def title_vectors(self) -> Tensor:
        """(N, d); the embeddings."""
        return self.embedding.weight

    def states(self, titles: Tensor, actions: Tensor, times: Tensor, table: Tensor) -> Tensor:  # noqa: ARG002
        """(B, T + 1, d); state 0 is no prediction. Actions and times are not looked at."""
        batch, time = titles.shape
        width = table.shape[1]
        x = self.dropout(F.embedding(titles, table) * math.sqrt(width) + self.places.weight[:time])
        causal = torch.where(torch.ones(time, time, dtype=torch.bool).tril(), 0.0, MASKED)
        for layer in self.layers:
            joint = layer["projection"](layer["attention_norm"](x)).view(batch, time, 3, self.heads, -1)  # type: ignore[index]
            query, key, value = joint.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=causal)
            mixed = mixed.transpose(1, 2).reshape(batch, time, width)
            x = x + self.dropout(layer["output"](mixed))  # type: ignore[index]
            inner = self.dropout(F.gelu(layer["feed_in"](layer["feed_norm"](x))))  # type: ignore[index]
            x = x + self.dropout(layer["feed_out"](inner))  # type: ignore[index]
        return F.pad(self.norm(x), (0, 0, 1, 0))
