"""The processes that one `playhead up` starts: how they are recognised, watched and ended, and nothing else with them.

Each part is started as the leader of a session of its own. A process and all its descendants keep that session,
whatever their parents do, and the system gives no new process a number that a session still bears. So "ours" is: the
recorded leader (number and start time), and every process in its session. Where the leader is gone, the number may have
led another session since: then a process also has to carry the part's mark in its environment (Ray's Python processes
overwrite theirs with a title, by which they are known).
"""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, Self

import psutil

START_TOLERANCE_S: Final = 2.0
"""How far two readings of one process's start time may lie apart when the clock is set in between, seconds."""

MARK: Final = "PLAYHEAD_PART"
"""Environment variable that marks a part's processes."""

ENDING_GRACE_S: Final = 8.0
"""How long each part may take to end by itself before it is killed, seconds."""

POLL_S: Final = 0.05
_EXEC_LOOKS: Final = 10
_EXEC_LOOK_S: Final = 0.005
"""A process that has just begun another program has no environment for a moment: it is looked at again."""


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process, so that a later run knows it again.

    Attributes:
        name: what it is to us, such as `valkey`.
        pid: its number, which is also its session's where it leads one.
        started_s: its start time, seconds since the epoch, as psutil tells it.
        mark: value of MARK in the environment of it and its descendants; empty where there is none.
    """

    name: str
    pid: int
    started_s: float
    mark: str = ""

    @classmethod
    def of(cls, name: str, pid: int, mark: str = "") -> Self:
        """Record a process that lives now; one that just died is recorded with the present as its start."""
        try:
            return cls(name, pid, psutil.Process(pid).create_time(), mark)
        except psutil.NoSuchProcess:
            return cls(name, pid, time.time(), mark)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `as_json` gave."""
        return cls(str(fields["name"]), int(fields["pid"]), float(fields["started_s"]), str(fields["mark"]))

    def as_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)

    def process(self) -> psutil.Process | None:
        """The process if it still lives; None if it ended, or if its number now belongs to another."""
        try:
            process = psutil.Process(self.pid)
            if _ended(process) or abs(process.create_time() - self.started_s) > START_TOLERANCE_S:
                return None
        except psutil.NoSuchProcess:
            return None
        return process

    def session(self) -> list[psutil.Process]:
        """The living processes of the session it leads or led, itself included; none if its number has a new owner."""
        leads = self.process() is not None
        if not leads and not _is_ended(self.pid):
            return []
        members = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.pid and not _ended(process) and (leads or self._marked(process)):
                    members.append(process)
            except (ProcessLookupError, PermissionError, psutil.Error):
                continue
        return members

    def _marked(self, process: psutil.Process) -> bool:
        if process.name().startswith("ray::"):
            return True
        for _ in range(_EXEC_LOOKS):
            if environment := process.environ():
                return environment.get(MARK) == self.mark
            time.sleep(_EXEC_LOOK_S)
        return False


def _ended(process: psutil.Process) -> bool:
    try:
        return process.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return True


def _is_ended(pid: int) -> bool:
    try:
        return _ended(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return True


@dataclass(slots=True)
class Child:
    """A part that this process started: its handle and its record."""

    popen: subprocess.Popen[str]
    record: ProcessRecord
    log: Path

    def exit_status(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self.popen.poll()

    def log_tail(self, lines: int = 5) -> str:
        """The last lines of its log."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-lines:])


def start(
    name: str, arguments: Sequence[str], *, log: Path, environment: Mapping[str, str], piped: bool = False
) -> Child:
    """Start a part as the leader of its own session, its errors (and output, unless piped) appended to a log.

    Args:
        name: what it is to us.
        arguments: program and arguments; no shell is involved.
        log: where its output goes; its folder is made.
        environment: its whole environment.
        piped: give it pipes as standard input and output. Its input then ends when this process does, whatever ends it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    stream: IO[str] | int = subprocess.PIPE if piped else subprocess.DEVNULL
    mark = uuid.uuid4().hex
    with log.open("a", encoding="utf-8") as output:
        popen = subprocess.Popen(
            list(arguments),
            stdin=stream,
            stdout=subprocess.PIPE if piped else output,
            stderr=output,
            env={**environment, MARK: mark},
            start_new_session=True,
            text=True,
        )
    return Child(popen, ProcessRecord.of(name, popen.pid, mark), log)


def end(records: Iterable[ProcessRecord], *, grace_s: float) -> list[psutil.Process]:
    """End recorded processes with their whole sessions: ask the leaders, wait, then kill what is left.

    Args:
        records: leaders, in the order in which they are asked; each is given its time before the next.
        grace_s: how long one leader may take to end by itself, seconds.

    Returns:
        What could not be killed, which is nothing unless the system refused.
    """
    left: list[psutil.Process] = []
    for record in records:
        leader = record.process()
        if leader is not None:
            _signal([leader], signal.SIGTERM)
            _wait([leader], grace_s)
        left += _kill(record)
    return left


def _kill(record: ProcessRecord) -> list[psutil.Process]:
    """Kill a session; it may start processes meanwhile, so look again until none is left."""
    deadline = time.monotonic() + 5
    while members := record.session():
        _signal(members, signal.SIGKILL)
        _wait(members, 0.5)
        if time.monotonic() > deadline:
            return members
    return []


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _wait(processes: Sequence[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(not _is_ended(process.pid) for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_S)
