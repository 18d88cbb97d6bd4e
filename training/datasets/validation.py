"""Judges the values of brought tables: all rows at once, every wrong row named."""

from typing import Final

import polars as pl

from features.events import CLOCK_TOLERANCE_MS, MAX_TS_MS
from training.datasets.problems import FILE, ROW, ROWS_NAMED, Problem, at_rows
from training.datasets.schema import Column, TableName, columns

POSITION_TOLERANCE_S: Final = 1.0
"""How far a position may lie behind the title's end: players round."""

_OLDEST_MS: Final = 100_000_000_000
"""March 1973: a smaller number is not a time in milliseconds. As seconds it lies after the year 5000."""

_KEYS: Final[dict[TableName, str]] = {"events": "event_id", "titles": "title_id", "profiles": "profile_id"}
_TIMES: Final = ("ts", "added_ts")


def check_values(frame: pl.DataFrame, table: TableName, now_ms: int) -> list[Problem]:
    """What is wrong with single rows of a table.

    Args:
        frame: typed columns with FILE and ROW, as from training.datasets.reading.
        table: which table.
        now_ms: UTC ms.
    """
    if frame.is_empty():
        return [
            Problem(file=table, got="no rows", expected="at least one row", next_step="Check the export that wrote it.")
        ]
    problems: list[Problem] = []
    for column in columns(table):
        if column.name not in frame.columns:
            continue
        for wrong, expected, next_step in _rules(column, now_ms):
            mask = frame.select(wrong.fill_null(value=False)).to_series()
            if mask.any():
                problems += at_rows(
                    frame.filter(mask),
                    shown=pl.col(column.name),
                    column=column.name,
                    expected=expected,
                    next_step=next_step,
                )
    if {"position_s", "duration_s"} <= set(frame.columns):
        problems += at_rows(
            frame.filter(_beyond_end()),
            shown=pl.format("{} of {}", "position_s", "duration_s"),
            column="position_s",
            expected="at most duration_s",
            next_step="Give both in seconds; write duration_s 0 where it is unknown.",
        )
    return problems


def wrong_rows(frame: pl.DataFrame, table: TableName, now_ms: int) -> pl.Series:
    """Which rows break a rule that `check_values` names, as a Boolean series.

    Args:
        frame: typed columns.
        table: which table.
        now_ms: UTC ms.
    """
    wrong = [rule for column in columns(table) if column.name in frame.columns for rule, *_ in _rules(column, now_ms)]
    if {"position_s", "duration_s"} <= set(frame.columns):
        wrong.append(_beyond_end())
    return frame.select(pl.any_horizontal(rule.fill_null(value=False) for rule in wrong)).to_series()


def _beyond_end() -> pl.Expr:
    end = pl.col("duration_s")
    return (end > 0) & (pl.col("position_s") > end + POSITION_TOLERANCE_S)


def _rules(column: Column, now_ms: int) -> list[tuple[pl.Expr, str, str]]:
    """(mask of wrong rows, what is expected, next step) for each rule of a column."""
    value = pl.col(column.name)
    correct = "Correct the value in these rows."
    rules: list[tuple[pl.Expr, str, str]] = []
    if not column.nullable:
        fill = "Fill it in, or leave these rows out." if column.required else f"Write {column.default!r} where unknown."
        rules.append((value.is_null(), column.expected, fill))
    if column.name in _TIMES:
        return rules + _time_rules(column, now_ms)
    if isinstance(column.dtype, pl.List):
        rules.append(
            (value.list.eval(pl.element().is_null()).list.any(), column.expected, "Leave nulls out of the list.")
        )
    elif column.values is not None:
        rules.append((~value.is_in(column.values), column.expected, "Map it to one of these, or leave these rows out."))
    elif column.dtype == pl.String:
        length = value.str.len_chars()
        wrong = (length < (column.min_length or 0)) | (length > (column.max_length or 2**31))
        if column.pattern is not None:
            wrong |= ~value.str.contains(column.pattern)
        rules.append((wrong, column.expected, correct))
    elif column.dtype in (pl.Int64, pl.Float64):
        wrong = ~value.is_finite() if column.dtype == pl.Float64 else pl.lit(value=False)
        if column.low is not None:
            wrong |= value < column.low
        if column.high is not None:
            wrong |= value > column.high
        rules.append((wrong, column.expected, correct))
    return rules


def _time_rules(column: Column, now_ms: int) -> list[tuple[pl.Expr, str, str]]:
    value = pl.col(column.name)
    unit = "UTC milliseconds since 1970"
    known = value != 0 if column.default == 0 else pl.lit(value=True)
    seconds = value.is_between(_OLDEST_MS // 1000, _OLDEST_MS - 1)
    finer = value > MAX_TS_MS
    rules = [
        (seconds, unit, f"These look like seconds: multiply {column.name} by 1000."),
        (
            known & (value < _OLDEST_MS) & ~seconds,
            unit + (", or 0 where unknown" if column.default == 0 else ""),
            "Correct the value in these rows; it lies before 1973.",
        ),
        (finer, unit, "These look like micro- or nanoseconds: divide by 1000 or 1,000,000."),
    ]
    if column.name == "ts":
        future = (value > now_ms + CLOCK_TOLERANCE_MS) & ~finer
        rules.append((future, f"no later than now, {now_ms}", "Check the clock and the time zone; times are UTC."))
    return rules


def check_keys(frame: pl.DataFrame, table: TableName) -> tuple[pl.DataFrame, int, list[Problem]]:
    """Drop events that came twice; refuse ids that name two different things.

    Args:
        frame: a whole table with FILE and ROW.
        table: which table. Titles and profiles must not repeat at all.

    Returns:
        The frame with the first of each id, how many repeated rows were dropped, and the problems.
    """
    key = _KEYS[table]
    again = frame.select(pl.col(key).is_duplicated() & pl.col(key).is_not_null()).to_series()
    if not again.any():
        return frame, 0, []
    repeated = frame.filter(again)
    content = [name for name in frame.columns if name not in (FILE, ROW)]
    if table == "events":
        distinct = repeated.unique(subset=content, keep="first", maintain_order=True)
        conflict = distinct.filter(pl.col(key).is_duplicated())
        expected = "one event an event_id (the same event twice is fine)"
        next_step = "Give each event an id of its own; these share one and differ."
    else:
        conflict = repeated
        expected = f"each {key} once"
        next_step = "Keep one row of each."
    problems = at_rows(conflict, shown=pl.col(key), column=key, expected=expected, next_step=next_step)
    first = frame.filter(pl.col(key).is_first_distinct() | pl.col(key).is_null())
    return first, frame.height - first.height, problems


def check_titles_known(events: pl.DataFrame, titles: pl.DataFrame) -> list[Problem]:
    """Events whose title the catalogue does not hold."""
    unknown = events.filter(pl.col("title_id").is_not_null() & ~pl.col("title_id").is_in(titles["title_id"].implode()))
    names = unknown["title_id"].unique(maintain_order=True)
    listed = ", ".join(names.head(ROWS_NAMED).to_list()) + (" ..." if len(names) > ROWS_NAMED else "")
    return at_rows(
        unknown,
        shown=pl.col("title_id"),
        column="title_id",
        expected="a title_id of the titles table",
        next_step=f"Add the {len(names):,} unknown titles ({listed}) to titles, or leave these events out.",
    )
