"""An artifact `vmaf` that is made in a second: the published models' parameters, and a graph that nothing here runs."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import torch

from serve.tensors import GraphSpec, TensorSpec
from training.export import ExportGraph, export_artifact
from training.quality.export import graph_name
from training.quality.published import SERVED, read_published


class Double(torch.nn.Module):
    """Twice what came."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@functools.cache
def small_vmaf() -> Path:
    """Folder of the artifact's version; the scorer has to use libvmaf."""
    spec = GraphSpec(
        inputs=(TensorSpec("x", "float32", ("B", 2)),),
        outputs=(TensorSpec("y", "float32", ("B", 2)),),
        limits={"B": (1, 4)},
        tolerance=1e-6,
    )
    graph = ExportGraph(module=Double(), example={"x": torch.ones(3, 2)}, spec=spec)
    fusions = [read_published(model) for model in SERVED]
    models = {fusion.name: fusion.parameters() | {"graph": graph_name(fusion)} for fusion in fusions}
    folder = Path(tempfile.mkdtemp(prefix="playhead-vmaf-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return export_artifact(
        folder, name="vmaf", graphs={"double": graph}, tables={}, metrics={}, parameters={"models": models}
    ).path
