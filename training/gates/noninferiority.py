"""Not worse overall, and in no slice; better only where it is shown.

Overall the lower bound of the difference must be above -margin: a candidate that is worse by the margin fails in 97.5 %
of gates, however few units there are; with few units one that is alike fails too, and is told how many are needed.

In slices there are fewer units and many tries. A slice in which an equal candidate would fail by chance more often than
its share of FALSE_SLICES (Bonferroni over the slices that are looked at) is not held to the margin: only harm that is
shown at that level stops the candidate there. So a candidate that is alike everywhere is rejected for slices in at most
FALSE_SLICES of gates, whatever the number of slices and the dependence between them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.gates.intervals import CONFIDENCE, Floats, Integers, Interval, mean, ratio, units_needed
from training.gates.verdict import Check, Comparison

FALSE_SLICES: Final = 0.02
"""Share of gates in which slices may reject a candidate that is alike in all of them."""

LEAST_UNITS: Final = 30
"""Units that a slice must have to be looked at: with fewer, no interval of a mean can be believed."""

_POWER: Final = 0.95
"""An equal candidate passes overall with this chance, with as many units as a failure says are needed."""


@dataclass(frozen=True, kw_only=True)
class Margin:
    """What a difference may be.

    Attributes:
        overall: the most that the candidate may be worse over all units, above 0.
        slices: the most in one slice, above 0.
        relative: whether these are shares of the champion's mean; else in the measure's unit.
        others: the most in a measure that stands beside the first one, above 0.
    """

    overall: float
    slices: float
    relative: bool = True
    others: float = 0.1


def judge(
    measure: str,
    candidate: Floats,
    champion: Floats,
    units: Integers,
    slices: Mapping[str, NDArray[np.bool_]],
    margin: Margin,
    *,
    unit: str,
    others: Mapping[str, tuple[Floats, Floats]] | None = None,
    least: int = LEAST_UNITS,
) -> tuple[list[Check], list[Comparison]]:
    """Compare overall, by slice, and in measures that stand beside the first; these count as slices do.

    Args:
        measure: name of the measure; higher values are better.
        candidate: of each item (I,).
        champion: of each item (I,).
        units: unit of each item (I,).
        slices: name -> which items belong to it (I,); may overlap.
        margin: what the difference may be.
        unit: what a unit is, plural, for messages.
        least: units that a slice must have to be looked at.
        others: name of a measure -> candidate's and champion's values of each item (I,), higher is better.

    Returns:
        Checks, and what they rest on; the first is over all units, of the first measure.
    """
    whole = _compare(measure, "all", candidate, champion, units, margin.overall, relative=margin.relative)
    checks, comparisons = [_overall(whole, unit)], [whole]
    everything = np.ones(len(units), dtype=np.bool_)
    tried = [
        (name, "all", (ours, theirs), everything, margin.others) for name, (ours, theirs) in (others or {}).items()
    ] + [
        (measure, name, (candidate, champion), chosen, margin.slices)
        for name, chosen in slices.items()
        if len(np.unique(units[chosen])) >= least
    ]
    share = FALSE_SLICES / max(len(tried), 1)
    for name, group, (ours, theirs), chosen, most in tried:
        one = _compare(
            name, group, ours[chosen], theirs[chosen], units[chosen], most, relative=margin.relative, share=share
        )
        shown = difference(ours[chosen], theirs[chosen], units[chosen], relative=margin.relative, level=1 - 2 * share)
        checks.append(_part(one, shown, share))
        comparisons.append(one)
    return checks, comparisons


def difference(
    candidate: Floats, champion: Floats, units: Integers, *, relative: bool, level: float = CONFIDENCE
) -> Interval:
    """Candidate less champion: as a share of the champion's mean, or in the measure's unit."""
    if relative:
        return ratio(candidate, champion, units, level=level).shifted(-1.0)
    return mean(candidate - champion, units, level=level)


def _compare(
    measure: str, group: str, candidate: Floats, champion: Floats, units: Integers, margin: float, *, relative: bool,
    share: float = 1 - _POWER,
) -> Comparison:  # fmt: skip
    found = difference(candidate, champion, units, relative=relative)
    return Comparison(
        measure=measure, group=group, candidate=float(candidate.mean()), champion=float(champion.mean()),
        difference=found, margin=margin, relative=relative, decisive=_quantile(share) * found.error <= margin,
    )  # fmt: skip


def _quantile(share: float) -> float:
    """Standard errors that must fit into a margin for an equal candidate to fail in that share of gates at most."""
    return float(NormalDist().inv_cdf((1 + CONFIDENCE) / 2) + NormalDist().inv_cdf(1 - share))


def _overall(one: Comparison, unit: str) -> Check:
    found = one.difference
    passed = found.low > -one.margin
    text = described(one)
    if not passed and not one.decisive:
        needed = units_needed(found, one.margin, quantile=_quantile(1 - _POWER))
        text += (
            f"; {found.units} {unit} ({found.items} cases) are too few to show that it is no worse, about "
            f"{needed} are needed" if needed else f"; {found.units} {unit} tell nothing"
        )  # fmt: skip
    return Check(name=one.measure, passed=passed, measured=found.low, bound=-one.margin, text=text)


def _part(one: Comparison, shown: Interval, share: float) -> Check:
    name = one.measure if one.group == "all" else f"{one.measure}: {one.group}"
    if one.decisive:
        passed = one.difference.low > -one.margin
        return Check(name=name, passed=passed, measured=one.difference.low, bound=-one.margin, text=described(one))
    harm = shown.high < 0
    return Check(
        name=name, passed=not harm, measured=shown.high, bound=0.0,
        text=f"{described(one)}; too few for that margin: stopped only by harm that is sure at {1 - share:.2%}"
        + (", which is shown" if harm else ""),
    )  # fmt: skip


def described(one: Comparison) -> str:
    """A comparison in words."""
    sign = "+.2%" if one.relative else "+.4g"
    found = one.difference
    bounds = f"{found.low:{sign}} to {found.high:{sign}}" if math.isfinite(found.low) else "unknown"
    return (
        f"{one.candidate:.4f} against {one.champion:.4f}, {found.value:{sign}} ({bounds}), "
        f"may be {(-one.margin):{sign}}"
    )


def is_better(whole: Comparison) -> bool:
    """Whether the lower bound over all units is above 0."""
    return whole.difference.low > 0
