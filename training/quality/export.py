"""VMAF as an artifact: the features graph of each gain limit, and the published models' parameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from serve.artifacts import Artifact
from serve.quality.fusion import FEATURES, Fusion
from serve.quality.media import LEAST_SIDE
from serve.quality.sampling import HIGHEST_LUMA
from serve.tensors import GraphSpec, TensorSpec
from training.export import ExportGraph, export_artifact
from training.quality.published import SERVED, read_published
from training.quality.vmaf import VmafFeatures

NAME: Final = "vmaf"
MOST_LINES: Final = 2160
MOST_COLUMNS: Final = 4096
MOST_ROWS: Final = 16

_BUCKETS: Final = ((MOST_ROWS, 576, 1024), (8, 1088, 1920), (2, MOST_LINES, MOST_COLUMNS))
"""Rows, lines and columns that occur together: a GPU sets memory aside for the largest of a bucket."""


def graph_spec() -> GraphSpec:
    """Inputs, outputs and limits of a features graph."""
    frame = ("B", "H", "W")
    return GraphSpec(
        inputs=tuple(
            TensorSpec(name, "float32", frame, low=0.0, high=HIGHEST_LUMA)
            for name in ("reference", "distorted", "before", "after")
        ),
        outputs=(TensorSpec("features", "float32", ("B", len(FEATURES))),),
        limits={"B": (1, MOST_ROWS), "H": (LEAST_SIDE, MOST_LINES), "W": (LEAST_SIDE, MOST_COLUMNS)},
        tolerance=3e-4,
        buckets=tuple(
            {"B": (1, rows, rows), "H": (LEAST_SIDE, lines, lines), "W": (LEAST_SIDE, columns, columns)}
            for rows, lines, columns in _BUCKETS
        ),
    )  # fmt: skip


def example_frames(rows: int = 2, lines: int = 98, columns: int = 131) -> dict[str, np.ndarray]:
    """Moving plaids with grain, and a coarser copy of them, as the inputs of a features graph."""
    random = np.random.default_rng(7)
    y, x = np.mgrid[:lines, :columns]
    waves = [128 + 60 * np.sin(x / 3 + row) + 40 * np.cos((y + row) / 11) for row in range(rows + 2)]
    clip = np.stack(waves) + random.normal(0, 6, (rows + 2, lines, columns))
    clip = np.round(clip.clip(0, 255) * 4) / 4
    reference = clip[1:-1]
    distorted = (np.round(reference / 12) * 12 + random.integers(-1, 2, reference.shape)).clip(0, 255)
    frames = {"reference": reference, "distorted": distorted, "before": clip[:-2], "after": clip[2:]}
    return {name: array.astype(np.float32) for name, array in frames.items()}


def graph_name(fusion: Fusion) -> str | None:
    """Of the graph that makes a model's features; None where there is none."""
    return None if fusion.needs_chroma else f"features_{fusion.gain_limit:g}"


def export_vmaf(destination: Path, models: Sequence[str | Path] = SERVED) -> Artifact:
    """Write `destination/<version>`.

    Args:
        destination: folder of the artifact's versions.
        models: published names, or JSON files of that form.

    Raises:
        NotFound, InvalidInput: as read_published.
        ArtifactError: an engine's answers are not torch's.
    """
    fusions = [read_published(model) for model in models]
    graphs = {
        name: ExportGraph(module=VmafFeatures(fusion.gain_limit), example=example_frames(), spec=graph_spec())
        for fusion in fusions
        if (name := graph_name(fusion)) is not None
    }
    return export_artifact(
        destination, name=NAME, graphs=graphs, tables={}, metrics={},
        parameters={
            "models": {fusion.name: fusion.parameters() | {"graph": graph_name(fusion)} for fusion in fusions}
        },
    )  # fmt: skip
