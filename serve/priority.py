"""Giving way: work that is not urgent takes the processor time that answers leave."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_TRIES: Final = 5
_RETRY_S: Final = 0.15


def give_way(niceness: int, process: int = 0, *, is_awaited: bool = False) -> None:
    """Lower the priority of a process that has one thread, and that of its session where it leads one.

    Linux shares processors among sessions first where autogroups are on, as they are by default: niceness counts within
    a session alone, and a session has a niceness of its own (sched(7)). The policy is SCHED_IDLE, which is not about
    shares alone: to what wakes up, a processor that runs such a process counts as idle; one that runs a process of
    high niceness doesn't, and what wakes up queues behind others instead. docs/rollout.md has the figures.

    Args:
        niceness: what is added; 0 changes nothing.
        process: its id; 0: this one.
        is_awaited: somebody waits for what it does: it is nice, but gets its share of a machine that is busy.
    """
    if niceness <= 0:
        return
    number = process or os.getpid()
    with suppress(OSError):
        niceness = min(os.getpriority(os.PRIO_PROCESS, process) + niceness, 19)
        os.setpriority(os.PRIO_PROCESS, process, niceness)
        if sys.platform == "linux" and not is_awaited:
            with suppress(PermissionError):  # a container's filter of system calls; the session can give way still
                os.sched_setscheduler(process, os.SCHED_IDLE, os.sched_param(0))
        if os.getsid(process) == number:
            _lower_session(Path(f"/proc/{number}/autogroup"), niceness)


def _lower_session(autogroup: Path, niceness: int) -> None:
    """Without privileges, one session of the machine may be changed each tenth of a second, or EAGAIN."""
    for _ in range(_TRIES):
        try:
            autogroup.write_text(str(niceness), encoding="ascii")
        except BlockingIOError:
            time.sleep(_RETRY_S)
        else:
            return
