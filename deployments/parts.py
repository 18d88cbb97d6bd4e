"""The stack's parts that talk: they tell JSON lines on their standard output and end when their input ends."""

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from deployments.cluster import ClusterRequest
from deployments.processes import Child, start
from deployments.progress import Moment, Notice, Reporter
from deployments.state import RunFolder, StackError

_LOOK_S: Final = 0.1


class TalkingPart:
    """A child process and the JSON objects that it tells, in order."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        *,
        folder: RunFolder,
        environment: Mapping[str, str],
        on_told: Callable[[dict[str, Any]], None],
    ) -> None:
        """Start it.

        Args:
            name: what it is to us; its log's name.
            arguments: for the Python interpreter.
            folder: where its log goes.
            environment: its whole environment.
            on_told: called with each object, from a thread of its own.
        """
        self.child: Final = start(
            name, [sys.executable, *arguments], log=folder.log(name), environment=environment, piped=True
        )
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        self._on_told = on_told
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def say(self, line: str) -> None:
        """Send a line to its standard input; nothing happens if it has ended."""
        stream = self.child.popen.stdin
        assert stream is not None
        try:
            stream.write(line + "\n")
            stream.flush()
        except BrokenPipeError:
            return

    def next(self, deadline: float, what: str) -> dict[str, Any] | None:
        """The next object that it tells; None once it ended and told all.

        Args:
            deadline: on time.monotonic's clock.
            what: what is waited for, for the error.

        Raises:
            StackError: nothing came in time.
        """
        while True:
            try:
                return self._told.get(timeout=_LOOK_S)
            except queue.Empty:
                if not self._reader.is_alive() and self._told.empty():
                    return None
                if time.monotonic() > deadline:
                    raise StackError(
                        field=self.child.record.name,
                        got="nothing in time",
                        expected=what,
                        next_step=f"See {self.child.log}; the machine may be too busy: run it again.",
                    ) from None

    def _read(self) -> None:
        stream = self.child.popen.stdout
        assert stream is not None
        for line in stream:
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if isinstance(told, dict):
                self._on_told(told)
                self._told.put(told)


class Preparation(TalkingPart):
    """The process that brings data, features and models up to date; its notices go to a reporter."""

    def __init__(self, data: str, *, folder: RunFolder, environment: Mapping[str, str], reporter: Reporter) -> None:
        """Start it.

        Args:
            data: name of the data set.
            folder: where its log goes.
            environment: its whole environment.
            reporter: told of its phases.
        """

        def on_told(told: dict[str, Any]) -> None:
            if "phase" in told:
                reporter.tell(Notice.from_json(told))

        super().__init__(
            "prepare", ["-m", "deployments.preparation", data], folder=folder, environment=environment, on_told=on_told
        )

    def finish(self, deadline: float) -> str:
        """Wait for its end.

        Returns:
            Name of the data set that is ready: another than asked for where that could not be had.

        Raises:
            StackError: it failed, or one of its two processes did while the other still works; with its own words.
        """
        data = ""
        while (told := self.next(deadline, "data, features and models made ready")) is not None:
            if "error" in told:
                raise StackError(**told["error"])
            data = str(told.get("data", data))
        status = self.child.popen.wait()
        if status != 0 or not data:
            raise StackError(
                field="preparation",
                got=self.child.log_tail() or f"exit status {status}",
                expected="data, features and models made ready",
                next_step=f"See {self.child.log}.",
            )
        return data


class Cluster(TalkingPart):
    """The process that holds Ray and the application.

    Attributes:
        address: of Ray; empty until it is known.
        listens_at: host and port of Serve's ingress; port 0 until they are known.
        failure: what Serve says while it calls the application failed; empty while it does not.
    """

    def __init__(
        self, request: ClusterRequest, *, folder: RunFolder, environment: Mapping[str, str], reporter: Reporter
    ) -> None:
        """Start it; Ray is on its way when this returns.

        Args:
            request: what to hold.
            folder: where its log goes.
            environment: its whole environment, with `deployments.cluster.ray_environment` for an embedded Ray.
            reporter: told when Ray is up, and of the application's troubles once it ran.
        """
        self.address = ""
        self.listens_at = ("", 0)
        self.failure = ""
        self._reporter = reporter
        self._began = time.perf_counter()
        self._running = False
        super().__init__(
            "ray",
            ["-m", "deployments.cluster", request.as_json()],
            folder=folder,
            environment=environment,
            on_told=self._note,
        )
        text = "starting" if request.address is None else "connecting"
        reporter.tell(Notice(phase="ray", moment=Moment.START, text=text))

    def deploy(self) -> None:
        """Ask for the application; it comes as soon as Ray is up."""
        self.say("deploy")

    def wait_running(self, deadline: float) -> None:
        """Wait until Serve calls the application running.

        Raises:
            StackError: it cannot be deployed, Ray ended, or it took too long; with Serve's words.
        """
        while (told := self.next(deadline, "Ray Serve with the application running")) is not None:
            if told["event"] == "running":
                self._running = True
                return
            if told["event"] == "failed":
                raise self._failure(str(told.get("message", "")))
        raise self._failure(self.child.log_tail())

    def _failure(self, message: str) -> StackError:
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        return StackError(
            field="application",
            got=" ".join(lines[-6:])[-1000:] or "no message",
            expected="a running application",
            next_step=f"See {self.child.log} and the replicas' logs in {self.child.log.with_suffix('')}; "
            "`playhead doctor` may name the cause.",
        )

    def _note(self, told: dict[str, Any]) -> None:
        if "state" in told:
            text = f"{told['state']}: {str(told.get('message', ''))[:300]}"
            self.failure = text if told["event"] in {"trouble", "failed"} else ""
        if told["event"] == "connected":
            self.address = str(told["address"])
        elif told["event"] == "serving":
            self.listens_at = (str(told["host"]), int(told["port"]))
            seconds = time.perf_counter() - self._began
            self._reporter.tell(Notice(phase="ray", moment=Moment.DONE, text=self.address, seconds=seconds))
        elif self._running and told["event"] in {"trouble", "failed"}:
            self._reporter.tell(Notice(phase="serve", moment=Moment.NOTE, text=self.failure))


def start_worker(name: str, folder: RunFolder, environment: Mapping[str, str]) -> Child:
    """Start a part that works on a log: one of deployments.worker.PARTS."""
    return start(
        name,
        [sys.executable, "-m", "deployments.worker", name],
        log=folder.log(name),
        environment=environment,
        piped=True,
    )
