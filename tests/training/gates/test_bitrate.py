"""The policy's gate: the same is no change, a policy that always takes the top rung is rejected for its sessions."""

from pathlib import Path

import pytest
import torch

from serve.artifacts import Artifact, Lineage
from training.bitrate.export import export_bitrate
from training.bitrate.material import Material
from training.bitrate.model import BitratePolicy, Features
from training.gates.bitrate import BitrateSettings, gate_bitrate
from training.gates.verdict import Verdict

QUICK = BitrateSettings(traces=32, timed=40)


class Greedy(BitratePolicy):
    """Takes the top rung whatever it sees."""

    def scores(self, features: Features) -> torch.Tensor:
        given = super().scores(features)
        return given * 1e-3 + torch.arange(given.shape[1], dtype=given.dtype)


def exported(policy: BitratePolicy, folder: Path) -> Artifact:
    lineage = Lineage(dataset="generated", environment={"python": "3"})
    artifact = export_bitrate(folder, policy, metrics={}, report={}, data_snapshot="test", seed=0)
    manifest = artifact.manifest.model_copy(update={"lineage": lineage})
    return Artifact(path=artifact.path, manifest=manifest)


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    return exported(BitratePolicy(), tmp_path_factory.mktemp("bitrate"))


def ask(candidate: Artifact, champion: Artifact) -> Verdict:
    return gate_bitrate(candidate, champion, settings=QUICK, material=Material.read(None, None, None))


def test_the_same_policy_is_no_change(champion: Artifact) -> None:
    verdict = ask(champion, champion)
    assert [check.name for check in verdict.failed] == ["no change"]
    assert not verdict.better
    assert {one.group for one in verdict.comparisons} == {"all", "3g", "4g", "5g", "broadband", "wifi"}


def test_a_greedy_policy_stalls_and_is_rejected(champion: Artifact, tmp_path: Path) -> None:
    torch.manual_seed(0)
    verdict = ask(exported(Greedy(), tmp_path), champion)
    failed = {check.name for check in verdict.failed}
    assert {"qoe", "stalls", "qoe p5", "qoe: 3g"} <= failed
    assert "no change" not in failed
    assert verdict.facts["sessions"] == 5 * QUICK.traces
