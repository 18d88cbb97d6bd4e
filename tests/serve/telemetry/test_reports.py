"""The one form that reports have, from CMCD lines and from JSON, and the dimensions that they are told apart by."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.telemetry.cmcd import read
from serve.telemetry.log import PARTITIONS, Said, partition_of, reports_of
from serve.telemetry.reports import MAX_KEYS, Report, context_of, counted, plain, read_lines, read_plain

LINE = (
    'ab=(3000;v 96;a),bl=(21300;v),br=(3200;v 128;a),bs,cid="t42",cdn="north",com.example-x=?0,e=t,'
    'ec=("4001" "7"),mtp=(25400;v),nor="a.m4s";r="0-99",pr=1.25,sf=h,sid="s1",sta=p,ts=1790000000000,v=2'
)


def test_a_line_in_the_plain_form() -> None:
    (values,), (malformed,), left_out = read_lines(LINE, 10)
    assert (malformed, left_out) == ((), 0)
    assert values == {
        "ab": {"v": 3000, "a": 96}, "bl": {"v": 21300}, "br": {"v": 3200, "a": 128}, "bs": True, "cid": "t42",
        "cdn": "north", "com.example-x": False, "e": "t", "ec": ["4001", "7"], "mtp": {"v": 25400}, "nor": "a.m4s",
        "pr": 1.25, "sf": "h", "sid": "s1", "sta": "p", "ts": 1790000000000, "v": 2,
    }  # fmt: skip
    assert all(type(value) in {int, float, str, bool, dict, list} for value in values.values())


def test_json_is_the_same_form() -> None:
    (values,), _, _ = read_lines(LINE, 10)
    again, malformed = read_plain(orjson.loads(orjson.dumps(values)))
    assert (again, malformed) == (values, ())


def test_lines_are_bounded_and_what_is_wrong_is_named() -> None:
    text = '\n  \nsid="a",br=x\r\nsid="b",bl=-1,e="t"\n=\nsid="c"\nsid="d"'
    said, malformed, left_out = read_lines(text, 4)
    assert [one.get("sid") for one in said] == ["a", "b", None, "c"]
    assert counted(malformed) == {"br": 1, "bl": 1, "e": 1, "?": 1}
    assert left_out == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("br", "3200"), ("br", -1), ("br", True), ("br", 1.5), ("br", {"v": -1}), ("br", {"x": 1}), ("br", {}),
        ("br", [1]), ("bs", 1), ("bs", "true"), ("pr", "1"), ("pr", float("nan")), ("ot", "zz"), ("sta", 1),
        ("sid", 5), ("sid", "x" * 129), ("sid", ["a"]), ("ec", [1]), ("ec", ["x" * 129]), ("ts", 1e15), ("ts", None),
        ("com.x-y", None), ("com.x-y", {"a": {"b": 1}}), ("com.x-y", [[1]]), ("bl", {"v": "1"}),
    ],
)  # fmt: skip
def test_json_of_another_type_is_named(key: str, value: object) -> None:
    assert read_plain({"sid": "ok", key: value})[1] == (key,)


def test_unknown_keys_are_kept_up_to_a_number() -> None:
    values, malformed = read_plain({f"com.x-{place}": place for place in range(MAX_KEYS + 3)})
    assert len(values) == MAX_KEYS
    assert malformed == tuple(f"com.x-{place}" for place in range(MAX_KEYS, MAX_KEYS + 3))


@given(st.dictionaries(st.text(max_size=5), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
), max_size=6))  # fmt: skip
def test_any_json_is_read(said: dict[str, object]) -> None:
    values, malformed = read_plain(said)
    assert len(values) + len(malformed) == len(said)
    orjson.dumps(values)


@given(st.text(max_size=80))
def test_any_text_is_read(text: str) -> None:
    said, malformed, left_out = read_lines(text, 100)
    assert len(said) == len(malformed)
    assert left_out == 0
    orjson.dumps([{key: str(value) for key, value in one.items()} for one in said])


def test_dimensions_come_from_the_player_first() -> None:
    values = plain(read(['cdn="a",cid="t",sf=d,sid="s",com.playhead-region="eu",com.playhead-title="T"']))
    assert context_of(values, {"cdn": "edge", "asn": "64500", "device": "", "other": "x"}) == {
        "cdn": "edge", "asn": "64500", "region": "eu", "title": "T", "protocol": "dash",
    }  # fmt: skip
    assert context_of({}, {}) == {}


def test_a_report_gives_numbers_by_type() -> None:
    report = Report("s", 0, {"br": {"a": 128, "v": 3200}, "bl": 5, "bs": True, "e": 7}, {})
    assert (report.number("br"), report.number("br", "a"), report.number("br", "tt")) == (3200, 128, 128)
    assert (report.number("bl"), report.number("bs"), report.number("no")) == (5, None, None)
    assert (report.event, report.text("bl")) == ("", "")


def test_an_entry_holds_whole_sessions() -> None:
    said = [{"sid": f"s{place % 20}", "sn": place} for place in range(200)]
    parts = Said(1_790_000_000_000, {"region": "eu"}, said).parts()
    assert set(parts) <= set(range(PARTITIONS))
    assert len(parts) > 1
    found = [report for partition in parts for report in reports_of(parts[partition])]
    assert sorted(report.values["sn"] for report in found) == list(range(200))
    for partition, entry in parts.items():
        reports = reports_of(entry)
        assert {partition_of(report.session) for report in reports} == {partition}
        assert all(report.context == {"region": "eu"} for report in reports)
        for session in {report.session for report in reports}:
            numbers = [report.values["sn"] for report in reports if report.session == session]
            assert numbers == sorted(numbers)
