"""TensorRT engine: the runtime for NVIDIA GPUs. `playhead compile` writes what it loads (training/compilation.py).

Two libraries with one interface: TensorRT, whose engines are built on the GPU that runs them and lie under
`tensorrt/sm<architecture>/`; and TensorRT for RTX, whose engines are built anywhere for several architectures and lie
under `tensorrt-rtx/sm<one>-sm<other>/`. Engines hold native code: take them, like the rest of an artifact, only from
whom you would take code; the hash in the manifest is checked on the bytes that are loaded. Device memory and streams
are torch's.

How a call runs. Rows are independent of each other, so a batch is filled up to a power of two with copies of its last
row and the answer cut again: few combinations of sizes come, and each is recorded as a CUDA graph when it comes for
the RECORD_AT-th time. A CUDA graph is tied to its sizes, addresses and execution context, so each recording has a
context and buffers of its own. All other calls share a pool of contexts. Contexts bring no memory for activations with
them: each call takes from torch's allocator what its own sizes need, not what the greatest sizes would need.
"""

import functools
import importlib
import logging
import re
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, ParamSpec, Self, TypeVar

import numpy as np

from serve.artifacts import Artifact
from serve.engines.base import BATCH, Engine
from serve.errors import ArtifactError, Unavailable
from serve.tensors import Array, GraphSpec, TensorSpec

P = ParamSpec("P")
R = TypeVar("R")

RECORD_AT: Final = 3
"""The call of one combination of sizes at which it is recorded: it takes tens of milliseconds, a replay saves less."""
MAX_RECORDINGS: Final = 32
"""Recordings that one engine keeps; sizes that come after that run unrecorded."""
SPARE_BYTES: Final = 64 << 20
"""GPU memory that must be free beyond an engine's own size before it is loaded."""

LIBRARIES: Final = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
"""Folder of an artifact -> the Python module that runs what lies there."""

_INSTALL = "Install playhead[gpu] on a machine with an NVIDIA GPU and its driver, or use the device cpu."
_COMPILE = "Compile the artifact for this machine's GPU: playhead compile NAME --target tensorrt."

_log = logging.getLogger(__name__)
_capturing = threading.Lock()  # torch waits for the whole device before a capture, which another capture forbids


def releasing(function: Callable[P, R]) -> Callable[P, R]:
    """For what makes objects of TensorRT: where it fails, they end at once and not with the error's traceback.

    TensorRT's logger is Python, called under TensorRT's own lock. If the garbage collector runs in it and finds a
    builder, a network or a runtime, whose end takes that lock, the thread waits for itself for ever.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            raise

    return call


class Libraries(NamedTuple):
    """What runs engines on this machine.

    Attributes:
        torch: torch with CUDA.
        tensorrt: TensorRT, or TensorRT for RTX.
        kind: which of the two: a key of LIBRARIES.
        architecture: of the GPU, such as `sm90`.
    """

    torch: Any
    tensorrt: Any
    kind: str
    architecture: str


class _Slot(NamedTuple):
    """An execution context and its stream: used by one call at a time."""

    context: Any
    stream: Any


class _Recording(NamedTuple):
    """A CUDA graph and all that it reads and writes: used by one call at a time."""

    graph: Any
    stream: Any
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    kept: tuple[Any, ...]  # context, scratch memory and bound inputs: the graph holds their addresses only


class TensorRtEngine(Engine):
    """A graph compiled by TensorRT for this machine's GPU. Bound inputs stay in GPU memory."""

    def __init__(
        self, *, version: str, graph: str, spec: GraphSpec, libraries: Libraries, runtime: Any, engine: Any
    ) -> None:
        super().__init__(version=version, graph=graph, spec=spec, device=f"cuda:{libraries.architecture}")
        self._torch = libraries.torch
        self._trt = libraries.tensorrt
        self._runtime = runtime  # TensorRT needs it to live as long as the engine
        self._engine = engine
        self._idle: list[_Slot] = []  # append and pop are atomic
        self._batched = {tensor.name for tensor in spec.inputs if BATCH in tensor.shape}
        self._rows_independent = bool(self._batched) and all(BATCH in tensor.shape for tensor in spec.outputs)
        # TensorRT for RTX compiles kernels while it runs: what is recorded there would not stay what runs.
        self._may_record = [libraries.kind == "tensorrt"]  # shared with the views that bind() makes
        self._rebound()

    @classmethod
    def load(cls, artifact: Artifact, graph: str) -> Self:
        """Load the engine of an artifact that was built for this machine's GPU.

        Raises:
            Unavailable: if TensorRT, torch with CUDA, a GPU or free GPU memory is missing; it says which.
            ArtifactError: if the artifact has no engine for this GPU, TensorRT can't load it, or it is not that of the
                graph's spec.
        """
        artifact.graph(graph)
        kinds = sorted({path.split("/")[0] for path in artifact.manifest.files} & set(LIBRARIES)) or ["tensorrt"]
        missing, architecture = None, ""
        for kind in kinds:
            try:
                libraries = find_libraries(kind)
            except Unavailable as error:
                missing = missing or error
                continue
            architecture = libraries.architecture
            relative = _engine_path(artifact, graph, libraries)
            if relative:
                return cls.deserialize(artifact, graph, artifact.read_bytes(relative), libraries, f"files.{relative}")
        if missing is not None:
            raise missing
        raise ArtifactError(
            field=f"files.tensorrt/{architecture}/{graph}.engine",
            got="nothing",
            expected=f"an engine for this machine's GPU ({architecture})",
            next_step=_COMPILE,
        )

    @classmethod
    @releasing
    def deserialize(
        cls, artifact: Artifact, graph: str, content: bytes, libraries: Libraries, field: str = "engine"
    ) -> Self:
        """Make an engine from bytes that the caller trusts.

        Args:
            artifact: the artifact that it was built from.
            graph: name of the graph.
            content: what the builder gave.
            libraries: what it was built with.
            field: name of the bytes, for messages.

        Raises:
            Unavailable: if too little GPU memory is free.
            ArtifactError: if TensorRT can't load it, or it is not that of the graph's spec.
        """
        trt, spec = libraries.tensorrt, artifact.graph(graph)
        free, _ = libraries.torch.cuda.mem_get_info()
        if free < len(content) + SPARE_BYTES:
            raise Unavailable(
                field="device cuda",
                got=f"{free >> 20} MiB of free GPU memory",
                expected=f"{(len(content) + SPARE_BYTES) >> 20} MiB for {graph}",
                next_step="End what fills the GPU, or use the device cpu.",
            )
        log = collecting_log(trt)
        runtime = trt.Runtime(log)
        engine = runtime.deserialize_cuda_engine(content)
        wrong = "; ".join(log.errors) or "no engine" if engine is None else _mismatch(trt, engine, spec)
        if wrong:
            raise ArtifactError(
                field=field,
                got=wrong,
                expected=f"an engine of {libraries.kind} {trt.__version__} for the sizes of the graph's spec",
                next_step=_COMPILE,
            )
        return cls(
            version=artifact.version, graph=graph, spec=spec, libraries=libraries, runtime=runtime, engine=engine
        )

    def _rebound(self) -> None:
        self._recordings: dict[tuple[tuple[str, int], ...], list[_Recording]] = {}
        self._seen: Counter[tuple[tuple[str, int], ...]] = Counter()
        self._made = 0  # recordings, in use or not
        self._pads = self._rows_independent and not self._batched & set(self._resident)

    def _run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        rows = 0
        if self._pads:
            rows = next(len(array) for name, array in arrays.items() if name in self._batched)
            arrays = self._padded(arrays, rows)
        try:
            outputs = self._replayed(arrays)
        except RuntimeError as error:  # torch's OutOfMemoryError is one, as are the CUDA errors that it raises
            raise self._failed(f"call: {error}") from error
        if not rows:
            return outputs
        return {name: array if len(array) == rows else array[:rows].copy() for name, array in outputs.items()}

    def _padded(self, arrays: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """The batch filled up to a power of two with copies of its last row, as far as its bucket goes."""
        wanted = min(1 << (rows - 1).bit_length(), self._bounds(self._bucket(arrays), BATCH)[2])
        if wanted == rows:
            return dict(arrays)
        place = np.minimum(np.arange(wanted), rows - 1)
        return {name: array[place] if name in self._batched else array for name, array in arrays.items()}

    def _replayed(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Replay the recording of these sizes, make it first if it is time, else run without one."""
        key = tuple(sorted(self._sizes(arrays).items()))
        try:
            recording = self._recordings[key].pop()
        except (KeyError, IndexError):
            self._seen[key] += 1
            due = self._seen[key] >= RECORD_AT and self._made < MAX_RECORDINGS and self._may_record[0]
            made = self._record(arrays) if due else None
            if made is None:
                return self._unrecorded(arrays)
            recording = made
        torch = self._torch
        with torch.cuda.stream(recording.stream):
            for name, array in arrays.items():
                recording.inputs[name].copy_(self._as_tensor(array), non_blocking=True)
            recording.graph.replay()
            results = {name: tensor.to("cpu", non_blocking=True) for name, tensor in recording.outputs.items()}
        recording.stream.synchronize()
        self._recordings.setdefault(key, []).append(recording)  # not after an error: its state is unknown
        return {name: np.array(tensor.numpy()) for name, tensor in results.items()}

    def _record(self, arrays: Mapping[str, Array]) -> _Recording | None:
        """A recording of these sizes, or None where this graph can't be recorded or memory is short."""
        torch = self._torch
        with _capturing:
            try:
                slot = self._new_slot()
                with torch.cuda.stream(slot.stream):
                    inputs = {name: self._to_device(array) for name, array in arrays.items()}
                    outputs, scratch = self._prepare(slot, {**inputs, **self._resident})
                    # TensorRT settles what depends on the sizes in a first run, which must not be captured.
                    self._execute(slot)
                slot.stream.synchronize()
                graph = torch.cuda.CUDAGraph()
                # Other threads may go on: only this one must not wait or allocate while it captures.
                with torch.cuda.graph(graph, stream=slot.stream, capture_error_mode="thread_local"):
                    self._execute(slot)
            except (RuntimeError, Unavailable) as error:
                self._may_record[0] = False
                _log.warning("engine %s on %s: runs without CUDA graphs: %s", self.graph, self.device, error)
                return None
            self._made += 1
        return _Recording(graph, slot.stream, inputs, outputs, (slot.context, scratch, dict(self._resident)))

    def _unrecorded(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        try:
            slot = self._idle.pop()
        except IndexError:
            slot = self._new_slot()
        with self._torch.cuda.stream(slot.stream):
            inputs = {name: self._to_device(array) for name, array in arrays.items()}
            outputs, scratch = self._prepare(slot, {**inputs, **self._resident})
            self._execute(slot)
            results = {name: tensor.to("cpu", non_blocking=True) for name, tensor in outputs.items()}
        slot.stream.synchronize()
        del scratch  # in use until here
        self._idle.append(slot)  # not after an error: that context's state is unknown
        return {name: np.array(tensor.numpy()) for name, tensor in results.items()}

    def _prepare(self, slot: _Slot, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """Give a context its bucket, shapes, addresses and memory.

        Returns:
            The outputs' tensors, and the memory for activations; keep both until the run is over.
        """
        torch, context = self._torch, slot.context
        place = self._bucket(inputs)
        if context.active_optimization_profile != place and not context.set_optimization_profile_async(
            place, slot.stream.cuda_stream
        ):
            raise self._failed(f"bucket {place}")
        for name, tensor in inputs.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise self._failed(f"shape {tuple(tensor.shape)} of {name}")
            self._set_address(context, name, tensor)
        outputs = {}
        for spec in self.spec.outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            outputs[spec.name] = torch.empty(shape, dtype=getattr(torch, spec.dtype), device="cuda")
            self._set_address(context, spec.name, outputs[spec.name])
        size_bytes = max(1, context.update_device_memory_size_for_shapes())
        scratch = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")
        context.set_device_memory(scratch.data_ptr(), size_bytes)
        return outputs, scratch

    def _set_address(self, context: Any, name: str, tensor: Any) -> None:
        if not context.set_tensor_address(name, tensor.data_ptr()):
            raise self._failed(f"address of {name}")

    def _execute(self, slot: _Slot) -> None:
        if not slot.context.execute_async_v3(slot.stream.cuda_stream):
            raise self._failed("execution")

    def _new_slot(self) -> _Slot:
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self._failed("execution context, for want of memory")
        return _Slot(context, self._torch.cuda.Stream())

    def _sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        """Sizes of the dynamic dimensions of arrays or tensors, and of what is bound."""
        sizes = dict(self._resident_sizes)
        for tensor in self.spec.inputs:
            if tensor.name in tensors:
                shape = tensors[tensor.name].shape
                sizes |= {size: shape[axis] for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
        return sizes

    def _bucket(self, tensors: Mapping[str, Any]) -> int:
        place = self.spec.bucket(self._sizes(tensors))
        if place is None:  # the check before each call leaves none of these over
            raise self._failed("sizes, which fit no bucket")
        return place

    def _bounds(self, place: int, dimension: str) -> tuple[int, int, int]:
        least, greatest = self.spec.limits[dimension]
        bucket = self.spec.buckets[place] if self.spec.buckets else {}
        return bucket.get(dimension, (least, least, greatest))

    def _place(self, array: Array) -> Any:
        try:
            tensor = self._to_device(array)
            # Calls read it on other streams. Waiting for the whole device would break a capture of another thread.
            self._torch.cuda.current_stream().synchronize()
        except RuntimeError as error:
            raise self._failed(f"bound input: {error}") from error
        return tensor

    def _to_device(self, array: Array) -> Any:
        return self._as_tensor(array).to("cuda", non_blocking=True)

    def _as_tensor(self, array: Array) -> Any:
        return self._torch.from_numpy(array if array.flags.writeable else array.copy())

    def _failed(self, what: str) -> Unavailable:
        return Unavailable(
            field=f"{self.graph} on {self.device}",
            got=f"the GPU refused the {what}",
            expected="a run",
            next_step="Look at TensorRT's log and the GPU's free memory, or use the device cpu.",
        )


def shape_range(
    tensor: TensorSpec, spec: GraphSpec, place: int, usual: Mapping[str, int]
) -> tuple[tuple[int, ...], ...]:
    """Least, usual and greatest shape of an input in one bucket.

    Args:
        tensor: the input.
        spec: the graph's spec.
        place: of the bucket; 0 where there are none.
        usual: dynamic dimension -> usual size, where the bucket does not say.
    """
    bucket = spec.buckets[place] if spec.buckets else {}
    ranges = []
    for size in tensor.shape:
        if isinstance(size, int):
            ranges.append((size, size, size))
        else:
            least, greatest = spec.limits[size]
            ranges.append(bucket.get(size, (least, min(max(usual.get(size, least), least), greatest), greatest)))
    return tuple(tuple(bounds[bound] for bounds in ranges) for bound in range(3))


def collecting_log(trt: Any) -> Any:
    """A TensorRT logger that passes on to Python's logging; `errors` holds what it was told of errors."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in {trt.Logger.INTERNAL_ERROR, trt.Logger.ERROR}:
                self.errors.append(message)
            _log.debug("tensorrt: %s", message)

    return Log()


def find_libraries(kind: str, *, next_step: str = _INSTALL) -> Libraries:
    """What runs engines of a kind on this machine.

    Args:
        kind: a key of LIBRARIES.
        next_step: what to do where something is missing.

    Raises:
        Unavailable: if TensorRT, torch with CUDA or a GPU is missing; it says which.
    """
    trt = import_library(LIBRARIES[kind], next_step=next_step)
    torch = import_library("torch", next_step=next_step)
    if not torch.cuda.is_available():
        raise Unavailable(
            field="device cuda",
            got=f"torch {torch.__version__} finds no usable NVIDIA GPU",
            expected="an NVIDIA GPU",
            next_step=next_step,
        )
    major, minor = torch.cuda.get_device_capability()
    return Libraries(torch, trt, kind, f"sm{major}{minor}")


def import_library(package: str, *, field: str = "device cuda", next_step: str = _INSTALL) -> Any:
    """Import a package that is not always there.

    Args:
        package: its name.
        field: what needs it, for the message.
        next_step: what to do where it is missing.

    Raises:
        Unavailable: if it is, or a library that it needs is.
    """
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:  # OSError: a CUDA library that it links to is missing
        raise Unavailable(
            field=field, got=f"no {package}: {error}", expected=f"the package {package}", next_step=next_step
        ) from error


def _engine_path(artifact: Artifact, graph: str, libraries: Libraries) -> str:
    """Path of the engine for this GPU within the artifact; empty where there is none."""
    wanted = re.compile(rf"{libraries.kind}/(sm\d+-)*{libraries.architecture}(-sm\d+)*/{graph}\.engine")
    return next((path for path in sorted(artifact.manifest.files) if wanted.fullmatch(path)), "")


def _mismatch(trt: Any, engine: Any, spec: GraphSpec) -> str:
    """How an engine's names, types and sizes differ from a spec; empty where they do not."""
    names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
    for mode, tensors in ((trt.TensorIOMode.INPUT, spec.inputs), (trt.TensorIOMode.OUTPUT, spec.outputs)):
        found = (name for name in names if engine.get_tensor_mode(name) == mode)
        got = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in found}
        if got != {tensor.name: np.dtype(tensor.dtype) for tensor in tensors}:
            return f"inputs or outputs {got}"
    buckets = max(1, len(spec.buckets))
    if engine.num_optimization_profiles != buckets:
        return f"{engine.num_optimization_profiles} buckets of sizes, not {buckets}"
    for tensor in spec.inputs:
        for place in range(buckets):
            least, _, greatest = engine.get_tensor_profile_shape(tensor.name, place)
            wanted = shape_range(tensor, spec, place, {})
            if (tuple(least), tuple(greatest)) != (wanted[0], wanted[2]):
                return f"{tensor.name} of {tuple(least)} to {tuple(greatest)}, not {wanted[0]} to {wanted[2]}"
    return ""
