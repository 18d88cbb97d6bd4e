"""`playhead data snapshot` and `playhead data check`."""

import dataclasses
import json

import polars as pl
import pytest
from typer.testing import CliRunner

from deployments.cli import app
from serve.clock import now_ms
from tests.training.versions import settings_of
from training.checks import check_data, write_profile
from training.datasets import Dataset, open_dataset
from training.datasets.synthetic import prepare_synthetic


@pytest.fixture
def base(tmp_path) -> Dataset:
    return prepare_synthetic(tmp_path / "data" / "mine", profiles=20, titles=30, events=500, as_of_ms=now_ms())


@pytest.fixture
def playhead(tmp_path):
    runner = CliRunner(env={"PLAYHEAD_HOME": str(tmp_path), "REDIS_URL": "redis://127.0.0.1:1/0", "COLUMNS": "200"})
    return lambda *arguments: runner.invoke(app, list(arguments))


def last_line(result):
    return json.loads(result.stdout.splitlines()[-1])


def test_a_snapshot_is_taken_checked_and_refused(playhead, base, tmp_path):
    newest = base.last_ts_ms
    until = pl.Series([newest]).cast(pl.Datetime("ms")).dt.to_string("iso:strict")[0]
    taken = playhead("data", "snapshot", "mine", "--name", "cut", "--until", until, "--json")
    assert taken.exit_code == 0, taken.output
    assert last_line(taken)["rows"]["events"] == base.frame("events").filter(pl.col("ts") < newest).height
    assert last_line(taken)["snapshot"] == open_dataset(tmp_path / "data" / "cut").snapshot
    good = playhead("data", "check", "cut", "--until", until, "--json")
    assert good.exit_code == 0, good.output
    assert last_line(good)["ok"] is True
    leaks = playhead("data", "check", "mine", "--until", until, "--json")
    assert leaks.exit_code == 1
    assert last_line(leaks)["problems"][0]["check"] == "leakage"
    before = check_data(base, None).profile
    write_profile(settings_of(tmp_path), "recommend", dataclasses.replace(before, events=10 * before.events))
    fell = playhead("data", "check", "mine")
    assert fell.exit_code == 1
    assert "volume, events" in fell.stdout
    few = playhead("data", "snapshot", "mine", "--name", "mine2", "--until", "nonsense", "--json")
    assert few.exit_code == 1
    assert last_line(few)["error"]["field"] == "--until"
