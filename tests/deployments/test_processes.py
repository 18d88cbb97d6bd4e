import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deployments.processes import ProcessRecord, end, start
from tests.waiting import wait_for

ORPHAN_MAKER = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)


@pytest.fixture
def started(tmp_path):
    children = []

    def run(*arguments, piped=False):
        child = start("part", arguments, log=tmp_path / "logs" / "part.log", environment=dict(os.environ), piped=piped)
        children.append(child)
        return child

    yield run
    for child in children:
        end([child.record], grace_s=0)
        child.popen.wait()
        for stream in (child.popen.stdin, child.popen.stdout):
            if stream is not None:
                stream.close()


def test_descendants_are_found_when_their_parents_are_gone(started):
    child = started(sys.executable, "-c", ORPHAN_MAKER, piped=True)
    orphan = int(child.popen.stdout.readline())
    child.popen.wait()
    assert child.record.process() is None
    assert [process.pid for process in child.record.session()] == [orphan]
    assert end([child.record], grace_s=0) == []
    assert child.record.session() == []


def test_a_process_that_ignores_the_request_is_killed(started):
    child = started(sys.executable, "-c", STUBBORN, piped=True)
    assert child.popen.stdout.readline() == "deaf\n"
    assert end([child.record], grace_s=0.2) == []
    assert child.popen.wait() == -signal.SIGKILL


def test_a_number_with_a_new_owner_is_left_alone(started):
    child = started("sleep", "60")
    stale = ProcessRecord("part", child.record.pid, child.record.started_s - 60, child.record.mark)
    assert stale.process() is None
    assert stale.session() == []
    assert end([stale], grace_s=0) == []
    assert child.exit_status() is None


def test_another_session_under_a_dead_leaders_number_is_left_alone(started):
    child = started(sys.executable, "-c", ORPHAN_MAKER, piped=True)
    orphan = psutil.Process(int(child.popen.stdout.readline()))
    child.popen.wait()
    former = ProcessRecord("part", child.record.pid, child.record.started_s - 3600, "the mark of an earlier part")
    assert former.session() == []
    assert end([former], grace_s=0) == []
    assert orphan.is_running()


def test_other_processes_live_on(started):
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        end([started("sleep", "60").record], grace_s=1)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_records_survive_json():
    record = ProcessRecord.of("self", os.getpid())
    assert ProcessRecord.from_json(record.as_json()) == record
    assert record.process() == psutil.Process()


def test_a_zombie_is_gone():
    process = subprocess.Popen(["true"])
    wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    record = ProcessRecord.of("zombie", process.pid)
    assert record.process() is None
    assert record.session() == []
    process.wait()


def test_log_holds_what_the_part_wrote(started, tmp_path: Path):
    child = started("sh", "-c", "echo one; echo two >&2; echo three")
    child.popen.wait()
    assert child.log_tail(2) == "two\nthree"
