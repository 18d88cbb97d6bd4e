"""Runs, and the registry of model versions with its aliases: MLflow, embedded in SQLite or on a server.

MLFLOW_TRACKING_URI names the server (MLFLOW_REGISTRY_URI another one for the registry); without it both are
HOME/mlflow/mlflow.db, with artifacts in HOME/mlflow/artifacts. An experiment, and a registered model, is called as the
model is. A version of ours is a folder named by its content; the registry numbers it besides, and keeps the hash as the
tag `playhead.version`. What comes back from a registry is checked like any artifact before it lies in a models' folder.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Self

from features.settings import Settings
from serve.artifacts import MANIFEST, Artifact, read_artifact, sync_folder
from serve.errors import ArtifactError, InvalidInput, NotFound
from training.runs import PROCESS_TAG, Run, begin, end, end_lost, send_metrics, this_process
from training.tracking import Tracking, already, flat, metric_name, pages, shown

Alias = Literal["champion", "challenger", "previous"]
ALIASES: Final[tuple[Alias, ...]] = ("champion", "challenger", "previous")

VERSION_TAG: Final = "playhead.version"
LINEAGE_TAG: Final = "playhead.lineage"
METRICS_TAG: Final = "playhead.metrics"

_PAGE: Final = 200
_FETCHING: Final = ".fetch-"
_LEFT_S: Final = 6 * 3600.0
_MOST_FILES: Final = 2048
_MOST_BYTES: Final = 16 << 30
_MOST_TAG: Final = 60_000  # characters
_MODEL: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_VERSION: Final = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A version that the registry knows.

    Attributes:
        model: the model.
        version: the artifact's, 12 hex digits.
        number: the registry's own count.
        run: id of the run that made it.
        source: where its files are.
        created_ms: when it was registered, UTC milliseconds.
        aliases: what it is, of ALIASES and others that people set.
        tags: what is told of it: `playhead.version`, `playhead.lineage` and `playhead.metrics` (JSON) and others.
    """

    model: str
    version: str
    number: int
    run: str
    source: str
    created_ms: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    def document(self, tag: str) -> dict[str, Any]:
        """What a tag holds as JSON; empty where it holds none."""
        try:
            found = json.loads(self.tags.get(tag, "{}"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class Registry:
    """Runs and versions. No call is made, and MLflow is not imported, before the first that needs it.

    Args:
        uri: of runs: http(s)://, a database's URL, or sqlite:///PATH.
        registry_uri: of versions; None: the same.
        artifacts: where an embedded registry puts files; None: where the server says.
    """

    def __init__(self, uri: str, *, registry_uri: str | None = None, artifacts: Path | None = None) -> None:
        self._tracking = Tracking(uri, registry_uri)
        self._artifacts = artifacts
        self._experiments: dict[str, str] = {}

    @classmethod
    def of(cls, settings: Settings, env: Mapping[str, str] = os.environ) -> Self:
        """The registry of the environment, or else the embedded one of the home folder."""
        uri = env.get("MLFLOW_TRACKING_URI", "")
        if uri:
            return cls(uri, registry_uri=env.get("MLFLOW_REGISTRY_URI"))
        folder = settings.home / "mlflow"
        return cls(f"sqlite:///{folder / 'mlflow.db'}", artifacts=folder / "artifacts")

    @property
    def address(self) -> str:
        """Where it is, without a password."""
        return shown(self._tracking.registry_uri)

    @property
    def empty(self) -> bool:
        """Whether it is embedded and nobody has used it yet: so there is nothing to ask MLflow for."""
        database = self._tracking.database
        return database is not None and not database.exists()

    @contextlib.contextmanager
    def run(
        self, model: str, *, parameters: Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None
    ) -> Iterator[Run]:
        """A tracked run: finished at the end of the block, failed where the block raises.

        Runs of the model that processes of this machine left running when they were killed are told to be so first.

        Args:
            model: names the experiment.
            parameters: JSON values, nested ones as `a.b`.
            tags: anything else that is told of it.

        Raises:
            InvalidInput: no model's name.
            Unavailable: the registry does not answer when the run begins. Later it is waited for, see Run.
        """
        _check_model(model)
        experiment_id = self._tracking.ask(lambda client: self._experiment(client, model))
        self._tracking.ask(lambda client: end_lost(client, experiment_id))
        run_id = begin(self._tracking, experiment_id, parameters or {}, {**(tags or {}), PROCESS_TAG: this_process()})
        run = Run(self._tracking, model, run_id)
        try:
            yield run
        except BaseException as error:
            run.flush()
            end(self._tracking, run_id, error)
            raise
        run.flush()
        end(self._tracking, run_id, None)

    def register(self, artifact: Artifact, run_id: str) -> Registered:
        """Make a version known and keep its files; one that is known already is left as it is.

        Args:
            artifact: the version, whose folder is checked again.
            run_id: of the run that made it.

        Raises:
            ArtifactError: its files are damaged.
            Unavailable: the registry does not answer; call again.
        """
        model, version = artifact.manifest.name, artifact.version
        known = self.find(model, version)
        if known is not None:
            return known
        with tempfile.TemporaryDirectory(prefix="playhead-register-") as folder:
            # a copy, because engines may be added to the original while it is sent
            staged = read_artifact(shutil.copytree(artifact.path, Path(folder) / version))
            self._tracking.ask(lambda client: client.log_artifacts(run_id, str(staged.path), version))
        number = self._tracking.ask(lambda client: self._create(client, artifact, run_id))
        twins = [found for found in self.versions(model) if found.version == version]
        first = min(twins, key=lambda found: found.number)
        if first.number != number:  # another process registered it meanwhile
            self._tracking.ask(lambda client: client.delete_model_version(model, str(number)))
        return first

    def find(self, model: str, version: str) -> Registered | None:
        """A version that is known, or None.

        Raises:
            Unavailable: the registry does not answer.
        """
        return next((found for found in self.versions(model) if found.version == version), None)

    def versions(self, model: str | None = None) -> list[Registered]:
        """All known versions, newest first within a model; versions that are not Playhead's are left out.

        Args:
            model: of one model; None: of all.

        Raises:
            InvalidInput: no model's name.
            Unavailable: the registry does not answer.
        """
        if model is not None:
            _check_model(model)
        if self.empty:
            return []
        return self._tracking.ask(lambda client: _list(client, model))

    def aliases(self, model: str) -> dict[str, str]:
        """Alias -> version, of one model.

        Raises:
            Unavailable: the registry does not answer.
        """
        return {alias: found.version for found in self.versions(model) for alias in found.aliases}

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        """Say which version an alias names; None: none.

        Raises:
            NotFound: the registry does not know that version.
            Unavailable: the registry does not answer.
        """
        if alias not in ALIASES:
            raise InvalidInput(
                field="alias", got=alias, expected="one of " + ", ".join(ALIASES), next_step="Correct the alias."
            )
        if version is None:
            if alias in self.aliases(model):
                self._tracking.ask(lambda client: client.delete_registered_model_alias(model, alias))
            return
        found = self._known(model, version)
        self._tracking.ask(lambda client: client.set_registered_model_alias(model, alias, str(found.number)))

    def fetch(self, model: str, version: str, models: Path) -> Artifact:
        """Bring a version into a models' folder, whole and checked or not at all; one that lies there is only checked.

        Args:
            model: the model.
            version: 12 hex digits.
            models: folder of model artifacts.

        Raises:
            NotFound: the registry does not know that version.
            ArtifactError: the registry's copy, or the one that lies there, is incomplete or altered.
            Unavailable: the registry does not answer.
        """
        _check_model(model)
        target = models / model / version
        if _VERSION.fullmatch(version) and target.is_dir():
            return read_artifact(target)
        found = self._known(model, version)
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target.parent)
        with tempfile.TemporaryDirectory(prefix=_FETCHING, dir=target.parent) as folder:
            self._tracking.ask(lambda client: _download(client, found, Path(folder)))
            try:
                fetched = read_artifact(Path(folder) / version)
            except ArtifactError as error:
                raise _corrupt(found, f"{error.field}: {error.got}", error.expected) from error
            if fetched.manifest.name != model:
                raise _corrupt(found, f"a version of {fetched.manifest.name}", f"a version of {model}")
            for path in (*fetched.path.rglob("*"), fetched.path):
                _sync(path)
            try:
                fetched.path.rename(target)
            except OSError:
                if not target.is_dir():  # another process was faster
                    raise
        sync_folder(target.parent)
        return read_artifact(target)

    def forget(self, model: str, version: str) -> None:
        """Remove a version and its files; what the registry does not know is removed already. Its run stays.

        Raises:
            InvalidInput: an alias names it.
            Unavailable: the registry does not answer; call again.
        """
        for found in [one for one in self.versions(model) if one.version == version]:
            if found.aliases:
                raise InvalidInput(
                    field="version", got=f"{model} {version}, {', '.join(found.aliases)}",
                    expected="a version that no alias names", next_step="Move its alias first.",
                )  # fmt: skip
            self._tracking.ask(partial(_delete, uri=self._tracking.uri, found=found))

    def _known(self, model: str, version: str) -> Registered:
        found = self.find(model, version)
        if found is None:
            raise NotFound(
                field="version",
                got=f"{model} {version}",
                expected=f"a version that the registry {self.address} knows",
                next_step="`playhead models` lists them; register it where it was trained.",
            )
        return found

    def _experiment(self, client: Any, model: str) -> str:
        if model not in self._experiments:
            found = client.get_experiment_by_name(model)
            if found is not None and found.lifecycle_stage != "active":
                client.restore_experiment(found.experiment_id)
            if found is None:
                location = None if self._artifacts is None else (self._artifacts / model).as_uri()
                with already():
                    client.create_experiment(model, artifact_location=location)
                found = client.get_experiment_by_name(model)
            self._experiments[model] = str(found.experiment_id)
        return self._experiments[model]

    def _create(self, client: Any, artifact: Artifact, run_id: str) -> int:
        manifest = artifact.manifest
        with already():
            client.create_registered_model(manifest.name)
        source = f"{client.get_run(run_id).info.artifact_uri.rstrip('/')}/{artifact.version}"
        lineage = manifest.lineage.model_dump(mode="json") if manifest.lineage is not None else {}
        tags = {
            VERSION_TAG: artifact.version,
            LINEAGE_TAG: json.dumps(lineage),
            METRICS_TAG: _limited(manifest.metrics),
            "playhead.created": manifest.created.isoformat(timespec="seconds"),
            "playhead.git_commit": manifest.git_commit,
            "playhead.data_snapshot": manifest.data_snapshot,
            "playhead.feature_service": manifest.feature_service,
            "playhead.dataset": str(lineage.get("dataset", "")),
            "playhead.parent": str(lineage.get("parent", "")),
        }
        given = {name: value for name, value in tags.items() if value}
        made = client.create_model_version(manifest.name, source, run_id=run_id, tags=given, await_creation_for=10)
        measured = {name: value for name, value in flat(manifest.metrics).items() if isinstance(value, int | float)}
        now_ms = time.time_ns() // 1_000_000
        values = [(metric_name(name), float(value), now_ms, 0) for name, value in measured.items()]
        send_metrics(self._tracking, run_id, values[:_PAGE])
        return int(made.version)


def _list(client: Any, model: str | None) -> list[Registered]:
    query = None if model is None else f"name = '{model}'"
    aliases: dict[tuple[str, str], list[str]] = {}
    for known in pages(lambda token: client.search_registered_models(query, max_results=_PAGE, page_token=token)):
        for alias, number in known.aliases.items():
            aliases.setdefault((known.name, str(number)), []).append(alias)
    found = [
        Registered(
            model=entry.name,
            version=entry.tags[VERSION_TAG],
            number=int(entry.version),
            run=entry.run_id or "",
            source=entry.source,
            created_ms=int(entry.creation_timestamp),
            aliases=tuple(sorted(aliases.get((entry.name, str(entry.version)), ()))),
            tags=dict(entry.tags),
        )
        for entry in pages(lambda token: client.search_model_versions(query, max_results=_PAGE, page_token=token))
        if _VERSION.fullmatch(entry.tags.get(VERSION_TAG, "")) and _MODEL.fullmatch(entry.name)
    ]
    return sorted(found, key=lambda entry: (entry.model, -entry.number))


def _download(client: Any, found: Registered, folder: Path) -> None:
    """Copy a version's files to folder/<version>."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    count, size_bytes, listed = 0, 0, [found.version]
    while listed:
        for entry in client.list_artifacts(found.run, listed.pop()):
            if entry.is_dir:
                listed.append(entry.path)
            count, size_bytes = count + 1, size_bytes + (entry.file_size or 0)
        if count > _MOST_FILES or size_bytes > _MOST_BYTES:
            raise _corrupt(found, f"{count} files, {size_bytes} bytes", "a model artifact")
    if not count:
        raise _corrupt(found, "no files", f"a folder with a {MANIFEST}")
    try:
        client.download_artifacts(found.run, found.version, str(folder))
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise _corrupt(found, str(error)[:300], "the files that were registered") from error
        raise


def _delete(client: Any, *, uri: str, found: Registered) -> None:
    """Delete a version: its files first, for without a version nobody would look for them again."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: PLC0415

    try:
        location = client.get_run(found.run).info.artifact_uri if found.run else ""
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        location = ""  # somebody deleted the run for good, and its files with it
    if location:
        artifacts = get_artifact_repository(location, tracking_uri=uri)
        if artifacts.list_artifacts(found.version):
            artifacts.delete_artifacts(found.version)
    client.delete_model_version(found.model, str(found.number))


def _clean(folder: Path) -> None:
    """Remove what fetches that were killed left there."""
    for left in folder.glob(f"{_FETCHING}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_S:
                shutil.rmtree(left)


def _corrupt(found: Registered, got: str, expected: str) -> ArtifactError:
    return ArtifactError(
        field=f"registry: {found.model} {found.version}",
        got=got,
        expected=expected,
        next_step=f"Restore {found.source}, or train the model again. Nothing was put into the models' folder.",
    )


def _check_model(model: str) -> None:
    if not _MODEL.fullmatch(model):
        raise InvalidInput(
            field="model",
            got=model,
            expected="a model's name: a-z, 0-9, dash, underscore",
            next_step="Correct the name.",
        )


def _limited(metrics: Mapping[str, Any]) -> str:
    """Metrics as JSON, its nested parts left out where it were too long for a tag."""
    text = json.dumps(metrics)
    if len(text) > _MOST_TAG:
        text = json.dumps({name: value for name, value in metrics.items() if isinstance(value, int | float | str)})
    return text if len(text) <= _MOST_TAG else "{}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
