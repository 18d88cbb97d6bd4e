"""What is kept of old versions, and what goes: real folders, an embedded registry, a real store."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
import redis

from features.settings import Settings
from serve.artifacts import Artifact, read_artifact, set_champion
from serve.errors import InvalidInput, Unavailable
from serve.rollout.board import plan_key
from serve.rollout.plans import RolloutPlan
from serve.rollout.standing import SERVING
from tests.contracts.small_model import resealed_artifact
from training import retention
from training.lineage import lineage_of
from training.registry import Registry
from training.retention import KEPT_SNAPSHOTS, KEPT_VARIABLE, kept_from_env, prune, using

MODEL = "small"
DAY_S = 86_400
SNAPSHOTS = [f"{MODEL}-{1_700_000_000_000 + place}" for place in range(10)]


@pytest.fixture(scope="module")
def made(versions: list[Artifact], tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """Ten versions, oldest first, a day apart, the newest a day old; each learned from a snapshot of its own."""
    folder = tmp_path_factory.mktemp("made")
    found = []
    for place, snapshot in enumerate(SNAPSHOTS):
        created = datetime.fromtimestamp(time.time() - (10 - place) * DAY_S, UTC)
        lineage = lineage_of(None, seed=place).model_copy(update={"dataset": snapshot})
        parameters = {**versions[0].manifest.parameters, "place": place}
        fields = {"created": created, "lineage": lineage, "parameters": parameters}
        found.append(
            resealed_artifact(
                versions[0], folder, lambda _path, manifest, fields=fields: manifest.model_copy(update=fields)
            )
        )
        os.utime(found[-1].path, (created.timestamp(), created.timestamp()))
    return found


class Home:
    """A home with those versions, their snapshots, reports, and the last two in the registry."""

    def __init__(self, settings: Settings, made: list[Artifact]) -> None:
        self.settings, self.made = settings, made
        self.folder = settings.models / MODEL
        for one in made:
            shutil.copytree(one.path, self.folder / one.version)
            (settings.home / "gates" / MODEL / one.version).mkdir(parents=True)
        for name in SNAPSHOTS:
            (settings.datasets / name).mkdir(parents=True)

    def version(self, place: int) -> str:
        return self.made[place].version

    def places(self) -> list[int]:
        """Of the versions that are there."""
        return [place for place, one in enumerate(self.made) if (self.folder / one.version).is_dir()]

    def snapshots(self) -> list[int]:
        return [place for place, name in enumerate(SNAPSHOTS) if (self.settings.datasets / name).is_dir()]

    def reports(self) -> list[int]:
        folder = self.settings.home / "gates" / MODEL
        return [place for place, one in enumerate(self.made) if (folder / one.version).is_dir()]


@pytest.fixture
def home(settings: Settings, made: list[Artifact], monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Home(settings, made)


def tell(store: redis.Redis, plan: RolloutPlan) -> None:
    store.set(plan_key(MODEL), orjson.dumps(plan.as_json()))


def meanwhile(home: Home, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> list[list[int]]:
    """Something happens after versions were set aside, before it is asked again what is named.

    Returns:
        The versions in the folder at each asking, filled in by the prune.
    """
    named, asked = retention._named, []

    def asking(*arguments: object) -> dict[str, str]:
        if asked:
            happens()
        asked.append(home.places())
        return named(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(retention, "_named", asking)
    return asked


def test_the_newest_stay_and_all_that_the_plan_names(home: Home, store: redis.Redis) -> None:
    champion, challenger, shadow, previous, published = (home.version(place) for place in (4, 3, 2, 1, 5))
    plan = RolloutPlan(model=MODEL, champion=champion, previous=previous, published=published, shadow=shadow)
    tell(store, plan.begun(challenger, 0.1, 1))
    for name in (f"{MODEL}-2024", "mine"):
        (home.settings.datasets / name).mkdir()
    checkpoints = home.settings.home / "training"
    checkpoints.mkdir()
    for place in (0, 9):
        (checkpoints / f"{MODEL}-{SNAPSHOTS[place]}-0-until-5.pt").touch()
    would = prune(home.settings, MODEL, keep=2, dry_run=True)
    assert home.places() == home.snapshots() == home.reports() == list(range(10))
    pruned = prune(home.settings, MODEL, keep=2)
    kept = [1, 2, 3, 4, 5, 8, 9]
    assert home.places() == home.reports() == kept
    assert home.snapshots() == sorted({*kept, *range(10 - KEPT_SNAPSHOTS, 10)})
    assert set(pruned.versions) == set(would.versions) == {home.version(place) for place in (0, 6, 7)}
    assert [pruned.kept[home.version(place)] for place in (4, 3, 2, 1, 5, 9)] == [
        "champion", "challenger", "shadow", "previous", "published", "newest",
    ]  # fmt: skip
    assert not pruned.trouble
    assert pruned.freed_bytes == would.freed_bytes > 10_000
    assert {path.name for path in home.settings.datasets.iterdir()} >= {f"{MODEL}-2024", "mine"}
    assert [path.name for path in checkpoints.iterdir()] == [f"{MODEL}-{SNAPSHOTS[9]}-0-until-5.pt"]
    assert prune(home.settings, MODEL, keep=2).versions == ()


def test_what_the_folder_and_aliases_name_stays_and_the_registrys_copies_go(home: Home) -> None:
    registry = Registry.of(home.settings, {})
    with registry.run(MODEL) as run:
        for place in (0, 1, 2):
            registry.register(read_artifact(home.folder / home.version(place)), run.id)
    registry.set_alias(MODEL, "previous", home.version(1))
    set_champion(home.settings.models, MODEL, home.version(3))
    (home.folder / SERVING).write_bytes(orjson.dumps({"champion": home.version(4), "taken": home.version(3)}))
    shutil.rmtree(home.folder / home.version(2))  # only the registry has it
    pruned = prune(home.settings, MODEL, keep=1)
    assert home.places() == [1, 3, 4, 9]
    assert set(pruned.versions) == {home.version(place) for place in (0, 2, 5, 6, 7, 8)}
    assert [one.version for one in registry.versions(MODEL)] == [home.version(1)]
    files = home.settings.home / "mlflow" / "artifacts"
    assert {path.parent.name for path in files.rglob("manifest.json")} == {home.version(1)}
    with pytest.raises(InvalidInput, match="previous"):
        registry.forget(MODEL, home.version(1))


@pytest.mark.parametrize("dumped", [b"{}", b"no json"])
def test_a_plan_that_cannot_be_read_keeps_everything(home: Home, store: redis.Redis, dumped: bytes) -> None:
    store.set(plan_key(MODEL), dumped)
    with pytest.raises(Unavailable, match="who answers is not known"):
        prune(home.settings, MODEL, keep=1)
    assert home.places() == home.snapshots() == home.reports() == list(range(10))


def test_a_store_that_is_away_keeps_everything(home: Home) -> None:
    with pytest.raises(Unavailable):
        prune(replace(home.settings, redis_url="redis://127.0.0.1:1/0"), MODEL, keep=1)
    assert home.places() == home.snapshots() == home.reports() == list(range(10))


def test_nothing_goes_while_a_version_is_judged(home: Home) -> None:
    with using(home.settings.models, MODEL), using(home.settings.models, MODEL):
        assert "judged" in prune(home.settings, MODEL, keep=1).trouble
        assert home.places() == list(range(10))
    assert prune(home.settings, MODEL, keep=1).versions
    assert home.places() == [9]


def test_a_version_that_is_named_meanwhile_comes_back(
    home: Home, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = RolloutPlan(model=MODEL, champion=home.version(9)).begun(home.version(0), 0.1, 1)
    asked = meanwhile(home, monkeypatch, lambda: tell(store, plan))  # an operator was faster
    pruned = prune(home.settings, MODEL, keep=1)
    assert asked == [list(range(10)), [9]]
    assert home.places() == home.reports() == [0, 9]
    assert pruned.kept[home.version(0)] == "challenger"


def test_a_plan_that_becomes_unreadable_half_way_keeps_everything(
    home: Home, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(home, monkeypatch, lambda: store.set(plan_key(MODEL), b"{}"))
    with pytest.raises(Unavailable):
        prune(home.settings, MODEL, keep=1)
    assert home.places() == home.snapshots() == home.reports() == list(range(10))


def test_what_a_killed_prune_set_aside_comes_back_and_what_is_young_stays(home: Home) -> None:
    (home.folder / home.version(9)).rename(home.folder / f".pruned-{home.version(9)}")
    os.utime(home.folder / home.version(0))
    pruned = prune(home.settings, MODEL, keep=1)
    assert home.places() == [0, 9]
    assert pruned.kept[home.version(0)] == "young"


def test_what_comes_back_keeps_its_snapshot(home: Home, store: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = RolloutPlan(model=MODEL, champion=home.version(9)).begun(home.version(0), 0.1, 1)
    meanwhile(home, monkeypatch, lambda: tell(store, plan))
    pruned = prune(home.settings, MODEL, keep=1)
    assert home.snapshots() == [0, *range(10 - KEPT_SNAPSHOTS, 10)]
    assert SNAPSHOTS[0] not in pruned.snapshots


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError])
def test_a_prune_that_is_broken_off_puts_everything_back(
    home: Home, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def broken_off() -> None:
        raise error

    meanwhile(home, monkeypatch, broken_off)
    with pytest.raises(error):
        prune(home.settings, MODEL, keep=1)
    assert home.places() == home.snapshots() == home.reports() == list(range(10))


def test_half_of_a_version_never_comes_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, half = shutil.rmtree, home.version(0)

    def killed(path: Path) -> None:
        if half in path.name and (path / "manifest.json").exists():
            (path / "manifest.json").unlink()
            raise OSError("killed")
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(retention.shutil, "rmtree", killed)
        assert half in prune(home.settings, MODEL, keep=1).trouble
    assert home.places() == [9], "what can't be removed holds up no other"
    assert prune(home.settings, MODEL, keep=10, dry_run=True).versions == ()
    assert home.places() == [9]
    prune(home.settings, MODEL, keep=10)
    assert not [path for path in home.folder.iterdir() if half in path.name]


def test_what_an_alias_names_by_now_and_all_after_it_come_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Registry, model: str, version: str) -> None:
        raise InvalidInput(field="version", got=f"{model} {version}, previous", expected="none", next_step="Wait.")

    monkeypatch.setattr(Registry, "forget", refuse)
    assert "previous" in prune(home.settings, MODEL, keep=1).trouble
    assert home.places() == list(range(10))


def test_a_version_whose_run_was_deleted_for_good_goes_too(home: Home) -> None:
    registry = Registry.of(home.settings, {})
    with registry.run(MODEL) as run:
        registry.register(read_artifact(home.folder / home.version(0)), run.id)
    registry._tracking.ask(lambda client: client._tracking_client.store._hard_delete_run(run.id))
    assert not prune(home.settings, MODEL, keep=1).trouble
    assert registry.versions(MODEL) == []


@pytest.mark.parametrize("text", ["0", "-1", "ten", "1.5", "999999"])
def test_how_many_are_kept_comes_from_the_environment(text: str) -> None:
    assert kept_from_env({}) == retention.KEPT
    assert kept_from_env({KEPT_VARIABLE: "3"}) == 3
    with pytest.raises(InvalidInput, match=KEPT_VARIABLE):
        kept_from_env({KEPT_VARIABLE: text})
