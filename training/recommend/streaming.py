"""Interactions from event files that are too large for memory, through Ray Data.

Two passes over the Parquet files, each in blocks that workers read, change and forget. The first finds the titles and
the profiles. The second makes of each event that counts four numbers (profile, title, action, time: 20 bytes), and of
what a block holds of one profile and title, one row; so the strings are never together in memory, and what this
process holds grows with the visits, not with the events.

What comes out is what `training.recommend.frames.interactions_of` makes of the same events, element by element.

Importing this module imports Ray Data.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from features.history import KIND_CODES
from serve.errors import InvalidInput, NotFound
from training.recommend.interactions import Interactions

BATCH_ROWS: Final = 131_072
"""Rows of a block that a worker looks at at a time."""

_COLUMNS: Final = ("profile_id", "title_id", "kind", "ts")
_BITS: Final = {kind.value: 1 << (code - 1) for kind, code in KIND_CODES.items()}


def stream_interactions(paths: Sequence[Path], source: str, *, until_ms: int | None = None) -> Interactions:
    """Each profile's visits, as `interactions_of` makes them over all titles that were more than shown.

    Args:
        paths: Parquet files of events, or folders of them (in order of their names). Rows are taken in order.
        source: name for reports.
        until_ms: only events before this time, UTC milliseconds; None: all.

    Raises:
        NotFound: there is no file.
        InvalidInput: no event counts.
    """
    files = [str(file) for path in paths for file in (sorted(path.glob("**/*.parquet")) if path.is_dir() else [path])]
    if not files or not all(Path(file).is_file() for file in files):
        raise NotFound(
            field="events", got=", ".join(map(str, paths)), expected="Parquet files of events",
            next_step="Correct the path, or prepare the data set.",
        )  # fmt: skip
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # ties in time keep the order of the files
    columns = ray.data.read_parquet(files).select_columns(list(_COLUMNS))
    options: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": BATCH_ROWS}
    titles, users = _names(columns.map_batches(_distinct, fn_kwargs={"until_ms": until_ms}, **options))
    if not titles:
        raise InvalidInput(
            field="events", got="no event but impressions", expected="plays", next_step="Bring more events."
        )
    known = ray.put((_codes("title", titles), _codes("user", users)))
    compact = columns.map_batches(_compact, fn_kwargs={"known": known, "until_ms": until_ms}, **options)
    parts = [
        {name: table.column(name).to_numpy() for name in ("user", "title", "action", "ts")}
        for table in compact.iter_batches(batch_format="pyarrow", batch_size=None)
        if table.num_rows
    ]
    user, title, action, ts = (
        np.concatenate([part[name] for part in parts]) for name in ("user", "title", "action", "ts")
    )
    del parts
    return _visits(source, users, titles, user, title, action, ts)


def _distinct(batch: pa.Table, until_ms: int | None) -> pa.Table:
    """A block's titles, and its profiles, as one column and a mark of which they are."""
    events = _counted(batch, until_ms)
    titles, users = (events[name].unique() for name in ("title_id", "profile_id"))
    both = pl.concat([titles.alias("name"), users.alias("name")])
    mark = np.repeat([True, False], [len(titles), len(users)])
    return pl.DataFrame({"name": both, "title": mark}).to_arrow()


def _names(found: Any) -> tuple[list[str], list[str]]:
    titles: set[str] = set()
    users: set[str] = set()
    for batch in found.iter_batches(batch_format="pyarrow", batch_size=None):
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        titles.update(frame.filter(pl.col("title"))["name"].to_list())
        users.update(frame.filter(~pl.col("title"))["name"].to_list())
    return sorted(titles), sorted(users)


def _compact(batch: pa.Table, known: Any, until_ms: int | None) -> pa.Table:
    """Numbers in place of names; one row, at its first place, of what the block holds of one profile and title."""
    titles, users = (pl.DataFrame(pl.from_arrow(table)) for table in ray.get(known))
    return (
        _counted(batch, until_ms)
        .group_by("profile_id", "title_id", maintain_order=True)
        .agg(pl.col("action").unique().sum().cast(pl.Int32), pl.col("ts").max())
        .join(users, left_on="profile_id", right_on="name", how="inner", maintain_order="left")
        .join(titles, left_on="title_id", right_on="name", how="inner", maintain_order="left")
        .select("user", "title", "action", "ts")
        .to_arrow()
    )


def _codes(column: str, names: Sequence[str]) -> pa.Table:
    return pl.DataFrame({"name": names, column: np.arange(len(names), dtype=np.int32)}).to_arrow()


def _counted(batch: pa.Table, until_ms: int | None) -> pl.DataFrame:
    """The events that make visits, with `action` as a bit."""
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    if until_ms is not None:
        frame = frame.filter(pl.col("ts") < until_ms)
    action = pl.col("kind").cast(pl.String).replace_strict(_BITS, default=0, return_dtype=pl.Int64)
    return frame.select("profile_id", "title_id", "ts", action.alias("action")).filter(pl.col("action") > 0)


def _visits(
    source: str, users: Sequence[str], titles: Sequence[str], user: NDArray[np.int32], title: NDArray[np.int32],
    action: NDArray[np.int32], ts: NDArray[np.int64],
) -> Interactions:  # fmt: skip
    """Merge what different blocks hold of one profile and title; order each profile's visits by time.

    Equal times are in order of the visits' first events.
    """
    pair = user.astype(np.int64) * len(titles) + title
    order = np.argsort(pair, kind="stable")
    pair = pair[order]
    starts = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]]))
    first = order[starts]  # stable: the oldest row of each pair
    newest = np.maximum.reduceat(ts[order], starts)
    actions = np.bitwise_or.reduceat(action[order], starts).astype(np.int64)
    owner, row = user[first].astype(np.int64), title[first].astype(np.int64) + 1
    final = np.lexsort((first, newest, owner))
    sizes = np.bincount(owner, minlength=len(users))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Interactions(
        source=source, users=tuple(users), titles=tuple(titles), offsets=offsets, rows=row[final],
        actions=actions[final], times=newest[final] // 1000,
    )  # fmt: skip
