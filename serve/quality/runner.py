"""A replica's share of the quality jobs: a process for each that runs here, and nothing of video in this one."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import serve
from serve.logs import get
from serve.quality.jobs import BUSY, LOG, SCRATCH, Job, JobStore, late

_BUSY_POLL_S: Final = 0.1
_IDLE_POLL_S: Final = 2.0
_GRACE_S: Final = 10.0
"""Past its deadline a worker ends itself; after so much more it is ended."""

_ENDING_S: Final = 5.0
_LOG_TAIL: Final = 2000
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "FFMPEG_BINARY", "CUDA_VISIBLE_DEVICES")
"""Variables that a worker sees: no token, no store's address."""


@dataclass(kw_only=True)
class _Child:
    process: subprocess.Popen[bytes]
    deadline_s: float
    until_s: float
    expired: bool = False


class QualityRunner:
    """Starts workers for the jobs that wait, and takes up those whose worker died.

    Args:
        store: the jobs.
        running: workers at a time.
    """

    def __init__(self, store: JobStore, running: int) -> None:
        self.store = store
        self._running = running
        self._children: dict[str, _Child] = {}
        self._wake = asyncio.Event()
        self._turn = threading.Lock()
        self._closed = False

    def wake(self) -> None:
        """Look for jobs now."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled; then end the workers, whose jobs wait for the next replica."""
        try:
            while True:
                self._wake.clear()
                try:
                    await asyncio.to_thread(self._tick)
                except Exception:  # noqa: BLE001 - the next time may go better
                    get("quality").exception("failed", extra={"work": "quality jobs"})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_BUSY_POLL_S if self._children else _IDLE_POLL_S):
                        await self._wake.wait()
        finally:
            self.close()

    def close(self) -> None:
        """End the workers; their jobs wait again."""
        with self._turn:
            self._closed = True
            for child in self._children.values():
                _kill(child.process)
            for name, child in self._children.items():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(_ENDING_S)
                self.store.settle(name, forgiven=True)
            self._children.clear()

    def _tick(self) -> None:
        with self._turn:
            if self._closed:
                return
            for name, child in list(self._children.items()):
                self._look_after(name, child)
            if len(self._children) >= self._running:
                return
            for job in self.store.open_jobs():
                if len(self._children) >= self._running:
                    return
                if job.name in self._children or not self._is_free(job.name):
                    continue
                self._start(job)

    def _look_after(self, name: str, child: _Child) -> None:
        process = child.process
        if _lives(process):
            child.expired = time.monotonic() > child.until_s
            if child.expired or self.store.is_cancelled(name):
                _kill(process)
            return
        _kill(process)  # what it started: its group keeps its number until the worker is waited for
        code = process.wait()
        crashed = code not in {0, BUSY}
        del self._children[name]
        if crashed:
            said = _tail(self.store.folder / name / LOG)
            get("quality").warning("worker ended", extra={"job": name, "code": code, "said": said})
        problem = late(child.deadline_s) if child.expired else None
        self.store.settle(name, crashed=crashed, problem=problem)

    def _is_free(self, name: str) -> bool:
        with self.store.held(name) as mine:
            return mine

    def _start(self, job: Job) -> None:
        self.store.settle(job.name)
        folder = self.store.folder / job.name
        scratch = folder / SCRATCH
        try:
            scratch.mkdir(exist_ok=True)
            environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
            environment |= {"TMPDIR": str(scratch), "PYTHONPATH": str(Path(serve.__file__).parents[1])}
            with (folder / LOG).open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "serve.quality.worker", str(folder), str(os.getpid())],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, cwd=folder, env=environment,
                    start_new_session=True,
                )  # fmt: skip
        except FileNotFoundError:
            return  # the job was removed meanwhile
        deadline_s = job.task.deadline_s
        self._children[job.name] = _Child(
            process=process, deadline_s=deadline_s, until_s=time.monotonic() + deadline_s + _GRACE_S
        )


def _lives(process: subprocess.Popen[bytes]) -> bool:
    """Whether a worker still runs; one that has ended is not waited for, so that its group keeps its number."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:  # waited for by the system, where this process ignores SIGCHLD
        return False


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a worker and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-_LOG_TAIL:].decode(errors="replace")
    except OSError:
        return ""
