"""`playhead localise` and `playhead eval localise`."""

import json
import time

import polars as pl
import pytest
from typer.testing import CliRunner

from deployments.cli import app
from training.watchtower.incidents import LEVELS, Level, incidents


@pytest.fixture
def playhead(tmp_path):
    runner = CliRunner(env={"PLAYHEAD_HOME": str(tmp_path / "home"), "COLUMNS": "140"})

    def run(*arguments):
        return runner.invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="module")
def incident():
    return next(incidents(2, 1, levels=tuple(level for level in LEVELS if level.name == "two dimensions")))


@pytest.fixture(scope="module")
def file(incident, tmp_path_factory):
    path = tmp_path_factory.mktemp("windows") / "windows.csv"
    incident.frame().write_csv(path)
    return path


def last_line(result):
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_json_names_the_cause_with_evidence(playhead, file, incident):
    result = playhead("localise", file, "--at", incident.at_ms, "--json")
    assert result.exit_code == 0, result.output
    answer = last_line(result)
    assert answer["causes"][0]["slice"] == incident.causes[0]
    assert answer["causes"][0]["role"] == "cause"
    assert 0.5 <= answer["causes"][0]["score"] <= 1
    assert answer["external"] is False
    assert answer["incident"] is True
    assert answer["window_s"] == 60
    assert answer["history_windows"] + answer["left_out_windows"] == len(incident.total) - 1
    assert answer["bad"] == incident.bad[-1].sum()
    evidence = answer["causes"][0]["evidence"]
    assert evidence["bad"] - evidence["expected"] == pytest.approx(evidence["excess"])
    assert len(answer["causes"]) <= 5


def test_people_see_a_table(playhead, file, incident):
    result = playhead("localise", file, "--at", incident.at_ms + 30_000, "--top", 2)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    for name, value in incident.causes[0].items():
        assert f"{name}={value}" in words
    assert "runner-up" in words
    assert "leaves" in words


def test_history_and_top_are_kept_to(playhead, file, incident):
    answer = last_line(playhead("localise", file, "--at", incident.at_ms, "--history", 5, "--top", 1, "--json"))
    assert answer["history_windows"] + answer["left_out_windows"] == 5
    assert len(answer["causes"]) == 1
    assert answer["causes"][0]["slice"] == incident.causes[0]


def test_external_names_no_slice(playhead, tmp_path):
    level = tuple(level for level in LEVELS if level.name == "external")
    incident = next(incidents(2, 1, levels=level))
    path = tmp_path / "windows.csv"
    incident.frame().write_csv(path)
    answer = last_line(playhead("localise", path, "--at", incident.at_ms, "--json"))
    assert answer["external"] is True
    assert answer["incident"] is True
    assert answer["causes"] == []
    words = playhead("localise", path, "--at", incident.at_ms).stdout
    assert "everything changed alike" in words


def test_quiet_windows_say_so(playhead, tmp_path):
    level = Level(name="calm", what="quiet")
    incident = next(incidents(2, 1, levels=(level,)))
    path = tmp_path / "windows.csv"
    incident.frame().write_csv(path)
    result = playhead("localise", path, "--at", incident.at_ms, "--json")
    answer = last_line(result)
    assert (answer["external"], answer["incident"]) == (False, False)
    assert all(cause["role"] == "runner-up" for cause in answer["causes"])
    assert "no slice stands out" in playhead("localise", path, "--at", incident.at_ms).stdout


def test_sessions_that_are_gone(playhead, tmp_path):
    rows = ["timestamp,cdn,region,total,bad"]
    for minute in range(7):
        for cdn in "abc":
            for region in "nsew":
                gone = minute == 6 and (cdn, region) == ("b", "s")
                if not gone:
                    rows.append(f"2026-03-01T00:0{minute}:00Z,{cdn},{region},{100 + minute},1")
    path = tmp_path / "windows.csv"
    path.write_text("\n".join(rows))
    answer = last_line(playhead("localise", path, "--at", "2026-03-01T00:06:00Z", "--metric", "missing", "--json"))
    assert answer["causes"][0]["slice"] == {"cdn": "b", "region": "s"}
    assert answer["causes"][0]["role"] == "cause"


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        (["--at", "2031-01-01"], "--at", "a window of the file"),
        (["--at", "noon"], "--at", "ISO 8601"),
        (["--at", "0"], "--at", "a window of the file"),
        (["--at", "2026-01-01T00:00:00Z"], "--history", "at least one window before"),
        (["--at", "2026-01-01T00:05:00Z", "--history", "-3"], "--history", "more than 0"),
        (["--at", "2026-01-01T00:05:00Z", "--metric", "odd"], "--metric", "bad or missing"),
    ],
)
def test_refusals_say_field_and_expectation(playhead, file, arguments, field, words):
    result = playhead("localise", file, *arguments, "--json")
    assert result.exit_code == 1
    error = last_line(result)["error"]
    assert error["field"] == field
    assert words in error["expected"]
    assert error["next_step"]


def test_a_file_that_is_wrong_is_named(playhead, tmp_path):
    path = tmp_path / "windows.csv"
    path.write_text("timestamp,cdn,total,bad\n0,a,1,2\n")
    result = playhead("localise", path, "--at", "0", "--json")
    assert result.exit_code == 1
    assert "line 2, bad" in last_line(result)["error"]["field"]
    assert playhead("localise", tmp_path / "none.csv", "--at", "0").exit_code == 1


def test_fifty_thousand_rows_cost_little_more_than_reading_them(playhead, tmp_path):
    """A ratio, about 30 on an idle machine; the bar of a second is measured in docs/localisation.md."""
    level = Level(name="rows", depths=(2,), leaves=(9000, 9000), dimensions=(6, 6), windows=(5, 5), shares=(0.02, 0.2))
    incident = next(incidents(12, 1, levels=(level,)))
    path = tmp_path / "windows.csv"
    incident.frame().write_csv(path)
    reads_ms = []
    for _ in range(10):
        start = time.perf_counter()
        pl.read_csv(path)
        reads_ms.append((time.perf_counter() - start) * 1e3)
    answer = last_line(playhead("localise", path, "--at", incident.at_ms, "--json"))
    assert answer["rows"] > 35_000
    assert answer["read_ms"] + answer["localise_ms"] < 150 * max(reads_ms)


def test_eval_prints_one_table_and_json(playhead):
    result = playhead("eval", "localise", "--seed", 3, "--cases", 2, "--public", 0, "--json")
    assert result.exit_code == 0, result.output
    answer = last_line(result)
    assert set(answer["methods"]) == {"playhead", "riskloc", "robustspot", "adtributor"}
    for rows in answer["methods"].values():
        assert rows["all"]["cases"] == 2
    shown = playhead("eval", "localise", "--seed", 3, "--cases", 1, "--method", "playhead, adtributor")
    assert "one dimension" in shown.stdout
    refused = playhead("eval", "localise", "--method", "guess", "--json")
    assert refused.exit_code == 1
    assert last_line(refused)["error"]["field"] == "--method"
