"""The way from players to the collector: what is lost, comes twice, late or in another order, and what clocks say.

What happens to a report is drawn by its session and number, in bulk, so that it is the same however time is cut.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtests.audience.incidents import KINDS
from loadtests.audience.world import LADDERS, World
from serve.telemetry.reports import DIMENSIONS

ROW: Final = np.dtype(
    [
        ("at", "i8"), ("ts", "i8"), ("sid", "u8"), ("context", "i8"), ("number", "i8"), ("event", "i8"),
        ("state", "i8"), ("code", "i8"), ("br", "i8"), ("bl", "i8"), ("mtp", "i8"), ("tb", "i8"), ("msd", "i8"),
        ("bsa", "i8"), ("bsd", "i8"), ("bsda", "i8"),
    ]
)  # fmt: skip
"""A report as numbers; -1: not said. `at` is when the collector has it, `ts` the player's clock, both UTC ms; bitrates
kbit/s, the rest ms, rounded as CTA-5004-B asks; codes as playback.EVENTS, STATES and CODES."""

LOST: Final = 0.012
DUPLICATE: Final = 0.007
DELAYED: Final = 0.04
"""Reports that other ones overtake: seconds late."""
LATE: Final = 0.004
"""Reports that come 5 s to 4 min late."""
_SHORTEST_MS: Final = 40.0
_USUAL_MS: Final = 60.0
_DELAY_MS: Final = 1500.0

_SIZES: Final = (8, 64, 16, 16, 64, 1024, 2)
"""Room for each dimension's codes in a row's context, in the order of DIMENSIONS."""
_GAP: Final = KINDS.index("telemetry_gap")

Rows = NDArray[np.void]


def collected(said: Rows, viewers: Rows, incidents: Rows) -> Rows:
    """What the collector gets.

    Args:
        said: playback.SAID (n,).
        viewers: playback.VIEWER, those that `said` tells the places of.
        incidents: incidents.RECORD (k,): those that may be going on.

    Returns:
        ROW (m,), in no order.
    """
    who = viewers[said["place"]]
    way = _mixed(said["sid"] + said["number"].astype(np.uint64))
    kept = _unit(way) >= LOST
    for one in incidents[incidents["kind"] == _GAP]:
        gone = (said["at"] >= one["start"]) & (said["at"] < one["end"]) & (_unit(way ^ one["salt"]) < one["severity"])
        for dimension in DIMENSIONS:
            if one[dimension] >= 0:
                gone &= who[dimension] == one[dimension]
        kept &= ~gone
    said, who, way = said[kept], who[kept], way[kept]
    slow, much = _unit(way + np.uint64(2)), _unit(way + np.uint64(3))
    delay_ms = _SHORTEST_MS - _USUAL_MS * np.log1p(-_unit(way + np.uint64(1)))
    delay_ms += np.where(slow < DELAYED, -_DELAY_MS * np.log1p(-much), 0.0)
    delay_ms += np.where((slow >= DELAYED) & (slow < DELAYED + LATE), 5000.0 + 235_000.0 * much, 0.0)
    counts = (who["counts_stalls"] != 0) & (said["starved"] > 0)
    rows = np.empty(len(said), dtype=ROW)
    rows["at"] = said["at"] + delay_ms
    rows["ts"] = said["at"] + who["skew"]
    rows["sid"] = said["sid"]
    rows["context"] = _packed(who)
    for name in ("number", "event", "state", "code", "msd"):
        rows[name] = said[name]
    rows["br"] = said["kbps"]
    rows["bl"] = np.floor(said["buffer"] * 10.0) * 100
    rows["mtp"] = np.where(said["estimate"] > 0.0, np.rint(said["estimate"] / 100.0) * 100, -1)
    rows["tb"] = LADDERS[who["ladder"], who["rungs"] - 1]
    rows["bsa"] = np.where(counts, said["starved"], -1)
    rows["bsd"] = np.where(counts, said["bsd"], -1)
    rows["bsda"] = np.where(counts, said["starved_ms"], -1)
    twice = _unit(way + np.uint64(4)) < DUPLICATE
    again = rows[twice]
    again["at"] += (50.0 + 5000.0 * _unit(way[twice] + np.uint64(5))).astype(np.int64)
    return np.concatenate([rows, again])


def context_of(code: int, world: World) -> dict[str, str]:
    """The dimensions of a row's `context`."""
    places = []
    for size in reversed(_SIZES):
        code, place = divmod(code, size)
        places.append(place)
    return {
        dimension: names[place]
        for dimension, names, place in zip(DIMENSIONS, world.names, reversed(places), strict=True)
    }


def place_of(contexts: NDArray[np.int64], dimension: str) -> NDArray[np.int64]:
    """The place among World.names of a dimension, of rows' `context`."""
    at = DIMENSIONS.index(dimension)
    return np.asarray(contexts // int(np.prod(_SIZES[at + 1 :])) % _SIZES[at])


def _packed(who: Rows) -> NDArray[np.int64]:
    code = np.zeros(len(who), dtype=np.int64)
    for size, dimension in zip(_SIZES, DIMENSIONS, strict=True):
        code = code * size + who[dimension]
    return code


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, as playback.mixed."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _unit(numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform in [0, 1) (n,)."""
    return np.asarray((_mixed(numbers) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)
