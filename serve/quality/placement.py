"""From a fit of small pictures to whole pixels: the size that distorted pictures get, and the part that is compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from serve.quality.geometry import Area, Fit, Span, Stack, grid
from serve.quality.media import Limits, VideoFacts, decode_pictures, luma

Indices = NDArray[np.intp]

_REACH: Final = 4
"""Pixels either way that the last look at full size moves a picture by."""
_BAR_ERROR: Final = 8.0
"""Luma steps (root mean square) between a bar and what the other clip shows there."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the scaled distorted picture lies in the reference's.

    Attributes:
        fit: of the small pictures, made to agree with the rest.
        scaled: width and height that the distorted picture is scaled to.
        left: the reference's column at its left edge; below 0 where it begins outside.
        top: the reference's line at its top edge.
        scales: reference pixels of a distorted pixel, across and down.
        plain: whether the whole of one lies over the whole of the other.
    """

    fit: Fit
    scaled: tuple[int, int]
    left: int
    top: int
    scales: tuple[float, float]
    plain: bool

    def words(self, facts: tuple[VideoFacts, VideoFacts]) -> Sequence[str]:
        """What is corrected."""
        words = []
        reference, distorted = ((fact.width, fact.height) for fact in facts)
        if self.scaled != distorted:
            words.append(
                f"distorted is {distorted[0]}x{distorted[1]}: scaled to {self.scaled[0]}x{self.scaled[1]} (bicubic)"
            )
        if not self.plain:
            sides = {
                "left": (self.left, "columns"), "top": (self.top, "lines"),
                "right": (reference[0] - self.left - self.scaled[0], "columns"),
                "bottom": (reference[1] - self.top - self.scaled[1], "lines"),
            }  # fmt: skip
            cut = [f"{amount} {unit} at the {side}" for side, (amount, unit) in sides.items() if amount > 0]
            more = [f"{-amount} {unit} at the {side}" for side, (amount, unit) in sides.items() if amount < 0]
            if cut:
                words.append(f"distorted lacks {' and '.join(cut)}: the rest is compared")
            if more:
                words.append(f"distorted has {' and '.join(more)} that the reference lacks (bars or picture): left out")
        return words


def placements(
    fit: Fit, start: Fit, facts: tuple[VideoFacts, VideoFacts], stacks: tuple[Stack, Stack]
) -> Sequence[Placement]:
    """What a refined fit may mean, the plainest first: whole over whole, scales that encoders use, its own scales.

    Args:
        fit: refined.
        start: where the refinement began, whose scales are likely too.
        facts: of the reference and the distorted clip.
        stacks: their small pictures.
    """
    sizes = [(fact.width, fact.height) for fact in facts]
    aspect = float(facts[0].sample_aspect / facts[1].sample_aspect)
    fills = [sizes[0][axis] / sizes[1][axis] for axis in (0, 1)]
    spans = (fit.across, fit.down)
    small = [sizes[0][axis] / stacks[0].pictures.shape[2 - axis] for axis in (0, 1)]
    reach = [max(1.5, 0.25 * step) for step in small]
    plain = Placement(
        fit=Fit(across=_whole(0, sizes), down=_whole(1, sizes)), scaled=sizes[0], left=0, top=0,
        scales=(fills[0], fills[1]), plain=True,
    )  # fmt: skip
    near = all(
        abs(span.scale - fills[axis]) * (span.distorted[1] - span.distorted[0]) < reach[axis]
        and abs(_place(span, fills[axis])) < reach[axis]
        for axis, span in enumerate(spans)
    )
    if near:
        return (plain,)
    likely = [
        (1.0, fills[0], fills[1] / aspect, start.across.scale, start.down.scale / aspect),
        (1.0, fills[1], fills[0] * aspect, start.down.scale, start.across.scale * aspect),
    ]
    both = [max(fills), min(fills)]
    scales = []
    for axis, span in enumerate(spans):
        length = span.distorted[1] - span.distorted[0]
        options = [scale for scale in (*likely[axis], *both) if abs(scale - span.scale) * length < reach[axis]]
        scales.append(options[0] if options else span.scale)
    if abs(scales[0] / scales[1] * aspect - 1) < 0.004:  # one scale for both, the one of the longer stretch
        longer = 0 if fit.across.scale * sizes[1][0] >= fit.down.scale * sizes[1][1] else 1
        scales = [scales[0], scales[0] * aspect] if longer == 0 else [scales[1] / aspect, scales[1]]
    return plain, _scaled_by(scales, fit, sizes), _scaled_by([fit.across.scale, fit.down.scale], fit, sizes)


def _scaled_by(scales: Sequence[float], fit: Fit, sizes: Sequence[tuple[int, int]]) -> Placement:
    scaled = (max(2, round(sizes[1][0] * scales[0])), max(2, round(sizes[1][1] * scales[1])))
    exact = (scaled[0] / sizes[1][0], scaled[1] / sizes[1][1])
    left, top = round(_place(fit.across, exact[0])), round(_place(fit.down, exact[1]))
    placed = Placement(fit=fit, scaled=scaled, left=left, top=top, scales=exact, plain=False)
    return replace(placed, fit=_fit_of(placed, sizes[0]) or fit)


def within(placement: Placement, fit: Fit) -> Fit:
    """The part of the reference that `fit` is about, placed as `placement` does."""

    def placed(span: tuple[float, float], begin: int, scale: float) -> Span:
        return Span(reference=span, distorted=((span[0] - begin) / scale, (span[1] - begin) / scale))

    return Fit(
        across=placed(fit.across.reference, placement.left, placement.scales[0]),
        down=placed(fit.down.reference, placement.top, placement.scales[1]),
    )


def _place(span: Span, scale: float) -> float:
    """Where the distorted picture's edge lies in the reference if its scale is another, the middle staying."""
    return sum(span.reference) / 2 - scale * sum(span.distorted) / 2


def _whole(axis: int, sizes: list[tuple[int, int]]) -> Span:
    return Span(reference=(0.0, float(sizes[0][axis])), distorted=(0.0, float(sizes[1][axis])))


def _fit_of(placement: Placement, size: tuple[int, int]) -> Fit | None:
    """The fit that is exactly the common area of a placement."""
    areas = common_areas(placement, size)
    if areas is None:
        return None
    one, other = areas
    scales = placement.scales
    return Fit(
        across=Span(
            reference=(float(one.left), float(one.left + one.width)),
            distorted=(other.left / scales[0], (other.left + other.width) / scales[0]),
        ),
        down=Span(
            reference=(float(one.top), float(one.top + one.height)),
            distorted=(other.top / scales[1], (other.top + other.height) / scales[1]),
        ),
    )


def common_areas(placement: Placement, size: tuple[int, int]) -> tuple[Area, Area] | None:
    """The part that both show, in the reference and in the scaled distorted picture, of even sides; None: no such part.

    Args:
        placement: of the distorted picture.
        size: width and height of the reference.
    """
    left, top = max(0, placement.left), max(0, placement.top)
    width = min(size[0], placement.left + placement.scaled[0]) - left
    height = min(size[1], placement.top + placement.scaled[1]) - top
    if (width, height) != size:
        width, height = width - width % 2, height - height % 2
    if width < 2 or height < 2:
        return None
    return (
        Area(left=left, top=top, width=width, height=height),
        Area(left=left - placement.left, top=top - placement.top, width=width, height=height),
    )


def sharpen(
    paths: tuple[Path, Path], facts: tuple[VideoFacts, VideoFacts], limits: Limits, placement: Placement,
    pairs: tuple[Indices, Indices], luma_map: tuple[float, float],
) -> Placement:  # fmt: skip
    """Move a placement by a few whole pixels to where full-size pictures differ least.

    Args:
        paths: of the reference and the distorted clip.
        facts: of both.
        limits: of reading.
        placement: right to about a pixel of the small pictures.
        pairs: indices of a few frames in both.
        luma_map: gain and offset of distorted luma.

    Raises:
        InvalidInput: as of `media.decode`.
    """
    ones = _frames(paths[0], facts[0], limits, pairs[0])
    others = _frames(paths[1], facts[1], limits, pairs[1])
    size = (facts[0].width, facts[0].height)
    pictures = [
        (eight_bit_luma(ones[int(one)]), luma_map[0] * scaled_luma(others[int(other)], placement.scaled) + luma_map[1])
        for one, other in zip(*pairs, strict=True)
    ]
    best, least = placement, math.inf
    for down in range(-_REACH, _REACH + 1):
        for across in range(-_REACH, _REACH + 1):
            moved = replace(placement, left=placement.left + across, top=placement.top + down)
            areas = common_areas(moved, size)
            if areas is None:
                continue
            error = sum(
                float(np.abs(_cut(one, areas[0]) - _cut(other, areas[1])).mean()) for one, other in pictures
            )  # fmt: skip
            if error < least * (1 - 1e-9):
                best, least = moved, error
    return best


def _frames(path: Path, facts: VideoFacts, limits: Limits, wanted: Indices) -> dict[int, VideoFrame]:
    last = int(wanted.max())
    kept = {}
    reader = decode_pictures(path, facts, limits)
    for picture in reader:
        if picture.index in wanted:
            kept[picture.index] = picture.frame
        if picture.index >= last:
            break
    reader.close()
    return kept


def eight_bit_luma(frame: VideoFrame) -> NDArray[np.float32]:
    """Luma in 8-bit steps, quarter steps where it has ten bits (H, W)."""
    pixels = luma(frame)
    values = pixels.astype(np.float32)
    return values if pixels.dtype == np.uint8 else values / np.float32(4)


def scaled_luma(frame: VideoFrame, size: tuple[int, int]) -> NDArray[np.float32]:
    """Luma in 8-bit steps of a frame scaled as a whole by swscale's bicubic filter (size[1], size[0])."""
    if (frame.width, frame.height) != size:
        frame = frame.reformat(width=size[0], height=size[1], interpolation="BICUBIC", threads=1)
    return eight_bit_luma(frame)


def _cut(pixels: NDArray[np.float32], area: Area) -> NDArray[np.float32]:
    return pixels[area.top : area.top + area.height, area.left : area.left + area.width]


def verified_bars(
    stacks: tuple[Stack, Stack], placement: Placement, areas: tuple[Area, Area], luma_map: tuple[float, float]
) -> tuple[tuple[Area, Area], Sequence[str]]:
    """Leave out bars that only one clip has within the common area.

    A dark stretch is a bar only where the other clip shows something else there.

    Args:
        stacks: paired small pictures of the reference and the distorted clip.
        placement: of the distorted picture.
        areas: common areas, in the reference and in the scaled distorted picture.
        luma_map: gain and offset of distorted luma.

    Returns:
        The smaller areas, and what was left out, in words.
    """
    one, other = areas
    bounds = [[0, one.width], [0, one.height]]
    words = []
    for axis in (0, 1):
        shift = ((one.left, other.left), (one.top, other.top))[axis]
        length = bounds[axis][1]
        for which, name in ((1, "distorted"), (0, "reference")):
            scale = placement.scales[axis] if which else 1.0
            begin, end = (scale * edge - shift[which] for edge in stacks[which].active()[axis])
            for side, stretch in (("begin", (0, math.ceil(begin))), ("end", (math.floor(end), length))):
                begin_px, end_px = max(0, stretch[0]), min(length, stretch[1])
                if end_px - begin_px < 2 or not _differs(stacks, placement, areas, luma_map, axis, (begin_px, end_px)):
                    continue
                bounds[axis][0 if side == "begin" else 1] = end_px if side == "begin" else begin_px
                place_of = {(0, "begin"): "left", (0, "end"): "right", (1, "begin"): "top", (1, "end"): "bottom"}
                unit = "columns" if axis == 0 else "lines"
                words.append(f"{name} has a bar of {end_px - begin_px} {unit} at the {place_of[axis, side]}: left out")
    width, height = bounds[0][1] - bounds[0][0], bounds[1][1] - bounds[1][0]
    if not words:
        return areas, ()
    width, height = width - width % 2, height - height % 2
    return (
        Area(left=one.left + bounds[0][0], top=one.top + bounds[1][0], width=width, height=height),
        Area(left=other.left + bounds[0][0], top=other.top + bounds[1][0], width=width, height=height),
    ), words


def _differs(
    stacks: tuple[Stack, Stack], placement: Placement, areas: tuple[Area, Area], luma_map: tuple[float, float],
    axis: int, stretch: tuple[int, int],
) -> bool:  # fmt: skip
    """Whether the two clips show different things in a stretch of the common area."""
    spans: list[list[tuple[float, float]]] = [[], []]
    for at in (0, 1):
        for which, area in enumerate(areas):
            scale = placement.scales[at] if which else 1.0
            origin = area.left if at == 0 else area.top
            begin, end = stretch if at == axis else (0, area.width if at == 0 else area.height)
            spans[which].append(((origin + begin) / scale, (origin + end) / scale))
    fit = Fit(
        across=Span(reference=spans[0][0], distorted=spans[1][0]),
        down=Span(reference=spans[0][1], distorted=spans[1][1]),
    )
    shape = grid(fit, 64)
    one = stacks[0].sample(spans[0][0], spans[0][1], shape)
    other = luma_map[0] * stacks[1].sample(spans[1][0], spans[1][1], shape) + luma_map[1]
    return float(np.sqrt(np.mean((one - other) ** 2))) > _BAR_ERROR
