"""From a score of each frame to figures of a clip."""

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CONFIDENT: float = 1.96
"""Standard errors to either side of a 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """Figures of a clip, all on the scale of the frames' scores.

    Attributes:
        mean: arithmetic.
        harmonic_mean: of scores + 1, less 1, as libvmaf pools; low scores weigh more.
        p1: first percentile.
        p5: fifth percentile.
        worst_second: least mean over one second.
        margin: half the width of the mean's 95 % confidence interval; 0 where every frame was scored, infinite where
            a single one stands for the rest.
    """

    mean: float
    harmonic_mean: float
    p1: float
    p5: float
    worst_second: float
    margin: float

    def as_json(self) -> dict[str, float | None]:
        """The fields, with null for an infinite margin: JSON has no infinity."""
        return asdict(self) | {"margin": self.margin if math.isfinite(self.margin) else None}


def pool(scores: Floats, times_s: Floats, every: int = 1) -> Pooled:
    """Pool the scores of a clip.

    Frames that were left out cost certainty: the mean's variance is estimated from differences of neighbours, which
    suits samples taken at even steps from a series that drifts (Wolter 2007, "Introduction to Variance Estimation",
    estimator v2 of systematic sampling), and shrinks with the share that was scored.

    Args:
        scores: of frames in order, 0 and more (T,), at least one.
        times_s: of the same frames, ascending (T,).
        every: one frame in so many was scored.
    """
    count = len(scores)
    margin = 0.0
    if every > 1:
        steps = np.square(np.diff(scores)).mean() / 2 if count > 1 else math.inf
        margin = float(_CONFIDENT * np.sqrt((1 - 1 / every) * steps / count))
    return Pooled(
        mean=float(scores.mean()), harmonic_mean=float(1 / (1 / (scores + 1)).mean() - 1),
        p1=float(np.percentile(scores, 1)), p5=float(np.percentile(scores, 5)),
        worst_second=_worst_second(scores, times_s), margin=margin,
    )  # fmt: skip


def _worst_second(scores: Floats, times_s: Floats) -> float:
    """Least mean of the frames in [t, t + 1 s), over all t that leave a whole second; of the clip where none does."""
    ends = np.searchsorted(times_s, times_s + 1 - 1e-9)
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    means = (sums[ends] - sums[:-1]) / (ends - np.arange(len(scores)))
    period_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0
    whole = times_s + 1 <= times_s[-1] + period_s + 1e-9
    return float(means[whole].min() if whole.any() else scores.mean())
