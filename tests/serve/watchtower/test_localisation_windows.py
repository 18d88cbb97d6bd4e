"""Reading files of windows: what is taken, and what is refused with which words."""

import pytest

from serve.errors import InvalidInput, NotFound
from serve.watchtower import localisation_windows
from serve.watchtower.localisation_windows import parse_moment, read_windows, tell_moment


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "windows.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


ROWS = "timestamp,cdn,total,bad\n{0},a,10,1\n{1},a,10,2\n{2},a,12,3\n"


@pytest.mark.parametrize(
    ("stamps", "at"),
    [
        (("2026-01-31T20:15:00Z", "2026-01-31T20:16:00Z", "2026-01-31T20:17:00Z"), "2026-01-31T20:17:30+00:00"),
        (("2026-01-31 20:15:00", "2026-01-31 20:16:00", "2026-01-31 20:17:00"), "2026-01-31 20:17:00"),
        (("1769890500", "1769890560", "1769890620"), "1769890620"),
        (("1769890500000", "1769890560000", "1769890620000"), "2026-01-31T21:17:59+01:00"),
    ],
)
def test_timestamps_of_any_kind(write, stamps, at):
    windows = read_windows(write(ROWS.format(*stamps)))
    assert windows.window_ms == 60_000
    assert windows.at(at) == 1_769_890_620_000
    table = windows.table(windows.at(at), 60)
    assert table.windows == 2
    assert (table.total.sum(), table.bad.sum(), table.bad_before.sum()) == (12, 3, 3)


def test_values_are_any_text_and_rows_of_one_leaf_add_up(write):
    rows = '0,"a, b",,1,0\n60,NaN,é,2,1\n60,NaN,é,3,1\n60,"a, b",,5,0\n'
    windows = read_windows(write("timestamp,cdn,odd name,total,bad\n" + rows))
    assert windows.dimensions == ("cdn", "odd name")
    table = windows.table(windows.at("60"), 1)
    leaves = {
        tuple(table.named(list(enumerate(codes))).values()): (total, bad)
        for codes, total, bad in zip(table.codes.tolist(), table.total, table.bad, strict=True)
    }
    assert leaves == {("a, b", ""): (5, 0), ("NaN", "é"): (5, 2)}


def test_history_goes_back_as_far_as_asked(write):
    rows = "".join(f"{minute * 60},a,10,1\n" for minute in range(30))
    windows = read_windows(write("timestamp,cdn,total,bad\n" + rows))
    assert windows.table(windows.at("1740"), 5).windows == 5
    assert windows.table(windows.at("1740"), 600).windows == 29
    assert windows.table(windows.at("1740")).windows == 29
    hours = "".join(f"{hour * 3600},a,10,1\n" for hour in range(30))
    hourly = read_windows(write("timestamp,cdn,total,bad\n" + hours))
    assert hourly.table(hourly.at("104400")).windows == 12


def test_unevenly_spaced_windows_have_the_most_common_length(write):
    rows = "".join(f"{at},a,10,1\n" for at in (0, 300, 600, 900, 1800, 2100))
    windows = read_windows(write("timestamp,cdn,total,bad\n" + rows))
    assert windows.window_ms == 300_000
    with pytest.raises(NotFound, match="every 300 s"):
        windows.at("1500")


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("", "windows.csv", "an empty file"),
        ("timestamp,cdn,total,bad\n", "windows.csv", "no rows"),
        ("timestamp,cdn,total\n0,a,1\n", "windows.csv", "also bad"),
        ("time,cdn,total,bad\n0,a,1,1\n", "windows.csv", "also timestamp"),
        ("timestamp,total,bad\n0,1,1\n", "windows.csv", "no dimension"),
        ("timestamp,cdn,cdn,total,bad\n0,a,a,1,1\n", "windows.csv", "cdn twice"),
        ("timestamp,cdn,total,bad\n0,a,5,1\n60,a,5,6\n", "line 3, bad", "bad 6 of total 5"),
        ("timestamp,cdn,total,bad\n0,a,-5,0\n", "line 2, total", "-5"),
        ("timestamp,cdn,total,bad\n0,a,5,nan\n", "line 2, bad", "nan"),
        ("timestamp,cdn,total,bad\n0,a,5,1\n0,a,,1\n", "line 3, total", "nothing"),
        ("timestamp,cdn,total,bad\n0,a,many,1\n", "line 2, total", "many"),
        ("timestamp,cdn,total,bad\n0,a,5,1\nyesterday,a,5,1\n", "line 3, timestamp", "yesterday"),
        ("timestamp,cdn,total,bad\n,a,5,1\n", "line 2, timestamp", "nothing"),
        ("timestamp,cdn,total,bad\n1e300,a,5,1\n", "line 2, timestamp", "1e300"),
    ],
)
def test_refusals_name_the_line_and_what_was_expected(write, text, field, words):
    with pytest.raises(InvalidInput) as caught:
        read_windows(write(text))
    assert field in caught.value.field
    assert words in f"{caught.value.got} {caught.value.expected}"
    assert caught.value.next_step


def test_no_file_and_files_too_large(tmp_path, write, monkeypatch):
    with pytest.raises(NotFound, match="no such file"):
        read_windows(tmp_path / "none.csv")
    path = write(ROWS.format(0, 60, 120))
    monkeypatch.setattr(localisation_windows, "LARGEST_ROWS", 2)
    with pytest.raises(InvalidInput, match="3 rows"):
        read_windows(path)
    monkeypatch.setattr(localisation_windows, "LARGEST_BYTES", 10)
    with pytest.raises(InvalidInput, match="MiB"):
        read_windows(path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "windows.csv"
    path.write_bytes(b"\xff\xfe\x00timestamp\x80\n\x81,\n")
    with pytest.raises(InvalidInput):
        read_windows(path)


def test_moments_outside_the_file_and_no_history(write):
    windows = read_windows(write(ROWS.format(0, 60, 120)))
    for moment in ("-1", "180", "2026-01-01"):
        with pytest.raises(NotFound, match="1970-01-01T00:00:00Z to 1970-01-01T00:02:00Z"):
            windows.at(moment)
    with pytest.raises(InvalidInput, match="soon"):
        windows.at("soon")
    with pytest.raises(InvalidInput, match="no window"):
        windows.table(windows.at("0"), 60)
    for minutes in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidInput, match="minutes, more than 0"):
            windows.table(windows.at("120"), minutes)


def test_moments_there_and_back():
    assert tell_moment(parse_moment("2026-01-31T20:15:00.250Z")) == "2026-01-31T20:15:00.250Z"
    assert tell_moment(parse_moment("1769890500")) == "2026-01-31T20:15:00Z"
    assert parse_moment("nan") is None
