"""The registry of versions: an embedded MLflow, real artifacts, and what goes wrong with both."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from serve.artifacts import Artifact
from serve.errors import ArtifactError, InvalidInput, NotFound, Unavailable
from tests.training.versions import settings_of, variant
from training.lineage import environment
from training.registry import LINEAGE_TAG, METRICS_TAG, Registered, Registry
from training.runs import PROCESS_TAG, this_process

MODEL = "small"


def registered(registry: Registry, artifact: Artifact) -> Registered:
    known = registry.find(MODEL, artifact.version)
    if known is not None:
        return known
    with registry.run(MODEL) as run:
        return registry.register(artifact, run.id)


def test_a_run_keeps_what_it_was_told_and_how_it_ended(registry: Registry) -> None:
    with registry.run(MODEL, parameters={"lr": 0.1, "net": {"layers": [1, 2]}}, tags={"seed": "7"}) as run:
        for step in range(3):
            run.metrics({"hr@10": 0.1 * step, "loss": float("nan")}, step)
        run.text("notes/words.txt", "said")
    client = registry._tracking._opened()
    found = client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1", "net.layers": "[1, 2]"}
    assert found.data.tags["seed"] == "7"
    assert [point.value for point in client.get_metric_history(run.id, "hr_at_10")] == [0.0, 0.1, 0.2]
    assert [entry.path for entry in client.list_artifacts(run.id, "notes")] == ["notes/words.txt"]
    with pytest.raises(ZeroDivisionError), registry.run(MODEL) as failed:
        1 / 0  # noqa: B018
    assert client.get_run(failed.id).info.status == "FAILED"
    assert "ZeroDivisionError" in client.get_run(failed.id).data.tags["error"]


def test_runs_of_processes_that_were_killed_are_told_to_be_so(registry: Registry) -> None:
    """By the next run of the model; those of processes that live, and of other machines, are left alone."""
    began_s = f"{psutil.Process().create_time():.0f}"
    numbering = this_process().rpartition(" ")[0].rpartition(" ")[0]
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait(60)
    processes = {
        "killed": f"{numbering} {gone.pid} {began_s}",
        "its number is another's": f"{numbering} {os.getpid()} 1000",
        "lives": this_process(),
        "elsewhere": f"elsewhere {gone.pid} {began_s}",
        "nobody knows": "",
    }
    with registry.run(MODEL) as other:
        client = registry._tracking._opened()
        experiment = client.get_run(other.id).info.experiment_id
        runs = {
            name: client.create_run(experiment, tags={PROCESS_TAG: process}).info.run_id
            for name, process in processes.items()
        }
        with registry.run(MODEL):
            found = {name: client.get_run(run_id).info.status for name, run_id in runs.items()}
            assert client.get_run(other.id).info.status == "RUNNING"
    assert found == {
        "killed": "KILLED", "its number is another's": "KILLED", "lives": "RUNNING", "elsewhere": "RUNNING",
        "nobody knows": "RUNNING",
    }  # fmt: skip
    for run_id in runs.values():
        client.set_terminated(run_id)


def test_a_version_is_registered_once_and_comes_back_as_it_was(
    registry: Registry, versions: list[Artifact], tmp_path: Path
) -> None:
    with registry.run(MODEL) as run:
        first = registry.register(versions[0], run.id)
    with registry.run(MODEL) as run:
        assert registry.register(versions[0], run.id) == first
    assert first.version == versions[0].version
    assert first.document(LINEAGE_TAG)["seed"] == 0
    assert first.document(LINEAGE_TAG)["environment"] == environment()
    assert first.document(METRICS_TAG) == {"ndcg@10": 0.25}
    assert [entry.version for entry in registry.versions(MODEL)].count(first.version) == 1
    fetched = registry.fetch(MODEL, first.version, tmp_path)
    assert fetched.path == (tmp_path / MODEL / first.version).resolve()
    assert fetched.manifest == versions[0].manifest
    assert registry.fetch(MODEL, first.version, tmp_path).version == first.version
    assert [path.name for path in (tmp_path / MODEL).iterdir()] == [first.version]


def test_aliases_move_and_go(registry: Registry, versions: list[Artifact]) -> None:
    for artifact in versions[:2]:
        registered(registry, artifact)
    registry.set_alias(MODEL, "champion", versions[0].version)
    registry.set_alias(MODEL, "champion", versions[1].version)
    registry.set_alias(MODEL, "challenger", versions[0].version)
    assert registry.aliases(MODEL) == {"champion": versions[1].version, "challenger": versions[0].version}
    for _ in range(2):  # twice is fine
        registry.set_alias(MODEL, "challenger", None)
    assert registry.aliases(MODEL) == {"champion": versions[1].version}
    with pytest.raises(NotFound, match="version"):
        registry.set_alias(MODEL, "champion", "0" * 12)
    with pytest.raises(InvalidInput, match="champion, challenger, previous"):
        registry.set_alias(MODEL, "latest", versions[0].version)
    with pytest.raises(InvalidInput, match="model"):
        registry.versions("no' OR '1'='1")


@pytest.mark.parametrize("damage", ["altered", "missing file", "missing folder", "stranger"])
def test_what_is_damaged_in_the_registry_never_lands_in_the_models_folder(
    registry: Registry, versions: list[Artifact], tmp_path: Path, damage: str
) -> None:
    found = registered(registry, versions[2])
    kept = Path(found.source.removeprefix("file://"))
    target = kept / "vocabulary.parquet"
    content = target.read_bytes()
    moved = kept.with_name("moved")
    try:
        if damage == "altered":
            target.write_bytes(content[:-1] + b"?")
        elif damage == "missing file":
            target.unlink()
        elif damage == "stranger":
            (kept / "more.bin").write_bytes(b"0")
        else:
            kept.rename(moved)
        with pytest.raises(ArtifactError, match=f"registry: {MODEL} {found.version}"):
            registry.fetch(MODEL, found.version, tmp_path)
    finally:
        if moved.exists():
            moved.rename(kept)
        (kept / "more.bin").unlink(missing_ok=True)
        target.write_bytes(content)
    assert list((tmp_path / MODEL).iterdir()) == []
    assert registry.fetch(MODEL, found.version, tmp_path).version == found.version


def test_a_damaged_artifact_is_not_registered(registry: Registry, versions: list[Artifact], tmp_path: Path) -> None:
    artifact = variant(versions[0], tmp_path, 99)
    (artifact.path / "vocabulary.parquet").write_bytes(b"no table")
    with registry.run(MODEL) as run, pytest.raises(ArtifactError, match="vocabulary"):
        registry.register(artifact, run.id)
    assert registry.find(MODEL, artifact.version) is None


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_registry_that_is_down_is_told_at_once(scheme: str, versions: list[Artifact], tmp_path: Path) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    registry = Registry.of(settings_of(tmp_path), {"MLFLOW_TRACKING_URI": f"{scheme}://me:secret@127.0.0.1:{port}/x"})
    began = time.monotonic()
    with pytest.raises(Unavailable, match="registry") as caught:
        registry.versions()
    with pytest.raises(Unavailable), registry.run(MODEL):
        pass
    assert time.monotonic() - began < 5
    assert "secret" not in str(caught.value)


def test_a_registry_that_hangs_is_told_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections, as a server that was stopped does, and answers nothing."""
    monkeypatch.setattr("training.tracking._CONNECT_S", 0.2)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as hung:
        address = f"http://127.0.0.1:{hung.getsockname()[1]}"
        registry = Registry.of(settings_of(tmp_path), {"MLFLOW_TRACKING_URI": address})
        began = time.monotonic()
        with pytest.raises(Unavailable, match="timed out"):
            registry.versions()
        assert time.monotonic() - began < 5


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_text("no database at all" * 100)
    with pytest.raises(Unavailable, match="not a database"):
        Registry.of(settings_of(tmp_path), {}).versions()


def test_a_run_outlives_a_registry_that_goes_away(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder is really away, as a disk that was not mounted; what was told meanwhile is sent afterwards."""
    monkeypatch.setattr("training.tracking._TRUSTED_S", -1.0)
    monkeypatch.setattr("training.runs._REST_S", 0.0)
    folder = registry._tracking.database.parent
    away = folder.with_name("away")
    with registry.run(MODEL) as run:
        folder.rename(away)
        folder.touch()
        try:
            run.metric("loss", 1.0, 1)
            assert "1 metrics wait for the registry" in caplog.text
            with pytest.raises(Unavailable):
                run.text("words.txt", "unsaid")
        finally:
            folder.unlink()
            away.rename(folder)
        run.metric("loss", 0.5, 2)
    history = registry._tracking._opened().get_metric_history(run.id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]


_TWO = """
import sys
from pathlib import Path
from features.settings import Settings
from serve.artifacts import read_artifact
from training.registry import Registry
home, path, mark = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
registry = Registry.of(Settings(home=home, redis_url="", feast_registry=""), {})
with registry.run("small") as run:
    for step in range(12):
        run.metrics({"loss": 1.0 / (step + 1)}, step)
        run.flush()
    registry.register(read_artifact(path), run.id)
    registry.set_alias("small", "champion", read_artifact(path).version)
"""


def test_two_processes_at_once_share_a_fresh_store(versions: list[Artifact], tmp_path: Path) -> None:
    """Both make it, write 12 times and register the same version; nothing is printed where answers go."""
    command = [sys.executable, "-c", _TWO, str(tmp_path), str(versions[0].path)]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    both = [
        subprocess.Popen([*command, mark], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
        for mark in "ab"
    ]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert [out for out, _ in told] == ["", ""]
    registry = Registry.of(settings_of(tmp_path), {})
    assert [entry.version for entry in registry.versions()] == [versions[0].version]
    assert registry.aliases(MODEL) == {"champion": versions[0].version}
