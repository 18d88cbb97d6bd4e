"""Separable filters with mirrored edges, as VMAF's features use them.

libvmaf filters in fixed point. Where its rounding reaches the scores (small pictures, coarse scales) it is followed
here: sums of 24 bits are exact in float32, so that the same picture is halved to the same integers.

Shapes: (B, C, H, W) throughout, each channel on its own.
Units: luma in steps of 8-bit video, 0 to 255.75 (10-bit video has quarter steps).
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

VERTICAL: Final = -2
HORIZONTAL: Final = -1

GRAIN: Final = 256.0
"""libvmaf keeps filtered luma in steps of one in so many."""

_UNIT: Final = 65536
"""Sum of a fixed-point filter's taps."""


_HALVES: Final = {
    17: (489, 935, 1640, 2640, 3896, 5274, 6547, 7455, 7784),
    9: (1244, 3663, 7925, 12590, 14692),
    5: (3571, 16004, 26386),
    3: (10904, 43728),
}
"""libvmaf's Gaussians of deviation size / 5 in steps of 1 / _UNIT, up to the middle, with a rounding of their own: a
step more or less in the largest ones moves scores of grainy video by two hundredths of a point."""


def gaussian(size: int) -> Tensor:
    """Taps of a Gaussian of deviation size / 5; they sum to 1 (size,).

    Args:
        size: 17, 9, 5 or 3.
    """
    half = _HALVES[size]
    return torch.tensor([*half, *half[-2::-1]], dtype=torch.float32) / _UNIT


def mirrored(x: Tensor, before: int, after: int, axis: int) -> Tensor:
    """Longer by what lies behind a mirror at the first and the last row or column, which are not repeated."""
    sides = (0, 0, before, after) if axis == VERTICAL else (before, after, 0, 0)
    return F.pad(x, sides, mode="reflect")


def echoed(x: Tensor, after: int, axis: int) -> Tensor:
    """Longer by one mirrored row or column before it and by `after` (1 or 2) behind it, where the last one is repeated.

    libvmaf's wavelet and its masking filter have such edges.
    """
    if axis == VERTICAL:
        parts = [x[:, :, 1:2], x, x[:, :, -1:], x[:, :, -2:-1]]
    else:
        parts = [x[..., 1:2], x, x[..., -1:], x[..., -2:-1]]
    return torch.cat(parts[: 2 + after], axis)


def along(x: Tensor, taps: Tensor, axis: int, stride: int = 1) -> Tensor:
    """Correlate each channel with `taps` along an axis, with no padding."""
    channels = x.shape[1]
    shape, steps = ((-1, 1), (stride, 1)) if axis == VERTICAL else ((1, -1), (1, stride))
    return F.conv2d(x, taps.view(1, 1, *shape).expand(channels, -1, -1, -1), stride=steps, groups=channels)


def smoothed(x: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Filter along an axis with mirrored edges; the size stays."""
    reach = len(taps) // 2
    return along(mirrored(x, reach, reach, axis), taps, axis)


def rounded(x: Tensor, grain: float = GRAIN) -> Tensor:
    """To the nearest multiple of 1 / grain, halves upwards."""
    return torch.floor(x * grain + 0.5) / grain


def quantised(x: Tensor, taps: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """As `smoothed`, split into what libvmaf keeps of it, multiples of 1 / GRAIN, and what its rounding takes off.

    Args:
        x: multiples of 1 / GRAIN, 0 to 255.75 (B, C, H, W).
        taps: of `gaussian`.
        axis: VERTICAL or HORIZONTAL.
    """
    reach = len(taps) // 2
    return _quantise(x, taps, axis, reach, 1)


def halved(x: Tensor, taps: Tensor) -> Tensor:
    """Filter both ways and keep each second row and column, exact to libvmaf's integers.

    Args:
        x: multiples of 1 / GRAIN, 0 to 255.75 (B, C, H, W).
        taps: of `gaussian`.

    Returns:
        Multiples of 1 / GRAIN (B, C, H // 2, W // 2).
    """
    reach = len(taps) // 2
    for axis in (VERTICAL, HORIZONTAL):
        x, _ = _quantise(x, taps, axis, reach - 1, 2)  # one less behind: of an odd size the last row stays out
    return x


def _quantise(x: Tensor, taps: Tensor, axis: int, behind: int, stride: int) -> tuple[Tensor, Tensor]:
    reach, weights = len(taps) // 2, taps * _UNIT
    whole = torch.floor(x)  # both parts times the taps sum up within 24 bits, which float32 holds
    high = along(mirrored(whole, reach, behind, axis), weights, axis, stride)
    low = along(mirrored((x - whole) * GRAIN, reach, behind, axis), weights, axis, stride)
    carried = torch.floor(high / GRAIN)
    rest = (high - carried * GRAIN) * GRAIN + low
    steps = torch.floor((rest + _UNIT / 2) / _UNIT)
    return (carried + steps) / GRAIN, (rest - steps * _UNIT) / (_UNIT * GRAIN)
