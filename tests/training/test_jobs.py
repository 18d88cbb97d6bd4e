"""Jobs on a real Ray: what they return, tell, log; how they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from serve.errors import PlayheadError
from tests.training import ray_home
from tests.waiting import wait_for
from training.jobs import NICENESS, JobError, Resources, run_job

DEADLINE_S = 50


class Job:
    def __init__(self, folder):
        self.log, self.told, self.notes = folder / "logs" / "job.log", [], []

    def run(self, body, resources=None, **arguments):
        return run_job(
            body, arguments, resources=resources or Resources(cpus=1), log=self.log, told=self.told.append,
            note=self.notes.append, environment={"MARK": "kept"}, retries=1,
        )  # fmt: skip


@pytest.fixture
def job(small_ray, tmp_path):
    return Job(tmp_path)


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_job_works_elsewhere_and_gives_way(job):
    result = job.run(ray_home.add, a=2, b=3)
    assert result["sum"] == 5
    assert result["pid"] != os.getpid()
    assert result["niceness"] >= NICENESS
    assert job.told == [{"step": 2}, {"done": True}]  # of what passes, the newest
    assert "printed by the worker" in job.log.read_text()
    assert ray_home.jobs()["tests"] == os.getpid()


def test_errors_keep_their_words(job):
    with pytest.raises(PlayheadError) as refused:
        job.run(ray_home.refuse)
    assert (refused.value.field, refused.value.next_step) == ("rows", "Bring rows.")
    with pytest.raises(JobError, match="ZeroDivisionError"):
        job.run(ray_home.fall)
    assert "a defect" in job.log.read_text()


def test_a_worker_that_dies_is_replaced_and_one_that_dies_again_is_not(job, tmp_path):
    assert job.run(ray_home.die_once, folder=str(tmp_path)) == {"found": "epoch 1", "attempt": 1}
    assert len(job.notes) == 1
    with pytest.raises(JobError) as ended:
        job.run(ray_home.die)
    assert "--resume" in ended.value.next_step


def test_more_than_there_is_is_refused_at_once(job):
    with pytest.raises(JobError) as refused:
        job.run(ray_home.add, Resources(cpus=1, gpus=8), a=1, b=1)
    assert refused.value.field == "resources.GPU"


DRIVER = """
import sys
from pathlib import Path
from deployments.rays import ray_place
from tests.training import ray_home
from training.jobs import Resources, connected, run_job
home = Path(sys.argv[1])
with ray_place(home, environment={}) as (place, words), connected(place, "last"):
    run_job(ray_home.last, {"pid_file": str(home / "pid")}, resources=Resources(), log=home / "log",
            told=lambda item: (home / "told").write_text(words), note=print)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_of_a_driver_that_ends_is_left(tmp_path, number):
    """It has a Ray of its own, which ends with it; the exit status is not 0. (Ray's agents take a minute more.)"""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=Path.cwd(), start_new_session=True)
    try:
        wait_for(lambda: (tmp_path / "told").exists() or driver.poll() is not None)
        assert (tmp_path / "told").read_text() == "a Ray of its own"
        worker = psutil.Process(int((tmp_path / "pid").read_text()))
        children = psutil.Process(driver.pid).children()
        below = [worker, *(one for one in children if one.name() in {"gcs_server", "raylet"})]
        assert len(below) == 3
        driver.send_signal(number)
        asked = time.monotonic()
        assert driver.wait(DEADLINE_S) != 0
        wait_for(lambda: not list(filter(alive, below)))
        assert time.monotonic() - asked < 30
    finally:
        driver.kill()
        driver.wait()
