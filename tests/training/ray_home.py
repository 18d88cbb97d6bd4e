"""What jobs of the tests do: functions that a worker can import."""

import os
import time
from pathlib import Path

import ray

from serve.errors import InvalidInput


def add(tell, attempt, *, a, b):
    tell({"step": 1}, passing=True)
    tell({"step": 2}, passing=True)
    tell({"done": True})
    os.write(1, b"printed by the worker\n")
    return {"sum": a + b, "attempt": attempt, "niceness": os.getpriority(os.PRIO_PROCESS, 0), "pid": os.getpid()}


def refuse(tell, attempt):
    raise InvalidInput(field="rows", got=0, expected="some", next_step="Bring rows.")


def fall(tell, attempt):
    raise ZeroDivisionError("a defect")


def die_once(tell, attempt, *, folder):
    """Leaves a mark, then dies as a process that is killed; the next one finds the mark."""
    mark = Path(folder) / "checkpoint"
    if attempt == 0:
        mark.write_text("epoch 1")
        os.kill(os.getpid(), 9)
    return {"found": mark.read_text(), "attempt": attempt}


def die(tell, attempt):
    os.kill(os.getpid(), 9)


def last(tell, attempt, *, pid_file):
    """Tells who it is, then works until it is ended."""
    Path(pid_file).write_text(str(os.getpid()))
    while True:
        tell({"alive": True}, passing=True)
        time.sleep(0.05)


def jobs():
    """Ray's list of jobs, as the GCS has it: name -> process number of the driver."""
    found = ray._private.worker.global_worker.gcs_client.get_all_job_info()
    return {job.config.metadata["name"]: job.driver_pid for job in found.values() if "name" in job.config.metadata}
