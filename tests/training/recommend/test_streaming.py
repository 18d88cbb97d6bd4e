"""Reading events in parts gives what reading them whole does."""

import numpy as np
import polars as pl
import pytest

from serve.errors import InvalidInput, NotFound
from tests.training.recommend import audience
from training.datasets.synthetic import generate
from training.recommend import streaming
from training.recommend.frames import frames_at, interactions_of
from training.recommend.streaming import stream_interactions


def in_memory(events):
    played = events.filter(pl.col("kind").cast(pl.String) != "impression")
    return interactions_of(played, played["title_id"].unique().sort().to_list(), "events")


def assert_same(got, expected):
    assert (got.users, got.titles) == (expected.users, expected.titles)
    for name in ("offsets", "rows", "actions", "times"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)


@pytest.fixture(scope="module")
def events():
    found = generate(seed=3, profiles=60, titles=50, events=6000).events
    shaken = found.with_columns(pl.col("ts") // 86_400_000 * 86_400_000)  # many ties
    assert shaken.select("profile_id", "title_id", "ts").n_unique() < shaken.height / 2
    return shaken


def test_the_visits_are_those_of_memory(small_ray, events, tmp_path, monkeypatch):
    """From partitions whose blocks split what a profile did with a title, up to a moment."""
    monkeypatch.setattr(streaming, "BATCH_ROWS", 700)
    for number, start in enumerate(range(0, events.height, 3500)):
        events[start : start + 3500].write_parquet(tmp_path / f"part-{number:03}.parquet", row_group_size=1000)
    until_ms = int(events["ts"].quantile(0.9))
    found = stream_interactions([tmp_path], "events", until_ms=until_ms)
    assert_same(found, in_memory(events.filter(pl.col("ts") < until_ms)))


def test_no_files_and_no_events_are_refused(small_ray, events, tmp_path):
    with pytest.raises(NotFound):
        stream_interactions([tmp_path], "events")
    events.filter(pl.col("kind").cast(pl.String) == "impression").write_parquet(tmp_path / "shown.parquet")
    with pytest.raises(InvalidInput):
        stream_interactions([tmp_path / "shown.parquet"], "events")


def test_frames_of_a_scan_are_those_of_memory():
    events = pl.concat([audience.events(), audience.events(users=30, seed=1).with_columns(
        pl.col("event_id") + "x", profile_id=pl.col("profile_id") + "x", kind=pl.lit("impression")
    )])  # fmt: skip
    interactions = in_memory(events)
    rows = {title: row for row, title in enumerate(interactions.titles, start=1)}
    asked = [
        (interactions.users[user], interactions.titles[interactions.rows[interactions.offsets[user] + place] - 1])
        for user in range(0, 60, 3)
        for place in (2, 6, 9)
    ]
    whole, parts = frames_at(events, None, rows, asked, 20), frames_at(events.lazy(), None, rows, asked, 20)
    for name in whole.__dataclass_fields__:
        np.testing.assert_allclose(
            getattr(parts, name).numpy(), getattr(whole, name).numpy(), rtol=1e-5, atol=1e-6, err_msg=name
        )
    assert whole.statistics.any()
