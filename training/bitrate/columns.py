"""Text files of numbers in columns, as traces and title sizes come: read with bounds, refused by file and line."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput, NotFound

MAX_FILE_BYTES: Final = 64 << 20
MAX_FILES: Final = 100_000
MAX_NUMBER: Final = 1e15


def refuse(path: Path, line: int, got: object, expected: str) -> InvalidInput:
    """The error for one line of a file (0: the file as a whole)."""
    place = f"{path}:{line}" if line else str(path)
    return InvalidInput(field=place, got=got, expected=expected, next_step="Correct the file or leave it out.")


def read_text(path: Path) -> str:
    """A text file of at most MAX_FILE_BYTES.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it is larger, or not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise refuse(path, 0, f"{size} bytes", f"at most {MAX_FILE_BYTES} bytes")
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(path, 0, str(error), "UTF-8 text") from None
    except OSError as error:
        raise NotFound(
            field=str(path), got=error.strerror, expected="a readable file", next_step="Check the path."
        ) from None


def read_columns(path: Path, columns: int | None = None) -> tuple[NDArray[np.float64], list[int]]:
    """Numbers in columns separated by blanks or commas; empty lines are left out.

    Args:
        path: the file.
        columns: how many; None: as many as its first line has.

    Returns:
        The numbers, from 0 to MAX_NUMBER (rows, columns), and the line of each row, from 1.

    Raises:
        InvalidInput: with file and line: not such numbers, or another count of them; or a file with none.
        NotFound: there is no such file.
    """
    rows: list[list[float]] = []
    lines: list[int] = []
    for line, text in enumerate(read_text(path).splitlines(), 1):
        if not text.strip():
            continue
        try:
            row = [float(word) for word in text.replace(",", " ").split()]
        except ValueError:
            raise refuse(path, line, text[:80], "numbers separated by blanks") from None
        columns = columns or len(row)
        if len(row) != columns:
            raise refuse(path, line, text[:80], f"{columns} numbers in a line")
        if not all(0 <= number <= MAX_NUMBER for number in row):
            raise refuse(path, line, text[:80], f"numbers from 0 to {MAX_NUMBER:g}")
        rows.append(row)
        lines.append(line)
    if not rows:
        raise refuse(path, 0, "no numbers", "at least one line of numbers")
    return np.array(rows), lines


def list_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The files of a folder that match, hidden ones left out, by name and with numbers in names by value.

    Raises:
        NotFound: no such folder, or none of them.
        InvalidInput: more than MAX_FILES.
    """
    files = [path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith(".")]
    if not files:
        raise NotFound(
            field=str(folder), got="no files", expected=pattern, next_step="Name the folder that holds them."
        )
    if len(files) > MAX_FILES:
        raise refuse(folder, 0, f"{len(files)} files", f"at most {MAX_FILES} files")
    return sorted(files, key=lambda path: _by_number(path.name))


def _by_number(name: str) -> tuple[str, int, str]:
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0), name
