"""The role `slices:S`: one shard of the slices, judged."""

from typing import Any

from serve.telemetry.windows import WINDOW_MS
from serve.watchtower import board
from serve.watchtower.board import Store
from serve.watchtower.checkpoints import CHECKPOINT_EVERY, beginning_anew, read_state, state_command, store_ms
from serve.watchtower.leases import Lease, Leases
from serve.watchtower.progress import first_window, next_window
from serve.watchtower.slices import SliceWatch


class SlicesRole:
    """Judges one shard of the slices, window by window."""

    def __init__(self, store: Store, leases: Leases, lease: Lease, shard: int) -> None:
        self._store = store
        self._leases = leases
        self._lease = lease
        self._since = store_ms(store)
        self._shard = shard
        self._name = f"slices:{shard}"
        self._next, self._watch = first_window(store, self._name), SliceWatch(shard, board.SHARDS)
        with beginning_anew(self._name):
            state = read_state(store, self._name)
            if state is not None:
                self._watch, self._next = SliceWatch.from_state(state["watch"]), int(state["next"])

    def step(self) -> bool:
        """Judge the next window, if it is there."""
        found = next_window(self._store, self._next, self._since)
        if found is None:
            return False
        window, _ = found
        alarms = board.dump_alarms(self._watch.see(window))
        self._next += WINDOW_MS
        key = board.alarms_key(window.start_ms)
        commands: list[list[Any]] = [
            ["HSETNX", key, str(self._shard), alarms],
            ["EXPIRE", key, board.WINDOW_TTL_S],
        ]
        if self._next // WINDOW_MS % CHECKPOINT_EVERY == 0:
            commands.append(state_command(self._name, {"next": self._next, "watch": self._watch.state()}))
        self._leases.commit(self._lease, commands)
        return True
