"""The world that viewers live in: CDNs, networks, regions, devices, apps, titles, and when people watch.

Everything is drawn from one seed. Where a viewer is and what the viewer watches on are independent, so that the
share of any slice is a product of two small sums, and whether two slices are the same viewers can be told exactly.

Units: throughput and bitrates kbit/s, times UTC ms; shares 0 to 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput
from serve.telemetry.reports import DIMENSIONS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
FIRST_DAY_MS: Final = 1_790_553_600_000
"""Monday, 28 September 2026, 00:00 UTC: any week would do, and the same one gives the same figures."""
_EPOCH_WEEKDAY: Final = 3
"""1970-01-01 was a Thursday; Monday is 0."""

TITLES: Final = 300
_CDNS: Final = ("north", "west", "delta", "orbit")
_REGIONS: Final = ("eu-west", "eu-central", "eu-north", "eu-south", "us-east", "uk")
_REGION_SHARES: Final = (0.26, 0.24, 0.12, 0.14, 0.08, 0.16)
_REGION_HOURS: Final = (1, 1, 1, 1, -3, 0)
"""Local time less UTC; the one across the ocean is taken nearer than it is, so that nights stay quiet."""
_ASNS: Final[tuple[tuple[str, tuple[tuple[str, float], ...]], ...]] = (
    ("64500", (("eu-west", 0.55),)),
    ("64501", (("eu-west", 0.30), ("eu-south", 0.15))),
    ("64502", (("eu-central", 0.50),)),
    ("64503", (("eu-central", 0.35),)),
    ("64504", (("eu-north", 0.65),)),
    ("64505", (("eu-south", 0.60),)),
    ("64506", (("us-east", 1.00),)),
    ("64507", (("uk", 0.60),)),
    ("64508", (("uk", 0.25), ("eu-west", 0.15))),
    ("64509", (("eu-central", 0.15), ("eu-north", 0.35), ("eu-south", 0.25), ("uk", 0.15))),
)
"""Networks, and their share of each region's viewers; most are in one region."""
_DEVICES: Final[tuple[tuple[str, float, float, int], ...]] = (
    ("tv", 0.34, 0.0, 6),
    ("stick", 0.18, 0.0, 6),
    ("android", 0.15, 0.0, 4),
    ("ios", 0.15, 1.0, 4),
    ("web", 0.12, 0.25, 5),
    ("console", 0.06, 0.4, 6),
)
"""Device, share of sessions, share of them on HLS (the rest on DASH), rungs of the ladder that it takes."""
_VERSIONS: Final = (("tv", 4), ("stick", 3), ("android", 4), ("ios", 4), ("web", 3), ("console", 3))
_NEWEST_SHARE: Final = 0.08
_ROLLOUT_A_DAY: Final = 0.06
_NEWEST_AT_MOST: Final = 0.7
_ZIPF: Final = 0.9

LADDERS: Final = np.array(
    [
        [300, 750, 1500, 3000, 4800, 6000],
        [235, 560, 1050, 2350, 3850, 5800],
        [400, 900, 1800, 3500, 7000, 12000],
        [200, 400, 800, 1400, 2200, 3400],
    ],
    dtype=np.float64,
)
"""Encodes (4) by rungs (6), kbit/s."""
RUNGS: Final = LADDERS.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """What is where, and how common it is.

    Attributes:
        names: values of each dimension, in the order of DIMENSIONS; a code is a place among them.
        regions: shares of the regions (R,).
        hours: local time less UTC of each region (R,), hours.
        asns: share of each network in a region (R, N), rows sum to 1.
        cdns: share of each CDN in a region (R, C), rows sum to 1: the default's weighted split.
        devices: shares of the devices (D,).
        hls: share of HLS on each device (D,).
        rungs: how many rungs each device takes (D,).
        app_device: the device of each app (A,).
        app_newest: whether an app is the version that is rolling out (A,).
        app_weights: share of an app among its device's older versions (A,); 0 for the newest.
        titles: shares of the titles (T,), Zipf, the most watched first.
        title_ladder: the encode of each title (T,), a row of LADDERS.
        log_kbps: mean of ln(kbit/s) by CDN and network (C, N).
    """

    names: tuple[tuple[str, ...], ...]
    regions: Floats
    hours: Floats
    asns: Floats
    cdns: Floats
    devices: Floats
    hls: Floats
    rungs: Integers
    app_device: Integers
    app_newest: NDArray[np.bool_]
    app_weights: Floats
    titles: Floats
    title_ladder: Integers
    log_kbps: Floats

    def apps(self, day: float = 0.0) -> Floats:
        """Share of each app among its device's sessions (A,), as the newest is rolled out.

        Args:
            day: days since the roll-out began, 0 or more.
        """
        newest = min(_NEWEST_SHARE + _ROLLOUT_A_DAY * day, _NEWEST_AT_MOST)
        return np.where(self.app_newest, newest, self.app_weights * (1.0 - newest))

    def codes(self, slice_: Mapping[str, str]) -> tuple[int, ...]:
        """The place of each dimension's value, in the order of DIMENSIONS; -1: any.

        Raises:
            InvalidInput: a dimension or value that this world lacks.
        """
        for dimension, value in slice_.items():
            if dimension not in DIMENSIONS or value not in self.names[DIMENSIONS.index(dimension)]:
                raise InvalidInput(
                    field="slice", got=f"{dimension}={value}", expected="a dimension and value of the world",
                    next_step="See World.names for the values of each of serve.telemetry.reports.DIMENSIONS.",
                )  # fmt: skip
        return tuple(
            names.index(slice_[dimension]) if dimension in slice_ else -1
            for dimension, names in zip(DIMENSIONS, self.names, strict=True)
        )

    def share(self, slice_: Mapping[str, str], day: float = 0.0) -> float:
        """Share of all sessions that are in a slice, 0 to 1; 0 for values that this world lacks.

        Args:
            slice_: dimension -> value; empty: everyone.
            day: days since the roll-out of the newest apps began.
        """
        try:
            cdn, asn, region, device, app, title, protocol = self.codes(slice_)
        except InvalidInput:
            return 0.0
        place = self.regions if region < 0 else self.regions * (np.arange(len(self.regions)) == region)
        where = place @ ((self.asns[:, asn] if asn >= 0 else 1.0) * (self.cdns[:, cdn] if cdn >= 0 else 1.0)
                         * np.ones(len(self.regions)))  # fmt: skip
        on = self.app_device
        app_shares = self.devices[on] * self.apps(day)
        if device >= 0:
            app_shares = app_shares * (on == device)
        if app >= 0:
            app_shares = app_shares * (np.arange(len(on)) == app)
        if protocol >= 0:
            app_shares = app_shares * (self.hls[on] if self.names[6][protocol] == "hls" else 1.0 - self.hls[on])
        return float(where * app_shares.sum() * (self.titles[title] if title >= 0 else 1.0))

    def overlap(self, one: Mapping[str, str], other: Mapping[str, str]) -> float:
        """Share of all sessions that are in both slices, 0 to 1."""
        if any(other.get(dimension, value) != value for dimension, value in one.items()):
            return 0.0
        return self.share({**one, **other})

    def same_viewers(self, one: Mapping[str, str], other: Mapping[str, str]) -> bool:
        """Whether two slices are the same viewers, so that nothing seen can tell them apart.

        An app exists on one device only, for example: its slice and that of the app on its device are the same.
        """
        both = self.overlap(one, other)
        return both > 0.0 and all(math.isclose(both, self.share(slice_), rel_tol=1e-9) for slice_ in (one, other))

    def load(self, times_ms: Floats) -> Floats:
        """Sessions that start, by region (n, R), as a share of what an ordinary weekday's peak brings in all."""
        local = times_ms[:, None] / HOUR_MS + self.hours  # (n, R)
        hour = local % 24.0
        weekday = (local // 24 + _EPOCH_WEEKDAY) % 7
        weekly = np.where(weekday == 4, 1.08, np.where(weekday == 5, 1.2, np.where(weekday == 6, 1.12, 1.0)))
        return np.asarray(self.regions * weekly * _day_curve(hour) / self._peak())

    def _peak(self) -> float:
        hour = (np.arange(0.0, 24.0, 0.25)[:, None] + self.hours) % 24.0
        return float((_day_curve(hour) @ self.regions).max())


def _day_curve(hour: Floats) -> Floats:
    """How much is watched at an hour of the local day: a quiet night, a lunch break, a long evening."""

    def bump(at: float, width: float) -> Floats:
        away = (hour - at + 12.0) % 24.0 - 12.0
        return np.exp(-0.5 * (away / width) ** 2)

    return 0.14 + 0.22 * bump(13.0, 2.5) + 0.86 * bump(20.5, 2.3)


def build_world(seed: int) -> World:
    """A world: three or four CDNs, ten networks, six regions, six devices, 21 apps, 300 titles.

    Args:
        seed: same seed, same world.
    """
    rng = np.random.default_rng([seed, 1])
    cdns = _CDNS[: 3 + int(rng.integers(2))]
    asns = np.zeros((len(_REGIONS), len(_ASNS)))
    for column, (_, places) in enumerate(_ASNS):
        for region, share in places:
            asns[_REGIONS.index(region), column] = share
    asns /= asns.sum(axis=1, keepdims=True)
    split = np.array([0.55, 0.25, 0.12, 0.08][: len(cdns)])
    by_region = np.stack([np.roll(split, region % len(cdns)) for region in range(len(_REGIONS))])
    by_region = by_region / by_region.sum(axis=1, keepdims=True)
    apps, app_device, newest, weights = [], [], [], []
    for device, count in _VERSIONS:
        older = np.sort(rng.dirichlet(np.full(count - 1, 4.0)))
        for version in range(count):
            apps.append(f"{device}-{7 + version}.{int(rng.integers(10))}")
            app_device.append([name for name, *_ in _DEVICES].index(device))
            newest.append(version == count - 1)
            weights.append(float(older[version]) if version < count - 1 else 0.0)
    titles = np.arange(1, TITLES + 1, dtype=np.float64) ** -_ZIPF
    log_kbps = np.log(15_000.0) + 0.25 * rng.standard_normal(len(_ASNS)) + 0.12 * rng.standard_normal((len(cdns), 1))
    log_kbps = log_kbps + 0.08 * rng.standard_normal(log_kbps.shape)
    return World(
        names=(
            cdns, tuple(name for name, _ in _ASNS), _REGIONS, tuple(name for name, *_ in _DEVICES), tuple(apps),
            tuple(f"t{number}" for number in rng.permutation(np.arange(100, 100 + TITLES))), ("dash", "hls"),
        ),
        regions=np.array(_REGION_SHARES), hours=np.array(_REGION_HOURS, dtype=np.float64), asns=asns, cdns=by_region,
        devices=np.array([share for _, share, _, _ in _DEVICES]), hls=np.array([hls for _, _, hls, _ in _DEVICES]),
        rungs=np.array([rungs for *_, rungs in _DEVICES]), app_device=np.array(app_device),
        app_newest=np.array(newest), app_weights=np.array(weights), titles=titles / titles.sum(),
        title_ladder=rng.integers(len(LADDERS), size=TITLES), log_kbps=log_kbps,
    )  # fmt: skip
