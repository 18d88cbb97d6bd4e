"""What is watched: every slice that has traffic, by every metric; and the alarms that come of it.

Slices are the whole, each value of each dimension, and pairs of values of dimensions that break together. Finer causes
are found by localisation once an alarm is raised: an alarm need only be near. Shapes: L leaves, M columns of counts.
"""

import base64
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from serve.telemetry.reports import DIMENSIONS
from serve.telemetry.sessions import ATTEMPTS, METRICS, REPORTS, WIDTH, WINDOW_MS, Leaf, Window
from serve.watchtower.bank import RatioBank
from serve.watchtower.counts import CountDetector
from serve.watchtower.likelihoods import negative_binomial_tail
from serve.watchtower.state import checked, stamped

Slice = tuple[tuple[str, str], ...]
"""Pairs of dimension and value, in the order of DIMENSIONS; empty: everyone."""

MISSING: Final = "missing_starts"
"""The metric of sessions that should have begun and did not."""

GAP: Final = "telemetry_gap"
"""The metric of reports that do not come from sessions that are there: trouble of telemetry, not of playback."""

PAIRED: Final = ("cdn", "asn", "region", "device", "app", "protocol")
"""Dimensions whose pairs are watched; a title's pairs would be too many to say anything of."""

ALARM: Final = 8.0
"""Evidence, -log10 of a probability, from which a window alone is an alarm: once in 27 years by 10,000 series, were
tails exact."""

LASTING: Final = 5.0
"""Evidence that is an alarm when the window before had it too."""

LEAST_BAD: Final = 4
"""Bad ones in excess of what is usual, over a minute, below which nothing is an alarm."""

MOST_SLICES: Final = 20_000
_KEEP_WINDOWS: Final = 2 * 86_400_000 // WINDOW_MS
"""A slice with no traffic for so long is forgotten."""

STARTS_EVERY: Final = 3
"""Windows that are added up before the number of sessions that began is judged."""

_GAP_SHARE: Final = 0.7
"""Of the usual reports; fewer are a gap, if that is no chance."""
_GAP_EVIDENCE: Final = 6.0
_GAP_SPREAD: Final = 0.005
"""Squared relative spread of a window's reports beyond chance."""
_GAP_KEEP: Final = 2.0 ** (-1.0 / 360)
_GAP_ADOPTED: Final = 360
"""Windows of a gap after which it is how things are."""

_GROUPS: Final[tuple[tuple[int, ...], ...]] = (
    (),
    *((place,) for place in range(len(DIMENSIONS))),
    *combinations([DIMENSIONS.index(name) for name in PAIRED], 2),
)
_SESSIONS: Final = 2 * METRICS.index("silence")
"""Column of the sessions that are there."""
_KIND: Final = "slices"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A metric of a slice that is not as usual.

    Attributes:
        slice: which.
        metric: one of METRICS, MISSING or GAP.
        window_ms: when its window began.
        evidence: -log10 of the probability of so much by chance.
        expected: share of bad ones that is usual; of MISSING and GAP, the usual number of starts and of reports.
        total: in the window.
        bad: of them; of MISSING and GAP, how many fewer than usual.
    """

    slice: Slice
    metric: str
    window_ms: int
    evidence: float
    expected: float
    total: float
    bad: float


def slice_of(pairs: Iterable[Sequence[str]]) -> Slice:
    """A slice from pairs as JSON has them, or from the items of a mapping; in the order of DIMENSIONS."""
    named: dict[str, str] = {dimension: value for dimension, value in pairs}  # noqa: C416 - pairs may be lists
    return tuple((dimension, named[dimension]) for dimension in DIMENSIONS if dimension in named)


def sums_of(window: Window) -> Iterator[tuple[Slice, NDArray[np.int64]]]:
    """Counts of every slice that a window says something of, the whole first (M,)."""
    leaves = list(window.counts)
    counts = np.array([window.counts[leaf] for leaf in leaves], np.int64).reshape(len(leaves), WIDTH)
    codes, values = _coded(leaves)
    for group in _GROUPS:
        if not group:
            yield (), counts.sum(axis=0)
            continue
        known = np.ones(len(leaves), bool)
        key = np.zeros(len(leaves), np.int64)
        for place in group:
            known &= codes[:, place] > 0
            key = key * (len(values[place]) + 1) + codes[:, place]
        found, first, ids = np.unique(key[known], return_index=True, return_inverse=True)
        added = np.zeros((len(found), counts.shape[1]), np.int64)
        np.add.at(added, ids, counts[known])
        for row, place_of_leaf in enumerate(np.flatnonzero(known)[first].tolist()):
            leaf = leaves[place_of_leaf]
            yield tuple((DIMENSIONS[place], leaf[place]) for place in group), added[row]


def _coded(leaves: list[Leaf]) -> tuple[NDArray[np.int64], list[dict[str, int]]]:
    """Leaves as numbers (L, D), 0 where a value is unknown, and the values of each dimension."""
    codes = np.zeros((len(leaves), len(DIMENSIONS)), np.int64)
    values: list[dict[str, int]] = []
    for place in range(len(DIMENSIONS)):
        known: dict[str, int] = {"": 0}
        codes[:, place] = [known.setdefault(leaf[place], len(known)) for leaf in leaves]
        values.append(known)
    return codes, values


class SliceWatch:
    """The detectors of a shard of all slices.

    Args:
        shard: which, 0 to `shards` - 1; slices belong to shards by their names.
        shards: how many there are.
        most: slices at a time; further ones are not watched.
    """

    def __init__(self, shard: int = 0, shards: int = 1, most: int = MOST_SLICES) -> None:
        self._shard = shard
        self._shards = shards
        self._most = most
        self._rows: dict[Slice, int] = {}
        self._seen: dict[Slice, int] = {}
        self._free: list[int] = []
        self._bank = RatioBank(half_life=1080, warm_up=60, adopt_after=2160)
        self._before: dict[tuple[Slice, str], float] = {}
        self._starts: dict[Slice, CountDetector] = {}
        self._began: dict[Slice, int] = {}
        self._reports: dict[Slice, list[float]] = {}  # reports, sessions, windows of a gap
        self._windows = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def warm(self) -> bool:
        """Whether enough was seen to judge anything."""
        return self._windows >= self._bank.warm_up

    def see(self, window: Window) -> list[Alarm]:
        """Judge a window, then learn it. Windows come in order, those that nothing was seen in too."""
        self._windows += 1
        sums = {slice_: row for slice_, row in sums_of(window) if self._is_ours(slice_)}
        for slice_ in sums:
            self._meet(slice_)
        at = window.start_ms
        alarms = [*self._judge_shares(at, sums), *self._judge_starts(at, sums), *self._judge_reports(at, sums)]
        if self._windows % 360 == 0:
            self._forget_old()
        return sorted(alarms, key=lambda alarm: -alarm.evidence)

    def _is_ours(self, slice_: Slice) -> bool:
        return self._shards == 1 or zlib.crc32(repr(slice_).encode()) % self._shards == self._shard

    def _meet(self, slice_: Slice) -> None:
        if slice_ not in self._rows:
            if len(self._rows) >= self._most:
                return
            row = self._free.pop() if self._free else len(self._rows)
            self._rows[slice_] = row
            self._bank.grow((row + 1) * len(METRICS))
        self._seen[slice_] = self._windows

    def _judge_shares(self, window_ms: int, sums: Mapping[Slice, NDArray[np.int64]]) -> Iterator[Alarm]:
        ours = [slice_ for slice_ in sums if slice_ in self._rows]
        if not ours:
            return
        counts = np.stack([sums[slice_] for slice_ in ours]).astype(np.float64)
        first = np.array([self._rows[slice_] for slice_ in ours], np.int64) * len(METRICS)
        before, self._before = self._before, {}
        rows = (first[:, None] + np.arange(len(METRICS))).reshape(-1)
        total, bad = counts[:, 0:ATTEMPTS:2].reshape(-1), counts[:, 1:ATTEMPTS:2].reshape(-1)
        there = np.flatnonzero(total > 0)
        usual = self._bank.shares(rows[there])
        evidence = -np.log10(np.maximum(self._bank.see(rows[there], bad[there], total[there]), 1e-300))
        for place in np.flatnonzero(evidence >= LASTING).tolist():
            at = int(there[place])
            slice_, metric = ours[at // len(METRICS)], METRICS[at % len(METRICS)]
            self._before[slice_, metric] = float(evidence[place])
            if evidence[place] < ALARM and (slice_, metric) not in before:
                continue
            if self._goes_on(int(rows[at]), usual[place]) and (
                self._excess(int(rows[at]), bad[at], total[at], usual[place]) >= LEAST_BAD
            ):
                yield Alarm(
                    slice=slice_, metric=metric, window_ms=window_ms, evidence=float(evidence[place]),
                    expected=float(usual[place]), total=float(total[at]), bad=float(bad[at]),
                )  # fmt: skip

    def _goes_on(self, row: int, usual: float) -> bool:
        """Whether the latest two windows are worse than usual: sums over longer spans remember what is over."""
        bad, total = self._bank.recent(row, 1)
        return bad > usual * total + 0.5 * math.sqrt(usual * total) + 0.5

    def _excess(self, row: int, bad: float, total: float, usual: float) -> float:
        """Bad ones beyond what is usual, over the latest minute at most."""
        recent_bad, recent_total = self._bank.recent(row, 2)
        return max(bad - usual * total, recent_bad - usual * recent_total)

    def _judge_starts(self, window_ms: int, sums: Mapping[Slice, NDArray[np.int64]]) -> Iterator[Alarm]:
        """Sessions that should have begun: by the whole and single values, whose numbers are large enough to miss."""
        for slice_, row in sums.items():
            if slice_ in self._rows and len(slice_) <= 1 and not (slice_ and slice_[0][0] == "title"):
                self._began[slice_] = self._began.get(slice_, 0) + int(row[ATTEMPTS])
        if self._windows % STARTS_EVERY:
            return
        for slice_, began in self._began.items():
            detector = self._starts.get(slice_)
            if detector is None:
                detector = self._starts[slice_] = CountDetector(direction="fewer", half_life=120, warm_up=60)
            self._began[slice_] = 0
            count = {"count": began, "timestamp": window_ms / 1000}
            evidence = -float(np.log10(max(detector.p_value(count), 1e-300)))
            expected = detector.expected(count)
            detector.learn_one(count)
            if evidence >= ALARM and expected - began >= LEAST_BAD:
                yield Alarm(
                    slice=slice_, metric=MISSING, window_ms=window_ms, evidence=evidence, expected=expected,
                    total=float(began), bad=expected - began,
                )  # fmt: skip

    def _judge_reports(self, window_ms: int, sums: Mapping[Slice, NDArray[np.int64]]) -> Iterator[Alarm]:
        """Reports that do not come although their sessions are there."""
        for slice_, row in sums.items():
            if len(slice_) > 1 or slice_ not in self._rows:
                continue
            reports, sessions = float(row[REPORTS]), float(row[_SESSIONS])
            known = self._reports.setdefault(slice_, [0.0, 0.0, 0.0])
            expected = sessions * (known[0] / known[1]) if known[1] else 0.0
            if self.warm and expected > 0 and reports < _GAP_SHARE * expected and known[2] < _GAP_ADOPTED:
                tail = negative_binomial_tail(reports, expected, _GAP_SPREAD, upper=False)
                evidence = -float(np.log10(max(tail, 1e-300)))
                if evidence >= _GAP_EVIDENCE:
                    known[2] += 1
                    yield Alarm(
                        slice=slice_, metric=GAP, window_ms=window_ms, evidence=evidence, expected=expected,
                        total=reports, bad=expected - reports,
                    )  # fmt: skip
                    continue
            known[:] = [known[0] * _GAP_KEEP + reports, known[1] * _GAP_KEEP + sessions, 0.0]

    def _forget_old(self) -> None:
        for slice_, seen in list(self._seen.items()):
            if self._windows - seen > _KEEP_WINDOWS:
                row = self._rows.pop(slice_)
                self._bank.reset(np.arange(row * len(METRICS), (row + 1) * len(METRICS)))
                self._free.append(row)
                self._seen.pop(slice_)
                self._starts.pop(slice_, None)
                self._began.pop(slice_, None)
                self._reports.pop(slice_, None)

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned."""
        return stamped(_KIND, _VERSION, {
            "shard": self._shard, "shards": self._shards, "most": self._most, "windows": self._windows,
            "slices": [[slice_, row, self._seen[slice_]] for slice_, row in self._rows.items()],
            "free": self._free, "bank": base64.b85encode(self._bank.dump()).decode(),
            "before": [[*key, evidence] for key, evidence in self._before.items()],
            "starts": [[slice_, detector.state()] for slice_, detector in self._starts.items()],
            "began": list(self._began.items()),
            "reports": [[slice_, known] for slice_, known in self._reports.items()],
        })  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The watch that wrote this checkpoint.

        Raises:
            InvalidInput: another version wrote it, or it is damaged.
        """
        state = checked(state, _KIND, _VERSION)
        watch = cls(state["shard"], state["shards"], state["most"])
        watch._windows, watch._free = state["windows"], list(state["free"])
        for pairs, row, seen in state["slices"]:
            slice_ = slice_of(pairs)
            watch._rows[slice_], watch._seen[slice_] = row, seen
        watch._bank = RatioBank.load(base64.b85decode(state["bank"]))
        watch._before = {(slice_of(pairs), metric): evidence for pairs, metric, evidence in state["before"]}
        watch._starts = {slice_of(pairs): CountDetector.from_state(one) for pairs, one in state["starts"]}
        watch._began = {slice_of(pairs): count for pairs, count in state["began"]}
        watch._reports = {slice_of(pairs): list(known) for pairs, known in state["reports"]}
        return watch
