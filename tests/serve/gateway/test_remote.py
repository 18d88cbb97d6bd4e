"""Stages behind handles: deadlines, cancelled calls, errors as values, and a breaker that lets probes through."""

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from features.profiles import ProfileFeatures
from serve.errors import NotFound
from serve.gateway.remote import Breaker, RemoteFeatures, RemoteStage
from serve.gateway.stages import StageUnreachable


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=60), st.integers(1, 5))
def test_breaker_opens_after_failures_in_a_row_and_then_admits_one_call_a_pause(
    calls: list[tuple[bool, float]], limit: int
) -> None:
    now = [0.0]
    breaker = Breaker(failures=limit, pause_s=1.0, clock=lambda: now[0])
    in_a_row, refused_since = 0, None
    for succeeds, wait_s in calls:
        now[0] += wait_s
        assert breaker.open is (in_a_row >= limit)
        if not breaker.admits():
            assert in_a_row >= limit
            refused_since = now[0] if refused_since is None else refused_since
            assert now[0] - refused_since <= 1.0, "a probe is overdue"
            continue
        refused_since = None
        if succeeds:
            breaker.succeeded()
            in_a_row = 0
        else:
            breaker.failed()
            in_a_row += 1


@ray_serve.deployment
class Peculiar:
    """A stage with faults."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0

    async def read(self, profile_id: str, deadline_ms: float) -> ProfileFeatures:
        if profile_id == "slow":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if profile_id == "broken":
            raise RuntimeError("no such luck")
        self.calls += 1
        return ProfileFeatures(profile_id, known=True, degraded=(f"given {deadline_ms:g} ms",))

    async def refuse(self) -> NotFound:
        return NotFound(field="title_id", got="t1", expected="a title", next_step="Ask for another.")


@pytest.fixture(scope="module")
def handle() -> DeploymentHandle[Any]:
    return ray_serve.run(Peculiar.bind(), name="peculiar", _local_testing_mode=True)


async def test_a_read_passes_through_with_most_of_its_deadline(handle: DeploymentHandle[Any]) -> None:
    profile = await RemoteFeatures(RemoteStage("features", handle, 100)).read("p1", 50)
    assert profile == ProfileFeatures("p1", known=True, degraded=("given 40 ms",))


@pytest.mark.timed
@pytest.mark.parametrize(("profile_id", "reason"), [("slow", "features_timeout"), ("broken", "features_unreachable")])
async def test_a_read_never_raises_and_keeps_its_deadline(
    handle: DeploymentHandle[Any], profile_id: str, reason: str
) -> None:
    started = time.monotonic()
    profile = await RemoteFeatures(RemoteStage("features", handle, 100)).read(profile_id)
    assert profile == ProfileFeatures(profile_id, degraded=(reason,))
    assert time.monotonic() - started < 5


async def test_errors_of_ours_arrive_as_they_were(handle: DeploymentHandle[Any]) -> None:
    stage = RemoteStage("ranker", handle, 1000)
    with pytest.raises(NotFound) as caught:
        await stage.call("refuse")
    assert (caught.value.field, caught.value.got, caught.value.next_step) == ("title_id", "'t1'", "Ask for another.")
    assert not stage.breaker.open


async def test_a_stage_that_fails_is_left_alone_until_a_probe_succeeds(handle: DeploymentHandle[Any]) -> None:
    stage = RemoteStage("features", handle, 1000)
    now = [0.0]
    stage.breaker = Breaker(failures=3, pause_s=1.0, clock=lambda: now[0])
    for _ in range(3):
        with pytest.raises(StageUnreachable):
            await stage.call("read", "broken", 1.0)
    with pytest.raises(StageUnreachable, match="features_unreachable"):
        await stage.call("read", "p1", 1.0)
    now[0] = 1.5
    assert (await stage.call("read", "p1", 1.0)).known
    assert (await stage.call("read", "p1", 1.0)).known


async def test_impatient_callers_do_not_close_a_stage_to_others(handle: DeploymentHandle[Any]) -> None:
    stage = RemoteStage("features", handle, 1000)
    stage.breaker = Breaker(failures=1)
    with pytest.raises(StageUnreachable, match="features_timeout"):
        await stage.call("read", "slow", 1.0, deadline_ms=2.5)
    assert not stage.breaker.open
    with pytest.raises(StageUnreachable, match="features_timeout"):
        await stage.call("read", "slow", 1.0, deadline_ms=50)
    assert stage.breaker.open


async def test_a_caller_that_leaves_cancels_the_call_and_is_no_failure_of_the_stage(
    handle: DeploymentHandle[Any],
) -> None:
    stage = RemoteStage("features", handle, 10_000)
    stage.breaker = Breaker(failures=1)
    caller = asyncio.create_task(stage.call("read", "slow", 1.0))
    await asyncio.sleep(0.1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not stage.breaker.open
