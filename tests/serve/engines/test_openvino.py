"""OpenVINO keeps the engines' contract; what only it has: its own files, no torch, no usage reports."""

import subprocess
import sys
from pathlib import Path

import pytest

from serve.artifacts import Manifest
from serve.engines import load_engine
from serve.errors import ArtifactError
from tests.contracts.engine_contract import EngineContract
from tests.contracts.small_model import example, resealed_artifact, small_artifact


class TestOpenVino(EngineContract):
    device = "cpu"


def test_more_threads_give_the_same(tmp_path: Path) -> None:
    one, two = (load_engine(small_artifact(), "encoder", "cpu", threads=threads) for threads in (1, 2))
    inputs = example("encoder", batch=8, time=30)
    assert abs(one(inputs)["state"] - two(inputs)["state"]).max() < 1e-5


def test_a_graph_of_other_names_is_refused(tmp_path: Path) -> None:
    def rename(path: Path, manifest: Manifest) -> Manifest:
        xml = path / "openvino" / "encoder.xml"
        xml.write_text(xml.read_text().replace('names="actions"', 'names="deeds"'))
        return manifest

    artifact = resealed_artifact(small_artifact(), tmp_path, rename)
    with pytest.raises(ArtifactError, match=r"openvino/encoder\.xml: inputs.*deeds"):
        load_engine(artifact, "encoder", "cpu")


def test_what_openvino_cannot_read_is_refused(tmp_path: Path) -> None:
    def garble(path: Path, manifest: Manifest) -> Manifest:
        (path / "openvino" / "encoder.xml").write_text("<net>")
        return manifest

    artifact = resealed_artifact(small_artifact(), tmp_path, garble)
    with pytest.raises(ArtifactError, match=r"files\.openvino/encoder\.xml"):
        load_engine(artifact, "encoder", "cpu")


def test_serving_on_cpu_needs_no_torch_and_reports_to_nobody() -> None:
    script = (
        "import sys\n"
        "from serve.artifacts import read_artifact\n"
        "from serve.engines import load_engine\n"
        "load_engine(read_artifact(sys.argv[1]), 'encoder', 'cpu')\n"
        "print('torch' in sys.modules, [name for name in sys.modules if name.startswith('openvino_telemetry.')])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(small_artifact().path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert answer.stdout.strip() == "False []"
