"""How much later one clip starts than the other, from small pictures of their beginnings.

Pictures are compared through their inner products alone (Gram matrices), so that every offset costs little. Two things
count: how well what moves in both goes together once what stands still is taken off, and the squared difference of
pictures that an offset pairs. An offset is only believed where it beats none clearly.
Shapes: R reference pictures, D distorted pictures, N pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

MOST_OFFSET: Final = 30
"""Reference frames, either way."""

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_LEAST_PAIRS: Final = 3
_STILL: Final = 0.5
"""Luma steps of movement that count for nothing."""
_CLEAR: Final = 0.7
"""Share of the squared difference at no offset below which another offset is better whatever the scatter."""
_BETTER: Final = 0.97
"""The same where it is better in nearly all pairs."""
_STEP_SHARE: Final = 0.3
"""Of what being a frame off costs, that an offset must gain over none (repeated frames differ by compression alone)."""
_ALIKE: Final = 1.02
"""Times the least squared difference up to which an offset fits as well."""


@dataclass(frozen=True, kw_only=True)
class Offset:
    """What was found.

    Attributes:
        steps: that the distorted clip starts late, in frames of the faster clip.
        agreement: correlation of what moves in both at that offset; 1 is best, 0 where nothing moves.
        reference_motion: root mean square of what moves in the reference, luma steps.
        distorted_motion: of what moves in the distorted clip.
        rivals: other offsets that fit as well, steps.
        pairs: N that it rests on.
    """

    steps: int
    agreement: float
    reference_motion: float
    distorted_motion: float
    rivals: tuple[int, ...]
    pairs: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Grams:
    """Inner products of pictures, a pixel's share.

    Attributes:
        reference: (R, R).
        distorted: (D, D).
        across: (R, D).
    """

    reference: Floats
    distorted: Floats
    across: Floats

    @classmethod
    def of(cls, reference: NDArray[np.float32], distorted: NDArray[np.float32]) -> "Grams":
        """Of pictures of the same size (R, h, w) and (D, h, w), luma steps; their common mean is taken off."""
        left = reference.reshape(len(reference), -1)
        right = distorted.reshape(len(distorted), -1)
        middle = left.mean(axis=0)
        left = left - middle
        right = right - middle
        pixels = left.shape[1]
        return cls(
            reference=(left @ left.T).astype(np.float64) / pixels,
            distorted=(right @ right.T).astype(np.float64) / pixels,
            across=(left @ right.T).astype(np.float64) / pixels,
        )


def slower_is_reference(reference_rate: Fraction, distorted_rate: Fraction) -> bool:
    """Whether pairs are made at the reference's frames: where it has clearly fewer of them a second."""
    return reference_rate < distorted_rate


def pair_up(
    reference_s: Floats, distorted_s: Floats, late_s: float, *, by_reference: bool, period_s: float
) -> tuple[Indices, Indices]:
    """Pairs of frames nearest in time, at the frames of one clip; the earlier one of two that are as near.

    Args:
        reference_s: rising times of the reference's frames (R,).
        distorted_s: rising times of the distorted clip's frames (D,).
        late_s: how much later the distorted clip starts than the reference.
        by_reference: whether pairs are made at the reference's frames.
        period_s: of the other clip's frames; a frame with none within 0.6 of it has no partner.

    Returns:
        Indices into the reference and into the distorted clip (N,), (N,).
    """
    driver = reference_s - late_s if by_reference else distorted_s
    other = distorted_s if by_reference else reference_s - late_s
    after = np.clip(np.searchsorted(other, driver), 0, len(other) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(other[after] - driver) < np.abs(driver - other[before]) - 1e-6, after, before)
    near = np.abs(other[nearest] - driver) <= 0.6 * period_s
    at = np.flatnonzero(near)
    return (at, nearest[near]) if by_reference else (nearest[near], at)


class OffsetSearch:
    """Offsets between two beginnings.

    Args:
        grams: of their pictures.
        reference_s: times of the reference's pictures (R,).
        distorted_s: times of the distorted clip's (D,).
        reference_rate: frames/s.
        distorted_rate: frames/s.
    """

    def __init__(
        self, grams: Grams, reference_s: Floats, distorted_s: Floats, reference_rate: Fraction, distorted_rate: Fraction
    ) -> None:
        self._grams = grams
        self._times = (reference_s, distorted_s)
        self._by_reference = slower_is_reference(reference_rate, distorted_rate)
        self.driver = 0 if self._by_reference else 1
        self._period_s = float(1 / max(reference_rate, distorted_rate))
        self.most_steps = round(MOST_OFFSET * max(reference_rate, distorted_rate) / reference_rate)
        self._frame_steps = max(1, round(max(reference_rate, distorted_rate) / min(reference_rate, distorted_rate)))

    def pairs(self, steps: int) -> tuple[Indices, Indices]:
        """Indices of the pairs of an offset, reference and distorted (N,), (N,)."""
        return pair_up(
            *self._times, steps * self._period_s, by_reference=self._by_reference, period_s=self._period_s
        )  # fmt: skip

    def search(self, most_steps: int | None = None) -> Offset:
        """The offset that fits; 0 where the evidence does not tell.

        Args:
            most_steps: either way; MOST_OFFSET reference frames where not given.
        """
        most = self.most_steps if most_steps is None else most_steps
        paired = {steps: self.pairs(steps) for steps in range(-most, most + 1)}
        longest = max(len(pairs[0]) for pairs in paired.values())
        least = max(_LEAST_PAIRS, min(longest // 2, 40))
        paired = {steps: pairs for steps, pairs in paired.items() if len(pairs[0]) >= least or steps == 0}
        agreements = {steps: self._agreement(*pairs)[0] for steps, pairs in paired.items() if len(pairs[0]) >= least}
        best = max(agreements, key=lambda steps: (round(agreements[steps], 6), -abs(steps)), default=0)
        if best and len(paired[0][0]) >= least and not self._beats(paired, best, 0):
            best = 0
        rivals = tuple(
            steps
            for steps in agreements
            if abs(steps - best) >= self._frame_steps and self._rivals(paired, best, steps)
        )
        agreement, reference, distorted = self._agreement(*paired[best])
        return Offset(
            steps=best, agreement=agreement, reference_motion=reference, distorted_motion=distorted, rivals=rivals,
            pairs=len(paired[best][0]),
        )  # fmt: skip

    def agreement(self, steps: int) -> tuple[float, float, float]:
        """Of an offset: correlation of what moves, and how much that is in the reference and the distorted clip."""
        return self._agreement(*self.pairs(steps))

    def _agreement(self, left: Indices, right: Indices) -> tuple[float, float, float]:
        """Correlation of what moves, and the movement of both."""
        count = len(left)
        if not count:
            return 0.0, 0.0, 0.0

        def moving(gram: Floats, rows: Indices, columns: Indices) -> float:
            return float(gram[rows, columns].mean() - gram[np.ix_(rows, columns)].mean())

        both = moving(self._grams.across, left, right)
        reference = max(moving(self._grams.reference, left, left), 0.0)
        distorted = max(moving(self._grams.distorted, right, right), 0.0)
        size = (reference * distorted) ** 0.5
        return both / (size + _STILL**2), reference**0.5, distorted**0.5

    def differences(self, left: Indices, right: Indices) -> Floats:
        """Mean squared difference of each pair, luma steps squared (N,)."""
        grams = self._grams
        return np.maximum(
            grams.reference[left, left] + grams.distorted[right, right] - 2 * grams.across[left, right], 0.0
        )  # fmt: skip

    def _common(
        self, paired: dict[int, tuple[Indices, Indices]], first: int, second: int
    ) -> tuple[Floats, Floats] | None:
        """Differences of two offsets at the frames that both pair."""
        _, one, other = np.intersect1d(paired[first][self.driver], paired[second][self.driver], return_indices=True)
        if len(one) < _LEAST_PAIRS:
            return None
        return self.differences(*paired[first])[one], self.differences(*paired[second])[other]

    def _beats(self, paired: dict[int, tuple[Indices, Indices]], best: int, other: int) -> bool:
        common = self._common(paired, best, other)
        if common is None:
            return True
        mine, theirs = common
        ratio = (mine.mean() + 0.01) / (theirs.mean() + 0.01)
        gain = theirs - mine
        scatter = float(gain.std()) / (len(gain) / 3) ** 0.5
        clear = ratio <= _CLEAR or (ratio <= _BETTER and gain.mean() > 3 * scatter and len(gain) >= 12)
        return bool(clear and gain.mean() > _STEP_SHARE * self._step_cost(paired, best))

    def _step_cost(self, paired: dict[int, tuple[Indices, Indices]], best: int) -> float:
        """How much worse a whole frame off the best offset is, on the better side."""
        costs = []
        for near in (best - self._frame_steps, best + self._frame_steps):
            common = self._common(paired, best, near) if near in paired else None
            if common is not None:
                costs.append(float(common[1].mean() - common[0].mean()))
        return min(costs, default=0.0)

    def _rivals(self, paired: dict[int, tuple[Indices, Indices]], best: int, other: int) -> bool:
        common = self._common(paired, best, other)
        if common is None:
            return False
        mine, theirs = common
        return bool(theirs.mean() <= _ALIKE * mine.mean() + 0.02)


def drift(search: OffsetSearch, steps: int, span: int = 8) -> tuple[int, int] | None:
    """Offsets of the first and the last third of the pairs where both are clear and differ by 2 or more; else None.

    Args:
        search: of the two beginnings.
        steps: offset of all.
        span: how far around it is looked, steps.
    """
    found: list[int] = []
    base = search.pairs(steps)
    count = len(base[0])
    if count < 36:
        return None
    side = search.driver
    for part in (base[side][: count // 3], base[side][-(count // 3) :]):
        means = {}
        for near in range(steps - span, steps + span + 1):
            pairs = search.pairs(near)
            inside = np.isin(pairs[side], part)
            if inside.sum() >= len(part) // 2:
                means[near] = float(search.differences(pairs[0][inside], pairs[1][inside]).mean())
        best = min(means, key=lambda near: means[near])
        beside = [means[near] for near in (best - 2, best + 2) if near in means]
        if min(beside, default=0.0) < 1.2 * means[best] + 0.1:
            return None
        found.append(best)
    return (found[0], found[1]) if abs(found[0] - found[1]) >= 2 else None


def in_words(steps: Sequence[int]) -> str:
    """A few offsets for a note: `-2, -1, 1 and 9 others`."""
    shown = ", ".join(map(str, sorted(steps, key=abs)[:3]))
    return shown if len(steps) <= 3 else f"{shown} and {len(steps) - 3} others"
