"""A limit of time that is fair where the loop is held up: what is ready, but was not looked at yet, is in time."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

ROUNDS: Final = 6
"""Of the loop, after the time is over: a batch is gathered for three, and whoever waits for it comes in the next."""

T = TypeVar("T")


async def in_time(work: Coroutine[Any, Any, T], within_s: float | None) -> T:
    """The result of work that is done after so long, or as soon as the loop has come round to it.

    With asyncio.timeout a loop that was held up until the time was over fails what waited for it, whoever held it up:
    of two versions, one with a limit and one without, the first would fail for the pauses of a busy machine.

    Args:
        work: what to do; what it raises is raised here.
        within_s: how long it may take, seconds; None: as long as it takes.

    Raises:
        TimeoutError: it is not done; it is cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=within_s)
        for _ in range(ROUNDS):
            if task.done():
                break
            await asyncio.sleep(0)
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        task.cancel()
