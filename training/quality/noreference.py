"""Models that predict the VMAF of a segment with no reference: from its bitstream, and from its decoded frames.

Each gives the quantiles LEVELS of what the score may be. Both are small and averaged over MEMBERS networks that start
from other weights: there are few sources to learn from. The frame model's first layers are fixed (a cosine transform of
luma and of the difference to the frame before, its zeros, block edges): what they measure is what codecs change, and
some dozens of sources would not teach them.
Shapes: B segments, F features, N patches, P their side, S statistics of a patch, K facts, M members, Q quantiles.
"""

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from serve.quality.bitstream import FEATURES
from serve.quality.sampling import FACTS

LEVELS: Final = (0.05, 0.5, 0.95)
"""Q levels of the quantiles that models give."""
MEMBERS: Final = 8
"""M."""
_BLOCK: Final = 8
_BANDS: Final = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (9, 10), (11, 14))
"""First and last diagonal (u + v) of the cosine transform in each band, from coarse to fine."""
_FLOOR: Final = 0.25
"""Of logarithms, steps of 8-bit video."""
_LOW: Final = -4.0
_HIGH: Final = 104.0
"""Ends of the logistic curve: just outside of the scores, so that 0 and 100 can be reached."""

STATISTICS: Final = 4 * len(_BANDS) + 7
"""S."""


class Members(nn.Module):
    """M networks of one hidden layer each beside a linear path, in one, that give quantiles of a score.

    Args:
        inputs: number of inputs.
        hidden: units of the hidden layer.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.straight = nn.Parameter(torch.zeros(MEMBERS, inputs, len(LEVELS)))
        self.first = nn.Parameter(torch.randn(MEMBERS, inputs, hidden) / math.sqrt(inputs))
        self.first_bias = nn.Parameter(torch.randn(MEMBERS, 1, hidden) * 0.1)
        self.second = nn.Parameter(torch.randn(MEMBERS, hidden, len(LEVELS)) * 0.1 / math.sqrt(hidden))
        self.bias = nn.Parameter(torch.tensor([0.0, 0.5, 0.0]).repeat(MEMBERS, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Quantiles of each member (M, B, Q), 0 to 100 and ascending, of inputs (B, inputs)."""
        hidden = functional.silu(torch.matmul(inputs, self.first) + self.first_bias)
        raw = torch.matmul(inputs, self.straight) + torch.matmul(hidden, self.second) + self.bias
        middle, below, above = raw[..., 1:2], functional.softplus(raw[..., :1]), functional.softplus(raw[..., 2:])
        logits = torch.cat([middle - below, middle, middle + above], dim=2)
        return (_LOW + (_HIGH - _LOW) * torch.sigmoid(logits)).clamp(0.0, 100.0)


class Scaled(nn.Module):
    """Inputs brought to mean 0 and deviation 1, as they were when the model was fitted, and cut to -4 to 4.

    Args:
        inputs: number of inputs.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))

    def fit(self, values: Tensor) -> None:
        """Take mean and deviation from values (rows, inputs)."""
        self.get_buffer("mean").copy_(values.mean(0))
        self.get_buffer("deviation").copy_(values.std(0).clamp(min=0.05))

    def forward(self, values: Tensor) -> Tensor:
        """Scaled values, of any shape (..., inputs)."""
        scaled = (values - self.get_buffer("mean")) / self.get_buffer("deviation")
        return scaled.clamp(-4.0, 4.0)


class BitstreamQuality(nn.Module):
    """Quality from the bitstream's features.

    Args:
        hidden: units of each member.
    """

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.scaled = Scaled(len(FEATURES))
        self.members = Members(len(FEATURES), hidden)

    def of_members(self, features: Tensor) -> Tensor:
        """Quantiles of each member (M, B, Q)."""
        quantiles: Tensor = self.members(self.scaled(features))
        return quantiles

    def forward(self, features: Tensor) -> Tensor:
        """Quantiles LEVELS of the score (B, Q), 0 to 100; features as serve.quality.bitstream.features (B, F)."""
        return self.of_members(features).mean(0)


class PatchStatistics(nn.Module):
    """The frame model's fixed first layers."""

    def __init__(self) -> None:
        super().__init__()
        place = np.arange(_BLOCK)
        basis = np.cos(np.pi * (2 * place + 1) * place[:, None] / (2 * _BLOCK)) * math.sqrt(2 / _BLOCK)
        basis[0] /= math.sqrt(2)
        kernels = np.einsum("uy,vx->uvyx", basis, basis).reshape(-1, 1, _BLOCK, _BLOCK)
        diagonal = (place + place[:, None]).reshape(-1)
        bands = np.stack([(diagonal >= first) & (diagonal <= last) for first, last in _BANDS]).astype(np.float64)
        self.register_buffer("kernels", torch.tensor(kernels, dtype=torch.float32), persistent=False)
        weights = (bands / bands.sum(1, keepdims=True)).T
        self.register_buffer("bands", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Statistics (rows, S) of patches in steps of 8-bit video (rows, 2, P, P): a frame and the one before."""
        luma = patches[:, :1]
        difference = luma - patches[:, 1:]
        parts = [self._spectrum(luma), self._spectrum(difference)]
        across, down = luma[..., :, 1:] - luma[..., :, :-1], luma[..., 1:, :] - luma[..., :-1, :]
        bend = across[..., 1:] - across[..., :-1]
        parts += [
            torch.exp(-difference.abs() / 0.5).mean((1, 2, 3))[:, None],
            torch.exp(-across.abs() / 0.5).mean((1, 2, 3))[:, None],
            torch.exp(-bend.abs() / 0.5).mean((1, 2, 3))[:, None],
            self._edges(across.abs().mean((1, 2))),
            self._edges(down.abs().mean((1, 3))),
            luma.mean((1, 2, 3))[:, None] / 64,
            torch.log(difference.abs().mean((1, 2, 3)) + _FLOOR)[:, None],
        ]
        return torch.cat(parts, dim=1)

    def _spectrum(self, picture: Tensor) -> Tensor:
        """Of each band the mean logarithm of coefficients and the share that is about 0 (rows, 2 bands)."""
        size = functional.conv2d(picture, self.get_buffer("kernels"), stride=_BLOCK // 2).abs()
        bands = self.get_buffer("bands")
        level = torch.log(size + _FLOOR).mean((2, 3)) @ bands
        dead = torch.exp(-size).mean((2, 3)) @ bands
        return torch.cat([level, dead], dim=1)

    @staticmethod
    def _edges(steps: Tensor) -> Tensor:
        """How much larger steps are at the borders of blocks than elsewhere, of mean steps (rows, P - 1)."""
        at = steps[:, _BLOCK - 1 :: _BLOCK].mean(1, keepdim=True)
        inside = steps[:, _BLOCK // 2 - 1 :: _BLOCK].mean(1, keepdim=True)
        return torch.log((at + _FLOOR) / (inside + _FLOOR))


class FrameQuality(nn.Module):
    """Quality from patches of decoded frames.

    Args:
        embedded: numbers that each patch becomes.
        hidden: units of each member.
    """

    def __init__(self, embedded: int = 16, hidden: int = 8) -> None:
        super().__init__()
        self.statistics = PatchStatistics()
        self.scaled = Scaled(STATISTICS)
        self.facts = Scaled(len(FACTS))
        self.embed = nn.Linear(STATISTICS + len(FACTS), embedded)
        self.members = Members(2 * STATISTICS + embedded + len(FACTS), hidden)

    def measure(self, patches: Tensor) -> Tensor:
        """Statistics (B, N, S) of patches (B, N, 2, P, P)."""
        rows, count = patches.shape[:2]
        statistics: Tensor = self.statistics(patches.flatten(0, 1))
        return statistics.reshape(rows, count, STATISTICS)

    def of_members(self, statistics: Tensor, facts: Tensor) -> Tensor:
        """Quantiles of each member (M, B, Q) from statistics (B, N, S) and facts (B, K)."""
        scaled, known = self.scaled(statistics), self.facts(facts)
        mean = scaled.mean(1)
        spread = ((scaled - mean[:, None]) ** 2).mean(1).add(1e-4).sqrt()
        each = torch.cat([scaled, known[:, None].expand(-1, scaled.shape[1], -1)], dim=2)
        embedded = functional.silu(self.embed(each)).mean(1)
        quantiles: Tensor = self.members(torch.cat([mean, spread, embedded, known], dim=1))
        return quantiles

    def forward(self, patches: Tensor, facts: Tensor) -> Tensor:
        """Quantiles LEVELS of the score (B, Q), 0 to 100.

        Args:
            patches: as serve.quality.sampling.sample_clip (B, N, 2, P, P).
            facts: as serve.quality.sampling.resolution_facts (B, K).
        """
        return self.of_members(self.measure(patches), facts).mean(0)


def pinball(quantiles: Tensor, truth: Tensor) -> Tensor:
    """Mean loss of quantiles (..., B, Q) against scores (B,), of the same unit as scores (Koenker and Bassett 1978)."""
    error = truth[:, None] - quantiles
    levels = quantiles.new_tensor(LEVELS)
    return torch.maximum(levels * error, (levels - 1) * error).mean()
