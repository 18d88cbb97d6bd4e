import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from features.events import Event, EventKind
from serve.errors import InvalidInput
from training.datasets import open_dataset
from training.datasets.importing import ImportReport, import_dataset
from training.datasets.schema import conform

NOW_MS = 1_800_000_000_000
Rows = list[dict[str, Any]]


def an_event(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "event_id": f"e{number}",
        "profile_id": f"p{number % 2}",
        "title_id": f"t{number % 3}",
        "kind": "play",
        "ts": NOW_MS - 10_000 + number,
        "position_s": 0.0,
        "duration_s": 60.0,
    } | changes


def good() -> dict[str, Rows]:
    return {
        "events": [an_event(number) for number in range(8)],
        "titles": [{"title_id": f"t{number}", "name": f"Title {number}", "genres": ["Drama"]} for number in range(3)],
    }


def write(folder: Path, tables: dict[str, Rows], form: str = "parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for table, rows in tables.items():
        frame = pl.DataFrame(rows, infer_schema_length=None)
        if form == "parquet":
            frame.write_parquet(folder / f"{table}.parquet")
        else:
            frame.with_columns(pl.col(pl.List(pl.String)).list.join("|")).write_csv(folder / f"{table}.csv")
    return folder


def bring(tmp_path: Path, tables: dict[str, Rows], form: str = "parquet") -> ImportReport:
    return import_dataset(write(tmp_path / "brought", tables, form), tmp_path / "data", "mine", now_ms=NOW_MS)


def changed(table: str, row: int, **changes: Any) -> Callable[[dict[str, Rows]], None]:
    def change(tables: dict[str, Rows]) -> None:
        tables[table][row - 1] |= changes

    return change


def appended(table: str, row: dict[str, Any]) -> Callable[[dict[str, Rows]], None]:
    return lambda tables: tables[table].append(row)


WRONG = [
    # what is done to good data (row numbers from 1), column, rows named, part of what is said
    (changed("events", 3, event_id=None), "event_id", (3,), "got None, expected 1 to 128 characters"),
    (changed("events", 8, profile_id="two words"), "profile_id", (8,), "printable ASCII without spaces"),
    (changed("events", 1, profile_id="p" * 129), "profile_id", (1,), "1 to 128 characters"),
    (changed("events", 1, profile_id="line\n"), "profile_id", (1,), r"got 'line\n'"),
    (changed("events", 2, kind="watch"), "kind", (2,), "got 'watch', expected one of impression, play"),
    (changed("events", 4, ts=1_799_999_999), "ts", (4,), "look like seconds: multiply ts by 1000"),
    (changed("events", 4, ts=1_799_999_999_000_000), "ts", (4,), "micro- or nanoseconds"),
    (changed("events", 4, ts=0), "ts", (4,), "before 1973"),
    (changed("events", 4, ts=-5), "ts", (4,), "before 1973"),
    (changed("events", 5, ts=NOW_MS + 3_600_001), "ts", (5,), "no later than now"),
    (changed("events", 6, position_s=90.0), "position_s", (6,), "got '90.0 of 60.0', expected at most duration_s"),
    (changed("events", 6, position_s=-1.0), "position_s", (6,), "a finite number from 0"),
    (changed("events", 6, position_s=float("nan")), "position_s", (6,), "a finite number"),
    (changed("events", 6, duration_s=float("inf")), "duration_s", (6,), "a finite number"),
    (changed("events", 6, position_s=None), "position_s", (6,), "Write 0.0 where unknown"),
    (changed("events", 7, rank=10_001), "rank", (7,), "a whole number from 0 to 10000 or null"),
    (changed("events", 7, device="d" * 65), "device", (7,), "0 to 64 characters or null"),
    (changed("events", 7, title_id="t99"), "title_id", (7,), "Add the 1 unknown titles (t99)"),
    (changed("events", 5, event_id="e0"), "event_id", (1, 5), "these share one and differ"),
    (changed("titles", 2, title_id="t0"), "title_id", (1, 2), "expected each title_id once"),
    (changed("titles", 2, name=""), "name", (2,), "got '', expected 1 to 512 characters"),
    (changed("titles", 2, year=3000), "year", (2,), "from 0 to 2200"),
    (changed("titles", 3, genres=["Drama", None]), "genres", (3,), "Leave nulls out of the list"),
    (changed("titles", 1, added_ts=1_700_000_000), "added_ts", (1,), "multiply added_ts by 1000"),
    (appended("events", an_event(9, kind="")), "kind", (9,), "one of impression"),
]


@pytest.mark.parametrize(("change", "column", "rows", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_values_are_named_with_their_rows(
    tmp_path: Path, change: Callable[[dict[str, Rows]], None], column: str, rows: tuple[int, ...], said: str
) -> None:
    tables = good()
    change(tables)
    for row in tables["titles"]:  # a column that only one row of the table brings
        row.setdefault("year", 2000)
        row.setdefault("added_ts", 0)
    report = bring(tmp_path, tables)
    found = [problem for problem in report.problems if problem.column == column and problem.rows == rows]
    assert found, [str(problem) for problem in report.problems]
    assert said in str(found[0])
    assert found[0].count == len(rows)
    assert not report.ok
    assert not (tmp_path / "data").exists()


CSV_WRONG = [
    (b"event_id,profile_id,title_id,kind,ts\ne1,p,t0,play,soon\n", "ts", (1,), "got 'soon', expected a whole number"),
    (b"event_id,profile_id,title_id,kind,ts\ne1,p,t0,play,1.5\n", "ts", (1,), "a whole number"),
    (b"event_id,profile_id,title_id,kind,ts\ne0,p,t0,play,1700000000000\ne1,p\n", "", (2,), "got 2 cells, expected 5"),
    (b"event_id,profile_id,title_id,kind,ts\ne1,p,t0,play,1,2,3\n", "", (1,), "got 7 cells, expected 5"),
    (b"event_id,profile_id,title_id,kind,ts\ne0,p,t0,play,1\ne1,\xff,t0,play,1\n", "", (2,), "expected UTF-8 text"),
    (b'event_id,profile_id,title_id,kind,ts\n"e"1,p,t0,play,1\n', "", (), "Quote cells as in RFC 4180"),
    (b"event_id,event_id,profile_id,title_id,kind,ts\n", "event_id", (), "got the column twice"),
    (b"event_id,profile_id,title_id,kind,ts\n", "", (), "got no rows, expected at least one row"),
    (b"", "", (), "expected a readable CSV file"),
    (b"event_id,profile_id,title_id,kind\ne1,p,t0,play\n", "ts", (), "got no such column"),
    (b"event_id,profile_id,title_id,kind,ts,Region\n", "Region", (), "Rename it to region"),
    (b"event_id,profile_id,title_id,kind,ts,zzz\n", "zzz", (), "Remove it"),
    (b"event_id,profile_id,title_id,kind,ts\n,p,t0,play,1700000000000\n", "event_id", (1,), "got None"),
]


@pytest.mark.parametrize(("content", "column", "rows", "said"), CSV_WRONG)
def test_broken_csv_is_named(tmp_path: Path, content: bytes, column: str, rows: tuple[int, ...], said: str) -> None:
    folder = write(tmp_path / "brought", {"titles": good()["titles"]}, "csv")
    (folder / "events.csv").write_bytes(content)
    report = import_dataset(folder, tmp_path / "data", "mine", now_ms=NOW_MS)
    found = [problem for problem in report.problems if problem.column == column and problem.rows == rows]
    assert found, [str(problem) for problem in report.problems]
    assert said in str(found[0])
    assert not (tmp_path / "data").exists()


def test_rows_are_counted_and_only_the_first_are_listed(tmp_path: Path) -> None:
    tables = good()
    tables["events"] = [an_event(number, kind="watch" if number % 2 else "play") for number in range(100)]
    (problem,) = bring(tmp_path, tables).problems
    assert (problem.rows, problem.count) == ((2, 4, 6, 8, 10), 50)
    assert str(problem).startswith("events.parquet row 2, 4, 6, 8, 10 and 45 more, kind: got 'watch', expected one of")


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_partitions_keep_their_file_and_row(tmp_path: Path, form: str) -> None:
    tables = good()
    folder = write(tmp_path / "brought", {"titles": tables["titles"]})
    for day in range(12):
        write(folder / "events" / f"day={day:02}", {"part": [an_event(2 * day), an_event(2 * day + 1)]}, form)
    report = import_dataset(folder, tmp_path / "data", "mine", now_ms=NOW_MS)
    assert report.ok, [str(problem) for problem in report.problems]
    assert report.rows["events"] == 24
    wrong = [an_event(100, kind="watch"), an_event(101)]
    write(folder / "events" / "day=07", {"part": wrong}, form)
    (problem,) = import_dataset(folder, tmp_path / "data", "mine", now_ms=NOW_MS).problems
    assert (problem.file, problem.rows) == (f"events/day=07/part.{form}", (1,))


def test_many_wrong_files_are_summed_up(tmp_path: Path) -> None:
    folder = write(tmp_path / "brought", {"titles": good()["titles"]})
    for part in range(15):
        write(folder / "events" / f"{part:02}", {"part": [an_event(part, kind="watch")]})
    problems = import_dataset(folder, tmp_path / "data", "mine", now_ms=NOW_MS).problems
    assert [problem.file for problem in problems[-2:]] == ["events/09/part.parquet", "5 more files"]
    assert sum(problem.count for problem in problems) == 15


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("profile_id", pl.Series([1, 2]), 'pl.col("profile_id").cast(pl.String)'),
        ("ts", pl.Series([1.5e12, 1.6e12]), "got type Float64"),
        ("ts", pl.Series([NOW_MS] * 2).cast(pl.Datetime("ms")), 'dt.epoch("ms")'),
        ("kind", pl.Series([True, False]), "got type Boolean"),
    ],
)
def test_wrong_types_are_named(tmp_path: Path, column: str, values: pl.Series, said: str) -> None:
    folder = write(tmp_path / "brought", good())
    pl.DataFrame([an_event(0), an_event(1)]).with_columns(values.alias(column)).write_parquet(folder / "events.parquet")
    (problem,) = import_dataset(folder, tmp_path / "data", "mine", now_ms=NOW_MS).problems
    assert problem.column == column
    assert said in str(problem)


def test_narrower_types_are_accepted(tmp_path: Path) -> None:
    folder = write(tmp_path / "brought", good())
    pl.DataFrame(good()["events"]).with_columns(
        pl.col("kind").cast(pl.Categorical), pl.col("ts").cast(pl.UInt64), pl.col("position_s").cast(pl.Float32)
    ).write_parquet(folder / "events.parquet")
    assert import_dataset(folder, tmp_path / "data", "mine", now_ms=NOW_MS).ok


def test_a_number_too_large_for_its_column_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "brought", good())
    ts = pl.Series([NOW_MS, 2**63], dtype=pl.UInt64)
    pl.DataFrame([an_event(0), an_event(1)]).with_columns(ts=ts).write_parquet(folder / "events.parquet")
    (problem,) = import_dataset(folder, tmp_path / "data", "mine", now_ms=NOW_MS).problems
    assert (problem.column, problem.rows) == ("ts", (2,))


def test_the_same_event_twice_is_dropped_and_counted(tmp_path: Path) -> None:
    tables = good()
    tables["events"] += [an_event(2), an_event(2), an_event(5)]
    report = bring(tmp_path, tables)
    assert report.dataset is not None
    assert (report.duplicates, report.rows["events"], report.dataset.rows["events"]) == (3, 11, 8)


def test_all_problems_of_all_tables_come_at_once(tmp_path: Path) -> None:
    tables = good()
    changed("events", 1, kind="watch")(tables)
    changed("events", 2, ts=5)(tables)
    changed("titles", 1, name="")(tables)
    tables["profiles"] = [{"profile_id": "p0"}, {"profile_id": "p0"}]
    found = {(problem.file, problem.column) for problem in bring(tmp_path, tables).problems}
    assert found == {
        ("events.parquet", "kind"),
        ("events.parquet", "ts"),
        ("titles.parquet", "name"),
        ("profiles.parquet", "profile_id"),
    }


@pytest.mark.parametrize(
    ("lay", "said"),
    [
        (lambda folder: folder.rmdir(), "expected a folder with events and titles"),
        (lambda folder: (folder.rmdir(), folder.write_text("x")), "got a file"),
        (lambda folder: None, "events: got nothing, expected events.parquet, events.csv"),
        (lambda folder: (folder / "events").mkdir(), "got an empty folder"),
        (lambda folder: [(folder / f"events.{form}").touch() for form in ("csv", "parquet")], "Keep one of them"),
        (lambda folder: (folder / "events.parquet").write_bytes(b"PAR1 cut off"), "expected a readable Parquet file"),
    ],
)
def test_missing_and_unreadable_files_are_named(tmp_path: Path, lay: Callable[[Path], object], said: str) -> None:
    folder = tmp_path / "brought"
    folder.mkdir()
    lay(folder)
    report = import_dataset(folder, tmp_path / "data", "mine", now_ms=NOW_MS)
    assert any(said in str(problem) for problem in report.problems), [str(problem) for problem in report.problems]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["ml-100k", "synthetic", "../up", "", ".hidden", "a/b", "Upper"])
def test_names_that_are_taken_or_no_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="name: got"):
        import_dataset(write(tmp_path / "brought", good()), tmp_path / "data", name)


def test_a_refused_import_leaves_the_old_set_in_place(tmp_path: Path) -> None:
    first = bring(tmp_path, good())
    assert first.dataset is not None
    tables = good()
    changed("events", 1, kind="watch")(tables)
    assert not bring(tmp_path, tables).ok
    assert open_dataset(tmp_path / "data" / "mine").snapshot == first.dataset.snapshot


def test_left_out_columns_get_their_defaults_and_are_listed(tmp_path: Path) -> None:
    report = bring(tmp_path, good())
    assert report.dataset is not None
    assert set(report.filled) == {
        *(f"events.{name}" for name in ("request_id", "row", "rank", "device", "region")),
        *(f"titles.{name}" for name in ("year", "duration_s", "kids", "regions", "added_ts")),
    }
    assert [profile.profile_id for profile in report.dataset.profiles()] == ["p0", "p1"]
    assert report.dataset.titles()[0].genres == ("Drama",)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=20)
IDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12)
EVENTS = st.builds(
    Event,
    event_id=IDS,
    profile_id=IDS,
    title_id=st.sampled_from(["t0", "t1", "t2"]),
    kind=st.sampled_from(EventKind),
    ts=st.integers(100_000_000_000, NOW_MS),
    position_s=st.floats(0, 50),
    duration_s=st.one_of(st.just(0.0), st.floats(50, 1e6)),
    request_id=st.none() | TEXT.filter(bool),
    rank=st.none() | st.integers(0, 10_000),
    device=st.none() | TEXT.filter(bool),
)


@pytest.mark.parametrize("form", ["parquet", "csv"])
@given(events=st.lists(EVENTS, min_size=1, max_size=20, unique_by=lambda event: event.event_id))
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_brought_is_what_is_read(tmp_path: Path, form: str, events: list[Event]) -> None:
    rows = [event.model_dump(mode="json") for event in events]
    folder = tmp_path / "brought"
    write(folder, {"titles": good()["titles"]}, form)
    frame = conform(pl.DataFrame(rows, infer_schema_length=None), "events")
    frame.write_parquet(folder / "events.parquet") if form == "parquet" else frame.write_csv(folder / "events.csv")
    report = import_dataset(folder, tmp_path / "data", "mine", now_ms=NOW_MS)
    assert report.dataset is not None, [str(problem) for problem in report.problems]
    opened = open_dataset(report.dataset.path)
    assert list(opened.events()) == sorted(events, key=lambda event: event.ts)


ODD = st.one_of(st.none(), st.sampled_from(["", " ", "play", "é", "a b", "x" * 64, "x" * 65, "x" * 128, "x" * 129]))
NUMBERS = st.one_of(st.none(), st.sampled_from([0, 1, -1, 10_000, 10_001, 1_000_000, 1_000_001]))
CHANGES = st.one_of(
    *(st.tuples(st.just(name), ODD) for name in ("event_id", "profile_id", "kind", "request_id", "row", "device")),
    st.tuples(st.just("rank"), NUMBERS),
    st.tuples(st.just("duration_s"), st.one_of(st.none(), st.floats(width=32))),
)


@given(change=CHANGES)
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_import_refuses_exactly_what_the_event_contract_refuses(tmp_path: Path, change: tuple[str, object]) -> None:
    row = an_event(0) | {change[0]: change[1]}
    try:
        Event.model_validate(row)
    except ValidationError:
        allowed = False
    else:
        allowed = True
    folder = write(tmp_path / "brought", {"titles": good()["titles"]})
    schema = {change[0]: pl.Float64} if change[0] == "duration_s" else {}
    pl.DataFrame([row], schema_overrides=schema).write_parquet(folder / "events.parquet")
    report = import_dataset(folder, tmp_path / "data", "mine", now_ms=NOW_MS)
    assert report.ok == allowed, [str(problem) for problem in report.problems]


def test_a_million_rows_take_seconds(tmp_path: Path) -> None:
    count = 1_000_000
    folder = write(tmp_path / "brought", good())
    number = pl.int_range(count)
    pl.select(
        event_id=pl.format("e{}", number),
        profile_id=pl.format("p{}", number % 5000),
        title_id=pl.format("t{}", number % 3),
        kind=pl.lit("play"),
        ts=NOW_MS - number,
    ).with_columns(kind=pl.when(pl.int_range(count) == 999_998).then(pl.lit("watch")).otherwise("kind")).write_parquet(
        folder / "events.parquet"
    )
    began = time.process_time()  # other programs' load is not ours
    report = import_dataset(folder, tmp_path / "data", "mine", now_ms=NOW_MS)
    assert time.process_time() - began < 30
    assert [problem.rows for problem in report.problems] == [(999_999,)]
