"""A file of titles, checked as an import checks it, to be put beside a data set that is being served."""

import time
from pathlib import Path
from typing import Final

import polars as pl

from features.titles import Title
from serve.errors import InvalidInput
from training.datasets.problems import FILE, ROW, Problem
from training.datasets.reading import read_table
from training.datasets.validation import check_keys, check_values

SUFFIXES: Final = (".parquet", ".csv")


def read_titles(path: Path, *, now_ms: int | None = None) -> tuple[list[Title], list[Problem]]:
    """The titles of a file, with the columns of titles.parquet (docs/datasets.md).

    Args:
        path: a .parquet or .csv file.
        now_ms: UTC ms; when titles that do not say so entered the catalogue. The clock's time if not given.

    Returns:
        The titles, empty where anything is wrong; and what is wrong.

    Raises:
        InvalidInput: it is no such file.
    """
    if path.suffix not in SUFFIXES or not path.is_file():
        raise InvalidInput(
            field="file", got=str(path), expected="a file that ends in .parquet or .csv", next_step="Name one."
        )
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    frame, problems = read_table(path.parent, [path], "titles")
    if frame is None:
        return [], problems
    problems += check_values(frame, "titles", now_ms)
    frame, _, found = check_keys(frame, "titles")
    problems += found
    if problems:
        return [], problems
    if "added_ts" not in frame.columns:
        frame = frame.with_columns(added_ts=pl.lit(0, pl.Int64))
    frame = frame.drop(FILE, ROW).with_columns(pl.col("added_ts").fill_null(0).replace({0: now_ms}))
    rows = ({name: value for name, value in row.items() if value is not None} for row in frame.iter_rows(named=True))
    return [Title.model_validate(row) for row in rows], []
