"""The process that works on one job: `python -m serve.quality.worker FOLDER PARENT`.

It holds the job's lock for as long as it lives, and ends itself with all that it started when the job is cancelled,
its deadline passes or its parent dies.
"""

import contextlib
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Final

import orjson

from serve.artifacts import read_artifact
from serve.clock import now_ms
from serve.errors import InvalidInput, NotFound, PlayheadError, Unavailable
from serve.priority import give_way
from serve.quality.estimates import MODEL
from serve.quality.files import find_file
from serve.quality.jobs import BUSY, UPLOADS, JobStore, QualityLimits, failed, held, late, problem_of
from serve.quality.media import Limits, probe
from serve.quality.noreference import NoReference, NoReferenceScorer
from serve.quality.schemas import EstimatedQuality, EstimateReport, QualityProblem, Side, Status, Task
from serve.quality.scorer import FullReferenceScorer, Quality

_NICENESS: Final = 10
_LOOK_S: Final = 0.2
_TELL_S: Final = 0.5
_MAX_FILE_BYTES: Final = 2 << 30


class Work:
    """Work on one job.

    Args:
        folder: the job's.
        parent: process that this one must not outlive; 0 for none.
    """

    def __init__(self, folder: Path, parent: int) -> None:
        self._store = JobStore(folder.parent, QualityLimits())
        self._name = folder.name
        self._parent = parent
        self._job = self._store.read(self._name)
        self._until = time.monotonic() + self._job.task.deadline_s
        self._told = 0.0
        self._ended = threading.Event()
        self._state = threading.Lock()
        self._status = Status(state="running", updated_ts=now_ms(), attempts=self._job.status.attempts + 1)

    def run(self) -> None:
        """Score, and write what came out."""
        if self._job.ended:
            return
        self._store.write(self._name, self._status)
        threading.Thread(target=self._watch, daemon=True).start()
        task = self._job.task
        try:
            report = self._score(task)
        except PlayheadError as error:
            self._fail(problem_of(self._without_paths(error)))
        except Exception as error:  # noqa: BLE001 - whatever a library raises, the job ends and says so
            traceback.print_exception(error)
            self._fail(problem_of(_unknown(error)))
        else:
            with self._state:
                self._ended.set()
                total = self._status.total or self._status.done
                done = {"state": "finished", "updated_ts": now_ms(), "done": total, "total": total}
                self._store.finish(self._name, self._status.model_copy(update=done), report)
        shutil.rmtree(self._store.folder / self._name / UPLOADS, ignore_errors=True)

    def _score(self, task: Task) -> bytes:
        try:
            artifact = read_artifact(task.artifact)
        except PlayheadError as error:
            raise Unavailable(
                field="model", got="no whole artifact", expected="a version of it",
                next_step="Make it anew: playhead eval quality, or playhead train quality.",
            ) from error  # fmt: skip
        limits = Limits(**task.limits)
        files: dict[Side, Path] = {}
        frames = []
        for side, given in task.files.items():
            files[side] = path = self._file(side, given)
            try:
                facts = probe(path, limits)
            except PlayheadError as error:
                error.field = side
                raise
            frames.append(facts.frames or round((facts.duration_s or 0) * facts.frames_per_s))
        self._status = self._status.model_copy(update={"total": min(frames) or None})
        try:
            if "reference" in files:
                measured = FullReferenceScorer(artifact, task.device).score(
                    files["reference"], files["distorted"], model=task.model, every=task.every, limits=limits,
                    advance=self._advance,
                )  # fmt: skip
                return render(measured, artifact.version)
            estimated = NoReferenceScorer(artifact, task.device).score(
                files["distorted"], display_height=task.display_height, limits=limits, advance=self._advance
            )
            return render_estimate(estimated, artifact.version)
        except PlayheadError as error:
            named = [side for side, path in files.items() if path.name == error.field]
            if error.field.startswith("bitstream.") and isinstance(error, InvalidInput):
                error.field = "display_height" if error.field.endswith("display_height") else "distorted"
            elif len(named) == 1:
                (error.field,) = named
            raise

    def _file(self, side: Side, given: str) -> Path:
        if side in self._job.task.uploaded:
            return self._store.folder / self._name / UPLOADS / side
        assert self._job.task.media is not None
        return find_file(Path(self._job.task.media), given, side)

    def _without_paths(self, error: PlayheadError) -> PlayheadError:
        """An error that says nothing of where this machine keeps its files."""
        media = self._job.task.media
        folders = [str(self._store.folder / self._name / UPLOADS), os.environ.get("TMPDIR", "")]
        if media is not None:
            folders += [os.path.realpath(media), media]
        for folder in filter(None, folders):
            error.got = error.got.replace(f"{folder}/", "").replace(folder, "")
        return error

    def _advance(self, count: int) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_S:
            self._told = now
            with self._state:
                if not self._ended.is_set():
                    self._status = self._status.model_copy(update={"done": count, "updated_ts": now_ms()})
                    self._store.write(self._name, self._status)

    def _fail(self, problem: QualityProblem) -> None:
        with self._state:
            if not self._ended.is_set():
                self._ended.set()
                self._store.write(self._name, failed(self._status, problem))

    def _watch(self) -> None:
        """End this process and its children where it is no longer wanted."""
        while not self._ended.wait(_LOOK_S):
            if time.monotonic() > self._until:
                self._fail(late(self._job.task.deadline_s))
                _end_all()
            if self._store.is_cancelled(self._name) or (self._parent and os.getppid() != self._parent):
                _end_all()


def render(found: Quality, version: str) -> bytes:
    """A report as JSON."""
    frames = zip(found.indices.tolist(), found.times_s.tolist(), found.scores.tolist(), strict=True)
    return orjson.dumps(
        {
            "kind": "full_reference",
            "model": found.model,
            "version": version,
            "backend": found.backend,
            "pooled": found.pooled.as_json(),
            "frames": [{"frame": frame, "time_s": time_s, "vmaf": score} for frame, time_s, score in frames],
            "corrections": found.alignment.corrections,
            "notes": found.alignment.notes,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def render_estimate(found: NoReference, version: str) -> bytes:
    """A report of an estimate as JSON."""
    return orjson.dumps(
        EstimateReport(
            model=MODEL, version=version, method=found.method, coverage=found.coverage, segment_s=found.segment_s,
            clip=EstimatedQuality(**asdict(found.clip)),
            segments=tuple(EstimatedQuality(**asdict(one)) for one in found.segments),
        ).model_dump()
    )  # fmt: skip


def _unknown(error: Exception) -> Unavailable:
    return Unavailable(
        field="job", got=type(error).__name__, expected="a report",
        next_step="Look at the worker.log of this job on the service's machine; then POST it again.",
    )  # fmt: skip


def _end_all() -> None:
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def main(folder: Path, parent: int = 0) -> int:
    """Work on a job.

    Returns:
        Exit status: 0 where its state says how it ended, BUSY where another worker has it.
    """
    give_way(_NICENESS, is_awaited=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    with held(folder) as mine:
        if not mine:
            return BUSY
        with contextlib.suppress(NotFound):
            Work(folder, parent).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
