"""From a trained torch module to an artifact: export, compile for CPU, compare, write, name by content.

The same modules, tables and parameters give the same version on every run: nothing that is written holds a time or a
path (`created`, `git_commit` and `lineage` stand in the manifest, and are no part of the version).
"""

import io
import logging
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from serve.artifacts import MANIFEST, Artifact, Lineage, Manifest, content_version, read_artifact, sync_folder
from serve.engines.compiler import openvino
from serve.engines.openvino import OpenVinoEngine
from serve.engines.parity import differences
from serve.engines.torch import TorchEngine
from serve.errors import ArtifactError
from serve.tensors import Array, GraphSpec, InputCheck, check_outputs, resized

MAX_TRIAL_SIZE: Final = 4096
"""Limits above this are not tried at full size: an export would take minutes and gigabytes."""

_APART: Final = 0.01
"""Relative, of repeats of an example's rows."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportGraph:
    """One graph to export.

    Attributes:
        module: its arguments are named as the spec's inputs; it returns a tensor, or a tuple in the order of the
            spec's outputs. May be a graph that was exported before.
        example: realistic inputs, input name -> array or tensor. Give each dynamic dimension a size of its own of 2
            or more, so that torch can tell them apart. It is stored in the artifact.
        spec: its inputs, outputs and limits.
    """

    module: torch.nn.Module
    example: Mapping[str, Array | torch.Tensor]
    spec: GraphSpec


def export_artifact(
    destination: Path,
    *,
    name: str,
    graphs: Mapping[str, ExportGraph],
    tables: Mapping[str, pa.Table],
    parameters: Mapping[str, Any],
    metrics: Mapping[str, Any],
    feature_service: str = "",
    data_snapshot: str = "",
    lineage: Lineage | None = None,
) -> Artifact:
    """Export graphs and tables as `destination/<version>`.

    It appears there complete or not at all. Where that version is there already and intact, it is left as it is.

    Args:
        destination: folder of the model's versions, such as `.playhead/models/recommend`.
        name: model name.
        graphs: graph name -> what to export.
        tables: table name -> table.
        parameters: JSON values that the host must know.
        metrics: JSON values that evaluation measured; no durations, which would change the version on each run.
        feature_service: Feast FeatureService that feeds the model.
        data_snapshot: names the training data.
        lineage: what the version comes from, besides; it is no part of the version.

    Raises:
        ArtifactError: if a graph can't be exported, or OpenVINO's outputs are not torch's within its tolerance.
        InvalidInput: if an example does not fit its spec.
    """
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=destination) as temporary:
        work = Path(temporary) / "artifact"
        (work / "openvino").mkdir(parents=True)
        for graph, export in graphs.items():
            _write_graph(work, graph, export)
        for table, content in tables.items():
            pq.write_table(content, work / f"{table}.parquet", compression="zstd")
        files = {path.relative_to(work).as_posix(): path for path in sorted(work.rglob("*")) if path.is_file()}
        draft = Manifest(
            name=name,
            version="0" * 12,
            created=datetime.now(UTC),
            git_commit=_git_commit(),
            feature_service=feature_service,
            data_snapshot=data_snapshot,
            lineage=lineage,
            metrics=dict(metrics),
            parameters=dict(parameters),
            graphs={graph: export.spec for graph, export in graphs.items()},
            files={relative: sha256(path.read_bytes()).hexdigest() for relative, path in files.items()},
        )
        manifest = draft.model_copy(update={"version": content_version(draft)})
        (work / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        complete = work.rename(work.with_name(manifest.version))
        artifact = read_artifact(complete)
        for graph, export in graphs.items():
            _compare(artifact, graph, export)
        return _publish(complete, destination / manifest.version)


def _write_graph(work: Path, graph: str, export: ExportGraph) -> None:
    spec = export.spec
    example, sizes = InputCheck(graph, spec)({name: _array(value) for name, value in export.example.items()}, {}, {})
    tensors = {name: torch.from_numpy(array.copy()) for name, array in example.items()}
    module = export.module
    with suppress(NotImplementedError):  # what was exported before has one mode
        module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and OpenVINO warn of their own internals
            program = torch.export.export(
                module, (), kwargs=tensors, dynamic_shapes=_dynamic_shapes(spec), strict=False
            )
            result = program.module()(**tensors)
            outputs = _named(spec, result)
            _write_program(work / f"{graph}.pt2", program)
            _write_openvino(work / "openvino" / f"{graph}.xml", spec, program)
    except Exception as error:  # torch and OpenVINO raise whatever their parsers raise
        raise ArtifactError(
            field=f"graphs.{graph}",
            got=f"{type(error).__name__}: {error}",
            expected="a module that exports",
            next_step="Keep to torch operators, with no control flow on values, and check the dynamic dimensions.",
        ) from error
    for output, (got, expected) in check_outputs(graph, spec, outputs, sizes).items():
        raise ArtifactError(field=output, got=got, expected=expected, next_step="Correct the module or its spec.")
    arrays = {f"in.{name}": array for name, array in example.items()}
    arrays |= {f"out.{name}": array for name, array in outputs.items()}
    np.savez(work / f"{graph}.example.npz", allow_pickle=False, **arrays)


def _dynamic_shapes(spec: GraphSpec) -> dict[str, dict[int, Any]]:
    """Per input: axis -> torch.export.Dim, for the dimensions whose limits leave a choice."""
    dims = {
        dimension: torch.export.Dim(dimension, min=least, max=greatest)
        for dimension, (least, greatest) in spec.limits.items()
        if least < greatest
    }
    return {
        tensor.name: {axis: dims[size] for axis, size in enumerate(tensor.shape) if size in dims}
        for tensor in spec.inputs
    }


def _named(spec: GraphSpec, result: Any) -> dict[str, Array]:
    values = (result,) if isinstance(result, torch.Tensor) else tuple(result)
    if len(values) != len(spec.outputs):
        raise ValueError(f"the module returns {len(values)} tensors, its spec has {len(spec.outputs)} outputs")
    return {tensor.name: value.detach().numpy() for tensor, value in zip(spec.outputs, values, strict=True)}


def _write_program(path: Path, program: torch.export.ExportedProgram) -> None:
    for node in program.graph.nodes:  # where the code lay on the machine that exported it, and ids of this process
        node.meta.pop("stack_trace", None)
        node.meta.pop("from_node", None)
    program.example_inputs = None  # they would be pickled; <graph>.example.npz holds them
    buffer = io.BytesIO()  # a file's name would become part of the archive
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())


def _write_openvino(path: Path, spec: GraphSpec, program: torch.export.ExportedProgram) -> None:
    model = openvino().convert_model(program)
    for port, tensor in zip(model.inputs, spec.inputs, strict=True):
        port.get_tensor().set_names({tensor.name})
    for port, tensor in zip(model.outputs, spec.outputs, strict=True):
        port.get_tensor().set_names({tensor.name})
    shapes = {
        place: openvino().PartialShape([size if isinstance(size, int) else -1 for size in tensor.shape])
        for place, tensor in enumerate(spec.inputs)
    }
    model.reshape(shapes)  # the conversion forgets which dimensions are fixed
    model.set_friendly_name(path.stem)
    for place, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():  # numbered by a counter of this process
            node.set_friendly_name(f"{node.get_type_name()}_{place}")
    openvino().save_model(model, path, compress_to_fp16=False)


def _compare(artifact: Artifact, graph: str, export: ExportGraph) -> None:
    """Compare OpenVINO with torch at the example's sizes and at each dimension's limits."""
    spec = export.spec
    reference = TorchEngine.load(artifact, graph)
    engine = OpenVinoEngine.load(artifact, graph)
    example, _ = artifact.example(graph)
    _, sizes = InputCheck(graph, spec)(example, {}, {})
    for trial in _trials(spec, sizes):
        inputs = _untied(spec, resized(spec, example, trial), sizes)
        try:
            errors = differences(spec, reference(inputs), engine(inputs))
        except Exception as raised:  # the engines raise whatever their kernels raise
            raise ArtifactError(
                field=f"graphs.{graph}",
                got=f"{type(raised).__name__}: {raised}",
                expected=f"a module that runs at {trial}",
                next_step="Correct the module for these sizes, or narrow the spec's limits.",
            ) from raised
        for output, error in errors.items():
            _log.debug("export %s.%s at %s: error %.3g", graph, output, trial, error)
            if error > spec.tolerance:
                raise ArtifactError(
                    field=f"{graph}.{output}",
                    got=f"an error of {error:.3g} on OpenVINO against torch at {trial}",
                    expected=f"at most {spec.tolerance:g}",
                    next_step="Look for an operator that differs between the two, or state a tolerance that is true.",
                )


def _untied(spec: GraphSpec, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
    """Where a graph ranks, make repeats of the example's rows differ: which of equals comes in is each engine's own."""
    if spec.ranking is None:
        return dict(inputs)
    random = np.random.default_rng(0)
    untied: dict[str, Array] = dict(inputs)
    for tensor in spec.inputs:
        array = untied[tensor.name]
        if tensor.low is not None or tensor.high is not None or not np.issubdtype(array.dtype, np.floating):
            continue
        for axis, dimension in enumerate(tensor.shape):
            if isinstance(dimension, str) and array.shape[axis] > sizes[dimension]:
                factors = np.ones(array.shape[axis]) + _APART * random.uniform(-1, 1, array.shape[axis])
                factors[: sizes[dimension]] = 1
                array = array * np.expand_dims(factors, [other for other in range(array.ndim) if other != axis])
        untied[tensor.name] = np.ascontiguousarray(array, dtype=inputs[tensor.name].dtype)
    return untied


def _trials(spec: GraphSpec, sizes: Mapping[str, int]) -> list[dict[str, int]]:
    trials = [dict(sizes)]
    for dimension, (least, greatest) in spec.limits.items():
        for size in (least, min(greatest, max(MAX_TRIAL_SIZE, sizes[dimension]))):
            trial = {**sizes, dimension: size}
            if trial not in trials and spec.bucket(trial) is not None:
                trials.append(trial)
    return trials


def _publish(complete: Path, target: Path) -> Artifact:
    for path in complete.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if target.exists():
        try:
            return read_artifact(target)
        except ArtifactError as error:
            _log.warning("version %s is there but damaged (%s); it is replaced", target.name, error)
            shutil.rmtree(target)
    try:
        complete.rename(target)
    except OSError:
        if not target.exists():  # else another export was faster: what it wrote is the same
            raise
    sync_folder(target.parent)
    return read_artifact(target)


def _array(value: Array | torch.Tensor) -> Array:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _git_commit() -> str:
    """Commit of this code: PLAYHEAD_GIT_COMMIT, else what git says, else `unknown`."""
    given = os.environ.get("PLAYHEAD_GIT_COMMIT")
    if given:
        return given
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
