"""`playhead feedback`: labels from files, with or without any; and what it says where it cannot."""

import json

import polars as pl
import pytest
from typer.testing import CliRunner

from deployments.cli import app
from features.sink import LogSink
from serve.feedback.records import FEEDBACK, FIELD, STREAM
from training.labels import LABELS


@pytest.fixture
def playhead(settings):
    runner = CliRunner(env={"PLAYHEAD_HOME": str(settings.home), "REDIS_URL": settings.redis_url, "COLUMNS": "200"})
    return lambda *arguments: runner.invoke(app, ["feedback", *arguments])


def test_labels_are_exported(playhead, settings, store, tmp_path):
    path = tmp_path / "labels.parquet"
    result = playhead("export", "--labels", str(path), "--json")
    assert result.exit_code == 0, result.output
    assert dict(pl.read_parquet(path).schema) == {name: kind() for name, kind in LABELS.items()}
    said = {"feedback_id": "f", "ts": 1_790_000_000_000, "kind": "tag", "verdict": "good", "reporter": "anna"}
    store.xadd(STREAM, {FIELD: json.dumps(said)})
    store.xadd(STREAM, {FIELD: "rubbish"})
    sink = LogSink(settings, settings.home / "feedback", FEEDBACK, wait_ms=20)
    assert sink.drain() == 2
    sink.close()
    result = playhead("export", "--labels", str(path), "--json")
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "labels": str(path), "rows": 1, "with_profile": 0, "feedback": 1,
    }  # fmt: skip
    assert pl.read_parquet(path)["label"].to_list() == [1]


def test_it_says_what_is_wrong(playhead, tmp_path):
    for path in (tmp_path / "labels.txt", tmp_path / "absent" / "labels.csv"):
        result = playhead("export", "--labels", str(path), "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout.splitlines()[-1])["error"]["field"] == "--labels"
    result = playhead("count", "--url", "http://127.0.0.1:9", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout.splitlines()[-1])["error"]["field"] == "service"
