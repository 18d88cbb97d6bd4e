"""TensorRT keeps the engines' contract, where there is a GPU; elsewhere it says what is missing.

`TestLogic` runs the engine on tests/contracts/fake_gpu.py: its own work, without TensorRT.
"""

import atexit
import functools
import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from serve.artifacts import Artifact, Manifest, add_derived, read_artifact
from serve.engines import Engine, load_engine, tensorrt
from serve.engines.fallback import take_fallbacks
from serve.engines.tensorrt import MAX_RECORDINGS, RECORD_AT, SPARE_BYTES, TensorRtEngine, shape_range
from serve.errors import ArtifactError, InvalidInput, Unavailable
from tests.contracts.engine_contract import EngineContract, close, reference
from tests.contracts.fake_gpu import ARCHITECTURE, Gpu, with_fake_engines
from tests.contracts.small_model import MAX_B, MAX_T, copy_of, example, resealed_artifact, small_artifact
from training.compilation import compile_artifact

HAS_GPU = torch.cuda.is_available() and importlib.util.find_spec("tensorrt") is not None


def folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="playhead-small-model-gpu-"))
    atexit.register(shutil.rmtree, path)
    return path


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU and playhead[gpu]")
class TestTensorRt(EngineContract):
    device = "cuda"

    @classmethod
    @functools.cache
    def artifact(cls) -> Artifact:
        artifact = read_artifact(copy_of(small_artifact(), folder()))
        list(compile_artifact(artifact, "tensorrt"))
        return read_artifact(artifact.path)


@pytest.mark.skipif(HAS_GPU, reason="for machines with no GPU")
class TestNoGpu:
    def test_cuda_says_what_is_missing(self) -> None:
        with pytest.raises(Unavailable) as caught:
            load_engine(small_artifact(), "encoder", "cuda")
        assert caught.value.field == "device cuda"
        assert "tensorrt" in caught.value.got or "GPU" in caught.value.got
        assert "playhead[gpu]" in caught.value.next_step

    def test_auto_takes_the_cpu_and_says_why(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="serve.engines")
        assert load_engine(small_artifact(), "encoder", "auto").device == "cpu"
        assert "the artifact has no TensorRT engine" in caplog.text

    @pytest.mark.parametrize("derived", ["tensorrt/sm86", "tensorrt-rtx/sm86-sm89"])
    def test_auto_passes_over_an_engine_that_cannot_run(
        self, derived: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        copied = read_artifact(copy_of(small_artifact(), tmp_path))
        artifact = add_derived(copied, {f"{derived}/encoder.engine": b"plan"})
        assert artifact.version == small_artifact().version  # it does not change with engines
        take_fallbacks()
        assert load_engine(artifact, "encoder", "auto").device == "cpu"
        assert "not on the GPU: device cuda" in caplog.text
        assert take_fallbacks() == {("small/encoder", "load"): 1}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(tensorrt, "find_libraries", lambda kind: gpu.libraries())
    return gpu


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return with_fake_engines(small_artifact(), tmp_path)


class TestLogic(EngineContract):
    device = "cuda"

    @pytest.fixture(autouse=True)
    def _gpu(self, gpu: Gpu) -> Iterator[None]:
        type(self).engine.cache_clear()
        yield
        type(self).engine.cache_clear()

    @classmethod
    @functools.cache
    def artifact(cls) -> Artifact:
        return with_fake_engines(small_artifact(), folder())

    @classmethod
    @functools.cache
    def engine(cls, graph: str) -> Engine:
        return load_engine(cls.artifact(), graph, cls.device)


def rows_of(gpu: Gpu) -> list[int]:
    return [shapes["titles"][0] for shapes in gpu.runs]


def test_batches_are_filled_up_to_powers_of_two(gpu: Gpu, artifact: Artifact) -> None:
    engine = TensorRtEngine.load(artifact, "encoder")
    for batch, wanted in ((1, 1), (2, 2), (3, 4), (5, 8), (9, MAX_B), (MAX_B, MAX_B)):
        gpu.runs.clear()
        inputs = example("encoder", batch=batch, seed=batch)
        outputs = engine(inputs)
        assert rows_of(gpu) == [wanted]
        assert len(outputs["state"]) == batch
        close(engine, reference("encoder")(inputs), outputs)


def test_what_is_not_by_rows_is_not_filled_up(gpu: Gpu, artifact: Artifact) -> None:
    engine = TensorRtEngine.load(artifact, "titles")
    inputs = example("titles", titles=37)
    close(engine, reference("titles")(inputs), engine(inputs))
    assert gpu.runs == [{"content": (37, 5), "ids": (37,)}]
    ranker = TensorRtEngine.load(artifact, "ranker")
    inputs = example("ranker", batch=3)
    bound = ranker.bind({"state": inputs.pop("state")})
    gpu.runs.clear()
    bound(inputs)
    assert gpu.runs[0]["state"][0] == 3  # a bound batch has its size


def test_sizes_that_come_again_are_recorded_once(gpu: Gpu, artifact: Artifact) -> None:
    engine = TensorRtEngine.load(artifact, "encoder")
    for call in range(1, RECORD_AT + 4):
        inputs = example("encoder", batch=3 + call % 2, seed=call)  # 3 and 4 rows are one size
        close(engine, reference("encoder")(inputs), engine(inputs))
        assert gpu.captures == (call >= RECORD_AT)
    assert gpu.replays == 4
    engine(example("encoder", batch=5))
    assert gpu.captures == 1


def test_what_is_bound_anew_is_recorded_anew(gpu: Gpu, artifact: Artifact) -> None:
    engine = TensorRtEngine.load(artifact, "encoder")
    for seed in (1, 2):
        inputs = example("encoder", seed=seed)
        table = inputs.pop("table")
        bound = engine.bind({"table": table})
        for _ in range(RECORD_AT + 2):
            close(engine, reference("encoder")({**inputs, "table": table}), bound(inputs))
        assert gpu.captures == seed


def test_recordings_are_bounded(gpu: Gpu, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TensorRtEngine.load(artifact, "encoder")
    monkeypatch.setattr(tensorrt, "MAX_RECORDINGS", 3)
    assert MAX_RECORDINGS > 3
    for _ in range(RECORD_AT + 1):
        for time in range(1, 7):
            inputs = example("encoder", time=time)
            close(engine, reference("encoder")(inputs), engine(inputs))
    assert gpu.captures == 3


def test_a_graph_that_cannot_be_recorded_runs_without(
    gpu: Gpu, artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.refuses_capture = True
    engine = TensorRtEngine.load(artifact, "encoder")
    inputs = example("encoder")
    for _ in range(RECORD_AT + 3):
        close(engine, reference("encoder")(inputs), engine(inputs))
    assert gpu.captures == 0
    assert caplog.text.count("without CUDA graphs") == 1


def test_memory_is_taken_for_the_sizes_of_the_call_and_given_back(gpu: Gpu, artifact: Artifact) -> None:
    engine = TensorRtEngine.load(artifact, "encoder")
    before = gpu.free_bytes
    engine(example("encoder", batch=MAX_B, time=MAX_T))
    assert gpu.free_bytes == before


def test_no_memory_to_load_with(gpu: Gpu, artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    gpu.free_bytes = SPARE_BYTES
    with pytest.raises(Unavailable, match="64 MiB of free GPU memory"):
        TensorRtEngine.load(artifact, "encoder")
    take_fallbacks()
    assert load_engine(artifact, "encoder", "auto").device == "cpu"
    assert "free GPU memory" in caplog.text
    assert take_fallbacks() == {("small/encoder", "load"): 1}


@pytest.mark.parametrize("calls", [0, RECORD_AT + 1])
def test_memory_that_runs_out_later(
    gpu: Gpu, artifact: Artifact, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    engine = load_engine(artifact, "encoder", "auto")
    assert engine.device == f"cuda:{ARCHITECTURE}"
    inputs = example("encoder", batch=2)
    for _ in range(calls):
        engine(inputs)
    large = example("encoder", batch=MAX_B, time=MAX_T)
    take_fallbacks()
    gpu.free_bytes = 100
    close(engine, reference("encoder")(large), engine(large))
    assert "tried to allocate" in caplog.text
    assert take_fallbacks() == {("small/encoder", "call"): 1}
    gpu.runs.clear()
    gpu.free_bytes = 1 << 30
    engine(inputs)  # for a while it stays away from the GPU
    assert (gpu.runs, take_fallbacks()) == ([], {("small/encoder", "call"): 1})
    monkeypatch.setattr("serve.engines.fallback.time.monotonic", lambda: 1e12)
    close(engine, reference("encoder")(inputs), engine(inputs))
    assert gpu.runs
    assert take_fallbacks() == {}


def test_bound_inputs_fall_back_too(gpu: Gpu, artifact: Artifact) -> None:
    engine, other = (load_engine(artifact, "encoder", "auto") for _ in range(2))
    inputs = example("encoder")
    expected = reference("encoder")(inputs)
    table = inputs.pop("table")
    bound = engine.bind({"table": table})
    close(engine, expected, bound(inputs))
    gpu.free_bytes = 0
    close(engine, expected, bound(inputs))
    take_fallbacks()
    crowded = other.bind({"table": table})
    assert take_fallbacks() == {("small/encoder", "bind"): 1}
    gpu.free_bytes = 1 << 30
    gpu.runs.clear()
    close(engine, expected, crowded(inputs))
    assert gpu.runs == []
    with pytest.raises(InvalidInput, match="titles"):
        bound({**inputs, "titles": inputs["titles"] - 100})


BUCKETS = ({"B": (1, 2, 6), "T": (1, 4, 10)}, {"B": (1, 1, 2)})


@pytest.fixture
def bucketed(tmp_path: Path) -> Artifact:
    def change(path: Path, manifest: Manifest) -> Manifest:
        spec = replace(manifest.graphs["encoder"], buckets=BUCKETS)
        return manifest.model_copy(update={"graphs": {**manifest.graphs, "encoder": spec}})

    return with_fake_engines(resealed_artifact(small_artifact(), tmp_path / "plain", change), tmp_path)


@pytest.mark.parametrize(
    ("batch", "time", "place", "ran"), [(1, 1, 0, 1), (5, 10, 0, 6), (6, 3, 0, 6), (1, 11, 1, 1), (2, MAX_T, 1, 2)]
)
def test_calls_take_the_bucket_that_they_fit(
    gpu: Gpu, bucketed: Artifact, batch: int, time: int, place: int, ran: int
) -> None:
    engine = load_engine(bucketed, "encoder", "cuda", batches=(1, 16))
    gpu.buckets.clear()
    gpu.runs.clear()
    inputs = example("encoder", batch=batch, time=time)
    close(engine, reference("encoder")(inputs), engine(inputs))
    assert (gpu.buckets, rows_of(gpu)) == ([place], [ran])


@pytest.mark.parametrize("device", ["cpu", "cuda", "torch"])
def test_sizes_that_no_bucket_holds_are_refused(gpu: Gpu, bucketed: Artifact, device: str) -> None:
    engine = load_engine(bucketed, "encoder", device, batches=(1, 16))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"encoder: got .*B = 3, T = 11.*buckets"):
        engine(example("encoder", batch=3, time=11))


def test_an_engine_of_other_sizes_is_refused(gpu: Gpu, artifact: Artifact, bucketed: Artifact) -> None:
    relative = f"tensorrt/{ARCHITECTURE}/encoder.engine"
    other = add_derived(artifact, {relative: bucketed.read_bytes(relative)})
    with pytest.raises(ArtifactError, match="2 buckets of sizes, not 1"):
        load_engine(other, "encoder", "cuda")
    ranker = add_derived(artifact, {relative: artifact.read_bytes(f"tensorrt/{ARCHITECTURE}/ranker.engine")})
    with pytest.raises(ArtifactError, match="inputs or outputs"):
        load_engine(ranker, "encoder", "cuda")
    garbage = add_derived(artifact, {relative: b"\x00 no plan"})
    with pytest.raises(ArtifactError, match="magic tag"):
        load_engine(garbage, "encoder", "cuda")


def test_an_altered_engine_is_not_given_to_the_library(gpu: Gpu, artifact: Artifact) -> None:
    engine = artifact.path / "tensorrt" / ARCHITECTURE / "encoder.engine"
    engine.write_bytes(engine.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match="SHA-256"):
        load_engine(artifact, "encoder", "cuda")


def test_an_engine_for_several_gpus_is_found(gpu: Gpu, artifact: Artifact, tmp_path: Path) -> None:
    content = artifact.read_bytes(f"tensorrt/{ARCHITECTURE}/encoder.engine")
    for name, found in ((f"sm86-{ARCHITECTURE}-sm89", True), ("sm86-sm89", False), ("sm000", False)):
        plain = read_artifact(copy_of(small_artifact(), tmp_path / name))
        held = add_derived(plain, {f"tensorrt/{name}/encoder.engine": content})
        if found:
            assert TensorRtEngine.load(held, "encoder").device == f"cuda:{ARCHITECTURE}"
        else:
            with pytest.raises(ArtifactError, match="an engine for this machine's GPU"):
                TensorRtEngine.load(held, "encoder")


def test_ranges_of_shapes() -> None:
    spec = replace(small_artifact().graph("encoder"), buckets=BUCKETS)
    titles, table = spec.inputs[0], spec.inputs[3]
    assert shape_range(titles, spec, 0, {"B": 3, "T": 7}) == ((1, 1), (2, 4), (6, 10))
    assert shape_range(titles, spec, 1, {"B": 3, "T": 7}) == ((1, 1), (1, 7), (2, MAX_T))
    assert shape_range(table, spec, 0, {"N": 1}) == ((21, 16), (21, 16), (3000, 16))
    assert np.prod(shape_range(titles, replace(spec, buckets=()), 0, {"B": 3, "T": 7})[2]) == MAX_B * MAX_T
