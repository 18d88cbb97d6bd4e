"""Which model versions lie on this machine."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve.artifacts import read_artifact, read_champion
from serve.errors import ArtifactError


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
        trouble: what is wrong with its files; empty when nothing is.
    """

    name: str
    version: str
    champion: bool
    created: str = ""
    data_snapshot: str = ""
    metrics: dict[str, Any]
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
    )
