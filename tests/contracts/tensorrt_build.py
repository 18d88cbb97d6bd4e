"""Whether TensorRT compiles a graph, proved on a machine with no GPU.

TensorRT for RTX builds engines for GPUs that are not there, with the network API and the ONNX parser of TensorRT. What
it takes is a graph whose operators and dynamic shapes TensorRT knows; running it needs the GPU.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from serve.artifacts import Artifact
from serve.engines.tensorrt import LIBRARIES, import_library
from serve.tensors import InputCheck
from training.tensorrt import build_engine as build
from training.tensorrt import onnx_model

ARCHITECTURES: Final = ("sm86", "sm89")


def build_engine(
    artifact: Artifact, graph: str, architectures: Sequence[str] = ARCHITECTURES, *, greatest: bool = False
) -> bytes:
    """Compile a graph of an artifact, each dynamic dimension with all sizes of its limits.

    Args:
        artifact: an artifact.
        graph: name of the graph.
        architectures: GPUs.
        greatest: of many buckets of sizes, only the last.

    Returns:
        The serialized engine.

    Raises:
        ArtifactError: naming what TensorRT does not take.
    """
    spec = artifact.graph(graph)
    if greatest:
        spec = replace(spec, buckets=spec.buckets[-1:])
    example, _ = artifact.example(graph)
    _, usual = InputCheck(graph, spec)(example, {}, {})
    trt, model = import_library(LIBRARIES["tensorrt-rtx"]), onnx_model(artifact, graph)
    return build(trt, graph, spec, model, usual=usual, architectures=architectures).content
