"""A title as a player sees it: a ladder, the size of each segment at each rung, and its quality.

Units: bitrate kbit/s (1 kbit = 1000 bit), sizes bytes, time s, VMAF 0..100.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.bitrate.observations import RUNGS
from serve.errors import InvalidInput
from training.bitrate.qoe import Measure

Floats = NDArray[np.float64]
MAX_SEGMENTS: Final = 100_000


@dataclass(frozen=True, eq=False)
class Video:
    """One title.

    Attributes:
        name: of the title.
        segment_s: length of a segment, above 0.
        rungs_kbps: nominal bitrate of each rung, ascending; 2..12 of them (R,).
        segment_bytes: size of each segment at each rung, above 0 (S, R).
        vmaf: quality of the same segments, or None where it was not measured (S, R).
    """

    name: str
    segment_s: float
    rungs_kbps: Floats
    segment_bytes: Floats
    vmaf: Floats | None = None

    def __post_init__(self) -> None:
        rungs, segments = len(self.rungs_kbps), len(self.segment_bytes)
        if (
            not 2 <= rungs <= RUNGS
            or not 1 <= segments <= MAX_SEGMENTS
            or self.segment_bytes.shape != (segments, rungs)
        ):
            self._refuse(
                "segment_bytes", self.segment_bytes.shape, f"segments x rungs of the {rungs} given, 2 to {RUNGS} rungs"
            )
        if not (np.isfinite(self.segment_s) and 0 < self.segment_s <= 60):
            self._refuse("segment_s", self.segment_s, "above 0, at most 60 s")
        if not (
            np.isfinite(self.rungs_kbps).all() and self.rungs_kbps[0] > 0 and (np.diff(self.rungs_kbps) >= 0).all()
        ):
            self._refuse("rungs_kbps", self.rungs_kbps.tolist(), "bitrates above 0 in ascending order")
        if not (np.isfinite(self.segment_bytes).all() and (self.segment_bytes > 0).all()):
            self._refuse("segment_bytes", float(self.segment_bytes.min()), "sizes above 0")
        if self.vmaf is not None and not (
            self.vmaf.shape == self.segment_bytes.shape and ((self.vmaf >= 0) & (self.vmaf <= 100)).all()
        ):
            self._refuse("vmaf", self.vmaf.shape, "0..100 for each segment and rung")

    def _refuse(self, field: str, got: object, expected: str) -> None:
        raise InvalidInput(
            field=f"{self.name}.{field}", got=got, expected=expected, next_step="Correct the title's ladder or files."
        )

    def quality(self, measure: Measure) -> Floats:
        """Quality of each segment at each rung, in the measure's unit (S, R).

        Raises:
            InvalidInput: VMAF is asked for and was not measured.
        """
        if measure == "vmaf":
            if self.vmaf is None:
                self._refuse("vmaf", None, "VMAF of each segment, which this QoE is defined on")
            return np.asarray(self.vmaf, np.float64)
        rungs = self.rungs_kbps / 1000 if measure == "mbps" else np.log(self.rungs_kbps / self.rungs_kbps[0])
        return np.broadcast_to(rungs, self.segment_bytes.shape)
