"""OpenVINO's compiler: in this process, or in one of its own that yields to those that answer.

Compiling takes several times as long as reading what was compiled. So while a version answers, the next one's graphs
are compiled by a process of lower priority, and this one only reads the result. That process also runs them, for what
is worked out before the version answers. A thread of lower priority would not do: what it does under the interpreter's
lock keeps everything else waiting for it on a busy machine.

As a script this module is that process. It imports next to nothing of ours, which each start would pay for.
"""

import functools
import importlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import IO, Any, Final

from serve.priority import give_way

NICENESS_VARIABLE: Final = "PLAYHEAD_LOAD_NICENESS"
NICENESS: Final = 10
"""Of the process that compiles: beside those that answer it gets a tenth of a core, and all of an idle one."""

DEADLINE_S: Final = 120.0
"""For one graph; the process is ended then."""

RUN_S: Final = 5.0
"""For one run of a graph; likewise."""

_MAX_HEADER_BYTES: Final = 1 << 20


@functools.cache
def openvino() -> Any:
    """OpenVINO's Python module, imported on first use and with its usage reports over the network off."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", _absent())
    return importlib.import_module("openvino")


def _absent() -> ModuleType:
    """What makes `import` say that a module is not installed; OpenVINO then takes its own stub."""
    return None  # type: ignore[return-value]


@functools.cache
def core() -> Any:
    """OpenVINO's Core of this process."""
    return openvino().Core()


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph to compile.

    Attributes:
        xml: OpenVINO IR.
        weights: that belong to it.
        shapes: input name -> shape, -1 for a dynamic size, of all inputs; None: as the IR has them.
        options: properties of the CPU's plugin.
    """

    xml: bytes
    weights: bytes
    shapes: Mapping[str, Sequence[int]] | None
    options: Mapping[str, str | int | bool]

    def compiled(self) -> Any:
        """Compile it here.

        Raises:
            RuntimeError: OpenVINO does not.
        """
        numpy = importlib.import_module("numpy")
        weights = numpy.frombuffer(self.weights or b"\0", dtype=numpy.uint8)
        model = core().read_model(self.xml, openvino().Tensor(weights.copy()))
        if self.shapes is not None:
            model.reshape({name: list(shape) for name, shape in self.shapes.items()})
        return core().compile_model(model, "CPU", dict(self.options))


def exported(compiled: Any) -> bytes:
    """What a graph was compiled to, for `imported` on the same machine."""
    content: bytes = compiled.export_model().getvalue()
    return content


def imported(content: bytes, options: Mapping[str, str | int | bool]) -> Any:
    """A compiled graph from what `exported` gave, with the options that it was compiled with.

    Raises:
        RuntimeError: it is none, or another machine's.
    """
    return core().import_model(content, "CPU", dict(options))


class Compiler:
    """A process that compiles, started with the first graph. One thread at a time may ask it; any may close it.

    Args:
        niceness: what is added to this process's own.
        deadline_s: for one graph.
    """

    def __init__(self, niceness: int, deadline_s: float = DEADLINE_S) -> None:
        self._niceness = niceness
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self._lock = threading.Lock()  # of the two above

    def compile(self, graph: Graph) -> "Compiled":
        """Compile a graph there.

        Raises:
            RuntimeError: OpenVINO does not compile it, the process did not start, ended or took too long over it, or
                this was closed.
        """
        try:
            process = self._running()
        except OSError as error:
            raise RuntimeError(f"the process that compiles does not start: {error}") from error
        told, (content,) = self.exchanged(
            process, self._deadline_s, {"shapes": graph.shapes, "options": graph.options}, graph.xml, graph.weights
        )
        return Compiled(content, self, process, told["graph"])

    def exchanged(
        self, process: "subprocess.Popen[bytes]", deadline_s: float, told: Mapping[str, Any], *parts: bytes
    ) -> tuple[dict[str, Any], list[bytes]]:
        """What the process answers.

        Raises:
            RuntimeError: an error, nothing, or not in time.
        """
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(deadline_s, end)
        timer.daemon = True
        timer.start()
        try:
            _send(process.stdin, told, *parts)
            answer, contents = _received(process.stdout.readline(_MAX_HEADER_BYTES), process.stdout)
        except (OSError, ValueError) as error:
            self._end()
            why = f"took more than {deadline_s:g} s" if late.is_set() else f"ended with {process.returncode}"
            raise RuntimeError(f"the process that compiles {why}") from error
        finally:
            timer.cancel()
        if answer.get("error"):
            raise RuntimeError(answer["error"])
        return answer, contents

    def has(self, process: "subprocess.Popen[bytes]") -> bool:
        """Whether this is the process that compiles now."""
        with self._lock:
            return self._process is process

    def close(self) -> None:
        """End the process, for good; what is being compiled raises. May take a while where the machine is busy."""
        with self._lock:
            self._is_closed = True
        self._end()

    def _end(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def _running(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_closed:
                raise RuntimeError("loading was given up")
            if self._process is None:
                command = [sys.executable, "-P", __file__, str(os.getpid())]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
                )
                give_way(self._niceness, self._process.pid)
            return self._process


_runners = itertools.count()


class Compiled:
    """A graph that another process compiled, and runs as long as it is there. One thread at a time may run it.

    Attributes:
        content: what it was compiled to, for `imported`.

    Args:
        content: likewise.
        compiler: whose process it was.
        process: that one.
        graph: by which the process knows it.
    """

    def __init__(self, content: bytes, compiler: Compiler, process: "subprocess.Popen[bytes]", graph: int) -> None:
        self.content = content
        self._compiler = compiler
        self._process = process
        self._graph = graph
        self._runner = next(_runners)
        self._kept: Mapping[str, Any] | None = None

    def sibling(self) -> "Compiled":
        """The same for calls of other shapes or with other inputs kept."""
        return Compiled(self.content, self._compiler, self._process, self._graph)

    @property
    def is_there(self) -> bool:
        """Whether the process was not ended yet: one that ended by itself is noticed by the next run, which raises."""
        return self._compiler.has(self._process)

    def run(self, inputs: Mapping[str, Any], kept: Mapping[str, Any]) -> list[Any]:
        """Run the graph there.

        Args:
            inputs: name -> array.
            kept: the other inputs, name -> array, which are sent where they are not those of the call before.

        Returns:
            Its outputs, read-only arrays, in its order.

        Raises:
            RuntimeError: the process is gone, or the graph does not take them.
        """
        if not self.is_there:
            raise RuntimeError("the process that compiled it is gone")
        sent = inputs if kept is self._kept else {**inputs, **kept}
        inputs_told = [[name, *_shaped(array)] for name, array in sent.items()]
        told = {"graph": self._graph, "runner": self._runner, "inputs": inputs_told}
        self._kept = None  # until it has answered
        answer, contents = self._compiler.exchanged(
            self._process, RUN_S, told, *[_bytes(array) for array in sent.values()]
        )
        self._kept = kept
        return [
            _array(dtype, shape, content) for (dtype, shape), content in zip(answer["outputs"], contents, strict=True)
        ]


def _shaped(array: Any) -> tuple[str, list[int]]:
    return str(array.dtype), list(array.shape)


def _bytes(array: Any) -> bytes:
    content: bytes = array.tobytes()
    return content


def _array(dtype: str, shape: Sequence[int], content: bytes) -> Any:
    return importlib.import_module("numpy").frombuffer(content, dtype=dtype).reshape(shape)


_compiler: ContextVar[Compiler | None] = ContextVar("compiler", default=None)


@contextmanager
def compiling_by(compiler: Compiler) -> Iterator[None]:
    """Graphs that are compiled in the block, or in threads that have its context, are compiled by this process."""
    token = _compiler.set(compiler)
    try:
        yield
    finally:
        _compiler.reset(token)


def compiled_beside(graph: Graph) -> Compiled | None:
    """What another process compiled the graph to; None outside `compiling_by`: compile it here.

    Raises:
        RuntimeError: see Compiler.compile.
    """
    compiler = _compiler.get()
    return None if compiler is None else compiler.compile(graph)


@contextmanager
def taking_turns() -> Iterator[None]:
    """Inside `compiling_by`, for answers are given meanwhile: rest as long as the block kept this thread busy."""
    began_s = time.thread_time()
    yield
    if _compiler.get() is not None:
        time.sleep(time.thread_time() - began_s)


def load_niceness() -> int:
    """As the environment says; what is no number there is left out."""
    with suppress(ValueError):
        return max(0, int(os.environ.get(NICENESS_VARIABLE, NICENESS)))
    return NICENESS


def _send(pipe: IO[bytes], told: Mapping[str, Any], *parts: bytes) -> None:
    """Write a line of JSON with the sizes of what follows it, and that."""
    pipe.write(json.dumps({**told, "sizes": [len(part) for part in parts]}).encode() + b"\n")
    for part in parts:
        pipe.write(part)
    pipe.flush()


def _received(line: bytes, pipe: IO[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """What `_send` wrote, of which the line was read.

    Raises:
        ValueError: it ends before.
    """
    told = json.loads(line)
    parts = [pipe.read(size) for size in told["sizes"]]
    if [len(part) for part in parts] != told["sizes"]:
        raise ValueError("it ends before")
    return told, parts


def main(parent: int) -> None:
    """Compile and run what comes on standard input, until it ends or who asks is gone."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints
    graphs: list[Any] = []
    runners: dict[int, _Runner] = {}
    while line := sys.stdin.buffer.readline(_MAX_HEADER_BYTES):
        told, parts = _received(line, sys.stdin.buffer)
        answer: dict[str, Any]
        try:
            if "graph" in told:
                runner = runners.setdefault(told["runner"], _Runner(graphs[told["graph"]]))
                outputs = runner(told["inputs"], parts)
                answer, contents = {"outputs": [_shaped(output) for output in outputs]}, [*map(_bytes, outputs)]
            else:
                xml, weights = parts
                compiled = Graph(xml=xml, weights=weights, shapes=told["shapes"], options=told["options"]).compiled()
                answer, contents = {"graph": len(graphs)}, [exported(compiled)]
                graphs.append(compiled)
        except Exception as raised:  # noqa: BLE001 - whatever it is, who asked is told
            answer, contents = {"error": str(raised) or type(raised).__name__}, []
        _send(answers, answer, *contents)


class _Runner:
    """A compiled graph, with the request and the inputs of the call before, unless that failed."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._before: tuple[Any, dict[str, Any]] | None = None

    def __call__(self, inputs: Sequence[tuple[str, str, Sequence[int]]], contents: Sequence[bytes]) -> list[Any]:
        request, given = self._before or (self._compiled.create_infer_request(), {})
        self._before = None
        for (name, dtype, shape), content in zip(inputs, contents, strict=True):
            given[name] = _array(dtype, shape, content)
        outputs = request.infer(given)
        self._before = request, given
        return [outputs[port] for port in self._compiled.outputs]


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
