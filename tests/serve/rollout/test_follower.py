"""Followers of a plan in a real store: what counts of store, memory and folder; and a store that is lost."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from features.settings import Settings
from serve.artifacts import read_champion, set_champion
from serve.metrics import Metrics
from serve.rollout import board
from serve.rollout.fleet import Fleet
from serve.rollout.follower import Follower
from serve.rollout.plans import RolloutPlan
from tests.serve.rollout.test_fleet import A, B, C, Stage, make

NOTE: dict[str, Any] = {"action": "test", "by": "test", "reason": "", "evidence": {}}


@pytest.fixture
def models(settings: Settings) -> Path:
    for version in (A, B, C):
        (settings.models / "m" / version).mkdir(parents=True)
        (settings.models / "m" / version / "manifest.json").write_text("{}")
    set_champion(settings.models, "m", A)
    os.utime(settings.models / "m" / "champion", (1000, 1000))
    return settings.models


Opened = Callable[..., Any]


@asynccontextmanager
async def follower(settings: Settings) -> AsyncIterator[tuple[Follower, Fleet[Stage]]]:
    fleet: Fleet[Stage] = Fleet("m", settings.models, Stage(), make, Metrics())
    made = Follower(fleet, "m", settings.models, settings.redis_url, 0.05, Metrics())
    try:
        yield made, fleet
    finally:
        await made.close()


def write(store: redis.Redis, plan: RolloutPlan, after: int | None = None) -> bool:
    return bool(store.execute_command("EVAL", *board.change_arguments(plan, NOTE, after=after)))


def stored(store: redis.Redis) -> RolloutPlan | None:
    dumped = store.get(board.plan_key("m"))
    return None if dumped is None else board.load_plan(dumped)


def pointed(models: Path) -> str:
    found = read_champion(models, "m")
    assert found is not None
    return found.name


def champion(fleet: Fleet[Stage]) -> str | None:
    return fleet.lineup.champion.version


async def test_without_a_plan_the_folder_counts(store: redis.Redis, settings: Settings, models: Path) -> None:
    async with follower(settings) as (one, fleet):
        await one.look()
        assert champion(fleet) == A
        set_champion(models, "m", B)
        await one.look()
        assert champion(fleet) == B
    assert stored(store) is None, "nobody made a plan"


async def test_a_plan_reaches_all_and_the_folder_follows(store: redis.Redis, settings: Settings, models: Path) -> None:
    plan = RolloutPlan(model="m", champion=A).begun(B, 0.5, 5_000_000)
    async with follower(settings) as (one, fleet), follower(settings) as (other, others):
        await one.look()
        assert write(store, plan)
        assert not write(store, plan), "one change a revision"
        for each in (one, other):
            await each.look()
        for each in (fleet, others):
            assert {stage.version for stage in each.stages()} == {A, B}
        assert write(store, plan.promoted(6_000_000))
        for each in (one, other):
            await each.look()
        assert champion(fleet) == champion(others) == B
        assert pointed(models) == B
    async with follower(settings) as (again, fleet):
        await again.look()
        assert champion(fleet) == B


async def test_a_version_that_is_written_into_the_folder_is_the_champion_everywhere(
    store: redis.Redis, settings: Settings, models: Path
) -> None:
    plan = RolloutPlan(model="m", champion=A).begun(B, 0.5, 5_000_000)
    write(store, plan)
    async with follower(settings) as (one, fleet):
        await one.look()
        set_champion(models, "m", C)
        await one.look()
        assert (champion(fleet), fleet.lineup.challenger) == (C, None)
    told = stored(store)
    assert told is not None
    assert (told.champion, told.previous, told.challenger, told.revision) == (C, A, None, 2)
    (change,) = board.load_changes(store.xrevrange(board.LOG, count=1))
    assert (change["action"], change["plan"]["champion"]) == ("published", C)


async def test_at_a_start_the_newer_of_plan_and_folder_counts(
    store: redis.Redis, settings: Settings, models: Path
) -> None:
    write(store, RolloutPlan(model="m", champion=A).crowned(B, 5_000_000))
    async with follower(settings) as (one, fleet):
        await one.look()
        assert champion(fleet) == B, "the folder's pointer is older"
    assert pointed(models) == B
    set_champion(models, "m", C)  # while nothing ran, such as by `playhead train`
    async with follower(settings) as (one, fleet):
        await one.look()
        assert champion(fleet) == C


async def test_a_store_that_was_lost_is_told_again(store: redis.Redis, settings: Settings, models: Path) -> None:
    plan = RolloutPlan(model="m", champion=A).begun(B, 0.5, 5_000_000)
    write(store, plan)
    later = plan.rolled_back(6_000_000)
    async with follower(settings) as (one, fleet):
        await one.look()
        write(store, later)
        await one.look()
        store.flushall()
        await one.look()
        assert stored(store) == later
        store.delete(board.plan_key("m"))
        write(store, plan)  # a copy that had lost the last change
        await one.look()
        assert stored(store) == later
        assert {stage.version for stage in fleet.stages()} == {A}


async def test_a_store_that_is_down_changes_nothing(valkey_process: Any, settings: Settings, models: Path) -> None:
    here = Settings(home=settings.home, redis_url=valkey_process.url, feast_registry=settings.feast_registry)
    with redis.Redis.from_url(here.redis_url) as store:
        write(store, RolloutPlan(model="m", champion=A).begun(B, 0.5, 5_000_000))
    async with follower(here) as (one, fleet):
        await one.look()
        valkey_process.kill()
        for _ in range(3):
            await one.look()
        assert {stage.version for stage in fleet.stages()} == {A, B}
    async with follower(here) as (started, fleet):
        await started.look()
        assert champion(fleet) == A, "the last good version, as the folder has it"


@pytest.mark.parametrize("rubbish", [b"{", b"[]", b'{"format": 9}', b"\xff"])
async def test_a_plan_that_cannot_be_read_changes_nothing(
    store: redis.Redis, settings: Settings, models: Path, rubbish: bytes
) -> None:
    store.set(board.plan_key("m"), rubbish)
    async with follower(settings) as (one, fleet):
        await one.look()
        assert champion(fleet) == A


async def test_a_pointer_to_nothing_is_told_and_mended(settings: Settings, models: Path) -> None:
    async with follower(settings) as (one, fleet):
        await one.look()
        (models / "m" / "champion").write_text("nothing\n")
        await one.look()
        assert champion(fleet) == A
        assert one.states[0].state == "refused"
        set_champion(models, "m", B)
        await one.look()
        assert (champion(fleet), one.states[0].state) == (B, "live")


async def test_it_looks_by_itself(store: redis.Redis, settings: Settings, models: Path) -> None:
    async def eventually(is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not is_true():  # noqa: ASYNC110 - the follower has no event
                await asyncio.sleep(0.01)

    async with follower(settings) as (one, fleet):
        work: Awaitable[None] = one.run()
        task = asyncio.ensure_future(work)
        await eventually(lambda: champion(fleet) == A)
        write(store, RolloutPlan(model="m", champion=A).crowned(B, 5_000_000))
        await eventually(lambda: champion(fleet) == B)
        task.cancel()
