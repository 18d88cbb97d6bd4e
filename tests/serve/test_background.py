"""What keeps a process responsive, and what gives way."""

import asyncio
import gc
import os
import subprocess
import sys

import psutil

from serve.background import SWITCH_S, keep_responsive
from serve.priority import give_way


async def test_full_collections_are_rare_while_a_process_answers_and_as_before_afterwards() -> None:
    before = gc.get_threshold(), sys.getswitchinterval()
    task = asyncio.create_task(keep_responsive())
    await asyncio.sleep(0)
    assert gc.get_threshold()[2] > 1_000_000
    assert gc.get_freeze_count() > 0
    assert sys.getswitchinterval() == SWITCH_S
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (gc.get_threshold(), sys.getswitchinterval()) == before
    assert gc.get_freeze_count() == 0


def test_a_process_gives_way_once_and_zero_changes_nothing() -> None:
    own = psutil.Process().nice()
    give_way(0)
    assert (psutil.Process().nice(), os.sched_getscheduler(0)) == (own, os.SCHED_OTHER)
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    )  # fmt: skip
    with child:
        give_way(1, child.pid, is_awaited=True)
        assert os.sched_getscheduler(child.pid) == os.SCHED_OTHER
        give_way(3, child.pid)
        assert psutil.Process(child.pid).nice() == min(own + 4, 19)
        assert os.sched_getscheduler(child.pid) == os.SCHED_IDLE
        give_way(19, child.pid)
        assert psutil.Process(child.pid).nice() == 19
    give_way(4, child.pid)  # it is gone: nothing to do
    assert psutil.Process().nice() == own
