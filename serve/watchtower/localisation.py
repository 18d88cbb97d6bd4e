"""Localisation: the smallest slices that explain why more sessions are bad, or fewer are there, than before.

The counts of every leaf are compared with what its history lets expect; a cause is a slice inside which rates moved by
one effect. Of all slices the one is named whose effect explains the counts best for what its name costs: a slice that
is too wide dilutes its effect, one that is too narrow leaves counts unexplained, and of two that explain alike the
shorter name wins (minimum description length; Rissanen, Automatica 1978). What remains unexplained is searched again.
The whole is a slice like any other: where it wins, the cause is external. docs/localisation.md tells more.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from serve.watchtower.localisation_lattice import Slice
from serve.watchtower.localisation_search import CLEAR, Fitted, Metric, Search
from serve.watchtower.localisation_table import LeafTable

METRICS: Final[tuple[Metric, ...]] = ("bad", "missing")

_LEAST_NATS: Final = 1.0
"""Beyond the cost of its name, of a cause's lift in the spread between slices that nothing happened to."""
_LEAST_NATS_BESIDE: Final = 4.0
"""The same for each cause after the first."""
_LEAST_SHARE: Final = 0.03
"""Of the excess that all causes explain together."""
_LEAST_SHARE_OVERLAPPING: Final = 0.15
"""The same for a slice that holds, or lies in, one with more: an uneven effect is one cause."""
_EXTERNAL_LIFT: Final = 1.3
_EXTERNAL_SHARE: Final = 0.5
_INSIDE_EXTERNAL: Final = 0.35
"""Share of the excess that a slice needs to be named although everything degraded."""
_LEAST_SHARE_BESIDE: Final = 0.1
"""The same where its lift stands out."""
_STANDS_OUT: Final = 3.0
"""Times the whole's lift, as logarithms: a slice with more is the incident, and the whole only drifted."""
_WEAK: Final = 0.49
"""Score of what is not named at most."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Why a slice is named. With metric `missing`, `expected` and `excess` (below 0: lost) are of all sessions.

    Attributes:
        total: sessions in the slice, in the incident's window.
        bad: of them bad.
        expected: bad sessions that history lets expect there, were this cause not.
        excess: `bad - expected` (`total - expected`).
        ratio_before: bad ratio (0 to 1) before; with `missing`, sessions per window.
        ratio_now: the same now.
        share: of the excess that all causes explain, 0 to 1.
        log_likelihood_ratio: nats by which the counts fit worse without this cause.
        p_value: chance of so much in some slice of those searched when nothing happened (Bonferroni).
        effect: `fail`, `odds` or `loss`: which form fits best.
        size: of the effect, as of `Effect`.
    """

    total: float
    bad: float
    expected: float
    excess: float
    ratio_before: float
    ratio_now: float
    share: float
    log_likelihood_ratio: float
    p_value: float
    effect: str
    size: float


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One slice and what speaks for it.

    Attributes:
        slice_: value per dimension.
        score: 0 to 1; 0.5 and more for a cause, below it for a runner-up.
        is_cause: whether it is needed beside the causes above it; a runner-up would explain instead, less well.
        evidence: counts behind it.
    """

    slice_: dict[str, str]
    score: float
    is_cause: bool
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """What an incident comes down to.

    Attributes:
        causes: ranked: those needed together, then runners-up. Where nothing stands out from what is usual, only slices
            whose counts chance alone hardly explains, none of them `is_cause`. Empty where the cause is external.
        external: everything degraded alike: no slice explains it.
        total: sessions in the window.
        bad: of them bad.
        expected: bad sessions (or, with `missing`, sessions) by the baseline.
        overall_lift: factor by which the whole moved apart from the causes.
        noise: relative standard deviation of leaves beyond counting.
        runners_up: the best of all other slices, where no cause is named.
    """

    causes: tuple[Cause, ...]
    external: bool
    total: float
    bad: float
    expected: float
    overall_lift: float
    noise: float
    runners_up: tuple[Cause, ...] = ()


def evidence_of(cause: Cause) -> dict[str, Any]:
    """A cause's evidence by name, for JSON."""
    return asdict(cause.evidence)


def localise(table: LeafTable, *, metric: Metric = "bad", top: int = 5) -> Localisation:
    """Name the slices that explain an incident.

    Args:
        table: counts now and before.
        metric: `bad`, a rise of the bad ratio, or `missing`, a fall of the number of sessions.
        top: how many causes and runners-up to give at most, 1 and more.
    """
    if not (table.total if metric == "bad" else table.total_before).any():
        return Localisation(causes=(), external=False, total=0.0, bad=0.0, expected=0.0, overall_lift=1.0, noise=0.0)
    search = Search(table, metric)
    fitted = search.explain()
    whole = next((one for one in fitted if not one.slice_), None)
    causes = [one for one in fitted if one.slice_]
    excess = {one.slice_: abs(search.excess(one, fitted)) for one in fitted}
    calm = search.rates([whole] if whole else [])
    lift = float((search.exposure * calm).sum() / max(float(search.mean.sum()), 1e-12))
    worse = lift >= _EXTERNAL_LIFT if metric == "bad" else lift <= 1.0 / _EXTERNAL_LIFT
    all_excess = sum(excess[one.slice_] for one in causes) + (excess[()] if worse else 0.0)
    external = bool(worse and excess[()] >= _EXTERNAL_SHARE * all_excess)
    overall = math.log(lift) if external else 0.0
    material = _material(search, causes, excess, all_excess, fitted, overall=overall)
    external = external and not material
    named = [] if external else sorted(material, key=lambda one: -one.gain)
    found = tuple(
        _cause(search, one, fitted, all_excess, score=0.5 + 0.5 * _certainty(search, one, excess, named))
        for one in named[:top]
    )
    runners = _runners_up(search, fitted, named, all_excess, top)
    likely = [one for one in runners if found or one.score > 0.0]
    listed = () if external else (*found, *likely)[:top]
    beside = tuple(one for one in runners if one not in listed)[:top] if not found else ()
    return Localisation(
        causes=listed, external=external, total=float(table.total.sum()),
        bad=float(table.bad.sum()), expected=float(search.mean.sum()), overall_lift=lift,
        noise=math.sqrt(search.noise), runners_up=beside,
    )  # fmt: skip


def _runners_up(
    search: Search, fitted: Sequence[Fitted], named: Sequence[Fitted], all_excess: float, top: int
) -> list[Cause]:
    """Slices that were fitted but are too small to name, then those that would explain instead of a named one."""
    names = {one.slice_ for one in named} | {()}
    small = sorted((one for one in fitted if one.slice_ not in names), key=lambda one: -one.gain)
    names |= {one.slice_ for one in small}
    best = max([search.lattice.net(one.slice_, one.gain) for one in named] + [one.net for one in search.first] + [1.0])
    weak = [_cause(search, one, fitted, all_excess, score=_WEAK) for one in small]
    others = [one for one in search.first if one.slice_ not in names][:top]
    return weak + [
        _cause(
            search, search.fit(one.slice_, search.rate), (), all_excess,
            score=_WEAK * min(max(one.net / best, 0.0), 1.0),
        )
        for one in others
    ]  # fmt: skip


def _certainty(search: Search, one: Fitted, excess: dict[Slice, float], named: Sequence[Fitted]) -> float:
    """0 to 1: how far beyond chance, and how much beside the largest cause."""
    net = search.lattice.net(one.slice_, one.gain)
    largest = max(excess[other.slice_] for other in named)
    return (1.0 - math.exp(-max(net, 0.0) / 10.0)) * math.sqrt(min(excess[one.slice_] / max(largest, 1e-12), 1.0))


def _material(
    search: Search, causes: list[Fitted], excess: dict[Slice, float], all_excess: float, fitted: list[Fitted],
    *, overall: float,
) -> list[Fitted]:  # fmt: skip
    """Causes that are larger than what differs between slices anyway, and than an unevenness of another cause.

    Args:
        search: the leaves.
        causes: to choose from.
        excess: of each.
        all_excess: of all together.
        fitted: the causes, and the whole if it moved.
        overall: log of the whole's factor where that would be the cause, else 0.
    """
    kept: list[Fitted] = []
    strongest = max((one.gain for one in causes), default=0.0)
    clear = [one for one in fitted if not one.slice_ or one.gain >= CLEAR * strongest]
    for one in sorted(causes, key=lambda cause: -excess[cause.slice_]):
        others = search.rates([other for other in fitted if other is not one])[one.rows]
        mean = float((search.exposure[one.rows] * others).sum())
        count = float(search.count[one.rows].sum())
        lift = abs(math.log((count + 0.5) / (mean + 0.5)))
        spread = search.spread(clear if one in clear else [*clear, one]) + search.clumping / (max(count, mean) + 1.0)
        chance = search.lattice.cost(one.slice_) + (_LEAST_NATS_BESIDE if kept else _LEAST_NATS)
        least = _LEAST_SHARE
        if any(_nested(one.slice_, other.slice_) for other in kept):
            least = _LEAST_SHARE_OVERLAPPING
        if overall:
            least = _LEAST_SHARE_BESIDE if lift >= _STANDS_OUT * abs(overall) else _INSIDE_EXTERNAL
        if lift**2 >= 2.0 * spread * chance and excess[one.slice_] >= least * all_excess:
            kept.append(one)
    return kept


def _nested(one: Slice, other: Slice) -> bool:
    return set(one) <= set(other) or set(other) <= set(one)


def _cause(search: Search, one: Fitted, fitted: Sequence[Fitted], all_excess: float, *, score: float) -> Cause:
    others = search.rates([other for other in fitted if other.slice_ != one.slice_])[one.rows]
    table = search.table
    total, bad = float(table.total[one.rows].sum()), float(table.bad[one.rows].sum())
    expected = float((search.exposure[one.rows] * others).sum())
    counted = float(search.count[one.rows].sum())
    before = float(table.total_before[one.rows].sum())
    if search.metric == "bad":
        ratios = (float(table.bad_before[one.rows].sum()) / before if before else 0.0, bad / total if total else 0.0)
    else:
        ratios = (before / table.windows, total)
    tail = math.erfc(math.sqrt(max(one.gain, 0.0)))
    return Cause(
        slice_=table.named(one.slice_), score=round(score, 4), is_cause=score >= 0.5,
        evidence=Evidence(
            total=total, bad=bad, expected=expected, excess=counted - expected, ratio_before=ratios[0],
            ratio_now=ratios[1], share=min(abs(search.excess(one, fitted)) / max(all_excess, 1e-12), 1.0),
            log_likelihood_ratio=one.gain,
            p_value=min(1.0, tail * math.exp(min(search.lattice.cost(one.slice_), 50.0))),
            effect=one.effect.form, size=one.effect.size,
        ),
    )  # fmt: skip
