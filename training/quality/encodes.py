"""Labelled segments: sources encoded with each codec over a ladder, scored by libvmaf, read and sampled.

Each segment is kept under a hash of what made it, so a run that was killed goes on where it stopped. At any time a
worker holds one source, one rendition and one log on disk.
"""

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import av
import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from serve.quality.bitstream import BitstreamFacts, read_facts
from serve.quality.sampling import PATCHES, SIDE, sample_stream
from training.quality.sources import Kind, Source, run_ffmpeg
from training.recommend.progress import ProgressReport, silent

HEIGHTS: Final = (96, 144, 180, 240, 288, 360, 480, 540, 720, 1080)
"""Of renditions, as far as the source has them; the source's own height belongs to them too."""
MOST_ENLARGED: Final = 4.0
"""Renditions are scaled up by at most that."""
CRF: Final = {"h264": (17, 46), "hevc": (18, 46), "av1": (20, 62), "vp9": (18, 60)}
"""Constant rate factors of each codec, from best to worst."""
BITS_PER_PIXEL: Final = (0.01, 0.4)
"""Of renditions with a bitrate instead, at 25 frames a second; drawn evenly over logarithms."""
ENCODES: Final = 6
"""Of a source."""

_VERSION: Final = 1
"""Raise it when segments are made otherwise."""
_LABELS: Final = "vmaf.json"


@dataclass(frozen=True, kw_only=True)
class Encode:
    """How a rendition is made.

    Attributes:
        codec: one of CODECS.
        width: pixels, even.
        height: lines, even.
        crf: constant rate factor; None: a bitrate.
        kbps: bitrate where there is no factor.
        key_s: seconds between key frames.
        preset: of the encoder, 0 (fast) or 1 (slower).
    """

    codec: str
    width: int
    height: int
    crf: int | None
    kbps: float | None
    key_s: float
    preset: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A labelled segment.

    Attributes:
        source: name of its source.
        group: content group.
        kind: of the source.
        encode: how it was made.
        facts: of its bitstream.
        patches: what the frame model sees of it uint8 (N, 2, P, P).
        vmaf: mean over its frames, VMAF v0.6.1, 0 to 100.
        frame_vmaf: of each frame float32 (T,).
    """

    source: str
    group: str
    kind: Kind
    encode: Encode
    facts: BitstreamFacts
    patches: NDArray[np.uint8]
    vmaf: float
    frame_vmaf: NDArray[np.float32]


def ladder(source: Source, *, count: int = ENCODES, seed: int = 0) -> list[Encode]:
    """Renditions of a source, drawn: codecs in turn, heights and qualities spread evenly.

    Args:
        source: the source.
        count: how many.
        seed: of the draw, with the source's name.
    """
    digest = hashlib.sha256(f"{source.name}/{seed}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    least = max(source.height / MOST_ENLARGED, SIDE, SIDE * source.height / source.width)
    heights = [height for height in HEIGHTS if least <= height < source.height] + [source.height]
    codecs = list(CRF)
    turn = int(random.integers(len(codecs)))
    qualities = (random.permutation(count) + random.uniform(0, 1, count)) / count
    shares = (random.permutation(count) + random.uniform(0, 1, count)) / count
    encodes = []
    for place in range(count):
        codec = codecs[(turn + place) % len(codecs)]
        height = heights[int(len(heights) * shares[place] ** 0.7)]
        width = round(source.width * height / source.height / 2) * 2
        best, worst = CRF[codec]
        by_rate = random.random() < 0.3
        low, high = np.log(BITS_PER_PIXEL)
        rate = width * height * source.fps**0.5 * 5 / 1000 * float(np.exp(high + (low - high) * qualities[place]))
        encodes.append(
            Encode(
                codec=codec, width=width, height=height // 2 * 2,
                crf=None if by_rate else round(best + (worst - best) * qualities[place]),
                kbps=round(rate, 1) if by_rate else None,
                key_s=1.0 if random.random() < 0.25 else 10.0, preset=int(random.random() < 0.3),
            )
        )  # fmt: skip
    return encodes


def encoder_arguments(encode: Encode, fps: float) -> list[str]:
    """Options of ffmpeg for a rendition."""
    fast = encode.preset == 0
    library = {
        "h264": ["libx264", "-preset", "veryfast" if fast else "medium"],
        "hevc": ["libx265", "-preset", "ultrafast" if fast else "veryfast",
                 "-x265-params", "log-level=none:pools=none:frame-threads=1"],
        "av1": ["libsvtav1", "-preset", "11" if fast else "9"],
        "vp9": ["libvpx-vp9", "-deadline", "realtime" if fast else "good", "-cpu-used", "7" if fast else "5"],
    }[encode.codec]  # fmt: skip
    if encode.codec == "av1":
        library += ["-svtav1-params", "lp=1"]
    if encode.crf is not None:
        rate = ["-crf", str(encode.crf)] + (["-b:v", "0"] if encode.codec == "vp9" else [])
    else:
        rate = ["-b:v", f"{encode.kbps}k"]
        if encode.codec in {"h264", "hevc"}:
            rate += ["-maxrate", f"{1.5 * (encode.kbps or 0)}k", "-bufsize", f"{2 * (encode.kbps or 0)}k"]
    return [
        "-c:v",
        *library,
        *rate,
        "-g",
        str(max(2, round(encode.key_s * fps))),
        "-pix_fmt",
        "yuv420p",
        "-threads",
        "1",
    ]


def make_segments(
    sources: Sequence[Source],
    cache: Path,
    *,
    count: int = ENCODES,
    seed: int = 0,
    workers: int = 1,
    progress: ProgressReport = silent,
) -> list[Segment]:
    """Encode, label, read and sample each source's ladder; what is in the cache is taken from there.

    Args:
        sources: at least one.
        cache: folder of finished segments and of what is temporary.
        count: renditions of a source.
        seed: of the ladders.
        workers: sources at a time, a thread and a core each.
        progress: told after each segment.

    Raises:
        FfmpegError: a call failed or took too long.
    """
    cache.mkdir(parents=True, exist_ok=True)
    total, done, lock = len(sources) * count, 0, threading.Lock()

    def tell(name: str) -> None:
        nonlocal done
        with lock:
            done += 1
            progress("encode and label", done, total, name)

    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(_of_source, source, cache, count, seed, tell) for source in sources]
        try:
            return [segment for job in jobs for segment in job.result()]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _of_source(source: Source, cache: Path, count: int, seed: int, tell: Callable[[str], None]) -> list[Segment]:
    """The segments of one source; the source is written only where one is missing."""
    segments = []
    with tempfile.TemporaryDirectory(prefix=".encode-", dir=cache) as temporary:
        folder = Path(temporary)
        pristine = folder / "source.mp4"
        for encode in ladder(source, count=count, seed=seed):
            kept = cache / f"{_key(source, encode)}.npz"
            found = _load(kept, source, encode)
            if found is None:
                if not pristine.exists():
                    source.write(pristine)
                found = _make(source, encode, pristine, folder)
                _store(kept, found)
            segments.append(found)
            tell(source.name)
    return segments


def _key(source: Source, encode: Encode) -> str:
    content = [_VERSION, source.identity, source.width, source.height, source.fps, asdict(encode), PATCHES, SIDE,
               imageio_ffmpeg.get_ffmpeg_version()]  # fmt: skip
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _make(source: Source, encode: Encode, pristine: Path, folder: Path) -> Segment:
    rendition = folder / "rendition.mp4"
    run_ffmpeg(
        ["-i", str(pristine), "-vf", f"scale={encode.width}:{encode.height}:flags=bicubic,setsar=1",
         *encoder_arguments(encode, source.fps), str(rendition)],
        folder=folder,
    )  # fmt: skip
    scores = label(rendition, pristine, source, folder)
    facts = read_facts(rendition, source.height)
    patches = sample_stream(decode(rendition), facts.duration_s)
    rendition.unlink()
    return Segment(
        source=source.name, group=source.group, kind=source.kind, encode=encode, facts=facts,
        patches=patches.astype(np.uint8), vmaf=float(scores.mean()), frame_vmaf=scores,
    )  # fmt: skip


def label(rendition: Path, pristine: Path, source: Source, folder: Path) -> NDArray[np.float32]:
    """VMAF v0.6.1 of each frame float32 (T,): the rendition scaled up to the source's size (bicubic), against it.

    Args:
        rendition: the encoded file.
        pristine: the source's file.
        source: the source.
        folder: where the log is written and read.

    Raises:
        FfmpegError: libvmaf failed or took too long.
    """
    clock = "settb=AVTB,setpts=PTS-STARTPTS"
    graph = (
        f"[0:v]{clock},scale={source.width}:{source.height}:flags=bicubic[rendition];[1:v]{clock}[source];"
        f"[rendition][source]libvmaf=model=version=vmaf_v0.6.1:ts_sync_mode=nearest:n_threads=1:log_fmt=json:"
        f"log_path={_LABELS}"
    )
    run_ffmpeg(["-i", str(rendition), "-i", str(pristine), "-lavfi", graph, "-f", "null", "-"], folder=folder)
    frames = json.loads((folder / _LABELS).read_text("utf-8"))["frames"]
    return np.array([frame["metrics"]["vmaf"] for frame in frames], np.float32)


def decode(path: Path) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Frames of an 8-bit file made here: (seconds from the start, luma (H, W))."""
    with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        start: float | None = None
        for frame in container.decode(stream):
            time_s = float(frame.time or 0.0)
            start = time_s if start is None else start
            plane = frame.planes[0]
            lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            yield time_s - start, lines[: frame.height, : frame.width].copy()


def _store(path: Path, segment: Segment) -> None:
    """Write a segment, whole or not at all."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    facts: dict[str, Any] = {
        name: value for name, value in vars(segment.facts).items() if not name.startswith("frame_")
    }
    with fresh.open("wb") as file:
        np.savez_compressed(
            file, allow_pickle=False, facts=np.array(json.dumps(facts)), frame_bytes=segment.facts.frame_bytes,
            frame_kinds=segment.facts.frame_kinds, patches=segment.patches, frame_vmaf=segment.frame_vmaf,
        )  # fmt: skip
    fresh.replace(path)


def _load(path: Path, source: Source, encode: Encode) -> Segment | None:
    """A stored segment; None: it is not there, or damaged."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            facts = BitstreamFacts(
                **json.loads(str(content["facts"])), frame_bytes=content["frame_bytes"],
                frame_kinds=content["frame_kinds"],
            )  # fmt: skip
            scores = content["frame_vmaf"]
            return Segment(
                source=source.name, group=source.group, kind=source.kind, encode=encode, facts=facts,
                patches=content["patches"], vmaf=float(scores.mean()), frame_vmaf=scores,
            )  # fmt: skip
    except Exception:  # noqa: BLE001 - numpy and zipfile raise whatever a damaged file makes them raise
        path.unlink(missing_ok=True)
        return None
