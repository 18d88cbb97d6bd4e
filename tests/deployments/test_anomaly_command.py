"""`playhead eval anomaly`: a file, a benchmark, and what it refuses."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from deployments.cli import app

START = np.datetime64("2015-03-01T00:00:00")


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{str(START + np.timedelta64(300 * row, 's')).replace('T', ' ')},{value}" for row, value in enumerate(values)
    ]
    path.write_text("timestamp,value\n" + "\n".join(rows) + "\n")


def noisy(rows, at, seed=1):
    values = np.random.default_rng(seed).normal(100, 5, rows)
    values[at] += 90
    return values


@pytest.fixture
def benchmark(tmp_path):
    folder = tmp_path / "nab"
    windows = {}
    for place, (name, at) in enumerate({"spikes/a.csv": 600, "spikes/b.csv": 700, "others/c.csv": 800}.items()):
        write(folder / "data" / name, noisy(1000, at, place))
        ends = [str(START + np.timedelta64(300 * row, "s")).replace("T", " ") for row in (at - 20, at + 20)]
        windows[name] = [[f"{end}.000000" for end in ends]]
    windows["spikes/not_here.csv"] = []
    (folder / "labels").mkdir()
    (folder / "labels" / "combined_windows.json").write_text(json.dumps(windows))
    return folder


def run(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["eval", "anomaly", *map(str, arguments)])


def last_line(result):
    return json.loads(result.stdout.splitlines()[-1])


def test_a_file(tmp_path):
    path = tmp_path / "one.csv"
    write(path, noisy(1000, 600))
    result = run(path, "--top", 3, "--json")
    assert result.exit_code == 0
    answer = last_line(result)
    assert answer["rows"] == 1000
    assert answer["us_per_value"] > 0
    strongest = answer["anomalies"][0]
    assert (strongest["row"], strongest["timestamp"]) == (601, "2015-03-03 02:00:00")
    assert 0.85 < strongest["score"] < 1
    assert len(answer["anomalies"]) <= 3
    words = run(path)
    assert words.exit_code == 0
    assert "2015-03-03 02:00:00" in words.stdout


def test_a_file_with_nothing_in_it(tmp_path):
    write(tmp_path / "flat.csv", [3.0] * 300)
    result = run(tmp_path / "flat.csv")
    assert result.exit_code == 0
    assert "no anomaly in 300 rows" in result.stdout


def test_a_benchmark_and_its_scores_by_row(benchmark, tmp_path):
    result = run("--nab", benchmark, "--out", tmp_path / "out", "--rivals", "--json")
    assert result.exit_code == 0
    answer = last_line(result)
    assert set(answer) >= {
        "standard",
        "reward_low_fp",
        "reward_low_fn",
        "us_per_value",
        "files",
        "thresholds",
        "groups",
    }
    assert answer["standard"] > 80
    assert set(answer["files"]) == {"spikes/a.csv", "spikes/b.csv", "others/c.csv"}
    assert answer["files"]["spikes/a.csv"]["detected"] == 1
    assert set(answer["groups"]) == {"spikes", "others"}
    assert set(answer["rivals"]) == {"standard_absolute_deviation", "gaussian_scorer", "half_space_trees"}
    with (tmp_path / "out" / "spikes" / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["timestamp", "value", "anomaly_score", "label"]
    assert len(rows) == 1000
    assert sum(int(row["label"]) for row in rows) == 41
    best = max(rows, key=lambda row: float(row["anomaly_score"]))
    assert best["timestamp"] == "2015-03-03 02:00:00"
    words = run("--nab", benchmark)
    assert words.exit_code == 0
    assert "playhead" in words.stdout


@pytest.mark.parametrize("arguments", [[], ["a.csv", "--nab", "b"], ["none.csv"], ["--nab", "none"]])
def test_what_is_refused(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, "--json")
    assert result.exit_code == 1
    assert set(last_line(result)["error"]) == {"field", "got", "expected", "next_step"}


def test_options_of_the_other_form_are_refused(tmp_path):
    write(tmp_path / "one.csv", [1.0, 2.0])
    for option in (["--rivals"], ["--out", tmp_path]):
        result = run(tmp_path / "one.csv", *option, "--json")
        assert result.exit_code == 1
        assert last_line(result)["error"]["field"] == option[0]


def test_a_bad_row_is_named(tmp_path):
    (tmp_path / "bad.csv").write_text("timestamp,value\n2015-03-01 00:00:00,1\n2015-03-01 00:05:00,many\n")
    result = run(tmp_path / "bad.csv", "--json")
    assert result.exit_code == 1
    error = last_line(result)["error"]
    assert error["field"].endswith("bad.csv, line 3")
    assert "many" in error["got"]


def test_a_folder_that_cannot_be_written(benchmark, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("--nab", benchmark, "--out", tmp_path / "file", "--json")
    assert result.exit_code == 1
    assert last_line(result)["error"]["field"] == "--out"
