"""A title as a player sees it: a ladder, the size of each segment at each rung, and its quality.

Units: bitrate kbit/s (1 kbit = 1000 bit), sizes bytes, time s, VMAF 0..100.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Never

import numpy as np
from numpy.typing import NDArray

from serve.bitrate.observations import RUNGS
from serve.errors import InvalidInput
from training.bitrate.columns import list_files, read_columns, refuse
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

    def _refuse(self, field: str, got: object, expected: str) -> Never:
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


def read_video(
    sizes: Path,
    vmaf: Path | None = None,
    ladder_kbps: Sequence[float] | None = None,
    segment_s: float = 4.0,
    segments: int | None = None,
) -> Video:
    """Read a title as Pensieve and Comyco publish Envivio.

    Files are numbered; each is one rung and holds one number for each segment. Pensieve's `video_size_0` is the lowest
    rung. Comyco's `video1` is the highest (its mean VMAF is 99.97, that of `video6` 22.7), so it runs the other way:
    either folder is turned round where its first file has the greater mean.

    Args:
        sizes: folder of `video_size_0`...: bytes.
        vmaf: folder of `video1`...: VMAF 0..100.
        ladder_kbps: nominal bitrates, ascending; None: as the mean sizes say.
        segment_s: length of a segment.
        segments: how many to keep; None: all but the last, which is a title's shorter rest (48 of Envivio's 49, as
            the published simulator plays it).

    Raises:
        InvalidInput: with file and line: no such numbers; or folders or ladder that do not fit each other.
        NotFound: a folder that is not there or has no files.
    """
    size_columns = _read_rungs(sizes, "video_size_*")
    keep = segments if segments is not None else max(1, len(size_columns) - 1)
    if not 1 <= keep <= len(size_columns):
        raise refuse(sizes, 0, keep, f"1 to {len(size_columns)} segments")
    kept = size_columns[:keep]
    rungs = kept.mean(0) / 125 / segment_s if ladder_kbps is None else np.asarray(ladder_kbps, np.float64)
    quality = None
    if vmaf is not None:
        quality = _read_rungs(vmaf, "video*")
        if quality.shape != size_columns.shape:
            raise refuse(vmaf, 0, quality.shape, f"segments and rungs as in {sizes}: {size_columns.shape}")
        quality = quality[:keep]
    return Video(sizes.parent.name if sizes.name == "size" else sizes.name, segment_s, rungs, kept, quality)


def _read_rungs(folder: Path, pattern: str) -> Floats:
    files = list_files(folder, pattern)
    if not 2 <= len(files) <= RUNGS:
        raise refuse(folder, 0, f"{len(files)} files {pattern}", f"2 to {RUNGS} rungs")
    columns = [read_columns(path, 1)[0][:, 0] for path in files]
    for path, column in zip(files, columns, strict=True):
        if len(column) != len(columns[0]):
            raise refuse(path, 0, f"{len(column)} segments", f"{len(columns[0])} as in {files[0]}")
    rungs = np.stack(columns, 1)
    return rungs[:, ::-1] if rungs[:, 0].mean() > rungs[:, -1].mean() else rungs
