"""The stack on this machine: started part by part, watched, restarted where a part dies, ended whole.

Run as `python -m deployments.local OPTIONS` it holds a stack in the background (`playhead up --detach`).
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from deployments import network, placement, processes, valkey
from deployments.cluster import ClusterRequest, ray_environment
from deployments.leftovers import clean, discard
from deployments.network import readiness, silence
from deployments.parts import Cluster, Preparation, start_worker
from deployments.preparation import has_champions
from deployments.processes import ENDING_GRACE_S, Child, ProcessRecord
from deployments.progress import LineReporter, Moment, Notice, Reporter, phase
from deployments.state import RunFolder, StackError, StackLock, StackState, already_up
from features.settings import Settings
from serve.errors import PlayheadError

_PREPARATION_DEADLINE_S: Final = 24 * 3600.0  # training on somebody's own data may be long
_RUNNING_DEADLINE_S: Final = 180.0
_READY_DEADLINE_S: Final = 60.0
_WORKERS: Final = ("sinks", "watchtower", "registry")
"""Parts that work on the logs."""

_LOOK_S: Final = 0.5
_ASKING_S: Final = 5.0
_SILENCE_S: Final = 45.0  # longer than Ray takes to mend a replica or HAProxy by itself
_MOST_RESTARTS: Final = 5
_RESTART_WINDOW_S: Final = 300.0
_LONGEST_REST_S: Final = 60.0
"""Between two starts of a part that works on the logs and ends again and again."""
_OBJECT_STORE_BYTES: Final = 100 * 1024 * 1024
_FEW_CPUS: Final = 4


class Interrupted(Exception):
    """A signal asked for the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """What to bring up.

    Attributes:
        placement: name or path of a placement.
        port: where HAProxy listens.
        data: name of the data set.
        prepare: bring data, features and model up to date first.
        redis_url: a store to use; None embeds one.
        ray_address: a Ray to use; None embeds one.
    """

    placement: str = "local"
    port: int = 8000
    data: str = "ml-100k"
    prepare: bool = True
    redis_url: str | None = None
    ray_address: str | None = None


class Vigil:
    """Tells a service that has more to do than it can from one that is dead.

    A restart takes longer than most rushes and refuses everybody meanwhile. So one that answers anything by HTTP, late
    or with a refusal, is left alone, unless Serve itself has called the application failed for as long as silence may
    last.

    Args:
        tell: told when the service stops taking traffic, and when it takes it again.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._well = True
        self._alive_at = time.monotonic()

    def look(self, url: str, failure: str) -> str | None:
        """Ask the service how it is; why it must be started again, None if it need not.

        Args:
            url: of the service.
            failure: what Serve says while it calls the application failed; else empty.
        """
        trouble = readiness(url)
        dead = None if trouble is None else failure or silence(url)
        if (trouble is None) != self._well:
            self._well = trouble is None
            self._tell("takes traffic again" if trouble is None else f"does not take all traffic ({trouble})")
        if dead is None:
            self._alive_at = time.monotonic()
        return dead if time.monotonic() - self._alive_at > _SILENCE_S else None


class Stack:
    """One Playhead on this machine. Not for more than one thread."""

    def __init__(self, settings: Settings, options: StackOptions, reporter: Reporter) -> None:
        """Nothing is started yet.

        Args:
            settings: home folder and registry; its store is used only where the options name one.
            options: what to bring up.
            reporter: told of each phase.
        """
        self.folder: Final = RunFolder(settings.home)
        self.phases: Final[dict[str, float]] = {}
        self._settings = settings
        self._options = options
        self._reporter = reporter
        self._lock = StackLock(self.folder)
        self._children: dict[str, Child] = {}
        self._cluster: Cluster | None = None
        self._state: StackState | None = None
        self._restarts: dict[str, list[float]] = defaultdict(list)
        self._resting: dict[str, float] = {}
        self._valkey_port = 0
        self._began = time.perf_counter()

    @property
    def state(self) -> StackState:
        """What is up."""
        if self._state is None:
            raise RuntimeError("not started")
        return self._state

    def start(self) -> None:
        """Bring everything up and wait until it answers.

        Raises:
            PlayheadError: what is wrong; `close` ends what was started meanwhile.
        """
        url = placement.configured_url(placement.complete(self._options.placement, self._bindings("")))
        if not self._lock.take():
            raise already_up(self._lock.holder())
        clean(self.folder, self._reporter)
        self._check_port()
        embedded_url = "" if self._options.redis_url else self._choose_store()
        self._state = StackState(
            supervisor=ProcessRecord.of("supervisor", os.getpid()),
            url=url,
            placement=self._options.placement,
            data=self._options.data,
            redis_url=self._options.redis_url or embedded_url,
            temporary=tempfile.mkdtemp(prefix="playhead-", dir="/tmp" if Path("/tmp").is_dir() else None),  # noqa: S108
        )
        self._write_state()
        self._start_store()
        early = not self._options.prepare or has_champions(self._settings)
        if early:
            self._start_cluster()
        if self._options.prepare:
            self._prepare()
        for name in _WORKERS:
            self._start_worker(name)
        if not early:
            self._start_cluster()
        self._serve()
        self.state.ready = True
        self.state.phases = dict(self.phases, total=time.perf_counter() - self._began)
        self._write_state()

    def supervise(self) -> None:
        """Watch the parts and start again what dies, until interrupted.

        Raises:
            StackError: the store, or Ray, died again and again. One that works on the logs is given longer and longer
                pauses instead: nothing that was acknowledged is lost meanwhile, and answers go on.
            Interrupted: by the signal handler.
        """
        vigil, asked = self._vigil(), time.monotonic()
        while True:
            time.sleep(_LOOK_S)
            for name, child in list(self._children.items()):
                status = child.exit_status()
                if status is not None and time.monotonic() >= self._resting.get(name, 0.0):
                    self._restart(name, f"ended (status {status})")
                    vigil = self._vigil() if name not in _WORKERS else vigil
            if time.monotonic() - asked > _ASKING_S:
                assert self._cluster is not None
                trouble = vigil.look(self.state.url, self._cluster.failure)
                if trouble is not None:
                    self._restart("ray", f"does not answer ({trouble})")
                    vigil = self._vigil()
                asked = time.monotonic()

    def close(self) -> None:
        """End everything that was started and nothing else; what runs elsewhere is left alone."""
        order = [name for name in ("prepare", "ray", *_WORKERS, "valkey") if name in self._children]
        left = processes.end((self._children[name].record for name in order), grace_s=ENDING_GRACE_S)
        for child in self._children.values():
            child.popen.poll()
        self._children.clear()
        if self._state is not None:
            discard(self.folder, self._state)
        self._lock.release()
        if left:
            raise StackError(
                field="processes",
                got=", ".join(f"{process.pid}" for process in left),
                expected="all ended",
                next_step="End them by hand: the system refused to.",
            )

    def _vigil(self) -> Vigil:
        return Vigil(lambda text: self._reporter.tell(Notice(phase="serve", moment=Moment.NOTE, text=text)))

    def _bindings(self, redis_url: str) -> placement.Bindings:
        return placement.Bindings(
            port=self._options.port, home=self._settings.home, redis_url=redis_url, dataset=self._data()
        )

    def _data(self) -> str:
        return self._state.data if self._state is not None else self._options.data

    def _check_port(self) -> None:
        if self._options.ray_address is None and not network.is_free(self._options.port):
            raise StackError(
                field=f"port {self._options.port}",
                got=f"taken by {network.holder(self._options.port)}",
                expected="a free port",
                next_step="End that process, or choose another port with --port.",
            )

    def _choose_store(self) -> str:
        self._valkey_port = valkey.choose_port()
        return valkey.url_of(self._valkey_port)

    def _environment(self) -> dict[str, str]:
        given = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return {
            **given,
            "PLAYHEAD_HOME": str(self._settings.home),
            "PLAYHEAD_FEAST_REGISTRY": self._settings.feast_registry,
            "REDIS_URL": self.state.redis_url,
        }

    def _start_store(self) -> None:
        if self._options.redis_url is not None:
            trouble = valkey.ping(self._options.redis_url)
            if trouble is not None:
                raise StackError(
                    field="REDIS_URL",
                    got=f"{self._options.redis_url.rpartition('@')[2]}: {trouble}",
                    expected="a server that answers",
                    next_step="Start it or correct REDIS_URL; unset it to use the embedded one.",
                )
            return
        with self._phase("valkey") as found:
            child = valkey.start_valkey(self.folder, self._valkey_port, self._environment())
            self._adopt(child)
            valkey.wait_loaded(child, self.folder, self._valkey_port)
            found.append(self.state.redis_url)

    def _prepare(self) -> None:
        part = Preparation(
            self._options.data, folder=self.folder, environment=self._environment(), reporter=self._timed()
        )
        self._adopt(part.child)
        self.state.data = part.finish(time.monotonic() + _PREPARATION_DEADLINE_S)
        del self._children["prepare"]
        del self.state.parts["prepare"]

    def _start_cluster(self) -> None:
        path = self._write_config()
        temporary = Path(self.state.temporary)
        environment = self._environment()
        if self._options.ray_address is None:
            environment |= ray_environment(temporary)
        request = ClusterRequest(
            config=str(path),
            address=self._options.ray_address,
            temporary=str(temporary),
            cpus=max(os.cpu_count() or 1, _FEW_CPUS),
            object_store_bytes=_OBJECT_STORE_BYTES,
        )
        self._cluster = Cluster(request, folder=self.folder, environment=environment, reporter=self._timed())
        self._adopt(self._cluster.child)

    def _write_config(self) -> Path:
        config = placement.complete(self._options.placement, self._bindings(self.state.redis_url))
        path = self.folder.run / "serve.json"
        path.touch(mode=0o600)  # the store's URL may hold a password
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")
        return path

    def _start_worker(self, name: str) -> None:
        self._adopt(start_worker(name, self.folder, self._environment()))

    def _serve(self) -> None:
        assert self._cluster is not None
        with self._phase("serve") as found:
            self._write_config()
            self._cluster.deploy()
            self._cluster.wait_running(time.monotonic() + _RUNNING_DEADLINE_S)
            self.state.ray_address = self._cluster.address
            if self._options.ray_address is not None:  # a Serve that ran before keeps its port
                self.state.url = placement.url_of(*self._cluster.listens_at)
            self._wait_ready()
            found.append(self.state.url)

    def _wait_ready(self) -> None:
        deadline, trouble = time.monotonic() + _READY_DEADLINE_S, ""
        while (answer := readiness(self.state.url)) is not None:
            trouble = answer
            if time.monotonic() > deadline:
                raise StackError(
                    field="/readyz",
                    got=trouble,
                    expected="200",
                    next_step=f"`playhead doctor` may name the cause; logs are in {self.folder.home / 'logs'}.",
                )
            time.sleep(_LOOK_S / 5)

    def _restart(self, name: str, why: str) -> None:
        now = time.monotonic()
        recent = [when for when in self._restarts[name] if now - when < _RESTART_WINDOW_S]
        self._restarts[name] = [*recent, now]
        child = self._children[name]
        if name in _WORKERS:
            pause_s = min(2.0 ** len(recent), _LONGEST_REST_S) if len(recent) >= _MOST_RESTARTS else 0.0
            self._resting[name] = now + pause_s
            if pause_s:
                why += f" for the {len(recent) + 1}th time within {_RESTART_WINDOW_S:g} s, see {child.log}"
        elif len(recent) >= _MOST_RESTARTS:
            raise StackError(
                field=name,
                got=f"ended {len(recent) + 1} times within {_RESTART_WINDOW_S:g} s",
                expected="a part that runs",
                next_step=f"See {child.log}.",
            )
        self._reporter.tell(Notice(phase=name, moment=Moment.NOTE, text=f"{why}; starting it again"))
        processes.end([child.record], grace_s=0)
        if name == "valkey":
            self._start_store()
        elif name in _WORKERS:
            self._start_worker(name)
        else:
            self._start_cluster()
            self._serve()
        self._write_state()

    def _adopt(self, child: Child) -> None:
        self._children[child.record.name] = child
        self.state.parts[child.record.name] = child.record
        self._write_state()

    def _write_state(self) -> None:
        self.state.write(self.folder)

    def _timed(self) -> Reporter:
        return _Timed(self._reporter, self.phases)

    @contextmanager
    def _phase(self, name: str) -> Iterator[list[str]]:
        with phase(self._timed(), name) as found:
            yield found


class _Timed:
    """Keeps the seconds of each phase on the way to the reporter."""

    def __init__(self, reporter: Reporter, phases: dict[str, float]) -> None:
        self._reporter = reporter
        self._phases = phases

    def tell(self, notice: Notice) -> None:
        if notice.moment is Moment.DONE and notice.seconds is not None:
            self._phases[notice.phase] = notice.seconds
        self._reporter.tell(notice)


def hold(settings: Settings, options: StackOptions, reporter: Reporter, on_ready: Callable[[StackState], None]) -> None:
    """Bring a stack up and hold it until SIGINT, SIGTERM or SIGHUP; then end it.

    Args:
        settings: home folder and registry.
        options: what to bring up.
        reporter: told of each phase.
        on_ready: called once it answers.

    Raises:
        PlayheadError: it could not be brought or kept up; nothing of it is left.
        Interrupted: the signal came before it was up; nothing of it is left.
    """
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = {number: signal.signal(number, interrupt) for number in handled}
    stack = Stack(settings, options, reporter)
    ready = False
    try:
        stack.start()
        ready = True
        on_ready(stack.state)
        stack.supervise()
    except Interrupted:
        if not ready:
            raise
    finally:
        for number in handled:  # a second Ctrl-C must not leave half of it behind
            signal.signal(number, signal.SIG_IGN)
        stack.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Hold a stack in the background, telling `run/events.jsonl`."""
    options = StackOptions(**json.loads(sys.argv[1]))
    settings = Settings.from_env()
    folder = RunFolder(settings.home)
    folder.run.mkdir(parents=True, exist_ok=True)
    with folder.events.open("w", encoding="utf-8") as stream:

        def tell(fields: dict[str, object]) -> None:
            stream.write(json.dumps(fields) + "\n")
            stream.flush()

        try:
            hold(settings, options, LineReporter(stream), lambda state: tell({"ready": state.as_json()}))
        except PlayheadError as error:
            fields = {name: getattr(error, name) for name in ("field", "got", "expected", "next_step")}
            tell({"error": fields})
            raise SystemExit(1) from error
        except Interrupted:
            fields = {"got": "ended on request before it was up", "expected": "time", "next_step": "playhead up"}
            tell({"error": {"field": "stack", **fields}})
            raise SystemExit(130) from None


def options_json(options: StackOptions) -> str:
    """Options as `main` reads them."""
    return json.dumps(asdict(options))


if __name__ == "__main__":
    main()
