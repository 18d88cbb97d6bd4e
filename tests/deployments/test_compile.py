"""`playhead compile`, from the command line to the files of the artifact."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from deployments.cli import app
from serve.artifacts import read_artifact, set_champion
from tests.contracts.small_model import copy_of, small_artifact

GRAPHS = list(small_artifact().manifest.graphs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models = tmp_path / "home" / "models"
    path = copy_of(small_artifact(), models / "small")
    set_champion(models, "small", path.name)
    return path


@pytest.fixture
def compile_model(tmp_path: Path) -> Any:
    runner = CliRunner(env={"PLAYHEAD_HOME": str(tmp_path / "home"), "COLUMNS": "80"})
    return lambda *arguments: runner.invoke(app, ["compile", *arguments])


def answer(result: Result) -> Any:
    return json.loads(result.stdout.splitlines()[-1])


def test_for_the_cpu(compile_model: Any, folder: Path) -> None:
    result = compile_model("small", "--target", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    fields = answer(result)
    assert (fields["model"], fields["version"], fields["target"]) == ("small", folder.name, "cpu")
    assert [row["graph"] for row in fields["graphs"]] == GRAPHS
    assert all(row["complete"] and row["latency_ms"] > 0 and row["error"] < 1e-4 for row in fields["graphs"])


def test_for_rtx_gpus(compile_model: Any, folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    result = compile_model("small", "--target", "tensorrt-rtx", "--arch", "sm86,sm89", "--version", folder.name)
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith(tuple(GRAPHS))]
    assert [line[:2] for line in lines] == [[graph, "sm86-sm89"] for graph in GRAPHS]
    assert all("yes" in line and "built" in line for line in lines)
    artifact = read_artifact(folder)
    assert artifact.version == folder.name
    for graph in GRAPHS:
        assert artifact.read_bytes(f"tensorrt-rtx/sm86-sm89/{graph}.engine")
    again = compile_model("small", "--target", "tensorrt-rtx", "--json")
    assert [row["how"] for row in answer(again)["graphs"]] == ["kept"] * 3
    anew = compile_model("small", "--target", "tensorrt-rtx", "--again", "--json")
    assert [row["how"] for row in answer(anew)["graphs"]] == ["built"] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines with no GPU")
def test_for_a_gpu_that_is_not_here(compile_model: Any, folder: Path) -> None:
    result = compile_model("small", "--target", "tensorrt", "--json")
    assert result.exit_code == 1
    error = answer(result)["error"]
    assert "tensorrt" in error["got"] or "GPU" in error["got"]
    assert "playhead[gpu]" in error["next_step"]
    assert "--target tensorrt-rtx" in error["next_step"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("small", "--target", "gpu"), "target"),
        (("small", "--target", "cpu", "--arch", "sm86"), "architecture"),
        (("small", "--target", "cpu", "--version", "0" * 12), "version"),
        (("small", "--target", "cpu", "--version", "../../x"), "version"),
        (("other", "--target", "cpu"), "model"),
        (("../small", "--target", "cpu"), "model"),
    ],
)
def test_what_is_not_there(compile_model: Any, folder: Path, arguments: tuple[str, ...], field: str) -> None:
    result = compile_model(*arguments, "--json")
    assert result.exit_code == 1
    assert answer(result)["error"]["field"] == field


def test_a_damaged_artifact_is_not_compiled(compile_model: Any, folder: Path) -> None:
    program = folder / "encoder.pt2"
    program.write_bytes(program.read_bytes()[:-1] + b"\x00\x00")
    result = compile_model("small", "--target", "tensorrt-rtx", "--json")
    assert result.exit_code == 1
    assert "encoder.pt2" in answer(result)["error"]["field"]
    assert not (folder / "tensorrt-rtx").exists()
