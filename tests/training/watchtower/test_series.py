"""Files of timestamp,value: what is read, and what is refused with the line named."""

import numpy as np
import pytest

from serve.errors import InvalidInput
from training.watchtower.series import read_series


def test_forms_of_timestamps_and_header(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("timestamp,value\n2015-03-01 00:05:00,1.5\n2015-03-01T00:10:00Z,2\n\n1425168900,3\n")
    series = read_series(path)
    assert series.times_s.tolist() == [1425168300.0, 1425168600.0, 1425168900.0]
    assert series.values.tolist() == [1.5, 2.0, 3.0]
    assert series.timestamps[0] == "2015-03-01 00:05:00"
    assert series.times[0] == np.datetime64("2015-03-01T00:05:00")
    path.write_text("2015-03-01 00:05:00.250,1\n")
    assert read_series(path).times_s.tolist() == [1425168300.25]


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("timestamp,value\n2015-03-01,x\n", 2, "finite number"),
        ("timestamp,value\n2015-03-01,nan\n", 2, "finite number"),
        ("timestamp,value\n2015-03-01,1\nyesterday,2\n", 3, "timestamp"),
        ("timestamp,value\n2015-03-01\n", 2, "two columns"),
        ("time,value,more\n2015-03-01,1,2\n", 1, "two columns"),
        ("timestamp,value\n,5\n", 2, "timestamp"),
        ("timestamp,value\n1e300,5\n", 2, "timestamp"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, line, expected):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InvalidInput) as refused:
        read_series(path)
    assert refused.value.field.endswith(f"bad.csv, line {line}")
    assert expected in refused.value.expected
    assert refused.value.next_step


def test_nothing_to_read(tmp_path):
    with pytest.raises(InvalidInput, match=r"No such file"):
        read_series(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("timestamp,value\n")
    with pytest.raises(InvalidInput, match="no rows"):
        read_series(tmp_path / "empty.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput):
        read_series(tmp_path / "binary.csv")
