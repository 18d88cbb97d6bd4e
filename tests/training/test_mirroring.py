"""Plans mirrored into the registry: a real store, a real registry, real versions."""

import shutil
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import orjson
import psutil
import pytest
import redis

from features.settings import Settings
from serve.artifacts import Artifact, read_artifact
from serve.errors import Unavailable
from serve.rollout.board import MODELS, plan_key
from serve.rollout.plans import RolloutPlan
from tests.training.versions import settings_of, variant
from training import mirroring
from training.mirroring import Followed, InChild, RegistryMirror, follow_plan, in_process
from training.registry import Registry

MODEL = "small"


@pytest.fixture
def own(registry: Registry, versions: list[Artifact], tmp_path: Path) -> tuple[Registry, Path, list[Artifact]]:
    """The shared registry, a models' folder, and two versions in it that the registry does not know."""
    models = tmp_path / "models"
    mark = abs(hash(tmp_path.name)) % 10**9
    return registry, models, [variant(versions[0], models / MODEL, mark + more) for more in (0, 1)]


def put(store: redis.Redis, plan: RolloutPlan) -> None:
    store.set(plan_key(plan.model), orjson.dumps(plan.as_json()))
    store.sadd(MODELS, plan.model)


def test_aliases_say_what_the_plan_says(own: tuple[Registry, Path, list[Artifact]]) -> None:
    registry, models, (one, two) = own
    plan = RolloutPlan(model=MODEL, revision=1, champion=one.version, challenger=two.version)
    alone = follow_plan(registry, plan)
    assert len(alone.missing) == 2
    assert "the registry does not know it" in alone.missing[0]
    first = follow_plan(registry, plan, models)
    assert first.registered == (one.version, two.version)
    assert registry.aliases(MODEL) == {"champion": one.version, "challenger": two.version}
    assert follow_plan(registry, plan, models) == Followed()
    promoted = plan.promoted(2)
    assert set(follow_plan(registry, promoted, models).changed) == {"champion", "challenger", "previous"}
    assert registry.aliases(MODEL) == {"champion": two.version, "previous": one.version}
    strange = follow_plan(registry, RolloutPlan(model=MODEL, champion="../../etc"), models)
    assert strange.missing == ("'../../etc' is no version",)
    gone = follow_plan(registry, RolloutPlan(model=MODEL, champion="0" * 12), models)
    assert "000000000000" in gone.missing[0]
    assert registry.aliases(MODEL) == {}  # not the champion that was


def test_a_machine_that_lacks_a_version_fetches_it(
    own: tuple[Registry, Path, list[Artifact]], tmp_path: Path, store: redis.Redis
) -> None:
    registry, models, (one, two) = own
    put(store, RolloutPlan(model=MODEL, revision=1, champion=one.version, shadow=two.version))
    RegistryMirror(models, in_process(registry, models)).look(store)
    elsewhere = tmp_path / "elsewhere"
    mirror = RegistryMirror(elsewhere, in_process(registry, elsewhere))
    assert mirror.look(store)[MODEL].fetched == (one.version, two.version)
    assert read_artifact(elsewhere / MODEL / two.version).manifest == two.manifest
    assert mirror.look(store) == {}
    shutil.rmtree(elsewhere / MODEL / one.version)
    assert mirror.look(store)[MODEL].fetched == (one.version,)


def test_it_waits_for_what_is_away_and_says_so_once(
    own: tuple[Registry, Path, list[Artifact]], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, store: redis.Redis,
) -> None:  # fmt: skip
    registry, models, (one, _) = own
    monkeypatch.setattr(mirroring, "_FIRST_REST_S", 0.0)
    put(store, RolloutPlan(model=MODEL, revision=1, champion=one.version))
    down = Registry.of(settings_of(tmp_path), {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    mirror = RegistryMirror(models, in_process(down, models))
    for _ in range(3):
        (trouble,) = mirror.look(store)[MODEL].missing
        assert "registry" in trouble
    assert caplog.text.count("an MLflow registry that answers") == 1
    mirror._work = in_process(registry, models)
    put(store, RolloutPlan(model="No Model", revision=1, champion=one.version))
    followed = mirror.look(store)
    assert followed[MODEL].registered == (one.version,)  # whatever is wrong with another's plan
    assert "model" in followed["No Model"].missing[0]
    with redis.Redis(port=1, socket_timeout=1, retry=None) as nobody:
        for _ in range(3):
            assert mirror.look(nobody) == {}
    assert caplog.text.count("the store does not answer") == 1
    store.set(plan_key(MODEL), b"{}")
    for _ in range(3):
        assert MODEL not in mirror.look(store)
    assert caplog.text.count("cannot be read") == 1


def test_it_works_in_a_process_of_its_own_that_is_kept_for_a_while(
    own: tuple[Registry, Path, list[Artifact]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, (one, two) = own
    monkeypatch.setenv("PLAYHEAD_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = {child.pid for child in psutil.Process().children()}

    def workers() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child.pid not in before]

    plan = RolloutPlan(model=MODEL, revision=1, champion=one.version)
    with closing(InChild(threading.Event())) as work:
        assert work([plan])[MODEL].registered == (one.version,)
        (first,) = workers()
        assert work([replace(plan, revision=2, challenger=two.version)])[MODEL].registered == (two.version,)
        assert workers() == [first]
        first.kill()
        first.wait()
        assert work([replace(plan, revision=3)])[MODEL].changed == ("challenger",)
        (second,) = workers()
        assert second != first
    assert not workers()
    assert Registry.of(settings_of(tmp_path), {}).aliases(MODEL) == {"champion": one.version}


def test_a_process_that_cannot_work_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.setenv("PLAYHEAD_STORE_DEADLINE_MS", "never")
    with pytest.raises(Unavailable, match="exit status 1"):
        InChild(threading.Event())([RolloutPlan(model=MODEL, revision=1)])


def test_a_process_that_works_is_ended_when_all_is_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(silent))
    stop = threading.Event()
    stop.set()
    with pytest.raises(Unavailable, match="told to stop"):
        InChild(stop)([RolloutPlan(model=MODEL, revision=1)])


def test_a_process_ends_when_no_plans_come() -> None:
    code = "from training import mirroring; mirroring.KEPT_S = 0.0; mirroring.main()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert child.wait(60) == 0
    assert child.stdin is not None
    child.stdin.close()
