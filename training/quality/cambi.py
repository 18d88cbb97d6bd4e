"""CAMBI: how visible banding is in a picture, in the form of libvmaf.

Tandon et al. 2021, "CAMBI: Contrast-aware Multiscale Banding Index". A step between two flat regions, one to four luma
steps of ten bits high, is a band. Around each flat pixel, at five scales, the pixels of its own level and of a level a
step away are counted; where both are many, there is a band's edge, the more visible the higher the step.

All counts are exact. A window's histogram is never made: of each level there is an indicator picture, whose sums over
the window are those of four corners of its summed-area table, and a pixel looks up the levels near its own.

Shapes: B pictures of H lines and W columns; L levels at once.
Units: levels are steps of ten-bit luma, 0 to 1023.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.quality.filters import HORIZONTAL, VERTICAL

WEIGHTS: Final = (16, 8, 4, 2, 1)
"""Of the scales, the finest first."""
CONTRASTS: Final = (1, 2, 3, 4)
"""Heights of a step, levels, and what each weighs."""

_FOOT: Final = 64
_HEAD: Final = 940
"""Black and white of limited range."""
_LEAST_CONTRAST: Final = 0.019
"""Part of its luminance that a step must exceed to be seen."""
_WHITE: Final = 300.0
_BLACK: Final = 0.01
_GAMMA: Final = 2.4
"""Of the display, cd/m2 (ITU-R BT.1886)."""

_WINDOW: Final = 65
"""Side of the window on a display of 3840x2160, pixels."""
_LARGEST: Final = 0.6
"""Part of the pixels whose values are averaged, the largest."""
_FLAT_WINDOW: Final = 7
_LEVELS_AT_ONCE: Final = 16
_NOWHERE: Final = -1000.0
_FAST_PIXELS: Final = {1080: 1920 * 1080, 1440: 2560 * 1440, 2160: 3840 * 2160}
"""From how many on all scales are half as fine, by the option's value."""


def luminance(level: int) -> float:
    """Of a luma level on the display, cd/m2 (ITU-R BT.1886, annex 1)."""
    signal = (min(max(level, _FOOT), _HEAD) - _FOOT) / (_HEAD - _FOOT)
    white, black = _WHITE ** (1 / _GAMMA), _BLACK ** (1 / _GAMMA)
    return float(((white - black) * max(signal + black / (white - black), 0.0)) ** _GAMMA)


def brightest_visible(contrast: int) -> int:
    """The brightest level from which a step of so many levels up is seen; 0: from none, 1023: from all."""

    def seen(level: int) -> bool:
        base = luminance(level)
        return luminance(level + contrast) - base > _LEAST_CONTRAST * base

    if not seen(_FOOT):
        return 0
    last = _HEAD - contrast - 1
    if seen(last) and seen(last + 1):
        return 1023
    return next(level for level in range(last, _FOOT - 1, -1) if seen(level))


def darkest_visible(least: float) -> int:
    """The darkest level of at least so much luminance, cd/m2; 0 where that is black's."""
    level = next(level for level in range(_FOOT, _HEAD + 1) if luminance(level) >= least)
    return 0 if level == _FOOT else level


def window_side(lines: int, columns: int, *, fast: bool) -> int:
    """Of the window in which levels are counted, pixels, odd."""
    side = (_WINDOW * (lines + columns) // 375) >> 4
    return ((side + 1) >> 1 if fast else side) | 1


class Cambi(nn.Module):
    """CAMBI of pictures, 0 (no banding) and up; about 5 is where it begins to annoy.

    Args:
        bit_depth: of the clip, 8 or 10; of 8, dithering is smoothed away first.
        least_luminance: below which banding isn't seen, cd/m2.
        most: that a value is cut to.
        fast_from: 1080, 1440 or 2160: pictures of so many lines, 16:9, are looked at from half their size on; 0: none.
    """

    def __init__(
        self, bit_depth: int = 8, least_luminance: float = 0.06, most: float = 17.0, fast_from: int = 1080
    ) -> None:
        super().__init__()
        self.bit_depth, self.most = bit_depth, most
        self.fast_pixels = _FAST_PIXELS.get(fast_from, math.inf)
        self.brightest = [brightest_visible(contrast) for contrast in CONTRASTS]
        self.darkest = darkest_visible(least_luminance)
        self.lowest = max(0, self.darkest - 2 * CONTRASTS[-1] + 1)

    def forward(self, frames: Tensor) -> Tensor:
        """CAMBI of each (B, 1).

        Args:
            frames: luma in steps of 8-bit video (B, H, W).
        """
        lines, columns = frames.shape[1:]
        fast = lines * columns >= self.fast_pixels
        side = window_side(lines, columns, fast=fast)
        levels = torch.round(frames * 4)
        if self.bit_depth < 10:
            levels = _smoothed(levels)
        flat = _flat(levels)
        score = torch.zeros(frames.shape[0], dtype=torch.float64, device=frames.device)
        for scale, weight in enumerate(WEIGHTS):
            if scale or fast:
                levels, flat = levels[:, ::2, ::2], flat[:, ::2, ::2]
            levels = _modes(levels)
            values = self._values(levels, flat, side // 2).flatten(1)
            count = max(1, int(_LARGEST * values.shape[1]))
            score = score + weight * values.topk(count, dim=1, sorted=False).values.double().mean(1)
        return (score / side**2).clamp(max=self.most).to(frames.dtype)[:, None]

    def _values(self, levels: Tensor, flat: Tensor, reach: int) -> Tensor:
        """Visibility of a band's edge at each pixel; 0 where it isn't flat (B, H, W)."""
        greatest = CONTRASTS[-1]
        near = _near(torch.where(flat, levels, _NOWHERE), reach, self.lowest, max(self.brightest))
        own = near[greatest].float()
        value = torch.zeros_like(levels)
        for contrast in CONTRASTS:
            other = torch.maximum(near[greatest + contrast], near[greatest - contrast]).float()
            # the darkest visible level is compared with one four levels too high, as in libvmaf
            seen = flat & (levels <= self.brightest[contrast - 1]) & (levels + greatest + contrast > self.darkest)
            edge = contrast * own * other * (1 / (own + other).clamp(min=1))
            value = torch.where(seen, torch.maximum(value, edge), value)
        return value


def _near(levels: Tensor, reach: int, first: int, last: int) -> Tensor:
    """How many pixels of the window have the pixel's level less 4, less 3, to more 4 (9, B, H, W) int16.

    Args:
        levels: of pixels, _NOWHERE where one neither counts nor is asked about (B, H, W).
        reach: of the window either way, pixels.
        first: the least level that is asked about.
        last: the greatest.
    """
    greatest = CONTRASTS[-1]
    levels = levels.to(torch.int16)
    found = torch.zeros(2 * greatest + 1, *levels.shape, dtype=torch.int16, device=levels.device)
    counts = _counts(_at(levels, first - greatest, 2 * greatest), reach)
    for begin in range(first, last + 1, _LEVELS_AT_ONCE):  # levels that are asked about; four more are known either way
        more = _counts(_at(levels, begin + greatest, _LEVELS_AT_ONCE), reach)
        counts = torch.cat([counts[-2 * greatest :], more])
        here = (levels >= begin) & (levels < begin + _LEVELS_AT_ONCE)
        place = (levels - begin).clamp(0, _LEVELS_AT_ONCE - 1).long()[None]
        around = [counts[step : step + _LEVELS_AT_ONCE].gather(0, place).squeeze(0) for step in range(2 * greatest + 1)]
        found = torch.where(here, torch.stack(around), found)
    return found


def _at(levels: Tensor, begin: int, count: int) -> Tensor:
    """1 where a pixel has a level, of `count` levels from `begin` on (count, B, H, W) int16."""
    known = torch.arange(begin, begin + count, dtype=torch.int16, device=levels.device)
    return (levels == known.view(-1, 1, 1, 1)).to(torch.int16)


def _smoothed(levels: Tensor) -> Tensor:
    """Mean of a pixel, the next one, and those below, rounded down; at the last column and line of those there are."""
    wide = torch.cat([levels, levels[..., -1:]], HORIZONTAL)
    wide = torch.cat([wide, wide[:, -1:]], VERTICAL)
    return torch.floor((wide[:, :-1, :-1] + wide[:, :-1, 1:] + wide[:, 1:, :-1] + wide[:, 1:, 1:]) / 4)


def _flat(levels: Tensor) -> Tensor:
    """Whether most pixels around equal the next ones to the right and below."""
    lines, columns = levels.shape[1:]
    across = F.pad(levels[..., 1:] == levels[..., :-1], (0, 1), value=True)
    down = F.pad(levels[:, 1:] == levels[:, :-1], (0, 0, 0, 1), value=True)
    octaves = math.ceil(math.log2(max(1, (lines >> 6) * (columns >> 6))))
    least = (_FLAT_WINDOW**2 + 3 * (octaves - 11) - 1) >> 1
    return _counts((across & down).to(torch.int16), _FLAT_WINDOW // 2) > least


def _counts(there: Tensor, reach: int) -> Tensor:
    """Sums over the window around each pixel, within the picture, the same shape."""
    for axis in (VERTICAL, HORIZONTAL):
        sides = (0, 0, reach, reach) if axis == VERTICAL else (reach, reach, 0, 0)
        there = _run_sums(F.pad(there, sides), 2 * reach + 1, axis)
    return there


def _run_sums(x: Tensor, length: int, axis: int) -> Tensor:
    """Of `length` consecutive samples: runs of 1, 2, 4 and so on, put together."""
    count = x.shape[axis] - length + 1
    runs, size, begin, total = x, 1, 0, None
    while True:
        if length & size:
            part = runs.narrow(axis, begin, count)
            total = part if total is None else total + part
            begin += size
        if 2 * size > length:
            assert total is not None
            return total
        rest = runs.shape[axis] - size
        runs, size = runs.narrow(axis, 0, rest) + runs.narrow(axis, size, rest), 2 * size


def _modes(levels: Tensor) -> Tensor:
    """Most frequent of three in a row, then of three in a column, the least where all differ; edges stay."""
    rows = torch.cat(
        [levels[..., :1], _mode(levels[..., :-2], levels[..., 1:-1], levels[..., 2:]), levels[..., -1:]], HORIZONTAL
    )
    inner = _mode(rows[:, :-2], rows[:, 1:-1], rows[:, 2:])
    return torch.cat([levels[:, :1], inner, levels[:, -1:]], VERTICAL)


def _mode(one: Tensor, two: Tensor, three: Tensor) -> Tensor:
    least = torch.minimum(torch.minimum(one, two), three)
    return torch.where((one == two) | (one == three), one, torch.where(two == three, two, least))
