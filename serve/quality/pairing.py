"""Aligned frames, pair by pair: the reference's picture, its neighbours in time, the distorted one laid over it."""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from serve.quality.alignment import Alignment, Misaligned
from serve.quality.geometry import Area
from serve.quality.media import Limits, Picture, chroma, decode_pictures
from serve.quality.offsets import slower_is_reference
from serve.quality.placement import eight_bit_luma, scaled_luma

Floats = NDArray[np.float32]

_NEAR: Final = 0.6
"""Of the faster clip's frame period: a frame with none of the other clip within it has no partner."""

_CHROMA_SPAN: Final = 224 / 219
"""Steps that chroma has in limited range for each of luma's; in full range they have as many."""
_NEUTRAL: Final = 128.0
_BETWEEN: Final = (-1 / 16, 9 / 16, 9 / 16, -1 / 16)
"""Cubic interpolation half-way between samples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One pair of aligned pictures, in 8-bit luma steps (0 to 255; quarter steps where a clip has ten bits).

    Attributes:
        index: in the sequence of all pairs, 0 for the first; rises by `every`.
        time_s: in the reference clip, since its first frame.
        reference: the reference's luma (H, W).
        before: the reference's luma in the pair right before (H, W); the same array as `reference` in the first.
        after: in the pair right after (H, W); the same array as `before` in the last.
        distorted: distorted luma, scaled, converted and cut to the same area (H, W).
        reference_chroma: the reference's Cb and Cr at half the size both ways, 128 where there is no colour; None where
            it was not asked for (2, (H + 1) // 2, (W + 1) // 2).
        distorted_chroma: the distorted picture's, brought to the same place; None likewise.
    """

    index: int
    time_s: float
    reference: Floats
    before: Floats
    after: Floats
    distorted: Floats
    reference_chroma: Floats | None = None
    distorted_chroma: Floats | None = None


def pairs(
    reference: Path, distorted: Path, alignment: Alignment, limits: Limits, *, every: int = 1, with_chroma: bool = False
) -> Generator[Pair, None, None]:
    """Pairs in order, as many as the clips overlap for.

    They are made at the frames of the clip with the lower rate (the distorted one's where rates are the same), each
    with the frame of the other that is nearest in time, the earlier one of two that are as near.

    Args:
        reference: the reference clip.
        distorted: the distorted clip.
        alignment: what `align` found of the two.
        limits: of reading either.
        every: give each n-th pair; `before` and `after` stay of the pairs right beside it.
        with_chroma: give chroma too.

    Raises:
        NotFound: a file is gone.
        InvalidInput: as of `media.decode`, after the pairs up to there.
        Misaligned: the clips don't overlap.
    """
    facts = (alignment.reference, alignment.distorted)
    by_reference = slower_is_reference(facts[0].frames_per_s, facts[1].frames_per_s)
    period_s = float(1 / max(facts[0].frames_per_s, facts[1].frames_per_s))
    count = 0
    before: tuple[int, Floats] | None = None
    held: Pair | None = None
    with (
        contextlib.closing(decode_pictures(reference, facts[0], limits)) as ones,
        contextlib.closing(decode_pictures(distorted, facts[1], limits)) as others,
    ):
        if by_reference:
            matched = _nearest(ones, others, alignment.late_s, period_s)
        else:
            matched = ((one, other) for other, one in _nearest(others, ones, -alignment.late_s, period_s))
        for one, other in matched:
            if count % every in {0, 1 % every, every - 1}:
                if before is not None and before[0] == one.index:
                    shown = before[1]
                else:
                    shown = _cut(eight_bit_luma(one.frame), alignment.reference_area)
                if held is not None:
                    yield replace(held, after=shown)
                    held = None
                if count % every == 0:
                    previous = shown if before is None else before[1]
                    held = Pair(
                        index=count, time_s=one.time_s, reference=shown, before=previous, after=previous,
                        **_brought(one, other, alignment, with_chroma=with_chroma),
                    )  # fmt: skip
                before = (one.index, shown)
            count += 1
    if held is not None:
        yield held
    if count == 0:
        raise Misaligned(
            field=distorted.name, got=f"no frame within the reference's time (it starts {alignment.late_s:.3f} s late)",
            expected="clips that overlap", next_step="Cut both clips to the same part.",
        )  # fmt: skip


def _nearest(
    driver: Iterator[Picture], other: Iterator[Picture], late_s: float, period_s: float
) -> Iterator[tuple[Picture, Picture]]:
    """Each picture of `driver` with the nearest of `other`, whose time t is the driver's t + late_s."""
    held = next(other, None)
    following = next(other, None)
    for picture in driver:
        if held is None:
            return
        at_s = picture.time_s - late_s
        while following is not None and abs(following.time_s - at_s) < abs(at_s - held.time_s) - 1e-6:
            held, following = following, next(other, None)
        if abs(held.time_s - at_s) <= _NEAR * period_s:
            yield picture, held
        elif following is None and at_s > held.time_s:
            return


def _brought(one: Picture, other: Picture, alignment: Alignment, *, with_chroma: bool) -> dict[str, Floats]:
    """A pair's distorted luma, and chroma of both, on the reference's size, range and area."""
    frame = other.frame
    if (frame.width, frame.height) != alignment.scaled:
        width, height = alignment.scaled
        frame = frame.reformat(width=width, height=height, interpolation="BICUBIC", threads=1)
    areas = (alignment.reference_area, alignment.distorted_area)
    pixels = scaled_luma(frame, alignment.scaled)
    if (alignment.gain, alignment.lift) != (1.0, 0.0):
        pixels = _whole(np.float32(alignment.gain) * pixels + np.float32(alignment.lift), alignment)
    brought = {"distorted": _cut(pixels, areas[1])}
    if with_chroma:
        brought["reference_chroma"] = _cut_chroma(_eight_bit_chroma(one.frame), areas[0], areas[0])
        colours = _cut_chroma(_eight_bit_chroma(frame), areas[1], areas[0])
        if alignment.gain != 1.0:
            gain = alignment.gain * (1 / _CHROMA_SPAN if alignment.gain > 1 else _CHROMA_SPAN)
            colours = np.float32(gain) * (colours - np.float32(_NEUTRAL)) + np.float32(_NEUTRAL)
        brought["distorted_chroma"] = _whole(colours, alignment)
    return brought


def _whole(samples: Floats, alignment: Alignment) -> Floats:
    """To the steps of the deeper clip, which is what an encoder would have been given."""
    steps = np.float32(4 if max(alignment.reference.bit_depth, alignment.distorted.bit_depth) > 8 else 1)
    whole: Floats = np.rint(samples * steps).clip(0, 256 * steps - 1) / steps
    return whole


def _eight_bit_chroma(frame: VideoFrame) -> Floats:
    pixels = chroma(frame)
    values = pixels.astype(np.float32)
    return values if pixels.dtype == np.uint8 else values / np.float32(4)


def _cut_chroma(planes: Floats, area: Area, ideal: Area) -> Floats:
    """The part of chroma planes that belongs to an area of luma.

    Where luma moved by an odd number of pixels (`area` begins at an odd one and `ideal`, the reference's, at an even
    one, or the other way round), chroma lies half-way between its samples.
    """
    for axis, begins, length in ((1, (area.top, ideal.top), area.height), (2, (area.left, ideal.left), area.width)):
        begin, moved = begins[0] // 2, begins[0] % 2 - begins[1] % 2
        last = planes.shape[axis] - 1
        at = begin + np.arange((length + 1) // 2)
        if moved:
            first = at - 1 if moved > 0 else at - 2
            around = np.stack([planes.take((first + step).clip(0, last), axis) for step in range(len(_BETWEEN))])
            planes = np.tensordot(np.array(_BETWEEN, np.float32), around, 1)
        else:
            planes = planes.take(at.clip(0, last), axis)
    return np.ascontiguousarray(planes)


def _cut(pixels: Floats, area: Area) -> Floats:
    return np.ascontiguousarray(pixels[area.top : area.top + area.height, area.left : area.left + area.width])
