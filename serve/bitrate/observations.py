"""What a bitrate policy sees of a batch of sessions: the inputs of the policy graph, by name.

The simulator builds them in training, the planner from requests in serving; every feature is computed inside the graph.
Units: bitrate and throughput kbit/s, size bytes, time s. Every array is float32 and C-contiguous.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

RUNGS: Final = 12
"""The most rungs of a ladder."""

HISTORY: Final = 12
"""Downloads that are remembered."""

LOOKAHEAD: Final = 5
"""Upcoming segments that are seen, the next one first."""

LIVE_REMAINING: Final = 1e6
"""`remaining` where the end isn't known."""

LINEAR_WEIGHTS: Final = (-4.3, -1.0, -1.0, 1.0)
"""Of the linear QoE of Pensieve (Mao et al. 2017): rebuffering per s, rise, fall, quality in Mbit/s."""

PERCEPTUAL_WEIGHTS: Final = (-28.7959, 0.2980, -1.0610, 0.8469)
"""Of Comyco's QoE (Huang et al. 2019) on VMAF; its constant changes no decision."""

SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "throughput_kbps": (HISTORY,),
    "download_s": (HISTORY,),
    "buffer_s": (),
    "max_buffer_s": (),
    "segment_s": (),
    "last_rung": (),
    "last_quality": (),
    "remaining": (),
    "rungs_kbps": (RUNGS,),
    "segment_bytes": (LOOKAHEAD, RUNGS),
    "quality": (LOOKAHEAD, RUNGS),
    "weights": (4,),
    "prior_log_kbps": (2,),
    "latency_s": (2,),
}
"""Shape of each input behind the batch dimension."""

Floats = NDArray[np.float32]


@dataclass(slots=True)
class Observations:
    """A batch of B sessions.

    Attributes:
        throughput_kbps: measured payload throughput of the newest downloads, the newest last, 0 where there is none
            (B, HISTORY).
        download_s: how long each of them took, 0 where there is none (B, HISTORY).
        buffer_s: media in the buffer (B,).
        max_buffer_s: cap of the buffer (B,).
        segment_s: length of a segment (B,).
        last_rung: index of the rung fetched last, -1 before the first (B,).
        last_quality: its quality in the QoE's unit, 0 before the first (B,).
        remaining: segments still to fetch with the next one, LIVE_REMAINING where unknown (B,).
        rungs_kbps: nominal bitrates, ascending; a rung exists where it is above 0 (B, RUNGS).
        segment_bytes: sizes of the upcoming segments; 0 past the title's end and for missing rungs
            (B, LOOKAHEAD, RUNGS).
        quality: of the same segments in the QoE's unit: Mbit/s (linear) or VMAF 0..100 (perceptual), padded likewise.
        weights: of the QoE: rebuffering per s, rise, fall, quality (B, 4); a change of d adds weight * |d|.
        prior_log_kbps: mean and standard deviation of ln(kbit/s) expected before any sample; deviation 0: none (B, 2).
        latency_s: live latency and its target; 0, 0 for video on demand (B, 2).
    """

    throughput_kbps: Floats
    download_s: Floats
    buffer_s: Floats
    max_buffer_s: Floats
    segment_s: Floats
    last_rung: Floats
    last_quality: Floats
    remaining: Floats
    rungs_kbps: Floats
    segment_bytes: Floats
    quality: Floats
    weights: Floats
    prior_log_kbps: Floats
    latency_s: Floats

    @classmethod
    def empty(cls, batch: int) -> Self:
        """Zeros for `batch` sessions that have fetched nothing yet (last_rung -1)."""
        observations = cls(**{name: np.zeros((batch, *shape), np.float32) for name, shape in SHAPES.items()})
        observations.last_rung[:] = -1
        return observations

    def __len__(self) -> int:
        """Sessions."""
        return len(self.buffer_s)

    def as_inputs(self) -> dict[str, Floats]:
        """The arrays by the names of the policy graph's inputs, not copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Self:
        """The sessions of `index`, in its order, copied."""
        return type(self)(**{name: np.array(array[index], order="C") for name, array in self.as_inputs().items()})
