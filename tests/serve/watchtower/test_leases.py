"""Leases on a real Valkey: each role is one replica's at a time, and only its owner writes."""

import time

import pytest
import redis

from serve.watchtower import board
from serve.watchtower.leases import LEASE_MS, LeaseLost, Leases
from tests.waiting import wait_for


def test_roles_spread_over_replicas_and_come_back(store: redis.Redis) -> None:
    roles = [board.OUTAGE_ROLE, *board.slice_roles(), *board.session_roles()]
    one, other = Leases(store, "one", roles), Leases(store, "other", roles)

    def tick(*leases: Leases) -> None:
        for lease in leases:
            lease._renewed_s = 0.0
            lease.tick()

    tick(one)
    assert set(one.held) == set(roles)
    for _ in range(3):
        tick(other, one)
    assert set(one.held) | set(other.held) == set(roles)
    assert not set(one.held) & set(other.held)
    assert abs(len(one.held) - len(other.held)) <= 1
    other.close()
    for _ in range(2):
        tick(one)
    assert set(one.held) == set(roles)


def test_only_the_owner_writes(store: redis.Redis) -> None:
    leases = Leases(store, "one", ["role"])
    leases.tick()
    lease = leases.held["role"]
    leases.commit(lease, [["SET", "a", 1], ["HSET", "h", "f", "v"], ["SET", "a", 2]])
    assert (store.get("a"), store.hget("h", "f")) == (b"2", b"v")
    store.set(board.lease_key("role"), "another", px=LEASE_MS)
    with pytest.raises(LeaseLost):
        leases.commit(lease, [["SET", "a", 3]])
    assert store.get("a") == b"2"
    assert not leases.held
    leases.release("role")
    assert store.get(board.lease_key("role")) == b"another"
    store.delete(board.lease_key("role"))
    leases._renewed_s = 0.0
    leases.tick()
    again = leases.held["role"]
    with pytest.raises(LeaseLost):
        leases.commit(lease, [["SET", "a", 3]])  # what it knew before another had the role is old
    leases.commit(again, [["SET", "a", 4]])
    assert (store.get("a"), leases.held) == (b"4", {"role": again})


def test_leases_are_held_through_a_long_step_but_not_by_one_that_is_stuck(
    store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LEASE_MS": 300, "RENEW_S": 0.05, "MOST_STUCK_S": 1.0}.items():
        monkeypatch.setattr(f"serve.watchtower.leases.{name}", value)
    leases = Leases(store, "one", ["role"])
    with leases.renewing():
        leases.tick()
        lease = leases.held["role"]
        time.sleep(0.7)  # the step
        leases.commit(lease, [["SET", "a", 1]])
        assert leases.held == {"role": lease}
        leases.tick()
        wait_for(lambda: store.get(board.lease_key("role")) is None, 10)
        with pytest.raises(LeaseLost):
            leases.commit(lease, [["SET", "a", 2]])
    assert store.get("a") == b"1"
