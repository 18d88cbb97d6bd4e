"""The role `outages`: the signs of all shards, made into outages; and what the feature store is told of playback.

Its settings are those of the model `detectors` (serve.watchtower.versions), which change between two windows, with a
checkpoint: windows that are judged again by another replica are judged by the same settings.
"""

import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from features.errors import FeaturesError
from features.networks import store_throughput
from features.qoe import store_qoe
from features.settings import Settings
from serve.errors import ArtifactError
from serve.telemetry.windows import WINDOW_MS
from serve.watchtower import board
from serve.watchtower.alarms import Alarm
from serve.watchtower.beside import Beside, compared_commands
from serve.watchtower.board import Store
from serve.watchtower.checkpoints import CHECKPOINT_EVERY, beginning_anew, read_state, state_command, store_ms
from serve.watchtower.leases import Lease, Leases
from serve.watchtower.networks import NetworkSums, merged, throughput_of
from serve.watchtower.outages import Outage
from serve.watchtower.progress import first_window, next_window
from serve.watchtower.qoe import QoeSums
from serve.watchtower.tracker import OutageTracker
from serve.watchtower.versions import TTL_S, InForce, Versions, told_command

SHARD_LATE_MS: Final = 20_000
"""Alarms of a shard that do not come for so long are not waited for."""

_TOLD_EVERY: Final = 6
"""Windows between what the feature store is told of networks and titles."""

_log = logging.getLogger(__name__)


class OutagesRole:
    """Makes outages of the alarms of all shards."""

    def __init__(self, store: Store, leases: Leases, lease: Lease, settings: Settings) -> None:
        self._store = store
        self._leases = leases
        self._lease = lease
        self._since = store_ms(store)
        self._settings = settings
        self._waits_since = 0
        self._orphans: list[Outage] = []
        self._beside: dict[str, Beside] = {}
        self._versions = Versions(store, settings)
        self._is_told: object = None
        self._told_s = -math.inf
        self._is_due = False
        with beginning_anew(board.OUTAGE_ROLE):
            state = read_state(store, board.OUTAGE_ROLE)
            if state is not None:
                self._restore_settings(state)
                self._tracker = OutageTracker.from_state(state["tracker"], self._versions.champion.settings)
                self._networks, self._qoe = NetworkSums.load(state["networks"]), QoeSums.load(state["qoe"])
                self._next = int(state["next"])
                self._restore_beside(state.get("beside", ()))
                return
        self._next = first_window(store, board.OUTAGE_ROLE)
        self._tracker = OutageTracker(self._versions.champion.settings)
        self._networks, self._qoe = NetworkSums(), QoeSums()
        told: Any = store.hvals(board.OUTAGES)
        self._orphans = [outage for outage in map(board.load_outage, told) if outage.is_open]

    def step(self) -> bool:
        """Take the next window in, once all shards have judged it."""
        self._follow()
        start = self._next
        found = next_window(self._store, start, self._since)
        if found is None:
            return False
        window, networks = found
        told: Any = self._store.hgetall(board.alarms_key(start))
        if len(told) < board.SHARDS:
            now = store_ms(self._store)
            self._waits_since = self._waits_since or now
            if now - self._waits_since < SHARD_LATE_MS:
                return False
        self._waits_since = 0
        signs = [sign for _, dumped in sorted(told.items()) for sign in board.load_alarms(dumped)]
        signs.sort(key=lambda sign: -sign.evidence)
        changed = self._tracker.see(window, signs)
        self._see_beside(start, signs, changed)
        self._next += WINDOW_MS
        changed += self._lost()
        self._networks = merged(self._networks, networks)
        self._qoe.add(window)
        self._commit(changed)
        if self._next // WINDOW_MS % _TOLD_EVERY == 0:
            self._tell_networks()
            self._tell_qoe()
        return True

    def _follow(self) -> None:
        """Go by the settings that the plan names now, and tell so."""
        now_ms, before = store_ms(self._store), self._versions.champion
        if not self._versions.look(now_ms):
            return
        champion = self._versions.champion
        if champion != before:
            self._tracker.settings = champion.settings
            self._beside, self._is_due = {}, True
        wanted = self._versions.beside
        kept = {version: one for version, one in self._beside.items() if version in wanted}
        for version, (settings, _) in wanted.items():
            if version not in kept:
                kept[version] = Beside(version, settings, self._tracker, self._next)
        self._beside = kept
        states = self._versions.told({one.version: one.given_up for one in kept.values() if one.given_up})
        if states != self._is_told or time.monotonic() - self._told_s > TTL_S / 3:
            self._leases.commit(self._lease, [told_command(states)])
            self._is_told, self._told_s = states, time.monotonic()

    def _see_beside(self, window_ms: int, signs: list[Alarm], changed: list[Outage]) -> None:
        """Let other settings judge the window; whatever they do, the champion's outages are told."""
        for one in self._beside.values():
            try:
                one.see(window_ms, signs, changed)
            except Exception as error:  # noqa: BLE001 - no other settings may cost the champion a window
                _log.exception("outages: %s of the detectors fails beside the champion", one.version)
                one.given_up = f"it failed: {type(error).__name__}"

    def _restore_settings(self, state: Mapping[str, Any]) -> None:
        """Go by the settings that were in force when the role was left."""
        known = state.get("detectors")
        if known is None:
            return
        try:
            self._versions = Versions(self._store, self._settings, InForce.from_state(known))
        except (ArtifactError, KeyError, TypeError, ValueError) as error:
            _log.error("outages: the settings of before cannot be read, the defaults hold: %s", error)

    def _restore_beside(self, states: Iterable[Mapping[str, Any]]) -> None:
        for state in states:
            try:
                one = Beside.from_state(state, self._tracker)
            except (ArtifactError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                _log.warning("outages: what is tried beside begins anew: %r", error)
            else:
                self._beside[one.version] = one

    def _lost(self) -> list[Outage]:
        """Outages that are told as open, and that were not found again when what is kept was judged anew: closed."""
        due = [orphan for orphan in self._orphans if orphan.updated_ts < self._next]
        self._orphans = [orphan for orphan in self._orphans if orphan not in due]
        known = {outage.outage_id for outage in self._tracker.outages}
        return [
            replace(orphan, state="closed", updated_ts=self._next, closed_ts=self._next)
            for orphan in due
            if orphan.outage_id not in known
        ]

    def _commit(self, changed: list[Outage]) -> None:
        commands: list[list[Any]] = [["SET", board.AS_OF, self._next]]
        for outage in changed:
            dumped = board.dump_outage(outage)
            known: Any = self._store.hget(board.OUTAGES, outage.outage_id)
            if known == dumped:
                continue  # a window that was judged before the replica before died
            commands.append(["HSET", board.OUTAGES, outage.outage_id, dumped])
            commands.append(["XADD", board.LOG, "MAXLEN", "~", board.MOST_LOGGED, "*", board.CHANGE, dumped])
        if changed or self._is_due or self._next // WINDOW_MS % CHECKPOINT_EVERY == 0:
            self._is_due = False
            state = {
                "next": self._next, "tracker": self._tracker.state(), "networks": self._networks.dump(),
                "qoe": self._qoe.dump(),
            }  # fmt: skip
            if self._versions.champion.version is not None:
                state["detectors"] = self._versions.champion.state()
            if self._beside:
                state["beside"] = [one.state() for one in self._beside.values()]
                commands += compared_commands(self._beside.values())
            commands.append(state_command(board.OUTAGE_ROLE, state))
            commands += self._forgotten()
        self._leases.commit(self._lease, commands)

    def _forgotten(self) -> list[list[Any]]:
        """Outages that closed long ago."""
        known: Any = self._store.hgetall(board.OUTAGES)
        oldest = self._next - board.KEPT_CLOSED_MS
        old = [name for name, dumped in known.items() if (board.load_outage(dumped).closed_ts or oldest) < oldest]
        return [["HDEL", board.OUTAGES, *old]] if old else []

    def _tell_networks(self) -> None:
        """What is seen of networks, for bitrate decisions."""
        seen = throughput_of(self._networks, self._next)
        if not seen:
            return
        try:
            store_throughput(self._settings, seen)
        except FeaturesError as error:
            _log.warning("throughput of networks was not written: %s", error)

    def _tell_qoe(self) -> None:
        """How playback goes, by network and by title."""
        networks, titles = self._qoe.networks(), self._qoe.titles()
        if not networks and not titles:
            return
        try:
            store_qoe(self._settings, networks, titles)
        except FeaturesError as error:
            _log.warning("how playback goes was not written: %s", error)
