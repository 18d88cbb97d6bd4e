"""Brings a company's own events and catalogue in: all is checked first, and nothing is written unless all is right."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from training.datasets.dataset import Dataset, write_dataset
from training.datasets.preparation import refuse_built_in
from training.datasets.problems import FILE, ROW, Problem
from training.datasets.reading import find_files, read_table
from training.datasets.schema import TABLES, TableName, columns
from training.datasets.validation import check_keys, check_titles_known, check_values

if TYPE_CHECKING:
    import polars as pl

_OPTIONAL: Final[tuple[TableName, ...]] = ("profiles",)


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What an import found and did.

    Attributes:
        name: the data set's name.
        problems: what is wrong; empty if and only if the set was written.
        rows: table -> rows that were read.
        duplicates: how many events came again with the same content and were dropped.
        filled: columns that were left out and got their default, as table.column.
        dataset: what was written.
    """

    name: str
    problems: tuple[Problem, ...]
    rows: dict[TableName, int]
    duplicates: int
    filled: tuple[str, ...]
    dataset: Dataset | None

    @property
    def ok(self) -> bool:
        """Whether the data was right and is in place."""
        return self.dataset is not None


def import_dataset(path: Path, destination: Path, name: str, *, now_ms: int | None = None) -> ImportReport:
    """Check a folder with events, titles and optionally profiles, and write it as a data set.

    Each table is TABLE.parquet, TABLE.csv, or a folder of such partitions; docs/datasets.md lists the columns.

    Args:
        path: the brought folder; it is only read.
        destination: the folder that holds the data sets.
        name: the new set's name; a set of the same name is replaced.
        now_ms: UTC ms; events later than an hour after it are refused. The clock's time if not given.

    Raises:
        InvalidInput: the name is no plain folder name or is one of Playhead's own sets. What is wrong with the data
            is not raised but reported.
    """
    refuse_built_in(name)
    if now_ms is None:
        now_ms = time.time_ns() // 1_000_000
    problems: list[Problem] = []
    frames: dict[TableName, pl.DataFrame] = {}
    rows: dict[TableName, int] = {}
    duplicates = 0
    if not path.is_dir():
        problems.append(
            Problem(
                file=str(path),
                got="a file" if path.exists() else "nothing",
                expected="a folder with events and titles",
                next_step="Name the folder that holds events.parquet and titles.parquet.",
            )
        )
    else:
        for table in TABLES:
            files, found = find_files(path, table, required=table not in _OPTIONAL)
            problems += found
            if not files:
                continue
            frame, found = read_table(path, files, table)
            problems += found
            if frame is None:
                continue
            rows[table] = frame.height
            problems += check_values(frame, table, now_ms)
            frames[table], dropped, found = check_keys(frame, table)
            duplicates += dropped if table == "events" else 0
            problems += found
        if "events" in frames and "titles" in frames:
            problems += check_titles_known(frames["events"], frames["titles"])
    filled = tuple(
        f"{table}.{column.name}"
        for table, frame in frames.items()
        for column in columns(table)
        if column.name not in frame.columns
    )
    dataset = None
    if not problems:
        brought = {table: frame.drop(FILE, ROW) for table, frame in frames.items()}
        dataset = write_dataset(
            destination / name,
            source=f"imported from {path.resolve()}",
            events=brought["events"],
            titles=brought["titles"],
            profiles=brought.get("profiles"),
            notes=(
                *((f"{duplicates} repeated events were dropped.",) if duplicates else ()),
                *(("Left out and filled with their defaults: " + ", ".join(filled) + ".",) if filled else ()),
            ),
        )
    return ImportReport(
        name=name, problems=tuple(problems), rows=rows, duplicates=duplicates, filled=filled, dataset=dataset
    )
