"""The trained policy as an artifact, with the contract that serving relies on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from serve.artifacts import Artifact, Lineage
from serve.bitrate.observations import RUNGS, SHAPES, Observations
from serve.tensors import GraphSpec, TensorSpec
from training.bitrate.model import QUANTILES, BitratePolicy
from training.bitrate.qoe import LINEAR, PERCEPTUAL
from training.bitrate.simulator import Sessions, Settings
from training.bitrate.synthetic import generate_traces, generate_videos
from training.export import ExportGraph, export_artifact

NAME: Final = "bitrate"
GRAPH: Final = "policy"
LARGEST_BATCH: Final = 1024


def graph_spec() -> GraphSpec:
    """Inputs, outputs and limits of the policy graph."""
    return GraphSpec(
        inputs=tuple(TensorSpec(name, "float32", ("B", *shape)) for name, shape in SHAPES.items()),
        outputs=(
            TensorSpec("scores", "float32", ("B", RUNGS)),
            TensorSpec("throughput_quantiles_kbps", "float32", ("B", len(QUANTILES))),
            TensorSpec("rebuffer_probability", "float32", ("B", RUNGS), low=-1e-3, high=1 + 1e-3),
        ),
        limits={"B": (1, LARGEST_BATCH)},
        tolerance=1e-3,
    )


def example_observations(batch: int = 6, steps: int = 5) -> Observations:
    """Sessions of generated titles and traces, each a few segments further than the one before."""
    sessions = Sessions(
        generate_traces(batch, seed=1), generate_videos(batch, seed=2), [LINEAR, PERCEPTUAL],
        Settings(first_rung=None, prior_std=0.5),
    )  # fmt: skip
    seen = sessions.observe()
    for step in range(steps):
        sessions.step(np.full(batch, step % 2))
        later = sessions.observe()
        for name, array in later.as_inputs().items():
            getattr(seen, name)[step + 1 :] = array[step + 1 :]
    return seen


def export_bitrate(
    destination: Path,
    policy: BitratePolicy,
    *,
    metrics: Mapping[str, float],
    report: Mapping[str, Any],
    data_snapshot: str,
    seed: int,
    lineage: Lineage | None = None,
) -> Artifact:
    """Write `destination/<version>`.

    Args:
        destination: folder of the model's versions.
        policy: the policy.
        metrics: what was measured.
        report: how the fit went.
        data_snapshot: names the training data.
        seed: the seed of the run.
        lineage: what the version comes from, besides.

    Raises:
        ArtifactError: the graph can't be exported, or an engine's answers are not torch's.
    """
    return export_artifact(
        destination,
        name=NAME,
        graphs={
            GRAPH: ExportGraph(module=policy, example=example_observations().as_inputs(), spec=graph_spec()),
        },
        tables={},
        parameters={"quantiles": list(QUANTILES), "seed": seed, "training": dict(report)},
        metrics=dict(metrics),
        data_snapshot=data_snapshot,
        lineage=lineage,
    )
