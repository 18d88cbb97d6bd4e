"""Work that runs beside requests: again and again, from start to shutdown, whatever it raises."""

import asyncio
import contextvars
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Final, ParamSpec, TypeVar

from serve.logs import get

NICENESS_VARIABLE: Final = "PLAYHEAD_LOAD_NICENESS"
NICENESS: Final = 10
"""Of threads that yield: beside threads that answer they get about a tenth of a core, and all of one that is idle."""

P = ParamSpec("P")
R = TypeVar("R")

_yields: contextvars.ContextVar[bool] = contextvars.ContextVar("yields", default=False)


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


@contextmanager
def yielding() -> Iterator[None]:
    """What the body does `in_thread` yields to answers."""
    token = _yields.set(True)
    try:
        yield
    finally:
        _yields.reset(token)


async def in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Work off the event loop, as asyncio.to_thread; inside `yielding`, in a thread that yields to all others.

    Threads that such work starts yield for as long as they live: it must start none that answers later. Engines on the
    CPU that have one thread a call run in their caller's, so loading them is such work. Linux has priorities of
    threads; elsewhere the work runs as any other.

    Args:
        work: what to do; what it raises is raised here.
        args: of it.
        kwargs: of it.
    """
    niceness = _niceness()
    if not _yields.get() or niceness <= 0:
        return await asyncio.to_thread(work, *args, **kwargs)
    # a thread of its own, since none gets its priority back without privileges
    pool = ThreadPoolExecutor(1, thread_name_prefix="yields", initializer=_yield_always, initargs=(niceness,))
    try:
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, partial(context.run, work, *args, **kwargs))
    finally:
        pool.shutdown(wait=False)


def _niceness() -> int:
    """As the environment says; what is no number there is left out."""
    with suppress(ValueError):
        return int(os.environ.get(NICENESS_VARIABLE, NICENESS))
    return NICENESS


def _yield_always(niceness: int) -> None:
    """Lower the priority of this thread."""
    with suppress(AttributeError, OSError):
        place = threading.get_native_id()
        own = os.getpriority(os.PRIO_PROCESS, place)
        os.setpriority(os.PRIO_PROCESS, place, min(own + niceness, 19))
