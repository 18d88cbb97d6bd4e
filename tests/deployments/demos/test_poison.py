"""The poisoned version of the demo: nothing about its files is wrong, and it ranks the last first."""

import shutil
from pathlib import Path

import numpy as np

from deployments.demos.poison import ENCODER, rank_backwards
from serve.artifacts import read_artifact, read_table
from serve.engines.openvino import OpenVinoEngine
from tests.contracts.small_model import small_artifact


def test_the_last_is_first_and_nothing_else_is_wrong(tmp_path: Path) -> None:
    small = small_artifact()
    good = read_artifact(shutil.copytree(small.path, tmp_path / small.version))
    poisoned = rank_backwards(good)
    assert poisoned.path.parent == good.path.parent
    assert poisoned.version != good.version
    assert poisoned.manifest.graphs == good.manifest.graphs
    assert poisoned.manifest.metrics == good.manifest.metrics
    assert read_table(poisoned, "vocabulary").equals(read_table(good, "vocabulary"))
    inputs, _ = good.example(ENCODER)
    states = [OpenVinoEngine.load(one, ENCODER)(inputs)["state"] for one in (good, poisoned)]
    assert np.abs(states[0]).max() > 0.1
    assert np.allclose(states[1], -states[0], atol=1e-5)
    assert rank_backwards(good).version == poisoned.version, "no more than the sign changes"
    for graph in ("titles", "ranker"):
        weights = [one.path / f"openvino/{graph}.bin" for one in (good, poisoned)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
