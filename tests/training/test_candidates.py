"""Candidates: who becomes champion, what the registry hears, and the same as a job. Here because of its Ray."""

import json
import shutil
import socket

import pytest
import torch

from deployments.candidates import _register, run_as_job, train_and_settle, train_candidate
from deployments.progress import Moment
from serve.artifacts import read_artifact, read_champion, set_champion
from serve.errors import InvalidInput
from serve.rollout.standing import SERVING
from tests.deployments.conftest import Notices
from tests.training.recommend import audience
from tests.training.recommend.test_pipeline import pl_titles
from tests.training.versions import settings_of
from training.datasets.dataset import write_dataset
from training.gates.gate import _champion
from training.jobs import Resources
from training.recommend.train import FitSettings
from training.registry import Registry

TINY = FitSettings(epochs=2, patience=2, warmup=5, batch=16)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def dataset(home):
    events = audience.events(users=40, length=8)
    return write_dataset(home / "data" / "chain", source="test", events=events, titles=pl_titles(audience.titles()))


@pytest.fixture
def notices(monkeypatch):
    monkeypatch.setattr("deployments.candidates.threads", lambda: 1)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    threads = torch.get_num_threads()
    yield Notices()
    torch.set_num_threads(threads)


def notes(notices, phase):
    return [one.text for one in notices.told if (one.phase, one.moment) == (phase, Moment.NOTE)]


def test_the_first_is_champion_the_next_a_candidate_and_the_registry_knows_both(home, dataset, notices, monkeypatch):
    settings = settings_of(home)
    with socket.socket() as nobody:  # bound, but not listening
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        first, published = train_and_settle("recommend", settings, notices, dataset=dataset, fitting=TINY)
    assert published  # a registry that is down costs no model
    assert read_champion(settings.models, "recommend") == first.path
    assert notes(notices, "registry")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    second, published = train_and_settle(
        "recommend", settings, notices, dataset=dataset, fitting=TINY, seed=1, warm=True
    )
    assert not published
    assert read_champion(settings.models, "recommend") == first.path
    assert second.manifest.lineage.parent == first.version
    registry = Registry.of(settings)
    assert {one.version for one in registry.versions("recommend")} == {first.version, second.version}
    assert registry.find("recommend", second.version).run == second.manifest.lineage.run != ""


def test_after_a_rollout_the_version_that_answers_is_the_champion(home, dataset, notices):
    """Whatever the folder's pointer still names: for warm starts, for gates, and for who becomes champion."""
    settings = settings_of(home)
    named = read_champion(settings.models, "recommend")
    (second,) = {path.parent.name for path in named.parent.glob("*/manifest.json")} - {named.name}
    note = named.parent / SERVING
    note.write_text(json.dumps({"champion": second, "taken": named.name}))
    warm, published = train_and_settle(
        "recommend", settings, notices, warm=True, seed=2, dataset=dataset, fitting=TINY, tracked=False
    )
    assert (warm.manifest.lineage.parent, published) == (second, False)
    assert _champion(settings, "recommend", None).version == second
    note.unlink()


def test_a_version_becomes_champion_where_none_answers_or_where_it_is_asked_for(
    tmp_path, notices, versions, monkeypatch
):
    """And is said to be only where it will answer."""
    settings = settings_of(tmp_path)
    folder = settings.models / "small"
    first, second, _ = (shutil.copytree(one.path, folder / one.version) for one in versions)
    monkeypatch.setattr("deployments.candidates.train_candidate", lambda *_, **__: read_artifact(second))

    def settled(**options):
        _, published = train_and_settle("small", settings, notices, tracked=False, **options)
        return published, read_champion(settings.models, "small")

    note = folder / SERVING
    note.write_text(json.dumps({"champion": first.name, "taken": None}))
    assert settled() == (False, None), "a version that was fetched answers here: to name another would publish it"
    note.unlink()
    assert settled() == (True, second)
    set_champion(settings.models, "small", first.name)
    assert settled() == (False, first)
    assert settled(publish=True) == (True, second)
    note.write_text(json.dumps({"champion": first.name, "taken": second.name}))
    assert settled(publish=True) == (False, second), "it was published before, and rolled back"


def test_earlier_versions_are_registered_with_the_next_whatever_became_of_one_of_them(tmp_path, notices, versions):
    """One is damaged, and the run of another is another registry's: neither holds the others up."""
    settings = settings_of(tmp_path)
    folder = settings.models / "small"
    damaged, elsewhere, newest = (shutil.copytree(one.path, folder / one.version) for one in versions)
    manifest = elsewhere / "manifest.json"
    document = json.loads(manifest.read_text())
    document["lineage"]["run"] = "0" * 32
    manifest.write_text(json.dumps(document))
    (damaged / "manifest.json").write_text("{")
    registry = Registry.of(settings, {})
    with registry.run("small") as run:
        _register(read_artifact(newest), settings, run.id, notices)
    assert {one.version for one in registry.versions("small")} == {elsewhere.name, newest.name}
    (told,) = notes(notices, "registry")
    assert told.startswith(f"{damaged.name} is not registered")


def test_what_cannot_be_trained_is_refused(tmp_path, dataset, notices):
    settings = settings_of(tmp_path)
    with pytest.raises(InvalidInput, match="champion"):
        train_candidate("recommend", settings, notices, dataset=dataset, warm=True)
    with pytest.raises(InvalidInput, match="a data set"):
        train_candidate("recommend", settings, notices, tracked=False)
    with pytest.raises(InvalidInput, match="recommend, bitrate, quality or detectors"):
        train_candidate("weather", settings, notices, tracked=False)


def test_a_job_trains_the_same_version(small_ray, home, tmp_path, dataset, notices):
    """Weights, graphs and tables are those of training in this process, and progress comes back."""
    settings = settings_of(tmp_path)
    until_ms = int(dataset.frame("events")["ts"].quantile(0.8))
    options = {"dataset": dataset, "tracked": False, "until_ms": until_ms, "fitting": TINY}
    expected = train_candidate("recommend", settings_of(tmp_path / "here"), Notices(), **options)
    made, published = run_as_job("recommend", settings, notices, resources=Resources(cpus=1), **options)
    assert published
    assert made.path.is_relative_to(settings.models)
    assert any(one.phase == "training" and one.moment is Moment.DONE for one in notices.told)
    assert made.manifest.lineage.last_ts_ms < until_ms
    assert made.version == expected.version
