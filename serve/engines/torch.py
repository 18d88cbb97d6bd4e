"""Torch engine: the reference. It runs the ExportedProgram itself, eagerly.

Trust: torch.export.load can unpickle, and evaluates shape expressions, so a `.pt2` is checked before torch sees it:
archives with pickled payloads, of the old format, or with an expression that is more than arithmetic on sizes are
refused. What is left is a graph of torch operators, which may still read files; take artifacts only from whom you
would take code. Serving on a CPU runs OpenVINO's IR and never opens a `.pt2`.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch

from serve.artifacts import Artifact
from serve.engines.base import Engine
from serve.errors import ArtifactError
from serve.tensors import Array, GraphSpec

_PLAIN_EXPRESSION = re.compile(
    r"(\b(Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilToInt|FloorToInt|TruncToInt"
    r"|IntTrueDiv|Identity|Eq|Ne|Ge|Gt|Le|Lt|And|Or|Not|true|false|oo|positive|nonnegative|integer|True|False"
    r"|[su]\d+|\d+)\b|'[su]\d+'|[ ()+*/,<>=&|~%-])*",
    re.ASCII,
)
_PLAIN_MEMBERS = re.compile(
    r"[^/]+/("
    r"data/(weights/(weight_\d+|model_weights_config\.json)|constants/(tensor_\d+|model_constants_config\.json)"
    r"|sample_inputs/model\.pt)"
    r"|models/model\.json|archive_format|archive_version|byteorder|\.data/(version|serialization_id))"
)


class TorchEngine(Engine):
    """An ExportedProgram, run by torch on the CPU with torch's own number of threads."""

    def __init__(self, *, version: str, graph: str, spec: GraphSpec, program: torch.export.ExportedProgram) -> None:
        super().__init__(version=version, graph=graph, spec=spec, device="torch")
        self._module = program.module()
        self._names = [tensor.name for tensor in spec.outputs]

    @classmethod
    def load(cls, artifact: Artifact, graph: str) -> Self:
        """Load `<graph>.pt2` of an artifact.

        Raises:
            ArtifactError: if it holds more than a graph and plain tensors, or torch can't load it.
        """
        spec = artifact.graph(graph)
        relative = f"{graph}.pt2"
        program = load_program(artifact.read_bytes(relative), field=f"files.{relative}")
        return cls(version=artifact.version, graph=graph, spec=spec, program=program)

    def _run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            tensors = {name: _shared(array) for name, array in arrays.items()}
            result = self._module(**tensors, **self._resident)
        values = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        return {name: value.numpy().copy() for name, value in zip(self._names, values, strict=True)}

    def _place(self, array: Array) -> Any:
        return torch.from_numpy(array.copy())


def load_program(content: bytes, field: str) -> torch.export.ExportedProgram:
    """Load an ExportedProgram from bytes, if it holds nothing that torch would unpickle or evaluate as code.

    Args:
        content: bytes of a `.pt2` archive.
        field: name of the file, for messages.

    Raises:
        ArtifactError: saying what it holds, or why torch can't load it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unsafe = _unsafe_content(archive)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        unsafe = str(error)
    if unsafe:
        raise ArtifactError(
            field=field,
            got=unsafe,
            expected="an ExportedProgram of plain tensors",
            next_step="Do not use it; export the model again from its own code.",
        )
    try:
        return torch.export.load(io.BytesIO(content))
    except Exception as error:  # torch raises whatever its parsers raise
        raise ArtifactError(
            field=field,
            got=f"{type(error).__name__}: {error}",
            expected=f"a program that torch {torch.__version__} loads",
            next_step="Export the model again with the torch version that serves it.",
        ) from error


def _unsafe_content(archive: zipfile.ZipFile) -> str:
    """What in a `.pt2` archive torch would unpickle or evaluate; empty where there is nothing."""
    names = archive.namelist()
    for name in names:
        if not _PLAIN_MEMBERS.fullmatch(name):
            return f"member {name}"
    root = names[0].split("/")[0] if names else ""
    if not names or any(not name.startswith(f"{root}/") for name in names) or len(set(names)) != len(names):
        return "members of several archives"
    if archive.read(f"{root}/data/sample_inputs/model.pt"):
        return "pickled sample inputs"
    for kind in ("weights", "constants"):
        config = json.loads(archive.read(f"{root}/data/{kind}/model_{kind}_config.json"))["config"]
        for name, payload in config.items():
            if payload.get("use_pickle") is not False or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
                return f"pickled {kind} {name}"
    for expression in _expressions(json.loads(archive.read(f"{root}/models/model.json"))):
        if not isinstance(expression, str) or not _PLAIN_EXPRESSION.fullmatch(expression):
            return f"expression {expression}"
    return ""


def _expressions(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "expr_str":
                yield value
            else:
                yield from _expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from _expressions(value)


def _shared(array: Array) -> torch.Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())
