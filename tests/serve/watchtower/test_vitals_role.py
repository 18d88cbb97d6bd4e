"""The role that judges Playhead itself, on a real Valkey: the same health whoever judges, however often one dies."""

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import redis

from serve import vitals
from serve.clock import now_ms
from serve.vitals import WINDOW_MS, RouteCounts, Window
from serve.watchtower import board, health
from serve.watchtower.checkpoints import read_state, state_command
from serve.watchtower.health import Change, Health, load_change, read_health
from serve.watchtower.leases import LeaseLost, Leases
from serve.watchtower.roles.vitals import VITALS_LATE_MS, VitalsRole
from serve.watchtower.selfwatch import SelfWatch
from tests.serve.watchtower.service import WARM, Service
from tests.waiting import wait_for

WINDOWS = 260
"""All within the hour for which windows are kept."""


def counted(windows: int = WINDOWS) -> list[list[Window]]:
    """Each window by gateway: version b comes, answers a tenth and is slow; it is taken back; errors come and go."""
    service = Service(seed=5, rate=60, replicas=3)
    found = []
    for number in range(windows):
        service.answers(errors=0.2 if 190 <= number < 205 else 0.002)
        service.decisions("a")
        if WARM <= number < 200:
            service.decisions("b", rate=12, slower=3.0)
        found.append(service.take())
    return found


def feed(store: redis.Redis, found: list[list[Window]]) -> int:
    """Write windows as gateways do, the last one just complete; when the first one begins."""
    last = (now_ms() - VITALS_LATE_MS) // WINDOW_MS * WINDOW_MS
    began = last - len(found) * WINDOW_MS
    for number, replicas in enumerate(found):
        for name, window in enumerate(replicas):
            store.hset(vitals.window_key(began + number * WINDOW_MS), f"gateway-{name}", window.dump())
    return began


def judged(found: list[list[Window]], began: int) -> tuple[Health, list[Change]]:
    """What a process that never died says."""
    watch = SelfWatch()
    changes = []
    for number, replicas in enumerate(found):
        together = Window()
        for window in replicas:
            together.merge(window)
        changes += watch.see(together, began + (number + 1) * WINDOW_MS)
    return watch.health(), changes


def logged(store: redis.Redis) -> list[Change]:
    return [load_change(fields[health.CHANGE]) for _, fields in store.xrange(health.LOG)]


def reached(store: redis.Redis, end_ms: int) -> Health | None:
    found = read_health(store)
    return found if found is not None and found.as_of_ms >= end_ms else None


@pytest.mark.timeout(120)
def test_health_is_the_same_however_often_replicas_die(
    store: redis.Redis, start: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    found = counted()
    began = feed(store, found)
    expected, changes = judged(found, began)
    assert {(one.what, one.version) for one in changes} == {("slow:recommend", "b"), ("errors:/v1/home", "")}
    replica = start("first")
    for death in range(2):
        wait_for(partial(reached, store, began + (60 + 100 * death) * WINDOW_MS), pause_s=0.001)
        replica.send_signal(signal.SIGKILL)
        replica.wait()
        store.delete(board.lease_key(board.VITALS_ROLE))  # its time would be over in 5 s
        replica = start(f"again-{death}")
    wait_for(partial(reached, store, expected.as_of_ms))
    assert logged(store) == changes, "each change is told once"
    told = read_health(store)
    assert told is not None
    assert replace(told, as_of_ms=expected.as_of_ms) == expected, "later windows are empty"


class Dying(Leases):
    """Leases of a replica that dies at some of its commits: just before, or just after."""

    def __init__(self, store: redis.Redis, owner: str, source: random.Random) -> None:
        super().__init__(store, owner, [board.VITALS_ROLE], counted=False)
        self._source = source

    def commit(self, role: str, commands: Any) -> None:
        chance = self._source.random()
        if chance < 0.05:
            raise KeyboardInterrupt
        super().commit(role, commands)
        if chance > 0.95:
            raise KeyboardInterrupt


def test_wherever_a_step_is_cut_off_the_next_replica_goes_on(store: redis.Redis) -> None:
    found = counted()
    began = feed(store, found)
    expected, changes = judged(found, began)
    source, deaths = random.Random(7), 0
    while not reached(store, expected.as_of_ms):
        leases = Dying(store, f"replica-{deaths}", source)
        leases.tick()
        role = VitalsRole(store, leases, leases.held[board.VITALS_ROLE])
        try:
            while not reached(store, expected.as_of_ms):
                assert role.step()
        except KeyboardInterrupt:
            deaths += 1
            store.delete(board.lease_key(board.VITALS_ROLE))
    assert deaths > 10
    assert read_health(store) == expected
    assert logged(store) == changes


@pytest.fixture
def role(store: redis.Redis) -> Iterator[VitalsRole]:
    leases = Leases(store, "only", [board.VITALS_ROLE], counted=False)
    leases.tick()
    yield VitalsRole(store, leases, leases.held[board.VITALS_ROLE])
    leases.close()


def steps(role: VitalsRole) -> int:
    count = 0
    while role.step():
        count += 1
    return count


def test_a_window_is_judged_once_late_gateways_had_their_time(store: redis.Redis, role: VitalsRole) -> None:
    steps(role)
    found = read_health(store)
    assert found is not None
    assert 0 <= now_ms() - VITALS_LATE_MS - found.as_of_ms <= WINDOW_MS + 1000, "nothing is said of later windows"
    assert found.routes == ()
    assert not found.is_stale(now_ms())
    assert found.is_stale(now_ms() + health.STALE_MS)


def test_what_is_no_window_is_left_out(store: redis.Redis, role: VitalsRole) -> None:
    start_ms = (now_ms() - 60_000) // WINDOW_MS * WINDOW_MS
    good = Window(routes={"/v1/home": RouteCounts(7, 0, 0, {1: 7})})
    store.hset(
        vitals.window_key(start_ms), mapping={"a": good.dump(), "b": b"{", "c": b'{"layout": 9}', "d": good.dump()}
    )
    steps(role)
    found = read_health(store)
    assert found is not None
    assert [one.readings[0].now_total for one in found.routes] == [14]


def test_what_another_release_left_is_begun_anew(store: redis.Redis) -> None:
    leases = Leases(store, "only", [board.VITALS_ROLE], counted=False)
    leases.tick()
    steps(VitalsRole(store, leases, leases.held[board.VITALS_ROLE]))
    assert steps(VitalsRole(store, leases, leases.held[board.VITALS_ROLE])) <= 1, "it goes on where it was"
    state: Any = read_state(store, board.VITALS_ROLE)
    state["watch"]["version"] = 99
    store.execute_command(*state_command(board.VITALS_ROLE, state))
    assert steps(VitalsRole(store, leases, leases.held[board.VITALS_ROLE])) > 300


def test_only_the_owner_says_how_it_is(store: redis.Redis, role: VitalsRole) -> None:
    store.set(board.lease_key(board.VITALS_ROLE), "another")
    with pytest.raises(LeaseLost):
        role.step()
    assert read_health(store) is None


def test_health_that_is_none_is_refused(store: redis.Redis) -> None:
    assert read_health(store) is None
    store.set(health.HEALTH, b'{"layout": 2}')
    with pytest.raises(ValueError, match="layout 2"):
        read_health(store)


@pytest.mark.timed
def test_steps_are_quick(store: redis.Redis, role: VitalsRole) -> None:
    """By ratio to the window's length: a replica that was away for long catches up soon."""
    feed(store, counted(60))
    started_s = time.monotonic()
    count = steps(role)
    assert (time.monotonic() - started_s) / count < 0.01 * WINDOW_MS / 1000
