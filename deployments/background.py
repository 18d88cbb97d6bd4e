"""A stack in the background: started until it answers, and ended whole."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import psutil

from deployments.leftovers import clean
from deployments.local import StackOptions, options_json
from deployments.progress import Notice, Reporter
from deployments.state import RunFolder, StackError, StackLock, StackState, already_up
from features.settings import Settings

_LOOK_S: Final = 0.1
_DOWN_DEADLINE_S: Final = 60.0

_children: Final[dict[int, subprocess.Popen[bytes]]] = {}
"""Stacks that this process started, by pid: whoever ends one takes leave of it."""


def start(
    settings: Settings, options: StackOptions, reporter: Reporter, environment: Mapping[str, str] | None = None
) -> StackState:
    """Start a stack in the background and tell its phases until it answers.

    Args:
        settings: its home folder.
        options: what to bring up.
        reporter: told of its phases.
        environment: variables that it gets besides ours.

    Raises:
        StackError: it could not be brought up; nothing of it is left.
    """
    folder = RunFolder(settings.home)
    holder = StackLock(folder).holder()
    if holder is not None:
        raise already_up(holder)
    folder.events.unlink(missing_ok=True)
    log = folder.log("up")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.local", options_json(options)],
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            env={**os.environ, **(environment or {}), "PLAYHEAD_HOME": str(settings.home)},
            start_new_session=True,
        )
    _children[process.pid] = process
    try:
        return _follow(folder, process, reporter)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def end(settings: Settings, reporter: Reporter) -> int:
    """End the stack of a home folder, and what one that died left.

    Returns:
        how many processes were ended.

    Raises:
        StackError: it does not end.
    """
    folder = RunFolder(settings.home)
    if not folder.lock.is_file():
        return 0
    lock, ended, asked = StackLock(folder), 0, False
    child = _children.pop(lock.holder() or 0, None)
    deadline = time.monotonic() + _DOWN_DEADLINE_S
    while not lock.take():
        state = None if asked else StackState.read(folder)  # one that starts tells who it is soon after its lock
        process = None if state is None else state.supervisor.process()
        if state is not None and process is not None:
            ended = sum(len(part.session()) for part in state.parts.values())
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
            asked = True
        if time.monotonic() > deadline:
            raise StackError(
                field="stack",
                got=f"pid {lock.holder()} still holds it after {_DOWN_DEADLINE_S:g} s",
                expected="an end",
                next_step="kill -9 that process, then run `playhead down` again: it ends what is left.",
            )
        time.sleep(_LOOK_S)
    try:
        if child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its lock is free: it is about to be over
                child.wait(_DOWN_DEADLINE_S)
        return ended + clean(folder, reporter)
    finally:
        lock.release()


def _follow(folder: RunFolder, process: subprocess.Popen[bytes], reporter: Reporter) -> StackState:
    for told in _lines(folder, process):
        if "phase" in told:
            reporter.tell(Notice.from_json(told))
        elif "ready" in told:
            return StackState.from_json(told["ready"])
        elif "error" in told:
            raise StackError(**told["error"])
    raise StackError(
        field="stack",
        got=f"its process ended (status {process.poll()})",
        expected="a stack that answers",
        next_step=f"See {folder.log('up')}.",
    )


def _lines(folder: RunFolder, process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """What the background process tells, as it comes, until it ends."""
    done, rest = 0, ""
    while True:
        ended = process.poll() is not None
        if folder.events.is_file():
            with folder.events.open(encoding="utf-8") as stream:
                stream.seek(done)
                text = stream.read()
                done = stream.tell()
            *whole, rest = (rest + text).split("\n")
            yield from (json.loads(line) for line in whole if line)
        if ended:
            return
        time.sleep(_LOOK_S)
