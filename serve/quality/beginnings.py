"""The first seconds of a clip as small pictures, which is all that an alignment looks at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from serve.quality.geometry import Stack
from serve.quality.media import Limits, VideoFacts, decode_pictures, luma

STUDY_SIDE: Final = 256
"""Longer side of the small pictures, pixels."""
MOST_FRAMES: Final = 1000
"""That are kept of a clip."""
_PEAKS_EVERY: Final = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Beginning:
    """A clip's first seconds.

    Attributes:
        stack: small pictures, and the brightest luma of each line and column (T pictures).
        times_s: since the first frame (T,).
        ended: whether the clip is no longer than that.
    """

    stack: Stack
    times_s: NDArray[np.float64]
    ended: bool


def read_beginning(path: Path, facts: VideoFacts, limits: Limits, duration_s: float) -> Beginning:
    """Decode a clip's first seconds.

    Args:
        path: the clip.
        facts: what `probe` said of it.
        limits: of reading.
        duration_s: how much, at most; MOST_FRAMES in any case.

    Raises:
        NotFound: the file is gone.
        InvalidInput: as of `media.decode`.
    """
    ratio = min(1.0, STUDY_SIDE / max(facts.width, facts.height))
    width, height = max(16, round(facts.width * ratio)), max(16, round(facts.height * ratio))
    pictures, times_s = [], []
    rows = np.zeros(facts.height, np.uint8)
    columns = np.zeros(facts.width, np.uint8)
    ended = True
    scaler = VideoReformatter()  # keeps its filters from picture to picture
    reader = decode_pictures(path, facts, limits)
    for picture in reader:
        if picture.time_s >= duration_s or picture.index >= MOST_FRAMES:
            ended = False
            break
        if picture.index % _PEAKS_EVERY == 0:
            pixels = eight_bits(luma(picture.frame))
            np.maximum(rows, pixels.max(axis=1), out=rows)
            np.maximum(columns, pixels.max(axis=0), out=columns)
        small = picture.frame
        if ratio < 1:
            small = scaler.reformat(small, width=width, height=height, interpolation="AREA", threads=1)
        pictures.append(eight_bits(luma(small)))
        times_s.append(picture.time_s)
    reader.close()
    stack = Stack(
        pictures=np.stack(pictures), size=(facts.width, facts.height), row_peaks=rows, column_peaks=columns
    )  # fmt: skip
    return Beginning(stack=stack, times_s=np.array(times_s), ended=ended)


def eight_bits(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Luma rounded to 8-bit steps, same shape."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    return np.asarray(np.minimum((pixels.astype(np.uint16) + 2) >> 2, 255), np.uint8)
