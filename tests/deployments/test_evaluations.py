"""What `playhead eval` runs as Playhead's own: the version that answers, whatever the models' folder still names."""

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from deployments import jobs
from features.settings import Settings
from serve.artifacts import set_champion
from serve.rollout.board import plan_key
from serve.rollout.plans import RolloutPlan
from tests.deployments.conftest import Notices
from tests.serve.bitrate.small_policy import small_policy
from training.bitrate.comparison import Request


@pytest.fixture
def versions(settings: Settings, store: redis.Redis) -> tuple[Path, Path]:
    """Two of bitrate: one that the folder names, and one that a rollout has made the champion since."""
    folder = settings.models / "bitrate"
    first, second = (
        shutil.copytree(made, folder / made.name) for made in (small_policy(), small_policy(seed=1))
    )  # fmt: skip
    set_champion(settings.models, "bitrate", first.name)
    plan = RolloutPlan(model="bitrate", champion=first.name, published=first.name).begun(second.name, 0.5, 1)
    store.set(plan_key("bitrate"), orjson.dumps(plan.promoted(2).as_json()))
    return first, second


@pytest.mark.parametrize(
    ("asked", "runs"),
    [
        ({}, "second"),
        ({"policies": ("bba", "playhead")}, "second"),
        ({"policies": ("bba",)}, None),
        ({"model": "first"}, "first"),
    ],
)
def test_bitrate_runs_the_version_that_answers(
    settings: Settings, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any],
    runs: str | None,
) -> None:  # fmt: skip
    first, second = versions
    names = {"first": first.name, "second": second.name}
    given: list[Request] = []

    def compare(request: Request, *_: object) -> dict[str, Any]:
        given.append(request)
        return {"setting": {"traces": 0, "segments": 0}}

    monkeypatch.setattr(jobs, "compare", compare)
    request = Request(**{name: names.get(value, value) if name == "model" else value for name, value in asked.items()})
    jobs.evaluate_bitrate(request, settings, Notices())
    assert given[0].model == (names[runs] if runs else None)


def test_without_a_store_the_folder_says_it(settings: Settings, versions: tuple[Path, Path]) -> None:
    first, second = versions
    alone = Settings(home=settings.home, redis_url="redis://127.0.0.1:1/0", feast_registry="")
    assert jobs._live(settings, "bitrate") == second
    assert jobs._live(alone, "bitrate") == first
    assert jobs._live(settings, "quality") is None
