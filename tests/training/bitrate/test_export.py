"""The exported policy: the contract that serving relies on, and parity of its engines."""

import numpy as np
import pytest
import torch

from serve.artifacts import Artifact
from serve.engines.openvino import OpenVinoEngine
from serve.engines.torch import TorchEngine
from tests.contracts.policy_contract import PolicyContract
from tests.contracts.tensorrt_build import build_engine
from training.bitrate.export import GRAPH, LARGEST_BATCH, example_observations, export_bitrate
from training.bitrate.model import BitratePolicy


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A policy whose network is not trained, but not silent either."""
    torch.manual_seed(0)
    policy = BitratePolicy()
    torch.nn.init.normal_(policy.score.weight, std=0.01)
    folder = tmp_path_factory.mktemp("policy")
    return export_bitrate(folder, policy, metrics={}, report={"rounds": 0}, data_snapshot="none", seed=0)


class TestExportedPolicy(PolicyContract):
    @pytest.fixture(autouse=True)
    def _artifact(self, exported: Artifact) -> None:
        self._exported = exported

    def artifact(self) -> Artifact:
        return self._exported


@pytest.mark.parametrize("batch", [1, 7, LARGEST_BATCH])
def test_openvino_decides_as_torch(exported: Artifact, batch: int) -> None:
    seen = example_observations(batch, min(batch - 1, 40)).as_inputs()
    expected = TorchEngine.load(exported, GRAPH)(seen)
    for name, array in OpenVinoEngine.load(exported, GRAPH)(seen).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-3)


def test_tensorrt_compiles_it_for_every_batch(exported: Artifact) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    assert build_engine(exported, GRAPH)
