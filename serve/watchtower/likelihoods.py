"""Tail probabilities of counts, with and without more spread than their plain law: P(this many or more), or fewer.

The plain laws are the incomplete beta and gamma functions; the beta-binomial is summed term by term in logarithms where
that is few terms, and taken as a binomial of fewer, equally spread trials where it is many (the effective sample size).
"""

import math
from typing import Final

import numpy as np
from scipy.special import betainc, betaln, gammainc, gammaincc, gammaln

MOST_TERMS: Final = 4000


def poisson_tail(count: float, mean: float, *, upper: bool) -> float:
    """P(X >= count), or P(X <= count), of X ~ Poisson(mean)."""
    if upper:
        return 1.0 if count <= 0 else float(gammainc(count, mean))
    return float(gammaincc(count + 1.0, mean))


def negative_binomial_tail(count: float, mean: float, spread: float, *, upper: bool) -> float:
    """P(X >= count), or P(X <= count), of a negative binomial X with variance mean + spread * mean^2.

    Args:
        count: at least 0.
        mean: above 0.
        spread: at least 0; 0 is Poisson.
        upper: which tail.
    """
    if spread * mean < 1e-9:
        return poisson_tail(count, mean, upper=upper)
    shape = 1.0 / spread
    share = spread * mean / (1.0 + spread * mean)
    if upper:
        return 1.0 if count <= 0 else float(betainc(count, shape, share))
    return float(betainc(shape, count + 1.0, 1.0 - share))


def beta_binomial_tail(count: float, trials: float, share: float, concentration: float, *, upper: bool) -> float:
    """P(X >= count), or P(X <= count), of `trials` draws whose share is Beta with this mean and concentration.

    Args:
        count: in [0, trials].
        trials: whole; 0 gives 1.
        share: mean of the share, in (0, 1).
        concentration: a + b of the Beta, above 0; the larger, the nearer to a binomial.
        upper: which tail.
    """
    if not upper:
        return beta_binomial_tail(trials - count, trials, 1.0 - share, concentration, upper=True)
    if count <= 0:
        return 1.0
    inflation = 1.0 + (trials - 1.0) / (concentration + 1.0)
    reach = 12.0 * math.sqrt(trials * share * (1.0 - share) * inflation) + 40.0
    last = min(trials, count + reach) if count > trials * share else count - 1.0
    if last < count or last - count > MOST_TERMS or concentration > 1e9:
        effective = trials / inflation
        return float(betainc(count / inflation, max(effective - count / inflation, 0.0) + 1.0 / inflation, share))
    a, b = share * concentration, (1.0 - share) * concentration
    counts = np.arange(count, last + 1.0)
    logs = (
        gammaln(trials + 1.0) - gammaln(counts + 1.0) - gammaln(trials - counts + 1.0)
        + betaln(counts + a, trials - counts + b) - betaln(a, b)
    )  # fmt: skip
    return min(float(np.exp(logs).sum()), 1.0)
