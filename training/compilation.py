"""Compile an artifact's graphs for one kind of machine, and keep the engines in the artifact as derived files.

    tensorrt/sm90/<graph>.engine                TensorRT, for this machine's GPU
    tensorrt-rtx/sm86-sm89/<graph>.engine       TensorRT for RTX, for GPUs that need not be here
    .../<graph>.json                            what built it: `Origin`
    .../timing.cache                            TensorRT's measurements of kernels, for the next build

An engine whose origin is that of today's library is kept. A new version of a model with the structure of an older one
takes that one's engine with its own weights (refit), which skips the search for kernels. What is compiled where it can
run is compared with torch's example before it is written. OpenVINO compiles when it loads, so for `cpu` nothing is
written: the graphs are compiled, compared with torch and measured.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from serve.artifacts import Artifact, add_derived
from serve.engines import load_engine
from serve.engines.base import Engine
from serve.engines.compiler import openvino
from serve.engines.tensorrt import LIBRARIES, Libraries, TensorRtEngine, find_libraries, import_library
from serve.errors import ArtifactError, InvalidInput
from serve.tensors import InputCheck, Precision
from training.tensorrt import (
    Build,
    architectures_of,
    build_engine,
    check_architectures,
    halved,
    onnx_model,
    refitted,
    structure,
)  # fmt: skip

Target = Literal["cpu", "tensorrt", "tensorrt-rtx"]
How = Literal["built", "refitted", "kept", "measured"]

RTX_ARCHITECTURES: Final = ("sm86", "sm89")
"""GPUs that TensorRT for RTX builds for where none are named: GeForce RTX 30 and 40, RTX A and Ada."""
CALLS: Final = 30
"""Calls that a latency is the median of."""

_INSTALL_RTX: Final = "Install playhead[rtx] (Linux on x86-64), or choose another target."
_ELSEWHERE: Final = (
    "Install playhead[gpu] on the machine with the NVIDIA GPU that will serve, and compile there; "
    "--target tensorrt-rtx builds for RTX GPUs that are elsewhere."
)

_log = logging.getLogger(__name__)


class Origin(BaseModel):
    """What an engine was built with; stands beside it.

    Attributes:
        library: a key of serve.engines.tensorrt.LIBRARIES.
        library_version: its version.
        structure: of the ONNX model, without its weights.
        precision: least type that it multiplies in.
        refittable: whether it takes other weights.
        nodes: nodes of the ONNX model.
        layers: layers of TensorRT's network.
        seconds: how long it built.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    library: str
    library_version: str
    structure: str
    precision: Precision
    refittable: bool
    nodes: int
    layers: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CompiledGraph:
    """One graph, compiled.

    Attributes:
        graph: its name.
        target: what for.
        architecture: GPUs that it runs on, joined by `-`, or `cpu`.
        how: built now, refitted from another version's engine, kept from before, or measured (nothing is written).
        precision: least type that it multiplies in.
        size_bytes: of the engine; for `cpu`, of the weights.
        seconds: how long it took to build; for `cpu`, to load.
        layers: layers of the compiled graph.
        complete: whether every operator is in it; what is not complete is refused, so this is always true.
        error: greatest error against torch's example; None where it can't run here.
        latency_ms: median wall time of a call with the example, of CALLS; None where it can't run here.
    """

    graph: str
    target: Target
    architecture: str
    how: How
    precision: Precision
    size_bytes: int
    seconds: float
    layers: int
    complete: bool = True
    error: float | None = None
    latency_ms: float | None = None


def compile_artifact(
    artifact: Artifact,
    target: Target,
    *,
    architectures: Sequence[str] = (),
    donors: Sequence[Artifact] = (),
    again: bool = False,
) -> Iterator[CompiledGraph]:
    """Compile all graphs of an artifact; each is in the artifact when it is yielded.

    Args:
        artifact: a checked artifact. It keeps its version; read it again to see the engines.
        target: what to compile for.
        architectures: GPUs such as `sm86`; for `tensorrt-rtx` RTX_ARCHITECTURES if empty, else this machine's.
        donors: other versions of the model, whose engines may be refitted.
        again: build what is there already too.

    Raises:
        InvalidInput: if a target or an architecture is not known or can't be built for here.
        Unavailable: if a package or the GPU that the target needs is missing; it says which.
        ArtifactError: if a graph can't be compiled, or its outputs are not torch's.
    """
    if target not in get_args(Target):
        raise InvalidInput(
            field="target", got=target, expected=", ".join(get_args(Target)), next_step="Correct the target."
        )
    if target == "cpu":
        _no_architectures(architectures, [])
        yield from (_measured_on_cpu(artifact, graph) for graph in artifact.manifest.graphs)
        return
    if target == "tensorrt":
        libraries = find_libraries(target, next_step=_ELSEWHERE)
        _no_architectures(architectures, [libraries.architecture])
        compiler = _Compiler(target, libraries.tensorrt, (libraries.architecture,), libraries)
    else:
        trt = import_library(LIBRARIES[target], field="target tensorrt-rtx", next_step=_INSTALL_RTX)
        names = tuple(dict.fromkeys(architectures)) or RTX_ARCHITECTURES
        check_architectures(names, architectures_of(trt))
        compiler = _Compiler(target, trt, names, None)
    for graph in artifact.manifest.graphs:
        artifact, compiled = compiler.compile(artifact, graph, [] if again else [artifact, *donors], again=again)
        yield compiled


@dataclass(frozen=True)
class _Compiler:
    """Compiles graphs with one library.

    Attributes:
        target: what for.
        trt: the library.
        architectures: GPUs to build for.
        libraries: what runs the engines; None where they can't run on this machine.
    """

    target: Target
    trt: Any
    architectures: tuple[str, ...]
    libraries: Libraries | None

    @property
    def folder(self) -> str:
        return f"{self.target}/{'-'.join(self.architectures)}"

    def compile(
        self, artifact: Artifact, graph: str, donors: Sequence[Artifact], *, again: bool
    ) -> tuple[Artifact, CompiledGraph]:
        engine_file, origin_file = f"{self.folder}/{graph}.engine", f"{self.folder}/{graph}.json"
        origin = None if again else self._origin(artifact, graph)
        if origin is not None:
            content = artifact.read_bytes(engine_file)
            row = self._row(graph, "kept", content, origin)
            return artifact, row if self.libraries is None else self._tried(artifact, row, content)
        files: dict[str, bytes] = {}
        failure: ArtifactError | None = None
        for how, content, made, timing in self._candidates(artifact, graph, donors):
            row = self._row(graph, how, content, made)
            try:
                row = row if self.libraries is None else self._tried(artifact, row, content)
            except ArtifactError as error:
                _log.warning("engine %s (%s, %s) is not used: %s", graph, how, made.precision, error)
                failure = error
                continue
            files = {engine_file: content, origin_file: made.model_dump_json(indent=2).encode()}
            if timing:
                files[f"{self.folder}/timing.cache"] = timing
            return add_derived(artifact, files), row
        assert failure is not None, "there is always a candidate"
        raise failure

    def _candidates(
        self, artifact: Artifact, graph: str, donors: Sequence[Artifact]
    ) -> Iterator[tuple[How, bytes, Origin, bytes]]:
        """Engines to try, best first. In float16 only where it can be compared with torch before it is used."""
        spec = artifact.graph(graph)
        full = onnx_model(artifact, graph)
        # A refittable engine may drop the bias of a product (known issue of TensorRT 11.3): it is compared, and built
        # again without that freedom where it differs. TensorRT for RTX refits engines of one architecture only.
        here = self.libraries is not None
        variants = [(half, refit) for half in (True, False) for refit in (True, False)]
        for half, refit in variants:
            if (half and not (here and spec.precision == "float16")) or (refit and not here):
                continue
            model = halved(full) if half else full
            precision: Precision = "float16" if half else "float32"
            if refit:
                yield from self._donated(graph, model, precision, donors)
            built = self._built(artifact, graph, model, half=half, refit=refit, donors=donors)
            origin = Origin(
                library=self.target,
                library_version=str(self.trt.__version__),
                structure=structure(model),
                precision=precision,
                refittable=refit,
                nodes=built.nodes,
                layers=built.layers,
                seconds=round(built.seconds, 3),
            )
            yield "built", built.content, origin, built.timing

    def _built(
        self, artifact: Artifact, graph: str, model: bytes, *, half: bool, refit: bool, donors: Sequence[Artifact]
    ) -> Build:
        spec = artifact.graph(graph)
        example, _ = artifact.example(graph)
        _, usual = InputCheck(graph, spec)(example, {}, {})
        here = self.libraries is not None
        return build_engine(
            self.trt,
            graph,
            spec,
            model,
            usual=usual,
            architectures=() if here else self.architectures,
            half=half,
            refit=refit,
            timing=self._timing(donors) if here else None,
        )

    def _donated(
        self, graph: str, model: bytes, precision: Precision, donors: Sequence[Artifact]
    ) -> Iterator[tuple[How, bytes, Origin, bytes]]:
        wanted = structure(model)
        for donor in donors:
            origin = self._origin(donor, graph)
            if origin is None or not origin.refittable or (origin.structure, origin.precision) != (wanted, precision):
                continue
            began = time.perf_counter()
            content = refitted(self.trt, donor.read_bytes(f"{self.folder}/{graph}.engine"), model)
            if content is not None:
                seconds = round(time.perf_counter() - began, 3)
                yield "refitted", content, origin.model_copy(update={"seconds": seconds}), b""
                return

    def _origin(self, artifact: Artifact, graph: str) -> Origin | None:
        """Origin of an artifact's engine, where it has one that today's library built."""
        files = artifact.manifest.files
        relative = f"{self.folder}/{graph}.json"
        if relative not in files or f"{self.folder}/{graph}.engine" not in files:
            return None
        try:
            origin = Origin.model_validate_json(artifact.read_bytes(relative))
        except ValidationError:
            return None
        current = (self.target, str(self.trt.__version__))
        return origin if (origin.library, origin.library_version) == current else None

    def _timing(self, donors: Sequence[Artifact]) -> bytes:
        relative = f"{self.folder}/timing.cache"
        return next((donor.read_bytes(relative) for donor in donors if relative in donor.manifest.files), b"")

    def _row(self, graph: str, how: How, content: bytes, origin: Origin) -> CompiledGraph:
        return CompiledGraph(
            graph=graph,
            target=self.target,
            architecture="-".join(self.architectures),
            how=how,
            precision=origin.precision,
            size_bytes=len(content),
            seconds=origin.seconds,
            layers=origin.layers,
        )

    def _tried(self, artifact: Artifact, row: CompiledGraph, content: bytes) -> CompiledGraph:
        """Run the engine on the example: the row with its error and latency."""
        assert self.libraries is not None
        engine = TensorRtEngine.deserialize(artifact, row.graph, content, self.libraries)
        return _tried(artifact, engine, row)


def _measured_on_cpu(artifact: Artifact, graph: str) -> CompiledGraph:
    began = time.perf_counter()
    engine = load_engine(artifact, graph, "cpu", batches=())
    seconds = time.perf_counter() - began
    xml = artifact.read_bytes(f"openvino/{graph}.xml")
    weights = artifact.read_bytes(f"openvino/{graph}.bin")
    row = CompiledGraph(
        graph=graph,
        target="cpu",
        architecture="cpu",
        how="measured",
        precision="float32",
        size_bytes=len(weights),
        seconds=seconds,
        layers=len(openvino().Core().read_model(xml, weights).get_ops()),
    )
    return _tried(artifact, engine, row)


def _tried(artifact: Artifact, engine: Engine, row: CompiledGraph) -> CompiledGraph:
    errors = engine.warm_up(artifact)
    inputs, _ = artifact.example(row.graph)
    return replace(row, error=max(errors.values()), latency_ms=median_ms(lambda: engine(inputs), CALLS))


def median_ms(call: Callable[[], Any], calls: int) -> float:
    """Median wall time of a call, milliseconds."""
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1000 * median(times)


def _no_architectures(asked: Sequence[str], possible: Sequence[str]) -> None:
    if set(asked) - set(possible):
        raise InvalidInput(
            field="architecture",
            got=", ".join(asked),
            expected=f"this machine's: {', '.join(possible) or 'no GPU'}",
            next_step="Leave it out; only --target tensorrt-rtx builds for GPUs that are elsewhere.",
        )
