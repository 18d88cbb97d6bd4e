"""What people said of recommendations, by the version that made them: told in the report, decides nothing."""

from pathlib import Path
from typing import Final

import polars as pl

FOLDER: Final = "feedback"


def count_feedback(home: Path, *, most_files: int = 1000) -> dict[str, dict[str, int]]:
    """Version -> verdict -> how often, from HOME/feedback/**/*.parquet; empty where there is none.

    Files that lack the columns `version` and `verdict` are left out.

    Args:
        home: state folder.
        most_files: that are read, the newest by name.
    """
    counts: dict[str, dict[str, int]] = {}
    for path in sorted((home / FOLDER).glob("date=*/part-*.parquet"))[-most_files:]:
        try:
            frame = pl.read_parquet(path, columns=["version", "verdict"], hive_partitioning=False)
        except (OSError, pl.exceptions.PolarsError):
            continue
        for version, verdict, count in frame.group_by("version", "verdict").len().iter_rows():
            verdicts = counts.setdefault(str(version), {})
            verdicts[str(verdict)] = verdicts.get(str(verdict), 0) + int(count)
    return counts
