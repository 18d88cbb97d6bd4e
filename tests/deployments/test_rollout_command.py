"""`playhead eval rollout` answers with what scripts rely on, and people."""

import json

from typer.testing import CliRunner

from deployments.cli import app
from training.rollout.trials import EFFECTS, POLICY_EFFECTS


def test_one_rollout_of_each(tmp_path):
    runner = CliRunner(env={"PLAYHEAD_HOME": str(tmp_path), "COLUMNS": "200"})
    result = runner.invoke(app, ["eval", "rollout", "--runs", "1", "--seed", "3", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout.splitlines()[-1])
    assert 0.0 <= report["false_rollback_rate"] <= report["false_rollback_rate_upper_95"] <= 1.0
    assert (report["runs"], report["every_event_counted"]["runs"]) == (1, 1)
    assert set(report["requests_to_detect"]) == set(EFFECTS)
    for row in report["requests_to_detect"].values():
        assert {"median", "p90", "challenger_median", "challenger_p90", "detected", "by_stage"} <= set(row)
    assert report["requests_to_detect"]["p99 x2"]["median"] > 0
    assert set(report["requests_at_one_stage"]["plays -20 %"]) == {"0.01", "0.1", "0.5"}
    for told in ("rolled back for nothing", "plays -20 %, 10% only", f"{report['requests_to_promote']['median']:,}"):
        assert told in result.stderr


def test_one_rollout_of_each_policy(tmp_path):
    runner = CliRunner(env={"PLAYHEAD_HOME": str(tmp_path), "COLUMNS": "200"})
    result = runner.invoke(app, ["eval", "rollout", "--model", "bitrate", "--runs", "1", "--seed", "3", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout.splitlines()[-1])
    assert (report["model"], report["runs"]) == ("bitrate", 1)
    assert set(report["requests_to_detect"]) == set(POLICY_EFFECTS)
    assert report["requests_to_detect"]["rebuffering x2"]["median"] > 0
    for told in ("sessions until then", "VMAF -5, 10% only"):
        assert told in result.stderr


def test_runs_are_one_at_least():
    assert CliRunner().invoke(app, ["eval", "rollout", "--runs", "0"]).exit_code == 2
