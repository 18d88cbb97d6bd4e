"""OpenVINO engine: the CPU runtime. It runs the artifact's IR; torch is not needed."""

import importlib
from collections.abc import Mapping
from typing import Any, Self

from serve.artifacts import Artifact
from serve.engines.base import Engine
from serve.engines.compiler import Compiled, Graph, compiled_beside, exported, imported, openvino, taking_turns
from serve.errors import ArtifactError
from serve.tensors import Array, GraphSpec, TensorSpec


class _Request:
    """An infer request and the tensors it points to: OpenVINO does not keep the memory of shared inputs alive.

    Where all shapes are fixed, inputs are copied into the request's own memory, seen here as arrays: that takes a
    quarter of the time of pointing it to others.
    """

    def __init__(self, request: Any, *, fixed: bool, inputs: int, outputs: int) -> None:
        self.request = request
        self.tensors: dict[int, Any] = {}
        self.inputs = [request.get_input_tensor(place).data for place in range(inputs)] if fixed else []
        self.outputs = [request.get_output_tensor(place).data for place in range(outputs)] if fixed else []


class OpenVinoEngine(Engine):
    """A graph compiled by OpenVINO for this machine's CPU.

    Each caller takes an infer request from a pool that grows to the greatest number of calls at a time. Inputs are
    read where they are; outputs are copied, since the request's own memory is used again by the next call.
    """

    def __init__(
        self,
        *,
        version: str,
        graph: str,
        spec: GraphSpec,
        compiled: Any,
        content: bytes | None,
        options: Mapping[str, Any],
        beside: Compiled | None = None,
    ) -> None:
        super().__init__(version=version, graph=graph, spec=spec, device="cpu")
        self._compiled = compiled
        self._content = content  # what it is compiled to, once someone needed it; siblings share it
        self._options = options
        self._beside = beside  # in another process
        self._bound: Mapping[str, Array] = {}  # what is resident, as arrays
        self._tensor = openvino().Tensor
        self._run_request = importlib.import_module("openvino._pyopenvino").InferRequest.infer
        self._places = {tensor.name: place for place, tensor in enumerate(spec.inputs)}
        self._names = [tensor.name for tensor in spec.outputs]
        self._fixed = all(least == greatest for least, greatest in spec.limits.values())
        self._idle: list[_Request] = []  # append and pop are atomic

    @classmethod
    def load(cls, artifact: Artifact, graph: str, threads: int = 1, sizes: Mapping[str, int] | None = None) -> Self:
        """Compile `openvino/<graph>.xml` of an artifact.

        Args:
            artifact: the artifact.
            graph: name of the graph.
            threads: threads that one call may use.
            sizes: dynamic dimensions that will always have this size.

        Raises:
            ArtifactError: if it can't be compiled, or its inputs and outputs are not those of the manifest.
        """
        spec = artifact.graph(graph)
        relative = f"openvino/{graph}.xml"
        shapes = None
        if sizes:
            spec = spec.fixed(sizes)
            shapes = {
                tensor.name: [sizes.get(str(size), -1) if isinstance(size, str) else size for size in tensor.shape]
                for tensor in spec.inputs
            }
        source = Graph(
            xml=artifact.read_bytes(relative),
            weights=artifact.read_bytes(f"openvino/{graph}.bin"),
            shapes=shapes,
            options={
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 by default where the CPU has it: no parity then
                "ENABLE_CPU_PINNING": False,  # all replicas of a machine would pin to the same cores
            },
        )
        try:
            beside = compiled_beside(source)
            content = None if beside is None else beside.content
            with taking_turns():
                compiled = source.compiled() if content is None else imported(content, source.options)
        except RuntimeError as error:
            raise _uncompiled(relative, error) from error
        _same_ports(relative, spec, compiled)
        return cls(
            version=artifact.version, graph=graph, spec=spec, compiled=compiled, content=content,
            options=source.options, beside=beside,
        )  # fmt: skip

    def sibling(self) -> Engine:
        """Another one from what this one was compiled to: a fifth of the time of compiling it again."""
        try:
            if self._content is None:
                self._content = exported(self._compiled)
            with taking_turns():
                compiled = imported(self._content, self._options)
        except RuntimeError as error:
            raise _uncompiled(f"openvino/{self.graph}.xml", error) from error
        return type(self)(
            version=self.version, graph=self.graph, spec=self.spec, compiled=compiled, content=self._content,
            options=self._options, beside=None if self._beside is None else self._beside.sibling(),
        )  # fmt: skip

    @property
    def is_beside(self) -> bool:
        """Whether the process that compiled it is still there."""
        return self._beside is not None and self._beside.is_there

    def run_beside(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once, by the process that compiled it where that is still there."""
        if self._beside is None or not self.is_beside:
            return self(inputs)
        arrays, _ = self._check(inputs, self._resident, self._resident_sizes)
        return dict(zip(self._names, self._beside.run(arrays, self._bound), strict=True))

    def _rebound(self) -> None:
        if self._beside is not None and not self._beside.is_there:
            self._beside = None
        self._bound = {name: tensor.data for name, tensor in self._resident.items()} if self._beside else {}

    def _run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        try:
            slot = self._idle.pop()
        except IndexError:
            slot = _Request(
                self._compiled.create_infer_request(),
                fixed=self._fixed,
                inputs=len(self._places),
                outputs=len(self._names),
            )
        request, tensors, places = slot.request, slot.tensors, self._places
        if self._fixed and not self._resident:
            for name, array in arrays.items():
                slot.inputs[places[name]][...] = array
            self._run_request(request, {}, share_outputs=True, decode_strings=False)
            outputs = {name: view.copy() for name, view in zip(self._names, slot.outputs, strict=True)}
            self._idle.append(slot)
            return outputs
        for name, array in arrays.items():
            place = places[name]
            # Shared memory must be writable for OpenVINO, though it does not write to it.
            tensor = self._tensor(array, shared_memory=array.flags.writeable)
            request.set_input_tensor(place, tensor)
            tensors[place] = tensor
        for name, tensor in self._resident.items():
            place = places[name]
            if tensors.get(place) is not tensor:
                request.set_input_tensor(place, tensor)
                tensors[place] = tensor
        self._run_request(request, {}, share_outputs=True, decode_strings=False)
        outputs = {name: request.get_output_tensor(place).data.copy() for place, name in enumerate(self._names)}
        self._idle.append(slot)  # not after an error: that request's state is unknown
        return outputs

    def _place(self, array: Array) -> Any:
        return self._tensor(array, shared_memory=False)


def _uncompiled(relative: str, error: RuntimeError) -> ArtifactError:
    return ArtifactError(
        field=f"files.{relative}", got=str(error), expected="a graph that OpenVINO compiles",
        next_step="Export the model again with the OpenVINO version that serves it.",
    )  # fmt: skip


def _same_ports(relative: str, spec: GraphSpec, compiled: Any) -> None:
    for kind, tensors, ports in (
        ("inputs", spec.inputs, compiled.inputs),
        ("outputs", spec.outputs, compiled.outputs),
    ):
        if len(tensors) != len(ports) or not all(map(_is_port_of, tensors, ports)):
            got = [(port.any_name, _dtype(port), _rank(port)) for port in ports]
            expected = [(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in tensors]
            raise ArtifactError(
                field=f"files.{relative}: {kind}",
                got=got,
                expected=f"{expected}, as in the manifest",
                next_step="Export the model again.",
            )


def _is_port_of(tensor: TensorSpec, port: Any) -> bool:
    """Whether a port is a tensor's; compiling may have given it further names."""
    return tensor.name in port.names and (_dtype(port), _rank(port)) == (tensor.dtype, len(tensor.shape))


def _dtype(port: Any) -> str:
    return str(port.element_type.to_dtype())


def _rank(port: Any) -> int:
    rank: int = port.partial_shape.rank.get_length()
    return rank
