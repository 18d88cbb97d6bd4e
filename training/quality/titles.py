"""A title's renditions, measured segment by segment: what bitrate decisions read of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from features.renditions import Rendition
from serve.errors import InvalidInput, NotFound
from serve.quality.bitstream import BitstreamFacts, read_segments
from serve.quality.scorer import DEFAULT_MODEL, FullReferenceScorer, Quality
from training.quality.sources import SUFFIXES


def find_renditions(folder: Path, reference: Path) -> list[Path]:
    """Video files of a folder, by name, without the reference.

    Raises:
        NotFound: there is none.
    """
    found = sorted(
        path
        for path in folder.glob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and path.resolve() != reference.resolve()
    )
    if not found:
        raise NotFound(
            field=str(folder), got="no renditions", expected=f"files ending in {', '.join(SUFFIXES)}",
            next_step="Name the folder that holds the title's renditions.",
        )  # fmt: skip
    return found


def measure_title(
    scorer: FullReferenceScorer, reference: Path, files: Sequence[Path], *, segment_s: float = 4.0,
    model: str = DEFAULT_MODEL, every: int = 1, told: Callable[[str], None] = lambda _: None,
) -> list[Rendition]:  # fmt: skip
    """Measure the renditions of a title.

    Args:
        scorer: scores them.
        reference: what they were encoded from.
        files: one rendition each.
        segment_s: length of a segment; each begins with a key frame.
        model: VMAF model.
        every: score one frame in so many.
        told: called with what is done, in words.

    Returns:
        One rung each, in the order of `files`: bitrate kbit/s, bytes and mean VMAF of each segment.

    Raises:
        InvalidInput: a file can't be measured (see FullReferenceScorer.score), its segments are not of segment_s, or
            a segment has no scored frame.
    """
    renditions = []
    for path in files:
        segments = read_segments(path, segment_s=segment_s)
        _check_lengths(path, segments, segment_s)
        quality = scorer.score(reference, path, model=model, every=every)
        renditions.append(_rendition(path, segments, quality, segment_s))
        told(f"{path.name}: {quality.pooled.mean:.2f}")
    return renditions


def _rendition(path: Path, segments: Sequence[BitstreamFacts], quality: Quality, segment_s: float) -> Rendition:
    ends = np.cumsum([segment.duration_s for segment in segments])
    shown_s = quality.times_s - quality.alignment.late_s + 1e-6  # in the rendition's own time
    place = np.searchsorted(ends, shown_s, side="right").clip(max=len(segments) - 1)
    counts = np.bincount(place, minlength=len(segments))
    if not counts.all():
        raise InvalidInput(
            field=path.name, got=f"no scored frame in segment {int(counts.argmin())}", expected="one or more in each",
            next_step="Score more frames, or give a reference as long as the rendition.",
        )  # fmt: skip
    sums = np.bincount(place, weights=quality.scores, minlength=len(segments))
    total_bytes, total_s = sum(segment.size_bytes for segment in segments), float(ends[-1])
    return Rendition(
        bitrate_kbps=round(total_bytes * 8 / 1000 / total_s, 3), segment_s=segment_s,
        sizes_bytes=[segment.size_bytes for segment in segments], vmaf=[float(value) for value in sums / counts],
    )  # fmt: skip


def _check_lengths(path: Path, segments: Sequence[BitstreamFacts], segment_s: float) -> None:
    """Each segment but the last must be `segment_s` long, to half a frame or so."""
    for place, segment in enumerate(segments[:-1]):
        if abs(segment.duration_s - segment_s) > 1.5 / segment.fps:
            raise InvalidInput(
                field=path.name, got=f"segment {place} of {segment.duration_s:.3f} s", expected=f"{segment_s:g} s each",
                next_step="Give --segment-s, or encode with a key frame at the start of each segment.",
            )  # fmt: skip
