"""Perceptual quality of what sessions played: by bitrate, from what was measured of each title's renditions."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np
import redis

from features.renditions import Rung, read_rungs

_FRESH_S: Final = 600.0
_MOST_TITLES: Final = 10_000


class TitleQuality:
    """Mean VMAF of titles' rungs, read from Feast's rendition_segments and remembered for ten minutes.

    Args:
        store: Redis or Valkey.
        clock: seconds.
    """

    def __init__(self, store: redis.Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[str, tuple[float, tuple[Rung, ...]]] = {}

    def read(self, titles: Iterable[str]) -> None:
        """Ask the store for those of some titles that are not fresh in memory, in one round trip.

        Raises:
            redis.RedisError: the store does not answer.
        """
        now = self._clock()
        wanted = [title for title in titles if self._known.get(title, (0.0,))[0] <= now]
        for title, rungs in read_rungs(self._store, wanted).items():
            self._known.pop(title, None)
            self._known[title] = (now + _FRESH_S, rungs)
        while len(self._known) > _MOST_TITLES:
            del self._known[next(iter(self._known))]

    def mean_vmaf(self, title: str, at_kbps: Mapping[float, int]) -> float | None:
        """Time-weighted VMAF, 0 to 100; None where nothing is known of the title or of the bitrates.

        A bitrate between two rungs is rated between them by its logarithm: what players tell may count the sound.

        Args:
            title: which was read before.
            at_kbps: bitrate -> time played at it.
        """
        _, rungs = self._known.get(title, (0.0, ()))
        played = [(math.log(kbps), ms) for kbps, ms in at_kbps.items() if kbps > 0 and ms > 0]
        if not rungs or not played:
            return None
        rated = np.interp([kbps for kbps, _ in played], [math.log(one.bitrate_kbps) for one in rungs],
                          [one.mean_vmaf for one in rungs])  # fmt: skip
        return float(np.average(rated, weights=[ms for _, ms in played]))
