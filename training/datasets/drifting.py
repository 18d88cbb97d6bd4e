"""Event features of one log against another's, as a report to look at; Evidently, of the extra `reports`, makes it.

The report is one HTML file that asks for nothing outside itself. Evidently's telemetry is off: it goes by an
environment variable, which is set before the import.
"""

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from features.settings import Settings
from features.titles import Title
from serve.artifacts import read_artifact
from serve.errors import InvalidInput, NotFound, Unavailable
from serve.rollout.standing import find_champion
from training.datasets.dataset import DESCRIPTION, Dataset, open_dataset
from training.recommend.reference import plays_of

if TYPE_CHECKING:
    import pandas as pd

MODEL: Final = "recommend"
MOST_PLAYS: Final = 50_000
"""The newest plays of each log that are compared."""

LEAST_PLAYS: Final = 100

NUMBERS: Final = ("visits", "gap_h", "hour", "weekday", "plays_of_title", "rank")
NAMES: Final = ("genre", "device", "region")
METHOD: Final = "psi"


def drift_report(reference: pl.DataFrame, current: pl.DataFrame, titles: Sequence[Title], out: Path) -> dict[str, Any]:
    """Write how the newest plays of one log differ from those of another.

    Args:
        reference: events that the others are held against.
        current: the others; columns of features.events.Event each.
        titles: the catalogue: whose genres are known.
        out: the HTML file.

    Returns:
        `features`: name -> population stability index; `drifted`: names at or above 0.1, Evidently's bound; `reference`
        and `current`: how many plays were compared.

    Raises:
        InvalidInput: a log has too few plays.
        Unavailable: Evidently is not installed.
    """
    evidently, preset = _import()
    popularity = reference.filter(pl.col("kind").cast(pl.String) == "play")["title_id"].value_counts()
    before, after = (_features(frame, titles, popularity) for frame in (reference, current))
    for name, frame in (("reference", before), ("current", after)):
        if frame.height < LEAST_PLAYS:
            raise InvalidInput(
                field=name, got=f"{frame.height} plays", expected=f"at least {LEAST_PLAYS}",
                next_step="Compare logs that hold more.",
            )  # fmt: skip
    told = [name for name in before.columns if not any(f[name].null_count() == f.height for f in (before, after))]
    numbers, names = ([name for name in group if name in told] for group in (NUMBERS, NAMES))
    definition = evidently.DataDefinition(numerical_columns=numbers, categorical_columns=names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of pandas and numpy
        old, new = (
            evidently.Dataset.from_pandas(_pandas(frame.select(numbers + names)), definition)
            for frame in (before, after)
        )
        found = evidently.Report([preset(method=METHOD)]).run(new, old)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(found.get_html_str(as_iframe=False), encoding="utf-8")
        metrics = found.dict()["metrics"]
    indices = {
        one["config"]["column"]: float(one["value"]) for one in metrics if one["config"]["type"].endswith("ValueDrift")
    }
    drifted = sorted(name for name, index in indices.items() if index >= 0.1)
    return {"features": indices, "drifted": drifted, "reference": before.height, "current": after.height}


def learned_from(settings: Settings) -> Dataset:
    """The data set that the recommender's champion learned from.

    Raises:
        NotFound: there is no champion, or its data set is not here any more.
        ArtifactError: the champion is damaged.
    """
    champion = find_champion(settings, MODEL)
    manifest = None if champion is None else read_artifact(settings.models / MODEL / champion).manifest
    snapshot = (
        "" if manifest is None else manifest.data_snapshot.partition("<")[0]
    )  # what follows says where it was cut
    for description in sorted(settings.datasets.glob(f"*/{DESCRIPTION}")):
        if snapshot and json.loads(description.read_text(encoding="utf-8")).get("snapshot") == snapshot:
            return open_dataset(description.parent)
    raise NotFound(
        field="reference", got=snapshot[:12] or "no champion", expected="the data set that the champion learned from",
        next_step="Name one with --reference.",
    )  # fmt: skip


def _import() -> tuple[Any, Any]:
    os.environ["DO_NOT_TRACK"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it reaches into numpy's private parts
            import evidently  # noqa: PLC0415
            from evidently.presets import DataDriftPreset  # noqa: PLC0415
    except ImportError as error:
        raise Unavailable(
            field="evidently", got=str(error), expected="the extra `reports`",
            next_step="Install it: pip install 'playhead[reports]', with -c constraints.txt.",
        ) from error  # fmt: skip
    return evidently, DataDriftPreset


def _features(events: pl.DataFrame, titles: Sequence[Title], popularity: pl.DataFrame) -> pl.DataFrame:
    """NUMBERS and NAMES of the newest plays; null where an event does not tell."""
    genre = [one.genres[0] if one.genres else None for one in titles]
    genres = pl.DataFrame(
        {"title_id": [one.title_id for one in titles], "genre": genre},
        schema={"title_id": pl.String, "genre": pl.String},
    ).unique("title_id", keep="first", maintain_order=True)
    moment = pl.from_epoch("ts", time_unit="ms")
    plays = plays_of(events).tail(MOST_PLAYS)
    plays = plays.with_columns(
        pl.lit(None, dtype=kind).alias(name)
        for name, kind in (("device", pl.String), ("region", pl.String), ("rank", pl.Int64))
        if name not in plays.columns
    )
    return (
        plays.join(genres, on="title_id", how="left", maintain_order="left")
        .join(popularity.rename({"count": "plays_of_title"}), on="title_id", how="left", maintain_order="left")
        .select(
            "visits", (pl.col("gap_s") / 3600).alias("gap_h"), moment.dt.hour().cast(pl.Int64).alias("hour"),
            moment.dt.weekday().cast(pl.Int64).alias("weekday"),
            pl.col("plays_of_title").cast(pl.Int64).fill_null(0), pl.col("rank").cast(pl.Int64), *NAMES,
        )
    )  # fmt: skip


def _pandas(frame: pl.DataFrame) -> "pd.DataFrame":
    import pandas as pd  # noqa: PLC0415

    return pd.DataFrame({name: frame[name].to_list() for name in frame.columns})
