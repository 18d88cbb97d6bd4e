"""Who answers, as training and gates find it: with a plan, without a store, and with a version that was just named."""

from pathlib import Path

import orjson
import pytest
import redis

from features.settings import Settings
from serve.artifacts import MANIFEST, set_champion
from serve.rollout.board import plan_key
from serve.rollout.plans import RolloutPlan
from serve.rollout.standing import SERVING, find_champion

A, B, C = "a" * 12, "b" * 12, "c" * 12


@pytest.fixture
def folder(settings: Settings) -> Path:
    for version in (A, B, C):
        path = settings.models / "m" / version
        path.mkdir(parents=True)
        (path / MANIFEST).write_text("{}")
    return settings.models / "m"


def alone(settings: Settings) -> Settings:
    return Settings(home=settings.home, redis_url="redis://127.0.0.1:1/0", feast_registry="")


def test_without_plan_and_note_the_folder_says_it(settings: Settings, folder: Path) -> None:
    assert find_champion(settings, "m") is None
    set_champion(settings.models, "m", A)
    assert find_champion(settings, "m") == find_champion(alone(settings), "m") == A


def test_a_version_that_a_rollout_promoted_is_the_champion_whatever_the_folder_names(
    settings: Settings, folder: Path, store: redis.Redis
) -> None:
    set_champion(settings.models, "m", A)
    plan = RolloutPlan(model="m", champion=A, published=A).begun(B, 0.5, 1).promoted(2)
    store.set(plan_key("m"), orjson.dumps(plan.as_json()))
    assert find_champion(settings, "m") == B
    (folder / SERVING).write_bytes(orjson.dumps({"champion": B, "taken": A}))
    assert find_champion(settings, "m") == B
    assert find_champion(alone(settings), "m") == B, "as the gateways here noted"
    set_champion(settings.models, "m", C)
    assert find_champion(settings, "m") == find_champion(alone(settings), "m") == C, "gateways are about to take it"
    store.set(plan_key("m"), orjson.dumps(plan.told_of(C, 3).rolled_back(4, C).as_json()))
    assert find_champion(settings, "m") == B, "it was taken, and rolled back"


@pytest.mark.parametrize("dumped", [b"{}", b"no json", b"[]"])
def test_what_cannot_be_read_is_done_without(
    settings: Settings, folder: Path, store: redis.Redis, dumped: bytes
) -> None:
    set_champion(settings.models, "m", A)
    store.set(plan_key("m"), dumped)
    (folder / SERVING).write_bytes(dumped)
    assert find_champion(settings, "m") == A
