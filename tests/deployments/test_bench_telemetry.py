"""The telemetry benchmark runs, loses nothing, and says what it cannot reach."""

import json
from pathlib import Path

import pytest

from deployments import bench_telemetry

TINY = ["--viewers", "60", "--seconds", "25", "--warm-up", "20", "--http-seconds", "1"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAYHEAD_HOME", str(tmp_path))


def test_every_step_and_the_http_path_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_telemetry.main([*TINY, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    well, broken = report["chain"]
    assert not well["broken"]
    assert broken["broken"]
    assert list(well["steps_us"]) == list(bench_telemetry.STEPS)
    assert all(spent_us > 0 for spent_us in well["steps_us"].values())
    assert sum(well["steps_us"].values()) == pytest.approx(well["us_per_report"])
    assert well["reports"] > 0
    assert well["windows"] in {2, 3}
    http = report["http"]
    assert http["errors"] == {}
    assert http["lost"] == 0
    assert 0 < http["acknowledged_reports"] <= http["in_log"]
    assert http["in_log"] <= http["acknowledged_reports"] + http["connections"] * http["batch"]
    assert list(tmp_path.iterdir()) == []


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_telemetry.main([*TINY, "--no-http", "--no-outage"]) == 0
    told = capsys.readouterr().out
    assert all(step in told for step in bench_telemetry.STEPS)
    assert json.loads(told.splitlines()[-1])["chain"]


def test_a_service_that_is_not_there_is_told_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_telemetry.main([*TINY, "--no-outage", "--url", "http://127.0.0.1:1", "--json"]) == 1
    assert "http://127.0.0.1:1" in capsys.readouterr().err
