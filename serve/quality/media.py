"""Local video files: what their headers tell, and their luma planes frame by frame, within limits.

Files come from others: nothing but the named file is ever opened, by no protocol but plain reading, and a picture's
size is held against the limits before its memory is asked for. Shapes: H lines, W columns.
"""

import contextlib
import math
import re
import stat
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, NoReturn

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from serve.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from av.packet import Packet

LEAST_SIDE: Final = 80
"""Pixels; the features of smaller pictures aren't defined at their coarsest scale."""

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

_FORMATS: Final = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,yuv4mpegpipe,ivf"
"""Containers that are opened: none of them names other files."""
_CODECS: Final = (
    "h264,hevc,libdav1d,av1,libvpx,libvpx-vp9,vp8,vp9,mpeg2video,mpeg4,mjpeg,prores,dnxhd,ffv1,huffyuv,ffvhuff,utvideo,"
    "rawvideo,wrapped_avframe"
)
_MOST_STREAMS: Final = 8
"""Streams that are told to skip frames: else FFmpeg decodes some H.264 as it opens a file, 40 ms of work at 1080p."""
_DEPTHS: Final = {
    **dict.fromkeys(("yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuv410p", "gray", "nv12", "nv21"), 8),
    **dict.fromkeys(("yuvj420p", "yuvj422p", "yuvj444p", "yuvj440p", "yuvj411p", "nv16", "nv24"), 8),
    **dict.fromkeys(("yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv440p10le", "gray10le", "p010le", "p210le"), 10),
}
"""Pixel format -> bits of a luma sample, of those whose first plane is luma."""
_SHIFTED: Final = ("p010le", "p210le")
"""Their ten bits are the upper ones of sixteen."""
_ENCODE: Final = "Encode it anew: ffmpeg -i IN -pix_fmt yuv420p OUT.mp4"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may ask for.

    Attributes:
        max_bytes: of the file.
        max_pixels: width times height, of any frame.
        max_duration_s: seconds.
        max_frames: of the video stream.
        deadline_s: seconds of work that reading one file may take; the time that a caller takes over the frames does
            not count.
        threads: that decode one file.
    """

    max_bytes: int = 4 << 30
    max_pixels: int = 8192 * 4320
    max_duration_s: float = 4 * 3600.0
    max_frames: int = 1 << 20
    deadline_s: float = 3600.0
    threads: int = 2


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What a file's headers and its first frame tell.

    Attributes:
        codec: the decoder's name, such as `h264`.
        width: of the stored picture, pixels.
        height: of the stored picture, pixels.
        bit_depth: of a luma sample, 8 or 10.
        pixel_format: FFmpeg's name, such as `yuv420p`.
        frames_per_s: average rate.
        duration_s: None where the container does not tell.
        frames: how many the container claims; None where it does not tell.
        colour_range: of luma: `limited` (16 to 235) or `full` (0 to 255); limited where the file does not tell.
        sample_aspect: width of a pixel over its height.
        rotation_deg: counterclockwise, that a player turns the stored picture by before it shows it.
        size_bytes: of the file.
    """

    codec: str
    width: int
    height: int
    bit_depth: int
    pixel_format: str
    frames_per_s: Fraction
    duration_s: float | None
    frames: int | None
    colour_range: Literal["limited", "full"]
    sample_aspect: Fraction
    rotation_deg: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Luma:
    """One frame.

    Attributes:
        index: in order of display, the file's first frame being 0.
        time_s: seconds since the first frame.
        pixels: luma plane, 0 to 255 (uint8) or 0 to 1023 (uint16), its own memory (H, W).
    """

    index: int
    time_s: float
    pixels: Pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One decoded frame with chroma, before any conversion.

    Attributes:
        index: in order of display, the file's first frame being 0.
        time_s: seconds since the first frame.
        frame: PyAV's.
    """

    index: int
    time_s: float
    frame: VideoFrame


def probe(path: Path, limits: Limits) -> VideoFacts:
    """What a file holds; reads its headers, then decodes its first frame.

    Args:
        path: a local file; its name's ending does not matter.
        limits: that it must be within.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it is no video file that can be measured, or outside of the limits.
    """
    with _open(path, limits) as (container, stream, size_bytes):
        width, height = _check_size(path, stream, limits)
        context = stream.codec_context
        rate = stream.average_rate or stream.guessed_rate
        if not rate or not 0 < rate <= 1000:
            _refuse(path, f"{rate} frames/s", "a frame rate above 0, to 1000", "Write it anew with -r RATE.")
        duration_s: float | None = None
        if stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration_s = container.duration / av.time_base
        if duration_s is not None and duration_s > limits.max_duration_s:
            _refuse(path, f"{duration_s:.1f} s", f"up to {limits.max_duration_s:g} s", "Cut it into shorter files.")
        frames = stream.frames or None
        if frames is not None and frames > limits.max_frames:
            _refuse(path, f"{frames} frames", f"up to {limits.max_frames}", "Cut it into shorter files.")
        with contextlib.closing(_pictures(_Work(path, limits, size_bytes), container, stream)) as pictures:
            first = next(pictures, None)
        if first is None:
            _refuse(path, "no frame", "a video of at least one frame", "Look whether the recording or cut went wrong.")
        frame = first.frame
        name = frame.format.name
        return VideoFacts(
            codec={"libdav1d": "av1", "libaom-av1": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9"}.get(
                context.name, context.name
            ),
            width=width, height=height, bit_depth=_DEPTHS[name], pixel_format=name, frames_per_s=Fraction(rate),
            duration_s=duration_s, frames=frames,
            colour_range="full" if name.startswith("yuvj") or int(frame.color_range) == 2 else "limited",
            sample_aspect=stream.sample_aspect_ratio or Fraction(1), rotation_deg=frame.rotation,
            size_bytes=size_bytes,
        )  # fmt: skip


def decode(
    path: Path, facts: VideoFacts, limits: Limits, *, first: int = 0, every: int = 1
) -> Generator[Luma, None, None]:
    """Luma planes in order of display.

    A file that was cut off gives its frames up to there, then an error; a container with no index and no length
    (MPEG-TS, fragmented MP4) that was cut exactly between two frames can't be told from one that ends there.

    Args:
        path: the file.
        facts: what `probe` said of it.
        limits: the same as for `probe`.
        first: index of the first frame that is given.
        every: give each n-th from there.

    Raises:
        NotFound: the file is gone.
        InvalidInput: it is broken or cut off (at which frame and time), its pictures change, or it is outside of the
            limits.
    """
    with contextlib.closing(decode_pictures(path, facts, limits)) as pictures:
        for picture in pictures:
            if picture.index >= first and (picture.index - first) % every == 0:
                yield Luma(index=picture.index, time_s=picture.time_s, pixels=luma(picture.frame))


def decode_pictures(path: Path, facts: VideoFacts, limits: Limits) -> Generator[Picture, None, None]:
    """Decoded frames in order of display, as `decode` but with chroma and no copy.

    Raises:
        NotFound: the file is gone.
        InvalidInput: as of `decode`.
    """
    with _open(path, limits) as (container, stream, size_bytes):
        _check_size(path, stream, limits)
        work = _Work(path, limits, size_bytes, facts)
        with contextlib.closing(_pictures(work, container, stream)) as pictures:
            yield from pictures


@contextlib.contextmanager
def packets_of(path: Path, limits: Limits) -> "Iterator[tuple[VideoStream, Iterator[Packet[VideoStream]]]]":
    """The video stream of a file and its packets, none of them decoded, within the limits.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it is no video file, broken, or outside of the limits.
    """
    with _open(path, limits, decoded=False) as (container, stream, _):
        yield stream, _counted(path, limits, container.demux(stream))


def _counted(
    path: Path, limits: Limits, packets: "Iterator[Packet[VideoStream]]"
) -> "Generator[Packet[VideoStream], None, None]":
    """Packets that hold something, up to the limit, with the errors of PyAV named."""
    count = 0
    until_s = time.monotonic() + limits.deadline_s
    while True:
        try:
            packet = next(packets, None)
        except (FFmpegError, OSError, ValueError) as error:
            _refuse(path, f"damaged data ({type(error).__name__}) at packet {count}", "a whole, undamaged file",
                    "Fetch or write the file again.")  # fmt: skip
        if packet is None:
            return
        count += packet.size > 0
        if count > limits.max_frames or time.monotonic() > until_s:
            _refuse(
                path, f"packet {count}", f"up to {limits.max_frames}, read within {limits.deadline_s:g} s",
                "Cut it into shorter files.",
            )  # fmt: skip
        if packet.size > 0:
            yield packet


def luma(frame: VideoFrame) -> Pixels:
    """The luma plane of a frame, copied: uint8 0 to 255, or uint16 0 to 1023 (H, W)."""
    plane = frame.planes[0]
    deep = _DEPTHS[frame.format.name] > 8
    rows = np.frombuffer(memoryview(plane), np.dtype("<u2") if deep else np.uint8)
    stride = plane.line_size // (2 if deep else 1)
    pixels = rows[: stride * frame.height].reshape(frame.height, stride)[:, : frame.width]
    if not deep:
        return pixels.astype(np.uint8, copy=True)
    return np.right_shift(pixels.astype(np.uint16, copy=True), 6 if frame.format.name in _SHIFTED else 0)


def chroma(frame: VideoFrame) -> Pixels:
    """The chroma planes of a frame at half its size both ways, copied: as `luma` (2, (H + 1) // 2, (W + 1) // 2).

    Formats with more chroma, or less, are brought there by swscale's bicubic filter; grey has the neutral value.
    """
    name = frame.format.name
    deep = _DEPTHS[name] > 8
    shape = (2, (frame.height + 1) // 2, (frame.width + 1) // 2)
    if name.startswith("gray"):
        return np.full(shape, 512, np.uint16) if deep else np.full(shape, 128, np.uint8)
    halved = "yuv420p10le" if deep else "yuvj420p" if name.startswith("yuvj") else "yuv420p"
    if name != halved:
        frame = frame.reformat(format=halved, interpolation="BICUBIC", threads=1)
    pixels = np.empty(shape, np.uint16 if deep else np.uint8)
    for place, plane in enumerate(frame.planes[1:3]):
        rows = np.frombuffer(memoryview(plane), np.dtype("<u2") if deep else np.uint8)
        stride = plane.line_size // (2 if deep else 1)
        pixels[place] = rows[: stride * shape[1]].reshape(shape[1], stride)[:, : shape[2]]
    return pixels


class _Work:
    """What reading one file keeps count of."""

    def __init__(self, path: Path, limits: Limits, size_bytes: int, facts: VideoFacts | None = None) -> None:
        self.path = path
        self.limits = limits
        self.size_bytes = size_bytes
        self.facts = facts
        self.frames = 0
        self.last_s = 0.0
        self.spent_s = 0.0

    def broken(self, why: str) -> NoReturn:
        where = f"frame {self.frames}, {self.last_s:.3f} s" if self.frames else "the first frame"
        _refuse(
            self.path, f"{why} at {where}", "a whole, undamaged file", "Fetch or write the file again."
        )  # fmt: skip


def _pictures(work: _Work, container: InputContainer, stream: VideoStream) -> Generator[Picture, None, None]:
    """Frames of an open file; ends with an error where the file ends before its time."""
    first_s: Fraction | None = None
    rate = stream.average_rate or stream.guessed_rate
    for frame in _timed(work, container, stream):
        _check_frame(work, frame)
        if frame.pts is None or frame.time_base is None:
            shown_s = Fraction(work.frames) / Fraction(rate or 25)
        else:
            shown_s = frame.pts * frame.time_base
        first_s = shown_s if first_s is None else first_s
        time_s = float(shown_s - first_s)
        if time_s < work.last_s:
            _refuse(
                work.path, f"time stamps that go back at frame {work.frames}, {work.last_s:.3f} s",
                "rising time stamps", "Write it anew: ffmpeg -i IN -fps_mode cfr OUT.",
            )  # fmt: skip
        work.last_s = time_s
        work.frames += 1
        if work.frames > work.limits.max_frames or time_s > work.limits.max_duration_s:
            _refuse(
                work.path, f"frame {work.frames} at {time_s:.1f} s",
                f"up to {work.limits.max_frames} frames and {work.limits.max_duration_s:g} s",
                "Cut it into shorter files.",
            )  # fmt: skip
        yield Picture(index=work.frames - 1, time_s=time_s, frame=frame)


def _timed(work: _Work, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames, with the time that they take counted, and the errors of PyAV named."""
    frames = _frames(work, container, stream)
    while True:
        begin_s = time.monotonic()
        try:
            frame = next(frames, None)
        except (FFmpegError, OSError, ValueError) as error:
            work.broken(f"damaged data ({type(error).__name__})")
        work.spent_s += time.monotonic() - begin_s
        if work.spent_s > work.limits.deadline_s:
            _refuse(
                work.path, f"{work.spent_s:.1f} s of decoding up to frame {work.frames}",
                f"up to {work.limits.deadline_s:g} s", "Send a shorter clip, or raise the limit.",
            )  # fmt: skip
        if frame is None:
            return
        yield frame


def _frames(work: _Work, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    packets = 0
    end = 0
    for packet in container.demux(stream):
        damaged = packet.is_corrupt
        packets += packet.size > 0
        if packet.pos is not None and packet.pos >= 0:
            end = packet.pos + packet.size
        if damaged:
            work.broken("data cut off")
        for frame in packet.decode():
            if frame.is_corrupt:
                work.broken("a damaged picture")
            yield frame
    claimed = _claimed_bytes(work.path, container.format.name)
    if container.format.name == "yuv4mpegpipe":
        claimed = work.size_bytes if end == work.size_bytes else math.inf
    if claimed > work.size_bytes or packets < stream.frames:
        work.broken("the end of a file that was cut off")


def _check_frame(work: _Work, frame: VideoFrame) -> None:
    name = frame.format.name
    _check_pixels(work.path, name)
    if frame.interlaced_frame:
        _refuse(
            work.path, f"interlaced video (frame {work.frames})", "progressive video",
            "Deinterlace it: ffmpeg -i IN -vf bwdif OUT.",
        )  # fmt: skip
    facts = work.facts
    if facts is not None and (frame.width, frame.height, name) != (facts.width, facts.height, facts.pixel_format):
        _refuse(
            work.path, f"{frame.width}x{frame.height} {name} from frame {work.frames}, {work.last_s:.3f} s",
            f"{facts.width}x{facts.height} {facts.pixel_format} throughout", "Cut the file where its pictures change.",
        )  # fmt: skip


def _check_pixels(path: Path, name: str | None) -> None:
    if name in _DEPTHS:
        return
    if name and re.search(r"(9|12|14|16)(le|be)$", name):
        _refuse(path, f"{name} samples", "8 or 10 bits", "Write it anew with -pix_fmt yuv420p10le.")
    _refuse(path, f"pixel format {name}", "YUV or grey of 8 or 10 bits, with no alpha", _ENCODE)


def _check_size(path: Path, stream: VideoStream, limits: Limits) -> tuple[int, int]:
    """Width and height of a stream, held against the limits."""
    width, height = stream.width, stream.height
    context = stream.codec_context
    if width <= 0 or height <= 0:
        expected = f"a picture size in its header, up to {limits.max_pixels} pixels in all"
        _refuse(path, "no picture size that is allowed", expected, "Scale the video down, or encode it anew.")
    if max(width * height, context.coded_width * context.coded_height) > limits.max_pixels:
        got = f"{max(width, context.coded_width)}x{max(height, context.coded_height)} pixels"
        _refuse(path, got, f"up to {limits.max_pixels} in all", "Scale the video down.")
    if min(width, height) < LEAST_SIDE:
        _refuse(path, f"{width}x{height} pixels", f"sides of {LEAST_SIDE} or more", "Measure a larger rendition.")
    _check_pixels(path, stream.pix_fmt)
    return width, height


@contextlib.contextmanager
def _open(path: Path, limits: Limits, *, decoded: bool = True) -> Iterator[tuple[InputContainer, VideoStream, int]]:
    """The file, opened by Python so that no name ever reaches libavformat's protocols; closed on any exit."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            _refuse(path, "no regular file", "a local video file", "Give the path of a file.")
        if status.st_size > limits.max_bytes:
            _refuse(path, f"{status.st_size} bytes", f"up to {limits.max_bytes}", "Cut it into shorter files.")
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(
            field=path.name, got=str(path), expected="a local video file", next_step="Correct the path."
        ) from error
    except (OSError, ValueError) as error:
        _refuse(path, type(error).__name__, "a readable local file", "Correct the path, or its permissions.")
    with file:
        container = _container(path, file, limits, None if decoded else [{"skip_frame": "all"}] * _MOST_STREAMS)
        with container:
            stream = next((stream for stream in container.streams.video if not _is_cover(stream)), None)
            if stream is None:
                _refuse(path, "no video stream", "a file with a video stream", "Give the file that holds the pictures.")
            if getattr(stream, "codec_context", None) is None:  # PyAV leaves it out where it has no decoder
                _refuse(path, "a codec with no decoder here", "H.264, HEVC, AV1, VP9 or the like", _ENCODE)
            context = stream.codec_context
            context.options = {"max_pixels": str(limits.max_pixels), "err_detect": "explode"}
            context.thread_count = limits.threads
            context.thread_type = "AUTO"
            yield container, stream, status.st_size


def _container(path: Path, file: BinaryIO, limits: Limits, stream_options: list[Any] | None) -> InputContainer:
    claimed = re.match(rb"YUV4MPEG2 (?:[A-VX-Z]\S* )*W(\d{1,9}) H(\d{1,9})\s", file.read(200))
    if claimed is not None and int(claimed[1]) * int(claimed[2]) > limits.max_pixels:
        got = f"{int(claimed[1])}x{int(claimed[2])} pixels"
        _refuse(path, got, f"up to {limits.max_pixels} in all", "Scale the video down.")
    file.seek(0)
    try:
        return av.open(
            file, "r", io_open=_open_nothing, stream_options=stream_options,
            options={
                "format_whitelist": _FORMATS, "protocol_whitelist": "none", "codec_whitelist": _CODECS,
                "max_pixels": str(limits.max_pixels),
            },
        )  # fmt: skip
    except (FFmpegError, OSError, ValueError) as error:
        _refuse(
            path, f"no readable media ({type(error).__name__})",
            "a video in MP4, Matroska, WebM, MPEG-TS, Y4M or IVF (no playlist), whole", _ENCODE,
        )  # fmt: skip


def _open_nothing(url: str, *_: object) -> Any:
    raise PermissionError(url)


def _is_cover(stream: VideoStream) -> bool:
    return bool(int(stream.disposition) & int(type(stream.disposition).attached_pic))


def _claimed_bytes(path: Path, container: str) -> float:
    """How long a file's own structure says it is; 0 where it does not tell."""
    with path.open("rb") as file:
        if container.startswith("mov"):
            return _end_of_boxes(file, path.stat().st_size)
        if container.startswith("matroska"):
            return _end_of_segment(file)
        size = path.stat().st_size
        if container == "mpegts" and all(size % packet for packet in (188, 192, 204)):
            return size + 1
    return 0


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    end = 0
    while end < size:
        file.seek(end)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length == 0:  # up to the end of the file
            return size
        if length < 8:
            return end
        end += length
    return end


def _end_of_segment(file: BinaryIO) -> int:
    """End of the segment in a Matroska file (RFC 8794: element sizes of 1 to 8 bytes, all ones is unknown)."""
    for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        if file.read(4) != name:
            return 0
        head = file.read(1)
        width = 9 - head[0].bit_length() if head else 9
        if width > 8:
            return 0
        size = int.from_bytes(bytes([head[0] & (0xFF >> width)]) + file.read(width - 1), "big")
        if name == b"\x18\x53\x80\x67":
            return 0 if size == (1 << 7 * width) - 1 else file.tell() + size
        file.seek(size, 1)
    return 0


def _refuse(path: Path, got: str, expected: str, next_step: str) -> NoReturn:
    raise InvalidInput(field=path.name, got=got, expected=expected, next_step=next_step)
