"""Work that runs beside requests: again and again, from start to shutdown, whatever it raises."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from serve.logs import get

COLLECT_S: Final = 120.0
"""Seconds between full garbage collections of a process that answers."""

SWITCH_S: Final = 0.0005
"""How long one thread of such a process may keep the interpreter where another waits for it."""

_YOUNG: Final = (700, 4)
"""Objects, and collections of the youngest, before a collection of the two younger generations."""

_NEVER: Final = 1 << 30


async def every(seconds: float, work: Callable[[], Awaitable[None] | None]) -> None:
    """Do something every so many seconds, until cancelled; what it raises is logged."""
    while True:
        await asyncio.sleep(seconds)
        try:
            waiting = work()
            if waiting is not None:
                await waiting
        except Exception:  # noqa: BLE001 - the next time may go better
            get("background").exception("failed", extra={"work": getattr(work, "__qualname__", repr(work))})


@asynccontextmanager
async def running(*work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run beside the body, and end with it."""
    tasks = [asyncio.ensure_future(start()) for start in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def keep_responsive() -> None:
    """Keep what Python does by itself from stopping the answers, until cancelled.

    A full garbage collection looks at each object, which takes a tenth of a second in a gateway that knows its viewers,
    and Python makes one whenever a quarter more objects have come: at each swap of a model, and every few seconds. Here
    they are made each COLLECT_S, over what came after the start. What is no cycle goes at once, as ever. And a thread
    that works beside the answers gives the interpreter back within SWITCH_S, not within 5 ms each time.
    """
    before = gc.get_threshold(), sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_YOUNG, _NEVER)
    try:
        while True:
            await asyncio.sleep(COLLECT_S)
            gc.collect()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before[0])
        sys.setswitchinterval(before[1])
