"""An artifact `quality` that is made in seconds: both graphs, with weights that nothing taught."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import torch

from training.export import ExportGraph, export_artifact
from training.quality.noreference import BitstreamQuality, FrameQuality
from training.quality.noreference_export import (
    BITSTREAM_GRAPH,
    FRAMES_GRAPH,
    NAME,
    bitstream_spec,
    example_features,
    example_patches,
    frames_spec,
)


@functools.cache
def small_quality() -> Path:
    """Folder of the artifact's version."""
    torch.manual_seed(3)
    bitstream, frames = BitstreamQuality().eval(), FrameQuality().eval()
    folder = Path(tempfile.mkdtemp(prefix="playhead-quality-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return export_artifact(
        folder,
        name=NAME,
        graphs={
            BITSTREAM_GRAPH: ExportGraph(module=bitstream, example=example_features(), spec=bitstream_spec()),
            FRAMES_GRAPH: ExportGraph(module=frames, example=example_patches(), spec=frames_spec()),
        },
        tables={},
        metrics={},
        parameters={"coverage": 0.9, "use_both": True, "widths": {"bitstream": 4.0, "both": 2.5}},
    ).path
