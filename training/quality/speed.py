"""SpEED of chroma: how much of the colour's spatial detail was lost or added, in the form of libvmaf.

Bampis et al. 2017, "SpEED-QA: Spatial Efficient Entropic Differencing for Image and Video Quality". A sixteenth of a
chroma plane's size, less its local mean, is a Gaussian scale mixture: blocks of 5x5 samples that share one covariance,
each with a variance of its own. A block's entropy, weighted by its variance, is compared between the pictures.

Float64 from the coarse picture on: its covariance is nearly singular where chroma is smooth.

Shapes: B pictures of h lines and w columns; M = 25 samples of a block; N blocks.
Units: chroma in steps of 8-bit video.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.quality.filters import HORIZONTAL, VERTICAL, along, mirrored

REDUCTION: Final = 16
"""Times that the coarse picture is smaller, each way."""
BLOCK: Final = 5
"""Samples of a block's side."""

_ANTIALIAS: Final = (9, 2 * 9 / 5)
_LOCAL: Final = (3, 3 / 5)
"""Taps and deviation of the Gaussians: before it is made smaller, and of the local mean."""
_NEUTRAL: Final = 128.0
_SINGULAR: Final = 1e-6
"""A covariance with a smaller eigenvalue counts as singular."""
_GAUSSIAN_BITS: Final = math.log2(2 * math.pi * math.e)
_OWN_SHARE: Final = 0.75
"""Of the reference's variance in the weight of the distorted entropy, the rest its own (`speed_weight_var_mode` 5)."""


class SpeedChroma(nn.Module):
    """SpEED, mean of both chroma planes.

    Args:
        noise: variance of the viewer's neural noise.
        floor: part of it that blocks must exceed to differ visibly.
        most: that the score is cut to.
        scale: that planes are scaled by first, bilinearly.
    """

    def __init__(self, noise: float = 0.19, floor: float = 0.1, most: float = 45.0, scale: float = 1.0) -> None:
        super().__init__()
        self.noise, self.most, self.scale = noise, most, scale
        self.quiet_bits = BLOCK**2 * (math.log2((1 + floor) * noise) + _GAUSSIAN_BITS)
        self.register_buffer("antialias", _gaussian(*_ANTIALIAS), persistent=False)
        self.register_buffer("local", _gaussian(*_LOCAL), persistent=False)

    def forward(self, reference: Tensor, distorted: Tensor) -> Tensor:
        """Difference, 0 and up; 0 where no plane has a regular covariance (B, 1) float64.

        Args:
            reference: chroma planes (B, 2, h, w).
            distorted: likewise.
        """
        entropy, variance, regular = self._blocks(reference)
        entropy2, variance2, regular2 = self._blocks(distorted)
        mixed = _OWN_SHARE * variance + (1 - _OWN_SHARE) * variance2
        difference = (entropy * torch.log2(1 + variance) - entropy2 * torch.log2(1 + mixed)).abs()
        quiet = (entropy < self.quiet_bits) & (entropy2 < self.quiet_bits)
        scores = torch.where(quiet, 0.0, difference).mean(2)  # (B, 2)
        known = regular & regular2
        scores = torch.where(regular ^ regular2, 0.0, scores)
        flipped, other = scores.flip(1), known.flip(1)
        both = torch.where(known | ~other, scores, flipped)  # of a plane that has none the other's is taken
        return both.mean(1, keepdim=True).clamp(max=self.most)

    def _blocks(self, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Entropy of each block in bits (B, 2, N), its variance (B, 2, N), whether the covariance is regular (B, 2)."""
        coarse = self._coarse(planes - _NEUTRAL).double()
        lines, columns = (size // BLOCK * BLOCK for size in coarse.shape[2:])
        coarse = coarse[..., :lines, :columns]
        windows = coarse.unfold(2, lines - BLOCK + 1, 1).unfold(3, columns - BLOCK + 1, 1)
        samples = windows.flatten(4).flatten(2, 3)  # (B, 2, M, all places)
        samples = samples - samples.mean(3, keepdim=True)
        covariance = samples @ samples.mT / samples.shape[3]
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        regular = eigenvalues[..., 0] >= _SINGULAR
        blocks = coarse.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK).flatten(4).flatten(2, 3).mT  # (B, 2, M, N)
        safe = torch.where(regular[..., None], eigenvalues, 1.0)
        power = (vectors.mT @ blocks).square() / safe[..., None]
        variance = torch.where(regular[..., None], power.mean(2), 0.0)
        spread = eigenvalues.clamp(min=0.0)[..., None] * variance[:, :, None] + self.noise
        return (torch.log2(spread) + _GAUSSIAN_BITS).sum(2), variance, regular

    def _coarse(self, planes: Tensor) -> Tensor:
        """Smoothed, a sixteenth of the size, less the local mean (B, 2, h // 16, w // 16)."""
        if self.scale != 1:
            size = [int(side * self.scale + 0.5) for side in planes.shape[2:]]
            planes = F.interpolate(planes, size, mode="bilinear", align_corners=False)
        for axis in (VERTICAL, HORIZONTAL):
            count = planes.shape[axis] // REDUCTION
            reach = _ANTIALIAS[0] // 2
            smoothed = along(mirrored(planes, reach, reach, axis), self.get_buffer("antialias"), axis, REDUCTION)
            planes = smoothed.narrow(axis, 0, count)
        means = planes
        for axis in (VERTICAL, HORIZONTAL):
            means = along(mirrored(means, 1, 1, axis), self.get_buffer("local"), axis)
        return planes - means


def _gaussian(size: int, deviation: float) -> Tensor:
    """Taps that sum to 1 (size,)."""
    places = torch.arange(size, dtype=torch.float64) - size // 2
    taps = torch.exp(-places.square() / (2 * deviation**2))
    return (taps / taps.sum()).float()
