"""What a gate says: checks, each with what was measured and what was asked for, and one verdict over them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from training.gates.intervals import Interval

DIGITS: Final = 6
"""Significant digits of figures in reports."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question that a candidate was asked.

    Attributes:
        name: names it, such as `ndcg@10` or `ndcg@10: new profiles`; unique in a verdict.
        passed: whether the candidate may go on, as far as this check is concerned.
        measured: what was found; None where it could not be measured.
        bound: what it was held against; None where there is no such number.
        text: both in words, with units, and what to do where it failed.
        decides: whether failing stops the candidate; a check that doesn't is there to be read.
    """

    name: str
    passed: bool
    measured: float | None = None
    bound: float | None = None
    text: str = ""
    decides: bool = True

    def __post_init__(self) -> None:
        """Take numpy's booleans, which JSON does not know, as Python's."""
        object.__setattr__(self, "passed", bool(self.passed))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How candidate and champion differ in one measure over one group of units (profiles, traces or clips).

    Attributes:
        measure: such as `ndcg@10`.
        group: `all`, or a slice.
        candidate: mean.
        champion: mean.
        difference: of the two, in shares of the champion's or in the measure's own unit; above 0 the candidate is
            better, whichever direction of the measure is.
        margin: the most that it may be below 0, 0 or more; infinity: it is only told.
        relative: whether the difference is a share of the champion's mean.
        decisive: whether there is enough data for the margin; else only harm that is shown counts.
    """

    measure: str
    group: str
    candidate: float
    champion: float
    difference: Interval
    margin: float
    relative: bool
    decisive: bool


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Reliability of one head: predicted against what happened.

    Attributes:
        head: such as `finish`.
        version: whose.
        predicted: mean prediction of each bin.
        happened: share of each bin in which it happened.
        count: starts of each bin.
        error: expected calibration error: mean absolute distance of the two, weighted by starts.
    """

    head: str
    version: str
    predicted: tuple[float, ...]
    happened: tuple[float, ...]
    count: tuple[int, ...]
    error: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a candidate.

    Attributes:
        model: model name.
        candidate: version.
        champion: version that it was compared with.
        checks: all that was asked, in order.
        comparisons: what was compared, for the report.
        curves: reliability of heads, for the report.
        latency_ms: version -> quantiles (10 %, 50 %, 90 %, 99 %) of one answer's engine time, for the report.
        facts: what the gate rests on, as JSON: numbers of starts, the cut, seeds.
        better: whether the candidate is shown to be better, not only no worse.
        made: when, UTC.
    """

    model: str
    candidate: str
    champion: str
    checks: tuple[Check, ...]
    comparisons: tuple[Comparison, ...] = ()
    curves: tuple[Curve, ...] = ()
    latency_ms: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    better: bool = False
    made: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def passed(self) -> bool:
        """Whether the candidate may become a canary: something was checked and nothing that decides failed."""
        return any(check.decides for check in self.checks) and not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that stop it."""
        return tuple(check for check in self.checks if check.decides and not check.passed)

    def as_json(self) -> dict[str, Any]:
        """One JSON object; numbers that JSON lacks (infinity, NaN) are null."""
        fields: dict[str, Any] = _plain(
            {
                "model": self.model,
                "candidate": self.candidate,
                "champion": self.champion,
                "passed": self.passed,
                "better": self.better,
                "made": self.made.isoformat(timespec="seconds"),
                "failed": [check.name for check in self.failed],
                "checks": [vars(check) for check in self.checks],
                "comparisons": [{**vars(one), "difference": vars(one.difference)} for one in self.comparisons],
                "curves": [vars(curve) for curve in self.curves],
                "latency_ms": dict(self.latency_ms),
                "facts": dict(self.facts),
            }
        )
        return fields


def _plain(value: Any) -> Any:
    """The value with numbers rounded to DIGITS, and None for those that JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None
