"""What is wrong with a brought file: where, what came, what was expected, what to do."""

from dataclasses import dataclass
from typing import Final

import polars as pl

FILE: Final = "(file)"
ROW: Final = "(row)"
"""Names of the columns that carry each row's origin; not printable identifiers, so no brought column is called so."""

ROWS_NAMED: Final = 5
FILES_NAMED: Final = 10


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: the file, relative to the brought folder.
        rows: the first few rows it concerns, 1 = the first row of data; empty where it concerns the whole file.
        count: how many rows it concerns; 0 for the whole file.
        column: the column, or empty.
        got: what came, shortened.
        expected: what would have been right.
        next_step: what to do.
    """

    file: str
    rows: tuple[int, ...] = ()
    count: int = 0
    column: str = ""
    got: str
    expected: str
    next_step: str

    def __str__(self) -> str:
        """One line for a terminal or a log."""
        more = f" and {self.count - len(self.rows):,} more" if self.count > len(self.rows) else ""
        listed = ", ".join(str(row) for row in self.rows)
        where = f" row {listed}{more}" if self.rows else ""
        column = f", {self.column}" if self.column else ""
        return f"{self.file}{where}{column}: got {self.got}, expected {self.expected}. {self.next_step}"


def shortened(value: object) -> str:
    """A value as a message shows it, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def at_rows(wrong: pl.DataFrame, *, shown: pl.Expr, column: str, expected: str, next_step: str) -> list[Problem]:
    """Problems, one a file, for rows that are wrong in the same way.

    Args:
        wrong: the wrong rows, with FILE and ROW; may be empty.
        shown: what is shown as got.
        column: the column's name.
        expected: what would have been right.
        next_step: what to do.
    """
    if wrong.is_empty():
        return []
    by_file = (
        wrong.select(FILE, ROW, shown.alias("got"))
        .group_by(FILE, maintain_order=True)
        .agg(count=pl.len(), rows=pl.col(ROW).head(ROWS_NAMED), got=pl.col("got").first())
    )
    problems = [
        Problem(
            file=file,
            rows=tuple(rows),
            count=count,
            column=column,
            got=shortened(got),
            expected=expected,
            next_step=next_step,
        )
        for file, count, rows, got in by_file.head(FILES_NAMED).iter_rows()
    ]
    if by_file.height > FILES_NAMED:
        rest = by_file.slice(FILES_NAMED)
        problems.append(
            Problem(
                file=f"{rest.height:,} more files",
                count=int(rest["count"].sum()),
                column=column,
                got="the same",
                expected=expected,
                next_step=next_step,
            )
        )
    return problems
