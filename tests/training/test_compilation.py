"""Which engine of a graph is kept, refitted or built, and what is written. The GPU is tests/contracts/fake_gpu.py."""

import atexit
import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from serve.artifacts import Artifact, Manifest, read_artifact
from serve.engines import load_engine, tensorrt
from serve.errors import ArtifactError, InvalidInput, Unavailable
from tests.contracts.fake_gpu import ARCHITECTURE, Gpu
from tests.contracts.small_model import copy_of, export, resealed_artifact, small_artifact
from training import compilation
from training.compilation import CompiledGraph, compile_artifact
from training.tensorrt import Build, onnx_model

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = f"tensorrt/{ARCHITECTURE}"


_models: dict[tuple[str, str], bytes] = {}


@functools.cache
def newer_artifact() -> Artifact:
    """The small model with other weights."""
    folder = tempfile.TemporaryDirectory(prefix="playhead-newer-model-")
    atexit.register(folder.cleanup)
    return export(Path(folder.name), seed=1)


def newer_copy(folder: Path) -> Artifact:
    return read_artifact(copy_of(newer_artifact(), folder / "newer"))


def known_model(artifact: Artifact, graph: str) -> bytes:
    """Exports take seconds; an artifact's are always the same."""
    key = (artifact.version, graph)
    if key not in _models:
        _models[key] = onnx_model(artifact, graph)
    return _models[key]


class Builder:
    """Stands for TensorRT's builder: engines of the fake GPU, and what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpu = Gpu()
        self.path = ""
        self.built: list[dict[str, Any]] = []
        self.refits = 0
        self.wrong: Callable[[dict[str, Any]], bool] = lambda asked: False
        self.refuses_refit = False
        find = lambda kind, next_step="": self.gpu.libraries()
        monkeypatch.setattr(tensorrt, "find_libraries", find)
        monkeypatch.setattr(compilation, "find_libraries", find)
        monkeypatch.setattr(compilation, "onnx_model", known_model)
        monkeypatch.setattr(compilation, "build_engine", self._build)
        monkeypatch.setattr(compilation, "refitted", self._refit)

    def compile(self, artifact: Artifact, **options: Any) -> list[CompiledGraph]:
        self.path = str(artifact.path)
        return list(compile_artifact(artifact, "tensorrt", **options))

    def _build(self, trt: Any, graph: str, spec: Any, model: bytes, **asked: Any) -> Build:
        self.built.append({"graph": graph, **asked})
        return Build(self._engine(graph, {"graph": graph, **asked}), 5, 7, 0.1, b"timing" + asked["timing"])

    def _refit(self, trt: Any, engine: bytes, model: bytes) -> bytes | None:
        self.refits += 1
        return None if self.refuses_refit else self._engine(json.loads(engine)["graph"], {"refitted": True})

    def _engine(self, graph: str, asked: dict[str, Any]) -> bytes:
        return json.dumps({"path": self.path, "graph": graph, "wrong": 0.5 if self.wrong(asked) else 0.0}).encode()


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    return Builder(monkeypatch)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return read_artifact(copy_of(small_artifact(), tmp_path))


def test_engines_are_built_compared_and_written(builder: Builder, artifact: Artifact) -> None:
    rows = builder.compile(artifact)
    assert [(row.graph, row.how, row.architecture) for row in rows] == [
        (graph, "built", ARCHITECTURE) for graph in artifact.manifest.graphs
    ]
    assert all(row.error is not None and row.error < 1e-4 and row.latency_ms is not None for row in rows)
    assert [asked["refit"] for asked in builder.built] == [True] * 3
    written = read_artifact(artifact.path)
    assert written.version == artifact.version
    assert load_engine(written, "encoder", "cuda").device == f"cuda:{ARCHITECTURE}"
    assert json.loads(written.read_bytes(f"{FOLDER}/encoder.json"))["layers"] == 7


def test_the_timing_cache_goes_from_build_to_build(builder: Builder, artifact: Artifact) -> None:
    builder.compile(artifact)
    assert [asked["timing"] for asked in builder.built] == [b"", b"timing", b"timingtiming"]
    assert read_artifact(artifact.path).read_bytes(f"{FOLDER}/timing.cache") == b"timing" * 3


def test_what_is_there_is_kept_until_the_library_is_another(builder: Builder, artifact: Artifact) -> None:
    builder.compile(artifact)
    rows = builder.compile(read_artifact(artifact.path))
    assert ([row.how for row in rows], len(builder.built)) == (["kept"] * 3, 3)
    assert all(row.error is not None for row in rows)
    assert [row.how for row in builder.compile(read_artifact(artifact.path), again=True)] == ["built"] * 3
    relative = f"{FOLDER}/encoder.json"
    origin = json.loads(read_artifact(artifact.path).read_bytes(relative)) | {"library_version": "0.1"}
    compilation.add_derived(read_artifact(artifact.path), {relative: json.dumps(origin).encode()})
    again = builder.compile(read_artifact(artifact.path))
    assert [row.how for row in again] == ["kept", "built", "kept"]


def test_new_weights_are_put_into_the_old_engine(builder: Builder, artifact: Artifact, tmp_path: Path) -> None:
    builder.compile(artifact)
    newer = newer_copy(tmp_path)
    assert newer.version != artifact.version
    rows = builder.compile(newer, donors=[read_artifact(artifact.path)])
    assert [row.how for row in rows] == ["refitted"] * 3
    assert (len(builder.built), builder.refits) == (3, 3)
    builder.refuses_refit = True
    again = read_artifact(copy_of(small_artifact(), tmp_path / "again"))
    assert [row.how for row in builder.compile(again, donors=[read_artifact(artifact.path)])] == ["built"] * 3


def test_other_architectures_are_not_refitted(builder: Builder, artifact: Artifact, tmp_path: Path) -> None:
    builder.compile(artifact)
    donor = read_artifact(artifact.path)
    for graph in donor.manifest.graphs:
        relative = f"{FOLDER}/{graph}.json"
        origin = json.loads(donor.read_bytes(relative)) | {"structure": "0" * 64}
        donor = compilation.add_derived(donor, {relative: json.dumps(origin).encode()})
    assert [row.how for row in builder.compile(newer_copy(tmp_path), donors=[donor])] == ["built"] * 3
    assert builder.refits == 0


def test_a_refitted_engine_that_is_not_torch_is_built_anew(
    builder: Builder, artifact: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    builder.compile(artifact)
    builder.wrong = lambda asked: "refitted" in asked
    rows = builder.compile(newer_copy(tmp_path), donors=[read_artifact(artifact.path)])
    assert [row.how for row in rows] == ["built"] * 3
    assert "refitted, float32) is not used" in caplog.text


def test_a_refittable_engine_that_is_not_torch_is_built_without(builder: Builder, artifact: Artifact) -> None:
    builder.wrong = lambda asked: asked["refit"]
    builder.compile(artifact)
    assert [asked["refit"] for asked in builder.built] == [True, False] * 3
    assert json.loads(read_artifact(artifact.path).read_bytes(f"{FOLDER}/encoder.json"))["refittable"] is False


def test_what_is_never_torch_is_refused_and_not_written(builder: Builder, artifact: Artifact) -> None:
    builder.wrong = lambda asked: True
    with pytest.raises(ArtifactError, match="against torch"):
        builder.compile(artifact)
    assert read_artifact(artifact.path).manifest == artifact.manifest


@pytest.mark.parametrize(("holds", "precision"), [(True, "float16"), (False, "float32")])
def test_half_is_used_where_the_spec_allows_it_and_it_holds(
    builder: Builder, tmp_path: Path, *, holds: bool, precision: str
) -> None:
    def allow(path: Path, manifest: Manifest) -> Manifest:
        spec = replace(manifest.graphs["encoder"], precision="float16")
        return manifest.model_copy(update={"graphs": {**manifest.graphs, "encoder": spec}})

    artifact = resealed_artifact(small_artifact(), tmp_path, allow)
    builder.wrong = lambda asked: asked["half"] and not holds
    rows = {row.graph: row.precision for row in builder.compile(artifact)}
    assert rows == {"titles": "float32", "encoder": precision, "ranker": "float32"}
    assert {asked["graph"] for asked in builder.built if asked["half"]} == {"encoder"}


def test_no_memory_to_compare_with(builder: Builder, artifact: Artifact) -> None:
    builder.gpu.free_bytes = 0
    with pytest.raises(Unavailable, match="free GPU memory"):
        builder.compile(artifact)


def test_rtx_engines_are_written_and_kept(artifact: Artifact) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    for how in ("built", "kept"):
        rows = list(compile_artifact(read_artifact(artifact.path), "tensorrt-rtx", architectures=("sm89", "sm86")))
        assert [(row.how, row.architecture, row.error) for row in rows] == [(how, "sm89-sm86", None)] * 3
    written = read_artifact(artifact.path)
    assert written.version == artifact.version
    assert {path for path in written.manifest.files if path.startswith("tensorrt")} == {
        f"tensorrt-rtx/sm89-sm86/{graph}.{kind}" for graph in artifact.manifest.graphs for kind in ("engine", "json")
    }


def test_cpu_is_measured_and_nothing_is_written(artifact: Artifact) -> None:
    rows = list(compile_artifact(artifact, "cpu"))
    assert [(row.graph, row.how) for row in rows] == [(graph, "measured") for graph in artifact.manifest.graphs]
    assert all(row.error is not None and row.error < 1e-4 and row.layers > 5 for row in rows)
    assert read_artifact(artifact.path).manifest == artifact.manifest


@pytest.mark.parametrize(
    ("target", "architectures", "field"),
    [("gpu", (), "target"), ("cpu", ("sm86",), "architecture"), ("tensorrt-rtx", ("sm90",), "architecture"),
     ("tensorrt-rtx", ("../x",), "architecture")],
)  # fmt: skip
def test_what_cannot_be_compiled_for(artifact: Artifact, target: Any, architectures: Any, field: str) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    with pytest.raises(InvalidInput) as caught:
        list(compile_artifact(artifact, target, architectures=architectures))
    assert caught.value.field == field


def test_another_gpu_than_this_machines(builder: Builder, artifact: Artifact) -> None:
    with pytest.raises(InvalidInput, match=f"this machine's: {ARCHITECTURE}"):
        builder.compile(artifact, architectures=("sm90",))
