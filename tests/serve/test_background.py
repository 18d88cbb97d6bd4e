"""Work beside the answers: threads that yield to them, and those that must not."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from serve.background import NICENESS, NICENESS_VARIABLE, in_thread, yielding
from serve.errors import ArtifactError
from serve.metrics import Metrics
from serve.rollout.fleet import Fleet
from serve.rollout.plans import RolloutPlan

A, B = "a" * 12, "b" * 12

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads have priorities on Linux alone")


def priority() -> int:
    """Of this thread; more is less."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def test_what_yields_has_a_lower_priority_and_nothing_else() -> None:
    own = priority()
    assert await in_thread(priority) == own
    with yielding():
        assert await in_thread(priority) == min(own + NICENESS, 19)
    assert [await in_thread(priority) for _ in range(3)] == [own] * 3
    assert [await asyncio.to_thread(priority) for _ in range(3)] == [own] * 3
    assert priority() == own


@pytest.mark.parametrize(("given", "added"), [("0", 0), ("3", 3), ("much", NICENESS)])
async def test_how_much_is_said_in_the_environment(monkeypatch: pytest.MonkeyPatch, given: str, added: int) -> None:
    monkeypatch.setenv(NICENESS_VARIABLE, given)
    with yielding():
        assert await in_thread(priority) == min(priority() + added, 19)


async def test_what_it_raises_and_gives_comes_back() -> None:
    def fail(field: str) -> None:
        raise ArtifactError(field=field, got="damage", expected="none", next_step="Restore it.")

    with yielding():
        with pytest.raises(ArtifactError, match="files"):
            await in_thread(fail, "files")
        assert await in_thread(divmod, 7, 2) == (3, 1)


class Stage:
    """Notes the priority that it is loaded with."""

    def __init__(self) -> None:
        self.version: str | None = None
        self.loaded_at = 0

    async def load(self, path: Path) -> str:
        self.loaded_at = await in_thread(priority)
        self.version = path.name
        return path.name


async def test_loads_yield_once_there_is_a_version_that_answers(tmp_path: Path) -> None:
    for version in (A, B):
        (tmp_path / "m" / version).mkdir(parents=True)
        (tmp_path / "m" / version / "manifest.json").write_text("{}")

    async def make() -> Stage:
        return Stage()

    fleet = Fleet("m", tmp_path, Stage(), make, Metrics())
    steady = RolloutPlan(model="m", champion=A, revision=1)
    fleet.follow(steady)
    await fleet.settled()
    fleet.follow(steady.begun(B, 0.5, 1))
    await fleet.settled()
    assert fleet.lineup.challenger is not None
    assert fleet.lineup.champion.loaded_at == priority(), "at a start nobody waits for anything else"
    assert fleet.lineup.challenger.loaded_at == min(priority() + NICENESS, 19)
