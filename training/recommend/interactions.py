"""Interactions: who took which title when, as flat arrays, from a text file or from watch events.

Shapes: U users, V titles (rows 1 to V; row 0 is padding), I interactions.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput

Ints = NDArray[np.int64]

PLAYED: Final = 1
"""Visit actions of an interaction of which nothing but its being is known (bit of KIND_CODES[PLAY])."""

_MILLISECONDS_FROM: Final = 1e11
"""Timestamps this large can't be seconds (year 5138)."""

_USER_NAMES: Final = frozenset(
    {"user", "user_id", "userid", "uid", "profile", "profile_id", "reviewerid", "session_id"}
)
_ITEM_NAMES: Final = frozenset({"item", "item_id", "itemid", "iid", "title", "title_id", "movie_id", "movieid", "asin"})
_TIME_NAMES: Final = frozenset({"timestamp", "ts", "time", "unixtime", "unixreviewtime"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """Histories of users, each in order of time.

    Attributes:
        source: where they came from, for reports.
        users: U user ids.
        titles: V title ids; the title of row r is titles[r - 1].
        offsets: int64 (U + 1,); user u's interactions are offsets[u] to offsets[u + 1].
        rows: int64 (I,), title rows.
        actions: int64 (I,), visit actions as in features.sequences.
        times: int64 (I,), UTC seconds, not decreasing within a user; all 0 without timestamps.
    """

    source: str
    users: tuple[str, ...]
    titles: tuple[str, ...]
    offsets: Ints
    rows: Ints
    actions: Ints
    times: Ints

    @classmethod
    def build(cls, source: str, triples: Iterable[tuple[str, str, float | None]]) -> Self:
        """Group (user, title, UTC seconds or None) by user; the given order holds where times are equal or missing.

        Titles get rows in order of first appearance.
        """
        users: dict[str, int] = {}
        titles: dict[str, int] = {}
        who, what, when = [], [], []
        for user, title, time_s in triples:
            who.append(users.setdefault(user, len(users)))
            what.append(titles.setdefault(title, len(titles) + 1))
            when.append(0.0 if time_s is None else time_s)
        owner = np.array(who, dtype=np.int64)
        times = np.array(when, dtype=np.float64).astype(np.int64)
        order = np.lexsort((times, owner))  # stable: ties keep the given order
        offsets = np.zeros(len(users) + 1, dtype=np.int64)
        np.cumsum(np.bincount(owner, minlength=len(users)), out=offsets[1:])
        rows = np.array(what, dtype=np.int64)[order]
        return cls(
            source=source, users=tuple(users), titles=tuple(titles), offsets=offsets, rows=rows,
            actions=np.full(len(rows), PLAYED, dtype=np.int64), times=times[order],
        )  # fmt: skip

    def __len__(self) -> int:
        """How many users there are."""
        return len(self.users)

    @property
    def timed(self) -> bool:
        """Whether any two times differ."""
        return bool(self.times.size and self.times.min() != self.times.max())

    def lengths(self) -> Ints:
        """Interactions of each user, int64 (U,)."""
        return np.diff(self.offsets)

    def prefix(self, user: int, leave: int) -> "Prefix":
        """User's interactions without the newest `leave`."""
        return Prefix(user, int(self.offsets[user]), max(int(self.offsets[user]), int(self.offsets[user + 1]) - leave))

    def untimed(self) -> "Interactions":
        """The same order without times."""
        return _replaced(self, times=np.zeros_like(self.times))

    def facts(self) -> dict[str, Any]:
        """Sizes, for reports."""
        lengths = self.lengths()
        pairs = np.repeat(np.arange(len(self)), lengths) * (len(self.titles) + 1) + self.rows
        return {
            "source": self.source,
            "users": len(self.users),
            "items": len(self.titles),
            "interactions": int(self.rows.size),
            "repeats": int(pairs.size - np.unique(pairs).size),
            "timestamps": self.timed,
            "median_length": float(np.median(lengths)) if len(lengths) else 0.0,
        }


@dataclass(frozen=True, slots=True)
class Prefix:
    """A stretch of one user's interactions: start to stop of the flat arrays."""

    user: int
    start: int
    stop: int

    def __len__(self) -> int:
        """How many interactions."""
        return self.stop - self.start


def _replaced(interactions: Interactions, **changes: Any) -> Interactions:
    values = {name: getattr(interactions, name) for name in Interactions.__dataclass_fields__}
    return Interactions(**(values | changes))


def read_interactions(path: Path) -> Interactions:
    """Read user,item[,timestamp] lines: comma, tab, semicolon or :: between them, with or without a header.

    A header may name further columns, which are left out. Timestamps are seconds or milliseconds since the epoch; with
    them each user's lines are put in order (equal ones stay as they are), without them the file's order counts.

    Args:
        path: the file, UTF-8.

    Raises:
        InvalidInput: the file can't be read, or a row is not as the others; the row is named.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            interactions = Interactions.build(path.name, _triples(path, file))
    except OSError as error:
        raise _bad(path, None, error.strerror, "a readable file") from error
    except UnicodeDecodeError as error:
        raise _bad(path, None, str(error), "UTF-8 text") from error
    if not interactions.rows.size:
        raise _bad(path, None, "no rows", "lines of user,item[,timestamp]")
    return interactions


def _triples(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, str, float | None]]:
    columns: Sequence[int] | None = None
    width = 0
    for row, cells in _records(lines):
        if columns is None:
            width = len(cells)
            if width < 2:
                raise _bad(path, row, ",".join(cells), "user,item[,timestamp]")
            columns = _header(path, row, cells)
            if columns is not None:
                continue
            if width > 4:
                raise _bad(path, row, f"{width} columns without a header", "user,item[,timestamp], or a header")
            columns = (0, 1) if width == 2 else (0, 1, width - 1)
        if len(cells) != width:
            raise _bad(path, row, f"{len(cells)} values", f"{width} values, as in the first row")
        user, item = cells[columns[0]], cells[columns[1]]
        if not user or not item:
            raise _bad(path, row, ",".join(cells), "a user and an item that are not empty")
        yield user, item, _time(path, row, cells[columns[2]]) if len(columns) > 2 else None


def _records(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """(row number from 1, cells) of each line that is not blank."""
    delimiter = ""

    def rows() -> Iterator[str]:
        nonlocal delimiter
        for line in lines:
            if not delimiter and line.strip():
                delimiter = next((mark for mark in ("\t", "::", ",", ";") if mark in line), ",")
            yield line.replace("::", "\t") if delimiter == "::" else line

    source = rows()
    first = ""
    count = 0
    for first in source:
        count += 1
        if first.strip():
            break
    else:
        return

    def again() -> Iterator[str]:
        yield first
        yield from source

    reader = csv.reader(again(), delimiter="\t" if delimiter == "::" else delimiter)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield count - 1 + reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise InvalidInput(
            field=f"row {count - 1 + reader.line_num}",
            got=str(error),
            expected="delimited text",
            next_step="Mend that row.",
        ) from error


def _header(path: Path, row: int, cells: Sequence[str]) -> Sequence[int] | None:
    """Places of user, item and time if this is a header."""
    names = [cell.split(":")[0].strip().casefold() for cell in cells]
    places = [
        next((place for place, name in enumerate(names) if name in known), None)
        for known in (_USER_NAMES, _ITEM_NAMES, _TIME_NAMES)
    ]
    if places[0] is not None and places[1] is not None:
        return [place for place in places if place is not None]
    if places[0] is not None or places[1] is not None:
        missing = "user" if places[0] is None else "item"
        raise _bad(path, row, ",".join(cells), f"a header with a column named {missing}")
    return None


def _time(path: Path, row: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise _bad(path, row, text, "a timestamp: seconds or milliseconds since the epoch")
    return value / 1000 if value >= _MILLISECONDS_FROM else value


def _bad(path: Path, row: int | None, got: object, expected: str) -> InvalidInput:
    where = path.name if row is None else f"{path.name} row {row}"
    return InvalidInput(field=where, got=got, expected=expected, next_step="Correct the file and run again.")
