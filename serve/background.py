"""Work that runs beside requests: again and again, from start to shutdown, whatever it raises."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from serve.logs import get


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
