"""What a running stack leaves on disk for the commands beside it: who holds the lock, what was started, what happened.

- PLAYHEAD_HOME/run/lock: held (flock) while a stack is up; the system lets go of it when its holder dies
- PLAYHEAD_HOME/run/state.json: processes, address, phases; replaced atomically
- PLAYHEAD_HOME/run/events.jsonl: what `up` tells, one JSON object a line
- PLAYHEAD_HOME/logs/*.log: output of each part
"""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from deployments.processes import ProcessRecord
from features.settings import Settings
from serve.errors import PlayheadError

_LONGEST_GOT: Final = 1200


class StackError(PlayheadError):
    """The stack cannot be brought up, found or ended."""

    title = "Stack error"

    def __init__(self, *, field: str, got: object, expected: str, next_step: str) -> None:
        super().__init__(field=field, got=got, expected=expected, next_step=next_step)
        self.got = str(got)[:_LONGEST_GOT]  # the words of logs and of other processes, unquoted


def already_up(holder: int | None) -> StackError:
    """The error of who wants to run a stack where there is one.

    Args:
        holder: process number of who holds the one that is up.
    """
    return StackError(
        field="stack",
        got=f"already up (pid {holder})",
        expected="none with this home folder",
        next_step="`playhead status` shows it, `playhead down` ends it; PLAYHEAD_HOME names another home.",
    )


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one stack's files.

    Attributes:
        home: PLAYHEAD_HOME.
    """

    home: Path

    @property
    def run(self) -> Path:
        """Folder of what concerns the run and may be thrown away after it."""
        return self.home / "run"

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self.run / "lock"

    @property
    def state(self) -> Path:
        """The state file."""
        return self.run / "state.json"

    @property
    def events(self) -> Path:
        """What `up` tells."""
        return self.run / "events.jsonl"

    def log(self, name: str) -> Path:
        """Log of one part."""
        return self.home / "logs" / f"{name}.log"


@dataclass(slots=True)
class StackState:
    """What is up.

    Attributes:
        supervisor: the process that holds it all.
        url: where it answers.
        placement: `local` or `cluster`.
        data: name of the data set.
        redis_url: the store in use.
        ray_address: the Ray in use; empty until it is known.
        temporary: folder of sockets, outside home because socket paths are short; removed at the end.
        parts: leaders of what was started, by name.
        phases: seconds by phase name.
        ready: whether it answered.
    """

    supervisor: ProcessRecord
    url: str
    placement: str
    data: str
    redis_url: str
    ray_address: str = ""
    temporary: str = ""
    parts: dict[str, ProcessRecord] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    ready: bool = False

    @classmethod
    def read(cls, folder: RunFolder) -> Self | None:
        """The recorded state; None where there is none, or none that can be read (a half-written one cannot occur)."""
        try:
            fields = json.loads(folder.state.read_text(encoding="utf-8"))
            return cls.from_json(fields)
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            return None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `as_json` gave."""
        known = dict(fields)
        known["supervisor"] = ProcessRecord.from_json(known["supervisor"])
        known["parts"] = {name: ProcessRecord.from_json(part) for name, part in known["parts"].items()}
        return cls(**known)

    def as_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **fields,
            "supervisor": self.supervisor.as_json(),
            "parts": {name: part.as_json() for name, part in self.parts.items()},
        }

    def write(self, folder: RunFolder) -> None:
        """Replace the state file."""
        folder.run.mkdir(parents=True, exist_ok=True)
        scratch = folder.state.with_suffix(".tmp")
        scratch.touch(mode=0o600)  # the store's URL may hold a password
        scratch.write_text(json.dumps(self.as_json(), indent=1), encoding="utf-8")
        scratch.replace(folder.state)


class StackLock:
    """The right to run the stack of one home folder. Held by the open file, so it cannot go stale."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Try to take it; whether it is ours now."""
        self._folder.run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Let go of it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> int | None:
        """Process number of who holds it now; None if nobody does."""
        try:
            descriptor = os.open(self._folder.lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(descriptor, 32).decode() or "0"
            return int(text)
        finally:
            os.close(descriptor)
        return None


def service_url(home: Path) -> str:
    """Where the stack of a home folder answers, or would by default."""
    state = StackState.read(RunFolder(home))
    return state.url if state is not None else "http://127.0.0.1:8000"


def store_url(settings: Settings) -> str:
    """The store of the stack that is up on this machine, else the one that the environment names."""
    folder = RunFolder(settings.home)
    state = StackState.read(folder)
    return settings.redis_url if state is None or StackLock(folder).holder() is None else state.redis_url
