"""`playhead eval online` tells what a service measured; `playhead data drift` reports, or says what is missing."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import polars as pl
import pytest
from typer.testing import CliRunner

from deployments.cli import app
from serve.online.drift import DriftWatch
from serve.online.reference import Grounds, Reference
from serve.online.tallies import VersionTally
from tests.training.recommend import audience
from training.datasets.dataset import write_dataset

V = "a" * 12


def documents() -> dict[str, dict]:
    """What a service answers, of a version with two pages and a play, whose genres drift."""
    tally = VersionTally()
    bucket = tally.bucket(7)
    bucket.add("pages", 2)
    for name in ("played", "plays", "ranked", "gain", "gain_squared", "hits"):
        bucket.add(name)
    bucket.slot(0, 2)
    bucket.rank_play(0)
    bucket.chance(0.25)
    bucket.seconds[900] = 2
    figures = {"role": "champion", **tally.measure(7, 300, Grounds(titles=4))}
    watch = DriftWatch(V, Reference({"genre": {"Drama": 1.0}}, {}, {}))
    watch._since["genre"], watch._values["genre"] = 1_790_000_000_000, (0.5, 300.0)
    return {
        "/v1/models/recommend/online": {"degraded": [], "windows": [{"window_s": 300, "versions": {V: figures}}]},
        "/v1/models/recommend/drift": watch.told(7),
        "/v1/models/bitrate/online": {"degraded": ["online_missing"], "windows": []},
        "/v1/models/bitrate/drift": {"status": "unknown", "signals": []},
    }


@pytest.fixture
def url():
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(documents()[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(home, *arguments):
    runner = CliRunner(env={"PLAYHEAD_HOME": str(home), "REDIS_URL": "", "COLUMNS": "200"})
    return runner.invoke(app, list(arguments))


def test_figures_and_drift_are_told(tmp_path, url):
    result = run(tmp_path, "eval", "online", "--url", url, "--json")
    assert result.exit_code == 0, result.output
    for told in ("the last 5 minutes", V, "50.0% (", "1.000 (", "drifting, against what", "genre", "0.500", "300"):
        assert told in result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["online"]["windows"][0]["versions"][V]["play_rate"]["value"] == 0.5
    assert answer["drift"]["status"] == "drifting"
    assert "nothing was measured" in run(tmp_path, "eval", "online", "bitrate", "--url", url).stdout


def test_a_service_that_is_not_there_is_said(tmp_path):
    result = run(tmp_path, "eval", "online", "--url", "http://127.0.0.1:1", "--json")
    assert result.exit_code == 1
    assert "playhead up" in json.loads(result.stdout.splitlines()[-1])["error"]["next_step"]


def test_a_report_needs_a_data_set_and_plays(tmp_path):
    result = run(tmp_path, "data", "drift", "--out", str(tmp_path / "r.html"), "--json")
    assert (result.exit_code, json.loads(result.stdout.splitlines()[-1])["error"]["field"]) == (1, "reference")
    titles = [title.model_dump() for title in audience.titles()]
    events = audience.events()
    write_dataset(tmp_path / "data" / "small", source="test", events=events, titles=pl.DataFrame(titles))
    result = run(tmp_path, "data", "drift", "--reference", "small", "--out", str(tmp_path / "r.html"), "--json")
    assert (result.exit_code, json.loads(result.stdout.splitlines()[-1])["error"]["field"]) == (1, "current")
