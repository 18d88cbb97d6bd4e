"""What differs between two versions of a model: lineage, parameters, metrics, graphs, files, vocabulary."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from deployments.overview import Version
from features.settings import Settings
from serve.artifacts import Artifact, read_artifact, read_table
from serve.errors import InvalidInput
from training.registry import Registry
from training.tracking import flat

_VOCABULARY: Final = "vocabulary"
_TITLES_NAMED: Final = 20
_OWN: Final = ("created", "git_commit", "data_snapshot", "feature_service")


def compare(settings: Settings, first: Version, second: Version) -> dict[str, Any]:
    """Compare two versions of one model, file by file; one that is not on this machine is fetched for the purpose.

    Args:
        settings: where models and the registry are.
        first: the one.
        second: the other.

    Returns:
        `model`, `first`, `second` (versions); `manifest`, `lineage`, `parameters`, `metrics`: name -> {first, second}
        of what differs, metrics with `difference`; `graphs` and `files`: {added, removed, changed}; `vocabulary`:
        {first, second (sizes), added, removed (counts), added_titles, removed_titles (the first twenty)}, or None.

    Raises:
        InvalidInput: they are of two models.
        ArtifactError: the files of one are damaged.
        Unavailable: one is only in the registry, which does not answer.
    """
    if first.name != second.name:
        raise InvalidInput(
            field="versions",
            got=f"{first.name} {first.version} and {second.name} {second.version}",
            expected="two versions of one model",
            next_step="Name the model: playhead models diff MODEL A B.",
        )
    with tempfile.TemporaryDirectory(prefix="playhead-diff-") as folder:
        one, other = (_read(settings, version, Path(folder)) for version in (first, second))
        return {"model": first.name, "first": first.version, "second": second.version, **_compared(one, other)}


def _read(settings: Settings, version: Version, folder: Path) -> Artifact:
    if version.here:
        return read_artifact(settings.models / version.name / version.version)
    return Registry.of(settings).fetch(version.name, version.version, folder)


def _compared(one: Artifact, other: Artifact) -> dict[str, Any]:
    manifests = [artifact.manifest.model_dump(mode="json") for artifact in (one, other)]
    metrics = _values(*(manifest["metrics"] for manifest in manifests))
    for pair in metrics.values():
        if all(isinstance(value, int | float) for value in pair.values()):
            pair["difference"] = pair["second"] - pair["first"]
    return {
        "manifest": _values(*({name: manifest[name] for name in _OWN} for manifest in manifests)),
        "lineage": _values(*(manifest["lineage"] or {} for manifest in manifests)),
        "parameters": _values(*(manifest["parameters"] for manifest in manifests)),
        "metrics": metrics,
        "graphs": _sets(*(manifest["graphs"] for manifest in manifests)),
        "files": _sets(*(manifest["files"] for manifest in manifests)),
        "vocabulary": _vocabulary(one, other),
    }


def _values(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Leaves that differ; a name that only one has is None in the other."""
    one, other = flat(first), flat(second)
    return {
        name: {"first": one.get(name), "second": other.get(name)}
        for name in dict.fromkeys((*one, *other))
        if one.get(name) != other.get(name)
    }


def _sets(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        "added": sorted(second.keys() - first.keys()),
        "removed": sorted(first.keys() - second.keys()),
        "changed": sorted(name for name in first.keys() & second.keys() if first[name] != second[name]),
    }


def _vocabulary(one: Artifact, other: Artifact) -> dict[str, Any] | None:
    """Titles that the one knows and the other does not; None where either has no vocabulary."""
    titles = []
    for artifact in (one, other):
        if f"{_VOCABULARY}.parquet" not in artifact.manifest.files:
            return None
        table = read_table(artifact, _VOCABULARY)
        if "title_id" not in table.column_names:
            return None
        titles.append({str(title) for title in table["title_id"].to_pylist()})
    first, second = titles
    return {
        "first": len(first),
        "second": len(second),
        "added": len(second - first),
        "removed": len(first - second),
        "added_titles": sorted(second - first)[:_TITLES_NAMED],
        "removed_titles": sorted(first - second)[:_TITLES_NAMED],
    }
