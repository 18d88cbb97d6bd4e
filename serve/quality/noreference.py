"""Quality of a clip that has no reference: the VMAF its segments would have had, each with an interval."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.artifacts import Artifact
from serve.engines import Device, load_engine
from serve.quality.bitstream import BitstreamFacts, read_segments
from serve.quality.estimates import BitstreamModel, Estimate, Method, mean
from serve.quality.media import Limits, Picture, decode_pictures, probe
from serve.quality.placement import eight_bit_luma
from serve.quality.sampling import resolution_facts, sample_stream

SEGMENT_S: Final = 4.0


@dataclass(frozen=True, kw_only=True)
class NoReference:
    """Estimates of a clip.

    Attributes:
        method: what they are made of: bitstream, or both it and frames.
        coverage: share of segments of unseen content that lie in their intervals, as held-out content showed.
        clip: means over the segments; the interval's ends are means too, which is cautious.
        segments: one estimate each, in order.
        segment_s: length that segments have at least, but the last: each ends before a key frame.
    """

    method: Method
    coverage: float
    clip: Estimate
    segments: tuple[Estimate, ...]
    segment_s: float


class NoReferenceScorer:
    """Estimates by the model `quality`: from the bitstream, from decoded frames, or from the mean of both.

    Args:
        artifact: of the model.
        device: where its graphs run.
    """

    def __init__(self, artifact: Artifact, device: Device = "auto") -> None:
        self._bitstream = BitstreamModel.load(artifact, device)
        self._frames = load_engine(artifact, "frames", device)

    def score(
        self, path: Path, *, display_height: int | None = None, limits: Limits | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> NoReference:  # fmt: skip
        """Estimate a clip.

        Args:
            path: a local file.
            display_height: lines that it is shown at; None: its own.
            limits: of reading it.
            advance: told of the number of frames that were decoded.

        Raises:
            NotFound, InvalidInput: see serve.quality.media.probe and serve.quality.bitstream.read_segments.
        """
        limits = limits or Limits()
        video = probe(path, limits)
        facts = read_segments(path, display_height, segment_s=SEGMENT_S, limits=limits)
        quantiles = self._bitstream.quantiles(facts)
        method: Method = "both" if self._bitstream.use_both else "bitstream"
        if method == "both":
            with contextlib.closing(decode_pictures(path, video, limits)) as pictures:
                stream = _lumas(pictures, advance)
                for place, patches in patches_of(stream, [one.duration_s for one in facts]):
                    quantiles[place] = (quantiles[place] + self._seen(facts[place], patches)) / 2
        segments = self._bitstream.rated(quantiles, method)
        return NoReference(
            method=method, coverage=self._bitstream.coverage, clip=mean(segments), segments=segments,
            segment_s=SEGMENT_S,
        )  # fmt: skip

    def _seen(self, facts: BitstreamFacts, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Quantiles of one segment from its frames (Q,)."""
        told = resolution_facts(facts.height, facts.display_height, facts.fps, bits_per_pixel=facts.bits_per_pixel)
        found: NDArray[np.float32] = self._frames({"patches": patches[None], "facts": told[None]})["quantiles"][0]
        return found


def _lumas(pictures: Iterable[Picture], advance: Callable[[int], None]) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """(seconds, luma (H, W)) of frames as they are decoded, with their number told."""
    for picture in pictures:
        yield picture.time_s, eight_bit_luma(picture.frame)
        advance(picture.index + 1)


def patches_of(
    stream: Iterable[tuple[float, NDArray[np.float32]]], durations_s: Sequence[float]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Place and patches of each segment that has frames, in order.

    Args:
        stream: (seconds, luma (H, W)) of a clip's frames, in the order of display.
        durations_s: of its segments.
    """
    ends_s = np.cumsum(durations_s) - 1e-6
    last = len(durations_s) - 1

    def place_of(frame: tuple[float, NDArray[np.float32]]) -> int:
        return min(int(np.searchsorted(ends_s, frame[0], side="right")), last)

    for place, frames in itertools.groupby(stream, key=place_of):
        start_s = float(ends_s[place]) - durations_s[place]
        yield place, sample_stream(((time_s - start_s, luma) for time_s, luma in frames), durations_s[place])
