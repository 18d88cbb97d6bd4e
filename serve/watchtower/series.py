"""Anomalies of one measured quantity over time, whatever it is: no setting is meant to be tuned to a series.

Six readings of how unusual a value is (against the season, the season over the last values, the recent past's median,
the nearest value, and the nearest runs of 5 and 20 values) are each turned into a surprise, -log10 of their probability
given the past. Surprises above one are summed, with some of the sums just before and with the sum's own surprise. The
sum that is asked for grows with the series (alpha spending: the same evidence is found ever more often by chance), and
after a detection only more evidence speaks again.
"""

import math
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from numbers import Real
from typing import Any, Final

from river.base import AnomalyDetector

from serve.watchtower.neighbours import Neighbours
from serve.watchtower.seasonality import SeasonalBaseline
from serve.watchtower.spread import RecentValues, Spread
from serve.watchtower.state import checked, stamped
from serve.watchtower.tails import Tail

KIND: Final = "series"
VERSION: Final = 1
WEIGHTS: Final = {"season": 1.0, "season_run": 2.0, "median": 0.5, "value": 0.5, "run": 1.0, "long_run": 2.0}
"""Of each reading's surprise: those of single values, of the season over time, and of runs are alike within their kind
and share a weight, so that one wild value isn't counted four times."""
MEMORY: Final = 2000
"""Values that the recent past is made of."""
SCALE_MEMORY: Final = 5000
RUN: Final = 5
LONG_RUN: Final = 20
SMOOTHING: Final = 0.1
"""Of the season's residual: a weight a value."""
FLOOR: Final = 0.05
"""Of the whole spread, added to the recent one, so that a calm stretch doesn't make a ripple look like a wave."""
RESOLUTION: Final = 0.01
"""Of the whole spread: readings smaller than this are alike."""
LEAST_SURPRISE: Final = 1.0
CARRY: Final = 0.3
"""Of the evidence of the values just before, added to a value's own: what lasts is likelier to be real ..."""
CARRIED: Final = 0.8
"""... and how much of it is left a value later."""
OVERALL: Final = 1.0
"""Weight of the sum's own surprise."""
SPENDING: Final = 0.35
"""Evidence that is asked for grows with the number of values to this power ..."""
SPENDING_FROM: Final = 100
SPENDING_TO: Final = 20_000
"""... between these numbers of values."""
OUTDO: Final = 1.1
"""Within the hold, evidence must exceed the strongest so far by this factor to speak again."""


class SeriesDetector(AnomalyDetector):
    """One-pass anomaly scores of a series of numbers, in [0, 1); larger is more anomalous.

    It takes dicts: `value`, a number, and, if there is one, `timestamp`: seconds since 1970, a datetime (UTC if it
    names no zone) or ISO 8601 text. A missing or non-finite value scores 0 and is not learned. A level shift speaks
    once; the new level is usual within `MEMORY` / 2 values. Cost and memory per value are bounded.

    Args:
        value: key of the value.
        timestamp: key of its time.
        warm_up: how many values are learned before any is scored above 0.
        hold: for how many values after a detection only more evidence speaks again; 0: never hold.
    """

    def __init__(self, value: str = "value", timestamp: str = "timestamp", warm_up: int = 100, hold: int = 100) -> None:
        self.value = value
        self.timestamp = timestamp
        self.warm_up = warm_up
        self.hold = hold
        self._count = 0
        self._scale = Spread(SCALE_MEMORY)
        self._recent = RecentValues(MEMORY)
        self._baseline = SeasonalBaseline()
        self._residual = 0.0
        self._carried = 0.0
        self._run = Neighbours(length=RUN, memory=MEMORY)
        self._long_run = Neighbours(length=LONG_RUN, memory=MEMORY, step=2)
        self._tails = {name: Tail() for name in (*WEIGHTS, "overall")}
        self._peaks: deque[tuple[int, float]] = deque()  # places and evidence, falling, of the last `hold` values
        self._asked: tuple[int, float, float | None, _Assessment] | None = None

    def score_one(self, x: Mapping[Any, Any]) -> float:
        """How anomalous a value is after all that were learned, in [0, 1).

        Raises:
            ValueError: the timestamp is text that is no ISO 8601.
        """
        got = self._got(x)
        if got is None or self._count < self.warm_up:
            return 0.0
        evidence = self._assess(*got).evidence
        if self._peaks and self._peaks[0][0] >= self._count - self.hold and evidence <= OUTDO * self._peaks[0][1]:
            return 0.0
        return evidence / (1.0 + evidence)

    def learn_one(self, x: Mapping[Any, Any]) -> None:
        """Take a value into the past.

        Raises:
            ValueError: the timestamp is text that is no ISO 8601.
        """
        got = self._got(x)
        if got is None:
            return
        value, ts_s = got
        assessed = self._assess(value, ts_s)
        for name, reading in assessed.readings.items():
            self._tails[name].learn(reading)
        self._tails["overall"].learn(assessed.total)
        while self._peaks and self._peaks[0][0] <= self._count - self.hold:
            self._peaks.popleft()
        while self._peaks and self._peaks[-1][1] <= assessed.evidence:
            self._peaks.pop()
        if self.hold:
            self._peaks.append((self._count, assessed.evidence))
        self._residual = assessed.residual
        self._carried = self._carried * CARRIED + assessed.own
        self._count += 1
        self._baseline.learn(ts_s, value)
        self._scale.learn(value)
        self._recent.learn(value)
        self._run.learn(value)
        self._long_run.learn(value)
        self._asked = None

    def explain_one(self, x: Mapping[Any, Any]) -> dict[str, float]:
        """The surprise of each reading of a value: -log10 of its probability given the past; empty without a value."""
        got = self._got(x)
        return {} if got is None else dict(self._assess(*got).surprises)

    def _got(self, x: Mapping[Any, Any]) -> tuple[float, float | None] | None:
        value = x.get(self.value)
        if not isinstance(value, Real) or not math.isfinite(value):
            return None
        return float(value), seconds(x.get(self.timestamp))

    def _assess(self, value: float, ts_s: float | None) -> "_Assessment":
        if self._asked is None or self._asked[:3] != (self._count, value, ts_s):
            self._asked = (self._count, value, ts_s, self._assessed(value, ts_s))
        return self._asked[3]

    def _assessed(self, value: float, ts_s: float | None) -> "_Assessment":
        scale = self._scale.deviation
        ripple = RESOLUTION * scale
        readings: dict[str, float] = {}
        residual = self._residual
        usual = self._baseline.predict(ts_s)
        if usual is not None:
            away = value - usual
            residual += SMOOTHING * (away - residual)
            readings["season"] = abs(away) + ripple
            readings["season_run"] = abs(residual) + ripple
        if self._count > LONG_RUN:
            median, spread = self._recent.location_and_spread()
            readings["median"] = abs(value - median) / (spread + FLOOR * scale) if scale else abs(value - median)
            readings["value"] = self._recent.isolation(value, 3) + 0.1 * ripple
            readings["run"] = self._run.isolation(value) + 0.1 * ripple
            readings["long_run"] = self._long_run.isolation(value) + 0.1 * ripple
        surprises = {name: self._tails[name].surprise(reading) for name, reading in readings.items()}
        own = sum(WEIGHTS[name] * max(one - LEAST_SURPRISE, 0.0) for name, one in surprises.items())
        total = own + CARRY * self._carried
        evidence = total + OVERALL * self._tails["overall"].surprise(total)
        spent = min(max(self._count, SPENDING_FROM), SPENDING_TO) / SPENDING_FROM
        return _Assessment(readings, surprises, residual, own, total, evidence / spent**SPENDING)

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned. A detector restored from it scores bit for bit the same."""
        return stamped(KIND, VERSION, {
            "value": self.value, "timestamp": self.timestamp, "warm_up": self.warm_up, "hold": self.hold,
            "count": self._count, "scale": self._scale.state(), "recent": self._recent.state(),
            "baseline": self._baseline.state(), "residual": self._residual, "carried": self._carried,
            "run": self._run.state(),
            "long_run": self._long_run.state(), "tails": {name: tail.state() for name, tail in self._tails.items()},
            "peaks": [list(peak) for peak in self._peaks],
        })  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "SeriesDetector":
        """The detector that wrote this checkpoint.

        Raises:
            InvalidInput: another detector or version wrote it.
        """
        state = checked(state, KIND, VERSION)
        detector = cls(**{name: state[name] for name in ("value", "timestamp", "warm_up", "hold")})
        detector._count = state["count"]
        detector._scale = Spread.from_state(state["scale"])
        detector._recent = RecentValues.from_state(state["recent"])
        detector._baseline = SeasonalBaseline.from_state(state["baseline"])
        detector._residual = state["residual"]
        detector._carried = state["carried"]
        detector._run = Neighbours.from_state(state["run"])
        detector._long_run = Neighbours.from_state(state["long_run"])
        detector._tails = {name: Tail.from_state(tail) for name, tail in state["tails"].items()}
        detector._peaks = deque((place, evidence) for place, evidence in state["peaks"])
        return detector


class _Assessment:
    """What one value looks like: its readings, their surprises, and the evidence that they add up to."""

    __slots__ = ("evidence", "own", "readings", "residual", "surprises", "total")

    def __init__(
        self,
        readings: dict[str, float],
        surprises: dict[str, float],
        residual: float,
        own: float,
        total: float,
        evidence: float,
    ) -> None:
        self.readings = readings
        self.surprises = surprises
        self.residual = residual
        self.own = own
        self.total = total
        self.evidence = evidence


def seconds(moment: float | str | datetime | None) -> float | None:
    """Seconds since 1970 of a moment that may be given as such, as a datetime or as ISO 8601; UTC if it names no zone.

    Raises:
        ValueError: text that is no ISO 8601.
    """
    if moment is None:
        return None
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if isinstance(moment, datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return float(moment) if math.isfinite(moment) else None
