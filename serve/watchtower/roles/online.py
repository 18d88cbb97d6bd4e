"""The role that evaluates what answers, all the time: it reads what was shown and what followed, and writes figures.

A step reads for DRAIN_S at most. What it counted is written when a bucket of 10 s is over, with how far it read, and
with what came of which page: whoever takes the role goes on from there, and nothing counts twice or not at all.
"""

import logging
import time
from typing import Any, Final

from features.settings import Settings
from serve.online import board as online
from serve.online.meter import OnlineMeter
from serve.online.tallies import BUCKET_MS, WINDOWS_S
from serve.rollout import board as rollouts
from serve.rollout.exposures import FIELD, STREAM, read_exposure
from serve.rollout.plans import RolloutPlan
from serve.watchtower import board
from serve.watchtower.board import Store
from serve.watchtower.checkpoints import beginning_anew, place_of, read_state, state_command, store_ms
from serve.watchtower.leases import Lease, Leases

LOOK_MS: Final = 1_000
DRAIN_S: Final = 0.5
"""The longest that a step reads what was told; what is left waits for the next."""
_ENTRIES: Final = 1_000
_LONGEST_GAP: Final = WINDOWS_S[-1] * 1000 // BUCKET_MS

_log = logging.getLogger(__name__)


class OnlineRole:
    """Measures what answers.

    Args:
        store: where plans and exposures are.
        leases: of the replica.
        lease: of this role.
        settings: where versions' references are.
    """

    def __init__(self, store: Store, leases: Leases, lease: Lease, settings: Settings) -> None:
        self._store = store
        self._leases = leases
        self._lease = lease
        now_ms = store_ms(store)
        self._looked_ms = now_ms
        self._meter = OnlineMeter(settings.models)
        self._position, self._is_entry = f"{now_ms}-0", False  # what was shown before nobody asked
        self._at = now_ms // BUCKET_MS
        self._is_behind = False
        self._is_new = True  # whoever takes a role over that wrote nothing yet begins at another moment
        self._plans: dict[str, RolloutPlan] = {}
        with beginning_anew(board.ONLINE_ROLE):
            state = read_state(store, board.ONLINE_ROLE)
            if state is not None:
                meter = OnlineMeter.from_state(state["meter"], settings.models)
                self._position, self._at, self._is_entry = str(state["position"]), int(state["at"]), True
                self._meter, self._is_new = meter, False

    def step(self) -> bool:
        """Take in what was told in the last second; at the end of a bucket, write what is known."""
        now_ms = store_ms(self._store)
        if now_ms - self._looked_ms < LOOK_MS and not self._is_behind:
            return False
        self._looked_ms = now_ms
        self._plans = rollouts.read_plans(self._store)
        before = self._at
        self._drain()
        if not self._is_behind:
            self._close_before(now_ms // BUCKET_MS)
        if self._at > before or self._meter.is_full or self._is_new:
            self._commit()
            self._is_new = False
        return self._is_behind

    def _commit(self) -> None:
        plans = self._plans.items()
        roles = {name: {version: role for role, version in _roles(plan) if version is not None} for name, plan in plans}
        commands: list[list[Any]] = [
            ["SET", key, document, "EX", online.KEPT_S]
            for key, document in self._meter.documents(self._at - 1, roles).items()
        ]
        commands += self._meter.commands()
        state = {"meter": self._meter.state(), "position": self._position, "at": self._at}
        self._leases.commit(self._lease, [*commands, state_command(board.ONLINE_ROLE, state)])

    def _close_before(self, at: int) -> None:
        """Close the buckets before one; after a long silence, the last of them."""
        champions = {name: plan.champion for name, plan in self._plans.items()}
        self._at = max(self._at, at - _LONGEST_GAP)
        while self._at < at:
            self._meter.close(self._at, champions)
            self._at += 1

    def _drain(self) -> None:
        first: Any = self._store.xrange(STREAM, count=1)
        if self._is_entry and first and place_of(first[0][0]) > place_of(self._position.encode()):
            _log.warning("online: exposures were lost: %s was read last, %s is the oldest that is kept",
                         self._position, first[0][0].decode())  # fmt: skip
        until_s = time.monotonic() + DRAIN_S
        count = _ENTRIES
        while count == _ENTRIES and time.monotonic() < until_s and not self._meter.is_full:
            answer: Any = self._store.xread({STREAM: self._position}, count=_ENTRIES)
            entries = answer[0][1] if answer else []
            count = len(entries)
            told = []
            for position, fields in entries:
                self._position, self._is_entry = position.decode(), True
                try:
                    told.append((max(self._at, place_of(position)[0] // BUCKET_MS), read_exposure(fields[FIELD])))
                except (KeyError, ValueError) as error:
                    _log.warning("online: an entry of the exposures that is none was left out: %s", error)
            self._meter.take(self._store, told, self._close_before)
        was_behind, self._is_behind = self._is_behind, count == _ENTRIES
        if self._is_behind and not was_behind:
            _log.warning("online: more exposures are told than %g s a second are enough to read; at %s now", DRAIN_S,
                         self._position)  # fmt: skip


def _roles(plan: RolloutPlan) -> tuple[tuple[str, str | None], ...]:
    return ("challenger", plan.challenger), ("champion", plan.champion)
