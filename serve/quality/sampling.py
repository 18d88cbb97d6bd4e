"""Which frames and patches of a decoded segment the frame model sees, at the rendition's own resolution.

A pair is a frame and the one before it. The pairs lie in the first half of a segment, so that a decoder may stop there.
Patches lie on the coding grid and on another place of each cell of the frame from pair to pair.
Shapes: N patches of a segment, P their side, H lines, W columns, K facts.
"""

import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput

PAIRS: Final = 4
SPAN: Final = 0.5
"""Share of the segment, from its start, that pairs lie in."""
GRID: Final = (2, 4)
"""Rows and columns of cells; each gives a patch of each pair."""
SIDE: Final = 64
"""P, pixels."""
PATCHES: Final = PAIRS * GRID[0] * GRID[1]
"""N."""
ALIGNMENT: Final = 8
"""Patches start at multiples of it, pixels: blocks of codecs then lie alike in all."""
HIGHEST_LUMA: Final = 255.75
FACTS: Final = ("log2_enlargement", "log2_display_lines", "fps", "log2_bits_per_pixel", "rate_known")
"""Names of the columns of `resolution_facts`."""

_LEAST_RATE: Final = 2.0**-14
_STEPS: Final = (0.7548776662466927, 0.5698402909980532)
"""Of the R2 sequence, whose points spread evenly (Roberts 2018, Effectiveness of Quasirandom Sequences)."""


def pair_times(duration_s: float) -> list[float]:
    """When the second frames of pairs are shown, seconds from the segment's start, PAIRS of them, in order."""
    return [SPAN * duration_s * (2 * pair + 1) / (2 * PAIRS) for pair in range(PAIRS)]


def patch_places(height: int, width: int, pair: int) -> list[tuple[int, int]]:
    """Top left corners (line, column) of a pair's patches, all inside of the frame.

    Args:
        height: lines, at least SIDE.
        width: columns, at least SIDE.
        pair: which, 0 to PAIRS - 1.

    Raises:
        InvalidInput: the frame is smaller than a patch.
    """
    if height < SIDE or width < SIDE:
        raise InvalidInput(
            field="frames", got=f"{width}x{height}", expected=f"at least {SIDE}x{SIDE}",
            next_step="Ask for the quality by bitstream alone.",
        )  # fmt: skip
    rows, columns = GRID
    places = []
    for cell in range(rows * columns):
        number = pair * rows * columns + cell + 1
        down = (cell // columns + (number * _STEPS[0]) % 1) / rows
        right = (cell % columns + (number * _STEPS[1]) % 1) / columns
        places.append(
            (int(down * (height - SIDE)) // ALIGNMENT * ALIGNMENT, int(right * (width - SIDE)) // ALIGNMENT * ALIGNMENT)
        )
    return places


def sample_stream(frames: Iterable[tuple[float, NDArray[Any]]], duration_s: float) -> NDArray[np.float32]:
    """Patches of a segment whose frames come one by one; no more frames are taken than needed.

    Args:
        frames: (seconds from the segment's start, luma (H, W) in steps of 8-bit video, 0 to HIGHEST_LUMA), in the order
            of display.
        duration_s: length of the segment.

    Returns:
        Luma of the frame and of the one before float32 (N, 2, P, P). Where a segment ends early, its last pairs stand
        for those that are missing; of a segment of one frame, the frame is its own forerunner.

    Raises:
        InvalidInput: there is no frame, or frames are too small, or they change their size.
    """
    wanted = pair_times(duration_s)
    taken: list[NDArray[np.float32]] = []
    before: NDArray[Any] | None = None
    current: NDArray[Any] | None = None
    for time_s, luma in frames:
        if current is not None and current.shape != luma.shape:
            raise InvalidInput(
                field="frames", got=f"{current.shape}, then {luma.shape}", expected="one size in a segment",
                next_step="Cut segments where the size changes.",
            )  # fmt: skip
        before, current = current, luma
        if before is not None:
            while len(taken) < PAIRS and time_s >= wanted[len(taken)] - 1e-6:
                taken.append(_patches(before, current, len(taken)))
        if len(taken) == PAIRS:
            break
    if current is None:
        raise InvalidInput(
            field="frames", got="none", expected="at least one", next_step="Look whether the file decodes."
        )
    while len(taken) < PAIRS:
        taken.append(_patches(current if before is None else before, current, len(taken)))
    return np.concatenate(taken)


def sample_clip(luma: NDArray[Any], fps: float) -> NDArray[np.float32]:
    """Patches of a segment that is decoded whole.

    Args:
        luma: in steps of 8-bit video, 0 to HIGHEST_LUMA (T, H, W).
        fps: frames a second.

    Returns:
        As `sample_stream`.
    """
    return sample_stream(((place / fps, frame) for place, frame in enumerate(luma)), len(luma) / fps)


def _patches(before: NDArray[Any], current: NDArray[Any], pair: int) -> NDArray[np.float32]:
    """Patches of one pair float32 (rows * columns, 2, P, P)."""
    height, width = current.shape
    return np.stack(
        [
            np.stack([frame[line : line + SIDE, column : column + SIDE] for frame in (current, before)])
            for line, column in patch_places(height, width, pair)
        ]
    ).astype(np.float32)


def resolution_facts(
    height: int, display_height: int, fps: float, *, bits_per_pixel: float | None = None
) -> NDArray[np.float32]:
    """What patches do not tell float32 (K,), columns as FACTS.

    How many bits a picture took, beside how much there is to see in it, tells most of how it was coded.

    Args:
        height: lines of the rendition.
        display_height: lines of the source, to which it is scaled up.
        fps: frames a second.
        bits_per_pixel: bits of a mean frame by pixels of the rendition, above 0; None: unknown.
    """
    known = bits_per_pixel is not None
    rate = (math.log2(max(bits_per_pixel, _LEAST_RATE)) + 3.5) / 2 if bits_per_pixel is not None else 0.0
    return np.array(
        [math.log2(display_height / height), math.log2(display_height / 540), fps / 30, rate, known], np.float32
    )
