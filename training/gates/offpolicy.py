"""Off-policy estimates: what a policy that was not asked would have earned, from what was shown with known propensity.

Each logged slot has a context, the title that was shown there, the probability with which it was (`propensity`), and a
reward. A target policy is told by the probability with which it shows the logged title in that slot. The estimators:

    IPS    mean of w * reward, w = target / propensity (Horvitz and Thompson, JASA 47, 1952): unbiased
    SNIPS  sum of w * reward / sum of w (Swaminathan and Joachims, NeurIPS 2015): biased a little, never out of range
    DR     mean of v + w * (reward - q) (Dudik, Langford and Li, ICML 2011): right where propensities or q are

where q is a model's reward of the logged title and v of what the target shows. Weights above a limit are clipped, which
costs bias and is told. Slots of one unit (a profile) go together in the intervals.

Shapes: I logged slots.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from serve.errors import InvalidInput
from training.gates.intervals import Floats, Integers, Interval, mean, ratio

MOST_WEIGHT: Final = 100.0
"""Weights above it are clipped."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoggedSlots:
    """What was shown and what came of it.

    Attributes:
        rewards: float64 (I,).
        propensities: float64 (I,), above 0 and up to 1: of what was shown, by the policy that showed it.
        units: int64 (I,), whose, as a code.
    """

    rewards: Floats
    propensities: Floats
    units: Integers

    def __post_init__(self) -> None:
        """Refuse what can't be weighted.

        Raises:
            InvalidInput: no slots, lengths that differ, a propensity out of range, or a reward that is no number.
        """
        sizes = {len(self.rewards), len(self.propensities), len(self.units)}
        if len(sizes) != 1 or 0 in sizes:
            raise _refuse("slots", f"lengths {sorted(sizes)}", "as many rewards, propensities and units, at least one")
        wrong = ~((self.propensities > 0) & (self.propensities <= 1))
        if wrong.any():
            raise _refuse("propensity", float(self.propensities[wrong][0]), "above 0 and up to 1")
        if not np.isfinite(self.rewards).all():
            raise _refuse("reward", "NaN or infinity", "numbers")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One estimator's word.

    Attributes:
        name: ips, snips or dr.
        interval: of the mean reward of a slot, with 95 % bounds.
        effective: effective sample size, (sum of w)^2 / sum of w^2 (Kish): as many slots of the target itself would
            tell about as much.
        clipped: share of slots whose weight was clipped.
    """

    name: str
    interval: Interval
    effective: float
    clipped: float


def weights_of(log: LoggedSlots, target: Floats, *, most: float = MOST_WEIGHT) -> tuple[Floats, float]:
    """Importance weights (I,), and the share of them that was clipped.

    Args:
        log: the slots.
        target: (I,), probability with which the target policy shows the logged title there, 0 to 1.
        most: the largest weight.

    Raises:
        InvalidInput: a probability out of range, or not one for each slot.
    """
    if target.shape != log.propensities.shape or not ((target >= 0) & (target <= 1)).all():
        raise _refuse("target", f"shape {target.shape}", "a probability for each logged slot")
    raw = target / log.propensities
    return np.minimum(raw, most), float((raw > most).mean())


def effective_size(weights: Floats) -> float:
    """(sum of w)^2 / sum of w^2; 0 where all weights are."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def ips(log: LoggedSlots, target: Floats, *, most: float = MOST_WEIGHT) -> Estimate:
    """Inverse propensity scoring; see the module. Arguments as `weights_of`."""
    weights, clipped = weights_of(log, target, most=most)
    return Estimate(
        name="ips", interval=mean(weights * log.rewards, log.units), effective=effective_size(weights), clipped=clipped
    )


def snips(log: LoggedSlots, target: Floats, *, most: float = MOST_WEIGHT) -> Estimate:
    """Self-normalised inverse propensity scoring; NaN where the target shows nothing that was shown."""
    weights, clipped = weights_of(log, target, most=most)
    found = ratio(weights * log.rewards, weights, log.units)
    return Estimate(name="snips", interval=found, effective=effective_size(weights), clipped=clipped)


def doubly_robust(
    log: LoggedSlots, target: Floats, modelled: Floats, value: Floats, *, most: float = MOST_WEIGHT
) -> Estimate:
    """Doubly robust.

    Args:
        log: the slots.
        target: as `weights_of`.
        modelled: (I,), what a model takes for the reward of the logged title in that slot.
        value: (I,), what it takes for the reward of what the target shows there, in the mean.
        most: the largest weight.

    Raises:
        InvalidInput: as `weights_of`, or a model's figure that is no number.
    """
    weights, clipped = weights_of(log, target, most=most)
    if modelled.shape != weights.shape or value.shape != weights.shape:
        raise _refuse("model", f"shapes {modelled.shape} and {value.shape}", "a figure for each logged slot")
    if not (np.isfinite(modelled).all() and np.isfinite(value).all()):
        raise _refuse("model", "NaN or infinity", "numbers")
    parts = value + weights * (log.rewards - modelled)
    return Estimate(name="dr", interval=mean(parts, log.units), effective=effective_size(weights), clipped=clipped)


def advantage(
    log: LoggedSlots,
    target: Floats,
    champion: Floats,
    modelled: Floats,
    values: tuple[Floats, Floats],
    *,
    most: float = MOST_WEIGHT,
) -> Interval:
    """Doubly robust mean reward of a slot by the target less that by the champion, paired slot by slot.

    Args:
        log: the slots.
        target: of the candidate, as `weights_of`.
        champion: of the champion, likewise.
        modelled: as `doubly_robust`.
        values: `value` of the candidate and of the champion.
        most: the largest weight.
    """
    ours, _ = weights_of(log, target, most=most)
    theirs, _ = weights_of(log, champion, most=most)
    parts = values[0] - values[1] + (ours - theirs) * (log.rewards - modelled)
    return mean(parts, log.units)


def _refuse(field: str, got: object, expected: str) -> InvalidInput:
    return InvalidInput(
        field=field, got=got, expected=expected, next_step="Correct what is given, or leave these slots out."
    )
