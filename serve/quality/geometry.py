"""Where the distorted picture lies in the reference's: scale and place of each axis, black bars, mirroring.

Lengths are pixels of the stored pictures, places are measured from their left and top edges (not pixel centres).
Shapes: T pictures, H lines, W columns, h lines and w columns of a small picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BAR_LUMA: Final = 40
"""Lines and columns that are never brighter may be bars."""
_ROUNDS: Final = 12


@dataclass(frozen=True, kw_only=True)
class Area:
    """A rectangle of a picture, pixels.

    Attributes:
        left: first column.
        top: first line.
        width: columns.
        height: lines.
    """

    left: int
    top: int
    width: int
    height: int

    def __str__(self) -> str:
        """As it reads in corrections: `640x272 at (0, 44)`."""
        return f"{self.width}x{self.height} at ({self.left}, {self.top})"


@dataclass(frozen=True, kw_only=True)
class Span:
    """The same stretch of one axis in both pictures, in real pixels from the edge.

    Attributes:
        reference: begin and end in the reference.
        distorted: begin and end in the distorted picture.
    """

    reference: tuple[float, float]
    distorted: tuple[float, float]

    @property
    def scale(self) -> float:
        """Reference pixels of a distorted pixel."""
        return (self.reference[1] - self.reference[0]) / (self.distorted[1] - self.distorted[0])

    @property
    def place(self) -> float:
        """Where the distorted picture's edge lies in the reference."""
        return self.reference[0] - self.scale * self.distorted[0]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Which parts of the two pictures are taken as the same.

    Attributes:
        across: columns.
        down: lines.
    """

    across: Span
    down: Span


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Small pictures of a clip's beginning.

    Attributes:
        pictures: luma, 8-bit steps (T, h, w) uint8.
        size: W, H of the stored picture.
        row_peaks: brightest luma of each line in all pictures (H,).
        column_peaks: of each column (W,).
    """

    pictures: NDArray[np.uint8]
    size: tuple[int, int]
    row_peaks: NDArray[np.uint8]
    column_peaks: NDArray[np.uint8]

    def sample(self, across: tuple[float, float], down: tuple[float, float], shape: tuple[int, int]) -> Floats:
        """A part of each picture on a grid of the given lines and columns (T, lines, columns), luma steps."""
        height, width = self.pictures.shape[1:]
        rows = _weights(down, shape[0], height / self.size[1], height)
        columns = _weights(across, shape[1], width / self.size[0], width)
        narrow = self.pictures.reshape(-1, width).astype(np.float32) @ np.ascontiguousarray(columns.T)
        by_line = narrow.reshape(-1, height, shape[1]).transpose(1, 0, 2).reshape(height, -1)
        low = (rows @ by_line).reshape(shape[0], -1, shape[1]).transpose(1, 0, 2)
        return np.ascontiguousarray(low, np.float32)

    def halved(self) -> "Stack":
        """At half the resolution, half a small pixel inexact."""
        height, width = (side // 2 * 2 for side in self.pictures.shape[1:])
        even = self.pictures[:, :height, :width].astype(np.uint16)
        mean = even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]
        return Stack(
            pictures=((mean + 2) >> 2).astype(np.uint8), size=self.size, row_peaks=self.row_peaks,
            column_peaks=self.column_peaks,
        )  # fmt: skip

    def take(self, indices: NDArray[np.intp]) -> "Stack":
        """The pictures of `indices`."""
        return Stack(
            pictures=self.pictures[indices], size=self.size, row_peaks=self.row_peaks, column_peaks=self.column_peaks
        )

    def turned(self, how: str) -> "Stack":
        """As it would be had it been turned or mirrored; bars are forgotten."""
        pictures = np.ascontiguousarray(TURNS[how](self.pictures))
        width, height = self.size if how in {"mirrored", "upside down", "rotated by 180 degrees"} else self.size[::-1]
        bright = np.full(max(self.size), 255, np.uint8)
        return Stack(pictures=pictures, size=(width, height), row_peaks=bright[:height], column_peaks=bright[:width])

    def active(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Columns and lines without dark bars: all of an axis where too little would be left."""
        return _active(self.column_peaks), _active(self.row_peaks)


TURNS: Final = {
    "mirrored": lambda pictures: pictures[:, :, ::-1],
    "upside down": lambda pictures: pictures[:, ::-1],
    "rotated by 180 degrees": lambda pictures: pictures[:, ::-1, ::-1],
    "rotated by 90 degrees clockwise": lambda pictures: np.rot90(pictures, 1, (1, 2)),
    "rotated by 90 degrees counterclockwise": lambda pictures: np.rot90(pictures, -1, (1, 2)),
}
"""What was done to the distorted picture -> what undoes it."""


def _weights(span: tuple[float, float], cells: int, scale: float, pixels: int) -> Floats:
    """Tent weights of small pixels for each cell of a grid over a span (cells, pixels)."""
    begin, end = span[0] * scale, span[1] * scale
    cell = (end - begin) / cells
    centres = begin + cell * (np.arange(cells) + 0.5)
    centres = np.clip(centres, 0.5, pixels - 0.5)
    weights = np.maximum(1 - np.abs(centres[:, None] - (np.arange(pixels) + 0.5)) / max(cell, 1.0), 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _active(peaks: NDArray[np.uint8]) -> tuple[float, float]:
    bright = np.flatnonzero(peaks > BAR_LUMA)
    if len(bright) == 0 or bright[-1] + 1 - bright[0] < 0.3 * len(peaks):
        return 0.0, float(len(peaks))
    return float(bright[0]), float(bright[-1] + 1)


def candidates(reference: Stack, distorted: Stack, pixel_aspect: float) -> Iterator[tuple[str, Fit]]:
    """Ways in which the pictures may lie over each other, the plainest first.

    Args:
        reference: small pictures.
        distorted: small pictures.
        pixel_aspect: shape (width over height) of a reference pixel over that of a distorted pixel.

    Yields:
        What it is (`whole`, `bars`, `crop`, `cut`) and the fit.
    """
    whole = [((0.0, float(stack.size[0])), (0.0, float(stack.size[1]))) for stack in (reference, distorted)]
    bare = [reference.active(), distorted.active()]
    bases = [(whole[0], whole[1]), (whole[0], bare[1]), (bare[0], whole[1]), (bare[0], bare[1])]
    kept = [base for place, base in enumerate(bases) if base not in bases[:place]]
    yield "whole", _fit(whole[0], whole[1])
    fills = [reference.size[axis] / distorted.size[axis] for axis in (0, 1)]
    if bare[1] != whole[1]:  # bars drawn over the picture, not around it
        covered = [(begin * fill, end * fill) for (begin, end), fill in zip(bare[1], fills, strict=True)]
        yield "whole", _fit((covered[0], covered[1]), bare[1])
    if bare[0] != whole[0]:
        covered = [(begin / fill, end / fill) for (begin, end), fill in zip(bare[0], fills, strict=True)]
        yield "whole", _fit(bare[0], (covered[0], covered[1]))
    for one, other in kept[1:]:
        yield "bars", _fit(one, other)
    for one, other in kept:
        lengths = [[span[1] - span[0] for span in base] for base in (one, other)]
        scale = lengths[0][0] / lengths[1][0]
        for part in _slid(one[1], other[1], scale * pixel_aspect):
            yield "crop", Fit(across=Span(reference=one[0], distorted=other[0]), down=part)
        scale = lengths[0][1] / lengths[1][1]
        for part in _slid(one[0], other[0], scale / pixel_aspect):
            yield "crop", Fit(across=part, down=Span(reference=one[1], distorted=other[1]))
    (one, other) = kept[0]
    if reference.size[0] != distorted.size[0] and reference.size[1] != distorted.size[1]:
        for across in _slid(one[0], other[0], 1.0, 8):
            for down in _slid(one[1], other[1], 1.0, 8):
                yield "cut", Fit(across=across, down=down)


def _fit(
    reference: tuple[tuple[float, float], tuple[float, float]],
    distorted: tuple[tuple[float, float], tuple[float, float]],
) -> Fit:
    return Fit(
        across=Span(reference=reference[0], distorted=distorted[0]),
        down=Span(reference=reference[1], distorted=distorted[1]),
    )


def _slid(
    reference: tuple[float, float], distorted: tuple[float, float], scale: float, most: int = 40
) -> Iterator[Span]:
    """Places of the shorter stretch along the longer one at a given scale; none where they're as long."""
    length = reference[1] - reference[0]
    other = scale * (distorted[1] - distorted[0])
    if min(length, other) < 0.3 * max(length, other) or abs(length - other) < 0.004 * length:
        return
    room = abs(length - other)
    count = int(min(most, max(3, round(room / (0.02 * min(length, other))))))
    for at in np.linspace(0, room, count | 1):
        if other < length:
            yield Span(reference=(reference[0] + at, reference[0] + at + other), distorted=distorted)
        else:
            begin = distorted[0] + at / scale
            yield Span(reference=reference, distorted=(begin, begin + length / scale))


def refine(reference: Stack, distorted: Stack, fit: Fit, shape: tuple[int, int]) -> Fit:
    """Move the edges in the distorted picture to where the pictures differ least (Gauss-Newton, Lucas-Kanade 1981).

    Args:
        reference: T pictures.
        distorted: the T pictures that they are paired with.
        fit: where to begin, wrong by a few cells at most.
        shape: lines and columns of the grid that they are compared on.

    Returns:
        The fit with other distorted edges; the one given where it does not settle within a tenth of the picture.
    """
    still = reference.sample(fit.across.reference, fit.down.reference, shape)
    edges = np.array([*fit.across.distorted, *fit.down.distorted])
    start = edges.copy()
    lengths = np.array([edges[1] - edges[0]] * 2 + [edges[3] - edges[2]] * 2)
    right = ((np.arange(shape[1]) + 0.5) / shape[1])[None, None, :]
    low = ((np.arange(shape[0]) + 0.5) / shape[0])[None, :, None]
    for _ in range(_ROUNDS):
        moved = distorted.sample((edges[0], edges[1]), (edges[2], edges[3]), shape)
        centred = moved - moved.mean()
        gain = float((centred * (still - still.mean())).sum() / max((centred**2).sum(), 1e-6))
        if gain <= 0.2:
            return fit
        error = (still - still.mean()) - gain * centred
        slope_x = 0.5 * (gain * np.gradient(moved, axis=2) + np.gradient(still, axis=2)) * shape[1]
        slope_y = 0.5 * (gain * np.gradient(moved, axis=1) + np.gradient(still, axis=1)) * shape[0]
        inner = np.s_[:, 1:-1, 1:-1]
        terms = [slope_x * (1 - right), slope_x * right, slope_y * (1 - low), slope_y * low]
        design = np.stack([np.broadcast_to(term, error.shape)[inner].ravel() for term in terms], axis=1)
        wanted = error[inner].ravel()
        normal = design.T @ design
        step = np.linalg.solve(normal + 1e-6 * np.trace(normal) * np.eye(4), design.T @ wanted)
        edges = edges + np.clip(step, -0.03, 0.03) * lengths
        if np.any(np.abs(edges - start) > 0.1 * lengths):
            return fit
        if np.max(np.abs(step)) < 1e-5:
            break
    return Fit(
        across=Span(reference=fit.across.reference, distorted=(float(edges[0]), float(edges[1]))),
        down=Span(reference=fit.down.reference, distorted=(float(edges[2]), float(edges[3]))),
    )


def residual(reference: Stack, distorted: Stack, fit: Fit, shape: tuple[int, int]) -> float:
    """Share of the pictures' variance that the best gain leaves unexplained, 0 (the same) to 1, of paired pictures."""
    one = reference.sample(fit.across.reference, fit.down.reference, shape)
    other = distorted.sample(fit.across.distorted, fit.down.distorted, shape)
    one = one - one.mean(axis=(1, 2), keepdims=True)
    other = other - other.mean(axis=(1, 2), keepdims=True)
    both = float((one * other).sum())
    size = float((one**2).sum()) * float((other**2).sum())
    return 1.0 - both * abs(both) / size if size > 0 else 1.0


def grid(fit: Fit, columns: int) -> tuple[int, int]:
    """Lines and columns of a grid of about square cells over a fit, the longer side `columns`."""
    width = fit.across.reference[1] - fit.across.reference[0]
    height = fit.down.reference[1] - fit.down.reference[0]
    longer = max(width, height)
    return max(8, round(columns * height / longer)), max(8, round(columns * width / longer))
