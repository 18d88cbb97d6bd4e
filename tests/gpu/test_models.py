"""On a real GPU: parity, latency and throughput of every model, refit, kept engines, exact float32, full memory.

Models: the small model, an untrained bitrate policy, and every champion under PLAYHEAD_HOME.
"""

import atexit
import functools
import importlib.util
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deployments.inventory import model_versions
from features.settings import Settings
from serve.artifacts import Artifact, read_artifact
from serve.engines import load_engine
from serve.engines.fallback import take_fallbacks
from serve.engines.parity import differences
from serve.engines.tensorrt import SPARE_BYTES
from serve.tensors import GraphSpec, TensorSpec, resized
from tests.contracts.small_model import MAX_B, MAX_T, copy_of, example, export, small_artifact
from tests.gpu.rows import ROWS, WAYS, batches, measured, way
from training.bitrate.export import export_bitrate
from training.bitrate.model import BitratePolicy
from training.compilation import compile_artifact
from training.export import ExportGraph, export_artifact

if not (torch.cuda.is_available() and importlib.util.find_spec("tensorrt")):
    pytest.skip("needs an NVIDIA GPU and playhead[gpu]; make test-gpu runs it", allow_module_level=True)

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


@functools.cache
def folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="playhead-gpu-"))
    atexit.register(shutil.rmtree, path)
    return path


def sources() -> dict[str, Path | None]:
    """Name -> folder of an artifact, or None for those that this module makes."""
    found: dict[str, Path | None] = {"small": None, "untrained bitrate": None}
    models = Settings.from_env().models
    for entry in model_versions(models):
        if entry.champion and not entry.trouble:
            found[f"{entry.name} {entry.version}"] = models / entry.name / entry.version
    return found


SOURCES = sources()


@functools.cache
def compiled(name: str) -> Artifact:
    """A copy of a model, compiled for this GPU."""
    if name == "untrained bitrate":
        torch.manual_seed(0)
        policy = BitratePolicy()
        torch.nn.init.normal_(policy.score.weight, std=0.01)
        artifact = export_bitrate(folder() / "b", policy, metrics={}, report={}, data_snapshot="none", seed=0)
    else:
        source = SOURCES[name]
        artifact = small_artifact() if source is None else read_artifact(source)
        artifact = read_artifact(copy_of(artifact, folder() / name.replace(" ", "-")))
    for row in compile_artifact(artifact, "tensorrt", again=True):
        result = f"{row.how} in {row.seconds:.2f} s, {row.layers} layers, {row.precision}, error {row.error:.1e}"
        ROWS.append({"model": name, "graph": row.graph, "batch": 0, "way": "compile", "result": result})
    return read_artifact(artifact.path)


@functools.cache
def graphs(name: str) -> list[str]:
    source = SOURCES[name]
    if name == "untrained bitrate":
        return ["policy"]
    return list((small_artifact() if source is None else read_artifact(source)).manifest.graphs)


EACH = [(name, graph) for name in SOURCES for graph in graphs(name)]


@pytest.mark.parametrize(("name", "graph"), EACH)
def test_parity_at_all_sizes(name: str, graph: str) -> None:
    artifact = compiled(name)
    spec = artifact.graph(graph)
    engine, reference = load_engine(artifact, graph, "cuda"), load_engine(artifact, graph, "torch")
    inputs, _ = artifact.example(graph)
    for batch in [*batches(artifact, graph), *([3] if "B" in spec.limits else [])]:
        sized = resized(spec, inputs, {"B": batch} if batch else {})
        expected = reference(sized)
        for _ in range(5):  # as it is, then recorded, then replayed
            assert max(differences(spec, expected, engine(sized)).values()) <= spec.tolerance


@pytest.mark.parametrize(("name", "graph"), EACH)
def test_latency_and_throughput(name: str, graph: str) -> None:
    artifact = compiled(name)
    for batch in batches(artifact, graph):
        rows = measured(artifact, graph, batch, {kind: functools.partial(way, kind, artifact, graph) for kind in WAYS})
        ROWS.extend(rows)
        ours = [row for row in rows if row["way"] in {"cpu", "TensorRT"}]
        assert all(row.get("error", 1) <= artifact.graph(graph).tolerance for row in ours), ours


def test_a_kept_engine_costs_no_build() -> None:
    artifact = compiled("small")
    began = time.perf_counter()
    rows = list(compile_artifact(artifact, "tensorrt"))
    seconds = time.perf_counter() - began
    assert [row.how for row in rows] == ["kept"] * 3
    ROWS.append({"model": "small", "graph": "all", "batch": 0, "way": "kept", "result": f"{seconds:.2f} s"})


def test_new_weights_are_refitted() -> None:
    newer = export(folder() / "newer", seed=1)
    rows = list(compile_artifact(newer, "tensorrt", donors=[compiled("small")]))
    result = ", ".join(f"{row.graph} {row.how} in {row.seconds:.2f} s" for row in rows)
    ROWS.append({"model": "small", "graph": "all", "batch": 0, "way": "refit", "result": result})
    engine = load_engine(read_artifact(newer.path), "encoder", "cuda")
    inputs = example("encoder", batch=5, seed=3)
    errors = differences(engine.spec, load_engine(newer, "encoder", "torch")(inputs), engine(inputs))
    assert max(errors.values()) <= engine.spec.tolerance
    assert "refitted" in {row.how for row in rows}, "no graph could be refitted: see the log for TensorRT's reasons"


class Sums(nn.Module):
    """Sums of whole numbers up to 2**24, as a product and as a convolution: TF32 or float16 would round them."""

    def forward(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = numbers @ torch.ones(256, 1)
        filtered = nn.functional.conv2d(numbers.reshape(-1, 1, 16, 16), torch.ones(1, 1, 4, 4))
        return flat, filtered.reshape(-1, 169)


def test_float32_stays_float32() -> None:
    spec = GraphSpec(
        inputs=(TensorSpec("numbers", "float32", ("B", 256), low=0, high=65535),),
        outputs=(TensorSpec("flat", "float32", ("B", 1)), TensorSpec("filtered", "float32", ("B", 169))),
        limits={"B": (1, 64)},
    )
    numbers = np.random.default_rng(0).integers(32769, 65536, (64, 256)).astype(np.float32)
    artifact = export_artifact(
        folder() / "sums", name="sums", tables={}, parameters={}, metrics={},
        graphs={"sums": ExportGraph(module=Sums(), example={"numbers": numbers[:7]}, spec=spec)},
    )  # fmt: skip
    list(compile_artifact(artifact, "tensorrt"))
    outputs = load_engine(read_artifact(artifact.path), "sums", "cuda")({"numbers": numbers})
    np.testing.assert_array_equal(outputs["flat"][:, 0], numbers.astype(np.int64).sum(1))
    windows = np.lib.stride_tricks.sliding_window_view(numbers.astype(np.int64).reshape(-1, 16, 16), (4, 4), (1, 2))
    np.testing.assert_array_equal(outputs["filtered"], windows.sum((3, 4)).reshape(-1, 169))


def test_memory_that_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    artifact = compiled("small")
    engine = load_engine(artifact, "encoder", "auto")
    assert engine.device.startswith("cuda")
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    hog = [torch.empty(max(1, free - SPARE_BYTES // 2), dtype=torch.uint8, device="cuda")]
    try:
        take_fallbacks()
        assert load_engine(artifact, "encoder", "auto").device == "cpu"
        assert take_fallbacks() == {("small/encoder", "load"): 1}
        assert "free GPU memory" in caplog.text
        inputs = example("encoder", batch=MAX_B, time=MAX_T, titles=3000)
        outputs = engine(inputs)  # on whichever has room: the answer is right
        expected = load_engine(artifact, "encoder", "torch")(inputs)
        assert max(differences(engine.spec, expected, outputs).values()) <= engine.spec.tolerance
    finally:
        hog.clear()
        torch.cuda.empty_cache()
    ROWS.append(
        {
            "model": "small",
            "graph": "encoder",
            "batch": 0,
            "way": "no memory left",
            "result": "loads on the CPU, counted; a loaded engine answers rightly",
        }
    )
