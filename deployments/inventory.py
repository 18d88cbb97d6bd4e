"""Which model versions lie on this machine."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serve.artifacts import Artifact, read_artifact, read_champion
from serve.errors import ArtifactError, NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One version of one model.

    Attributes:
        name: the model.
        version: its content's hash; the folder's name where the manifest cannot be read.
        champion: whether it answers requests.
        created: ISO 8601, UTC; empty where unknown.
        data_snapshot: names what it was trained on; empty where unknown.
        metrics: what evaluation measured.
        lineage: where it comes from; empty where unknown.
        trouble: what is wrong with its files; empty when nothing is.
    """

    name: str
    version: str
    champion: bool
    created: str = ""
    data_snapshot: str = ""
    metrics: dict[str, Any]
    lineage: dict[str, Any] = field(default_factory=dict)
    trouble: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def model_versions(models: Path) -> list[ModelVersion]:
    """All versions, checked file by file, newest first within a model.

    Args:
        models: folder of model artifacts.
    """
    found = []
    for folder in sorted(path for path in models.glob("[!.]*") if path.is_dir()):
        try:
            champion = read_champion(models, folder.name)
        except ArtifactError:
            champion = None
        versions = [_version(path, champion) for path in folder.glob("[!.]*") if path.is_dir()]
        found += sorted(versions, key=lambda entry: entry.created, reverse=True)
    return found


def find_version(models: Path, name: str, version: str = "") -> Artifact:
    """A version of a model, checked; the champion where none is named.

    Args:
        models: folder of model artifacts.
        name: the model.
        version: 12 hex digits; empty: the champion.

    Raises:
        NotFound: if there is no such model or version.
        ArtifactError: if its files are damaged.
    """
    known = re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name) is not None
    if known and re.fullmatch(r"[0-9a-f]{12}", version) and (models / name / version).is_dir():
        return read_artifact(models / name / version)
    champion = read_champion(models, name) if known and not version else None
    if champion is not None:
        return read_artifact(champion)
    raise NotFound(
        field="version" if version else "model",
        got=version or name,
        expected=f"a version of {name} that is on this machine" if version else "a model that has a champion",
        next_step="playhead models lists them; playhead train makes one.",
    )


def other_versions(models: Path, artifact: Artifact) -> list[Artifact]:
    """The other versions of an artifact's model that are not damaged, newest first.

    Args:
        models: folder of model artifacts.
        artifact: one version.
    """
    folder = artifact.path.parent.name
    return [
        read_artifact(models / folder / entry.version)
        for entry in model_versions(models)
        if entry.name == folder and entry.version != artifact.version and not entry.trouble
    ]


def _version(path: Path, champion: Path | None) -> ModelVersion:
    name, live = path.parent.name, path == champion
    try:
        manifest = read_artifact(path).manifest
    except ArtifactError as error:
        return ModelVersion(name=name, version=path.name, champion=live, metrics={}, trouble=str(error))
    return ModelVersion(
        name=name,
        version=manifest.version,
        champion=live,
        created=manifest.created.isoformat(timespec="seconds"),
        data_snapshot=manifest.data_snapshot,
        metrics=dict(manifest.metrics),
        lineage={} if manifest.lineage is None else manifest.lineage.model_dump(mode="json"),
    )
