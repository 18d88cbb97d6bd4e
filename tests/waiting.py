"""Waiting for what comes by itself, polled.

The limits are against hanging and promise nothing: a shared machine may stand still for seconds. What must be done in
time is measured by a test that is marked `timed`, or says within how long.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

HUNG_S: Final = 90.0


def wait_for(happened: Callable[[], Any], within_s: float = HUNG_S, pause_s: float = 0.02) -> Any:
    """What it gives, once that is true."""
    deadline_s = time.monotonic() + within_s
    while not (found := happened()):
        assert time.monotonic() < deadline_s, f"did not happen in {within_s:g} s"
        time.sleep(pause_s)
    return found


async def eventually(happened: Callable[[], Awaitable[Any] | Any], within_s: float = HUNG_S) -> Any:
    """What it gives, or what awaiting it gives, once that is true."""
    deadline_s = time.monotonic() + within_s
    while True:
        found = happened()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline_s, f"did not happen in {within_s:g} s"
        await asyncio.sleep(0.02)
