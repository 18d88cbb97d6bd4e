"""Published localisers, written from their papers, over the same leaf tables as ours.

Each returns slices, best first, and which of them it names as causes. None of them can say `external`; one that finds
nothing returns nothing. Forecasts are the means of the baseline's windows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.watchtower.localisation import localise
from serve.watchtower.localisation_table import LeafTable, add_up, group

Floats = NDArray[np.float64]
Slice = dict[str, str]

_MOST_EXPLANATORY: Final = 0.67
_LEAST_EXPLANATORY: Final = 0.1
_RISK: Final = 0.5
_PROPORTION: Final = 0.02
_OUTLIERS: Final = 5
_CONFIDENCE: Final = 0.8
_NAMED: Final = 5


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a localiser says.

    Attributes:
        ranked: slices, best first.
        causes: those of them that it names together.
        external: whether it says that everything degraded alike.
    """

    ranked: tuple[Slice, ...] = ()
    causes: tuple[Slice, ...] = ()
    external: bool = False


def playhead(table: LeafTable) -> Verdict:
    """Ours."""
    found = localise(table)
    return Verdict(
        ranked=tuple(cause.slice_ for cause in found.causes),
        causes=tuple(cause.slice_ for cause in found.causes if cause.is_cause), external=found.external,
    )  # fmt: skip


def adtributor(table: LeafTable) -> Verdict:
    """Adtributor for a derived measure (Bhagwan et al., NSDI 2014, sections 3 and 4; T_EP 67 %, T_EEP 10 %).

    One dimension at a time: its values by surprise (Jensen-Shannon divergence of the shares of both measures), taken
    while each explains a tenth of the change of the ratio, until they explain two thirds. Dimensions are ranked by
    surprise.
    """
    scale = 1.0 / table.windows
    candidates: list[tuple[float, list[Slice]]] = []
    for dimension, values in enumerate(table.values):
        codes = table.codes[:, dimension]
        real_bad, real_all, usual_bad, usual_all = (
            add_up(codes, counts, len(values))
            for counts in (table.bad, table.total, table.bad_before * scale, table.total_before * scale)
        )
        bad, everything = usual_bad.sum(), usual_all.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            power = (real_bad - usual_bad) * everything - (real_all - usual_all) * bad
            power = np.nan_to_num(power / (everything * (everything + real_all - usual_all)))
        change = power.sum()
        if change == 0.0:
            continue
        power /= change
        surprise = _surprise(usual_bad, real_bad) + _surprise(usual_all, real_all)
        chosen: list[int] = []
        for value in np.argsort(-surprise):
            if power[value] > _LEAST_EXPLANATORY:
                chosen.append(int(value))
                if power[chosen].sum() > _MOST_EXPLANATORY:
                    slices = [{table.dimensions[dimension]: values[each]} for each in chosen]
                    candidates.append((float(surprise[chosen].sum()), slices))
                    break
    candidates.sort(key=lambda pair: -pair[0])
    ranked = tuple(one for _, slices in candidates[:3] for one in slices)
    return Verdict(ranked=ranked, causes=tuple(candidates[0][1]) if candidates else ())


def _surprise(usual: Floats, real: Floats) -> Floats:
    one, other = usual / max(usual.sum(), 1e-12), real / max(real.sum(), 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = one * np.log(2.0 * one / (one + other)), other * np.log(2.0 * other / (one + other))
    divergence: Floats = 0.5 * (np.nan_to_num(parts[0]) + np.nan_to_num(parts[1]))
    return divergence


def riskloc(table: LeafTable) -> Verdict:
    """RiskLoc (Kalander, arXiv 2205.10004, algorithms 1 to 3; risk threshold 0.5, explanatory power 2 %).

    Leaves are split at a cut of their deviation scores and weighted by the distance from it; layer after layer, the
    slice with the largest explanatory power whose risk is over the threshold is a cause. Its measure is each leaf's bad
    ratio; the explanatory power, which has to add up, is the leaf's excess of bad sessions.
    """
    kept = np.flatnonzero(table.total > 0)
    codes = table.codes[kept]
    overall = table.bad_before.sum() / max(table.total_before.sum(), 1.0)
    before = table.total_before[kept]
    usual = np.where(before > 0, table.bad_before[kept] / np.maximum(before, 1.0), overall)
    real = table.bad[kept] / table.total[kept]
    deviation = np.where(usual + real > 0, 2.0 * (usual - real) / np.maximum(usual + real, 1e-12), 0.0)
    distinct = np.unique(deviation)
    removed = min(_OUTLIERS, len(distinct) - 1)
    cut = -min(distinct[removed], distinct[-1 - removed], key=abs)
    abnormal = deviation > cut if cut >= 0 and not np.signbit(cut) else deviation < cut
    weight = np.minimum(np.where(abnormal, np.abs(deviation), np.abs(cut - deviation)), 1.0)
    weight[(real == 0) & (usual == 0)] = 0.0
    power = table.bad[kept] - table.total[kept] * usual
    sign = -1.0 if power[abnormal].sum() < 0 else 1.0
    power = power * sign
    least = power[abnormal].sum() * _PROPORTION
    causes: list[Slice] = []
    while power[abnormal].sum() >= max(least, 1e-9) and len(causes) < 2 * _NAMED:
        found = _riskiest(codes, usual, real, deviation, abnormal, weight, power, least)
        if found is None:
            break
        dimensions, inside = found
        leaf = codes[np.flatnonzero(inside)[0]]
        causes.append(table.named([(dimension, int(leaf[dimension])) for dimension in dimensions]))
        codes, abnormal = codes[~inside], abnormal[~inside]
        usual, real, deviation, weight, power = (each[~inside] for each in (usual, real, deviation, weight, power))
        if not len(codes):
            break
    return Verdict(ranked=tuple(causes), causes=tuple(causes))


def _riskiest(
    codes: NDArray[np.int64], usual: Floats, real: Floats, deviation: Floats, abnormal: NDArray[np.bool_],
    weight: Floats, power: Floats, least: float,
) -> tuple[tuple[int, ...], NDArray[np.bool_]] | None:  # fmt: skip
    comparable = (real != 0) & (usual != 0)
    for layer in range(1, codes.shape[1] + 1):
        best, found = least, None
        for dimensions in combinations(range(codes.shape[1]), layer):
            ids, first = group(codes, dimensions)
            size = len(first)
            powers = add_up(ids, power, size)
            high = add_up(ids, weight * abnormal, size)
            high = high / (high + add_up(ids, weight * ~abnormal, size) + 1.0)
            sums = [add_up(ids, each * comparable, size) for each in (real, usual)]
            fitted = usual * (sums[0] / np.maximum(sums[1], 1e-12))[ids]
            gap = np.abs(2.0 * (fitted - real) / np.maximum(fitted + real, 1e-12))
            gaps, deviations = (add_up(ids, each * comparable, size) for each in (gap, np.abs(deviation)))
            low = np.where(deviations > 0, gaps / np.maximum(deviations, 1e-12), 0.0)
            good = (high - low >= _RISK) & (powers > best) & (add_up(ids, abnormal.astype(np.float64), size) > 0)
            if good.any():
                at = int(np.argmax(np.where(good, powers, -np.inf)))
                best, found = float(powers[at]), (dimensions, ids == at)
        if found is not None:
            return found
    return None


def robustspot(table: LeafTable) -> Verdict:
    """A ranking like RobustSpot's (Sun et al., IEEE Trans. Services Computing, 2023), without merging iterations.

    Leaves with a high anomaly degree (by the knee of its distribution) and a positive contribution ability are kept,
    each as often as the product of both says. The most frequent value of each dimension, and combinations of up to
    three of them that imply each other with a confidence of 80 %, are ranked by how much more frequent they became.
    """
    kept = np.flatnonzero((table.total > 0) & (table.total_before > 0))
    if len(kept) < 3:
        return Verdict()
    codes, scale = table.codes[kept], 1.0 / table.windows
    bad, total = table.bad[kept], table.total[kept]
    usual_bad, usual_total = table.bad_before[kept] * scale, table.total_before[kept] * scale
    real, usual = bad / total, usual_bad / usual_total
    others = ((real.sum() - real) - (usual.sum() - usual)) / (len(kept) - 1)
    degree = 1.0 - 1.0 / (np.abs((real - usual) / np.where(others == 0, 1e-12, others)) + 1.0)
    base = max(float(usual_bad.sum()), 1e-12) / usual_total.sum()
    ability = (bad + usual_bad.sum() - usual_bad) / (total + usual_total.sum() - usual_total) / base - 1.0
    chosen = (degree > _knee(degree)) & (ability > 0)
    if not chosen.any():
        return Verdict()
    times: Floats = (degree * ability)[chosen]
    after = codes[chosen]
    items = [(at, int(np.bincount(after[:, at], times).argmax())) for at in range(codes.shape[1])]

    def holds(rows: NDArray[np.int64], item: tuple[tuple[int, int], ...]) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = np.logical_and.reduce([rows[:, at] == code for at, code in item])
        return inside

    found: list[tuple[float, tuple[tuple[int, int], ...]]] = []
    for size in (1, 2, 3):
        for item in combinations(items, size):
            whole = times[holds(after, item)].sum()
            parts = [side for length in range(1, size) for side in combinations(item, length)]
            confident = any(whole > _CONFIDENCE * times[holds(after, side)].sum() for side in parts)
            if size == 1 or confident:
                found.append((float(holds(after, item).mean() - holds(codes, item).mean()), item))
    found.sort(key=lambda pair: -pair[0])
    ranked = tuple(table.named(item) for _, item in found[:_NAMED])
    return Verdict(ranked=ranked, causes=ranked[:1])


def _knee(values: Floats) -> float:
    """Where the cumulative distribution of the positive values is farthest above its chord; 0.5 without any."""
    rising = np.sort(values[values > 0])
    if len(rising) < 3 or rising[-1] == rising[0]:
        return 0.5
    share = np.arange(1, len(rising) + 1) / len(rising)
    return float(rising[np.argmax(share - (rising - rising[0]) / (rising[-1] - rising[0]))])


METHODS: Final[dict[str, Callable[[LeafTable], Verdict]]] = {
    "playhead": playhead,
    "riskloc": riskloc,
    "robustspot": robustspot,
    "adtributor": adtributor,
}
