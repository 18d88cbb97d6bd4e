"""Versions of the model `detectors`, as trainings write them."""

from pathlib import Path
from typing import Any

from serve.watchtower.settings import DEFAULTS, MODEL
from training.export import export_artifact
from training.lineage import lineage_of


def settings_version(models: Path, *, name: str = MODEL, **changes: Any) -> str:
    """The version of the defaults with some changes, in the models' folder."""
    settings = DEFAULTS.model_dump() | changes
    made = export_artifact(
        models / MODEL, name=name, graphs={}, tables={}, parameters={"settings": settings}, metrics={},
        data_snapshot="made up", lineage=lineage_of(None, seed=0),
    )  # fmt: skip
    return made.version
