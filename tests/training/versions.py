"""Versions of one small model, which differ by a mark, for tests of what keeps and moves versions."""

from pathlib import Path

from features.settings import Settings
from serve.artifacts import Artifact
from tests.contracts.small_model import resealed_artifact
from training.lineage import lineage_of


def settings_of(home: Path, redis_url: str = "redis://127.0.0.1:1/0") -> Settings:
    return Settings(home=home, redis_url=redis_url, feast_registry="")


def variant(artifact: Artifact, folder: Path, mark: int) -> Artifact:
    """Another version of the same model, with a lineage of its own."""
    lineage = lineage_of(None, seed=mark, parent=artifact.version)

    def change(_path: Path, manifest: object) -> object:
        return artifact.manifest.model_copy(
            update={"parameters": {**artifact.manifest.parameters, "mark": mark}, "lineage": lineage}
        )

    return resealed_artifact(artifact, folder, change)
