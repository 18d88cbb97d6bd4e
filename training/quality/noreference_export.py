"""The models without reference as one artifact, with the contract that serving relies on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from serve.artifacts import Artifact, Lineage
from serve.quality.bitstream import CODECS, FEATURES, BitstreamFacts, features
from serve.quality.sampling import FACTS, GRID, HIGHEST_LUMA, PAIRS, PATCHES, SIDE, SPAN, resolution_facts, sample_clip
from serve.tensors import GraphSpec, TensorSpec
from training.export import ExportGraph, export_artifact
from training.quality.calibration import COVERAGE
from training.quality.noreference import LEVELS, BitstreamQuality, FrameQuality
from training.quality.validation import BITSTREAM, BOTH, CURVE, FRAMES, MODELS, Validation

NAME: Final = "quality"
BITSTREAM_GRAPH: Final = "bitstream"
FRAMES_GRAPH: Final = "frames"
LARGEST_BATCH: Final = 1024
"""Of the bitstream graph."""
MOST_CLIPS: Final = 32
"""Of a batch of the frames graph: a segment's patches take 1 MiB."""

_TOLERANCE: Final = 1e-3


def bitstream_spec() -> GraphSpec:
    """Inputs, outputs and limits of the bitstream graph."""
    return GraphSpec(
        inputs=(TensorSpec("features", "float32", ("B", len(FEATURES)), low=-64.0, high=64.0),),
        outputs=(TensorSpec("quantiles", "float32", ("B", len(LEVELS)), low=0.0, high=100.0),),
        limits={"B": (1, LARGEST_BATCH)},
        tolerance=_TOLERANCE,
    )


def frames_spec() -> GraphSpec:
    """Inputs, outputs and limits of the frames graph."""
    return GraphSpec(
        inputs=(
            TensorSpec("patches", "float32", ("B", PATCHES, 2, SIDE, SIDE), low=0.0, high=HIGHEST_LUMA),
            TensorSpec("facts", "float32", ("B", len(FACTS)), low=-16.0, high=16.0),
        ),
        outputs=(TensorSpec("quantiles", "float32", ("B", len(LEVELS)), low=0.0, high=100.0),),
        limits={"B": (1, MOST_CLIPS)},
        tolerance=_TOLERANCE,
    )


def example_features(batch: int = 6) -> dict[str, np.ndarray]:
    """Inputs of the bitstream graph: segments of each codec, every third without frame sizes."""
    random = np.random.default_rng(5)
    segments = []
    for row in range(batch):
        sizes = (random.gamma(2.0, 900.0, 50) + 60).astype(np.int64)
        sizes[0] *= 12
        kinds = random.integers(1, 3, 50).astype(np.int8)
        kinds[0] = 0
        facts = BitstreamFacts(
            codec=CODECS[row % len(CODECS)], width=640, height=360, display_height=360 * (1 + row % 3), fps=25.0,
            duration_s=2.0, size_bytes=int(sizes.sum()), frame_bytes=sizes, frame_kinds=kinds,
        )  # fmt: skip
        segments.append(facts.without_frames() if row % 3 == 2 else facts)
    return {"features": features(segments)}


def example_patches(batch: int = 3) -> dict[str, np.ndarray]:
    """Inputs of the frames graph: moving plaids with grain, each coarser than the one before."""
    random = np.random.default_rng(6)
    y, x = np.mgrid[:180, :320]
    clips, facts = [], []
    for row in range(batch):
        waves = [128 + 50 * np.sin((x + 2 * frame) / (4 + row)) + 30 * np.cos((y - frame) / 9) for frame in range(12)]
        clip = np.round((np.stack(waves) + random.normal(0, 4, (12, 180, 320))) / (1 + 4 * row)) * (1 + 4 * row)
        clips.append(sample_clip(clip.clip(0, 255), 25.0))
        rate = None if row % 3 == 2 else 0.1 / (row + 1)
        facts.append(resolution_facts(180, 180 * (row + 1), 25.0, bits_per_pixel=rate))
    return {"patches": np.stack(clips), "facts": np.stack(facts)}


def export_quality(
    destination: Path,
    bitstream: BitstreamQuality,
    frames: FrameQuality,
    validation: Validation,
    *,
    report: Mapping[str, Any],
    data_snapshot: str,
    seed: int,
    lineage: Lineage | None = None,
) -> Artifact:
    """Write `destination/<version>`.

    The manifest's parameters tell a host all it needs: `features` and `facts` are the columns, `widths` what both ends
    of each interval move outward by (bitstream_size where frame sizes are unknown, frames_alone where the rate is), and
    `use_both` whether the mean of both graphs' quantiles was better than each on held-out content.

    Args:
        destination: folder of the model's versions.
        bitstream: the fitted bitstream model.
        frames: the fitted frame model.
        validation: what held-out content showed.
        report: what was learned from.
        data_snapshot: names the training data.
        seed: the seed of the run.
        lineage: what the version comes from, besides.

    Raises:
        ArtifactError: a graph can't be exported, or an engine's answers are not torch's.
    """
    mae = {model: validation.table[model]["all"]["mae"] for model in (BITSTREAM, FRAMES, BOTH)}
    return export_artifact(
        destination,
        name=NAME,
        graphs={
            BITSTREAM_GRAPH: ExportGraph(module=bitstream, example=example_features(), spec=bitstream_spec()),
            FRAMES_GRAPH: ExportGraph(module=frames, example=example_patches(), spec=frames_spec()),
        },
        tables={},
        parameters={
            "target": "vmaf_v0.6.1, mean of a segment, scaled to the source's size with bicubic",
            "features": list(FEATURES),
            "facts": list(FACTS),
            "codecs": list(CODECS),
            "sampling": {"pairs": PAIRS, "span": SPAN, "grid": list(GRID), "side": SIDE},
            "levels": list(LEVELS),
            "coverage": COVERAGE,
            "widths": {model: round(validation.widths[model], 3) for model in MODELS if model != CURVE},
            "use_both": mae[BOTH] < min(mae[BITSTREAM], mae[FRAMES]),
            "training": dict(report),
            "seed": seed,
        },
        metrics=validation.metrics(),
        data_snapshot=data_snapshot,
        lineage=lineage,
    )
