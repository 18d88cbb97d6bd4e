import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.events import Event
from features.titles import Title
from serve.errors import InvalidInput, NotFound
from training.datasets import Dataset, DatasetError, interactions, open_dataset
from training.datasets.dataset import WEEK_MS, weeks_to, write_dataset
from training.datasets.schema import TABLES, Profile, columns, polars_schema

TITLES = pl.DataFrame({"title_id": ["t0", "t1"], "name": ["Zero", "One"]})


def events(*rows: tuple[str, str, str, int]) -> pl.DataFrame:
    table = [(f"e{number}", *row) for number, row in enumerate(rows)]
    return pl.DataFrame(table, schema=["event_id", "profile_id", "title_id", "kind", "ts"], orient="row")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(
        tmp_path / "data" / "mine",
        source="a test",
        events=events(("p1", "t1", "play", 30), ("p0", "t0", "play", 10), ("p0", "t1", "finish", 20)),
        titles=TITLES,
        profiles=pl.DataFrame({"profile_id": ["p9"], "region": ["eu"], "kids": [True]}),
        shift_ms=5,
        notes=("made up",),
    )


def test_the_stored_columns_are_the_contracts_fields() -> None:
    models = {"events": Event, "titles": Title, "profiles": Profile}
    for table in TABLES:
        assert [column.name for column in columns(table)] == list(models[table].model_fields)
        assert list(polars_schema(table)) == list(models[table].model_fields)


def test_what_was_written_is_what_is_opened(dataset: Dataset) -> None:
    opened = open_dataset(dataset.path)
    assert opened == dataset
    assert (opened.first_ts_ms, opened.last_ts_ms, opened.shift_ms) == (10, 30, 5)
    assert opened.rows == {"events": 3, "titles": 2, "profiles": 3}
    assert [event.ts for event in opened.events()] == [10, 20, 30]
    assert [title.name for title in opened.titles()] == ["Zero", "One"]
    assert opened.profiles() == [
        Profile(profile_id="p0"), Profile(profile_id="p1"), Profile(profile_id="p9", region="eu", kids=True),
    ]  # fmt: skip


def test_snapshot_names_the_content_and_nothing_else(dataset: Dataset, tmp_path: Path) -> None:
    content = {table: dataset.frame(table) for table in TABLES}
    same = write_dataset(tmp_path / "other", source="elsewhere", **content)
    assert same.snapshot == dataset.snapshot
    content["events"] = content["events"].with_columns(pl.col("ts") + 1)
    assert write_dataset(tmp_path / "other", source="elsewhere", **content).snapshot != dataset.snapshot


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("harm", [altered, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_harmed_table_is_refused_by_name(dataset: Dataset, table: str, harm: Callable[[Path], object]) -> None:
    harm(dataset.path / f"{table}.parquet")
    with pytest.raises(DatasetError, match=f"mine/{table}.parquet: got .*playhead data"):
        open_dataset(dataset.path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 1}', '"text"'])
def test_a_harmed_description_is_refused(dataset: Dataset, text: str) -> None:
    (dataset.path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        open_dataset(dataset.path)


def test_tables_of_another_schema_are_refused(dataset: Dataset) -> None:
    file = dataset.path / "titles.parquet"
    dataset.frame("titles").drop("kids").write_parquet(file)
    description = json.loads((dataset.path / "dataset.json").read_text())
    description["files"]["titles.parquet"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (dataset.path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DatasetError, match=r"titles\.parquet"):
        open_dataset(dataset.path)


def test_no_set_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="playhead data prepare nothing"):
        open_dataset(tmp_path / "nothing")


def test_no_events_and_bad_names_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="at least one event"):
        write_dataset(tmp_path / "data" / "mine", source="", events=events().cast({"ts": pl.Int64}), titles=TITLES)
    with pytest.raises(InvalidInput, match="name"):
        write_dataset(tmp_path / "data" / "Mine!", source="", events=events(("p", "t0", "play", 1)), titles=TITLES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["while writing", "between the renames", "after the renames"])
def test_the_next_write_mends_what_a_crash_left(dataset: Dataset, moment: str) -> None:
    folder, stored = dataset.path.parent, dataset.frame("events")
    if moment == "while writing":
        (folder / ".mine.new").mkdir()
        (folder / ".mine.new" / "events.parquet").write_bytes(b"half")
    elif moment == "between the renames":
        dataset.path.rename(folder / ".mine.old")
    else:
        (folder / ".mine.old").mkdir()
    again = write_dataset(dataset.path, source="again", events=stored, titles=TITLES)
    assert open_dataset(dataset.path) == again
    assert sorted(path.name for path in folder.iterdir()) == [".mine.lock", "mine"]


def test_a_write_that_fails_leaves_the_old_set(dataset: Dataset) -> None:
    with pytest.raises(pl.exceptions.PolarsError):
        write_dataset(dataset.path, source="", events=events(("p", "t0", "play", 1)).drop("ts"), titles=TITLES)
    assert open_dataset(dataset.path) == dataset


def test_writers_at_the_same_time_take_turns(tmp_path: Path) -> None:
    def write(number: int) -> str:
        rows = events(*(("p0", "t0", "play", ts) for ts in range(number * 1000, number * 1000 + 500)))
        return write_dataset(tmp_path / "mine", source=str(number), events=rows, titles=TITLES).snapshot

    with ThreadPoolExecutor(8) as pool:
        snapshots = set(pool.map(write, range(16)))
    assert len(snapshots) == 16
    assert open_dataset(tmp_path / "mine").snapshot in snapshots


def test_interactions_are_first_plays_in_order(tmp_path: Path) -> None:
    made = write_dataset(
        tmp_path / "mine",
        source="a test",
        events=events(
            ("p0", "t1", "play", 20), ("p0", "t0", "impression", 5), ("p0", "t0", "play", 20), ("p1", "t0", "play", 7),
            ("p0", "t1", "play", 10), ("p0", "t1", "finish", 11), ("p1", "t0", "play", 9),
        ),
        titles=TITLES,
    )  # fmt: skip
    assert interactions(made).rows() == [("p1", "t0", 7), ("p0", "t1", 10), ("p0", "t0", 20)]


@given(newest_ms=st.integers(0, 4 * 10**12), as_of_ms=st.integers(0, 4 * 10**12))
def test_weeks_to_lands_less_than_a_week_before(newest_ms: int, as_of_ms: int) -> None:
    shift = weeks_to(newest_ms, as_of_ms)
    assert shift % WEEK_MS == 0
    assert as_of_ms - WEEK_MS < newest_ms + shift <= as_of_ms
