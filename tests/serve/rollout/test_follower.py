"""Followers of a plan in a real store: what counts of store, memory and folder; and a store that is lost."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from features.settings import Settings
from serve.artifacts import set_champion
from serve.metrics import Metrics
from serve.rollout import board
from serve.rollout.fleet import Fleet
from serve.rollout.follower import Follower
from serve.rollout.plans import RolloutPlan
from tests.serve.rollout.test_fleet import A, B, C, Stage, make
from tests.waiting import eventually

NOTE: dict[str, Any] = {"action": "test", "by": "test", "reason": "", "evidence": {}}


@pytest.fixture
def models(settings: Settings) -> Path:
    for version in (A, B, C):
        (settings.models / "m" / version).mkdir(parents=True)
        (settings.models / "m" / version / "manifest.json").write_text("{}")
    set_champion(settings.models, "m", A)
    return settings.models


Opened = Callable[..., Any]


@asynccontextmanager
async def follower(settings: Settings, models: Path | None = None) -> AsyncIterator[tuple[Follower, Fleet[Stage]]]:
    """One that has started."""
    folder = models or settings.models
    fleet: Fleet[Stage] = Fleet("m", folder, Stage(), make, Metrics())
    made = Follower(fleet, "m", folder, settings.redis_url, 0.05, Metrics())
    await made.start()
    try:
        yield made, fleet
    finally:
        await made.close()


async def look(*each: tuple[Follower, Fleet[Stage]]) -> None:
    for one, fleet in each:
        await one.look()
        await fleet.settled()


def write(store: redis.Redis, plan: RolloutPlan, after: int | None = None) -> bool:
    return bool(store.execute_command("EVAL", *board.change_arguments(plan, NOTE, after=after)))


def stored(store: redis.Redis) -> RolloutPlan | None:
    dumped = store.get(board.plan_key("m"))
    return None if dumped is None else board.load_plan(dumped)


def champion(fleet: Fleet[Stage]) -> str | None:
    return fleet.lineup.champion.version


async def test_without_a_plan_the_folder_counts(store: redis.Redis, settings: Settings, models: Path) -> None:
    async with follower(settings) as (one, fleet):
        assert champion(fleet) == A
        set_champion(models, "m", B)
        await look((one, fleet))
        assert champion(fleet) == B
    assert stored(store) is None, "nobody made a plan"


async def test_a_plan_reaches_all_and_outlives_a_restart(store: redis.Redis, settings: Settings, models: Path) -> None:
    plan = RolloutPlan(model="m", champion=A).begun(B, 0.5, 1)
    async with follower(settings) as one, follower(settings) as other:
        assert write(store, plan)
        assert not write(store, plan), "one change a revision"
        await look(one, other)
        for _, fleet in (one, other):
            assert {stage.version for stage in fleet.stages()} == {A, B}
        assert write(store, plan.promoted(2))
        await look(one, other)
        assert champion(one[1]) == champion(other[1]) == B
    async with follower(settings) as (_, fleet):
        assert champion(fleet) == B, "although the folder's trainer had named another"
    assert stored(store) == plan.promoted(2)


async def test_a_version_that_is_named_in_the_folder_is_the_champion_everywhere_once(
    store: redis.Redis, settings: Settings, models: Path
) -> None:
    plan = RolloutPlan(model="m", champion=A).begun(B, 0.5, 1)
    write(store, plan)
    async with follower(settings) as one, follower(settings) as other:
        set_champion(models, "m", C)
        await look(one, other, one, other)
        for _, fleet in (one, other):
            assert (champion(fleet), fleet.lineup.challenger) == (C, None)
        told = stored(store)
        assert told is not None
        assert (told.champion, told.previous, told.challenger, told.revision) == (C, A, None, 2)
        (change,) = board.load_changes(store.xrevrange(board.LOG, count=1))
        assert (change["action"], change["plan"]["champion"]) == ("published", C)
        write(store, told.rolled_back(9, C))
        await look(one, other, one, other)
        assert champion(one[1]) == champion(other[1]) == A, "what is named was taken into account"
    async with follower(settings) as (_, fleet):
        assert champion(fleet) == A


async def test_what_is_named_while_nothing_runs_is_published_at_the_next_start(
    store: redis.Redis, settings: Settings, models: Path
) -> None:
    async with follower(settings):
        write(store, RolloutPlan(model="m", champion=A).crowned(B, 1))
    set_champion(models, "m", C)  # such as by `playhead train`
    async with follower(settings) as (_, fleet):
        assert champion(fleet) == C
    told = stored(store)
    assert told is not None
    assert (told.champion, told.previous) == (C, B)


async def test_what_the_folder_names_stands_in_for_what_answered_last_and_is_gone(
    store: redis.Redis, settings: Settings, models: Path
) -> None:
    write(store, RolloutPlan(model="m", champion=A).crowned(B, 1))
    async with follower(settings) as (_, fleet):
        assert champion(fleet) == B
    store.delete(board.plan_key("m"))
    (models / "m" / B).rename(models / "away")
    async with follower(settings) as (made, fleet):
        assert champion(fleet) == A
        assert (made.states[0].version, made.states[0].state) == (A, "refused")
        assert B in made.states[0].detail
        assert stored(store) is None, "what one machine lacks is no change"
        (models / "away").rename(models / "m" / B)
        fleet.forgive()
        await look((made, fleet))
        assert champion(fleet) == B


async def test_a_machine_that_comes_anew_changes_nothing(
    store: redis.Redis, settings: Settings, models: Path, tmp_path: Path
) -> None:
    plan = RolloutPlan(model="m", champion=B).begun(C, 0.1, 1)
    write(store, plan)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(models, elsewhere)  # its folder names A, and was written just now
    async with follower(settings, elsewhere) as (one, fleet):
        await look((one, fleet))
        assert champion(fleet) == B
    assert stored(store) == plan


async def test_a_gateway_that_is_cut_off_undoes_nothing(
    store: redis.Redis, settings: Settings, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted = RolloutPlan(model="m", champion=A).begun(B, 0.5, 1).promoted(2)
    write(store, promoted, after=0)
    async with follower(settings) as one, follower(settings) as other:

        async def unheard() -> tuple[bool, None]:
            return False, None

        with monkeypatch.context() as patch:
            patch.setattr(one[0], "_read", unheard)
            write(store, promoted.rolled_back(3, B))
            await look(other, one, one, other, other)
            assert champion(one[1]) == B, "it knows no better"
            assert champion(other[1]) == A
        await look(one, other, one)
        assert champion(one[1]) == champion(other[1]) == A
    assert stored(store) == promoted.rolled_back(3, B)


async def test_a_publication_outlives_a_store_that_does_not_take_it(
    store: redis.Redis, settings: Settings, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, RolloutPlan(model="m", champion=B), after=0)
    write(store, RolloutPlan(model="m", champion=B, revision=1), after=0)
    async with follower(settings) as one:

        async def refused(*_: Any, **__: Any) -> bool:
            return False

        with monkeypatch.context() as patch:
            patch.setattr(one[0], "_change", refused)
            set_champion(models, "m", C)
            await look(one, one)
            assert champion(one[1]) == B
        await look(one)
        assert champion(one[1]) == C


async def test_a_store_that_was_lost_is_told_again(store: redis.Redis, settings: Settings, models: Path) -> None:
    plan = RolloutPlan(model="m", champion=A).begun(B, 0.5, 1)
    write(store, plan)
    later = plan.rolled_back(2)
    async with follower(settings) as one:
        write(store, later)
        await look(one)
        store.flushall()
        await look(one)
        assert stored(store) == later
        store.delete(board.plan_key("m"))
        write(store, plan)  # a copy that had lost the last change
        await look(one)
        assert stored(store) == later
        assert {stage.version for stage in one[1].stages()} == {A}


async def test_a_store_that_is_down_changes_nothing(valkey_process: Any, settings: Settings, models: Path) -> None:
    here = Settings(home=settings.home, redis_url=valkey_process.url, feast_registry=settings.feast_registry)
    with redis.Redis.from_url(here.redis_url) as store:
        write(store, RolloutPlan(model="m", champion=A).crowned(B, 1).begun(C, 0.5, 2), after=0)
    async with follower(here) as one:
        valkey_process.kill()
        await look(one, one, one)
        assert {stage.version for stage in one[1].stages()} == {B, C}
    async with follower(here) as (_, fleet):
        assert champion(fleet) == B, "the champion that answered here last"


async def test_a_roll_back_does_not_wait_for_a_load(store: redis.Redis, settings: Settings, models: Path) -> None:
    plan = RolloutPlan(model="m", champion=A).begun(B, 0.5, 1)
    write(store, plan)
    async with follower(settings) as (one, fleet):
        (models / "m" / C / "slow").touch()
        write(store, plan.shadowed(C, 2))
        await one.look()
        write(store, plan.shadowed(C, 2).rolled_back(3))
        await one.look()
        assert {stage.version for stage in fleet.stages()} == {A}
        (models / "m" / C / "slow").unlink()
        await fleet.settled()
        assert {stage.version for stage in fleet.stages()} == {A, C}


@pytest.mark.parametrize("rubbish", [b"{", b"[]", b'{"format": 9}', b"\xff"])
async def test_a_plan_that_cannot_be_read_changes_nothing(
    store: redis.Redis, settings: Settings, models: Path, rubbish: bytes
) -> None:
    store.set(board.plan_key("m"), rubbish)
    async with follower(settings) as (one, fleet):
        await look((one, fleet))
        assert champion(fleet) == A


async def test_a_pointer_to_nothing_is_told_and_mended(settings: Settings, models: Path) -> None:
    async with follower(settings) as (one, fleet):
        (models / "m" / "champion").write_text("nothing\n")
        await look((one, fleet))
        assert champion(fleet) == A
        assert one.states[0].state == "refused"
        set_champion(models, "m", B)
        await look((one, fleet))
        assert (champion(fleet), one.states[0].state) == (B, "live")


async def test_it_looks_by_itself(store: redis.Redis, settings: Settings, models: Path) -> None:
    async with follower(settings) as (one, fleet):
        work: Awaitable[None] = one.run()
        task = asyncio.ensure_future(work)
        await eventually(lambda: champion(fleet) == A)
        write(store, RolloutPlan(model="m", champion=A).crowned(B, 1))
        await eventually(lambda: champion(fleet) == B)
        task.cancel()
