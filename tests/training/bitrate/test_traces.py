import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.errors import InvalidInput, NotFound
from training.bitrate import columns
from training.bitrate.traces import Trace, read_trace, read_traces

SABRE = [
    {"duration_ms": 1000, "bandwidth_kbps": 500, "latency_ms": 100},
    {"duration_ms": 3000, "bandwidth_kbps": 1500, "latency_ms": 20},
]
FORMATS = {
    "pensieve": ("5.0\t9.9\n6.0 0.5\n\n9.0 1.5\n", [0, 1, 4], [9900, 500, 1500]),
    "kbps": ("0 9900\n1000 500\n4000 1500\n", [0, 1, 4], [9900, 500, 1500]),
    "sabre": (json.dumps(SABRE), [0, 1, 4], [500, 500, 1500]),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("told", [True, False])
def test_formats_are_read_and_detected(tmp_path, form, told):
    text, times_s, kbps = FORMATS[form]
    (tmp_path / "trace").write_text(text)
    trace = read_trace(tmp_path / "trace", form if told else "auto")
    np.testing.assert_allclose(trace.times_s, times_s)
    np.testing.assert_allclose(trace.kbps, kbps)
    assert trace.name == "trace"
    assert trace.mean_kbps == pytest.approx(1250)
    assert trace.rtt_s == (pytest.approx(0.04) if form == "sabre" else None)


def test_durations_in_ms_are_told_from_times(tmp_path):
    (tmp_path / "trace").write_text("1000 500\n1000 700\n3000 1500\n")
    trace = read_trace(tmp_path / "trace")
    np.testing.assert_allclose(trace.times_s, [0, 1, 2, 5])
    np.testing.assert_allclose(trace.kbps, [500, 500, 700, 1500])


def test_mahimahi_packets_become_throughput(tmp_path):
    """100 packets of 12 kbit in the first second, none in the second, 50 in the third."""
    due_ms = [*range(5, 1000, 10), *range(2020, 3001, 20), 3000]
    (tmp_path / "trace").write_text("\n".join(map(str, due_ms)))
    trace = read_trace(tmp_path / "trace")
    assert trace.times_s.tolist() == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3])
    np.testing.assert_allclose(trace.kbps[1:], [1200, 1200, 0, 0, 576, 648])
    assert trace.mean_kbps * 3 == pytest.approx(len(due_ms) * 12)


@pytest.mark.parametrize(
    ("form", "text", "line"),
    [
        ("auto", "0 1\n1 x\n2 1\n", 2),
        ("auto", "0 1\n1 nan\n2 1\n", 2),
        ("auto", "0 1\n\n1 -2\n2 1\n", 3),
        ("auto", "0 1\n1 2 3\n2 1\n", 2),
        ("auto", "0 1 2\n1 1 2\n", 1),
        ("pensieve", "0 1\n2 1\n1 1\n", 3),
        ("pensieve", "0 1\n2 1\n2 1\n", 3),
        ("kbps", "1000 5\n0 5\n1000 7\n", 2),
        ("mahimahi", "5\n900\n800\n2000\n", 3),
        ("mahimahi", "5\n7\n", 2),
        ("mahimahi", "0 1\n1 1\n", 1),
        ("sabre", '[\n{"duration_ms": }]', 2),
    ],
)
def test_wrong_lines_are_refused_by_file_and_line(tmp_path, form, text, line):
    (tmp_path / "bad").write_text(text)
    with pytest.raises(InvalidInput) as refused:
        read_trace(tmp_path / "bad", form)
    assert refused.value.field == f"{tmp_path / 'bad'}:{line}"
    assert refused.value.expected
    assert refused.value.next_step


@pytest.mark.parametrize(
    "text",
    [
        "", " \n", "0 1\n", "0 1\n0.5 1\n", "0 5\n9 0\n", "[]", "{}", "[1]",
        "9999999999\n", "1e300 1\n2e300 1\n", "0 1\n5 1e14\n", '[{"duration_ms": 0, "bandwidth_kbps": 5}]',
        '[{"duration_ms": 1e3}]', '[{"duration_ms": "NaN", "bandwidth_kbps": 1}]', "[" * 100_000,
        '[{"duration_ms": 1' + "0" * 400 + ', "bandwidth_kbps": 1}]',
    ],
)  # fmt: skip
def test_files_that_hold_no_trace_are_refused_by_name(tmp_path, text):
    (tmp_path / "bad").write_text(text)
    with pytest.raises(InvalidInput) as refused:
        read_trace(tmp_path / "bad")
    assert refused.value.field.startswith(str(tmp_path / "bad"))


def test_files_are_bounded_and_must_be_there(tmp_path, monkeypatch):
    with pytest.raises(NotFound):
        read_trace(tmp_path / "none")
    with pytest.raises(NotFound):
        read_traces(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_trace(tmp_path / "binary")
    (tmp_path / "large").write_text("0 1\n" * 100)
    monkeypatch.setattr(columns, "MAX_FILE_BYTES", 100)
    with pytest.raises(InvalidInput, match="at most 100 bytes"):
        read_trace(tmp_path / "large")


def test_folder_is_read_in_the_order_of_names(tmp_path):
    for name in ("bus_10", "bus_2", "bus_1", ".hidden"):
        (tmp_path / name).write_text("0 1\n5 1\n")
    assert [trace.name for trace in read_traces(tmp_path)] == ["bus_1", "bus_2", "bus_10"]


@settings(deadline=None)
@given(text=st.text(st.sampled_from('0123456789. \n-e[]{}nai\t,"'), max_size=60))
def test_any_text_is_a_trace_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_text(text)
    with contextlib.suppress(InvalidInput):
        assert read_trace(path).mean_kbps >= 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 20), st.floats(0.1, 100)), min_size=2, max_size=30).filter(
    lambda rows: sum(row[0] for row in rows[1:]) >= 1
))  # fmt: skip
def test_written_trace_is_read_back(tmp_path_factory, rows):
    times_s = np.cumsum([0, *(row[0] for row in rows[1:])])
    path = tmp_path_factory.getbasetemp() / "written"
    path.write_text("".join(f"{float(time)!r} {row[1]!r}\n" for time, row in zip(times_s, rows, strict=True)))
    trace = read_trace(path, "pensieve")
    np.testing.assert_array_equal(trace.times_s, times_s)
    np.testing.assert_allclose(trace.kbps, [row[1] * 1000 for row in rows])


@pytest.mark.parametrize(
    ("times_s", "kbps"),
    [
        ([0, 1], [1]),
        ([1, 2], [5, 5]),
        ([0, 1, 1], [5, 5, 5]),
        ([0, 5], [5, np.inf]),
        ([0, 5], [5, -1]),
        ([0, 5], [9, 0]),
    ],
)
def test_trace_refuses_what_no_network_carries(times_s, kbps):
    with pytest.raises(InvalidInput):
        Trace("bad", np.array(times_s, float), np.array(kbps, float))
