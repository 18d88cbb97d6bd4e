"""Engines: one interface over the runtimes that execute a model's graphs."""

import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import Literal

from serve.artifacts import DERIVED, Artifact
from serve.engines.base import Engine
from serve.engines.compiler import taking_turns
from serve.engines.fallback import FallbackEngine, count_fallback
from serve.errors import InvalidInput, PlayheadError

Device = Literal["auto", "cpu", "cuda", "torch"]

_log = logging.getLogger(__name__)


def load_engine(
    artifact: Artifact,
    graph: str,
    device: Device = "auto",
    *,
    threads: int = 1,
    batches: Sequence[int] = (1, 8),
    sizes: Mapping[str, int] | None = None,
) -> Engine:
    """Load one graph of an artifact and warm it up, so that its first call is as fast as the next ones.

    Args:
        artifact: a checked artifact (`read_artifact`).
        graph: name of the graph.
        device: `cpu` OpenVINO; `cuda` TensorRT on this machine's GPU; `torch` the reference; `auto` takes `cuda` if
            the artifact has an engine for this machine's GPU and it runs, else `cpu`, and logs and counts why. A call
            that the GPU can't take later, such as for want of memory, runs on the CPU too.
        threads: CPU threads that one call may use (`cpu` only).
        batches: sizes of the dimension `B` to warm up.
        sizes: dynamic dimensions that will always have this size (`cpu` only): a graph of many small operations runs
            several times faster with fixed shapes.

    Raises:
        ArtifactError: if the artifact has no such graph, the graph can't be loaded, or its outputs are not torch's.
        Unavailable: if device is `cuda` and this machine lacks the GPU or a package, which it names.
        InvalidInput: if there is no such device.
    """
    if device == "auto":
        return _load_auto(artifact, graph, threads=threads, batches=batches, sizes=sizes)
    # Each runtime is imported only where it is used: torch costs a CPU replica seconds and hundreds of MB.
    if device == "cpu":
        kind = importlib.import_module("serve.engines.openvino").OpenVinoEngine
        engine: Engine = kind.load(artifact, graph, threads, sizes)
    elif device == "cuda":
        engine = importlib.import_module("serve.engines.tensorrt").TensorRtEngine.load(artifact, graph)
    elif device == "torch":
        engine = importlib.import_module("serve.engines.torch").TorchEngine.load(artifact, graph)
    else:
        raise InvalidInput(
            field="device", got=device, expected="auto, cpu, cuda or torch", next_step="Correct the engine's device."
        )
    with taking_turns():
        errors = engine.warm_up(artifact, batches)
    _log.info(
        "engine %s/%s ready on %s, error against torch at most %.2g",
        artifact.manifest.name,
        graph,
        engine.device,
        max(errors.values()),
    )
    return engine


def _load_auto(
    artifact: Artifact, graph: str, *, threads: int, batches: Sequence[int], sizes: Mapping[str, int] | None
) -> Engine:
    name = artifact.manifest.name
    derived = any(path.startswith(DERIVED) and path.endswith(f"/{graph}.engine") for path in artifact.manifest.files)
    if not derived:
        _log.info("engine %s/%s: not on the GPU: the artifact has no TensorRT engine", name, graph)
        return load_engine(artifact, graph, "cpu", threads=threads, batches=batches, sizes=sizes)
    processor = load_engine(artifact, graph, "cpu", threads=threads, batches=batches)
    try:
        return FallbackEngine(name, load_engine(artifact, graph, "cuda", batches=batches), processor)
    except PlayheadError as error:
        _log.warning("engine %s/%s: not on the GPU: %s", name, graph, error)
        count_fallback(f"{name}/{graph}", "load")
    return load_engine(artifact, graph, "cpu", threads=threads, batches=batches, sizes=sizes) if sizes else processor
