"""A tracked run: its metrics, sent in batches, and the files that are kept with it."""

import contextlib
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from serve.errors import NotFound, PlayheadError
from training.tracking import Tracking, flat, metric_name, pages

PROCESS_TAG: Final = "playhead.process"
"""Names the process whose run it is: its machine, number and beginning."""

_FLUSH_S: Final = 1.0
_REST_S: Final = 15.0
"""Between two tries to tell a registry that is down."""

_MOST_WAITING: Final = 20_000
_MOST_IN_BATCH: Final = 500
_MOST_PARAMETERS: Final = 100  # in a batch
_LONGEST: Final = 6000
_CLOCK_S: Final = 5.0
"""By how much a process's beginning may seem to move."""

_log = logging.getLogger(__name__)


class Run:
    """A tracked run that goes on. For more than one thread.

    Metrics are sent in batches, about each second. A registry that goes away meanwhile costs no training: they wait and
    are sent when it is back, the oldest of more than 20,000 being dropped and counted.

    Attributes:
        id: of the run.
        model: whose run it is.
    """

    def __init__(self, tracking: Tracking, model: str, run_id: str) -> None:
        self.id: Final = run_id
        self.model: Final = model
        self._tracking = tracking
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, float, int, int]] = deque(maxlen=_MOST_WAITING)
        self._next_s = 0.0
        self._lost = 0

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Note one value.

        Args:
            name: of the metric; what MLflow does not take in names is written otherwise, as `hr_at_10` for `hr@10`.
            value: any number.
            step: of the training, such as an epoch.
        """
        self.metrics({name: value}, step)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Note several values of one step."""
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            for name, value in values.items():
                self._lost += len(self._waiting) == _MOST_WAITING
                self._waiting.append((metric_name(name), float(value), now_ms, step))
            if time.monotonic() >= self._next_s:
                self._flush()

    def flush(self) -> None:
        """Send what waits. That it could not be sent is said in the log, and not by an error."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting[place] for place in range(min(len(self._waiting), _MOST_IN_BATCH))]
                send_metrics(self._tracking, self.id, batch)
                for _ in batch:
                    self._waiting.popleft()
        except PlayheadError as error:
            _log.warning("run %s: %d metrics wait for the registry: %s", self.id, len(self._waiting), error)
            self._next_s = time.monotonic() + _REST_S
            return
        self._next_s = time.monotonic() + _FLUSH_S
        if self._lost:
            _log.warning("run %s: %d metrics were dropped while the registry was down", self.id, self._lost)
            self._lost = 0

    def file(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, or of what a folder holds, with the run.

        Args:
            path: of the file or folder.
            folder: within the run's artifacts.

        Raises:
            NotFound: there is no such file.
            Unavailable: the registry does not take it.
        """
        if not path.exists():
            raise NotFound(field="file", got=str(path), expected="a file", next_step="Write it before it is kept.")
        if path.is_dir():
            self._tracking.ask(lambda client: client.log_artifacts(self.id, str(path), folder or None))
        else:
            self._tracking.ask(lambda client: client.log_artifact(self.id, str(path), folder or None))

    def text(self, name: str, content: str) -> None:
        """Keep a text with the run.

        Args:
            name: path within the run's artifacts, such as `checks.json`.
            content: the text.

        Raises:
            Unavailable: the registry does not take it.
        """
        self._tracking.ask(lambda client: client.log_text(self.id, content, name))


def send_metrics(tracking: Tracking, run_id: str, values: list[tuple[str, float, int, int]]) -> None:
    """Add to a run's metrics: (name, value, UTC ms, step).

    Raises:
        Unavailable: the registry does not answer.
    """

    def send(client: Any) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415 - a second

        client.log_batch(run_id, metrics=[Metric(*value) for value in values])

    tracking.ask(send)


def begin(tracking: Tracking, experiment_id: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Create a run; its id.

    Args:
        tracking: where the run will be.
        experiment_id: where it belongs.
        parameters: JSON values, nested ones become `a.b`.
        tags: anything else that is told of it.

    Raises:
        Unavailable: the registry does not answer.
    """
    from mlflow.entities import Param  # noqa: PLC0415

    run_id: str = tracking.ask(lambda client: client.create_run(experiment_id, tags=dict(tags)).info.run_id)
    given = [Param(metric_name(name), str(value)[:_LONGEST]) for name, value in flat(parameters).items()]
    for start in range(0, len(given), _MOST_PARAMETERS):
        batch = given[start : start + _MOST_PARAMETERS]
        tracking.ask(lambda client, batch=batch: client.log_batch(run_id, params=batch))  # type: ignore[misc]
    return run_id


def end(tracking: Tracking, run_id: str, error: BaseException | None) -> None:
    """Note a run's end; that it could not be noted is said in the log.

    Args:
        tracking: where the run is.
        run_id: of the run.
        error: what ended it; None: it is finished.
    """
    status = "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"

    def note(client: Any) -> None:
        if error is not None:
            client.set_tag(run_id, "error", f"{type(error).__name__}: {error}"[:_LONGEST])
        client.set_terminated(run_id, status=status)

    try:
        tracking.ask(note)
    except PlayheadError as trouble:
        _log.warning("run %s: its end, %s, is not noted: %s", run_id, status, trouble)


def this_process() -> str:
    """Names this process among all: where process numbers count, its number, and when it began (UTC seconds)."""
    return f"{_numbering()} {os.getpid()} {psutil.Process().create_time():.0f}"


def end_lost(client: Any, experiment_id: str) -> None:
    """Note as killed what is told to be running by processes of this machine that are gone.

    Args:
        client: an MlflowClient.
        experiment_id: whose runs.
    """
    found = pages(
        lambda token: client.search_runs(
            [experiment_id], "attributes.status = 'RUNNING'", max_results=_MOST_IN_BATCH, page_token=token
        )
    )
    for run in list(found):
        if _is_gone(run.data.tags.get(PROCESS_TAG, "")):
            client.set_tag(run.info.run_id, "error", "its process was killed")
            client.set_terminated(run.info.run_id, status="KILLED")


def _is_gone(process: str) -> bool:
    """Whether a process of this machine ended; not where it is another machine's, or nobody wrote down whose."""
    numbering, _, named = process.rpartition(" ")[0].rpartition(" ")
    if numbering != _numbering():
        return False
    try:
        number, began_s = int(named), float(process.rpartition(" ")[2])
        return abs(psutil.Process(number).create_time() - began_s) > _CLOCK_S
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):
        return False


def _numbering() -> str:
    """Names the machine, or the container, in which a process number means one process."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - it is no path
    return f"{socket.gethostname()}{space}"
