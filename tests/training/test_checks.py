"""Data that must stop a training, each kind of it on disk as a broken exporter or a lost partition would leave it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from features.settings import Settings
from training.checks import DataProfile, DataRefused, check_data, read_profile, require, write_profile
from training.data_profiles import profile_path
from training.datasets import Dataset
from training.datasets.dataset import write_dataset
from training.datasets.synthetic import prepare_synthetic

NOW = 1_800_000_000_000
DAY = 24 * 3_600_000


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data") / "good"
    return prepare_synthetic(folder, profiles=60, titles=80, events=4_000, as_of_ms=NOW)


@pytest.fixture(scope="module")
def before(good: Dataset) -> DataProfile:
    return check_data(good, None, now_ms=NOW).profile


Change = Callable[[pl.DataFrame], pl.DataFrame]


def changed(good: Dataset, folder: Path, events: Change = lambda frame: frame, titles: Change | None = None) -> Dataset:
    """The good data set with another content, under its name."""
    return write_dataset(
        folder / good.name,
        source="a test",
        events=events(good.frame("events")),
        titles=(titles or (lambda frame: frame))(good.frame("titles")),
        profiles=good.frame("profiles"),
    )


def some(column: str, value: object, rows: int = 3) -> Change:
    """The first rows with another value."""
    first = pl.int_range(pl.len()) < rows
    return lambda frame: frame.with_columns(
        pl.when(first).then(pl.lit(value, dtype=frame.schema[column])).otherwise(pl.col(column)).alias(column)
    )


def test_good_data_passes_and_is_described(good: Dataset, before: DataProfile) -> None:
    report = check_data(good, before, until_ms=good.last_ts_ms + 1, now_ms=NOW)
    assert report.problems == ()
    require(report)
    assert report.profile == before
    assert (before.events, before.last_ts_ms) == (good.rows["events"], good.last_ts_ms)
    assert sum(before.kinds.values()) == pytest.approx(1)
    assert report.as_json()["ok"] is True


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (some("kind", "paly"), ["values", "kind", "3 rows", "paly", "one of impression, play"]),
        (some("kind", None), ["values", "kind", "None"]),
        (some("position_s", -1.0), ["values", "position_s", "-1.0"]),
        (some("duration_s", float("nan")), ["values", "duration_s", "nan"]),
        (some("ts", NOW // 1000), ["values", "ts", "seconds: multiply ts by 1000"]),
        (some("ts", NOW + 2 * 3_600_000), ["values", "no later than now"]),
        (some("title_id", "gone"), ["titles", "3 rows", "gone", "1 unknown titles"]),
        (lambda frame: pl.concat([frame, frame.head(5)]), ["duplicates", "5 rows", "each event once"]),
        (some("event_id", "one"), ["duplicates", "event_id", "one event an event_id"]),
        (
            lambda frame: pl.concat([frame, frame.with_columns(pl.col("event_id") + "x")]),
            ["duplicates", "% of events alike but for their id"],
        ),
        (lambda frame: frame.head(frame.height // 3), ["volume", "events", "at least 50%"]),
        (lambda frame: frame.filter(pl.col("ts") < frame["ts"].max() - 2 * DAY), ["freshness", "newest"]),
        (lambda frame: frame.filter(pl.col("kind") != "finish"), ["kinds", "0.0% finish"]),
        (
            lambda frame: pl.concat([
                frame,
                frame.select(pl.all().repeat_by(2).explode()).with_columns(
                    event_id=pl.format("r{}", pl.int_range(pl.len())), kind=pl.lit("progress"),
                    ts=pl.col("ts") - 1 - pl.int_range(pl.len()),
                ),
            ]),
            ["kinds of all events", "progress", "about the"],
        ),
    ],
    ids=[
        "unknown kind", "null", "below its range", "not a number", "seconds", "future", "unknown title", "twice",
        "one id for several", "sent again under new ids", "volume fell", "stale", "kind gone", "kind jumped",
    ],
)  # fmt: skip
def test_a_bad_snapshot_stops_the_job(
    good: Dataset, before: DataProfile, tmp_path: Path, events: Change, words: list[str]
) -> None:
    report = check_data(changed(good, tmp_path, events), before, now_ms=NOW)
    with pytest.raises(DataRefused) as caught:
        require(report)
    told = " | ".join(str(problem) for problem in report.errors)
    for word in words:
        assert word in told
        assert word in str(caught.value)


def test_a_catalogue_with_a_title_twice_or_half_of_it_stops_the_job(
    good: Dataset, before: DataProfile, tmp_path: Path
) -> None:
    twice = changed(good, tmp_path / "a", titles=lambda frame: pl.concat([frame, frame.head(1)]))
    with pytest.raises(DataRefused, match="each title_id once"):
        require(check_data(twice, before, now_ms=NOW))
    half = changed(good, tmp_path / "b", titles=lambda frame: frame.head(30))
    assert {problem.check for problem in check_data(half, before, now_ms=NOW).errors} == {"titles", "volume"}


def test_what_a_model_cannot_have_known_stops_the_job(good: Dataset, tmp_path: Path) -> None:
    until = good.last_ts_ms - DAY
    report = check_data(good, None, until_ms=until, now_ms=NOW)
    with pytest.raises(DataRefused, match=f"nothing at {until} or later"):
        require(report)
    (late,) = report.errors
    assert late.count == good.frame("events").filter(pl.col("ts") >= until).height

    finish = (pl.col("kind") == "finish") & pl.col("title_id").is_not_null()
    early = changed(
        good,
        tmp_path / "a",
        lambda frame: frame.with_columns(ts=pl.when(finish).then(pl.col("ts") - DAY).otherwise(pl.col("ts"))),
    )
    with pytest.raises(DataRefused, match="a finish before the first play"):
        require(check_data(early, None, now_ms=NOW))


@pytest.mark.parametrize(("wrong", "severity"), [(0, None), (1, "warning"), (20, "error")])
def test_plays_before_what_was_shown_for_them(good: Dataset, tmp_path: Path, wrong: int, severity: str | None) -> None:
    rows = [
        {"event_id": f"{kind}{one}", "profile_id": "v", "title_id": title, "kind": kind, "request_id": f"r{one}"}
        | {"ts": ts}
        for one, title in enumerate(good.frame("titles")["title_id"].head(1).to_list() * 200)
        for kind, ts in (("impression", NOW - DAY + one), ("play", NOW - DAY + one + (-1 if one < wrong else 1)))
    ]
    data = changed(good, tmp_path, lambda frame: pl.concat([frame, pl.DataFrame(rows)], how="diagonal_relaxed"))
    found = [problem for problem in check_data(data, None, now_ms=NOW).problems if problem.check == "leakage"]
    assert [(problem.severity, problem.count) for problem in found] == ([(severity, wrong)] if severity else [])
    if severity:
        assert "a play before what was shown for it" in str(found[0])


@pytest.mark.parametrize("damage", ["no file", "no Parquet", "another type", "a column less"])
def test_a_table_that_is_no_table_stops_the_job(good: Dataset, tmp_path: Path, damage: str) -> None:
    data = changed(good, tmp_path)
    path = data.path / "events.parquet"
    frame = data.frame("events")
    if damage == "no file":
        path.unlink()
    elif damage == "no Parquet":
        path.write_bytes(b"no table")
    elif damage == "another type":
        frame.with_columns(pl.col("ts").cast(pl.String)).write_parquet(path)
    else:
        frame.drop("kind").write_parquet(path)
    report = check_data(data, None, now_ms=NOW)
    with pytest.raises(DataRefused, match="schema, events"):
        require(report)


def test_another_data_set_than_before_only_warns_of_what_is_compared(
    good: Dataset, before: DataProfile, tmp_path: Path
) -> None:
    other = dataclasses.replace(before, dataset="another", events=100 * before.events, last_ts_ms=NOW + 9 * DAY)
    report = check_data(good, other, now_ms=NOW)
    assert report.ok
    assert {problem.check for problem in report.problems} == {"volume", "freshness"}
    grown = dataclasses.replace(before, events=before.events // 10)
    (found,) = check_data(good, grown, now_ms=NOW).problems
    assert (found.check, found.severity) == ("volume", "warning")
    (old,) = check_data(good, None, now_ms=NOW + 90 * DAY).problems
    assert (old.check, old.severity) == ("freshness", "warning")


def test_snapshots_of_updates_are_held_against_each_other_but_for_what_viewers_may_change(
    good: Dataset, before: DataProfile, tmp_path: Path
) -> None:
    """Each has a name of its own, and still half of the events may not be lost; a drift of kinds is to be learned."""
    earlier = dataclasses.replace(before, dataset="recommend-1799999999999")
    lost = changed(good, tmp_path, lambda frame: frame.tail(good.rows["events"] // 3))
    taken = dataclasses.replace(lost, path=lost.path, name="recommend-1800000000000")
    with pytest.raises(DataRefused, match="volume, events"):
        require(check_data(taken, earlier, now_ms=NOW))
    require(check_data(taken, dataclasses.replace(earlier, dataset="ml-100k"), now_ms=NOW))
    whole = dataclasses.replace(good, name="recommend-1800000000000")
    drifted = dataclasses.replace(earlier, kinds={**before.kinds, "thumbs_up": before.kinds["thumbs_up"] + 0.4})
    report = check_data(whole, drifted, now_ms=NOW)
    require(report)
    assert {(found.check, found.severity) for found in report.problems} == {("kinds", "warning")}
    with pytest.raises(DataRefused, match="kinds"):
        require(check_data(whole, dataclasses.replace(drifted, dataset=whole.name), now_ms=NOW))


def test_the_profile_of_the_run_before_is_kept(before: DataProfile, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, redis_url="", feast_registry="")
    assert read_profile(settings, "recommend") is None
    write_profile(settings, "recommend", before)
    assert read_profile(settings, "recommend") == before
    nameless = json.dumps({**before.as_json(), "snapshot": None})
    counted = json.dumps({**before.as_json(), "titles": "many"})
    for damaged in ("{", "[]", "3", "[1]", '{"format": 1}', '{"format": 2}', nameless, counted):
        profile_path(settings, "recommend").write_text(damaged)
        assert read_profile(settings, "recommend") is None
