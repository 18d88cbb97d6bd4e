"""The part that updates models by itself: it watches what is new, and starts an update when one is due.

One learner works at a time, by a lease in the store; any number may run. What it remembers lies in the store, so that
another goes on where it ended: an update whose process was killed is taken up again, with its snapshot and its
checkpoint. The update itself is a process of its own (deployments.learning.update), at low priority, and ends with the
learner.
"""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import orjson
import redis

from deployments.learning.policy import Facts, LearningPolicy, Trigger, due
from features.settings import Settings
from features.stream import PLAYS
from serve.learning import Step, state_key, step_arguments
from serve.rollout.board import load_plan, plan_key
from serve.watchtower.board import connect
from serve.watchtower.checkpoints import store_ms
from serve.watchtower.leases import Leases

MODELS: Final = ("recommend",)
"""Models that learn from watch events. Others are trained on material of their own, when somebody asks for it."""

ROLE: Final = "learner"
ATTEMPTS: Final = 3
"""How often an update is tried whose process ends without a word."""

DONE: Final = 0
REFUSED: Final = 10
"""Exit statuses of an update: a rollout began; it failed, and said why. Any other is an end without a word: also 1,
which is Python's own for whatever nobody foresaw."""

_LOOK_S: Final = 2.0
_TROUBLE_S: Final = 5.0
_END_S: Final = 10.0

_UNKNOWN: Final[dict[str, Any]] = {"cause": "schedule", "reason": ""}
_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Memory:
    """What the learner remembers of a model.

    Attributes:
        last_ms: when the last update ended, or the model was seen first, UTC milliseconds.
        failed: whether that update failed.
        taken: plays that the store had ever taken in at the last update's snapshot.
        drift_ms: since when the audience drifts; None: it does not.
        drift_taken: plays that it had taken in when that was seen.
        update: the update that goes on; empty: none.
        trigger: why it does.
        attempts: how often it was started.
    """

    last_ms: int
    failed: bool = False
    taken: int = 0
    drift_ms: int | None = None
    drift_taken: int = 0
    update: str = ""
    trigger: dict[str, Any] | None = None
    attempts: int = 0

    @classmethod
    def load(cls, dumped: bytes | None, now_ms: int, taken: int) -> Self:
        """As it lies in the store; anew where it is not there or something else is."""
        try:
            memory = cls(**orjson.loads(dumped or b""))
            Trigger(**(memory.trigger or _UNKNOWN))
        except (ValueError, TypeError):
            return cls(last_ms=now_ms, taken=taken)
        numbers = (memory.last_ms, memory.taken, memory.drift_taken, memory.attempts, memory.drift_ms or 0)
        sound = isinstance(memory.update, str) and all(type(number) is int for number in numbers)
        return memory if sound else cls(last_ms=now_ms, taken=taken)


class Learner:
    """Starts updates. Belongs to one thread.

    Args:
        settings: where store and models are.
        name: names it among the learners.
        policy: when to update.
        start: starts the process of an update: model, update, trigger.
        drifting: since when a model's audience drifts, UTC milliseconds; None: it does not.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        policy: LearningPolicy,
        start: Callable[[str, str, Trigger], "subprocess.Popen[bytes]"],
        drifting: Callable[["redis.Redis", str], int | None],
    ) -> None:
        self._store = connect(settings)
        self._leases = Leases(self._store, name, [ROLE], counted=False)
        self._policy = policy
        self._start = start
        self._drifting = drifting
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop; the store's troubles are waited out."""
        with self._leases.renewing():
            while not stop.is_set():
                try:
                    self.turn()
                except (redis.RedisError, OSError):
                    _log.exception("learner: will try again")
                    stop.wait(_TROUBLE_S)
                    continue
                stop.wait(_LOOK_S)
        self._end()
        try:
            self._leases.close()
        except (redis.RedisError, OSError):
            _log.warning("learner: its lease was left to end by itself")
        self._store.close()

    def turn(self) -> None:
        """Look at each model once."""
        self._leases.tick()
        if ROLE not in self._leases.held:
            self._end()  # another learner takes up what goes on
            return
        for model in MODELS:
            self._look(model)

    def _look(self, model: str) -> None:
        now_ms, taken = store_ms(self._store), self._taken()
        dumped: Any = self._store.get(state_key(model))
        memory = Memory.load(dumped, now_ms, taken)
        if memory.taken > taken:  # the store was lost
            memory.taken = memory.drift_taken = taken
        if memory.update:
            self._follow(model, memory, now_ms, taken)
        else:
            drift_ms = self._drifting(self._store, model)
            if drift_ms is None or memory.drift_ms is None:
                memory.drift_ms, memory.drift_taken = drift_ms, taken
            facts = Facts(
                now_ms=now_ms, new_events=taken - memory.taken, last_ms=memory.last_ms, failed=memory.failed,
                trying=self._trying(model), drift_ms=memory.drift_ms, drift_events=taken - memory.drift_taken,
            )  # fmt: skip
            trigger = due(self._policy, facts)
            if trigger is not None:
                memory.update, memory.trigger, memory.attempts = f"{now_ms}", asdict(trigger), 0
                memory.taken = taken
        if (remembered := orjson.dumps(asdict(memory))) != dumped:
            self._store.set(state_key(model), remembered)
        if not memory.update:
            self._running.pop(model, None)  # only now: what is not remembered would be done again

    def _follow(self, model: str, memory: Memory, now_ms: int, taken: int) -> None:
        """Start the update that goes on, or see how it ended."""
        process = self._running.get(model)
        status = None if process is None else process.poll()
        if process is not None and status is None:
            return
        if status not in {DONE, REFUSED} and memory.attempts < ATTEMPTS:
            memory.attempts += 1
            trigger = Trigger(**(memory.trigger or _UNKNOWN))
            self._running[model] = self._start(model, memory.update, trigger)
            _log.info("learner: update %s of %s: %s", memory.update, model, trigger.reason)
            return
        if status not in {DONE, REFUSED}:
            text = f"given up: its process ended {memory.attempts} times without a word; see the learner's log"
            step = Step(model=model, update=memory.update, name="update", moment="failed", ts=now_ms, text=text)
            self._store.execute_command(*step_arguments(step))  # type: ignore[no-untyped-call]
        memory.last_ms, memory.failed = now_ms, status != DONE
        memory.update, memory.trigger, memory.attempts = "", None, 0
        memory.drift_ms, memory.drift_taken = None, taken

    def _taken(self) -> int:
        """How many plays the store has ever taken in; what is only shown teaches nothing."""
        counted: Any = self._store.get(PLAYS)
        try:
            return int(counted or 0)
        except ValueError as error:
            raise redis.DataError(f"{PLAYS} holds {counted!r:.80}, no count: delete it, and it counts anew") from error

    def _trying(self, model: str) -> bool:
        dumped: Any = self._store.get(plan_key(model))
        try:
            return dumped is not None and load_plan(dumped).challenger is not None
        except ValueError:
            return True  # a plan of another version of Playhead: it is left alone

    def _end(self) -> None:
        """End the updates that this learner started; they are taken up again."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def start_update(model: str, update: str, trigger: Trigger) -> "subprocess.Popen[bytes]":
    """Start the process of an update; it ends when its standard input does."""
    asked = json.dumps({"model": model, "update": update, "trigger": asdict(trigger)})
    return subprocess.Popen(
        [sys.executable, "-m", "deployments.learning.update", asked], stdin=subprocess.PIPE, stdout=sys.stderr
    )
