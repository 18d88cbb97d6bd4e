"""Alarms: a metric of a slice that is not as usual, as detectors raise them and outages are made of them.

Detectors tell signs, in the same form; serve.watchtower.settings says which of them are alarms.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from serve.telemetry.reports import DIMENSIONS

Slice = tuple[tuple[str, str], ...]
"""Pairs of dimension and value, in the order of DIMENSIONS; empty: everyone."""

MISSING: Final = "missing_starts"
"""The metric of sessions that should have begun and did not."""

GAP: Final = "telemetry_gap"
"""The metric of reports that do not come from sessions that are there: trouble of telemetry, not of playback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A metric of a slice that is not as usual.

    Attributes:
        slice: which.
        metric: one of METRICS, MISSING or GAP.
        window_ms: when its window began.
        evidence: -log10 of the probability of so much by chance.
        expected: share of bad ones that is usual; of MISSING and GAP, the usual number of starts and of reports.
        total: in the window.
        bad: of them; of MISSING and GAP, how many fewer than usual.
        windows: that `total` and `bad` are about; more than one where the trouble is too slow for one to show.
        before: evidence of the window before; 0 where it was too little to be remembered.
        excess: bad ones beyond what is usual, over the span that has most of them; infinity where whoever told it has
            found them enough.
    """

    slice: Slice
    metric: str
    window_ms: int
    evidence: float
    expected: float
    total: float
    bad: float
    windows: int = 1
    before: float = 0.0
    excess: float = math.inf


def slice_of(pairs: Iterable[Sequence[str]]) -> Slice:
    """A slice from pairs as JSON has them, or from the items of a mapping; in the order of DIMENSIONS."""
    named: dict[str, str] = {dimension: value for dimension, value in pairs}  # noqa: C416 - pairs may be lists
    return tuple((dimension, named[dimension]) for dimension in DIMENSIONS if dimension in named)


def may_meet(one: Slice, other: Slice) -> bool:
    """Whether a session can be in both."""
    named = dict(other)
    return all(named.get(dimension, value) == value for dimension, value in one)
