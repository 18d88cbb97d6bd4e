"""The command line's surface is frozen: scripts rely on it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import polars as pl
import pytest
from typer.testing import CliRunner

from deployments.cli import app
from deployments.processes import ProcessRecord
from deployments.state import RunFolder, StackState
from serve.telemetry.records import SESSIONS

HEAVY = {"ray", "torch", "feast", "polars", "pandas", "numpy", "pyarrow", "openvino", "redis", "httpx", "pydantic"}

SURFACE = {
    (): {
        *("up", "down", "status", "doctor", "data", "train", "eval", "models", "compile", "localise", "quality"),
        *("demo", "load", "home", "sessions", "rollout", "learn", "gate", "feedback", "titles"),
    },
    ("data",): {"prepare", "import", "snapshot", "check", "drift"},
    ("train",): {"recommend", "bitrate", "quality", "detectors"},
    ("eval",): {"anomaly", "localise", "outages", "recommend", "bitrate", "quality", "rollout", "online", "drift"},
    ("models",): {"diff", "prune"},
    ("quality",): {"title"},
    ("demo",): {"outage", "learn"},
    ("learn",): {"now", "steps"},
    ("feedback",): {"list", "count", "export"},
    ("titles",): {"put", "remove"},
    ("rollout",): {"promote", "rollback", "pause", "shadow", "status", "changes"},
}

OPTIONS = {
    ("up",): {"--detach", "--placement", "--port", "--data", "--json"},
    ("down",): {"--json"},
    ("status",): {"--json"},
    ("rollout", "promote"): {"--share", "--force", "--by", "--reason", "--url", "--json"},
    ("rollout", "rollback"): {"--by", "--reason", "--url", "--json"},
    ("rollout", "pause"): {"--resume", "--by", "--reason", "--url", "--json"},
    ("rollout", "shadow"): {"--by", "--reason", "--url", "--json"},
    ("rollout", "status"): {"--url", "--json"},
    ("rollout", "changes"): {"--limit", "--url", "--json"},
    ("titles", "put"): {"--data", "--wait", "--url", "--json"},
    ("titles", "remove"): {"--data", "--json"},
    ("feedback", "list"): {"--kind", "--verdict", "--model", "--version", "--reporter", "--limit", "--url", "--json"},
    ("feedback", "count"): {"--kind", "--model", "--version", "--url", "--json"},
    ("feedback", "export"): {"--labels", "--json"},
    ("sessions",): {"--by", "--minutes", "--top", "--json"},
    ("doctor",): {"--port", "--data", "--json"},
    ("data", "prepare"): {"--json"},
    ("data", "import"): {"--name", "--json"},
    ("data", "snapshot"): {"--name", "--until", "--json"},
    ("data", "check"): {"--until", "--json"},
    ("data", "drift"): {"--reference", "--current", "--out", "--json"},
    ("train", "recommend"): {
        *("--data", "--seed", "--resume", "--warm", "--workers", "--streaming", "--in-memory", "--publish", "--json"),
    },
    ("train", "bitrate"): {
        *("--traces", "--format", "--sizes", "--vmaf", "--segment-s", "--rounds", "--minutes", "--seed", "--resume"),
        *("--without", "--warm", "--publish", "--json"),
    },
    ("eval", "bitrate"): {
        *("--traces", "--format", "--family", "--count", "--seed", "--sizes", "--vmaf", "--ladder-kbps", "--segment-s"),
        *("--max-buffer-s", "--qoe", "--policy", "--model", "--logs", "--plot", "--plot-trace", "--json"),
    },
    ("eval", "recommend"): {"--data", "--seed", "--seeds", "--json"},
    ("train", "detectors"): {"--evenings", "--seed", "--warm", "--publish", "--json"},
    ("train", "quality"): {"--folder", "--encodes", "--workers", "--seed", "--publish", "--json"},
    ("eval", "anomaly"): {"--nab", "--rivals", "--out", "--top", "--json"},
    ("demo", "outage"): {"--viewers", "--warm-up", "--broken", "--url", "--json"},
    ("demo", "learn"): {"--viewers", "--rate", "--warm-up", "--stage", "--port", "--seed", "--json"},
    ("learn", "now"): {"--data", "--json"},
    ("learn", "steps"): {"--limit", "--url", "--json"},
    ("localise",): {"--at", "--history", "--top", "--metric", "--json"},
    ("eval", "localise"): {"--seed", "--cases", "--public", "--method", "--json"},
    ("eval", "outages"): {"--seed", "--days", "--peak", "--json"},
    ("eval", "rollout"): {"--seed", "--runs", "--model", "--json"},
    ("eval", "online"): {"--url", "--json"},
    ("eval", "drift"): {"--seed", "--days", "--shifts", "--rate", "--json"},
    ("eval", "quality"): {"--model", "--backend", "--every", "--json"},
    ("quality", "title"): {"--reference", "--title-id", "--segment-s", "--every", "--model", "--json"},
    ("gate",): {"--against", "--data", "--json"},
    ("models",): {"--url", "--json"},
    ("models", "diff"): {"--json"},
    ("models", "prune"): {"--keep", "--dry-run", "--json"},
    ("compile",): {"--target", "--version", "--arch", "--again", "--json"},
    ("load",): {"--rps", "--seconds", "--seed", "--url", "--allow-remote", "--html", "--json"},
    ("home",): {"--url", "--json"},
}


@pytest.fixture
def playhead(tmp_path):
    runner = CliRunner(
        env={"PLAYHEAD_HOME": str(tmp_path / "home"), "REDIS_URL": "", "RAY_ADDRESS": "", "COLUMNS": "200"}
    )

    def run(*arguments):
        return runner.invoke(app, list(arguments))

    return run


def last_line(result):
    return json.loads(result.stdout.splitlines()[-1])


def commands(group):
    return {command.name for command in group.registered_commands} | {part.name for part in group.registered_groups}


def test_the_verbs():
    assert commands(app) == SURFACE[()]
    for part in app.registered_groups:
        assert commands(part.typer_instance) == SURFACE[(part.name,)]


@pytest.mark.parametrize("verb", OPTIONS, ids=" ".join)
def test_the_options(playhead, verb):
    result = playhead(*verb, "--help")
    assert result.exit_code == 0
    assert set(re.findall(r"--[a-z]+(?:-[a-z]+)*", result.stdout)) == OPTIONS[verb] | {"--help"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from deployments.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_status_and_down_of_nothing(playhead):
    status = playhead("status", "--json")
    assert status.exit_code == 1
    assert last_line(status) == {"up": False, "ready": False, "stale": False}
    down = playhead("down", "--json")
    assert down.exit_code == 0
    assert last_line(down) == {"ended": 0}


STARTING = """
import signal, sys
from pathlib import Path
from deployments.processes import ProcessRecord
from deployments.state import RunFolder, StackLock, StackState
folder = RunFolder(Path(sys.argv[1]))
StackLock.take(lock := StackLock(folder))
print("held", flush=True)
sys.stdin.readline()
StackState(ProcessRecord.of("supervisor", lock.holder()), "", "local", "d", "").write(folder)
signal.pause()
"""


def test_down_ends_what_has_only_just_begun_to_start(tmp_path):
    """The lock is held, and who holds it is not told yet; what a run that died left there says nothing of it."""
    home = tmp_path / "home"
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = ProcessRecord("supervisor", dead.pid, 1.0)
    StackState(gone, "", "local", "d", "").write(RunFolder(home))
    starting = subprocess.Popen(
        [sys.executable, "-c", STARTING, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with starting:
        assert starting.stdout.readline() == "held\n"
        down = subprocess.Popen(
            [sys.executable, "-m", "deployments.cli", "down", "--json"],
            env={**os.environ, "PLAYHEAD_HOME": str(home)},
            stdout=subprocess.PIPE,
            text=True,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            down.wait(3)
        starting.stdin.write("\n")
        starting.stdin.flush()
        told, _ = down.communicate(timeout=20)
        assert down.returncode == 0
        assert json.loads(told.splitlines()[-1]) == {"ended": 0}
        assert starting.wait(5) == -signal.SIGTERM


def test_load_of_another_machine_is_a_choice(playhead):
    refused = playhead("load", "home", "--url", "http://192.0.2.1:9", "--json")
    assert "--allow-remote" in last_line(refused)["error"]["next_step"]
    allowed = playhead("load", "home", "--url", "http://name.invalid:9", "--allow-remote", "--json")
    assert allowed.exit_code == 1
    assert "this machine" not in last_line(allowed)["error"]["expected"]


def test_doctor_on_a_fresh_machine(playhead):
    result = playhead("doctor", "--json")
    assert result.exit_code == 1
    report = last_line(result)
    assert report["ok"] is False
    assert {"part", "verdict", "text", "next_step"} == set(report["findings"][0])


def test_models_of_an_empty_home(playhead):
    result = playhead("models", "--json")
    assert result.exit_code == 0
    assert last_line(result) == {"models": [], "notes": [], "service": ""}


def test_an_error_is_told_to_people_and_to_scripts(playhead):
    result = playhead("data", "prepare", "no-such-set", "--json")
    assert result.exit_code == 1
    error = last_line(result)["error"]
    assert error["field"] == "dataset"
    assert "no-such-set" in error["got"]
    assert "no-such-set" in result.stderr
    assert error["next_step"] in result.stderr


def test_seeds_that_are_no_numbers(playhead):
    result = playhead("eval", "recommend", "--seeds", "0,x", "--json")
    assert result.exit_code == 1
    assert last_line(result)["error"]["field"] == "seeds"


def test_a_home_page_of_a_service_that_is_not_there(playhead):
    result = playhead("home", "7", "--url", "http://127.0.0.1:1", "--json")
    assert result.exit_code == 1
    assert "playhead up" in last_line(result)["error"]["next_step"]


def test_an_import_names_what_is_wrong(playhead, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "titles.csv").write_text("title_id,name\n1,One\n")
    result = playhead("data", "import", str(folder), "--json")
    assert result.exit_code == 1
    assert any("events" in problem["file"] for problem in last_line(result)["problems"])
    assert not (tmp_path / "home" / "data" / "mine").exists()


def test_sessions_that_are_over_are_shown_by_what_they_are_told_apart_by(playhead, tmp_path):
    folder = tmp_path / "home" / "sessions" / "date=9999-01-01"
    now = int(time.time() * 1000)
    row = dict.fromkeys(SESSIONS.schema) | {
        "session": "a", "cdn": "north", "first_ts": now - 60_000, "last_ts": now - 1000, "started": True,
        "startup_ms": 800.0, "played_ms": 50_000, "stall_ms": 0.0, "stalls": 0, "mean_kbps": 4000.0, "mean_vmaf": 88.0,
        "switches": 0, "errors": 0, "end": "ended", "log_position": "1-1",
    }  # fmt: skip
    old = row | {"session": "b", "last_ts": now - 3 * 3_600_000, "log_position": "1-0"}
    folder.mkdir(parents=True)
    pl.DataFrame([old, row], schema={**SESSIONS.schema, "log_position": pl.String}).write_parquet(
        folder / "part-1.parquet"
    )
    result = playhead("sessions", "--by", "cdn", "--json")
    assert result.exit_code == 0
    (found,) = last_line(result)["rows"]
    assert (found["cdn"], found["sessions"], found["kbps"], found["vmaf"]) == ("north", 1, 4000.0, 88.0)
    assert last_line(playhead("sessions", "--minutes", "300", "--json"))["sessions"] == 2
    refused = playhead("sessions", "--by", "cdn,weather", "--json")
    assert refused.exit_code == 1
    assert last_line(refused)["error"]["field"] == "--by"
