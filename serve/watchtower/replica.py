"""A replica of the Watchtower: it takes its share of the roles, and each role goes on exactly where it was left.

Whoever takes a dead replica's role begins at its last step and comes to the same windows and alarms: nothing is counted
twice, and nothing is missed. Any number of replicas may run; roles (`serve.watchtower.roles`) spread.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final

import redis

from features.settings import Settings
from serve.rollout.decisions import Limits
from serve.watchtower import board
from serve.watchtower.board import connect
from serve.watchtower.leases import Lease, LeaseLost, Leases
from serve.watchtower.roles import Role
from serve.watchtower.roles.online import OnlineRole
from serve.watchtower.roles.outages import OutagesRole
from serve.watchtower.roles.rollouts import RolloutRole
from serve.watchtower.roles.sessions import SessionsRole
from serve.watchtower.roles.slices import SlicesRole
from serve.watchtower.roles.vitals import VitalsRole

_STEP_PAUSE_S: Final = 0.1
_TROUBLE_PAUSE_S: Final = 1.0
_FAILED_PAUSE_S: Final = 5.0
"""Before a role whose step raised is restored."""

_Factory = Callable[[Lease, str], Role]
"""Restores a role, given its lease and its number (empty where it has none)."""

_log = logging.getLogger(__name__)


class WatchtowerReplica:
    """A replica, in a thread of the caller's.

    Args:
        settings: where the store is.
        name: names it among the replicas.
        limits: what a rollout may cost; None: as by default.
    """

    def __init__(self, settings: Settings, name: str, limits: Limits | None = None) -> None:
        store = self._store = connect(settings)
        roles = [board.OUTAGE_ROLE, board.VITALS_ROLE, board.ROLLOUT_ROLE, board.ONLINE_ROLE]
        roles += [*board.slice_roles(), *board.session_roles()]
        leases = self.leases = Leases(store, name, roles)
        self._kinds: dict[str, _Factory] = {
            "sessions": lambda lease, number: SessionsRole(store, leases, lease, int(number)),
            "slices": lambda lease, number: SlicesRole(store, leases, lease, int(number)),
            board.OUTAGE_ROLE: lambda lease, _: OutagesRole(store, leases, lease, settings),
            board.VITALS_ROLE: lambda lease, _: VitalsRole(store, leases, lease),
            board.ROLLOUT_ROLE: lambda lease, _: RolloutRole(store, leases, lease, limits),
            board.ONLINE_ROLE: lambda lease, _: OnlineRole(store, leases, lease, settings),
        }
        self._roles: dict[Lease, Role] = {}
        self._failed_s: dict[str, float] = {}  # role -> when its step raised

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop; the store's troubles are logged and waited out."""
        with self.leases.renewing():
            while not stop.is_set():
                try:
                    busy = self.turn()
                except (redis.RedisError, OSError):
                    _log.exception("watchtower: the store does not answer, will try again")
                    self._roles.clear()
                    stop.wait(_TROUBLE_PAUSE_S)
                    continue
                if not busy:
                    stop.wait(_STEP_PAUSE_S)
        try:
            self.leases.close()
        except (redis.RedisError, OSError):
            _log.warning("watchtower: leases were left to end by themselves")
        self._store.close()

    def turn(self) -> bool:
        """Give each role one step; whether any had something to do.

        A role whose step raises is restored from its checkpoint a while later; the others go on meanwhile.

        Raises:
            redis.RedisError: the store does not answer.
            OSError: likewise.
        """
        self.leases.tick()
        held = dict(self.leases.held)
        self._roles = {lease: role for lease, role in self._roles.items() if held.get(lease.role) == lease}
        busy = False
        for name in sorted(held):
            lease = held[name]
            if self.leases.held.get(name) != lease or self._is_paused(name):
                continue
            try:
                role = self._roles.get(lease) or self._restore(lease)
                busy = role.step() or busy
            except LeaseLost:
                _log.warning("watchtower: role %s is another replica's now", name)
                self._roles.pop(lease, None)
            except (redis.RedisError, OSError):
                raise
            except Exception:  # noqa: BLE001 - one entry that a role cannot take must not stop all of them
                _log.exception("watchtower: role %s failed, and is restored in %g s", name, _FAILED_PAUSE_S)
                self._roles.pop(lease, None)
                self._failed_s[name] = time.monotonic()
            self.leases.tick()
        return busy

    def _is_paused(self, name: str) -> bool:
        """Whether a role's step raised a moment ago."""
        return time.monotonic() - self._failed_s.get(name, -math.inf) < _FAILED_PAUSE_S

    def _restore(self, lease: Lease) -> Role:
        kind, _, number = lease.role.partition(":")
        role = self._roles[lease] = self._kinds[kind](lease, number)
        return role
