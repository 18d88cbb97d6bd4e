"""A GPU that is not there: TensorRT's and torch's interfaces, as far as the TensorRT engine uses them, over numpy.

It runs graphs with the torch engine and holds callers to what TensorRT's documentation asks: a context has a bucket,
shapes within it, memory and addresses before it runs; a capture follows a run of the same sizes; a context that was
captured is not touched again; nothing is read that was freed. It shows that the engine's own work (filling up batches,
recording, buckets, memory that runs out) is right; it says nothing about TensorRT.
"""

import contextlib
import functools
import json
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from serve.artifacts import Artifact, add_derived, read_artifact
from serve.engines.tensorrt import Libraries
from serve.engines.torch import TorchEngine
from tests.contracts.small_model import copy_of

ARCHITECTURE = "sm00"


class OutOfMemory(RuntimeError):
    """As torch's: a RuntimeError."""


class Gpu:
    """What is in memory, what is being captured, and what happened.

    Attributes:
        free_bytes: memory that is left.
        runs: shapes of the inputs of what ran, recorded or not.
        buckets: bucket of each run.
        captures: graphs that were captured.
        replays: graphs that were replayed.
        refuses_capture: whether captures fail.
    """

    def __init__(self) -> None:
        self.free_bytes = 1 << 34
        self.tensors: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
        self.capturing = threading.local()
        self.runs: list[dict[str, tuple[int, ...]]] = []
        self.captures = 0
        self.replays = 0
        self.buckets: list[int] = []
        self.refuses_capture = False

    def give_back(self, size_bytes: int) -> None:
        """Memory of a tensor that is gone."""
        self.free_bytes += size_bytes

    def libraries(self) -> Libraries:
        """As serve.engines.tensorrt.find_libraries finds them."""
        return Libraries(self._torch(), self._tensorrt(), "tensorrt", ARCHITECTURE)

    def _torch(self) -> Any:
        cuda = SimpleNamespace(
            Stream=Stream,
            stream=contextlib.nullcontext,
            current_stream=Stream,
            mem_get_info=lambda: (self.free_bytes, 1 << 34),
            CUDAGraph=functools.partial(Graph, self),
            graph=self._capture,
        )
        return SimpleNamespace(
            cuda=cuda,
            from_numpy=lambda array: Tensor(self, array, "cpu"),
            empty=lambda shape, dtype, device: Tensor(self, np.empty(shape, dtype), device),
            **{name: np.dtype(name) for name in ("float32", "int64", "int32", "bool", "uint8")},
        )

    @contextlib.contextmanager
    def _capture(self, graph: "Graph", *, stream: "Stream", capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        if self.refuses_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.capturing.graph = graph
        try:
            yield
        finally:
            self.capturing.graph = None
        self.captures += 1

    def _tensorrt(self) -> Any:
        return SimpleNamespace(
            __version__="0.0",
            ILogger=type("ILogger", (), {}),
            Logger=SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal"),
            Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=functools.partial(self._engine, log)),
            TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
            nptype=np.dtype,
        )

    def _engine(self, log: Any, content: bytes) -> Any:
        try:
            return FakeEngine(self, **json.loads(content))
        except ValueError:
            log.log("error", "magic tag does not match")
            return None


class Stream:
    cuda_stream = 7

    def synchronize(self) -> None:
        """Nothing waits here."""


class Tensor:
    """An array with an address; on the GPU it takes memory."""

    def __init__(self, gpu: Gpu, array: Any, device: str) -> None:
        self.gpu, self.array, self.device = gpu, array, device
        self.shape = array.shape
        if device == "cuda":
            if gpu.free_bytes < array.nbytes:
                raise OutOfMemory(f"tried to allocate {array.nbytes} bytes")
            gpu.free_bytes -= array.nbytes
            weakref.finalize(self, gpu.give_back, array.nbytes)
            gpu.tensors[id(self)] = self

    def data_ptr(self) -> int:
        assert self.device == "cuda"
        return id(self)

    def to(self, device: str, *, non_blocking: bool) -> "Tensor":
        return Tensor(self.gpu, self.array.copy(), device)

    def copy_(self, other: "Tensor", *, non_blocking: bool) -> None:
        assert self.shape == other.shape
        self.array[...] = other.array

    def numpy(self) -> Any:
        assert self.device == "cpu"
        return self.array


class Graph:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.work: list[Any] = []

    def replay(self) -> None:
        self.gpu.replays += 1
        for run in self.work:
            run()


class FakeEngine:
    """An engine that runs a graph by torch.

    Args:
        gpu: the GPU.
        path: of the artifact that it was built from.
        graph: name of the graph.
        wrong: what it adds to all floats, as an engine does that was compiled wrongly.
    """

    def __init__(self, gpu: Gpu, path: str, graph: str, wrong: float = 0.0) -> None:
        self.wrong = wrong
        artifact = read_artifact(path)
        self.gpu = gpu
        self.spec = artifact.graph(graph)
        self.reference = TorchEngine.load(artifact, graph)
        self.num_optimization_profiles = max(1, len(self.spec.buckets))
        self._tensors = {tensor.name: tensor for tensor in (*self.spec.inputs, *self.spec.outputs)}
        self._names = list(self._tensors)
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, place: int) -> str:
        return self._names[place]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if self._tensors[name] in self.spec.inputs else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return self._tensors[name].dtype

    def get_tensor_profile_shape(self, name: str, place: int) -> list[tuple[int, ...]]:
        def bound(which: int) -> tuple[int, ...]:
            return tuple(
                size if isinstance(size, int) else self.range_of(place, size)[which]
                for size in self._tensors[name].shape
            )

        return [bound(0), bound(0), bound(1)]

    def range_of(self, place: int, dimension: str) -> tuple[int, int]:
        least, greatest = self.spec.limits[dimension]
        bucket = self.spec.buckets[place].get(dimension) if self.spec.buckets else None
        return (bucket[0], bucket[2]) if bucket else (least, greatest)

    def create_execution_context(self, strategy: str) -> "Context":
        assert strategy == "user"
        return Context(self)


class Context:
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.active_optimization_profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = 0
        self._settled = False
        self._captured = False

    def set_optimization_profile_async(self, place: int, stream: int) -> bool:
        self._touch()
        self.active_optimization_profile = place
        self._shapes = {}
        return stream == Stream.cuda_stream

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._touch()
        least, _, greatest = self._engine.get_tensor_profile_shape(name, self.active_optimization_profile)
        self._shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, greatest, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._touch()
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[str, int] = {}
        for tensor in self._engine.spec.inputs:
            sizes |= {str(size): given for size, given in zip(tensor.shape, self._shapes[tensor.name], strict=True)}
        output = next(tensor for tensor in self._engine.spec.outputs if tensor.name == name)
        return tuple(size if isinstance(size, int) else sizes[size] for size in output.shape)

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self._shapes) == {tensor.name for tensor in self._engine.spec.inputs}
        return sum(4 * int(np.prod(shape)) for shape in self._shapes.values())

    def set_device_memory(self, address: int, size_bytes: int) -> None:
        self._touch()
        tensor = self._engine.gpu.tensors[address]
        assert tensor.array.nbytes >= size_bytes >= self.update_device_memory_size_for_shapes()
        self._memory = address

    def execute_async_v3(self, stream: int) -> bool:
        graph = getattr(self._engine.gpu.capturing, "graph", None)
        if graph is not None:
            assert self._settled, "a capture before a run of the same sizes"
            self._captured = True
            graph.work.append(self._run)
        else:
            assert not self._captured, "a captured context was run outside its graph"
            self._run()
            self._settled = True
        return True

    def _touch(self) -> None:
        assert not self._captured, "a captured context was changed"
        self._settled = False

    def _run(self) -> None:
        gpu, spec = self._engine.gpu, self._engine.spec
        assert self._memory in gpu.tensors, "memory for activations was freed"
        tensors = {name: gpu.tensors[address] for name, address in self._addresses.items()}
        inputs = {tensor.name: tensors[tensor.name].array for tensor in spec.inputs}
        for name, array in inputs.items():
            assert array.shape == self._shapes[name]
        gpu.runs.append({name: array.shape for name, array in inputs.items()})
        gpu.buckets.append(self.active_optimization_profile)
        for name, array in self._engine.reference._run(inputs).items():
            tensors[name].array[...] = array + self._engine.wrong if array.dtype == np.float32 else array


def with_fake_engines(artifact: Artifact, folder: Path) -> Artifact:
    """A copy of an artifact in a folder, with an engine of the fake GPU for each graph."""
    artifact = read_artifact(copy_of(artifact, folder))
    return add_derived(
        artifact,
        {
            f"tensorrt/{ARCHITECTURE}/{graph}.engine": json.dumps({"path": str(artifact.path), "graph": graph}).encode()
            for graph in artifact.manifest.graphs
        },
    )
