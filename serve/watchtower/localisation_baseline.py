"""What each leaf's window should have looked like, from the windows before it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.watchtower.localisation_table import LeafTable, add_up, group

Floats = NDArray[np.float64]

_ROUNDS: Final = 6
_PRIOR: Final = 4.0
"""Bad sessions that a value's factor starts with, at the overall ratio."""
_STRENGTHS: Final = (0.5, 1000.0)
_RATES: Final = (1e-5, 0.95)


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """Per leaf, (L,).

    Attributes:
        rate: expected bad ratio (0 to 1), or expected sessions.
        uncertainty: relative variance of `rate`.
        expected_before: bad sessions (or sessions) in the baseline's windows by `rate`.
        counted_before: those that were there.
    """

    rate: Floats
    uncertainty: Floats
    expected_before: Floats
    counted_before: Floats


def bad_baseline(table: LeafTable) -> Baseline:
    """Expected bad ratio of each leaf: what it was, shrunk to the product of its values' factors.

    The ratio of a leaf is gamma distributed around the product; the strength of that prior is the one whose variance
    the leaves before the incident show (empirical Bayes by moments; Robbins, 1956). Values that were never seen
    have the factor 1, leaves that were never seen the product.
    """
    total, bad = table.total_before, table.bad_before
    overall = (bad.sum() + 0.5) / (total.sum() + 1.0)
    mean = np.full(len(total), overall)
    for _ in range(_ROUNDS):
        for dimension, values in enumerate(table.values):
            codes = table.codes[:, dimension]
            counted = add_up(codes, bad, len(values)) + _PRIOR
            expected = add_up(codes, total * mean, len(values)) + _PRIOR
            mean = np.clip(mean * (counted / expected)[codes], *_RATES)
    expected = total * mean
    spread = ((bad - expected) ** 2 - table.clumping * expected * (1.0 - mean)).sum() / max(
        float((expected**2).sum()), 1e-12
    )
    strength = float(np.clip(table.clumping / max(spread, 1e-12), *_STRENGTHS))
    rate = np.clip((bad + strength) / (total + strength / mean), *_RATES)
    return Baseline(
        rate=rate, uncertainty=table.clumping / (bad + strength), expected_before=total * rate, counted_before=bad
    )


def lost_baseline(table: LeafTable) -> Baseline:
    """Expected sessions of each leaf: its mean per window before."""
    mean = table.total_before / table.windows
    return Baseline(
        rate=np.maximum(mean, _RATES[0]), uncertainty=table.clumping_total / (table.total_before + 0.5),
        expected_before=table.total_before, counted_before=table.total_before,
    )  # fmt: skip


def unit_groups(table: LeafTable, expected: Floats, *, least: float, fewest: int) -> tuple[NDArray[np.intp], int]:
    """The finest level at which enough groups of leaves have a mean that counting noise does not drown.

    Args:
        table: the leaves.
        expected: (L,) mean count of each.
        least: mean of a group that counts.
        fewest: groups that there have to be.

    Returns:
        (L,) each leaf's group and how many groups there are: the leaves themselves, else combinations of the two
        dimensions with the most values, else values of the one.
    """
    cards = np.array([len(values) for values in table.values])
    order = np.argsort(-cards, kind="stable")
    levels = [range(len(cards)), *([order[:count].tolist() for count in (2, 1)] if len(cards) > 1 else [])]
    for level in levels:
        ids, first = group(table.codes, level)
        if np.count_nonzero(add_up(ids, expected, len(first)) >= least) >= fewest:
            break
    return ids, len(first)
