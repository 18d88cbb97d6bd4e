"""Whether TensorRT compiles a graph, proved on a machine with no GPU.

TensorRT for RTX builds engines for GPUs that are not there, with the network API and the ONNX parser of TensorRT. What
it takes is a graph whose operators and dynamic shapes TensorRT knows; running it needs the GPU.
"""

import importlib
import io
import warnings
from typing import Any, Final

import torch

from serve.artifacts import Artifact
from serve.engines.torch import load_program
from serve.tensors import TensorSpec

ARCHITECTURES: Final = ("SM86", "SM89")


def build_engine(artifact: Artifact, graph: str) -> bytes:
    """Compile a graph of an artifact for ARCHITECTURES, each dynamic dimension with all sizes of its limits.

    Args:
        artifact: an artifact.
        graph: name of the graph.

    Returns:
        The serialized engine; the test fails where there is none.
    """
    trt: Any = importlib.import_module("tensorrt_rtx_bindings")
    spec = artifact.graph(graph)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse(_onnx(artifact, graph))
    assert parsed, [str(parser.get_error(place)) for place in range(parser.num_errors)]
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    assert {tensor.name for tensor in inputs} == {tensor.name for tensor in spec.inputs}
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    example, _ = artifact.example(graph)
    for tensor in spec.inputs:
        least, most = (_shape(tensor, spec.limits, bound) for bound in (0, 1))
        profile.set_shape(tensor.name, least, example[tensor.name].shape, most)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(ARCHITECTURES)
    for place, name in enumerate(ARCHITECTURES):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), place)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, f"TensorRT builds no engine of {graph}"
    return bytes(engine)


def _onnx(artifact: Artifact, graph: str) -> bytes:
    program = load_program(artifact.read_bytes(f"{graph}.pt2"), graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own deprecations
        exported = torch.onnx.export(program.run_decompositions(), dynamo=True, verbose=False)
    assert exported is not None
    content = io.BytesIO()
    exported.save(content)
    return content.getvalue()


def _shape(tensor: TensorSpec, limits: Any, bound: int) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else limits[size][bound] for size in tensor.shape)
