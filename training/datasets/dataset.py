"""A data set on disk: three Parquet tables and dataset.json, which names its content.

A set is a folder: events.parquet, titles.parquet, profiles.parquet, dataset.json. It is written whole or not at all.
"""

import contextlib
import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import polars as pl

from features.events import Event
from features.titles import Title
from serve.errors import InvalidInput, NotFound, PlayheadError
from training.datasets.schema import TABLES, Profile, TableName, conform, polars_schema

DESCRIPTION: Final = "dataset.json"
WEEK_MS: Final = 7 * 24 * 3_600_000
NAME_PATTERN: Final = r"[a-z0-9][a-z0-9._-]{0,63}"


class DatasetError(PlayheadError):
    """A data set on disk that is incomplete or altered."""

    title = "Invalid data set"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set that lies on disk; the tables are read when asked for.

    Attributes:
        path: its folder.
        name: its name, such as ml-100k.
        source: where the content came from.
        snapshot: sha256 over the tables' sha256s; names the content, whatever the set is called.
        files: file name -> sha256.
        rows: table -> number of rows.
        first_ts_ms: oldest event, UTC milliseconds.
        last_ts_ms: newest event, UTC milliseconds.
        shift_ms: what was added to every timestamp of the source; 0 where the times are the source's own.
        created: when it was written, ISO 8601, UTC.
        notes: what was filled in or decided on the way, in words.
    """

    path: Path
    name: str
    source: str
    snapshot: str
    files: Mapping[str, str]
    rows: Mapping[str, int]
    first_ts_ms: int
    last_ts_ms: int
    shift_ms: int
    created: str
    notes: tuple[str, ...] = ()

    def scan(self, table: TableName) -> pl.LazyFrame:
        """A table, read no further than the query on it needs."""
        return pl.scan_parquet(self.path / f"{table}.parquet", hive_partitioning=False)

    def frame(self, table: TableName) -> pl.DataFrame:
        """A whole table."""
        return self.scan(table).collect()

    def events(self) -> Iterator[Event]:
        """All events, oldest first."""
        for batch in self.frame("events").iter_slices(50_000):
            yield from (Event.model_validate(row) for row in batch.iter_rows(named=True))

    def titles(self) -> list[Title]:
        """The catalogue, in stored order."""
        return [Title.model_validate(row) for row in self.frame("titles").iter_rows(named=True)]

    def profiles(self) -> list[Profile]:
        """All profiles that have events or were named, ordered by id."""
        return [Profile.model_validate(row) for row in self.frame("profiles").iter_rows(named=True)]


def weeks_to(newest_ms: int, as_of_ms: int) -> int:
    """The whole number of weeks, in ms, that brings `newest_ms` to at most `as_of_ms` and less than a week before it.

    Whole weeks keep the hour of the day and the day of the week.
    """
    return (as_of_ms - newest_ms) // WEEK_MS * WEEK_MS


def check_name(name: str) -> None:
    """Refuse a name that is not a plain folder name.

    Raises:
        InvalidInput: naming what is allowed.
    """
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise InvalidInput(
            field="name",
            got=name,
            expected="1 to 64 characters of a-z, 0-9, dot, dash and underscore, starting with a letter or digit",
            next_step="Choose another name with --name.",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _snapshot(files: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in sorted(files.items())).encode()).hexdigest()


def open_dataset(path: Path) -> Dataset:
    """Open a data set and verify that each file is there and is the one that was written.

    Args:
        path: its folder.

    Raises:
        NotFound: there is no data set.
        DatasetError: it is incomplete, altered or of another schema.
    """
    again = f"Prepare or import it again: playhead data prepare {path.name}, or playhead data import PATH."
    try:
        text = (path / DESCRIPTION).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            field="dataset", got=str(path), expected=f"a folder with {DESCRIPTION}", next_step=again
        ) from None
    try:
        description = json.loads(text)
        dataset = Dataset(path=path, **{**description, "notes": tuple(description.get("notes", ()))})
        files = {str(name): str(digest) for name, digest in dataset.files.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DatasetError(
            field=DESCRIPTION, got=str(error), expected="the description that was written", next_step=again
        ) from None
    for table in TABLES:
        name = f"{table}.parquet"
        got = _sha256(path / name) if (path / name).is_file() else "no file"
        if got != files.get(name):
            raise DatasetError(
                field=f"{dataset.name}/{name}", got=got, expected=f"sha256 {files.get(name)}", next_step=again
            )
        schema = dict(pl.read_parquet_schema(path / name))
        if schema != polars_schema(table):
            raise DatasetError(
                field=f"{dataset.name}/{name}", got=schema, expected=str(polars_schema(table)), next_step=again
            )
    return dataset


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[Path]:
    """Hold the right to replace `folder/name`, and clean up what a crash before left there; gives a folder to fill."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        target, fresh, stale = folder / name, folder / f".{name}.new", folder / f".{name}.old"
        if stale.exists() and not target.exists():
            stale.rename(target)  # a crash between the two renames below
        for leftover in (fresh, stale):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir()
        try:
            yield fresh
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def write_dataset(
    destination: Path,
    *,
    source: str,
    events: pl.DataFrame,
    titles: pl.DataFrame,
    profiles: pl.DataFrame | None = None,
    shift_ms: int = 0,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Write a data set, whole or not at all, in place of one of the same name.

    Events are stored oldest first, ties in the order given. Profiles that have events but are not given get no region
    and are not kids profiles. Values are taken as they are: training.datasets.importing judges them.

    Args:
        destination: its folder; the last part is its name.
        source: where the content came from.
        events: columns of features.events.Event; at least one row.
        titles: columns of features.titles.Title.
        profiles: columns of training.datasets.schema.Profile.
        shift_ms: what was added to the source's timestamps.
        notes: what was filled in or decided.

    Raises:
        InvalidInput: a name that is no plain folder name, or no events.
    """
    check_name(destination.name)
    if events.is_empty():
        raise InvalidInput(field="events", got=0, expected="at least one event", next_step="Bring some events.")
    events = conform(events, "events").sort("ts", maintain_order=True)
    seen = events.select(pl.col("profile_id").unique())
    given = conform(seen.clear() if profiles is None else profiles, "profiles")
    tables: dict[TableName, pl.DataFrame] = {
        "events": events,
        "titles": conform(titles, "titles"),
        "profiles": pl.concat([given, conform(seen.join(given, on="profile_id", how="anti"), "profiles")]).sort(
            "profile_id"
        ),
    }
    with _alone(destination.parent, destination.name) as fresh:
        for table, frame in tables.items():
            frame.write_parquet(fresh / f"{table}.parquet", compression="zstd", statistics=True)
        files = {f"{table}.parquet": _sha256(fresh / f"{table}.parquet") for table in tables}
        dataset = Dataset(
            path=destination,
            name=destination.name,
            source=source,
            snapshot=_snapshot(files),
            files=files,
            rows={table: frame.height for table, frame in tables.items()},
            first_ts_ms=int(events["ts"][0]),
            last_ts_ms=int(events["ts"][-1]),
            shift_ms=shift_ms,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            notes=notes,
        )
        description = {key: value for key, value in asdict(dataset).items() if key != "path"}
        (fresh / DESCRIPTION).write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        stale = destination.parent / f".{destination.name}.old"
        if destination.exists():
            destination.rename(stale)
        fresh.rename(destination)
        shutil.rmtree(stale, ignore_errors=True)
    return dataset


def interactions(dataset: Dataset) -> pl.DataFrame:
    """Who watched what, in order: the input of leave-one-out evaluation.

    Returns:
        Columns user (String), item (String), ts (Int64, UTC ms): the first play of each title by each profile, oldest
        first, ties in stored order.
    """
    return (
        dataset.scan("events")
        .filter(pl.col("kind") == "play")
        .select(user="profile_id", item="title_id", ts="ts")
        .unique(subset=["user", "item"], keep="first", maintain_order=True)
        .collect()
    )
