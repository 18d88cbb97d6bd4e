"""Whether a head's probabilities can be believed: expected calibration error on held-out starts.

Shapes: I starts, U profiles, K bins, R bootstrap samples.
"""

from typing import Final

import numpy as np

from training.gates.answers import Answers
from training.gates.intervals import Floats, Integers, bootstrap, sums
from training.gates.starts import HeldOut
from training.gates.verdict import Check, Curve

HEADS: Final = ("finish", "thumbs_up")
BINS: Final = 10
MARGIN: Final = 0.05
"""The most that the error may be above the champion's, surely: it is stopped where the lower bound is above."""
LEAST: Final = 200
"""Starts whose outcome is known; with fewer the error is only told."""


def check_calibration(
    head: str, mine: Answers, other: Answers, held: HeldOut, *, seed: int
) -> tuple[Check, list[Curve]]:
    """Compare how far a head's estimates for started titles are from what came of them.

    Args:
        head: one of HEADS.
        mine: the candidate's answers.
        other: the champion's.
        held: the starts.
        seed: of the bootstrap.
    """
    ours, theirs = ((answers.finish if head == "finish" else answers.thumbs_up) for answers in (mine, other))
    happened = held.finished if head == "finish" else held.liked
    used = held.settled & np.isfinite(ours) & np.isfinite(theirs)
    count, name = int(used.sum()), f"calibration: {head}"
    if count == 0:
        return Check(name=name, passed=True, text="no start with a known outcome", decides=False), []
    truth, units = happened[used].astype(np.float64), held.units[used]
    _, units = np.unique(units, return_inverse=True)
    size = int(units.max()) + 1
    tables = [_tables(values[used], truth, units, size) for values in (ours, theirs)]
    found = bootstrap(lambda drawn: _error(tables[0], drawn) - _error(tables[1], drawn), size, count, seed=seed)
    curves = [_curve(head, version, table) for version, table in zip(("candidate", "champion"), tables, strict=True)]
    enough = count >= LEAST
    return (
        Check(
            name=name, passed=found.low <= MARGIN or not enough, measured=found.low, bound=MARGIN, decides=enough,
            text=f"expected calibration error {curves[0].error:.3f} against {curves[1].error:.3f} on {count} starts, "
            f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f}); surely above {MARGIN:+g} stops it",
        ),
        curves,
    )  # fmt: skip


def _tables(predicted: Floats, truth: Floats, units: Integers, size: int) -> tuple[Floats, Floats, Floats]:
    """Starts, sum of predictions and sum of outcomes, by profile and bin; bins hold as many starts each (U, K)."""
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, predicted, side="right")
    cells = units * BINS + bins
    one, two, three = (
        sums(values, cells, size * BINS).reshape(size, BINS) for values in (np.ones(len(truth)), predicted, truth)
    )
    return one, two, three


def _error(tables: tuple[Floats, Floats, Floats], drawn: Floats) -> Floats:
    """Expected calibration error of each sample (R,); `drawn` is how often each profile is in it (R, U)."""
    counts, predicted, happened = (drawn @ table for table in tables)
    error: Floats = np.abs(predicted - happened).sum(axis=1) / counts.sum(axis=1)
    return error


def _curve(head: str, version: str, tables: tuple[Floats, Floats, Floats]) -> Curve:
    counts, predicted, happened = (table.sum(axis=0) for table in tables)
    there = counts > 0
    return Curve(
        head=head, version=version, predicted=tuple((predicted[there] / counts[there]).tolist()),
        happened=tuple((happened[there] / counts[there]).tolist()), count=tuple(counts[there].astype(int).tolist()),
        error=float(_error(tables, np.ones((1, len(tables[0]))))[0]),
    )  # fmt: skip
