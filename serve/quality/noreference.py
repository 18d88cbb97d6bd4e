"""Quality of a clip that has no reference: the VMAF its segments would have had, each with an interval."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve.artifacts import Artifact
from serve.engines import Device, load_engine
from serve.quality.bitstream import BitstreamFacts, features, read_segments
from serve.quality.media import Limits, decode_pictures, probe
from serve.quality.placement import eight_bit_luma
from serve.quality.sampling import resolution_facts, sample_stream

Floats = NDArray[np.float64]

SEGMENT_S: Final = 4.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one segment, or a clip, is estimated at, in points of VMAF.

    Attributes:
        vmaf: median, 0 to 100.
        low: lower end of the interval.
        high: upper end.
    """

    vmaf: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class NoReference:
    """Estimates of a clip.

    Attributes:
        method: what they are made of: both, bitstream or frames.
        coverage: share of segments of unseen content that lie in their intervals, as held-out content showed.
        clip: means over the segments; the interval's ends are means too, which is cautious.
        segments: one estimate each, in order.
        segment_s: length that segments have at least, but the last: each ends before a key frame.
    """

    method: str
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
        self._parameters: dict[str, Any] = dict(artifact.manifest.parameters)
        self._bitstream = load_engine(artifact, "bitstream", device)
        self._frames = load_engine(artifact, "frames", device)

    def score(self, path: Path, *, display_height: int | None = None, limits: Limits | None = None) -> NoReference:
        """Estimate a clip.

        Args:
            path: a local file.
            display_height: lines that it is shown at; None: its own.
            limits: of reading it.

        Raises:
            NotFound, InvalidInput: see serve.quality.media.probe and serve.quality.bitstream.read_segments.
        """
        limits = limits or Limits()
        video = probe(path, limits)
        facts = read_segments(path, display_height, segment_s=SEGMENT_S)
        method = "both" if self._parameters["use_both"] else "bitstream"
        quantiles = self._bitstream({"features": features(facts)})["quantiles"].astype(np.float64)
        if method == "both":
            with contextlib.closing(decode_pictures(path, video, limits)) as pictures:
                stream = ((picture.time_s, eight_bit_luma(picture.frame)) for picture in pictures)
                for place, patches in patches_of(stream, [one.duration_s for one in facts]):
                    quantiles[place] = (quantiles[place] + self._seen(facts[place], patches)) / 2
        lows, highs = intervals(quantiles, float(self._parameters["widths"][method]))
        rows = zip(quantiles[:, 1].tolist(), lows.tolist(), highs.tolist(), strict=True)
        segments = tuple(Estimate(vmaf=middle, low=low, high=high) for middle, low, high in rows)
        return NoReference(
            method=method, coverage=float(self._parameters["coverage"]), clip=_mean(segments), segments=segments,
            segment_s=SEGMENT_S,
        )  # fmt: skip

    def _seen(self, facts: BitstreamFacts, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Quantiles of one segment from its frames (Q,)."""
        told = resolution_facts(facts.height, facts.display_height, facts.fps, bits_per_pixel=facts.bits_per_pixel)
        found: NDArray[np.float32] = self._frames({"patches": patches[None], "facts": told[None]})["quantiles"][0]
        return found


def intervals(quantiles: Floats, width: float | Floats) -> tuple[Floats, Floats]:
    """Lower and upper ends (B,), 0 to 100, the median always inside.

    Args:
        quantiles: lower, median and upper (B, Q).
        width: that both ends move outward by, one for all or of each (B,); negative: inward.
    """
    middle = quantiles[:, 1]
    low = np.minimum(quantiles[:, 0] - width, middle).clip(0.0, 100.0)
    high = np.maximum(quantiles[:, -1] + width, middle).clip(0.0, 100.0)
    return low, high


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


def _mean(estimates: tuple[Estimate, ...]) -> Estimate:
    return Estimate(
        **{name: float(np.mean([getattr(one, name) for one in estimates])) for name in ("vmaf", "low", "high")}
    )
