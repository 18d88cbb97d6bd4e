"""A fleet: what a plan needs is loaded, what it does not is let go, and what cannot be had costs no answer."""

import asyncio
import threading
import weakref
from contextlib import nullcontext
from pathlib import Path

import pytest

from serve.engines.compiler import compiled_beside
from serve.errors import ArtifactError
from serve.metrics import Metrics
from serve.rollout import fleet as fleet_module
from serve.rollout.fleet import Fleet
from serve.rollout.plans import RolloutPlan
from tests.waiting import eventually

A, B, C = "a" * 12, "b" * 12, "c" * 12


class Stage:
    """Loads a folder's name."""

    def __init__(self) -> None:
        self.version: str | None = None
        self.gate: asyncio.Event | None = None

    async def load(self, path: Path) -> str:
        if (path / "damaged").exists():
            raise ArtifactError(field="files", got="damage", expected="none", next_step="Restore it.")
        while (path / "slow").exists():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.001)
        self.version = path.name
        return path.name


async def make() -> Stage:
    return Stage()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for version in (A, B, C):
        (tmp_path / "m" / version).mkdir(parents=True)
        (tmp_path / "m" / version / "manifest.json").write_text("{}")
    return tmp_path


@pytest.fixture
def fleet(models: Path) -> Fleet[Stage]:
    return Fleet("m", models, Stage(), make, Metrics())


async def apply(fleet: Fleet[Stage], plan: RolloutPlan) -> None:
    fleet.follow(plan)
    await fleet.settled()


STEADY = RolloutPlan(model="m", champion=A, revision=1)


def answering(fleet: Fleet[Stage]) -> set[str | None]:
    return {fleet.lineup.of(str(unit))[0].version for unit in range(300)}


async def test_versions_answer_side_by_side_and_go_when_they_are_not_needed(
    fleet: Fleet[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "_DRAIN_S", 0.3)
    loop, freed = threading.get_ident(), list[tuple[str, bool]]()

    def gone(stage: Stage) -> None:
        if stage.version is not None:  # the one to begin with has no engines
            freed.append((stage.version, threading.get_ident() == loop))

    monkeypatch.setattr(Stage, "__del__", gone, raising=False)
    assert answering(fleet) == {None}
    await apply(fleet, STEADY)
    assert answering(fleet) == {A}
    tried = STEADY.begun(B, 0.5, 1)
    await apply(fleet, tried)
    assert answering(fleet) == {A, B}
    assert [(one.version, one.role, one.share, one.state) for one in fleet.states] == [
        (A, "champion", 0.5, "live"), (B, "challenger", 0.5, "live"),
    ]  # fmt: skip
    await apply(fleet, tried.shared(1.0, 2))
    assert answering(fleet) == {B}
    before = fleet.lineup.challenger
    old = weakref.ref(fleet.lineup.champion)
    await apply(fleet, tried.promoted(3))
    assert answering(fleet) == {B}
    assert fleet.lineup.champion is before, "it is not loaded again"
    assert old() is not None, "requests may still hold it"
    await eventually(lambda: old() is None)  # what is freed tells nobody
    assert freed == [(A, False)], "not by the event loop"


async def test_a_roll_back_does_not_wait_for_anything(fleet: Fleet[Stage], models: Path) -> None:
    await apply(fleet, STEADY.begun(B, 0.5, 1))
    (models / "m" / C / "slow").touch()
    fleet.follow(STEADY.begun(B, 0.5, 1).shadowed(C, 3))
    await asyncio.sleep(0.01)
    assert answering(fleet) == {A, B}
    fleet.follow(STEADY.begun(B, 0.5, 1).shadowed(C, 3).rolled_back(4))
    assert answering(fleet) == {A}
    assert fleet.lineup.shadow is None, "it is still being loaded"
    (models / "m" / C / "slow").unlink()
    await fleet.settled()
    assert fleet.lineup.shadow is not None


async def test_a_challenger_that_cannot_be_loaded_leaves_its_share_to_the_champion(
    fleet: Fleet[Stage], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.rollout.fleet._RETRY_S", 2.0)
    (models / "m" / B / "damaged").touch()
    plan = STEADY.begun(B, 0.5, 1)
    await apply(fleet, plan)
    assert answering(fleet) == {A}
    assert [(one.version, one.state) for one in fleet.states] == [(A, "live"), (B, "refused")]
    assert "damage" in fleet.states[1].detail
    assert any(fleet.lineup.of(str(unit))[1].challenged for unit in range(100)), "and it is known who was meant"
    (models / "m" / B / "damaged").unlink()
    assert not fleet.is_due, "it was refused just now"
    await eventually(lambda: fleet.is_due)
    await apply(fleet, plan)
    assert answering(fleet) == {A, B}
    assert not fleet.is_due


async def test_a_champion_that_cannot_be_loaded_leaves_the_one_before(fleet: Fleet[Stage], models: Path) -> None:
    await apply(fleet, STEADY)
    (models / "m" / B / "damaged").touch()
    await apply(fleet, STEADY.crowned(B, 1))
    assert answering(fleet) == {A}
    assert [(one.version, one.state) for one in fleet.states] == [(A, "refused")]
    assert fleet.lineup.stale
    await apply(fleet, STEADY.crowned("d" * 12, 1))
    assert answering(fleet) == {A}
    assert "an artifact in" in fleet.states[0].detail
    (models / "m" / B / "damaged").unlink()
    fleet.forgive()
    await apply(fleet, STEADY.crowned(B, 2))
    assert answering(fleet) == {B}
    assert not fleet.lineup.stale


async def test_at_a_start_a_damaged_champion_leaves_the_one_before_and_nobody_else(
    fleet: Fleet[Stage], models: Path
) -> None:
    (models / "m" / B / "damaged").touch()
    await apply(fleet, STEADY.crowned(B, 1).begun(C, 0.01, 2))
    assert (fleet.lineup.champion.version, fleet.lineup.stale) == (A, True)
    assert fleet.lineup.challenger is not None
    assert sum(fleet.lineup.of(str(unit))[0].version == C for unit in range(2000)) < 100
    assert (fleet.states[0].version, fleet.states[0].state) == (A, "refused")
    (models / "m" / B / "damaged").unlink()
    fleet.forgive()
    await apply(fleet, fleet.lineup.plan)
    assert fleet.lineup.champion.version == B


async def test_a_challenger_does_not_stand_in_for_a_champion_that_was_never_there(
    fleet: Fleet[Stage], models: Path
) -> None:
    (models / "m" / A / "damaged").touch()
    await apply(fleet, STEADY.begun(C, 0.01, 2))
    assert fleet.lineup.champion.version is None


async def test_many_changes_at_once_end_at_the_last(fleet: Fleet[Stage]) -> None:
    plans = [STEADY]
    for number, version in enumerate([B, C, A, B, C] * 4):
        plans.append(plans[-1].crowned(version, number))
    for plan in plans:
        fleet.follow(plan)
        await asyncio.sleep(0)
    await fleet.settled()
    assert answering(fleet) == {C}
    assert fleet.lineup.plan is plans[-1]


async def test_a_version_is_warmed_up_before_it_answers_beside_another(models: Path) -> None:
    warmed: list[tuple[str | None, set[str | None]]] = []

    async def warm_up(stage: Stage) -> None:
        await asyncio.sleep(0.01)
        warmed.append((stage.version, answering(fleet)))

    fleet: Fleet[Stage] = Fleet("m", models, Stage(), make, Metrics(), warm_up)
    await apply(fleet, STEADY)
    assert not warmed, "there is nobody yet whom it could meet"
    await apply(fleet, STEADY.begun(B, 0.5, 1))
    assert warmed == [(B, {A})]
    assert answering(fleet) == {A, B}
    await fleet.close()


async def test_what_the_plan_does_not_need_any_more_is_not_warmed_up_to_the_end(models: Path) -> None:
    async def warm_up(stage: Stage) -> None:
        await asyncio.sleep(60.0 if stage.version == B else 0.0)

    fleet: Fleet[Stage] = Fleet("m", models, Stage(), make, Metrics(), warm_up)
    await apply(fleet, STEADY)
    fleet.follow(STEADY.begun(B, 0.5, 1))
    await asyncio.sleep(0.05)
    assert answering(fleet) == {A}
    async with asyncio.timeout(5.0):
        await apply(fleet, STEADY.begun(C, 0.5, 2))
    assert answering(fleet) == {A, C}
    await fleet.close()


async def test_graphs_are_compiled_beside_once_there_is_a_version_that_answers(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    class Compiled(Stage):
        async def load(self, path: Path) -> str:
            with pytest.raises(AttributeError) if fleet.lineup.champion.version else nullcontext():
                assert compiled_beside(None) is None  # type: ignore[arg-type]  # no graph: only whether one is asked for
            asked.append(fleet.lineup.champion.version is not None)
            return await super().load(path)

    async def another() -> Stage:
        return Compiled()

    async def warm_up(stage: Stage) -> None:
        with pytest.raises(AttributeError):
            await asyncio.to_thread(compiled_beside, None)  # type: ignore[arg-type]
        warmed.append(stage.version)

    warmed: list[str | None] = []
    fleet: Fleet[Stage] = Fleet("m", models, Compiled(), another, Metrics(), warm_up)
    await apply(fleet, STEADY)
    await apply(fleet, STEADY.begun(B, 0.5, 1))
    assert asked == [False, True]
    assert warmed == [B], "the process is there until a version answers"
    assert answering(fleet) == {A, B}
    await fleet.close()
