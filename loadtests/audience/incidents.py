"""Incidents: what goes wrong, for whom, when and how badly; and a schedule that mixes them.

An incident hits a share of its slice's viewers (`severity`), drawn by viewer and incident, so that a partial failure
hits the same viewers for as long as it lasts. Crashes and DRM failures are drawn by session instead.

| kind | what happens to those that are hit | outage |
|---|---|---|
| cdn_down | nothing is delivered | yes |
| cdn_slow | throughput times `magnitude`, and ragged | yes |
| isp_congestion | the same in a network, in the evening | yes |
| app_crash | the app fails soon after the first picture | yes |
| bad_encode | a title's segments do not decode (`magnitude` 1: errors) or stall the decoder (0) | yes |
| drm_failure | sessions do not start | yes |
| slow_burn | starts and playback fail, more and more until the end (`magnitude`: share of starts at the end) | yes |
| telemetry_gap | a share `severity` of reports is lost; viewers notice nothing | no |
| flash_crowd | a title's starts times `magnitude` | no |
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from loadtests.audience.world import DAY_MS, HOUR_MS, Floats, World
from serve.errors import InvalidInput
from serve.telemetry.reports import DIMENSIONS

Kind = Literal[
    "cdn_down", "cdn_slow", "isp_congestion", "app_crash", "bad_encode", "drm_failure", "slow_burn", "telemetry_gap",
    "flash_crowd",
]  # fmt: skip
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
HARMLESS: Final[frozenset[Kind]] = frozenset({"telemetry_gap", "flash_crowd"})
"""Kinds that hurt nobody: to call one an outage is a false alarm."""

MINUTE_MS: Final = 60_000
_SPACING_MS: Final = 25 * MINUTE_MS
"""Quiet between two incidents at least."""

_LEAST_LOAD: Final = 0.25
"""Share of the peak's starts below which the schedule starts no incident: too few watch for 1 % to be anyone."""

_SMALLEST: Final = 0.009
_LARGEST: Final = 0.25
_LEAST_SEVERITY: Final = 0.15
_LEAST_SEVERITIES: Final[Mapping[Kind, float]] = {"app_crash": 0.3, "bad_encode": 0.4}
_TOP_TITLES: Final = 8
_PREMIERES: Final = 3
_LEAST_APP: Final = 0.02

_DURATIONS_MIN: Final[Mapping[Kind, tuple[float, float]]] = {
    "cdn_down": (6, 30),
    "cdn_slow": (12, 45),
    "isp_congestion": (40, 90),
    "app_crash": (20, 60),
    "bad_encode": (20, 60),
    "drm_failure": (10, 45),
    "slow_burn": (60, 120),
    "telemetry_gap": (3, 12),
    "flash_crowd": (30, 60),
}
_YIELD: Final[Mapping[Kind, float]] = {
    "cdn_down": 0.95,
    "cdn_slow": 0.8,
    "isp_congestion": 0.95,
    "app_crash": 0.65,
    "bad_encode": 0.95,
    "drm_failure": 0.45,
    "slow_burn": 1.6,
    "telemetry_gap": 1.0,
    "flash_crowd": 1.0,
}
"""Share of the slice's sessions hurt at severity 1 (of a slow burn, at magnitude 1), about: measured, to aim at a
share; what is true is counted."""

RECORD: Final = np.dtype(
    [
        ("start", "f8"), ("end", "f8"), ("severity", "f8"), ("magnitude", "f8"), ("salt", "u8"), ("bit", "u8"),
        ("place", "i8"), ("kind", "i8"), *((dimension, "i8") for dimension in DIMENSIONS),
    ]
)  # fmt: skip
"""An incident as the compiled loop reads it: ms, shares, the salt of its draws, its bit in masks of sessions."""

MASK_BITS: Final = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Something that happens to a slice of the audience.

    Attributes:
        incident_id: its name.
        kind: what happens; see the module.
        slice: dimension -> value of those that it can hit; empty: everyone. The root cause to be named.
        start_ms: when it begins, UTC ms.
        duration_ms: how long it lasts, above 0.
        severity: share of the slice that it hits, above 0 to 1.
        magnitude: how hard; the meaning is the kind's.
    """

    incident_id: str
    kind: Kind
    slice: Mapping[str, str]
    start_ms: int
    duration_ms: int
    severity: float = 1.0
    magnitude: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            InvalidInput: an unknown kind, a severity or duration out of range.
        """
        if self.kind not in KINDS:
            raise InvalidInput(
                field="kind", got=self.kind, expected=f"one of {', '.join(KINDS)}", next_step="Name one of these."
            )
        if not 0.0 < self.severity <= 1.0:
            raise InvalidInput(
                field="severity", got=self.severity, expected="above 0, at most 1", next_step="Give a share."
            )
        if self.duration_ms <= 0:
            raise InvalidInput(
                field="duration_ms", got=self.duration_ms, expected="above 0", next_step="Give milliseconds."
            )

    @property
    def end_ms(self) -> int:
        """When it is over."""
        return self.start_ms + self.duration_ms

    @property
    def is_outage(self) -> bool:
        """Whether viewers are hurt, so that it must be found."""
        return self.kind not in HARMLESS

    @property
    def salt(self) -> int:
        """Seeds what is drawn for it, from its name."""
        return zlib.crc32(self.incident_id.encode()) * 0x1_0000_0001 + 1


def records(incidents: Iterable[Incident], world: World) -> np.ndarray:
    """Incidents as the compiled loop reads them, RECORD (n,).

    Raises:
        InvalidInput: a slice of values that the world lacks.
    """
    rows = [
        (
            one.start_ms, one.end_ms, one.severity, one.magnitude, one.salt, 1 << (place % MASK_BITS), place,
            KINDS.index(one.kind), *world.codes(one.slice),
        )
        for place, one in enumerate(incidents)
    ]  # fmt: skip
    return np.array(rows, dtype=RECORD)


def schedule(
    seed: int, days: float, *, world: World, start_ms: int, per_day: float = 8.0, quiet_ms: int = 2 * HOUR_MS
) -> tuple[Incident, ...]:
    """Incidents of all kinds over some days, in order, never two at once.

    They start while at least a quarter of the evening's peak watches; congestion in the evening. Slices and severities
    are drawn so that the share of sessions hurt is spread evenly in the logarithm from about 1 % to 25 %, as far as
    slices are that large.

    Args:
        seed: same seed, same incidents.
        days: length, above 0.
        world: where.
        start_ms: when the first day begins.
        per_day: incidents a day, about: at most 10 find room.
        quiet_ms: nothing happens for so long from the start, for detectors to learn what is usual.
    """
    rng = np.random.default_rng([seed, 2])
    end_ms = start_ms + int(days * DAY_MS)
    wanted = max(1, round(days * per_day))
    deck: list[Kind] = []
    placed: list[Incident] = []
    for number in range(wanted):
        if not deck:
            deck = [KINDS[place] for place in rng.permutation(len(KINDS))]
        kind = deck.pop()
        duration_ms = int(rng.uniform(*_DURATIONS_MIN[kind]) * MINUTE_MS)
        start = _free_start(rng, kind, duration_ms, placed, world, (start_ms + quiet_ms, end_ms))
        if start is None:
            continue
        day = (start - start_ms) / DAY_MS
        slice_ = _slice(rng, kind, world, day)
        severity, magnitude = _strength(rng, kind, world.share(slice_, day))
        placed.append(
            Incident(
                incident_id=f"{seed}-{number}-{kind}", kind=kind, slice=slice_, start_ms=start, duration_ms=duration_ms,
                severity=severity, magnitude=magnitude,
            )
        )  # fmt: skip
    return tuple(sorted(placed, key=lambda one: one.start_ms))


def _free_start(
    rng: np.random.Generator, kind: Kind, duration_ms: int, placed: Sequence[Incident], world: World,
    within: tuple[int, int],
) -> int | None:  # fmt: skip
    """A time with enough viewers and room around it; None where none was found."""
    first, last = within[0], within[1] - duration_ms - 5 * MINUTE_MS
    if last <= first:
        return None
    for start in np.floor(rng.uniform(first, last, size=400) / 1000) * 1000:
        load = float(world.load(np.array([start])).sum())
        if load < (0.85 if kind == "isp_congestion" else _LEAST_LOAD):
            continue
        if all(start > one.end_ms + _SPACING_MS or start + duration_ms + _SPACING_MS < one.start_ms for one in placed):
            return int(start)
    return None


def _slice(rng: np.random.Generator, kind: Kind, world: World, day: float) -> dict[str, str]:
    """Whom it hits."""
    region = {"region": _one(rng, world.names[2], world.regions)}
    cdn = {"cdn": _one(rng, world.names[0])}
    device = int(rng.integers(len(world.devices)))
    app_shares = world.devices[world.app_device] * world.apps(day)
    protocols = {"protocol": "dash" if world.hls[device] < 0.5 else "hls"} if 0 < world.hls[device] < 1 else {}
    slices: dict[Kind, Sequence[dict[str, str]]] = {
        "cdn_down": [{**cdn, **region}],
        "cdn_slow": [cdn, {**cdn, **region}],
        "isp_congestion": [{"asn": _one(rng, world.names[1], world.regions @ world.asns)}],
        "app_crash": [{"app": _one(rng, world.names[4], app_shares * (app_shares > _LEAST_APP))}],
        "bad_encode": [{"title": _one(rng, world.names[5][:_TOP_TITLES])}],
        "drm_failure": [{"device": world.names[3][device], **protocols}],
        "slow_burn": [cdn, region, {"device": _one(rng, world.names[3], world.devices)}],
        "telemetry_gap": [{}, region],
        "flash_crowd": [{"title": _one(rng, world.names[5][:_PREMIERES])}],
    }
    fitting = slices[kind]
    return fitting[int(rng.integers(len(fitting)))]


def _one(rng: np.random.Generator, names: Sequence[str], shares: Floats | None = None) -> str:
    return names[int(rng.choice(len(names), p=None if shares is None else shares / shares.sum()))]


def _strength(rng: np.random.Generator, kind: Kind, share: float) -> tuple[float, float]:
    """Severity and magnitude."""
    target = float(np.exp(rng.uniform(np.log(_SMALLEST), np.log(_LARGEST))))
    severity = float(np.clip(target / (share * _YIELD[kind]), _LEAST_SEVERITIES.get(kind, _LEAST_SEVERITY), 1.0))
    strengths: dict[Kind, tuple[float, float]] = {
        "cdn_slow": (severity, float(rng.uniform(0.1, 0.25))),
        "isp_congestion": (severity, float(rng.uniform(0.06, 0.15))),
        "bad_encode": (severity, float(rng.integers(2))),
        "slow_burn": (1.0, float(np.clip(target / (share * _YIELD[kind]), 0.05, 0.5))),
        "telemetry_gap": (float(rng.uniform(0.7, 1.0)), 1.0),
        "flash_crowd": (1.0, float(rng.uniform(3.0, 5.0))),
    }
    return strengths.get(kind, (severity, 1.0))
