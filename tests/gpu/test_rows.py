"""The GPU suite's own parts, as far as they run without a GPU."""

import json
import subprocess
import sys

import pytest
import torch

from serve.engines import load_engine
from tests.contracts.small_model import small_artifact
from tests.gpu.rows import as_json, batches, markdown, measured, on_cuda


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines with no GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.suite"], capture_output=True, text=True, timeout=120, check=True
    )
    said, fields = done.stdout.splitlines()
    assert said.startswith("test-gpu: skipped, nothing was tested: no usable NVIDIA GPU")
    assert json.loads(fields)["passed"] is False
    assert json.loads(fields)["rows"] == []


def test_ways_are_compared_and_failures_are_told() -> None:
    artifact = small_artifact()

    def broken() -> object:
        raise RuntimeError("no kernel | for this")

    ways = {
        "cpu": lambda: load_engine(artifact, "encoder", "cpu"),
        "torch": lambda: on_cuda(artifact, "encoder", compiler=None, device="cpu"),
        "broken": broken,
    }
    rows = measured(artifact, "encoder", 8, ways, calls=3)  # type: ignore[arg-type]
    assert [row["way"] for row in rows] == list(ways)
    assert all(row["error"] < 1e-4 and row["ms"] > 0 for row in rows[:2])
    assert rows[0]["times_cpu"] == 1
    assert rows[2]["failed"] == "RuntimeError: no kernel | for this"
    table = markdown([*rows, {"model": "m", "graph": "g", "batch": 0, "way": "refit", "result": "in 1 s"}]).splitlines()
    assert len(table) == 6
    assert {line.count("|") for line in table} == {9}
    assert json.loads(as_json(rows, passed=True))["rows"][0]["batch"] == 8


def test_batches_that_are_measured() -> None:
    assert batches(small_artifact(), "encoder") == [1, 8, 16]
    assert batches(small_artifact(), "titles") == [0]
