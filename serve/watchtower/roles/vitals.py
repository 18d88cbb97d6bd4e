"""The role `vitals`: what gateways counted of themselves, judged."""

import logging
from typing import Any, Final

from serve import vitals
from serve.watchtower import board, health
from serve.watchtower.board import Store
from serve.watchtower.checkpoints import beginning_anew, read_state, state_command, store_ms
from serve.watchtower.leases import Lease, Leases
from serve.watchtower.selfwatch import SelfWatch

VITALS_LATE_MS: Final = 12_000
"""Gateways' counts of a window are judged so long after its end; what comes later is not counted."""

_log = logging.getLogger(__name__)


class VitalsRole:
    """Judges what all gateways counted of themselves, window by window; each step is a checkpoint."""

    def __init__(self, store: Store, leases: Leases, lease: Lease) -> None:
        self._store = store
        self._leases = leases
        self._lease = lease
        self._next, self._watch = 0, SelfWatch()
        with beginning_anew(board.VITALS_ROLE):
            state = read_state(store, board.VITALS_ROLE)
            if state is not None:
                self._watch, self._next = SelfWatch.from_state(state["watch"]), int(state["next"])

    def step(self) -> bool:
        """Judge the next window, once it is over for long enough."""
        now = store_ms(self._store)
        kept_since = (now - 1000 * vitals.WINDOW_TTL_S) // vitals.WINDOW_MS * vitals.WINDOW_MS
        start = max(self._next, kept_since)  # older ones are gone
        end = start + vitals.WINDOW_MS
        if now < end + VITALS_LATE_MS:
            return False
        changes = self._watch.see(_read_vitals(self._store, start), end)
        state = {"next": end, "watch": self._watch.state()}
        commands: list[list[Any]] = [
            ["SET", health.HEALTH, health.dump_health(self._watch.health())],
            state_command(board.VITALS_ROLE, state),
        ]
        for change in changes:
            told = health.dump_change(change)
            commands.append(["XADD", health.LOG, "MAXLEN", "~", health.MOST_LOGGED, "*", health.CHANGE, told])
        self._leases.commit(self._lease, commands)
        self._next = end
        for change in changes:
            level = logging.WARNING if change.is_open else logging.INFO
            words = "self alarm" if change.is_open else "self alarm over"
            _log.log(level, "%s: %s %s %s", words, change.what, change.version, change.said)
        return True


def _read_vitals(store: Store, start_ms: int) -> vitals.Window:
    """What all gateways counted in a window, added up."""
    found: Any = store.hgetall(vitals.window_key(start_ms))
    window = vitals.Window()
    for replica, dumped in sorted(found.items()):
        try:
            window.merge(vitals.Window.load(dumped))
        except ValueError as error:
            _log.warning("watchtower: vitals of gateway %s were left out: %s", replica.decode(), error)
    return window
