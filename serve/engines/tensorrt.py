"""TensorRT engine: the runtime for NVIDIA GPUs, and the compilation of an artifact's graphs for this machine's GPU.

An engine runs on the GPU architecture and with the TensorRT version that it was built with, so it is built where it
will run, and lies in the artifact under `tensorrt/sm<architecture>/`. Engines hold native code: take them, like the
rest of an artifact, only from whom you would take code. Device memory and streams are torch's.
"""

import hashlib
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from serve.artifacts import DERIVED, MANIFEST, Artifact, read_artifact, replace_file
from serve.engines.base import Engine
from serve.engines.torch import load_program
from serve.errors import ArtifactError, Unavailable
from serve.tensors import Array, GraphSpec, TensorSpec

_INSTALL = "Install playhead[gpu] on a machine with an NVIDIA GPU and its driver, or use the device cpu."


class _Libraries(NamedTuple):
    torch: Any
    tensorrt: Any
    architecture: str


class _Context(NamedTuple):
    """An execution context and its stream: used by one call at a time."""

    context: Any
    stream: Any


class TensorRtEngine(Engine):
    """A graph compiled by TensorRT for this machine's GPU.

    Each caller takes an execution context with a stream of its own from a pool that grows to the greatest number of
    calls at a time. Bound inputs stay in GPU memory.
    """

    def __init__(
        self, *, version: str, graph: str, spec: GraphSpec, libraries: _Libraries, runtime: Any, engine: Any
    ) -> None:
        super().__init__(version=version, graph=graph, spec=spec, device=f"cuda:{libraries.architecture}")
        self._torch = libraries.torch
        self._runtime = runtime  # TensorRT needs it to live as long as the engine
        self._engine = engine
        # Input tensors bear the graph's names; outputs are named by the converter, in the graph's order.
        names = _names(libraries.tensorrt, engine, "OUTPUT")
        self._outputs = [(tensor.name, names[place], tensor.dtype) for place, tensor in enumerate(spec.outputs)]
        self._idle: list[_Context] = []  # append and pop are atomic

    @classmethod
    def load(cls, artifact: Artifact, graph: str) -> Self:
        """Load `tensorrt/sm<architecture>/<graph>.engine` of an artifact.

        Raises:
            Unavailable: if TensorRT, torch with CUDA or a GPU is missing; it says which.
            ArtifactError: if the artifact has no engine for this GPU, or TensorRT can't load it.
        """
        libraries = _libraries()
        spec = artifact.graph(graph)
        relative = _path(libraries.architecture, graph)
        if relative not in artifact.manifest.files:
            raise ArtifactError(
                field=f"files.{relative}",
                got="nothing",
                expected=f"an engine for this machine's GPU ({libraries.architecture})",
                next_step="Compile the artifact on this machine (serve.engines.tensorrt.compile_artifact).",
            )
        trt = libraries.tensorrt
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        engine = runtime.deserialize_cuda_engine(artifact.read_bytes(relative))
        inputs = {tensor.name for tensor in spec.inputs}
        if engine is None or set(_names(trt, engine, "INPUT")) != inputs:
            raise ArtifactError(
                field=f"files.{relative}",
                got="no engine" if engine is None else f"inputs {_names(trt, engine, 'INPUT')}",
                expected=f"an engine of TensorRT {trt.__version__} with inputs {sorted(inputs)}",
                next_step="Compile the artifact again on this machine.",
            )
        return cls(
            version=artifact.version, graph=graph, spec=spec, libraries=libraries, runtime=runtime, engine=engine
        )

    def _run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        torch = self._torch
        try:
            slot = self._idle.pop()
        except IndexError:
            slot = _Context(self._engine.create_execution_context(), torch.cuda.Stream())
        context, stream = slot
        with torch.cuda.stream(stream):
            inputs = {name: self._to_device(array) for name, array in arrays.items()} | dict(self._resident)
            for name, tensor in inputs.items():
                if not context.set_input_shape(name, tuple(tensor.shape)):
                    raise self._failed(f"shape {tuple(tensor.shape)} of {name}")
                context.set_tensor_address(name, tensor.data_ptr())
            outputs = {}
            for name, tensor_name, dtype in self._outputs:
                shape = tuple(context.get_tensor_shape(tensor_name))
                outputs[name] = torch.empty(shape, dtype=getattr(torch, dtype), device="cuda")
                context.set_tensor_address(tensor_name, outputs[name].data_ptr())
            if not context.execute_async_v3(stream.cuda_stream):
                raise self._failed("execution")
            result = {name: tensor.to("cpu", non_blocking=True) for name, tensor in outputs.items()}
        stream.synchronize()
        self._idle.append(slot)  # not after an error: that context's state is unknown
        return {name: np.array(tensor.numpy()) for name, tensor in result.items()}

    def _place(self, array: Array) -> Any:
        tensor = self._to_device(array)
        self._torch.cuda.synchronize()  # calls read it on other streams
        return tensor

    def _to_device(self, array: Array) -> Any:
        return self._torch.from_numpy(array if array.flags.writeable else array.copy()).to("cuda", non_blocking=True)

    def _failed(self, what: str) -> Unavailable:
        return Unavailable(
            field=f"{self.graph} on {self.device}",
            got=f"TensorRT refused the {what}",
            expected="a run",
            next_step="Look at TensorRT's log, or use the device cpu.",
        )


def compile_artifact(artifact: Artifact) -> Artifact:
    """Compile all graphs of an artifact for this machine's GPU, and add the engines to it.

    Each dynamic dimension may have every size within the graph's limits; kernels are chosen for the example's sizes.
    Arithmetic is full float32. The artifact keeps its version, and stays loadable all the time.

    Raises:
        Unavailable: if TensorRT, torch with CUDA or a GPU is missing; it says which.
        ArtifactError: if a graph can't be compiled.
    """
    libraries = _libraries()
    digests = {}
    for graph in artifact.manifest.graphs:
        relative = _path(libraries.architecture, graph)
        content = _compiled(libraries, artifact, graph)
        target = artifact.path / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, content)
        digests[relative] = hashlib.sha256(content).hexdigest()
    manifest = artifact.manifest.model_copy(update={"files": {**artifact.manifest.files, **digests}})
    replace_file(artifact.path / MANIFEST, f"{manifest.model_dump_json(indent=2)}\n".encode())
    return read_artifact(artifact.path)


def _compiled(libraries: _Libraries, artifact: Artifact, graph: str) -> bytes:
    torch = libraries.torch
    torch_tensorrt = _import("torch_tensorrt")
    move_to_device_pass = importlib.import_module("torch.export.passes").move_to_device_pass
    spec = artifact.graph(graph)
    example, _ = artifact.example(graph)
    program = move_to_device_pass(load_program(artifact.read_bytes(f"{graph}.pt2"), f"files.{graph}.pt2"), "cuda")
    inputs = {
        tensor.name: torch_tensorrt.Input(
            min_shape=_shape(tensor, spec, 0),
            opt_shape=example[tensor.name].shape,
            max_shape=_shape(tensor, spec, 1),
            dtype=getattr(torch, tensor.dtype),
        )
        for tensor in spec.inputs
    }
    try:
        content = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program, arg_inputs=[], kwarg_inputs=inputs, disable_tf32=True, truncate_double=False
        )
    except Exception as error:  # the converters raise whatever they raise
        raise ArtifactError(
            field=f"graphs.{graph}",
            got=f"{type(error).__name__}: {error}",
            expected="a graph that TensorRT compiles",
            next_step="Use the device cpu for this model, or change the operator that it names.",
        ) from error
    return bytes(content)


def _shape(tensor: TensorSpec, spec: GraphSpec, bound: int) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else spec.limits[size][bound] for size in tensor.shape)


def _names(trt: Any, engine: Any, mode: str) -> list[str]:
    names = (engine.get_tensor_name(place) for place in range(engine.num_io_tensors))
    return [name for name in names if engine.get_tensor_mode(name) == getattr(trt.TensorIOMode, mode)]


def _path(architecture: str, graph: str) -> str:
    return f"{DERIVED}{architecture}/{graph}.engine"


def _libraries() -> _Libraries:
    """Torch, TensorRT and the GPU's architecture, such as `sm90`."""
    trt = _import("tensorrt")
    torch = _import("torch")
    if not torch.cuda.is_available():
        raise Unavailable(
            field="device cuda",
            got=f"torch {torch.__version__} finds no usable NVIDIA GPU",
            expected="an NVIDIA GPU",
            next_step=_INSTALL,
        )
    major, minor = torch.cuda.get_device_capability()
    return _Libraries(torch, trt, f"sm{major}{minor}")


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:  # OSError: a CUDA library that it links to is missing
        raise Unavailable(
            field="device cuda", got=f"no {package}: {error}", expected=f"the package {package}", next_step=_INSTALL
        ) from error
