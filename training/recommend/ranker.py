"""Graph `ranker`: exact retrieval over the whole catalogue, then a multi-objective order of the best candidates.

Three objectives: which title is started next (play), whether a title that is started is watched to the end (finish)
and whether it is liked (thumbs_up). The final order is

    score = order + finish_weight * log finish + thumbs_up_weight * log thumbs_up,    order = log p + correction,

where p is the softmax over all eligible titles of the retrieval, state . vector + trend_weight * trend. Training keeps
the trend only if validation gains by it (training.recommend.trend), and the correction and the other weights only as
far as held-out frames show that NDCG@10 of the next title does not suffer (training.recommend.objectives).

Shapes: B batch, N title rows (row 0 is padding), K candidates, d width, S statistics, C context.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from features.ranking import CONTEXT_SIZE, STATISTICS_SIZE, TREND

ABSENT: Final = -1e31
"""Score of titles that are not eligible."""

_MATCHES: Final = 16
_HIDDEN: Final = 32


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Size of the ranker and weights of its objectives.

    Attributes:
        width: d of state and vectors.
        candidates: K.
        finish_weight: of log finish in the final order, 0 or more.
        thumbs_up_weight: of log thumbs_up in the final order, 0 or more.
        trend_weight: of the titles' trend in the retrieval, 0 or more.
    """

    width: int
    candidates: int
    finish_weight: float = 0.0
    thumbs_up_weight: float = 0.0
    trend_weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """Candidates by the encoder and the trend; all (B, K).

    Attributes:
        rows: int64, rows of the table.
        retrieval: state . vector + trend_weight * trend; ABSENT where not eligible.
        log_play: log of the retrieval's softmax over all eligible titles, at least -50.
    """

    rows: Tensor
    retrieval: Tensor
    log_play: Tensor


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the objectives say of candidates; all (B, K).

    Attributes:
        order: log_play with the correction.
        finish: logits.
        thumbs_up: logits.
    """

    order: Tensor
    finish: Tensor
    thumbs_up: Tensor


class Ranker(nn.Module):
    """Retrieves the K best titles and orders them."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        size = 1 + _MATCHES + STATISTICS_SIZE + CONTEXT_SIZE
        self.state_side = nn.Linear(config.width, _MATCHES)
        self.title_side = nn.Linear(config.width, _MATCHES)
        last = nn.Linear(_HIDDEN, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.correction = nn.Sequential(nn.Linear(size, _HIDDEN), nn.ReLU(), last)
        self.outcomes = nn.Sequential(nn.Linear(size, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 2))
        self.gate = nn.Parameter(torch.zeros(()), requires_grad=False)  # of the correction: 0 until it proved its worth

    def retrieve(
        self, state: Tensor, table: Tensor, eligible: Tensor, trend: Tensor, rows: Tensor | None = None
    ) -> Retrieved:
        """The K best titles, or given ones.

        Args:
            state: float32 (B, d).
            table: float32 (N, d).
            eligible: bool (B, N).
            trend: float32 (N,) or (B, N), column TREND of the titles' statistics.
            rows: int64 (B, K), titles to look at; None: the K best of all.
        """
        logits = state @ table.T  # (B, N)
        if self.config.trend_weight:
            logits = logits + self.config.trend_weight * trend
        logits = torch.where(eligible, logits, ABSENT)
        normaliser = logits.logsumexp(dim=1, keepdim=True)
        if rows is None:
            retrieval, rows = logits.topk(self.config.candidates, dim=1)
        else:
            retrieval = logits.gather(1, rows)
        return Retrieved(rows=rows, retrieval=retrieval, log_play=(retrieval - normaliser).clamp(min=-50.0))

    def judge(self, state: Tensor, vectors: Tensor, log_play: Tensor, statistics: Tensor, context: Tensor) -> Judged:
        """What the objectives say of candidates.

        Args:
            state: float32 (B, d).
            vectors: float32 (B, K, d), of the candidates.
            log_play: float32 (B, K).
            statistics: float32 (B, K, S), of the candidates.
            context: float32 (B, C).
        """
        matches = self.state_side(state).unsqueeze(1) * self.title_side(vectors)  # (B, K, M)
        shared = context.unsqueeze(1).expand(-1, vectors.shape[1], -1)
        features = torch.cat([log_play.unsqueeze(-1) / 10, matches, statistics, shared], dim=-1)
        finish, thumbs_up = self.outcomes(features).unbind(dim=-1)
        order = log_play + self.gate * self.correction(features).squeeze(-1)
        return Judged(order=order, finish=finish, thumbs_up=thumbs_up)

    def utility(self, judged: Judged) -> Tensor:
        """The final score, (B, K)."""
        return (
            judged.order
            + self.config.finish_weight * F.logsigmoid(judged.finish)
            + self.config.thumbs_up_weight * F.logsigmoid(judged.thumbs_up)
        )

    def forward(
        self, state: Tensor, table: Tensor, eligible: Tensor, title_stats: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Rank.

        Args:
            state: float32 (B, d), from the graph `encoder`.
            table: float32 (N, d), from the graph `titles`.
            eligible: bool (B, N), what may be shown; row 0 never is, whatever it says.
            title_stats: float32 (N, S), from features.ranking.title_statistics.
            context: float32 (B, C), from features.ranking.request_context.

        Returns:
            candidates int64, score, retrieval, play, finish, thumbs_up float32, each (B, K), best score first. play,
            finish and thumbs_up are probabilities: that this title is the next one started; that it is finished and
            liked once started. Where fewer than K titles are eligible, the rest scores -1e31 and has probabilities 0.
        """
        real = torch.arange(table.shape[0]) > 0
        found = self.retrieve(state, table, eligible & real, title_stats[:, TREND])
        vectors, statistics = F.embedding(found.rows, table), F.embedding(found.rows, title_stats)
        judged = self.judge(state, vectors, found.log_play, statistics, context)
        present = found.retrieval > ABSENT / 10
        covered = torch.where(present, found.log_play.exp(), 0.0).sum(dim=1, keepdim=True)  # share of the K best
        play = torch.where(present, judged.order, -1e9).softmax(dim=1) * covered
        score, place = torch.where(present, self.utility(judged), ABSENT).topk(self.config.candidates, dim=1)

        def ordered(values: Tensor) -> Tensor:
            return torch.where(present, values, 0.0).gather(1, place)

        return (
            found.rows.gather(1, place),
            score,
            found.retrieval.gather(1, place),
            ordered(play),
            ordered(judged.finish.sigmoid()),
            ordered(judged.thumbs_up.sigmoid()),
        )
