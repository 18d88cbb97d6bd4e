"""Training as a Ray job: a worker with declared resources does it, the process that asked for it looks on.

The process that asks is Ray's driver, and the driver is the job: it names itself to Ray, and what runs for it ends when
it ends, however it ends. The work is done by an actor, in a thread of its own, so that the actor can be asked meanwhile
how far it is. A worker that dies is replaced as often as was agreed; training goes on from its checkpoint.

Workers are nice to what else runs on their machine (`be_modest`): training takes the processors that serving leaves.

Ray is imported when a job runs, not before.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

from features.errors import ExplainedError
from serve.errors import PlayheadError

NAMESPACE: Final = "playhead-training"

NICENESS: Final = 10
"""Of training's processes: at equal demand they get a tenth of what serving gets."""

MOST_RETRIES: Final = 3
"""Times that a worker that died is replaced."""

_LOOK_S: Final = 0.5
_ANSWER_S: Final = 60.0
"""The longest silence of a worker: training holds the interpreter for seconds at most."""
_ENDING_S: Final = 10.0
_WAITING_NOTE_S: Final = 20.0
_LONGEST_GOT: Final = 1200

_log = logging.getLogger(__name__)


class JobError(PlayheadError):
    """A job that can't be started, or that ended otherwise than by its training's own doing."""

    title = "Training job failed"

    def __init__(self, *, field: str, got: object, expected: str, next_step: str) -> None:
        super().__init__(field=field, got=got, expected=expected, next_step=next_step)
        self.got = str(got)[:_LONGEST_GOT]  # the words of logs and of other processes, unquoted


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job, or one worker of it, asks of Ray.

    Attributes:
        cpus: logical processors; also its threads.
        gpus: GPUs.
        memory_bytes: memory that Ray books for it; 0 books none.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0

    def memory(self) -> dict[str, float]:
        """The booked memory under Ray's name for it."""
        return {"memory": float(self.memory_bytes)} if self.memory_bytes else {}

    def options(self) -> dict[str, float]:
        """As the options of a Ray actor."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **self.memory()}


@dataclass(frozen=True, kw_only=True)
class RayPlace:
    """Which Ray runs the job.

    Attributes:
        address: of a Ray that runs; None starts one for the job alone and ends it with it.
        temporary: folder of the started Ray's files and sockets; a short path.
        cpus: logical CPUs of the started Ray.
        object_store_bytes: shared memory of the started Ray.
        node_ip: address of this host for Ray; None: as Ray finds it.
        hook: import path of what each worker process runs first; empty: nothing.
        environment: variables that Ray reads at its start.
    """

    address: str | None = None
    temporary: str = ""
    cpus: int = 4
    object_store_bytes: int = 100 << 20
    node_ip: str | None = "127.0.0.1"
    hook: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


class Tell(Protocol):
    """Takes what a job tells while it works."""

    def __call__(self, item: Mapping[str, Any], *, passing: bool = False) -> None:
        """Tell.

        Args:
            item: JSON values.
            passing: whether it makes a passing item that was told just before needless.
        """


Body = Callable[..., dict[str, Any]]
"""What a job does, a function of a module: body(tell, attempt, **arguments) -> JSON values. `attempt` is 0 at first,
and above 0 where a worker died before, so that it goes on from what that one left."""


def be_modest() -> None:
    """Make all threads of this process, and those that they start, give way to others: niceness NICENESS or above."""
    try:
        threads = [int(name) for name in os.listdir("/proc/self/task")]  # noqa: PTH208 - names are all that is needed
    except OSError:
        threads = [0]
    for thread in threads:
        with contextlib.suppress(OSError):  # it ended meanwhile
            os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


@contextlib.contextmanager
def connected(place: RayPlace, name: str) -> Iterator[None]:
    """A driver's connection to Ray while the block runs; one that this process has already is used and left.

    Args:
        place: which Ray.
        name: of the job, in Ray's list of jobs.

    Raises:
        JobError: Ray can't be started or reached.
    """
    known = sys.modules.get("ray")
    if known is not None and known.is_initialized():
        yield
        return
    os.environ.update(place.environment)  # before Ray is imported, for it reads them then
    import ray  # noqa: PLC0415

    if known is not None:  # too late for that: it must read them again
        from ray._private import ray_constants  # noqa: PLC0415
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # noqa: PLC0415

        ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "1") == "1"
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
    _connect(place, name)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(place: RayPlace, name: str) -> None:
    import ray  # noqa: PLC0415
    from ray.job_config import JobConfig  # noqa: PLC0415

    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "job_config": JobConfig(metadata={"name": name, "job_name": name}),
        "log_to_driver": False,
        "configure_logging": False,
    }
    if place.hook:
        options["runtime_env"] = {"worker_process_setup_hook": place.hook}
    if place.node_ip is not None:
        options["_node_ip_address"] = place.node_ip
    if place.address is None:
        options |= {
            "address": "local", "num_cpus": place.cpus, "object_store_memory": place.object_store_bytes,
            "include_dashboard": False, "_temp_dir": str(Path(place.temporary) / "ray"),
        }  # fmt: skip
    else:
        options["address"] = place.address
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises whatever its start and its network raise
        ray.shutdown()
        if place.address is None:
            what = "a Ray of its own starts"
            next_step = "`playhead doctor` may name the cause; a Ray that runs can be named with RAY_ADDRESS."
        else:
            what = f"a Ray that answers at {place.address}"
            next_step = "Start it, correct RAY_ADDRESS, or `playhead down` a stack that is not well."
        raise JobError(
            field="ray", got=f"{type(error).__name__}: {error}", expected=what, next_step=next_step
        ) from error


def run_job(
    body: Body,
    arguments: Mapping[str, Any],
    *,
    resources: Resources,
    log: Path,
    told: Callable[[Mapping[str, Any]], None],
    note: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    retries: int = MOST_RETRIES,
) -> dict[str, Any]:
    """Run a body in a worker of the Ray that is connected, and wait for it.

    SIGINT and SIGTERM, in the main thread, end the worker at once and are raised as KeyboardInterrupt.

    Args:
        body: what to do.
        arguments: its keyword arguments.
        resources: what the worker is given; where Ray has them but not free, the job waits.
        log: file that gets what the worker prints and logs, added at its end; on the worker's machine.
        told: gets what the body tells, at least each second while there is something new.
        note: told of waiting, and of workers that died.
        environment: variables of the worker.
        retries: times that a worker that died is replaced.

    Returns:
        what the body returned.

    Raises:
        ExplainedError: the body's own.
        JobError: Ray has not as much, workers died too often, Ray went away, or the body raised something else.
        KeyboardInterrupt: it was cancelled; what the body kept stays.
    """
    import ray  # noqa: PLC0415

    _check_room(resources)
    worker_class = ray.remote(_Worker)
    options = {**resources.options(), "max_concurrency": 3, "max_restarts": 0, "namespace": NAMESPACE}
    attempt = 0
    with _interruptible():
        while True:
            worker = worker_class.options(**options).remote(str(log), dict(environment or {}))
            try:
                return _follow(worker, body, attempt, arguments, told, note)
            except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError) as error:
                _end(worker)
                attempt += 1
                if attempt > retries:
                    raise _ended(f"died {attempt} times; last: {error}", log) from error
                note(f"the worker died; another goes on from the checkpoint ({attempt} of {retries})")
            except ray.exceptions.RayError as error:
                raise _ended(f"{type(error).__name__}: {error}", log) from error
            finally:
                _end(worker)


def _follow(
    worker: Any, body: Body, attempt: int, arguments: Mapping[str, Any], told: Callable[[Mapping[str, Any]], None],
    note: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Start the body and pass on what it tells, until it ends."""
    import ray  # noqa: PLC0415

    started = worker.ready.remote()
    began, noted = time.monotonic(), False
    while not ray.wait([started], timeout=_LOOK_S)[0]:
        if not noted and time.monotonic() - began > _WAITING_NOTE_S:
            note("waits for Ray to have the processors, GPUs or memory that it asks for")
            noted = True
    ray.get(started, timeout=_ANSWER_S)
    running = worker.run.remote(body, attempt, dict(arguments))
    over = False
    while not over:
        over = bool(ray.wait([running], timeout=_LOOK_S)[0])
        for item in ray.get(worker.news.remote(), timeout=_ANSWER_S):
            told(item)
    outcome: dict[str, Any] = ray.get(running, timeout=_ANSWER_S)
    if "error" in outcome:
        error: ExplainedError = outcome["error"]
        raise error
    result: dict[str, Any] = outcome["result"]
    return result


def _end(worker: Any) -> None:
    """End a worker and wait, for a while, until it is gone."""
    import ray  # noqa: PLC0415

    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(worker)
    with contextlib.suppress(ray.exceptions.RayError):  # it answers no more: that is what is waited for
        ray.get(worker.ready.remote(), timeout=_ENDING_S)


def _check_room(resources: Resources) -> None:
    import ray  # noqa: PLC0415

    there = ray.cluster_resources()
    asked = {"CPU": resources.cpus, "GPU": resources.gpus, **resources.memory()}
    short = {name: (wanted, there.get(name, 0.0)) for name, wanted in asked.items() if wanted > there.get(name, 0.0)}
    for name, (wanted, has) in short.items():
        raise JobError(
            field=f"resources.{name}", got=f"{wanted:g} asked for",
            expected=f"at most {has:g}, which is all that this Ray has",
            next_step="Ask for less, or name a larger Ray with RAY_ADDRESS.",
        )  # fmt: skip


def _ended(what: str, log: Path) -> JobError:
    return JobError(
        field="training worker", got=what, expected="one that ends its training",
        next_step=f"See {log}; then run again with --resume: what was trained so far is kept.",
    )  # fmt: skip


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM counts as SIGINT while the block runs, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Worker:
    """The actor that does a job. `run` has a thread of its own; `news` and `ready` answer beside it."""

    def __init__(self, log: str, environment: dict[str, str]) -> None:
        self._path = Path(log)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        logging.basicConfig(
            stream=sys.stderr, level=logging.INFO, force=True,
            format=f"%(asctime)s {os.getpid()} %(levelname)s %(name)s %(message)s",
        )  # fmt: skip
        os.environ.update(environment)
        self._lock = threading.Lock()
        self._items: list[tuple[bool, dict[str, Any]]] = []
        be_modest()

    def ready(self) -> int:
        """Process number."""
        return os.getpid()

    def news(self) -> list[dict[str, Any]]:
        """What was told since it was asked last."""
        with self._lock:
            items, self._items = self._items, []
        return [item for _, item in items]

    def run(self, body: Body, attempt: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do it; `result`, or the `error` to raise where it is waited for."""
        be_modest()  # this thread, and torch's, which it starts
        try:
            return {"result": body(self._tell, attempt, **arguments)}
        except ExplainedError as error:
            _log.exception("training ended")
            return {"error": error}
        except Exception as error:  # noqa: BLE001 - what else a body raises may not unpickle where it is waited for
            _log.exception("training failed")
            return {"error": _ended(f"{type(error).__name__}: {error}", self._path)}

    def _tell(self, item: Mapping[str, Any], *, passing: bool = False) -> None:
        with self._lock:
            if passing and self._items and self._items[-1][0]:
                self._items.pop()
            self._items.append((passing, dict(item)))
        if not passing:
            _log.info("%s", item)
