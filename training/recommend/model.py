"""Title table and sequence encoder: what a viewer will start next, from what was watched and when.

A causal transformer over visits (SASRec, Kang and McAuley 2018) whose attention also sees how long ago and how many
visits ago each visit was (as in HSTU, Zhai et al. 2024, section 3.2), with a start token, so that an empty history has
a state too. Titles are vectors made from an id embedding and content features; a score is state . vector.

Shapes: B batch, T time (visits, oldest first, zeros after the last), N title rows (row 0 is padding), d width, h heads.
"""

import math
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from features.sequences import ACTION_BITS
from features.titles import CONTENT_SIZE

MASKED: Final = -1e9
"""Score of what may not be seen: finite, so that engines never meet inf - inf."""

TIME_KNOTS: Final = 9
"""Knots of the piecewise linear functions of log time, 0 to TIME_KNOTS - 1."""

_KNOTS_PER_E: Final = (TIME_KNOTS - 1) / math.log1p(10 * 365 * 86_400)
"""The last knot is at ten years."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Size and regularisation of the encoder.

    Attributes:
        vocabulary: titles with an id embedding, V.
        length: the most visits it takes.
        width: of one member; d is members * width.
        members: transformers side by side, fitted together, whose scores are averaged.
        layers: transformer blocks.
        heads: attention heads, a divisor of width.
        dropout: of embeddings and of the blocks' outputs.
        id_dropout: share of titles that a training step sees by their content alone.
        timed: whether times are looked at.
    """

    vocabulary: int
    length: int = 100
    width: int = 64
    members: int = 2
    layers: int = 2
    heads: int = 2
    dropout: float = 0.3
    id_dropout: float = 0.1
    timed: bool = True

    @property
    def vector_size(self) -> int:
        """d, the length of states and title vectors."""
        return self.members * self.width


class TitleTable(nn.Module):
    """Graph `titles`: a vector for each title, from its id embedding and its content features."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.id_dropout = config.id_dropout
        self.embedding = nn.Embedding(config.vocabulary + 1, config.vector_size)
        self.content = nn.Linear(CONTENT_SIZE, config.vector_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.content.weight, std=0.02)

    def forward(self, content: Tensor, ids: Tensor) -> Tensor:
        """Vectors of titles.

        Args:
            content: float32 (N, CONTENT_SIZE); zeros where nothing is known.
            ids: int64 (N,), rows of the vocabulary; 0 for titles that training did not see, which share one embedding.

        Returns:
            float32 (N, d).
        """
        if self.training and self.id_dropout > 0:
            dropped = torch.rand(ids.shape) < self.id_dropout
            ids = torch.where(dropped & (content != 0).any(dim=-1), 0, ids)
        return self.embedding(ids) + self.content(content)  # type: ignore[no-any-return]


def time_basis(seconds: Tensor) -> Tensor:
    """Piecewise linear basis of log time: continuous, so that engines that round differently agree.

    Args:
        seconds: int64, any shape; below 0 counts as 0.

    Returns:
        float32 (..., TIME_KNOTS): hat functions of log(1 + seconds), at most two of them above 0.
    """
    place = torch.log1p(seconds.clamp(min=0).to(torch.float32)) * _KNOTS_PER_E
    knots = torch.arange(TIME_KNOTS, dtype=torch.float32)
    return F.relu(1 - (place.clamp(max=TIME_KNOTS - 1).unsqueeze(-1) - knots).abs())


@dataclass(frozen=True, kw_only=True)
class Relations:
    """How keys stand to queries, the same for all layers and members.

    Attributes:
        back: int64 (B or 1, Q, T + 1), how many places the key is before the query; below 0 it is after it.
        ages: (B, Q, T + 1, TIME_KNOTS), basis of the time from key to query; None without times.
    """

    back: Tensor
    ages: Tensor | None


class Block(nn.Module):
    """Pre-norm attention with a bias for relative place and relative time, then a feed-forward layer.

    Q queries: all places, or the newest alone.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.place_bias = nn.Parameter(torch.zeros(config.length + 1, config.heads))  # by places back
        self.start_bias = nn.Parameter(torch.zeros(config.heads))  # to the start token
        self.time_bias = nn.Linear(TIME_KNOTS, config.heads, bias=False)
        nn.init.zeros_(self.time_bias.weight)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, width)
        self.feed_out = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, asking: Tensor, x: Tensor, relations: Relations) -> Tensor:
        """One layer.

        Args:
            asking: (B, Q, d), what the places that ask hold.
            x: (B, T, d), what all places hold.
            relations: how the places stand to those that ask.

        Returns:
            (B, Q, d).
        """
        batch, _, width = x.shape

        def split(values: Tensor) -> Tensor:
            return values.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)  # (B, h, ., d/h)

        to_start = (torch.arange(x.shape[1]) == 0).unsqueeze(-1)  # (T, 1)
        back = relations.back
        bias = torch.where(to_start, self.start_bias, self.place_bias[back.clamp(min=0)])  # (., Q, T, h)
        if relations.ages is not None:
            bias = bias + self.time_bias(relations.ages)
        bias = torch.where(back.unsqueeze(-1) >= 0, bias, MASKED).permute(0, 3, 1, 2)  # (., h, Q, T)
        query = split(self.query(self.attention_norm(asking)))
        key, value = (split(part) for part in self.key_value(self.attention_norm(x)).chunk(2, dim=-1))
        logits = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads) + bias
        mixed = (logits.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, -1, width)
        asking = asking + self.dropout(self.output(mixed))
        inner = self.dropout(F.gelu(self.feed_in(self.feed_norm(asking))))
        return asking + self.dropout(self.feed_out(inner))  # type: ignore[no-any-return]


class Member(nn.Module):
    """One transformer; the encoder averages the scores of several."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.action = nn.Linear(ACTION_BITS, width, bias=False)
        self.gap = nn.Linear(TIME_KNOTS, width, bias=False)
        nn.init.normal_(self.action.weight, std=0.02)
        nn.init.normal_(self.gap.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def embedded(self, vectors: Tensor, actions: Tensor, gaps: Tensor | None) -> Tensor:
        """What the places hold, (B, T + 1, d); place 0 is the start token.

        Args:
            vectors: (B, T, d), of the visited titles.
            actions: (B, T, ACTION_BITS), 0 or 1.
            gaps: (B, T, TIME_KNOTS), basis of the time since the visit before; None without times.
        """
        x = vectors * math.sqrt(vectors.shape[-1]) + self.action(actions)
        if gaps is not None:
            x = x + self.gap(gaps)
        x = torch.cat([self.start.expand(x.shape[0], 1, -1), x], dim=1)
        return self.dropout(x)  # type: ignore[no-any-return]

    def all_states(self, x: Tensor, relations: Relations) -> Tensor:
        """(B, T + 1, d), the states of all places."""
        for block in self.blocks:
            x = block(x, x, relations)
        return self.norm(x)  # type: ignore[no-any-return]

    def newest_state(self, x: Tensor, relations: Relations, newest: Tensor, to_newest: Relations) -> Tensor:
        """(B, 1, d), the state of the newest place alone, which is all that the last layer then has to work out.

        Args:
            x: (B, T + 1, d), what the places hold.
            relations: of all places.
            newest: (B, 1, T + 1), 1 at the newest place, else 0.
            to_newest: of all places to the newest.
        """
        *earlier, last = self.blocks
        for block in earlier:
            x = block(x, x, relations)
        return self.norm(last(newest @ x, x, to_newest))  # type: ignore[no-any-return]


class SequenceEncoder(nn.Module):
    """Graph `encoder`: a history's state, the members' states side by side."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(Member(config) for _ in range(config.members))

    def hidden(self, titles: Tensor, actions: Tensor, times: Tensor, table: Tensor) -> Tensor:
        """States after each prefix: (B, T + 1, d); state i has seen the first i visits."""
        places, stamps = self._embedded(titles, actions, times, table)
        relations = self._relations(stamps)
        states = [member.all_states(x, relations) for member, x in zip(self._members(), places, strict=True)]
        return torch.cat(states, dim=-1) / self.config.members

    def _members(self) -> list[Member]:
        return cast("list[Member]", list(self.members))

    def forward(self, titles: Tensor, actions: Tensor, times: Tensor, table: Tensor) -> Tensor:
        """State of each history.

        Args:
            titles: int64 (B, T), rows of `table`, zeros after the last visit.
            actions: int64 (B, T), bit sets over KIND_CODES.
            times: int64 (B, T), UTC seconds.
            table: float32 (N, d), from the graph `titles`.

        Returns:
            float32 (B, d); scores of titles are state @ table.T. A history without visits has the start token's state.
        """
        places, stamps = self._embedded(titles, actions, times, table)
        relations = self._relations(stamps)
        place = torch.arange(stamps.shape[1])
        seen = (titles > 0).sum(dim=1, keepdim=True)  # (B, 1)
        newest = seen == place  # (B, T + 1), one of each row
        chosen = newest.to(table.dtype).unsqueeze(1)
        ages = None
        if self.config.timed:
            now = stamps.gather(1, seen)  # no sum: engines add integers as float32, which is minutes wrong
            ages = time_basis(now - stamps).unsqueeze(1)  # (B, 1, T + 1, TIME_KNOTS)
        to_newest = Relations(back=(seen - place).unsqueeze(1), ages=ages)
        states = [
            member.newest_state(x, relations, chosen, to_newest)
            for member, x in zip(self._members(), places, strict=True)
        ]
        return torch.cat(states, dim=-1).squeeze(1) / self.config.members

    def _embedded(self, titles: Tensor, actions: Tensor, times: Tensor, table: Tensor) -> tuple[list[Tensor], Tensor]:
        """What the places hold by member, each (B, T + 1, d / members), and the places' times, int64 (B, T + 1)."""
        stamps = torch.cat([times[:, :1], times], dim=1)  # the start token is as old as the first visit
        gaps = time_basis(times - stamps[:, :-1]) if self.config.timed else None
        # Divisions, not shifts: TensorRT and ONNX know none.
        places = 2 ** torch.arange(ACTION_BITS)
        bits = (torch.div(actions.unsqueeze(-1), places, rounding_mode="floor") % 2).to(table.dtype)
        vectors = F.embedding(titles, table).chunk(self.config.members, dim=-1)
        return [m.embedded(own, bits, gaps) for m, own in zip(self._members(), vectors, strict=True)], stamps

    def _relations(self, stamps: Tensor) -> Relations:
        """From every place to every place."""
        place = torch.arange(stamps.shape[1])
        ages = time_basis(stamps.unsqueeze(2) - stamps.unsqueeze(1)) if self.config.timed else None
        return Relations(back=(place.unsqueeze(1) - place).unsqueeze(0), ages=ages)


class Retrieval(nn.Module):
    """Titles and encoder together: what is fitted.

    Attributes:
        titles: the graph `titles`.
        encoder: the graph `encoder`.
        content: float32 (N, CONTENT_SIZE), content features of the vocabulary's rows.
    """

    starts: Final = True
    content: Tensor

    def __init__(self, config: EncoderConfig, content: Tensor | None = None) -> None:
        """Fresh weights from torch's global generator.

        Args:
            config: sizes.
            content: content features; zeros unless given.
        """
        super().__init__()
        self.config = config
        self.titles = TitleTable(config)
        self.encoder = SequenceEncoder(config)
        known = torch.zeros(config.vocabulary + 1, CONTENT_SIZE) if content is None else content
        self.register_buffer("content", known)

    @property
    def length(self) -> int:
        """The most visits it takes."""
        return self.config.length

    @property
    def members(self) -> int:
        """Models side by side, whose scores are averaged."""
        return self.config.members

    def title_vectors(self) -> Tensor:
        """Vectors of the vocabulary, (N, d)."""
        return self.titles(self.content, torch.arange(self.content.shape[0]))  # type: ignore[no-any-return]

    def states(self, titles: Tensor, actions: Tensor, times: Tensor, table: Tensor) -> Tensor:
        """States after each prefix, (B, T + 1, d)."""
        return self.encoder.hidden(titles, actions, times, table)
