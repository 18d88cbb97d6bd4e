"""Who does what: each role has one replica at a time, by a lease in Redis that ends soon after its replica does."""

import math
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import redis

from serve.watchtower.board import REPLICAS, Store, lease_key

LEASE_MS: Final = 5_000
RENEW_S: Final = 1.0
MOST_STUCK_S: Final = 120.0
"""The longest step; restoring 40,000 sessions takes some 10 s."""

_RENEW: Final = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
)
_RELEASE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class LeaseLost(Exception):
    """The role is another replica's now; what was to be written was not."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One time that a replica has a role: what it knew of the role before is not what it may go on from.

    Attributes:
        role: which.
        token: names this time among all.
    """

    role: str
    token: str


class Leases:
    """The roles of one replica.

    Args:
        store: Redis or Valkey.
        owner: names this replica.
        roles: all there are, in the order in which they are taken.
        counted: whether this is one of the replicas that share the roles; else it takes all it can have.

    Attributes:
        held: role -> its lease, of those that are this replica's. One that was lost and taken again is another lease.
    """

    def __init__(self, store: Store, owner: str, roles: Sequence[str], *, counted: bool = True) -> None:
        self._store = store
        self._owner = owner
        self._roles = roles
        self._counted = counted
        self._renew: Any = store.register_script(_RENEW)
        self._release: Any = store.register_script(_RELEASE)
        self._commit: Any = store.register_script(
            files("serve.watchtower").joinpath("commit.lua").read_text(encoding="utf-8")
        )
        self._renewed_s = 0.0
        self._alive_s = time.monotonic()
        self._taken = 0
        self._changing = threading.Lock()
        self.held: dict[str, Lease] = {}

    def tick(self) -> None:
        """Renew what is held and take what is free, up to a fair share; about once in RENEW_S, else at once back."""
        now_s = self._alive_s = time.monotonic()
        if now_s - self._renewed_s < RENEW_S:
            return
        self._renewed_s = now_s
        store = self._store
        share = self._fair_share() if self._counted else len(self._roles)
        self._renew_all()
        for role in sorted(self.held, key=self._roles.index, reverse=True)[: max(0, len(self.held) - share)]:
            self.release(role)  # another replica came
        for role in self._roles:
            if len(self.held) >= share:
                return
            self._taken += 1
            lease = Lease(role, f"{self._owner}:{self._taken}")
            if role not in self.held and store.set(lease_key(role), lease.token, nx=True, px=LEASE_MS):
                self.held[role] = lease

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """Renew what is held also while a step takes long, such as one that restores many sessions.

        A replica that has not come to `tick` for MOST_STUCK_S is stuck: its roles are left to others.
        """
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(RENEW_S):
                if time.monotonic() - self._alive_s < MOST_STUCK_S:
                    with suppress(redis.RedisError, OSError):  # the steps meet the same
                        self._renew_all()

        thread = threading.Thread(target=renew, name="leases", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _renew_all(self) -> None:
        with self._changing:
            for role, lease in list(self.held.items()):
                if not self._renew(keys=[lease_key(role)], args=[lease.token, LEASE_MS]):
                    del self.held[role]

    def _fair_share(self) -> int:
        """Roles that a replica may have, as many replicas as there are now."""
        wall_ms = int(time.time() * 1000)
        self._store.zadd(REPLICAS, {self._owner: wall_ms})
        self._store.zremrangebyscore(REPLICAS, 0, wall_ms - 2 * LEASE_MS)
        replicas: Any = self._store.zcard(REPLICAS)
        return math.ceil(len(self._roles) / max(int(replicas), 1))

    def release(self, role: str) -> None:
        """Give a role up."""
        with self._changing:
            lease = self.held.pop(role, None)
        if lease is not None:
            self._release(keys=[lease_key(role)], args=[lease.token])

    def close(self) -> None:
        """Give all roles up, so that others take them at once."""
        for role in list(self.held):
            self.release(role)
        self._store.zrem(REPLICAS, self._owner)

    def commit(self, lease: Lease, commands: Sequence[Sequence[Any]]) -> None:
        """Carry commands out as one, if the lease still holds: nobody else had the role since it was taken.

        Args:
            lease: of the role whose step it is.
            commands: name, key and further parts of each.

        Raises:
            LeaseLost: it does not; nothing was done.
        """
        keys = [lease_key(lease.role)]
        places: dict[Any, int] = {}
        arguments: list[Any] = [lease.token]
        for name, key, *parts in commands:
            if key not in places:
                keys.append(key)
                places[key] = len(keys)
            arguments += [len(parts), places[key], name, *parts]
        if not self._commit(keys=keys, args=arguments):
            with self._changing:
                if self.held.get(lease.role) == lease:
                    del self.held[lease.role]
            raise LeaseLost(lease.role)


def replica_name() -> str:
    """A name that no other replica has."""
    return secrets.token_hex(8)
