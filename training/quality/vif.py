"""Visual information fidelity at four scales (Sheikh and Bovik 2006), in the form and with the rounding of libvmaf.

The picture is a Gaussian scale mixture, distortion is a gain and noise; the share of information that gets through to a
viewer with neural noise of variance NOISE is the score of a scale.
"""

from typing import Final

import torch
from torch import Tensor, nn

from training.quality.filters import HORIZONTAL, VERTICAL, gaussian, halved, quantised, smoothed

SIZES: Final = (17, 9, 5, 3)
"""Taps of the filter of each scale."""

NOISE: Final = 2.0
"""Variance of the viewer's neural noise, in squared steps of 8-bit luma."""

_TINY: Final = 1e-10
_FLAT_LOSS: Final = 4 / 255**2
"""What a unit of the distorted picture's variance costs where the reference is flat."""

_MIDDLE: Final = 128.0
"""Taken off the luma, so that squares keep their precision in float32."""


class Vif(nn.Module):
    """VIF of each scale, finest first.

    Args:
        gain_limit: most that a local gain counts; 1.0 is VMAF's NEG form, in which sharpening earns nothing.
    """

    def __init__(self, gain_limit: float = 100.0) -> None:
        super().__init__()
        self.gain_limit = gain_limit
        for scale, size in enumerate(SIZES):
            self.register_buffer(f"taps{scale}", gaussian(size), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Score of each scale, about 0 to 1, above 1 where contrast was gained (B, 4).

        Args:
            frames: luma of the reference and of the distorted picture, multiples of 1 / GRAIN (B, 2, H, W).
        """
        scores = []
        for scale in range(len(SIZES)):
            taps = self.get_buffer(f"taps{scale}")
            if scale:
                frames = halved(frames, taps)
            scores.append(self._score(frames, taps))
        return torch.cat(scores, dim=1)

    def _score(self, frames: Tensor, taps: Tensor) -> Tensor:
        reference_variance, distorted_variance, covariance = _moments(frames, taps)
        gain = covariance / (reference_variance + _TINY)
        lost = distorted_variance - gain * covariance
        unrelated = (reference_variance < _TINY) | (gain < 0)
        lost = torch.where(unrelated, distorted_variance, lost)
        gain = torch.where(unrelated | (distorted_variance < _TINY), 0.0, gain)
        lost = torch.where(distorted_variance < _TINY, 0.0, lost).clamp(min=_TINY)
        gain = gain.clamp(max=self.gain_limit)
        passed = torch.log2(1 + gain * gain * reference_variance / (lost + NOISE))
        there = torch.log2(1 + reference_variance / NOISE)
        flat = reference_variance < NOISE
        passed = torch.where(flat, 1 - distorted_variance * _FLAT_LOSS, torch.where(covariance < 0, 0.0, passed))
        there = torch.where(flat, 1.0, there)
        return passed.sum((2, 3)) / there.sum((2, 3))


def _moments(frames: Tensor, taps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Local variances and covariance (B, 1, H, W) each.

    libvmaf rounds means to 1 / GRAIN between the passes and keeps squares whole, so its variances are off by twice the
    mean times that rounding: up to half a unit, a quarter of the viewer's noise. The same is added here.
    """
    kept, residue = quantised(frames, taps, VERTICAL)
    both = smoothed(torch.cat([kept + residue, residue], dim=1), taps, HORIZONTAL)
    mean1, mean2, residue1, residue2 = _channels(both)
    reference, distorted = _channels(frames - _MIDDLE)
    products = torch.cat([reference * reference, distorted * distorted, reference * distorted], dim=1)
    square1, square2, cross = _channels(smoothed(smoothed(products, taps, VERTICAL), taps, HORIZONTAL))
    low1, low2 = mean1 - _MIDDLE, mean2 - _MIDDLE
    variance1 = square1 - low1 * low1 + residue1 * (2 * mean1 - residue1)
    variance2 = square2 - low2 * low2 + residue2 * (2 * mean2 - residue2)
    covariance = cross - low1 * low2 + residue1 * mean2 + residue2 * mean1 - residue1 * residue2
    return variance1.clamp(min=0.0), variance2.clamp(min=0.0), covariance


def _channels(x: Tensor) -> list[Tensor]:
    """Each channel on its own (B, 1, H, W)."""
    return [x[:, place : place + 1] for place in range(x.shape[1])]
