"""How much a caller may send: buckets of tokens that fill again with time (RFC 2697's shape, one rate)."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MOST_CALLERS: Final = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class RateLimit:
    """Lets through so many a second, and a burst of so many. Belongs to one event loop.

    Args:
        rate_hz: in the long run, of each caller.
        burst: at once, of each caller.
        clock: monotonic seconds.
    """

    def __init__(self, rate_hz: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_hz = rate_hz
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def admits(self, caller: str) -> bool:
        """Whether one more of this caller's is let through now; the callers heard of longest ago are forgotten."""
        now_s = self._clock()
        bucket = self._buckets.pop(caller, None) or _Bucket(self._burst, now_s)
        bucket.tokens = min(self._burst, bucket.tokens + (now_s - bucket.at_s) * self._rate_hz)
        bucket.at_s = now_s
        self._buckets[caller] = bucket
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True
