"""Reads brought tables, Parquet or CSV, one file or a folder of partitions, into typed columns.

Every row keeps its file and its row number, so that whatever is found wrong later can be pointed at. In CSV a list is
written with `|` between its parts, truth as true or false, and an empty cell stands for null or, in a column that has a
default, for the default.
"""

import csv
import difflib
import io
from pathlib import Path

import polars as pl

from training.datasets.problems import FILE, ROW, ROWS_NAMED, Problem, at_rows
from training.datasets.schema import Column, TableName, columns

_CAST_HINTS = {
    pl.String(): "pl.String",
    pl.Int64(): "pl.Int64",
    pl.Float64(): "pl.Float64",
    pl.Boolean(): "pl.Boolean",
    pl.List(pl.String()): "pl.List(pl.String)",
}


def find_files(folder: Path, table: TableName, *, required: bool) -> tuple[list[Path], list[Problem]]:
    """The files that make up a table: TABLE.parquet, TABLE.csv, or a folder TABLE.parquet/ or TABLE/ of such parts."""
    wanted = f"{table}.parquet, {table}.csv, or a folder {table}/ of such files"
    forms = [path for path in (folder / f"{table}.parquet", folder / f"{table}.csv", folder / table) if path.exists()]
    if not forms:
        problem = Problem(
            file=table, got="nothing", expected=wanted, next_step="Write the table: docs/datasets.md lists its columns."
        )
        return [], [problem] if required else []
    if len(forms) > 1:
        got = " and ".join(path.name for path in forms)
        return [], [Problem(file=table, got=got, expected=f"one of {wanted}", next_step="Keep one of them.")]
    if forms[0].is_file():
        return forms, []
    parts = sorted(
        path
        for path in forms[0].rglob("*")
        if path.suffix in {".parquet", ".csv"} and path.is_file() and not path.name.startswith((".", "_"))
    )
    if not parts:
        return [], [
            Problem(
                file=forms[0].name,
                got="an empty folder",
                expected="*.parquet or *.csv files in it",
                next_step="Put the partitions there.",
            )
        ]
    return parts, []


def read_table(folder: Path, files: list[Path], table: TableName) -> tuple[pl.DataFrame | None, list[Problem]]:
    """All files of a table as one frame with FILE and ROW, and what is wrong with their form.

    Columns that have a default and were left out are absent, or hold it where only some files left them out.

    Returns:
        The frame, None if any file's form is wrong, and the problems.
    """
    frames: list[pl.DataFrame] = []
    problems: list[Problem] = []
    for file in files:
        frame, found = _read_file(file, str(file.relative_to(folder)), table)
        problems += found
        if frame is not None:
            frames.append(frame)
    if problems:
        return None, problems
    present = {name for frame in frames for name in frame.columns}
    defaults = {column.name: _default(column) for column in columns(table)}
    order = [name for name in defaults if name in present]
    return (
        pl.concat(
            frame.select(FILE, ROW, *(name if name in frame.columns else defaults[name] for name in order))
            for frame in frames
        ),
        [],
    )


def _default(column: Column) -> pl.Expr:
    value = list(column.default) if isinstance(column.default, tuple) else column.default
    return pl.lit(value, dtype=column.dtype).alias(column.name)


def _read_file(file: Path, label: str, table: TableName) -> tuple[pl.DataFrame | None, list[Problem]]:
    try:
        if file.suffix == ".csv":
            broken = _csv_form(file, label)
            if broken:
                return None, [broken]
            frame = pl.read_csv(file, infer_schema=False)
        else:
            frame = pl.read_parquet(file, hive_partitioning=False, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        form = "CSV" if file.suffix == ".csv" else "Parquet"
        return None, [
            Problem(
                file=label,
                got=str(error).split("\n")[0][:160],
                expected=f"a readable {form} file",
                next_step="Write the file again; it may be cut off or of another format.",
            )
        ]
    problems = _names(frame.columns, label, table)
    if problems:
        return None, problems
    frame = frame.with_row_index(ROW, offset=1).with_columns(pl.lit(label).alias(FILE))
    for column in columns(table):
        if column.name not in frame.columns:
            continue
        typed, found = _typed(frame, column, label, from_text=file.suffix == ".csv")
        problems += found
        frame = frame.with_columns(typed) if typed is not None else frame.drop(column.name)
    return (None, problems) if problems else (frame.with_columns(pl.col(ROW).cast(pl.Int64)), [])


def _csv_form(file: Path, label: str) -> Problem | None:
    """What breaks a CSV file before its values can be judged: encoding, ragged rows, repeated names."""
    content = file.read_bytes()
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = next(reader, [])
        ragged = [(row, len(cells)) for row, cells in enumerate(reader, 1) if len(cells) != len(header) and cells]
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start)  # the header is line 0
        return Problem(
            file=label,
            rows=(row,) if row else (),
            count=1 if row else 0,
            got=repr(content[error.start : error.start + 4]),
            expected="UTF-8 text",
            next_step="Save the file as UTF-8.",
        )
    except csv.Error as error:
        return Problem(
            file=label, got=str(error), expected="comma-separated values", next_step="Quote cells as in RFC 4180."
        )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        return Problem(
            file=label,
            column=repeated[0],
            got="the column twice",
            expected="it once",
            next_step="Rename or remove one.",
        )
    if ragged:
        return Problem(
            file=label,
            rows=tuple(row for row, _ in ragged[:ROWS_NAMED]),
            count=len(ragged),
            got=f"{ragged[0][1]} cells",
            expected=f"{len(header)} cells, as in the first line",
            next_step="Quote cells that hold a comma.",
        )
    return None


def _names(got: list[str], label: str, table: TableName) -> list[Problem]:
    known = {column.name: column for column in columns(table)}
    extra = [name for name in got if name not in known]
    missing = [name for name, column in known.items() if column.required and name not in got]
    problems = [
        Problem(
            file=label,
            column=name,
            got="no such column",
            expected=f"the column {name}, {known[name].expected}",
            next_step=f"Add it. Found: {', '.join(got)}.",
        )
        for name in missing
    ]
    for name in extra:
        likely = difflib.get_close_matches(name, [other for other in known if other not in got], n=1)
        problems.append(
            Problem(
                file=label,
                column=name,
                got="a column that is not known",
                expected="only " + ", ".join(known),
                next_step=f"Rename it to {likely[0]}." if likely else "Remove it.",
            )
        )
    return problems


def _typed(frame: pl.DataFrame, column: Column, label: str, *, from_text: bool) -> tuple[pl.Expr | None, list[Problem]]:
    """The column in its stored type, and the rows whose value cannot be so written."""
    raw = pl.col(column.name)
    got = frame.schema[column.name]
    if from_text:
        typed = _from_text(raw, column)
    elif _lossless(got, column.dtype):
        typed = raw.cast(column.dtype, strict=False)
    else:
        hint = _CAST_HINTS[column.dtype]
        if got.is_temporal():
            hint = f'use pl.col("{column.name}").dt.epoch("ms")'
        elif isinstance(column.dtype, pl.List):
            hint = "give a list of strings"
        else:
            hint = f'cast it: pl.col("{column.name}").cast({hint})'
        problem = Problem(
            file=label,
            column=column.name,
            got=f"type {got}",
            expected=f"type {column.dtype} ({column.expected})",
            next_step=f"When writing the file, {hint}.",
        )
        return None, [problem]
    lost = frame.filter(raw.is_not_null() & typed.is_null())
    problems = at_rows(
        lost, shown=raw, column=column.name, expected=column.expected, next_step="Correct the value in these rows."
    )
    if problems:
        return None, problems
    if from_text and column.default is not None:
        typed = typed.fill_null(_default(column))
    return typed.alias(column.name), []


def _lossless(got: pl.DataType, wanted: pl.DataType) -> bool:
    """Whether every value of one type has a place in the other; numbers are never taken for names."""
    text = (pl.String, pl.Categorical, pl.Enum)
    if isinstance(wanted, pl.List):
        return isinstance(got, pl.List | pl.Array) and got.inner in (*text, pl.Null)
    if got == pl.Null:
        return True
    if wanted == pl.String:
        return got in text
    if wanted == pl.Int64:
        return got.is_integer()
    if wanted == pl.Float64:
        return got.is_float() or got.is_integer()
    return got == wanted


def _from_text(raw: pl.Expr, column: Column) -> pl.Expr:
    if isinstance(column.dtype, pl.List):
        return pl.when(raw == "").then(pl.lit([], dtype=column.dtype)).otherwise(raw.str.split("|"))
    if column.dtype == pl.Boolean:
        text = raw.str.to_lowercase()
        return (
            pl.when(text.is_in(["true", "1"]))
            .then(statement=True)
            .when(text.is_in(["false", "0"]))
            .then(statement=False)
        )
    return raw.cast(column.dtype, strict=False)
