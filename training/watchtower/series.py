"""Files of timestamp,value rows."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput

HEADER: Final = ("timestamp", "value")
ROW: Final = "timestamp,value, such as 2015-03-01 00:05:00,17.5 or 1425168300,17.5"


@dataclass(frozen=True, kw_only=True)
class Series:
    """One measured quantity over time.

    Attributes:
        timestamps: as the file writes them.
        times: of dtype datetime64[us], UTC where the file names no zone; shape (rows,). Not always rising.
        times_s: seconds since 1970; shape (rows,).
        values: finite; shape (rows,).
    """

    timestamps: tuple[str, ...]
    times: NDArray[np.datetime64]
    times_s: NDArray[np.float64]
    values: NDArray[np.float64]


def read_series(path: Path) -> Series:
    """A series from a CSV file; the header timestamp,value may be there or not, further columns are an error.

    Timestamps are ISO 8601 (a space for the T will do) or seconds since 1970.

    Raises:
        InvalidInput: no such file, no rows, or a row that can't be read; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            field=str(path), got=str(error), expected="a CSV file of timestamp,value in UTF-8",
            next_step="Name a file that is there and can be read.",
        ) from error  # fmt: skip
    rows = list(_rows(path, text))
    if not rows:
        raise InvalidInput(
            field=str(path), got="no rows", expected=f"rows of {ROW}", next_step="Name a file that has rows."
        )
    times_s = np.array([moment for _, moment, _ in rows])
    return Series(
        timestamps=tuple(stamp for stamp, _, _ in rows),
        times=np.round(times_s * 1e6).astype(np.int64).astype("datetime64[us]"),
        times_s=times_s,
        values=np.array([value for _, _, value in rows]),
    )


def _rows(path: Path, text: str) -> Iterator[tuple[str, float, float]]:
    reader = csv.reader(text.splitlines())
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _refused(path, reader.line_num, str(error), f"two columns: {ROW}") from error
        if cells is None:
            return
        line = reader.line_num
        stripped = [cell.strip() for cell in cells]
        if not any(stripped) or (line == 1 and tuple(cell.lower() for cell in stripped) == HEADER):
            continue
        if len(stripped) != len(HEADER):
            raise _refused(path, line, ",".join(cells), f"two columns: {ROW}")
        moment = _seconds(stripped[0])
        if moment is None:
            raise _refused(path, line, stripped[0], "a timestamp such as 2015-03-01 00:05:00, or seconds since 1970")
        try:
            value = float(stripped[1])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise _refused(path, line, stripped[1], "a finite number as the value")
        yield stripped[0], moment, value


def _seconds(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and abs(seconds) < 1e11 else None


def _refused(path: Path, line: int, got: str, expected: str) -> InvalidInput:
    return InvalidInput(
        field=f"{path}, line {line}", got=got or "nothing", expected=expected, next_step="Correct or remove the line."
    )
