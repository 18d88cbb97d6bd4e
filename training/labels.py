"""Labels from what people said: each judgement with the exposure that it is about, one row a title that was judged.

    feedback (HOME/feedback) -> its page in the exposures (HOME/exposures), by request_id -> the titles that are meant

A judgement of a title is one row, of a row of a page as many as it shows, of a page all of its titles. What is no
recommendation, or whose exposure is in no file, is one row without a profile.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson
import polars as pl

from features.settings import Settings
from features.sink import read_log
from serve.errors import InvalidInput
from serve.feedback.records import FEEDBACK
from serve.pages import MAIN_ROW
from serve.rollout.exposures import EXPOSURES, SHOWN

LABELS: Final[Mapping[str, Any]] = {
    "feedback_id": pl.String, "ts": pl.Int64, "kind": pl.String, "verdict": pl.String, "label": pl.Int8,
    "reporter": pl.String, "reason": pl.String, "detail": pl.String, "model": pl.String, "version": pl.String,
    "version_from": pl.String, "request_id": pl.String, "subject_id": pl.String, "profile_id": pl.String,
    "shown_ts": pl.Int64, "row": pl.String, "title_id": pl.String, "rank": pl.Int64, "propensity": pl.Float64,
    "explored": pl.Boolean,
}  # fmt: skip
"""Columns. `label` is 1 for good, 0 for bad, null for unsure; `rank` the title's place in its row, from 0; `propensity`
of the title in this slot, where exploration tells it; `explored` whether it was drawn at random."""

_LABEL: Final = {"good": 1, "bad": 0}


def make_labels(settings: Settings) -> pl.DataFrame:
    """Labels of all feedback that is in files, in the order in which it came.

    Args:
        settings: whose home holds the files.

    Returns:
        Columns LABELS.
    """
    feedback = read_log(settings.home / FEEDBACK.name, FEEDBACK)
    named = feedback["request_id"].drop_nulls().unique().to_list()
    of_pages = pl.col("request_id").is_in(named) & (pl.col("kind") == SHOWN)
    shown = read_log(settings.home / EXPOSURES.name, EXPOSURES, where=of_pages) if named else pl.DataFrame()
    pages = {page["request_id"]: page for page in reversed(shown.to_dicts())}  # of two of one id the first
    rows = [row for said in feedback.iter_rows(named=True) for row in _rows(said, pages.get(said["request_id"]))]
    return pl.DataFrame(rows, schema=dict(LABELS))


def write_labels(labels: pl.DataFrame, path: Path) -> None:
    """Write labels; the file appears whole or not at all.

    Args:
        labels: from `make_labels`.
        path: a .parquet or a .csv file, in a folder that is there.

    Raises:
        InvalidInput: another kind of file, or it cannot be written.
    """
    if path.suffix not in {".parquet", ".csv"}:
        raise InvalidInput(
            field="--labels", got=str(path), expected="a path that ends in .parquet or .csv", next_step="Correct it."
        )
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        if path.suffix == ".csv":
            labels.write_csv(hidden)
        else:
            labels.write_parquet(hidden)
        hidden.replace(path)
    except OSError as error:
        raise InvalidInput(
            field="--labels", got=f"{path}: {error.strerror or error}", expected="a file that can be written",
            next_step="Make its folder, or name another.",
        ) from error  # fmt: skip
    finally:
        hidden.unlink(missing_ok=True)


def _rows(said: Mapping[str, Any], page: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """One judgement's labels."""
    label = {name: said.get(name) for name in LABELS} | {"label": _LABEL.get(said["verdict"])}
    if page is None:
        yield label
        return
    label |= {"profile_id": page["profile_id"], "shown_ts": page["ts"]}
    if page["version"] is not None:  # over what the caller said when the service did not know yet
        label |= {"version": page["version"], "version_from": "exposure"}
    meant = [
        {"row": row, "title_id": title_id, "rank": rank} | _odds(row, rank, page)
        for row, title_ids in orjson.loads(page["rows"] or "null") or []
        if said["row"] in {None, row}
        for rank, title_id in enumerate(title_ids)
        if said["title_id"] in {None, title_id}
    ]
    for one in meant or [{}]:  # what the page did not show stays as it was said
        yield label | one


def _odds(row: str, rank: int, page: Mapping[str, Any]) -> dict[str, Any]:
    """How likely the slot's title was, and whether it was drawn; nothing where no exploration tells it."""
    slots = orjson.loads(page["slots"] or "null") or [] if row == MAIN_ROW else []
    if rank >= len(slots):
        return {}
    return {"propensity": slots[rank][1], "explored": page["explored"] == rank}
