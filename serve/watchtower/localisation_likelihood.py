"""Likelihoods of leaf counts, and what a cause does to them.

A cause moves the expected rate of every leaf in its slice by one number; how much better the counts fit then is the sum
of a gain per leaf. Sums of gains over slices are all that the search needs.

Counts of different leaves are worth different amounts: a leaf's gain is weighted by w = 1 / (c + s² m), m its mean
count, c its clumping (variance over a Poisson's) and s its relative noise beyond that, which gives the weighted count
the variance of a Poisson one whose mean is w m (quasi-likelihood; McCullagh and Nelder, Generalized Linear Models,
1989, chapter 9).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LEAST: Final = 1e-5
_MEDIAN_SQUARE: Final = 0.455
"""Median of a squared standard normal variable."""
_NOISIEST: Final = 4.0
_GOLDEN: Final = 0.618034
_STEPS: Final = 8


@dataclass(frozen=True)
class Effect:
    """What a cause does to the rates in its slice.

    Attributes:
        form: `odds` multiplies the odds of a bad session by exp(size); `fail` makes the share `size` of the good ones
            bad; `loss` takes the share `size` of all sessions away (below 0: adds).
        size: 0 for none.
    """

    form: str
    size: float


Forms = tuple[tuple[Effect, ...], ...]


class Likelihood(Protocol):
    """Of one metric. Arrays are per leaf, (L,) or (N,) where `rows` picks N of them."""

    grid: Forms
    """Per form, effects of rising size, evenly spaced in effort: what a scan tries."""
    overall: Forms
    """The same for the whole, which can go either way."""

    def move(self, rate: Floats, effect: Effect) -> Floats:
        """The rates with the effect in place."""

    def gain(self, rate: Floats, moved: Floats, rows: NDArray[np.intp] | slice) -> Floats:
        """Weighted log-likelihood of `moved` less that of `rate`, in nats."""


def _effects(form: str, sizes: tuple[float, ...]) -> tuple[Effect, ...]:
    return tuple(Effect(form, size) for size in sizes)


_ODDS: Final = (0.25, 0.6, 1.1, 1.8, 2.8)
_SHARES: Final = (0.006, 0.02, 0.06, 0.17, 0.42, 0.8)


class BadLikelihood:
    """Binomial, of bad sessions among all.

    Args:
        total: (L,) sessions.
        bad: (L,) of them bad.
        weight: (L,) 0 to 1.
    """

    grid: Forms = (_effects("fail", _SHARES), _effects("odds", _ODDS))
    overall: Forms = (
        _effects("fail", _SHARES),
        _effects("odds", (-2.8, -1.8, -1.1, -0.6, -0.25, -0.1, 0.1, *_ODDS)),
    )

    def __init__(self, total: Floats, bad: Floats, weight: Floats) -> None:
        self._bad = bad * weight
        self._good = (total - bad) * weight

    def move(self, rate: Floats, effect: Effect) -> Floats:
        """As of Likelihood; rates are ratios, 0 to 1."""
        if effect.form == "fail":
            return rate + (1.0 - rate) * effect.size
        factor = np.exp(effect.size)
        moved: Floats = rate * factor / (1.0 + rate * (factor - 1.0))
        return moved

    def gain(self, rate: Floats, moved: Floats, rows: NDArray[np.intp] | slice) -> Floats:
        """As of Likelihood."""
        moved = np.clip(moved, _LEAST, 1.0 - _LEAST)
        gain: Floats = self._bad[rows] * np.log(moved / rate) + self._good[rows] * np.log((1.0 - moved) / (1.0 - rate))
        return gain


class LostLikelihood:
    """Poisson, of the sessions that are there among those that were expected.

    Args:
        total: (L,) sessions.
        weight: (L,) 0 to 1.
    """

    grid: Forms = (_effects("loss", (0.05, 0.15, 0.35, 0.6, 0.85, 0.97)),)
    overall: Forms = (_effects("loss", (-2.0, -1.0, -0.5, -0.25, -0.1, -0.03, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)),)

    def __init__(self, total: Floats, weight: Floats) -> None:
        self._total = total * weight
        self._weight = weight

    def move(self, rate: Floats, effect: Effect) -> Floats:
        """As of Likelihood; rates are expected sessions."""
        return rate * (1.0 - effect.size)

    def gain(self, rate: Floats, moved: Floats, rows: NDArray[np.intp] | slice) -> Floats:
        """As of Likelihood."""
        moved = np.maximum(moved, _LEAST)
        gain: Floats = self._total[rows] * np.log(moved / rate) - self._weight[rows] * (moved - rate)
        return gain


def peak(gains: Floats) -> Floats:
    """Largest gain over evenly spaced effects, between the tried ones too, by the parabola through the best three.

    Args:
        gains: (G, M), G effects of rising size, G at least 3.

    Returns:
        (M,) gains.
    """
    best = gains.argmax(axis=0)
    columns = np.arange(gains.shape[1])
    inner = np.clip(best, 1, len(gains) - 2)
    low, mid, high = gains[inner - 1, columns], gains[inner, columns], gains[inner + 1, columns]
    bend = low - 2.0 * mid + high
    with np.errstate(divide="ignore", invalid="ignore"):
        top = np.where((bend < 0.0) & (best == inner), mid - (low - high) ** 2 / (8.0 * bend), gains[best, columns])
    highest: Floats = np.maximum(top, gains[best, columns])
    return highest


def fit(gain: Callable[[Effect], float], forms: Forms) -> tuple[float, Effect]:
    """The effect with the largest gain: the best of those tried, then a golden search between its neighbours."""
    gains = [[gain(effect) for effect in effects] for effects in forms]
    which = max(range(len(forms)), key=lambda form: max(gains[form]))
    effects = forms[which]
    at = int(np.argmax(gains[which]))
    best, chosen = gains[which][at], effects[at]
    step = abs(effects[1].size - effects[0].size)
    low = effects[at - 1].size if at else min(effects[0].size - step, effects[0].size / 3.0)
    last = effects[-1].size + 2.0 * step if chosen.form == "odds" else 1.0 - 1e-4
    high = effects[at + 1].size if at + 1 < len(effects) else last
    one, two = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_one, at_two = gain(Effect(chosen.form, one)), gain(Effect(chosen.form, two))
    for _ in range(_STEPS):
        for value, size in ((at_one, one), (at_two, two)):
            if value > best:
                best, chosen = value, Effect(chosen.form, size)
        if at_one > at_two:
            high, two, at_two = two, one, at_one
            one = high - _GOLDEN * (high - low)
            at_one = gain(Effect(chosen.form, one))
        else:
            low, one, at_one = one, two, at_two
            two = low + _GOLDEN * (high - low)
            at_two = gain(Effect(chosen.form, two))
    return best, chosen


def relative_noise(count: Floats, mean: Floats, uncertainty: Floats, clumping: float) -> float:
    """Relative variance of counts beyond Poisson's and beyond that of their means, unmoved by a half that are outliers.

    Args:
        count: (N,) counted.
        mean: (N,) expected, positive, right for most up to a common factor.
        uncertainty: (N,) relative variance of `mean`.
        clumping: variance of counts over Poisson's.

    Returns:
        s², 0 to 4: the median of (count - mean)² / (c mean + mean² (uncertainty + s²)) is a standard normal's. 0 below
        ten counts.
    """
    if len(count) < 10:
        return 0.0
    square = (count - mean) ** 2

    def too_wide(noise: float) -> bool:
        return bool(np.median(square / (clumping * mean + mean**2 * (uncertainty + noise))) < _MEDIAN_SQUARE)

    if too_wide(0.0):
        return 0.0
    low, high = 0.0, _NOISIEST
    for _ in range(24):
        middle = (low + high) / 2.0
        low, high = (low, middle) if too_wide(middle) else (middle, high)
    return high
