"""The clock that records are stamped with."""

import time
from datetime import UTC, datetime


def now_ms() -> int:
    """UTC milliseconds."""
    return time.time_ns() // 1_000_000


def utc(ms: int) -> str:
    """UTC milliseconds for people: `2026-11-29 15:42:01 UTC`."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def utc_brief(ms: int) -> str:
    """The same for tables of the last days, whose heading says UTC: `11-29 15:42:01`."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%m-%d %H:%M:%S}"
