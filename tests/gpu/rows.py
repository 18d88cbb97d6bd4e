"""What the GPU suite measures, as rows; and the ways to run a graph that are measured beside each other.

Times are wall time of a whole call, arrays in and arrays out: copies to the GPU and back count.
"""

import functools
import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from serve.artifacts import Artifact
from serve.engines import load_engine
from serve.engines.base import BATCH
from serve.engines.parity import differences
from serve.engines.torch import load_program
from serve.tensors import Array, resized
from training.compilation import median_ms

CALLS: Final = 50
ROWS: Final[list[dict[str, Any]]] = []
"""Filled by the tests of this folder, printed by tests/gpu/suite.py."""

Run = Callable[[Mapping[str, Array]], dict[str, Array]]

WAYS: Final = ("cpu", "torch CUDA eager", "torch CUDA inductor with CUDA graphs", "torch-tensorrt", "TensorRT")


def way(name: str, artifact: Artifact, graph: str) -> Run:
    """One way to run a graph.

    Args:
        name: one of WAYS.
        artifact: an artifact with engines for this GPU.
        graph: name of the graph.
    """
    if name == "cpu":
        return load_engine(artifact, graph, "cpu")
    if name == "TensorRT":
        return load_engine(artifact, graph, "cuda")
    compilers = {"torch CUDA inductor with CUDA graphs": "inductor", "torch-tensorrt": "torch_tensorrt"}
    return on_cuda(artifact, graph, compiler=compilers.get(name))


def on_cuda(artifact: Artifact, graph: str, *, compiler: str | None, device: str = "cuda") -> Run:
    """Torch's program of a graph on the GPU, in full float32, by a torch.compile backend or eagerly."""
    from torch.export.passes import move_to_device_pass  # noqa: PLC0415 - new and not in every torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    names = [tensor.name for tensor in artifact.graph(graph).outputs]
    program = load_program(artifact.read_bytes(f"{graph}.pt2"), graph)
    module: Any = move_to_device_pass(program, device).module()
    if compiler == "inductor":
        module = torch.compile(module, mode="reduce-overhead")
    elif compiler is not None:
        importlib.import_module(compiler)  # makes itself known to torch.compile
        module = torch.compile(module, backend=compiler, options={"disable_tf32": True, "use_python_runtime": False})

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            result = module(**{name: torch.from_numpy(array).to(device) for name, array in inputs.items()})
            values = (result,) if isinstance(result, torch.Tensor) else tuple(result)
            return {name: value.cpu().numpy() for name, value in zip(names, values, strict=True)}

    return run


@functools.cache
def hardware() -> str:
    """The GPU, or that there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def batches(artifact: Artifact, graph: str) -> list[int]:
    """One row, eight, and the most that the graph takes beside the example's other sizes."""
    spec = artifact.graph(graph)
    inputs, _ = artifact.example(graph)
    if BATCH not in spec.limits:
        return [0]
    sizes = {
        str(size): inputs[tensor.name].shape[axis] for tensor in spec.inputs for axis, size in enumerate(tensor.shape)
    }
    least, most = spec.limits[BATCH]
    wanted = [size for size in dict.fromkeys((1, 8, min(most, 256))) if least <= size <= most]
    return [size for size in wanted if spec.bucket({**{k: sizes[k] for k in spec.limits}, BATCH: size}) is not None]


def measured(
    artifact: Artifact, graph: str, batch: int, ways: Mapping[str, Callable[[], Run]], calls: int = CALLS
) -> list[dict[str, Any]]:
    """Run a graph in each way at one batch size, one after the other, and compare it with torch on the CPU.

    A way that fails has its reason in `failed` and no figures: inductor does not take every graph.
    """
    spec = artifact.graph(graph)
    example, _ = artifact.example(graph)
    inputs = resized(spec, example, {BATCH: batch} if batch else {})
    expected = load_engine(artifact, graph, "torch")(inputs)
    rows = []
    for name, make in ways.items():
        row: dict[str, Any] = {"model": artifact.manifest.name, "graph": graph, "batch": batch, "way": name}
        try:
            run = make()
            errors = [max(differences(spec, expected, run(inputs)).values()) for _ in range(5)]  # warm, recorded too
            latency_ms = median_ms(lambda run=run: run(inputs), calls)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - what the compilers raise; the row says it
            rows.append({**row, "failed": f"{type(error).__name__}: {error}"[:200]})
            continue
        rows.append({**row, "error": max(errors), "ms": latency_ms, "rows_per_s": 1000 * max(batch, 1) / latency_ms})
    base = next((row["ms"] for row in rows if row["way"] == "cpu" and "ms" in row), None)
    for row in rows:
        if base is not None and "ms" in row:
            row["times_cpu"] = base / row["ms"]
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as a table for docs/engines.md."""
    lines = [
        "| model | graph | rows | way | error | ms a call | rows a second | against CPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["model"], row["graph"], row["batch"] or "-", row["way"]]
        if "failed" in row:
            cells += [row["failed"].replace("|", "/").splitlines()[0], "", "", ""]
        elif "ms" in row:
            against = f"{row['times_cpu']:.2f} x" if "times_cpu" in row else ""
            cells += [f"{row['error']:.1e}", f"{row['ms']:.3f}", f"{row['rows_per_s']:,.0f}", against]
        else:
            cells += [row["result"], "", "", ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def as_json(rows: list[dict[str, Any]], *, passed: bool, skipped: str = "") -> str:
    """One line for scripts."""
    versions = {"torch": torch.__version__}
    return json.dumps({"hardware": hardware(), **versions, "passed": passed, "skipped": skipped, "rows": rows})
