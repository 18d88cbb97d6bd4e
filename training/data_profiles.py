"""A data set in numbers, kept for the run after: PLAYHEAD_HOME/checks/MODEL.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import polars as pl

from features.settings import Settings
from serve.artifacts import replace_file
from training.datasets.dataset import Dataset
from training.datasets.schema import TableName, polars_schema

_FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class DataProfile:
    """A data set in numbers, for the run after.

    Attributes:
        dataset: its name.
        snapshot: names its content.
        events: how many.
        titles: how many.
        profiles: how many.
        first_ts_ms: oldest event, UTC milliseconds.
        last_ts_ms: newest event, UTC milliseconds.
        kinds: kind -> share of all events, 0 to 1.
        recent_kinds: the same of the newest tenth.
    """

    dataset: str
    snapshot: str
    events: int
    titles: int
    profiles: int
    first_ts_ms: int
    last_ts_ms: int
    kinds: Mapping[str, float] = field(default_factory=dict)
    recent_kinds: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The reverse of `as_json`.

        Raises:
            ValueError: it is something else, or of another format.
        """
        fields = dict(document) if isinstance(document, Mapping) else {}
        if fields.pop("format", None) != _FORMAT:
            raise ValueError(f"no profile of format {_FORMAT}")
        try:
            profile = cls(**fields)
            counts = (profile.events, profile.titles, profile.profiles, profile.first_ts_ms, profile.last_ts_ms)
            numbers = (*profile.kinds.values(), *profile.recent_kinds.values(), *counts)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"no profile: {error}") from error
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("no profile: a number is none")
        if [type(profile.dataset), type(profile.snapshot)] != [str, str]:
            raise ValueError("no profile: a name is none")
        return profile


def profile_of(dataset: Dataset, frames: Mapping[TableName, pl.DataFrame]) -> DataProfile:
    """A data set in numbers.

    Args:
        dataset: which.
        frames: those of its tables that can be read.
    """
    events = frames.get("events", pl.DataFrame(schema=polars_schema("events"))).sort("ts")
    span = events.select(first=pl.col("ts").min(), last=pl.col("ts").max()).row(0)
    return DataProfile(
        dataset=dataset.name,
        snapshot=dataset.snapshot,
        events=events.height,
        titles=frames["titles"].height if "titles" in frames else 0,
        profiles=events["profile_id"].n_unique(),
        first_ts_ms=int(span[0] or 0),
        last_ts_ms=int(span[1] or 0),
        kinds=_shares(events["kind"]),
        recent_kinds=_shares(events.tail(max(events.height // 10, 1))["kind"]),
    )


def profile_path(settings: Settings, model: str) -> Path:
    """Where the profile of what a model learned from lies."""
    return settings.home / "checks" / f"{model}.json"


def read_profile(settings: Settings, model: str) -> DataProfile | None:
    """Profile of what a model learned from last; None where there is none, or none that can be read."""
    try:
        return DataProfile.from_json(json.loads(profile_path(settings, model).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def write_profile(settings: Settings, model: str, profile: DataProfile) -> None:
    """Keep the profile of what a model learned from; for the run after, once this one went well."""
    path = profile_path(settings, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, f"{json.dumps(profile.as_json(), indent=1)}\n".encode())


def _shares(kinds: pl.Series) -> dict[str, float]:
    counts = kinds.drop_nulls().value_counts(sort=True)
    total = max(len(kinds), 1)
    return {str(kind): count / total for kind, count in counts.iter_rows()}
