"""The gate of the quality models without reference: error against libvmaf on clips that neither version saw.

The clips are drawn with a seed that no training takes; clips that do not depend on the seed are left out, since they
were learned from. Encodes and labels take minutes the first time and are cached. Errors are points of VMAF.
Shapes: B segments, Q quantiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from serve.artifacts import Artifact
from serve.engines import load_engine
from serve.errors import ArtifactError
from serve.quality.bitstream import features
from serve.quality.estimates import intervals
from serve.quality.sampling import resolution_facts
from training.gates.hearing import Hearing
from training.gates.intervals import Floats, codes_of
from training.gates.noninferiority import Margin, is_better, judge
from training.gates.soundness import (
    check_changed,
    check_graphs,
    check_lineage,
    check_size,
    time_turns,
)
from training.gates.verdict import Check, Verdict
from training.quality.encodes import Segment, make_segments
from training.quality.noreference_export import BITSTREAM_GRAPH, FRAMES_GRAPH, MOST_CLIPS
from training.quality.scenes import SCENES, drawn_scenes, generated_sources
from training.quality.sources import Source
from training.recommend.progress import ProgressReport, silent

SEED: Final = 2**20
"""Of the held-out clips."""
LEAST_CLIPS: Final = 8
"""Of a class of content; there are too few clips for more."""


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """What is asked of the quality models; points of VMAF.

    Attributes:
        clips: that are drawn.
        encodes: of each clip.
        error: margins of the mean absolute error.
        coverage: that intervals may hold less of the scores than the champion's, 0 to 1.
        timed: estimates that are timed.
        seed: of the bootstrap.
    """

    clips: int = 36
    encodes: int = 4
    error: Margin = field(default_factory=lambda: Margin(overall=0.5, slices=2.0, relative=False, others=0.5))
    coverage: float = 0.1
    timed: int = 200
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Estimates:
    """Quantiles of both graphs, and whether intervals hold the score."""

    bitstream: Floats
    frames: Floats
    covered: Floats


def gate_quality(
    candidate: Artifact,
    champion: Artifact,
    *,
    cache: Path,
    settings: QualitySettings | None = None,
    segments: Sequence[Segment] | None = None,
    progress: ProgressReport = silent,
) -> Verdict:
    """Ask whether quality models may go on.

    Args:
        candidate: the artifact.
        champion: the artifact that it would replace.
        cache: folder of labelled segments.
        settings: what is asked.
        segments: labelled segments that neither version was fitted to; None: they are made, or read from the cache.
        progress: told after each segment that is made.

    Raises:
        ArtifactError: the champion can't be served.
        FfmpegError: an encode failed or took too long.
    """
    settings = settings or QualitySettings()
    checks = [check_lineage(candidate, timed=False), *check_graphs(candidate), check_size(candidate, champion)]
    facts: dict[str, Any] = {"clips_seed": SEED}
    hearing = Hearing(candidate=candidate, champion=champion, checks=checks, facts=facts)

    if not hearing.is_sound:
        return hearing.verdict()
    if segments is None:
        sources = held_out_sources(settings.clips, [candidate, champion])
        segments = make_segments(sources, cache, count=settings.encodes, seed=SEED, progress=progress)
    facts |= {"segments": len(segments), "clips": len({one.source for one in segments})}
    try:
        ours = _estimate(candidate, segments)
    except ArtifactError as error:
        return hearing.refused("serving", error)
    theirs = _estimate(champion, segments)
    same = np.array_equal(ours.bitstream, theirs.bitstream) and np.array_equal(ours.frames, theirs.frames)
    checks.append(check_changed(candidate, champion, same_answers=same))
    truth = np.array([one.vmaf for one in segments], np.float64)

    def closeness(quantiles: Floats) -> Floats:
        near: Floats = -np.abs(quantiles[:, 1] - truth)
        return near

    compared, comparisons = judge(
        "closeness", closeness(ours.bitstream), closeness(theirs.bitstream), codes_of([one.source for one in segments]),
        _slices(segments), settings.error, unit="clips", least=LEAST_CLIPS,
        others={"closeness of frames": (closeness(ours.frames), closeness(theirs.frames))},
    )  # fmt: skip
    covered = float(ours.covered.mean()), float(theirs.covered.mean())
    checks += [
        *compared,
        Check(
            name="coverage", passed=covered[0] >= covered[1] - settings.coverage, measured=covered[0],
            bound=covered[1] - settings.coverage,
            text=f"{covered[0]:.1%} of the intervals hold the score, the champion's {covered[1]:.1%}",
        ),
    ]  # fmt: skip
    seconds = _time(candidate, champion, segments, settings)
    hearing.time(*seconds, settings.seed)
    return hearing.verdict(
        comparisons=tuple(comparisons), better=not same and is_better(comparisons[0]),
    )  # fmt: skip


def held_out_sources(count: int, versions: Sequence[Artifact]) -> list[Source]:
    """Generated clips that none of the versions' trainings could draw.

    Args:
        count: the most.
        versions: whose seeds' clips are left out.
    """
    learned = set()
    for version in versions:
        seed = version.manifest.parameters.get("seed")
        learned |= {source.identity for source in generated_sources(seed if isinstance(seed, int) else 0)}
    fresh = [source for source in generated_sources(SEED) if source.identity not in learned]
    places = np.linspace(0, len(fresh) - 1, min(count, len(fresh))).round().astype(int)
    return [fresh[place] for place in places]


def _estimate(artifact: Artifact, segments: Sequence[Segment]) -> _Estimates:
    """What a version says of segments."""
    bitstream = load_engine(artifact, BITSTREAM_GRAPH, "cpu")
    frames = load_engine(artifact, FRAMES_GRAPH, "cpu", batches=(1,))
    said = bitstream({"features": features([one.facts for one in segments])})["quantiles"].astype(np.float64)
    parts = []
    for start in range(0, len(segments), MOST_CLIPS):
        part = segments[start : start + MOST_CLIPS]
        patches = np.stack([one.patches for one in part]).astype(np.float32)
        facts = np.stack([
            resolution_facts(
                one.facts.height, one.facts.display_height, one.facts.fps, bits_per_pixel=one.facts.bits_per_pixel
            )
            for one in part
        ])  # fmt: skip
        parts.append(frames({"patches": patches, "facts": facts})["quantiles"])
    widths: Any = artifact.manifest.parameters.get("widths")
    width = float(widths["bitstream"]) if isinstance(widths, dict) and "bitstream" in widths else 0.0
    low, high = intervals(said, np.full(len(said), width))
    truth = np.array([one.vmaf for one in segments])
    covered = ((low <= truth) & (truth <= high)).astype(np.float64)
    return _Estimates(bitstream=said, frames=np.concatenate(parts).astype(np.float64), covered=covered)


def _slices(segments: Sequence[Segment]) -> dict[str, np.ndarray]:
    """Classes of content (what the scene's ground is) and codecs."""
    grounds = {scene.name: scene.ground for scene in (*SCENES, *drawn_scenes(SEED))}
    content = np.array([grounds.get(one.source, "other") for one in segments])
    codecs = np.array([one.encode.codec for one in segments])
    return {f"content {name}": content == name for name in sorted(set(content.tolist()))} | {
        f"codec {name}": codecs == name for name in sorted(set(codecs.tolist()))
    }


def _time(
    candidate: Artifact, champion: Artifact, segments: Sequence[Segment], settings: QualitySettings
) -> tuple[Floats, Floats]:
    """Seconds of single estimates by the bitstream graph, the one that live telemetry asks."""
    mine, other = (load_engine(artifact, BITSTREAM_GRAPH, "cpu") for artifact in (candidate, champion))
    rows = features([one.facts for one in segments])
    places = np.random.default_rng(settings.seed).integers(0, len(rows), settings.timed).tolist()
    return time_turns(
        lambda place: mine({"features": rows[place : place + 1]}),
        lambda place: other({"features": rows[place : place + 1]}),
        places,
    )
