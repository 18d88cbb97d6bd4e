"""Model artifacts: a folder, named by its content, whose manifest says what is in it; and the check before it is used.

    <version>/manifest.json               what follows, with a SHA-256 of each file
    <version>/<graph>.pt2                 torch ExportedProgram, the source of truth
    <version>/<graph>.example.npz         example inputs (`in.<name>`) and what torch made of them (`out.<name>`)
    <version>/openvino/<graph>.xml .bin   OpenVINO IR
    <version>/tensorrt/<arch>/<graph>.engine   TensorRT engines; built where the GPU is, so no part of the version
    <version>/tensorrt-rtx/<archs>/<graph>.engine   the same of TensorRT for RTX; built anywhere
    <version>/<table>.parquet             tables that go with the model, such as its vocabulary

A manifest is data. Nothing in an artifact is unpickled, imported or executed by these functions.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from serve.errors import ArtifactError, InvalidInput
from serve.tensors import Array, GraphSpec, InputCheck, Name, check_outputs

MANIFEST: Final = "manifest.json"
CHAMPION: Final = "champion"
DERIVED: Final = ("tensorrt/", "tensorrt-rtx/")
"""Files under these are compiled from the rest for some GPUs: hashed in the manifest, no part of the version."""

MAX_MANIFEST_BYTES: Final = 4 << 20
MAX_FILE_BYTES: Final = 4 << 30
MAX_EXAMPLE_BYTES: Final = 256 << 20
MAX_FILES: Final = 1024

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=512)]

_RELATIVE_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}){0,3}")
_RESTORE: Final = "Restore the file, or train or publish the model again."


class Lineage(BaseModel):
    """Where a version comes from.

    Attributes:
        dataset: name of the data set.
        first_ts_ms: oldest event that it was trained on, UTC milliseconds; 0 where the data has no times.
        last_ts_ms: newest event that it was trained on, UTC milliseconds; 0 where the data has no times.
        rows: how many events.
        parent: version that it was warm-started from; empty: none.
        seed: of everything random.
        run: id of the tracked run that made it; empty: none.
        environment: package -> version, of what its figures depend on; `python` is one of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Text = ""
    first_ts_ms: NonNegativeInt = 0
    last_ts_ms: NonNegativeInt = 0
    rows: NonNegativeInt = 0
    parent: Version | Literal[""] = ""
    seed: int = 0
    run: Text = ""
    environment: dict[Text, Text] = Field(default_factory=dict)


class Manifest(BaseModel):
    """What an artifact holds.

    Attributes:
        schema_version: version of this schema.
        name: model name, such as `recommend`.
        version: first 12 hex digits of the content hash (`content_version`).
        created: when it was made, UTC.
        git_commit: commit of the code that made it, or `unknown`.
        feature_service: name of the Feast FeatureService that it is fed from; empty where there is none.
        data_snapshot: names the training data, such as its content hash.
        lineage: what it comes from, besides; None for versions older than the field.
        metrics: what evaluation measured.
        parameters: what the host must know to use it, such as the longest history.
        files: path within the artifact, with `/` -> SHA-256, for all files but the manifest itself.
        graphs: graph name -> spec; empty where the model is its parameters alone, without a file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    name: ModelName
    version: Version
    created: AwareDatetime
    git_commit: Text
    feature_service: Text
    data_snapshot: Text
    lineage: Lineage | None = None
    metrics: dict[str, JsonValue]
    parameters: dict[str, JsonValue]
    files: Annotated[dict[str, Sha256], Field(max_length=MAX_FILES)]
    graphs: dict[Name, GraphSpec]

    @field_validator("files")
    @classmethod
    def _paths_stay_inside(cls, files: dict[str, str]) -> dict[str, str]:
        for path in files:
            if not _RELATIVE_PATH.fullmatch(path) or path == MANIFEST:
                raise ValueError(f"{path!r} is no path within the artifact")
        return files

    @field_validator("graphs")
    @classmethod
    def _files_have_a_graph(cls, graphs: dict[str, GraphSpec], info: ValidationInfo) -> dict[str, GraphSpec]:
        if info.data.get("files") and not graphs:
            raise ValueError("files, and no graph that they are of")
        return graphs


def content_version(manifest: Manifest) -> str:
    """Version that a manifest's content asks for; `created`, `git_commit`, `lineage` and derived files do not count."""
    content = manifest.model_dump(mode="json", exclude={"version", "created", "git_commit", "lineage"})
    content["files"] = {path: digest for path, digest in manifest.files.items() if not path.startswith(DERIVED)}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Artifact:
    """A checked artifact.

    Attributes:
        path: its folder.
        manifest: its manifest.
    """

    path: Path
    manifest: Manifest

    @property
    def version(self) -> str:
        """The manifest's version."""
        return self.manifest.version

    def graph(self, name: str) -> GraphSpec:
        """Spec of a graph.

        Raises:
            ArtifactError: if there is no such graph.
        """
        spec = self.manifest.graphs.get(name)
        if spec is None:
            raise ArtifactError(
                field=f"graphs.{name}",
                got="nothing",
                expected=f"one of {sorted(self.manifest.graphs)}",
                next_step="Correct the graph's name, or publish a model that has it.",
            )
        return spec

    def read_bytes(self, relative: str) -> bytes:
        """Read a file and check its hash again: what is used is what was checked, whatever happened to the disk since.

        Raises:
            ArtifactError: if it is not listed, unreadable or altered.
        """
        digest = self.manifest.files.get(relative)
        if digest is None:
            raise ArtifactError(
                field=f"files.{relative}", got="nothing", expected="a file of the artifact", next_step=_RESTORE
            )
        with _opened(self.path, relative, MAX_FILE_BYTES) as file:
            content = file.read()
        _same_hash(relative, hashlib.sha256(content).hexdigest(), digest)
        return content

    def example(self, graph: str) -> tuple[dict[str, Array], dict[str, Array]]:
        """Example inputs of a graph, and the outputs that torch gave for them when the artifact was made.

        Raises:
            ArtifactError: if they can't be read or don't fit the graph's spec.
        """
        spec = self.graph(graph)
        relative = f"{graph}.example.npz"
        field = f"files.{relative}"
        content = self.read_bytes(relative)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > MAX_EXAMPLE_BYTES:
                raise ArtifactError(
                    field=field, got=f"{size} bytes", expected=f"at most {MAX_EXAMPLE_BYTES}", next_step=_RESTORE
                )
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                inputs = {name[3:]: arrays[name] for name in arrays.files if name.startswith("in.")}
                outputs = {name[4:]: arrays[name] for name in arrays.files if name.startswith("out.")}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ArtifactError(
                field=field, got=str(error), expected="a npz archive of plain arrays", next_step=_RESTORE
            ) from error
        try:
            _, sizes = InputCheck(graph, spec)(inputs, {}, {})
        except InvalidInput as error:
            raise ArtifactError(
                field=f"{field}: {error.field}", got=error.got, expected=error.expected, next_step=_RESTORE
            ) from error
        for name, (got, expected) in check_outputs(graph, spec, outputs, sizes).items():
            raise ArtifactError(field=f"{field}: {name}", got=got, expected=expected, next_step=_RESTORE)
        return inputs, outputs


def read_artifact(path: Path | str) -> Artifact:
    """Read and check an artifact: its manifest, every file's presence, size and hash, its examples and tables.

    Raises:
        ArtifactError: naming the field or file that is wrong, and what to do.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ArtifactError(
            field="artifact",
            got=str(path),
            expected=f"a folder with a {MANIFEST}",
            next_step="Train or publish the model, or correct the path.",
        )
    folder = folder.resolve()
    manifest = _read_manifest(folder)
    _check_version(folder, manifest)
    _check_presence(folder, manifest)
    artifact = Artifact(path=folder, manifest=manifest)
    for relative, digest in manifest.files.items():
        with _opened(folder, relative, MAX_FILE_BYTES) as file:
            _same_hash(relative, hashlib.file_digest(file, "sha256").hexdigest(), digest)
    for graph in manifest.graphs:
        artifact.example(graph)
    for relative in manifest.files:
        if relative.endswith(".parquet"):
            _parquet(artifact, relative)
    return artifact


def add_derived(artifact: Artifact, files: Mapping[str, bytes]) -> Artifact:
    """Put derived files into an artifact, which keeps its version and stays loadable all the time.

    Args:
        artifact: the artifact.
        files: path under one of DERIVED -> content; what is there already is replaced.

    Returns:
        The artifact as it is now.

    Raises:
        ArtifactError: if a path is no derived file's, or the artifact was damaged meanwhile.
    """
    for relative in files:
        if not relative.startswith(DERIVED) or not _RELATIVE_PATH.fullmatch(relative):
            raise ArtifactError(
                field=f"files.{relative}",
                got="a file of the version itself",
                expected=f"a path under {' or '.join(DERIVED)}",
                next_step="Write derived files only; the rest of an artifact never changes.",
            )
    replaced = [relative for relative in files if relative in artifact.manifest.files]
    if replaced:  # while a file changes, no manifest lists it
        _write_files(artifact, {name: digest for name, digest in artifact.manifest.files.items() if name not in files})
    for relative, content in files.items():
        target = artifact.path / relative
        if target.parent.resolve() != target.parent:
            raise ArtifactError(
                field=f"files.{relative}", got="a folder behind a link", expected="a folder", next_step=_RESTORE
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, content)
    digests = {relative: hashlib.sha256(content).hexdigest() for relative, content in files.items()}
    _write_files(artifact, {**artifact.manifest.files, **digests})
    return read_artifact(artifact.path)


def _write_files(artifact: Artifact, files: Mapping[str, str]) -> None:
    manifest = artifact.manifest.model_copy(update={"files": dict(files)})
    replace_file(artifact.path / MANIFEST, f"{manifest.model_dump_json(indent=2)}\n".encode())


def read_table(artifact: Artifact, name: str) -> pa.Table:
    """Read a table of the artifact.

    Raises:
        ArtifactError: if it is not there, altered or not Parquet.
    """
    return _parquet(artifact, f"{name}.parquet").read()


def read_champion(models: Path, name: str) -> Path | None:
    """Folder of a model's live version, or None where no version was made live yet.

    Raises:
        ArtifactError: if the pointer names no version that is there.
    """
    pointer = models / name / CHAMPION
    try:
        version = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _champion_error(pointer, str(error)) from error
    folder = models / name / version
    if not re.fullmatch(r"[0-9a-f]{12}", version) or not folder.is_dir():
        raise _champion_error(pointer, version)
    return folder


def set_champion(models: Path, name: str, version: str) -> None:
    """Make a version live: the pointer file is replaced in one step, and is on disk when this returns.

    Raises:
        ArtifactError: if that version is not there.
    """
    folder = models / name
    if not re.fullmatch(r"[0-9a-f]{12}", version) or not (folder / version / MANIFEST).is_file():
        raise _champion_error(folder / CHAMPION, version)
    replace_file(folder / CHAMPION, f"{version}\n".encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old or the new content, never a part; durable when this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


Mark = tuple[int, int, int] | None
"""What tells that a file is another one: modification time (ns), size, inode; None where there is none."""


def mark_of(path: Path) -> Mark:
    """The mark of a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _champion_error(pointer: Path, got: str) -> ArtifactError:
    return ArtifactError(
        field=f"{pointer.parent.name}/{CHAMPION}",
        got=got,
        expected=f"a version in {pointer.parent}",
        next_step="Train the model, or put the name of a version that is there into this file.",
    )


def _read_manifest(folder: Path) -> Manifest:
    with _opened(folder, MANIFEST, MAX_MANIFEST_BYTES) as file:
        content = file.read()
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            field=f"{MANIFEST}: {where}" if where else MANIFEST,
            got=first["input"],
            expected=first["msg"],
            next_step=_RESTORE,
        ) from error


def _check_version(folder: Path, manifest: Manifest) -> None:
    version = content_version(manifest)
    if manifest.version != version:
        raise ArtifactError(
            field=f"{MANIFEST}: version",
            got=manifest.version,
            expected=f"{version}, the hash of its content",
            next_step=_RESTORE,
        )
    if folder.name != version:
        raise ArtifactError(
            field="artifact folder",
            got=folder.name,
            expected=f"{version}, the version of its manifest",
            next_step="Rename the folder to the version, or restore what belongs into it.",
        )


def _check_presence(folder: Path, manifest: Manifest) -> None:
    """All that is needed is listed, all that is listed is there, nothing else is there."""
    for graph in manifest.graphs:
        for relative in (f"{graph}.pt2", f"{graph}.example.npz", f"openvino/{graph}.xml", f"openvino/{graph}.bin"):
            if relative not in manifest.files:
                raise ArtifactError(
                    field=f"{MANIFEST}: files.{relative}",
                    got="nothing",
                    expected="a file and its hash",
                    next_step=_RESTORE,
                )
    found = set()
    for entry in _entries(folder):
        relative = Path(entry.path).relative_to(folder).as_posix()
        # Derived files are written before the manifest lists them; until then nothing reads them.
        if relative != MANIFEST and relative not in manifest.files and not relative.startswith(DERIVED):
            kind = "a symbolic link" if entry.is_symlink() else f"{entry.stat(follow_symlinks=False).st_size} bytes"
            raise ArtifactError(
                field=f"files.{relative}",
                got=kind,
                expected="no file that the manifest does not list",
                next_step="Remove it.",
            )
        found.add(relative)
    for relative in manifest.files:
        if relative not in found:
            raise ArtifactError(field=f"files.{relative}", got="no file", expected="a file", next_step=_RESTORE)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All that is in a folder but real folders, not following links."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path))
            else:
                yield entry


@contextlib.contextmanager
def _opened(folder: Path, relative: str, limit_bytes: int) -> Iterator[io.BufferedReader]:
    """Open a regular file within a folder, following no link, if it is not larger than the limit."""
    path = folder
    field = relative if relative == MANIFEST else f"files.{relative}"
    expected = f"a regular file of at most {limit_bytes} bytes"
    try:
        for part in relative.split("/")[:-1]:
            path /= part
            if path.is_symlink():
                raise ArtifactError(field=field, got="a symbolic link", expected=expected, next_step=_RESTORE)
        descriptor = os.open(folder / relative, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        got = "a symbolic link" if (folder / relative).is_symlink() else error.strerror
        raise ArtifactError(field=field, got=got, expected=expected, next_step=_RESTORE) from error
    with open(descriptor, "rb") as file:  # noqa: PTH123 - from a descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(field=field, got="no regular file", expected=expected, next_step=_RESTORE)
        if status.st_size > limit_bytes:
            raise ArtifactError(field=field, got=f"{status.st_size} bytes", expected=expected, next_step=_RESTORE)
        yield file


def _same_hash(relative: str, got: str, expected: str) -> None:
    if got != expected:
        raise ArtifactError(
            field=f"files.{relative}", got=f"SHA-256 {got[:16]}...", expected=f"{expected[:16]}...", next_step=_RESTORE
        )


def _parquet(artifact: Artifact, relative: str) -> Any:
    content = artifact.read_bytes(relative)
    try:
        return pq.ParquetFile(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(
            field=f"files.{relative}", got=str(error), expected="a Parquet table", next_step=_RESTORE
        ) from error
