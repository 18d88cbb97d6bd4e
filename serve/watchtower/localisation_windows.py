"""Files of windows: columns timestamp, total, bad and one per dimension; one row per window and leaf."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from serve.errors import InvalidInput, NotFound
from serve.watchtower.localisation_table import BAD, COUNTS, TIMESTAMP, TOTAL, LeafTable, leaf_table

LARGEST_BYTES: Final = 512 * 1024 * 1024
LARGEST_ROWS: Final = 5_000_000
_HISTORY_MINUTES: Final = 60.0
_HISTORY_WINDOWS: Final = 12
_MOMENT: Final = "ISO 8601 such as 2026-01-31T20:15:00Z, or seconds or milliseconds since 1970"
_COLUMNS: Final = "columns timestamp, total, bad and one per dimension"
_MILLISECONDS_FROM: Final = 1e11
"""Seconds since 1970 stay below it until the year 5138."""
_LATEST_MS: Final = 253_402_300_800_000.0
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """A file's rows, checked.

    Attributes:
        frame: `timestamp` (Int64, ms), `total`, `bad` (Float64) and the dimensions (String).
        dimensions: names, in the file's order.
        starts_ms: the windows' timestamps, rising.
        window_ms: the most common spacing of timestamps; 0 where the file has one window only.
    """

    frame: pl.DataFrame
    dimensions: tuple[str, ...]
    starts_ms: tuple[int, ...]
    window_ms: int

    def at(self, moment: str) -> int:
        """The timestamp of the window that a moment names or lies in.

        Raises:
            InvalidInput: the moment can't be read.
            NotFound: no window holds it.
        """
        wanted = parse_moment(moment)
        if wanted is None:
            raise InvalidInput(field="--at", got=moment, expected=_MOMENT, next_step="Correct --at.")
        before = [start for start in self.starts_ms if start <= wanted]
        if not before or wanted >= before[-1] + max(self.window_ms, 1):
            first, last = (tell_moment(self.starts_ms[end]) for end in (0, -1))
            raise NotFound(
                field="--at", got=moment, next_step="Name a moment in the file, or give a file that holds it.",
                expected=f"a window of the file; it goes from {first} to {last}, every {self.window_ms / 1000:g} s",
            )  # fmt: skip
        return before[-1]

    def table(self, at_ms: int, history_minutes: float | None = None) -> LeafTable:
        """Leaves of the window at `at_ms` and of the windows in the minutes before it.

        Args:
            at_ms: timestamp of a window.
            history_minutes: how far back the baseline goes; else an hour, or 12 windows where those are longer.

        Raises:
            InvalidInput: no window in those minutes, or minutes that are not a positive number.
        """
        if history_minutes is None:
            history_minutes = max(_HISTORY_MINUTES, _HISTORY_WINDOWS * self.window_ms / 60_000)
        if not (math.isfinite(history_minutes) and history_minutes > 0):
            raise InvalidInput(
                field="--history", got=f"{history_minutes:g}", expected="minutes, more than 0",
                next_step="Correct --history.",
            )  # fmt: skip
        before = [start for start in self.starts_ms if at_ms - history_minutes * 60_000 <= start < at_ms]
        if not before:
            raise InvalidInput(
                field="--history", got=f"no window in the {history_minutes:g} minutes before {tell_moment(at_ms)}",
                expected="at least one window before the incident's",
                next_step="Give a file that starts earlier, a later --at or a longer --history.",
            )  # fmt: skip
        return leaf_table(self.frame, self.dimensions, at_ms=at_ms, history_ms=math.ceil(history_minutes * 60_000))


def parse_moment(text: str) -> int | None:
    """Milliseconds since 1970 of ISO 8601 (UTC where it names no zone), of seconds or of milliseconds; else None."""
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)
    milliseconds = number if abs(number) >= _MILLISECONDS_FROM else number * 1000.0
    return round(milliseconds) if abs(milliseconds) < _LATEST_MS else None


def tell_moment(moment_ms: int) -> str:
    """ISO 8601 of milliseconds since 1970, in UTC."""
    days, rest = divmod(moment_ms, _DAY_MS)
    text = str(np.datetime64(days, "D")) + "T" + str(np.datetime64(rest, "ms")).split("T")[1]
    return text.removesuffix(".000") + "Z"


def read_windows(path: Path) -> Windows:
    """Read and check a CSV file. Values of dimensions are kept as they are written; a missing one is the empty string.

    Raises:
        NotFound: no such file.
        InvalidInput: too large, no CSV, no rows, a column missing or twice, no dimension, a timestamp or a count that
            can't be read, a count below 0, or `bad` above `total`; names the line.
    """
    raw = _read(path)
    dimensions = tuple(name for name in raw.columns if name not in COUNTS)
    counts = {name: _numbers(raw[name], name, path) for name in (TOTAL, BAD)}
    above = counts[BAD] > counts[TOTAL]
    if above.any():
        line = int(above.arg_max() or 0)
        raise _wrong(
            path, line, BAD, f"bad {counts[BAD][line]:g} of total {counts[TOTAL][line]:g}", "bad of at most total"
        )
    moments = _moments(raw[TIMESTAMP], path)
    frame = pl.DataFrame({TIMESTAMP: moments, **counts, **{name: raw[name].fill_null("") for name in dimensions}})
    starts = np.unique(moments.to_numpy())
    spacing, often = np.unique(np.diff(starts), return_counts=True)
    return Windows(
        frame=frame, dimensions=dimensions, starts_ms=tuple(starts.tolist()),
        window_ms=int(spacing[often.argmax()]) if len(spacing) else 0,
    )  # fmt: skip


def _read(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise NotFound(
            field=str(path), got="no such file", expected=f"a CSV file with {_COLUMNS}", next_step="Correct the path."
        )
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise _unfit(path, f"{size / 2**20:,.0f} MiB", f"at most {LARGEST_BYTES // 2**20} MiB", "Cut the file down.")
    try:
        raw = pl.read_csv(path, infer_schema=False)
    except pl.exceptions.NoDataError as error:
        raise _unfit(path, "an empty file", f"a header and rows: {_COLUMNS}", "Write rows.") from error
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        raise _unfit(path, str(error).split("\n")[0], "CSV in UTF-8", "Write the file anew.") from error
    names = [name.strip() for name in raw.columns]
    missing = [name for name in COUNTS if name not in names]
    if missing:
        raise _unfit(path, f"columns {', '.join(names)}", f"also {', '.join(missing)}", "Add or rename the columns.")
    twice = sorted({name for name in names if names.count(name) > 1 or f"{name}_duplicated_0" in names})
    if twice:
        raise _unfit(path, f"{', '.join(twice)} twice", "each column once", "Rename one of them.")
    if len(names) == len(COUNTS):
        raise _unfit(path, "no dimension", f"{_COLUMNS}", "Add a column whose values may be to blame.")
    if not len(raw):
        raise _unfit(path, "no rows", "a row per window and leaf", "Write rows.")
    if len(raw) > LARGEST_ROWS:
        raise _unfit(path, f"{len(raw):,} rows", f"at most {LARGEST_ROWS:,}", "Leave out windows or leaves.")
    return raw.rename(dict(zip(raw.columns, names, strict=True)))


def _numbers(column: pl.Series, name: str, path: Path) -> pl.Series:
    numbers = column.str.strip_chars().cast(pl.Float64, strict=False)
    bad = numbers.is_null() | ~numbers.is_finite().fill_null(value=False) | (numbers < 0).fill_null(value=False)
    if bad.any():
        line = int(bad.arg_max() or 0)
        raise _wrong(path, line, name, column[line] or "nothing", "a number from 0")
    return numbers


def _moments(column: pl.Series, path: Path) -> pl.Series:
    column = column.fill_null("")
    distinct = column.unique(maintain_order=True)
    moments = [parse_moment(text) for text in distinct.to_list()]
    if None in moments:
        text = distinct[moments.index(None)]
        line = int((column == text).arg_max() or 0)
        raise _wrong(path, line, TIMESTAMP, text or "nothing", _MOMENT)
    return column.replace_strict(distinct, pl.Series(moments, dtype=pl.Int64))


def _wrong(path: Path, row: int, name: str, got: str, expected: str) -> InvalidInput:
    return InvalidInput(
        field=f"{path}, line {row + 2}, {name}", got=got, expected=expected, next_step="Correct that line."
    )


def _unfit(path: Path, got: str, expected: str, next_step: str) -> InvalidInput:
    return InvalidInput(field=str(path), got=got, expected=expected, next_step=next_step)


def describe(windows: Windows, table: LeafTable, at_ms: int) -> dict[str, Any]:
    """What was compared with what, for answers: at, window_s, history_windows, left_out_windows, leaves, dimensions."""
    return {
        "at": tell_moment(at_ms), "window_s": windows.window_ms / 1000.0, "history_windows": table.windows,
        "left_out_windows": table.left_out, "leaves": int(np.count_nonzero(table.total)),
        "rows": len(windows.frame), "dimensions": list(windows.dimensions),
    }  # fmt: skip
