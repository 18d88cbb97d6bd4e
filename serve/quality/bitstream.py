"""What a segment's bitstream tells with no decode: facts from the container's packets, and the features of a model.

Facts come from a file on this machine, or from a caller who knows size and length alone (a manifest, a decision).
Shapes: B segments, T frames of a segment, F features.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

    from serve.quality.media import Limits

CODECS: Final = ("h264", "hevc", "av1", "vp9")
KEY: Final = 0
"""Kind of a frame that is decoded alone."""
OTHER: Final = 1
"""Kind of a frame that is predicted and shown in decoding order."""
DISPOSABLE: Final = 2
"""Kind of a frame that the container marks as disposable, or that is shown before a frame decoded earlier."""

LEAST_SIDE: Final = 16
MOST_SIDE: Final = 8192
MOST_FPS: Final = 240.0
LONGEST_S: Final = 60.0
MOST_BYTES: Final = 1 << 30
MOST_FRAMES: Final = 4096
"""Of a segment; a file may hold MOST_SEGMENTS times as many."""
MOST_SEGMENTS: Final = 4096

FEATURES: Final = (
    *(f"codec_{name}" for name in CODECS),
    "log2_enlargement", "log2_display_lines", "fps", "log2_duration", "log2_bits_per_pixel",
    "log2_bits_per_display_pixel", "frames_known", "log2_key_bits", "log2_other_bits", "log2_median_bits",
    "log2_low_bits", "log2_high_bits", "log2_peak_bits", "spread", "change", "keys_per_s", "key_share",
    "disposable_share", "log2_disposable_ratio",
)  # fmt: skip
"""Columns of `features`, all about -4 to 4. Those after frames_known are 0 where frame sizes are unknown."""

KNOWN: Final = FEATURES.index("frames_known")
_NAMES: Final = {"libdav1d": "av1", "libaom-av1": "av1", "libvpx-vp9": "vp9"}
_LEAST_BPP: Final = 2.0**-14


def _refused(name: str, got: object, expected: str, next_step: str = "Correct it.") -> InvalidInput:
    return InvalidInput(field=f"bitstream.{name}", got=str(got)[:80], expected=expected, next_step=next_step)


@dataclass(frozen=True, kw_only=True, eq=False)
class BitstreamFacts:
    """What is known of a segment with no decode; it checks itself.

    Attributes:
        codec: one of CODECS.
        width: of the rendition, pixels, LEAST_SIDE to MOST_SIDE.
        height: of the rendition, lines, likewise.
        display_height: lines of the source, to which the rendition is scaled up, `height` to MOST_SIDE.
        fps: frames a second, 1 to MOST_FPS.
        duration_s: length, above 0 to LONGEST_S.
        size_bytes: of all frames together, 1 to MOST_BYTES.
        frame_bytes: sizes in decoding order int64 (T,), 1 and more, or empty where they are unknown.
        frame_kinds: KEY, OTHER or DISPOSABLE of each int8 (T,).

    Raises:
        InvalidInput: a value is out of its range, or the frames do not agree with the rest.
    """

    codec: str
    width: int
    height: int
    display_height: int
    fps: float
    duration_s: float
    size_bytes: int
    frame_bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    frame_kinds: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise _refused("codec", self.codec, f"one of {', '.join(CODECS)}", "Encode it with one of them.")
        for name in ("width", "height", "display_height", "size_bytes"):
            value = getattr(self, name)
            least, most = (1, MOST_BYTES) if name == "size_bytes" else (LEAST_SIDE, MOST_SIDE)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise _refused(name, value, f"a whole number, {least} to {most}")
        for name, least_f, most_f in (("fps", 1.0, MOST_FPS), ("duration_s", 1e-3, LONGEST_S)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int | float) or not least_f <= number <= most_f:
                raise _refused(name, number, f"{least_f:g} to {most_f:g}")
        if self.display_height < self.height:
            raise _refused(
                "display_height", self.display_height, f"at least the rendition's {self.height} lines",
                "Give the height of the source.",
            )  # fmt: skip
        self._check_frames()

    def _check_frames(self) -> None:
        sizes, kinds = self.frame_bytes, self.frame_kinds
        if sizes.ndim != 1 or sizes.dtype != np.int64 or len(sizes) > MOST_FRAMES:
            raise _refused("frame_bytes", f"{sizes.dtype} {sizes.shape}", f"int64 (T,), T at most {MOST_FRAMES}")
        if kinds.dtype != np.int8 or kinds.shape != sizes.shape:
            raise _refused("frame_kinds", f"{kinds.dtype} {kinds.shape}", f"int8 {sizes.shape}")
        if len(sizes) == 0:
            return
        if sizes.min() < 1 or sizes.max() > MOST_BYTES or int(sizes.sum()) != self.size_bytes:
            raise _refused("frame_bytes", f"a sum of {sizes.sum()}", f"1 and more each, {self.size_bytes} in all")
        if kinds.min() < KEY or kinds.max() > DISPOSABLE:
            raise _refused("frame_kinds", f"{kinds.min()} to {kinds.max()}", f"{KEY} to {DISPOSABLE}")

    @property
    def bitrate_kbps(self) -> float:
        """Mean bitrate."""
        return self.size_bytes * 8 / self.duration_s / 1000

    @property
    def bits_per_pixel(self) -> float:
        """Bits of a mean frame by pixels of the rendition."""
        return self.size_bytes * 8 / (self.duration_s * self.fps * self.width * self.height)

    def without_frames(self) -> "BitstreamFacts":
        """The same, as it is known to a caller who has no frame sizes."""
        return BitstreamFacts(
            codec=self.codec, width=self.width, height=self.height, display_height=self.display_height, fps=self.fps,
            duration_s=self.duration_s, size_bytes=self.size_bytes,
        )  # fmt: skip


def read_facts(path: Path, display_height: int | None = None) -> BitstreamFacts:
    """Facts of a whole file as one segment.

    Args:
        path: a local video file (serve.quality.media says of which kinds).
        display_height: lines of the source; None: the rendition is shown as it is.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it can't be read, or its facts are out of range.
    """
    return read_segments(path, display_height, segment_s=math.inf)[0]


def read_segments(
    path: Path, display_height: int | None = None, *, segment_s: float = 4.0, limits: "Limits | None" = None
) -> list[BitstreamFacts]:
    """Facts of a file's segments: each ends before the first key frame that comes `segment_s` after its start.

    Args:
        path: as in `read_facts`.
        display_height: as in `read_facts`.
        segment_s: length aimed at; inf: all is one segment.
        limits: of reading it.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it can't be read, or a segment's facts are out of range.
    """
    from serve.quality.media import Limits, packets_of  # noqa: PLC0415 - FFmpeg; callers with facts of their own need none

    with packets_of(path, limits or Limits()) as (stream, packets):
        return _read(stream, packets, display_height, segment_s)


def _read(
    stream: "VideoStream", packets: Iterable["Packet[VideoStream]"], display_height: int | None, segment_s: float
) -> list[BitstreamFacts]:
    context = stream.codec_context
    codec = _NAMES.get(context.name, context.name)
    base = Fraction(stream.time_base or 1)
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    segments: list[list[tuple[int, int, float]]] = [[]]
    started, latest = None, -math.inf
    for frames, packet in enumerate(packets, start=1):
        stamp = packet.pts if packet.pts is not None else packet.dts
        shown_s = float(stamp * base) if stamp is not None else frames / max(fps, 1.0)
        started = shown_s if started is None else started
        if packet.is_keyframe and segments[-1] and shown_s - started >= segment_s - 0.5 / max(fps, 1.0):
            segments.append([])
            started, latest = shown_s, -math.inf
        kind = KEY if packet.is_keyframe else DISPOSABLE if packet.is_disposable or shown_s < latest else OTHER
        latest = max(latest, shown_s)
        segments[-1].append((packet.size, kind, shown_s))
        if len(segments[-1]) > MOST_FRAMES or len(segments) > MOST_SEGMENTS:
            raise _refused(
                "frames", f"more than {MOST_FRAMES} in a segment, or {MOST_SEGMENTS} segments", "fewer",
                "Cut it into segments with a key frame at the start of each.",
            )  # fmt: skip
    if not segments[0]:
        raise _refused("frames", 0, "at least one")
    if not fps:
        fps = _rate([shown_s for _, _, shown_s in segments[0]])
    return [
        BitstreamFacts(
            codec=codec, width=context.width, height=context.height, display_height=display_height or context.height,
            fps=fps, duration_s=len(packets) / fps, size_bytes=sum(size for size, _, _ in packets),
            frame_bytes=np.array([size for size, _, _ in packets], np.int64),
            frame_kinds=np.array([kind for _, kind, _ in packets], np.int8),
        )
        for packets in segments
    ]  # fmt: skip


def _rate(times_s: Sequence[float]) -> float:
    """Frames a second where the container states none."""
    length_s = max(times_s) - min(times_s)
    return (len(times_s) - 1) / length_s if length_s > 0 else 25.0


def features(segments: Sequence[BitstreamFacts]) -> NDArray[np.float32]:
    """The model's inputs float32 (B, F), columns as FEATURES; all segments at once.

    Args:
        segments: at least one.
    """
    facts = np.array(
        [(CODECS.index(one.codec), one.width, one.height, one.display_height, one.fps, one.duration_s, one.size_bytes)
         for one in segments]
    )  # fmt: skip
    codec, width, height, display, fps, duration_s, size = facts.T
    pixels = width * height
    rates = _log_bits(size * 8 / (duration_s * fps), pixels)  # bits of a mean frame, per pixel
    enlargement = np.log2(display / height)
    table = np.zeros((len(segments), len(FEATURES)))
    table[np.arange(len(segments)), codec.astype(np.int64)] = 1
    first = len(CODECS)
    table[:, first:KNOWN] = np.stack(
        [enlargement, np.log2(display / 540), fps / 30, np.log2(duration_s / 2), rates, rates - 2 * enlargement], axis=1
    )
    known = np.array([len(one.frame_bytes) for one in segments])
    table[:, KNOWN] = known > 0
    rows = np.flatnonzero(known).tolist()
    if rows:
        table[rows, KNOWN + 1 :] = _frame_features([segments[row] for row in rows], pixels[rows])
    return table.astype(np.float32)


def _log_bits(bits: NDArray[np.float64], pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log2 of bits per pixel, 0 at about a tenth of a bit, half a unit a doubling."""
    scaled: NDArray[np.float64] = (np.log2(np.maximum(bits / pixels, _LEAST_BPP)) + 3.5) / 2
    return scaled


def _frame_features(segments: Sequence[BitstreamFacts], pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The columns after frames_known (B, F - KNOWN - 1), from arrays padded to the longest segment."""
    lengths = np.array([len(one.frame_bytes) for one in segments])
    inside = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
    bits, kinds = np.zeros(inside.shape), np.full(inside.shape, -1)
    bits[inside] = np.concatenate([one.frame_bytes for one in segments]) * 8.0
    kinds[inside] = np.concatenate([one.frame_kinds for one in segments])
    key, other, spare = kinds == KEY, kinds > KEY, kinds == DISPOSABLE
    keys, others, spares = key.sum(1), other.sum(1), spare.sum(1)

    def mean(chosen: NDArray[np.bool_], count: NDArray[np.int64]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = (bits * chosen).sum(1) / np.maximum(count, 1)
        return result

    logs = np.where(other, _log_bits(bits, pixels[:, None]), np.inf)
    ranked = np.sort(logs, axis=1)
    key_bits = np.where(keys > 0, mean(key, keys), mean(other, others))
    other_bits = np.where(others > 0, mean(other, others), mean(key, keys))
    key_logs, other_logs = _log_bits(key_bits, pixels), _log_bits(other_bits, pixels)

    def quantile(share: float) -> NDArray[np.float64]:
        place = (share * np.maximum(others - 1, 0)).astype(np.int64)
        picked: NDArray[np.float64] = np.take_along_axis(ranked, place[:, None], axis=1)[:, 0]
        return np.where(others > 0, picked, key_logs)

    level = np.where(other, logs, 0.0)
    centre = level.sum(1) / np.maximum(others, 1)
    spread = np.sqrt((np.where(other, level - centre[:, None], 0.0) ** 2).sum(1) / np.maximum(others, 1))
    both = other[:, 1:] & other[:, :-1]
    change = (np.abs(level[:, 1:] - level[:, :-1]) * both).sum(1) / np.maximum(both.sum(1), 1)
    durations = np.array([one.duration_s for one in segments])
    kept = np.maximum(others - spares, 0)
    ratio = np.where(
        (spares > 0) & (kept > 0),
        _log_bits(mean(spare, spares), pixels) - _log_bits(mean(other & ~spare, kept), pixels), 0.0,
    )  # fmt: skip
    return np.stack(
        [key_logs, other_logs, quantile(0.5), quantile(0.1), quantile(0.9), quantile(1.0), spread, change,
         keys / durations, mean(key, np.ones_like(keys)) / bits.sum(1), spares / lengths, ratio],
        axis=1,
    )  # fmt: skip
