"""Export: the same content is the same version, what is wrong is said before anything appears."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from serve.artifacts import Artifact, read_artifact
from serve.engines import load_engine
from serve.errors import ArtifactError, InvalidInput
from serve.tensors import GraphSpec, Ranking, TensorSpec
from tests.contracts.small_model import export, small_artifact
from training.export import ExportGraph, _trials, export_artifact


class Scale(nn.Module):
    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([factor]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1) * self.factor


class OnlyPairs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[0] + x[1].sum()


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1) if x.sum() > 0 else x.sum(1) * 2


class Unstable(nn.Module):
    """A chaotic map: whoever rounds differently ends elsewhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(60):
            x = torch.sin(x * 3.7 + torch.tanh(x)) * 2
        return x.sum(1)


class Best(nn.Module):
    """The 64 best rows of a table."""

    def forward(self, state: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        score, rows = (state @ table.T).topk(64, dim=1)
        return rows, score


SPEC = GraphSpec((TensorSpec("x", "float32", ("B", 3)),), (TensorSpec("y", "float32", ("B",)),), {"B": (1, 8)})


def export_one(folder: Path, module: nn.Module, spec: GraphSpec = SPEC, **changes: object) -> Artifact:
    settings = {
        "name": "scale",
        "graphs": {"g": ExportGraph(module=module, example={"x": torch.ones(2, 3)}, spec=spec)},
        "tables": {"rows": pa.table({"row": [1]})},
        "parameters": {"length": 3},
        "metrics": {},
    }
    return export_artifact(folder, **{**settings, **changes})


def test_the_small_model_is_the_same_version_again(tmp_path: Path) -> None:
    again = export(tmp_path, graphs=("encoder",))
    files = small_artifact().manifest.files
    assert {name: digest for name, digest in again.manifest.files.items() if "encoder" in name} == {
        name: digest for name, digest in files.items() if "encoder" in name
    }


def test_the_version_is_that_of_the_content(tmp_path: Path) -> None:
    first = export_one(tmp_path, Scale())
    assert first.path == tmp_path / first.version
    created = first.manifest.created
    again = export_one(tmp_path, Scale())
    assert again.version == first.version
    assert again.manifest.created == created  # what is there and intact stays as it is
    others = {
        export_one(tmp_path, Scale(3.0)).version,
        export_one(tmp_path, Scale(), parameters={"length": 4}).version,
        export_one(tmp_path, Scale(), tables={"rows": pa.table({"row": [2]})}).version,
        first.version,
    }
    assert len(others) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_damaged_version_is_replaced(tmp_path: Path) -> None:
    first = export_one(tmp_path, Scale())
    (first.path / "g.pt2").write_bytes(b"")
    again = export_one(tmp_path, Scale())
    assert read_artifact(first.path).version == again.version


def test_nothing_in_it_tells_where_it_was_made(tmp_path: Path) -> None:
    artifact = export_one(tmp_path, Scale())
    for name in artifact.manifest.files:
        content = (artifact.path / name).read_bytes()
        assert str(tmp_path).encode() not in content
        assert str(Path(__file__).parent).encode() not in content


def test_it_runs_as_it_was_exported(tmp_path: Path) -> None:
    artifact = export_one(tmp_path, Scale())
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    for device in ("cpu", "torch"):
        np.testing.assert_allclose(load_engine(artifact, "g", device)({"x": x})["y"], x.sum(1) * 2)


def test_rows_that_repeat_in_a_trial_are_no_ties(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    spec = GraphSpec(
        inputs=(TensorSpec("state", "float32", ("B", 8)), TensorSpec("table", "float32", ("N", 8))),
        outputs=(TensorSpec("rows", "int64", ("B", 64), indexes="N"), TensorSpec("score", "float32", ("B", 64))),
        limits={"B": (1, 8), "N": (65, 10_000)}, ranking=Ranking(items="rows", score="score"),
    )  # fmt: skip
    example = {"state": random.normal(size=(2, 8)), "table": random.normal(size=(80, 8))}
    graph = ExportGraph(
        module=Best(), example={name: array.astype("float32") for name, array in example.items()}, spec=spec
    )
    artifact = export_one(tmp_path, Best(), graphs={"g": graph})  # tried at 4096 rows: each of the 80 some 51 times
    assert artifact.manifest.graphs["g"].ranking is not None


def spec_of(x: TensorSpec, *outputs: TensorSpec) -> GraphSpec:
    return GraphSpec((x,), outputs, {"B": (1, 8)})


X, Y = SPEC.inputs[0], SPEC.outputs[0]


@pytest.mark.parametrize(
    ("module", "spec", "error", "complaint"),
    [
        (Scale(), spec_of(X, TensorSpec("y", "float32", ("B", 1))), ArtifactError, r"g\.y"),
        (Scale(), spec_of(X, TensorSpec("y", "int64", ("B",))), ArtifactError, r"g\.y"),
        (Scale(), spec_of(X, Y, TensorSpec("z", "int64", ("B",))), ArtifactError, "outputs"),
        (Scale(), spec_of(TensorSpec("x", "float32", ("B", 4)), Y), InvalidInput, r"g\.x"),
        (Scale(), spec_of(TensorSpec("z", "float32", ("B", 3)), Y), InvalidInput, r"g\.x"),
        (OnlyPairs(), spec_of(X, TensorSpec("y", "float32", (3,))), ArtifactError, r"graphs\.g"),
        (Branch(), SPEC, ArtifactError, r"graphs\.g"),
        (Unstable(), SPEC, ArtifactError, r"g\.y.*against torch at"),
    ],
)
def test_a_bad_export_is_refused_and_leaves_nothing(
    module: nn.Module, spec: GraphSpec, error: type[Exception], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=complaint):
        export_one(tmp_path, module, spec)
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_no_bucket_holds_are_not_tried() -> None:
    assert [trial["B"] for trial in _trials(SPEC, {"B": 2})] == [2, 1, 8]
    assert [trial["B"] for trial in _trials(replace(SPEC, buckets=({"B": (1, 3, 3)},)), {"B": 2})] == [2, 1]
