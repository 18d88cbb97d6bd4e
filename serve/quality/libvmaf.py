"""libvmaf through ffmpeg: VMAF of aligned pairs by the C library, the fastest on a CPU.

The pairs are sent as raw video through pipes, so that libvmaf sees what the alignment made, and nothing else.
"""

import contextlib
import functools
import itertools
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput, Unavailable
from serve.quality.fusion import FEATURES
from serve.quality.pairing import Pair

Floats = NDArray[np.float64]

NAME: Final = "libvmaf"
_AHEAD: Final = 4
"""Frames that wait for ffmpeg at most."""

_NEUTRAL: Final = {8: 128, 10: 512}
_FORMATS: Final = {8: "yuv420p", 10: "yuv420p10le"}
_MOST_LOG_BYTES: Final = 1 << 30


@dataclass(frozen=True, kw_only=True, eq=False)
class LibvmafScores:
    """What libvmaf made of the pairs.

    Attributes:
        scores: VMAF of each (T,).
        features: in the order that was asked for (T, F).
        times_s: of each pair (T,).
        indices: of each pair (T,).
    """

    scores: Floats
    features: Floats
    times_s: Floats
    indices: NDArray[np.int64]


@functools.cache
def find_ffmpeg() -> str | None:
    """An ffmpeg with libvmaf: FFMPEG_BINARY of the environment, that of imageio-ffmpeg, or the PATH's; else None."""
    candidates = [os.environ.get("FFMPEG_BINARY"), _carried(), shutil.which("ffmpeg")]
    for candidate in candidates:
        if candidate and _has_libvmaf(candidate):
            return candidate
    return None


def _carried() -> str | None:
    try:
        import imageio_ffmpeg  # type: ignore[import-untyped]  # noqa: PLC0415

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


def _has_libvmaf(program: str) -> bool:
    try:
        answer = subprocess.run(
            [program, "-hide_banner", "-filters"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return " libvmaf " in answer.stdout


def score_pairs(
    pairs: Iterable[Pair], *, model: str, bit_depth: int, features: Sequence[str] = FEATURES, every: int = 1,
    threads: int = 1, deadline_s: float = 3600.0,
) -> LibvmafScores:  # fmt: skip
    """Score consecutive pairs.

    Args:
        pairs: in order, every one; at least one. All of one size. Where they have no chroma, libvmaf sees grey.
        model: a model that libvmaf has built in, such as `vmaf_v0.6.1`.
        bit_depth: 8 or 10, the greater of both clips.
        features: names of the model's features.
        every: score one pair in so many; motion is measured over all.
        threads: of libvmaf.
        deadline_s: seconds that the whole may take.

    Raises:
        Unavailable: no ffmpeg with libvmaf is there, it failed, or took too long.
        InvalidInput: there are no pairs.
    """
    program = find_ffmpeg()
    if program is None:
        raise Unavailable(
            field="ffmpeg", got="none with libvmaf", expected="imageio-ffmpeg, or FFMPEG_BINARY",
            next_step="pip install imageio-ffmpeg, or score with another backend.",
        )  # fmt: skip
    stream = iter(pairs)
    first = next(stream, None)
    if first is None:
        raise InvalidInput(field="pairs", got="none", expected="one or more", next_step="Give clips that overlap.")
    times: list[float] = []
    indices: list[int] = []

    def frames() -> Iterator[tuple[bytes, bytes]]:
        lines, columns = first.reference.shape
        chroma = np.full(2 * ((lines + 1) // 2) * ((columns + 1) // 2), _NEUTRAL[bit_depth], _dtype(bit_depth))
        neutral = chroma.tobytes()
        for pair in itertools.chain([first], stream):
            times.append(pair.time_s)
            indices.append(pair.index)
            colours = (pair.reference_chroma, pair.distorted_chroma)
            reference, distorted = (neutral if planes is None else _raw(planes, bit_depth) for planes in colours)
            yield _raw(pair.reference, bit_depth) + reference, _raw(pair.distorted, bit_depth) + distorted

    with tempfile.TemporaryDirectory(prefix="playhead-vmaf-") as folder:
        log = Path(folder) / "log.json"
        _run(program, frames(), first.reference.shape, model, bit_depth, every, threads, log, deadline_s)
        if log.stat().st_size > _MOST_LOG_BYTES:
            raise _failed(f"a log of {log.stat().st_size} bytes")
        rows = json.loads(log.read_text("utf-8"))["frames"]
    scored = [row for row in rows if "vmaf" in row["metrics"]]
    numbers = [row["frameNum"] for row in scored]
    return LibvmafScores(
        scores=np.array([row["metrics"]["vmaf"] for row in scored]),
        features=np.array([[_feature(row["metrics"], name) for name in features] for row in scored]),
        times_s=np.array(times)[numbers], indices=np.array(indices)[numbers],
    )  # fmt: skip


def _run(
    program: str, frames: Iterator[tuple[bytes, bytes]], shape: tuple[int, ...], model: str, bit_depth: int, every: int,
    threads: int, log: Path, deadline_s: float,
) -> None:  # fmt: skip
    """Feed ffmpeg both clips and wait for its log."""
    reads, writes = zip(*(os.pipe() for _ in range(2)), strict=True)
    raw = ["-f", "rawvideo", "-pix_fmt", _FORMATS[bit_depth], "-s", f"{shape[1]}x{shape[0]}", "-r", "25"]
    options = f"model=version={model}:log_fmt=json:log_path={log.name}:n_threads={threads}:n_subsample={every}"
    command = [
        program, "-v", "error", "-nostdin", *raw, "-i", f"pipe:{reads[1]}", *raw, "-i", f"pipe:{reads[0]}",
        "-lavfi", f"[0:v][1:v]libvmaf={options}", "-f", "null", "-",
    ]  # fmt: skip
    try:
        process = subprocess.Popen(
            command, pass_fds=reads, cwd=log.parent, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        for descriptor in writes:
            os.close(descriptor)
        raise _failed(str(error)) from error
    finally:
        for descriptor in reads:
            os.close(descriptor)
    timer = threading.Timer(deadline_s, process.kill)
    timer.daemon = True
    timer.start()
    try:
        with process:  # closes its pipes and waits for its end
            said = _feed(process, writes, frames)
        expired = not timer.is_alive()
    finally:
        timer.cancel()
        timer.join()
    if process.returncode != 0 or not log.is_file():
        why = f"no end within {deadline_s:g} s" if expired else said.decode(errors="replace").strip()[-400:]
        raise _failed(why or f"exit status {process.returncode}")


def _feed(
    process: subprocess.Popen[bytes], descriptors: Sequence[int], frames: Iterator[tuple[bytes, bytes]]
) -> bytes:  # fmt: skip
    """Send all frames and wait for the end; what ffmpeg said. It is killed where the frames break off."""
    writers = [_Writer(descriptor) for descriptor in descriptors]
    try:
        for both in frames:
            for writer, frame in zip(writers, both, strict=True):
                writer.put(frame)
        for writer in writers:
            writer.finish()
        return process.communicate()[1]
    finally:
        if process.poll() is None:
            process.kill()
        for writer in writers:
            writer.abandon()


class _Writer:
    """Writes frames into a pipe from a thread of its own: ffmpeg reads its inputs in an order of its own."""

    def __init__(self, descriptor: int) -> None:
        self._frames: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._write, args=(descriptor,), daemon=True)
        self._gone = threading.Event()
        self._thread.start()

    def put(self, frame: bytes) -> None:
        """Wait for room; where ffmpeg has gone, the frame is dropped."""
        self._offer(frame)

    def finish(self) -> None:
        """No more frames come; wait for the rest to be read."""
        self._offer(None)
        self._thread.join()

    def abandon(self) -> None:
        """Drop what waits; ffmpeg has ended."""
        self._gone.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._frames.get_nowait()
        with contextlib.suppress(queue.Full):
            self._frames.put_nowait(None)
        self._thread.join()

    def _offer(self, frame: bytes | None) -> None:
        while not self._gone.is_set():
            with contextlib.suppress(queue.Full):
                self._frames.put(frame, timeout=0.2)
                return

    def _write(self, descriptor: int) -> None:
        with contextlib.suppress(BrokenPipeError), open(descriptor, "wb", buffering=0) as pipe:
            while (frame := self._frames.get()) is not None:
                left = memoryview(frame)
                while left:
                    left = left[pipe.write(left) :]
        self._gone.set()


def _dtype(bit_depth: int) -> type[np.uint8 | np.uint16]:
    return np.uint8 if bit_depth == 8 else np.uint16


def _raw(samples: NDArray[np.float32], bit_depth: int) -> bytes:
    return np.rint(samples * (1 if bit_depth == 8 else 4)).astype(_dtype(bit_depth)).tobytes()


def _feature(metrics: dict[str, Any], name: str) -> float:
    """A feature of a log's row; models name theirs with their options behind."""
    keys: Sequence[str] = [key for key in metrics if f"{key.removeprefix('integer_')}_".startswith(f"{name}_")]
    return float(metrics[keys[0]]) if keys else float("nan")


def _failed(why: str) -> Unavailable:
    return Unavailable(
        field="libvmaf", got=why, expected="scores", next_step="Look at the clips, or score with another backend."
    )
