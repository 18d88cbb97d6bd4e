"""What TensorRT is given: ONNX that computes what torch does, profiles of the spec's sizes, no narrower arithmetic.

TensorRT for RTX builds here without a GPU; numpy's ONNX evaluator computes what it is given.
"""

import functools
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper

from serve.engines.parity import differences
from serve.engines.tensorrt import LIBRARIES
from serve.errors import ArtifactError, InvalidInput
from serve.tensors import GraphSpec, TensorSpec, resized
from tests.contracts.small_model import MAX_T, small_artifact
from training import tensorrt
from training.tensorrt import architectures_of, build_engine, halved, structure

rtx = pytest.importorskip(LIBRARIES["tensorrt-rtx"])
GRAPHS = ("titles", "encoder", "ranker")
USUAL = {"B": 3, "T": 7, "N": 50}


@functools.cache
def onnx_of(graph: str) -> bytes:
    return tensorrt.onnx_model(small_artifact(), graph)


def evaluated(model: bytes, spec: GraphSpec, inputs: dict[str, Any]) -> dict[str, Any]:
    results = onnx.reference.ReferenceEvaluator(onnx.load_from_string(model)).run(None, inputs)
    return dict(zip([tensor.name for tensor in spec.outputs], results, strict=True))


@pytest.mark.parametrize("graph", GRAPHS)
def test_onnx_computes_what_torch_does(graph: str) -> None:
    artifact = small_artifact()
    model, spec = onnx_of(graph), artifact.graph(graph)
    inputs, expected = artifact.example(graph)
    assert max(differences(spec, expected, evaluated(model, spec, inputs)).values()) < 1e-5
    parsed = onnx.load_from_string(model).graph
    assert [tensor.name for tensor in parsed.input] == [tensor.name for tensor in spec.inputs]
    assert [tensor.name for tensor in parsed.output] == [tensor.name for tensor in spec.outputs]
    other = resized(spec, inputs, {"B": 5, "T": MAX_T})
    small = evaluated(model, spec, other)
    assert all(len(array) == 5 for array in small.values()) or graph == "titles"


@pytest.mark.parametrize("graph", GRAPHS)
def test_half_is_near_and_builds(graph: str) -> None:
    artifact = small_artifact()
    full, spec = onnx_of(graph), artifact.graph(graph)
    model = halved(full)
    inputs, expected = artifact.example(graph)
    errors = differences(spec, expected, evaluated(model, spec, inputs))
    assert 1e-5 < max(errors.values()) < 1e-2
    build = build_engine(rtx, graph, spec, model, usual=USUAL, architectures=("sm86",), half=True)
    assert build.content
    with pytest.raises(ArtifactError, match=r"HALF.*no type narrower"):
        build_engine(rtx, graph, spec, model, usual=USUAL, architectures=("sm86",))


def test_the_structure_is_that_of_new_weights_too() -> None:
    model = onnx_of("encoder")
    parsed = onnx.load_from_string(model)
    weights = next(item for item in parsed.graph.initializer if item.name == "attention.bias")
    weights.raw_data = np.ones(48, np.float32).tobytes()
    assert structure(parsed.SerializeToString()) == structure(model) == structure(onnx_of("encoder"))
    weights.dims[0], weights.raw_data = 24, np.ones(24, np.float32).tobytes()
    assert structure(parsed.SerializeToString()) != structure(model)
    assert structure(onnx_of("titles")) != structure(model)


class Watched:
    """TensorRT for RTX, with what its builder was told."""

    def __init__(self) -> None:
        self.config: Any = None
        self.profiles: list[Any] = []
        self.builder: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(rtx, name)

    def Builder(self, log: Any) -> Any:
        builder = rtx.Builder(log)
        self.builder = weakref.ref(builder)
        return WatchedBuilder(self, builder)


class WatchedBuilder:
    """Passes on to a builder, and no cycle of references holds it."""

    def __init__(self, watched: Watched, builder: Any) -> None:
        self._watched = watched
        self._builder = builder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        self._watched.config = config
        return self._builder.build_serialized_network(network, config)

    def create_optimization_profile(self) -> Any:
        profile = self._builder.create_optimization_profile()
        self._watched.profiles.append(profile)
        return profile


def test_products_are_float32_and_nothing_less() -> None:
    watched = Watched()
    model, spec = onnx_of("encoder"), small_artifact().graph("encoder")
    build_engine(watched, "encoder", spec, model, usual=USUAL, architectures=("sm86", "sm89"))
    assert not watched.config.get_flag(rtx.BuilderFlag.TF32)
    assert watched.config.num_compute_capabilities == 2


def test_each_bucket_is_a_profile() -> None:
    watched = Watched()
    buckets = ({"B": (1, 2, 8), "T": (1, 4, 10)}, {"B": (1, 1, 2)})
    spec = replace(small_artifact().graph("encoder"), buckets=buckets)
    model = onnx_of("encoder")
    build = build_engine(watched, "encoder", spec, model, usual=USUAL, architectures=("sm86",))
    assert watched.config.num_optimization_profiles == 2
    assert [[tuple(shape) for shape in profile.get_shape("titles")] for profile in watched.profiles] == [
        [(1, 1), (2, 4), (8, 10)],
        [(1, 1), (1, 7), (2, MAX_T)],
    ]
    assert (build.nodes, build.timing) == (len(onnx.load_from_string(model).graph.node), b"")
    assert build.layers >= build.nodes


def test_nodes_that_tensorrt_does_not_take_are_named() -> None:
    spec = GraphSpec(
        inputs=(TensorSpec("x", "float32", ("B", 3, 3)),),
        outputs=(TensorSpec("y", "float32", ("B",)),),
        limits={"B": (1, 4)},
    )
    nodes = [
        helper.make_node("Det", ["x"], ["y"], name="volume"),
        helper.make_node("Nope", ["x"], ["z"], name="unheard", domain="mine"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B"]), helper.make_tensor_value_info("z", 1, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)])
    with pytest.raises(ArtifactError) as caught:
        build_engine(rtx, "g", spec, model.SerializeToString(), usual={}, architectures=("sm86",))
    assert "Det (volume)" in caught.value.got
    assert "Nope (unheard)" in caught.value.got


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda spec: replace(spec, limits={**spec.limits, "T": (4, 4)}), "titles as int64"),
        (lambda spec: replace(spec, outputs=(TensorSpec("state", "float32", ("B", 17)),)), "state as float32"),
        (lambda spec: replace(spec, outputs=(TensorSpec("state", "int64", ("B", 16)),)), "state as float32"),
        (lambda spec: replace(spec, outputs=(TensorSpec("other", "float32", ("B", 16)),)), "other as None"),
    ],
)
def test_a_network_that_is_not_the_specs_is_refused(change: Any, got: str) -> None:
    model, spec = onnx_of("encoder"), change(small_artifact().graph("encoder"))
    with pytest.raises(ArtifactError) as caught:
        build_engine(rtx, "encoder", spec, model, usual=USUAL, architectures=("sm86",))
    assert got in caught.value.got


def test_a_failed_build_leaves_nothing_for_the_garbage_collector() -> None:
    # It might run in the logger of the next build, under the lock that the end of a builder waits for.
    model, spec = onnx_of("encoder"), small_artifact().graph("encoder")
    watched = Watched()
    with pytest.raises(ArtifactError) as caught:
        build_engine(
            watched,
            "encoder",
            replace(spec, outputs=(TensorSpec("other", "float32", ("B", 16)),)),
            model,
            usual=USUAL,
            architectures=("sm86",),
        )
    assert caught.value.__traceback__ is not None
    assert watched.builder() is None


def test_gpus_that_a_graph_cannot_be_built_for() -> None:
    model, spec = onnx_of("titles"), small_artifact().graph("titles")
    with pytest.raises(ArtifactError, match="FP32 GEMM is not supported"):  # in TensorRT for RTX on Turing
        build_engine(rtx, "titles", spec, model, usual=USUAL, architectures=("sm75",))
    with pytest.raises(InvalidInput, match=r"sm90.*among sm120.*sm86"):
        build_engine(rtx, "titles", spec, model, usual=USUAL, architectures=("sm90",))
    assert {"sm80", "sm86", "sm89", "sm120"} <= set(architectures_of(rtx))


def test_a_timing_cache_goes_in_and_comes_out_and_damage_is_no_harm() -> None:
    model, spec = onnx_of("titles"), small_artifact().graph("titles")
    for given in (b"", None, b"no cache"):
        build = build_engine(rtx, "titles", spec, model, usual=USUAL, architectures=("sm86",), timing=given)
        assert bool(build.timing) == (given is not None)
