"""Viewers who come: when, where, on what, to watch what. Drawn in bulk, a stretch of time at a time.

Each stretch and each crowd has random numbers of its own, so that the viewers of a time are the same whatever happens
around it.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtests.audience.incidents import Incident
from loadtests.audience.playback import VIEWER, WAITING
from loadtests.audience.world import DAY_MS, World
from serve.telemetry.reports import DIMENSIONS

STRETCH_MS: Final = 600_000
_MINUTE_MS: Final = 60_000

MEAN_VIEWING_S: Final = 1980.0
"""How long a viewer stays, pauses and retries included: measured, to turn concurrency into starts."""

_WATCH_MEDIAN_S: Final = 1200.0
_WATCH_SIGMA: Final = 1.0
_LONGEST_S: Final = 3 * 3600.0
_CROWD_RISE_MS: Final = 180_000.0
_SKEWED: Final = 0.03
_SKEW_MS: Final = 120_000.0
_SMALL_SKEW_MS: Final = 400.0
_LEVEL_SIGMA: Final = 0.5
_VANISHES: Final = (0.01, 0.02, 0.08, 0.08, 0.1, 0.02)
"""By device: viewers who go without a word, such as by closing a tab."""
_SILENT_ON_STALLS: Final = (1, 5)
"""Devices whose players count no buffer starvation (bsa, bsd, bsda)."""

Records = NDArray[np.void]


def arrivals(
    *, seed: int, stretch: int, start_ms: int, world: World, starts_per_s: float, interval_ms: float,
    crowds: Sequence[Incident],
) -> Records:  # fmt: skip
    """The viewers who come in a stretch of time.

    Args:
        seed: of the audience.
        stretch: number of the stretch: UTC ms divided by STRETCH_MS.
        start_ms: when the roll-out of the newest apps began.
        world: where.
        starts_per_s: sessions that start a second at an ordinary weekday's peak.
        interval_ms: between a player's time-interval reports.
        crowds: flash crowds.

    Returns:
        VIEWER (n,), by time of coming.
    """
    rng = np.random.default_rng([seed, 3, stretch])
    from_ms = stretch * STRETCH_MS
    middles = np.asarray(from_ms + _MINUTE_MS * (np.arange(STRETCH_MS // _MINUTE_MS) + 0.5), dtype=np.float64)
    means = world.load(middles) * starts_per_s * _MINUTE_MS / 1000.0  # (minutes, R)
    numbers = rng.poisson(means)
    minute, region = (np.repeat(axis.ravel(), numbers.ravel()) for axis in np.indices(numbers.shape))
    times_ms = from_ms + _MINUTE_MS * (minute + rng.random(len(minute)))
    came = _viewers(rng, times_ms, region, world, (from_ms - start_ms) / DAY_MS, interval_ms)
    parts = [came, *(_crowd(seed, stretch, one, world, means, interval_ms, start_ms) for one in crowds
                     if one.start_ms < from_ms + STRETCH_MS and one.end_ms > from_ms)]  # fmt: skip
    together = np.concatenate(parts)
    return together[np.argsort(together["act"], kind="stable")]


def _crowd(
    seed: int, stretch: int, one: Incident, world: World, means: NDArray[np.float64], interval_ms: float, start_ms: int
) -> Records:
    """Those who come for a premiere: a rise of three minutes, then half as many by the end."""
    rng = np.random.default_rng([seed, 4, stretch, one.salt])
    from_ms = stretch * STRETCH_MS
    title = world.codes(one.slice)[DIMENSIONS.index("title")]
    share = float(world.titles[title]) if title >= 0 else 1.0
    numbers = rng.poisson(means * share * max(0.0, one.magnitude - 1.0))
    minute, region = (np.repeat(axis.ravel(), numbers.ravel()) for axis in np.indices(numbers.shape))
    times_ms = from_ms + _MINUTE_MS * (minute + rng.random(len(minute)))
    came = _viewers(rng, times_ms, region, world, (from_ms - start_ms) / DAY_MS, interval_ms)
    if title >= 0:
        came["title"] = title
        came["ladder"] = world.title_ladder[title]
    since = times_ms - one.start_ms
    kept = rng.random(len(came)) < np.minimum(since / _CROWD_RISE_MS, 0.5 ** (since / one.duration_ms))
    return came[kept & (since >= 0) & (times_ms < one.end_ms)]


def _viewers(
    rng: np.random.Generator, times_ms: NDArray[np.float64], region: NDArray[np.int64], world: World, day: float,
    interval_ms: float,
) -> Records:  # fmt: skip
    size = len(times_ms)
    came = np.zeros(size, dtype=VIEWER)
    came["viewer"] = rng.integers(0, 2**64, size=size, dtype=np.uint64)
    came["random"] = rng.integers(0, 2**64, size=size, dtype=np.uint64)
    came["phase"] = WAITING
    came["act"] = came["route"] = times_ms
    came["region"] = region
    came["asn"] = _picked(rng, world.asns[region])
    came["cdn"] = _picked(rng, world.cdns[region])
    apps = world.devices[world.app_device] * world.apps(max(0.0, day))
    app = np.minimum(np.searchsorted(np.cumsum(apps), rng.random(size) * apps.sum(), side="right"), len(apps) - 1)
    came["app"] = app
    device = came["device"] = world.app_device[app]
    came["protocol"] = rng.random(size) < world.hls[device]
    titles = np.cumsum(world.titles)
    title = np.minimum(np.searchsorted(titles, rng.random(size), side="right"), len(titles) - 1)
    came["title"] = title
    came["ladder"] = world.title_ladder[title]
    came["rungs"] = world.rungs[device]
    came["counts_stalls"] = ~np.isin(device, _SILENT_ON_STALLS)
    came["interval"] = interval_ms
    came["vanishes"] = np.array(_VANISHES)[device]
    came["watch"] = np.clip(_WATCH_MEDIAN_S * np.exp(_WATCH_SIGMA * rng.standard_normal(size)), 20.0, _LONGEST_S)
    came["target"] = rng.uniform(18.0, 36.0, size=size)
    came["level"] = _LEVEL_SIGMA * rng.standard_normal(size)
    spread_ms = np.where(rng.random(size) < _SKEWED, _SKEW_MS, _SMALL_SKEW_MS)
    came["skew"] = spread_ms * rng.standard_normal(size)
    return came


def _picked(rng: np.random.Generator, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """One place of each row of shares (n, k)."""
    edges = np.cumsum(shares, axis=1)
    return np.asarray(np.minimum((edges <= rng.random(len(shares))[:, None]).sum(axis=1), shares.shape[1] - 1))
