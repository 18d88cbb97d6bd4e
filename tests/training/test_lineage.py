"""Where a version comes from."""

import importlib.metadata
import platform
from pathlib import Path

import polars as pl

from training.datasets.dataset import write_dataset
from training.lineage import lineage_of


def test_lineage_tells_the_data_that_was_used_and_the_environment(tmp_path: Path) -> None:
    events = pl.DataFrame(
        {
            "event_id": ["a", "b", "c"],
            "profile_id": ["p", "p", "q"],
            "title_id": ["t", "t", "t"],
            "kind": ["play", "finish", "play"],
            "ts": [1_000, 2_000, 3_000],
        }
    )
    titles = pl.DataFrame({"title_id": ["t"], "name": ["T"]})
    dataset = write_dataset(tmp_path / "few", source="here", events=events, titles=titles)
    whole = lineage_of(dataset, seed=3, parent="0123456789ab", run="r", until_ms=3_001)
    assert (whole.dataset, whole.first_ts_ms, whole.last_ts_ms, whole.rows) == ("few", 1_000, 3_000, 3)
    assert (whole.seed, whole.parent, whole.run) == (3, "0123456789ab", "r")
    assert whole.environment["python"] == platform.python_version()
    assert whole.environment["polars"] == importlib.metadata.version("polars")
    cut = lineage_of(dataset, seed=3, until_ms=3_000)
    assert (cut.first_ts_ms, cut.last_ts_ms, cut.rows) == (1_000, 2_000, 2)
    none = lineage_of(dataset, seed=3, until_ms=5)
    assert (none.first_ts_ms, none.last_ts_ms, none.rows) == (0, 0, 0)
    assert lineage_of(None, seed=0).dataset == ""
