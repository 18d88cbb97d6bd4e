"""Quality jobs on disk: what was asked, how it stands, what came out, so that any replica can answer and take up.

One folder a job: `request.json` (what was asked), `state.json`, `report.json` (once finished), `cancelled` (a mark that
any replica may set), `uploads` (clips that came with the question, until it has ended) and `lock`. Its worker holds the
lock, which the system releases however the worker ends: a job that is `running` with a free lock has lost its worker.
Nothing of video is imported here.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.artifacts import replace_file
from serve.clock import now_ms
from serve.errors import InvalidInput, NotFound, PlayheadError, Unavailable
from serve.quality.schemas import ENDED, QualityProblem, Side, Status, Task

MAX_ATTEMPTS: Final = 3
"""How often a job whose worker died is begun."""

SCRATCH: Final = "scratch"
"""Folder of a job for temporary files; emptied whenever its worker has ended."""

UPLOADS: Final = "uploads"
"""Folder of a job for the clips that came with it; removed once it has ended."""

LOG: Final = "worker.log"

BUSY: Final = 75
"""Exit status of a worker whose job another one has."""

_REQUEST: Final = "request.json"
_STATE: Final = "state.json"
_REPORT: Final = "report.json"
_CANCELLED: Final = "cancelled"
_LOCK: Final = "lock"
_STRAY_S: Final = 3600.0
"""Age at which a folder that was never completed is removed."""


class QualityLimits(BaseModel):
    """Bounds of the quality jobs.

    Attributes:
        running: jobs that one replica works on at a time, each in a process of its own.
        waiting: jobs that are not ended, of all replicas that share the home folder; more are refused.
        threads: that a job's decoders and libvmaf use.
        deadline_s: longest time that one job may take.
        max_bytes: of a file.
        max_upload_bytes: of a request that brings its files.
        uploads: requests that one replica takes files from at a time; more are refused.
        max_duration_s: of a clip.
        max_frames: of a clip.
        max_pixels: of a frame.
        kept: ended jobs that are kept.
        kept_s: how long they are kept.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    running: int = Field(default=1, ge=1, le=64)
    waiting: int = Field(default=32, ge=1, le=10_000)
    threads: int = Field(default=1, ge=1, le=64)
    deadline_s: float = Field(default=3600.0, gt=0)
    max_bytes: int = Field(default=4 << 30, ge=1)
    max_upload_bytes: int = Field(default=128 << 20, ge=1)
    uploads: int = Field(default=4, ge=1, le=64)
    max_duration_s: float = Field(default=3600.0, gt=0)
    max_frames: int = Field(default=216_000, ge=1)
    max_pixels: int = Field(default=4096 * 2304, ge=1)
    kept: int = Field(default=200, ge=1, le=100_000)
    kept_s: float = Field(default=7 * 86_400.0, gt=0)


class MisalignedClips(InvalidInput):
    """Clips that can't be compared: serve.quality.alignment.Misaligned, told without importing it."""

    title = "Misaligned clips"


_KINDS: Final[dict[str, type[PlayheadError]]] = {
    kind.title: kind for kind in (InvalidInput, NotFound, MisalignedClips, Unavailable)
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as read.

    Attributes:
        name: its id.
        task: what was asked.
        status: how it stands.
        report: the report as JSON, once finished and where it was asked for.
    """

    name: str
    task: Task
    status: Status
    report: bytes | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will change."""
        return self.status.state in ENDED


class JobStore:
    """All jobs of a home folder.

    Args:
        folder: where they lie; made when the first is.
        limits: bounds of their number and age.
    """

    def __init__(self, folder: Path, limits: QualityLimits) -> None:
        self.folder = folder
        self._limits = limits
        self._writing = threading.Lock()
        self._ended: dict[str, int] = {}

    @contextlib.contextmanager
    def receiving(self) -> Iterator[Path]:
        """A fresh folder for files that come with a question; gone at the end unless a job took it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".upload-", dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, name: str, task: Task, uploads: Path | None = None) -> None:
        """Queue a job, unless it is there and neither cancelled nor failed for a reason that may have passed.

        Args:
            name: its id.
            task: what is asked.
            uploads: folder of the files that came with it, which the job takes where it is queued.

        Raises:
            Unavailable: too many jobs wait.
        """
        with self._writing:
            known = self._read(name)
            if known is not None and not _again(known.status):
                return
            if len(self.open_jobs()) >= self._limits.waiting:
                raise Unavailable(
                    field="jobs", got=f"{self._limits.waiting} that wait or run",
                    expected=f"fewer than {self._limits.waiting}",
                    next_step="Ask again once some are finished, or cancel some: DELETE /v1/quality/{job}.",
                )  # fmt: skip
            if known is None:
                self._remove(name)  # where it is there, it can't be read
                self._create(name, task, uploads)
            else:
                if uploads is not None:
                    shutil.rmtree(self._path(name, UPLOADS), ignore_errors=True)
                    uploads.rename(self._path(name, UPLOADS))
                replace_file(self._path(name, _REQUEST), task.dumped())
                self._write(name, Status(state="queued", updated_ts=now_ms()))
                self._path(name, _CANCELLED).unlink(missing_ok=True)
            self._prune()

    def read(self, name: str, *, with_report: bool = False) -> Job:
        """A job as it stands.

        Raises:
            NotFound: there is none of that name.
        """
        job = self._read(name)
        if job is None:
            raise NotFound(
                field="job", got=name, expected="a job that was asked for and is still kept",
                next_step="POST the question to /v1/quality again.",
            )  # fmt: skip
        if with_report and job.status.state == "finished":
            with contextlib.suppress(FileNotFoundError):
                return replace(job, report=self._path(name, _REPORT).read_bytes())
        return job

    def cancel(self, name: str) -> None:
        """Mark a job as cancelled; its worker sees it, wherever it runs. Nothing changes for one that has ended.

        Raises:
            NotFound: there is none of that name.
        """
        if self.read(name).ended:
            return
        with contextlib.suppress(FileNotFoundError):
            self._path(name, _CANCELLED).touch()
        with self.held(name) as mine:
            if mine:  # else its worker is about to end, and settling clears up
                shutil.rmtree(self._path(name, UPLOADS), ignore_errors=True)

    def is_cancelled(self, name: str) -> bool:
        """Whether the mark is set, or the job is gone."""
        return self._path(name, _CANCELLED).exists() or not self._path(name, _STATE).exists()

    def write(self, name: str, status: Status) -> None:
        """Replace a job's state; by whoever holds its lock."""
        with self._writing:
            self._write(name, status)

    def finish(self, name: str, status: Status, report: bytes) -> None:
        """Write a job's report, then its state; by whoever holds its lock."""
        with self._writing:
            replace_file(self._path(name, _REPORT), report)
            self._write(name, status)

    def open_jobs(self) -> list[Job]:
        """Jobs that have not ended, oldest first."""
        found = []
        seen = {}
        for name in self._names():
            written_ns = self._written_ns(name)
            if self._ended.get(name) != written_ns:
                job = self._read(name)
                if job is not None and not job.ended:
                    found.append(job)
                    continue
            seen[name] = written_ns
        self._ended = seen
        return sorted(found, key=lambda job: (job.task.created_ts, job.name))

    def settle(
        self, name: str, *, crashed: bool = False, forgiven: bool = False, problem: QualityProblem | None = None
    ) -> None:
        """Clear up behind a worker, and say of a job that it left open that it waits again, or failed for good.

        Args:
            name: the job.
            crashed: whether the worker may have died before it wrote anything.
            forgiven: whether it was ended for no fault of the job's, so that this attempt does not count.
            problem: why the job must not be tried again.
        """
        with self.held(name) as mine:
            job = self._read(name) if mine else None
            if job is None:
                return
            shutil.rmtree(self._path(name, SCRATCH), ignore_errors=True)
            waits = job.status.state == "queued"
            if job.ended:
                shutil.rmtree(self._path(name, UPLOADS), ignore_errors=True)
            if job.ended or (waits and not crashed and problem is None):
                return
            attempts = job.status.attempts + waits - forgiven
            if problem is None and attempts >= MAX_ATTEMPTS:
                problem = died(attempts)
            if problem is None:
                self.write(name, Status(state="queued", updated_ts=now_ms(), attempts=attempts))
            else:
                self.write(name, failed(job.status, problem))
                shutil.rmtree(self._path(name, UPLOADS), ignore_errors=True)

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Hold a job's lock; gives whether it was free."""
        with held(self.folder / name) as mine:
            yield mine

    def _create(self, name: str, task: Task, uploads: Path | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
        try:
            if uploads is not None:
                uploads.rename(fresh / UPLOADS)
            replace_file(fresh / _REQUEST, task.dumped())
            replace_file(fresh / _STATE, Status(state="queued", updated_ts=now_ms()).model_dump_json().encode())
            with contextlib.suppress(OSError):  # another replica was faster
                fresh.rename(self.folder / name)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _written_ns(self, name: str) -> int:
        try:
            return self._path(name, _STATE).stat().st_mtime_ns
        except OSError:
            return 0

    def _names(self) -> list[str]:
        try:
            return [entry.name for entry in os.scandir(self.folder) if not entry.name.startswith(".")]
        except FileNotFoundError:
            return []

    def _path(self, name: str, file: str) -> Path:
        return self.folder / name / file

    def _read(self, name: str) -> Job | None:
        try:
            task = Task.model_validate_json(self._path(name, _REQUEST).read_bytes())
            status = Status.model_validate_json(self._path(name, _STATE).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None
        if status.state not in ENDED and self._path(name, _CANCELLED).exists():
            status = status.model_copy(update={"state": "cancelled"})
        return Job(name=name, task=task, status=status)

    def _write(self, name: str, status: Status) -> None:
        replace_file(self._path(name, _STATE), status.model_dump_json().encode())

    def _prune(self) -> None:
        """Remove ended jobs that are too old or too many, and what was never completed."""
        latest: list[tuple[int, str]] = []
        for name in self._names():
            job = self._read(name)
            if job is not None and job.ended:
                latest.append((job.status.updated_ts, name))
        latest.sort(reverse=True)
        oldest_ms = now_ms() - self._limits.kept_s * 1000
        for place, (updated_ts, name) in enumerate(latest):
            if place >= self._limits.kept or updated_ts < oldest_ms:
                with self.held(name) as mine:
                    if mine:
                        self._remove(name)
        for entry in self.folder.glob(".*"):
            with contextlib.suppress(OSError):
                if entry.stat().st_mtime < time.time() - _STRAY_S:
                    shutil.rmtree(entry, ignore_errors=True)

    def _remove(self, name: str) -> None:
        gone = self.folder / f".gone-{name}-{os.getpid()}"
        with contextlib.suppress(OSError):
            (self.folder / name).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold the lock of a job's folder; gives whether it was free. It is released however the process ends."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def name_of(task: Task, files: Mapping[Side, Path], digests: Mapping[Side, str]) -> str:
    """The id of a job: the same question about the same unchanged files, within the same limits, has the same.

    What a version estimates that stands in for another has one of its own: once it is the champion, it does not.

    Args:
        task: what is asked.
        files: of the service's own storage.
        digests: of the contents of uploaded ones.

    Raises:
        OSError: a file is gone.
    """
    asked = task.model_dump_json(include={"model", "every", "display_height", "artifact", "limits"})
    seen: dict[str, object] = {str(side): digest for side, digest in digests.items()}
    if task.degraded:
        seen["degraded"] = task.degraded
    for side, path in files.items():
        status = path.stat()
        seen[side] = (str(path), status.st_size, status.st_mtime_ns)
    return hashlib.sha256(f"{asked}{sorted(seen.items())}".encode()).hexdigest()[:32]


def failed(status: Status, problem: QualityProblem) -> Status:
    """A state with why it failed."""
    return status.model_copy(update={"state": "failed", "updated_ts": now_ms(), "problem": problem})


def problem_of(error: PlayheadError) -> QualityProblem:
    """An error as it is kept."""
    return QualityProblem(
        title=error.title, status=error.status, field=error.field, got=error.got, expected=error.expected,
        next_step=error.next_step,
    )  # fmt: skip


def error_of(problem: QualityProblem) -> PlayheadError:
    """A kept problem as the error that it was."""
    kind = _KINDS.get(problem.title, Unavailable)
    error = kind(field=problem.field, got=None, expected=problem.expected, next_step=problem.next_step)
    error.got = problem.got
    return error


def late(deadline_s: float) -> QualityProblem:
    """The problem of a job that took too long."""
    return problem_of(
        Unavailable(
            field="job", got=f"no end within {deadline_s:g} s", expected="a report in that time",
            next_step="Send shorter clips, or a greater `every`.",
        )
    )  # fmt: skip


def died(attempts: int) -> QualityProblem:
    """The problem of a job whose worker died too often."""
    return problem_of(
        Unavailable(
            field="job", got=f"{attempts} workers that died", expected="one that lives to the end",
            next_step="Look whether a clip makes a decoder fail or memory run out; then POST it again.",
        )
    )  # fmt: skip


def _again(status: Status) -> bool:
    """Whether asking again begins a job anew: what is wrong with the clips themselves stays wrong."""
    problem = status.problem
    return status.state == "cancelled" or (problem is not None and problem.status >= 500)
