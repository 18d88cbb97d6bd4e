"""From a graph of an artifact to a TensorRT engine: ONNX, TensorRT's parser, one optimisation profile a bucket, build.

TensorRT and TensorRT for RTX share the network API and the parser, so both go through `build_engine`. TensorRT builds
for the GPU of this machine; TensorRT for RTX builds for GPUs that are elsewhere, on a machine that has none. What is
proved by the second (each operator and each size is taken) holds for the first but for the kernels.

Networks are strongly typed: TensorRT computes in the types that the graph says, and nowhere in TF32, whose products
keep 10 bits. Sums of integers up to 2**24 in float32 stay exact.
"""

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from serve.artifacts import Artifact
from serve.engines.tensorrt import collecting_log, import_library, releasing, shape_range
from serve.engines.torch import load_program
from serve.errors import ArtifactError, InvalidInput
from serve.tensors import GraphSpec

PRODUCTS: Final = ("MatMul", "Gemm", "Conv")
"""ONNX operators that `halved` computes in float16."""

_NARROW: Final = ("HALF", "BF16", "FP8", "INT8", "INT4", "FP4")


class Build(NamedTuple):
    """A built engine.

    Attributes:
        content: the engine.
        nodes: nodes of the ONNX graph, all of them taken.
        layers: layers of TensorRT's network.
        seconds: how long TensorRT built.
        timing: TensorRT's timing cache after the build; empty where the library has none.
    """

    content: bytes
    nodes: int
    layers: int
    seconds: float
    timing: bytes


def onnx_model(artifact: Artifact, graph: str) -> bytes:
    """A graph's program as ONNX, its inputs and outputs named as in the spec.

    Raises:
        ArtifactError: naming the operator that has no ONNX form.
        Unavailable: if onnx or onnxscript is missing.
    """
    for package in ("onnx", "onnxscript"):
        _package(package)
    spec = artifact.graph(graph)
    program = load_program(artifact.read_bytes(f"{graph}.pt2"), f"files.{graph}.pt2")
    try:
        with _quiet():
            exported = torch.onnx.export(program.run_decompositions(), dynamo=True, verbose=False)
            assert exported is not None
            content = exported.model_proto.SerializeToString()
    except Exception as error:  # the exporter raises whatever its parts raise
        reasons = [line for line in str(error).splitlines() if "No ONNX function" in line]
        raise ArtifactError(
            field=f"graphs.{graph}",
            got=reasons[0] if reasons else f"{type(error).__name__}: {error}",
            expected="operators that ONNX has",
            next_step="Change the operator that it names, or use the device cpu for this model.",
        ) from error
    model = _package("onnx").load_from_string(content)
    for place, tensor in enumerate(spec.outputs):
        _rename(model.graph, model.graph.output[place].name, tensor.name)
    return bytes(model.SerializeToString())


def halved(model: bytes) -> bytes:
    """The ONNX model with its matrix products and convolutions in float16; all else, sums of terms too, in float32."""
    onnx = _package("onnx")
    parsed = onnx.load_from_string(model)
    floats = {item.name for item in parsed.graph.initializer if item.data_type == onnx.TensorProto.FLOAT}
    floats |= {
        item.name
        for item in (*parsed.graph.value_info, *parsed.graph.input, *parsed.graph.output)
        if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    nodes = []
    for node in parsed.graph.node:
        if node.op_type not in PRODUCTS or not set(node.input) <= floats:
            nodes.append(node)
            continue
        result = node.output[0]
        for place, name in enumerate(node.input):
            narrow = f"{result}.in{place}.half"
            nodes.append(onnx.helper.make_node("Cast", [name], [narrow], name=narrow, to=onnx.TensorProto.FLOAT16))
            node.input[place] = narrow
        node.output[0] = f"{result}.half"
        cast = onnx.helper.make_node(
            "Cast", [node.output[0]], [result], name=f"{result}.float", to=onnx.TensorProto.FLOAT
        )
        nodes += [node, cast]
    del parsed.graph.node[:]
    parsed.graph.node.extend(nodes)
    return bytes(parsed.SerializeToString())


def structure(model: bytes) -> str:
    """SHA-256 of an ONNX model without the values of its float weights: equal where new weights can be refitted."""
    onnx = _package("onnx")
    parsed = onnx.load_from_string(model)
    for item in parsed.graph.initializer:
        if item.data_type == onnx.TensorProto.FLOAT:
            item.ClearField("raw_data")
            item.ClearField("float_data")
    parsed.ClearField("doc_string")
    del parsed.metadata_props[:]
    parsed.graph.ClearField("doc_string")
    del parsed.graph.metadata_props[:]
    for node in parsed.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    return sha256(parsed.SerializeToString(deterministic=True)).hexdigest()


def architectures_of(trt: Any) -> dict[str, Any]:
    """GPU architectures that TensorRT for RTX builds for without them: `sm86` -> its ComputeCapability."""
    names = sorted(name for name in dir(trt.ComputeCapability) if name.startswith("SM"))
    return {name.lower(): getattr(trt.ComputeCapability, name) for name in names}


def check_architectures(asked: Sequence[str], known: Mapping[str, Any]) -> None:
    """Refuse architectures that a library does not build for.

    Raises:
        InvalidInput: naming the first.
    """
    for name in asked:
        if name not in known:
            raise InvalidInput(
                field="architecture",
                got=name,
                expected=f"among {', '.join(known)}",
                next_step="Name another, or compile with --target tensorrt on a machine with that GPU.",
            )


@releasing
def build_engine(
    trt: Any,
    graph: str,
    spec: GraphSpec,
    model: bytes,
    *,
    usual: Mapping[str, int],
    architectures: Sequence[str] = (),
    half: bool = False,
    refit: bool = False,
    timing: bytes | None = None,
) -> Build:
    """Build an engine.

    Args:
        trt: TensorRT's module, or that of TensorRT for RTX.
        graph: name of the graph, for messages.
        spec: its spec. Each of its buckets becomes an optimisation profile.
        model: `onnx_model`, or what `halved` made of it.
        usual: dynamic dimension -> size to choose kernels for, where a bucket does not say.
        architectures: GPUs to build for, such as `sm86`; empty: this machine's.
        half: whether the model may hold float16.
        refit: whether other weights may be put in later.
        timing: timing cache of an earlier build to start from; None where the library has none.

    Raises:
        InvalidInput: if the library knows no such architecture.
        ArtifactError: naming the nodes that TensorRT does not take, or what else is wrong.
    """
    log = collecting_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        errors = [parser.get_error(place) for place in range(parser.num_errors)]
        refused = "; ".join(f"{error.node_operator()} ({error.node_name()}): {error.desc()}" for error in errors)
        raise _refusal(graph, refused or "; ".join(log.errors), "a graph whose every operator TensorRT takes")
    _check_network(trt, graph, spec, network, half=half)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if timing is not None:
        _set_timing(config, timing)
    for place in range(max(1, len(spec.buckets))):
        profile = builder.create_optimization_profile()
        for tensor in spec.inputs:
            profile.set_shape(tensor.name, *shape_range(tensor, spec, place, usual))
        if config.add_optimization_profile(profile) != place:
            raise _refusal(graph, "; ".join(log.errors), f"sizes of bucket {place} that TensorRT takes")
    _set_architectures(trt, config, architectures)
    began = time.perf_counter()
    content = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - began
    if content is None:
        raise _refusal(graph, "; ".join(log.errors), f"a graph that TensorRT builds for {', '.join(architectures)}")
    cache = b"" if timing is None else _timing(config)
    return Build(bytes(content), _nodes(model), network.num_layers, seconds, cache)


@releasing
def refitted(trt: Any, engine: bytes, model: bytes) -> bytes | None:
    """An engine with the weights of another model of the same structure; None where TensorRT can't. Needs the GPU.

    Args:
        trt: TensorRT's module.
        engine: an engine that was built to be refitted.
        model: ONNX model with the new weights.
    """
    log = collecting_log(trt)
    runtime = trt.Runtime(log)
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None or not loaded.refittable:
        return None
    refitter = trt.Refitter(loaded, log)
    if not trt.OnnxParserRefitter(refitter, log).refit_from_bytes(model) or refitter.get_missing_weights():
        return None
    return bytes(loaded.serialize()) if refitter.refit_cuda_engine() else None


def _check_network(trt: Any, graph: str, spec: GraphSpec, network: Any, *, half: bool) -> None:
    """The parsed network is that of the spec: names, types, which sizes are free; and nothing in it is narrower."""
    free = {size for size, (least, greatest) in spec.limits.items() if least < greatest}
    sides = (
        (spec.inputs, [network.get_input(place) for place in range(network.num_inputs)]),
        (spec.outputs, [network.get_output(place) for place in range(network.num_outputs)]),
    )
    for tensors, found in sides:
        got = {tensor.name: (np.dtype(trt.nptype(tensor.dtype)), tuple(tensor.shape)) for tensor in found}
        for tensor in tensors:
            sizes = [
                -1 if size in free else spec.limits[size][0] if isinstance(size, str) else size for size in tensor.shape
            ]
            dtype, shape = got.pop(tensor.name, (None, ()))
            # An output's size may be free where the parser can't follow it; the engine checks it when it runs.
            fits = len(shape) == len(sizes) and all(
                size == wanted or (tensors is spec.outputs and size == -1)
                for size, wanted in zip(shape, sizes, strict=True)
            )
            if dtype != np.dtype(tensor.dtype) or not fits:
                raise _refusal(graph, f"{tensor.name} as {dtype} {shape}", f"{tensor.name} as {tensor}")
        if got:
            raise _refusal(graph, f"further inputs or outputs {sorted(got)}", "those of the spec")
    for layer in (network.get_layer(place) for place in range(network.num_layers)):
        kinds = {str(layer.get_output(place).dtype).rpartition(".")[2] for place in range(layer.num_outputs)}
        if not half and kinds & set(_NARROW):
            raise _refusal(graph, f"layer {layer.name} in {sorted(kinds)}", "no type narrower than the graph's own")


def _set_timing(config: Any, content: bytes) -> None:
    """Start from a timing cache; from an empty one where it is another GPU's, another version's or no cache."""
    with _quiet():  # TensorRT for RTX warns that it has no use for one
        for serialized in (content, b""):
            cache = config.create_timing_cache(serialized)
            if cache is not None and config.set_timing_cache(cache, False):  # noqa: FBT003 - its own order
                return


def _timing(config: Any) -> bytes:
    with _quiet():
        cache = config.get_timing_cache()
        return b"" if cache is None else bytes(cache.serialize())


def _set_architectures(trt: Any, config: Any, architectures: Sequence[str]) -> None:
    if not architectures:
        return
    known = architectures_of(trt)
    check_architectures(architectures, known)
    config.num_compute_capabilities = len(architectures)
    for place, name in enumerate(architectures):
        config.set_compute_capability(known[name], place)


def _refusal(graph: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(
        field=f"graphs.{graph}",
        got=got or "no reason given",
        expected=expected,
        next_step="Change what it names in the model, compile for other GPUs, or use the device cpu for this model.",
    )


def _rename(graph: Any, old: str, new: str) -> None:
    """Rename a tensor of an ONNX graph wherever it is made or read."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
    for info in (*graph.output, *graph.value_info):
        if info.name == old:
            info.name = new


def _nodes(model: bytes) -> int:
    return len(_package("onnx").load_from_string(model).graph.node)


def _package(name: str) -> Any:
    return import_library(name, field="target", next_step="Install playhead[gpu] or playhead[rtx], which bring it.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings of their own deprecations and of packages that they do not need."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
