"""`playhead titles`: what it puts into the store, and what it says where it cannot."""

import json

import pytest
from typer.testing import CliRunner

from deployments.cli import app
from features.additions import read_added


@pytest.fixture
def playhead(settings):
    runner = CliRunner(env={"PLAYHEAD_HOME": str(settings.home), "REDIS_URL": settings.redis_url, "COLUMNS": "200"})

    def run(*arguments):
        result = runner.invoke(app, ["titles", *arguments, "--json"])
        return result.exit_code, json.loads(result.stdout.splitlines()[-1])

    return run


def test_titles_are_put_and_taken_out(playhead, settings, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("title_id,name,genres\nn1,One,Drama\nn2,Two,Crime\n")
    assert playhead("put", str(path), "--data", "small") == (
        0, {"data": "small", "new": 2, "replaced": 0, "total": 2},
    )  # fmt: skip
    assert playhead("put", str(path), "--data", "small")[1]["replaced"] == 2
    assert [title.name for title in read_added(settings, "small")] == ["One", "Two"]
    assert playhead("remove", "n1", "absent", "--data", "small") == (0, {"data": "small", "removed": 1})
    assert [title.title_id for title in read_added(settings, "small")] == ["n2"]


def test_it_says_what_is_wrong_and_puts_nothing(playhead, settings, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("title_id,name,year\nn1,One,1999\nn2,Two,soon\n")
    status, told = playhead("put", str(path), "--data", "small")
    assert status == 1
    assert "year" in json.dumps(told["problems"])
    assert playhead("put", str(tmp_path / "absent.csv"), "--data", "small")[1]["error"]["field"] == "file"
    assert read_added(settings, "small") == []
    path.write_text("title_id,name\nn1,One\n")
    assert playhead("put", str(path))[1]["error"]["field"] == "--data", "nothing is up here"
    status, told = playhead("put", str(path), "--data", "small", "--wait", "0.2", "--url", "http://127.0.0.1:9")
    assert (status, told["error"]["field"]) == (1, "service")
