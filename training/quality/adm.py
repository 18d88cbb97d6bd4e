"""ADM2: the share of the reference's visible detail that is left, in the form of libvmaf; ADM3: with what was added.

Li et al. 2011, "Image quality assessment by separately evaluating detail losses and additive impairments".
Four levels of a Daubechies-2 wavelet. The distorted picture is split into what is left of the reference and what was
added; both are weighted by the eye's contrast sensitivity, and what was added masks what is left. ADM3 averages that
with the additive impairments, which what is left masks in turn.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve.errors import InvalidInput
from training.quality.filters import HORIZONTAL, VERTICAL, along, echoed, rounded

LEVELS: Final = 4

_LOW: Final = (15826, 27411, 7345, -4240)
_HIGH: Final = (-4240, -7345, 27411, -15826)
_TAP_UNIT: Final = 32768
"""Daubechies-2 in fixed point."""

_FIRST_GRAINS: Final = {VERTICAL: 128.0, HORIZONTAL: 64.0}
"""libvmaf keeps the finest level in steps of one in so many after each pass; the others are near enough to exact."""

_MIDDLE: Final = 128.0
"""Taken off the luma first, as in libvmaf: it moves where the finest level's rounding falls."""

_SQUARE_GRAINS: Final = (None, 2.0**11, 2.0**8, 2.0**5)
"""libvmaf rounds the reference's squared coefficients up to such steps, from the second level on."""

_VIEWING_DISTANCE: Final = 3.0
_DISPLAY_LINES: Final = 1080
"""The eye is three heights away from a display of 1,080 lines."""

_AMPLITUDES: Final = ((0.67234, 0.72709), (0.41317, 0.49428), (0.22727, 0.28688), (0.11792, 0.15214))
_ORIENTATIONS: Final = (1.0, 0.534)
"""Of the horizontal and vertical band, and of the diagonal one (Watson et al. 1997, "Visibility of wavelet quantization
noise", tables IV and V, luma)."""

_BLENDED: Final = {
    **dict.fromkeys(
        ((3.0, 1080), (1.5, 2160)),
        ((0.01183, 0.004302), (0.025026, 0.011778), (0.04295, 0.023918), (0.058621, 0.035901)),
    ),
    (5.0, 1080): ((0.004212, 0.000984), (0.014809, 0.005852), (0.029642, 0.0146), (0.047464, 0.027574)),
    (3.0, 2160): ((0.00226, 0.000479), (0.01183, 0.004302), (0.025026, 0.011778), (0.04295, 0.023918)),
}
"""Distance from the display in its heights, and its lines -> sensitivities as `sensitivity` gives them, from the finest
level on: libvmaf's blend of Watson's and Barten's, its `adm_csf_mode` 2."""

_BORDER_RANGE: Final = 10
_SAME_DIRECTION: Final = math.cos(math.pi / 180) ** 2
_NOISE: Final = 1 / 32
"""What is added to each cube of detail, a pixel, so that pictures with none have a score."""
_TINY: Final = 1e-30


def sensitivity(level: int, orientation: int) -> float:
    """What a coefficient is multiplied by: one over its visibility threshold (Watson et al. 1997, equations 1 and 9).

    Args:
        level: 0, the finest, to 3.
        orientation: 0 horizontal or vertical, 1 diagonal.
    """
    per_degree = _VIEWING_DISTANCE * _DISPLAY_LINES * math.pi / 180
    octaves = math.log10(2.0 ** (level + 1) * 0.401 * _ORIENTATIONS[orientation] / per_degree)
    return _AMPLITUDES[level][orientation] / (2 * 0.495 * 10 ** (0.466 * octaves**2))


def blended_sensitivities(distance: float, lines: int) -> Sequence[tuple[float, float]]:
    """What coefficients are multiplied by in version 1.0.16: of each level, horizontal or vertical ones, diagonal ones.

    Args:
        distance: from the display, in its heights.
        lines: of the display.

    Raises:
        InvalidInput: there is no table for such a view.
    """
    if (distance, lines) not in _BLENDED:
        raise InvalidInput(
            field="adm_norm_view_dist", got=f"{distance:g} heights of {lines} lines",
            expected=" or ".join(f"{heights:g} of {known}" for heights, known in _BLENDED),
            next_step="Name a model for such a view.",
        )  # fmt: skip
    return _BLENDED[distance, lines]


class Adm(nn.Module):
    """ADM2.

    Args:
        gain_limit: most that detail may be enhanced by and still count as the reference's; 1.0 is VMAF's NEG form.
        sensitivities: of each level, as of `blended_sensitivities`; those of `sensitivity` where there are none.
        noise: what is added to each cube of detail, a pixel.
    """

    def __init__(
        self, gain_limit: float = 100.0, sensitivities: Sequence[tuple[float, float]] | None = None,
        noise: float = _NOISE,
    ) -> None:  # fmt: skip
        super().__init__()
        self.gain_limit, self.noise = gain_limit, noise
        self.register_buffer("low", torch.tensor(_LOW, dtype=torch.float32) / _TAP_UNIT, persistent=False)
        steep = -torch.tensor(_HIGH, dtype=torch.float32).cumsum(0)[:3] / _TAP_UNIT  # of differences: the taps sum to 0
        self.register_buffer("steep", steep, persistent=False)
        self.register_buffer("around", torch.ones(3, 1, 3, 3), persistent=False)
        known = sensitivities or [(sensitivity(level, 0), sensitivity(level, 1)) for level in range(LEVELS)]
        weights = [[known[level][place // 2] for place in range(3)] for level in range(LEVELS)]
        self.register_buffer("weights", torch.tensor(weights).view(LEVELS, 1, 3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Detail left, about 0 to 1 (B, 1).

        Args:
            frames: luma of the reference and of the distorted picture, in 8-bit steps (B, 2, H, W).
        """
        left, there, _ = self.sums(frames, with_added=False)
        return left / there

    def sums(self, frames: Tensor, *, with_added: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Visible detail that is left, that was there, and that was added, over all levels (B, 1) each.

        Args:
            frames: as of `forward`.
            with_added: whether the last is wanted; else it is 0.
        """
        sums = []
        frames = frames - _MIDDLE
        rest = torch.zeros_like(frames)
        for level in range(LEVELS):
            bands, rest = self._split(frames, rest, level)  # (B, 2, H', W') by direction, the coarse picture first
            frames = bands[0]
            reference, distorted = (
                torch.cat([band[:, picture : picture + 1] for band in bands[1:]], dim=1) for picture in (0, 1)
            )
            sums.append(self._level(reference, distorted, level, with_added=with_added))
        left, there, added = (torch.cat(parts, dim=1).sum(1, keepdim=True) for parts in zip(*sums, strict=True))
        return left, there, added

    def _split(self, frames: Tensor, rest: Tensor, level: int) -> tuple[list[Tensor], Tensor]:
        """The four bands of the next level: the coarse picture, two of one direction, the diagonal one.

        The direction of a coefficient of nearly nothing decides whether its hundredfold enhancement counts: it must not
        drown in the rounding of the coarse picture that it comes from: that one is carried as a sum of two parts, the
        first a multiple of `grain` whose products with the taps are exact, and steep filters see differences only.

        Args:
            frames: the coarse picture of the level before (B, 2, H, W).
            rest: what is to be added to it (B, 2, H, W).
            level: 0, the finest, to 3.
        """
        grain = float(2 ** max(level - 1, 0))
        parts = [(frames, rest)]
        for axis in (VERTICAL, HORIZONTAL):
            divided = []
            for first, second in parts:
                whole = torch.floor(first / grain) * grain
                wide = echoed(torch.cat([whole, (first - whole) + second], dim=1), 2, axis)
                low = along(wide, self.get_buffer("low"), axis, stride=2)
                high = along(_differences(wide, axis), self.get_buffer("steep"), axis, stride=2)
                divided += [(low[:, :2], low[:, 2:]), (high[:, :2] + high[:, 2:], torch.zeros_like(high[:, :2]))]
            if level == 0:
                divided = [
                    (rounded(first + second, _FIRST_GRAINS[axis]), torch.zeros_like(first)) for first, second in divided
                ]
            parts = divided
        (coarse, rest), *bands = parts
        return [coarse, *(first + second for first, second in bands)], rest

    def _level(self, original: Tensor, seen: Tensor, level: int, *, with_added: bool) -> tuple[Tensor, Tensor, Tensor]:
        """As `sums` of one level, from the bands of both pictures (B, 3, H, W)."""
        weights = self.get_buffer("weights")[level]
        first, second = original[:, :2], seen[:, :2]  # the diagonal band has no direction
        product = (first * second).sum(1, keepdim=True)
        sizes = first.square().sum(1, keepdim=True) * second.square().sum(1, keepdim=True)
        same = (product >= 0) & (product * product >= _SAME_DIRECTION * sizes)
        share = (seen / (original + _TINY)).clamp(0.0, 1.0)
        rest = share * original
        if level == 0:  # where coefficients are a few steps of libvmaf's fixed point, its rounding counts
            rest = rounded(rounded(share, _TAP_UNIT) * original, _FIRST_GRAINS[HORIZONTAL])
        grown = rest * self.gain_limit
        enhanced = torch.where(rest > 0, torch.minimum(grown, seen), torch.maximum(grown, seen))
        rest = torch.where(same & (rest != 0), enhanced, rest)
        remains, added = rest.abs() * weights, (seen - rest).abs() * weights
        inside = _inside(original)
        room = 3 * (inside.sum() * self.noise).pow(1 / 3)
        left = _norm((remains - self._mask(added)).clamp(min=0.0).pow(3), inside) + room
        there = _norm(_grown(original, _SQUARE_GRAINS[level]) * original.abs() * weights.pow(3), inside) + room
        if not with_added:
            return left, there, torch.zeros_like(left)
        return left, there, _norm((added - self._mask(remains)).clamp(min=0.0).pow(3), inside)

    def _mask(self, detail: Tensor) -> Tensor:
        """How strong the other part must be to be seen beside such detail (B, 1, H, W)."""
        near = F.conv2d(echoed(echoed(detail, 1, VERTICAL), 1, HORIZONTAL), self.get_buffer("around"), groups=3)
        return (near + detail).sum(1, keepdim=True) / 30


class Adm3(nn.Module):
    """ADM3: detail that is left, and nothing added.

    Args:
        adm: what measures both.
        loss_weight: of the detail that is left; the rest is of what was added.
        least: that the score is cut to.
    """

    def __init__(self, adm: Adm, loss_weight: float = 0.7, least: float = 0.5) -> None:
        super().__init__()
        self.adm, self.loss_weight, self.least = adm, loss_weight, least

    def forward(self, frames: Tensor) -> Tensor:
        """Score, `least` to about 1 (B, 1); input as of Adm."""
        left, there, added = self.adm.sums(frames, with_added=True)
        score = self.loss_weight * left / there + (1 - self.loss_weight) * (1 - added / there)
        return score.clamp(min=self.least)


def _differences(x: Tensor, axis: int) -> Tensor:
    """Of neighbours along an axis, the later less the earlier; one less of them."""
    return x[:, :, 1:] - x[:, :, :-1] if axis == VERTICAL else x[..., 1:] - x[..., :-1]


def _grown(values: Tensor, grain: float | None) -> Tensor:
    """Squares, as libvmaf's rounding makes them."""
    squares = values.square()
    return squares if grain is None else torch.floor(squares * grain + 1) / grain


def _norm(cubes: Tensor, inside: Tensor) -> Tensor:
    """Cube roots of the bands' sums within the border, added up (B, 1)."""
    return (cubes * inside).sum((2, 3)).pow(1 / 3).sum(1, keepdim=True)


def _inside(band: Tensor) -> Tensor:
    """1 but in a tenth, less half a pixel, at each side, where it is 0 (H, W)."""
    lines, columns = (_within(size, band) for size in band.shape[2:])
    return lines[:, None] * columns


def _within(size: int, band: Tensor) -> Tensor:
    border = (size - _BORDER_RANGE // 2) // _BORDER_RANGE
    place = torch.arange(size, device=band.device)
    return ((place >= border) & (place < size - border)).to(band.dtype)
