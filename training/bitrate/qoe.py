"""What a viewer's experience is worth: a linear sum over segments of quality, rebuffering and changes.

Units: quality in the measure's own (Mbit/s, VMAF 0..100, or ln of the bitrate over the lowest one), rebuffering in s.
A segment is worth constant + quality * q + rebuffer * rebuffer_s + rise * max(dq, 0) + fall * max(-dq, 0).
"""

import math
from dataclasses import dataclass
from typing import Final, Literal, Self

from serve.bitrate.observations import LINEAR_WEIGHTS, PERCEPTUAL_WEIGHTS
from serve.errors import InvalidInput

Measure = Literal["mbps", "vmaf", "log"]
MEASURES: Final[tuple[Measure, ...]] = ("mbps", "vmaf", "log")
MAX_WEIGHT: Final = 1e6


@dataclass(frozen=True)
class Qoe:
    """A definition of QoE.

    Attributes:
        name: how tables call it.
        rebuffer: worth of one second of rebuffering, at most 0.
        rise: factor of a rise in quality.
        fall: factor of the size of a fall in quality.
        quality: factor of the segment's quality, above 0.
        constant: added to each segment; no decision depends on it.
        measure: what quality is measured in.
    """

    name: str
    rebuffer: float
    rise: float
    fall: float
    quality: float
    constant: float = 0.0
    measure: Measure = "mbps"

    def __post_init__(self) -> None:
        numbers = (*self.weights, self.constant)
        if not all(math.isfinite(number) and abs(number) <= MAX_WEIGHT for number in numbers):
            raise _invalid(numbers, f"finite weights within {MAX_WEIGHT:g}")
        if self.rebuffer > 0 or self.quality <= 0:
            raise _invalid(numbers, "a rebuffer weight of at most 0 and a quality weight above 0")
        if self.measure not in MEASURES:
            raise _invalid(self.measure, f"a measure of {', '.join(MEASURES)}")

    @property
    def weights(self) -> tuple[float, float, float, float]:
        """In the order of the policy's input: rebuffer, rise, fall, quality."""
        return self.rebuffer, self.rise, self.fall, self.quality

    @classmethod
    def of(cls, text: str) -> Self:
        """Read a QoE from a command line.

        Args:
            text: `linear`, `perceptual`, or a vector `rebuffer,rise,fall,quality` with an optional measure in front,
                such as `-4.3,-1,-1,1` (Mbit/s) or `vmaf:-28.8,0.3,-1.06,0.85`.

        Raises:
            InvalidInput: it is none of these.
        """
        for known in (LINEAR, PERCEPTUAL):
            if text == known.name:
                return cls(**vars(known))
        measure, colon, vector = text.rpartition(":")
        if colon and measure not in MEASURES:
            raise _invalid(text, f"a measure of {', '.join(MEASURES)} before the colon")
        try:
            rebuffer, rise, fall, quality = (float(number) for number in vector.split(","))
        except ValueError:
            raise _invalid(text, "linear, perceptual, or [measure:]rebuffer,rise,fall,quality") from None
        chosen: Measure = next((name for name in MEASURES if name == measure), "mbps")
        return cls(text, rebuffer, rise, fall, quality, measure=chosen)


def _invalid(got: object, expected: str) -> InvalidInput:
    return InvalidInput(
        field="qoe", got=got, expected=expected, next_step="Give linear, perceptual or a vector such as -4.3,-1,-1,1."
    )


LINEAR: Final = Qoe("linear", *LINEAR_WEIGHTS)
"""Mao et al., Neural Adaptive Video Streaming with Pensieve, SIGCOMM 2017."""

PERCEPTUAL: Final = Qoe("perceptual", *PERCEPTUAL_WEIGHTS, constant=-2.6616, measure="vmaf")
"""Huang et al., Comyco: Quality-Aware Adaptive Video Streaming via Imitation Learning, ACM Multimedia 2019."""
