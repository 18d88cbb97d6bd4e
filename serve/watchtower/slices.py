"""What is watched: every slice that has traffic, by every metric; and the signs of alarms that come of it.

Slices are the whole, each value of each dimension, and pairs of values of dimensions that break together. Finer causes
are found by localisation once an alarm is raised: an alarm need only be near. Shapes: L leaves, M columns of counts.
"""

import base64
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from serve.telemetry.reports import DIMENSIONS
from serve.telemetry.windows import ATTEMPTS, METRICS, REPORTS, WINDOW_MS, Leaf, Window
from serve.watchtower.alarms import GAP, MISSING, Alarm, Slice, slice_of
from serve.watchtower.bank import RatioBank
from serve.watchtower.counts import CountDetector
from serve.watchtower.drifts import DriftWatch
from serve.watchtower.likelihoods import negative_binomial_tail
from serve.watchtower.settings import SENSITIVE
from serve.watchtower.state import checked, stamped

PAIRED: Final = ("cdn", "asn", "region", "device", "app", "protocol")
"""Dimensions whose pairs are watched; a title's pairs would be too many to say anything of."""

MOST_SLICES: Final = 20_000
"""At a time; those least seen make room for others, so that values that somebody invents do not keep new ones out."""
_OFTEN_KEEP: Final = 0.9
"""Of how often a slice was seen, by hour: half is forgotten in seven."""
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
_KEEP_LEAVES: Final = 4
_LEAST_LEAVES: Final = 10_000
"""Leaves are remembered until there are so many more than in a window."""
_KIND: Final = "slices"
_VERSION: Final = 3


class _SliceIndex:
    """Which slices each leaf is in, as numbers that are worked out once for a leaf.

    Number 0 is no slice: it gathers what is unknown or another shard's. Number 1 is the whole.

    Args:
        is_ours: whether a slice is to be counted.

    Attributes:
        slices: by number.
    """

    def __init__(self, is_ours: Callable[[Slice], bool]) -> None:
        self._is_ours = is_ours
        self._clear()

    def _clear(self) -> None:
        self.slices: list[Slice] = [(("", ""),), ()]
        self._leaves: dict[Leaf, int] = {}
        self._ids = np.zeros((1024, len(_GROUPS)), np.int32)  # (leaves, groups)
        self._known: list[dict[Any, int]] = [{} for _ in _GROUPS]  # value, or values -> number

    def sums(self, window: Window) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Counts of every slice (S, WIDTH), and whether the window says anything of it (S,); both by number."""
        if len(self._leaves) > _KEEP_LEAVES * len(window.counts) + _LEAST_LEAVES:
            self._clear()  # of leaves that are no more; those that are take some microseconds each
        places = [self._leaves.get(leaf, -1) for leaf in window.counts]
        if -1 in places:
            places = [
                place if place >= 0 else self._learn(leaf) for place, leaf in zip(places, window.counts, strict=True)
            ]
        leaves, groups = len(places), len(_GROUPS)
        ids = self._ids[places] if places else np.zeros((0, groups), np.int32)  # (L, G)
        counts = window.table()
        ends = np.arange(0, leaves * groups + 1, groups, dtype=np.int32)
        member = csc_array(
            (np.ones(leaves * groups, np.int64), ids.reshape(-1), ends), shape=(len(self.slices), leaves), copy=False
        )
        seen = np.zeros(len(self.slices), np.bool_)
        seen[ids] = True
        seen[0], seen[1] = False, self._is_ours(())
        return np.asarray(member @ counts, np.int64), seen

    def _learn(self, leaf: Leaf) -> int:
        place = self._leaves[leaf] = len(self._leaves)
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
        self._ids[place] = [self._number(group, known, leaf) for group, known in zip(_GROUPS, self._known, strict=True)]
        return place

    def _number(self, group: tuple[int, ...], known: dict[Any, int], leaf: Leaf) -> int:
        if not group:
            return 1
        values = tuple([leaf[place] for place in group])
        number = known.get(values)
        if number is None:
            slice_ = tuple((DIMENSIONS[place], leaf[place]) for place in group)
            number = 0
            if all(values) and self._is_ours(slice_):
                number = len(self.slices)
                self.slices.append(slice_)
            known[values] = number
        return number


class SliceWatch:
    """The detectors of a shard of all slices.

    Args:
        shard: which, 0 to `shards` - 1; slices belong to shards by their names.
        shards: how many there are.
        most: slices at a time; those least seen make room for new ones.
    """

    def __init__(self, shard: int = 0, shards: int = 1, most: int = MOST_SLICES) -> None:
        self._shard = shard
        self._shards = shards
        self._most = most
        self._index = _SliceIndex(self._is_ours)
        self._rows: dict[Slice, int] = {}
        self._seen = np.zeros(64, np.int64)  # by row: the latest window that said anything
        self._often = np.zeros(64)  # by row: how many windows did, older ones for less
        self._free: list[int] = []
        self._bank = RatioBank(half_life=1080, warm_up=45, adopt_after=2160, alarm=5e-3)
        self._drifts = DriftWatch()
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
        """Judge a window, then learn it. Windows come in order, those that nothing was seen in too.

        Returns:
            Signs, most evidence first: what the most sensitive settings would call alarms.
        """
        self._windows += 1
        slices, rows, counts = self._sums_of(window)
        at = window.start_ms
        single = {slice_: row for slice_, row in zip(slices, counts, strict=True) if len(slice_) <= 1}
        alarms = [
            *self._judge_shares(at, slices, rows, counts.astype(np.float64)),
            *self._judge_starts(at, single),
            *self._judge_reports(at, single),
            *self._drifts.see(at, rows, counts, self._rows),
        ]
        if self._windows % 360 == 0:
            self._forget_old()
        return sorted(SENSITIVE.alarms(alarms), key=lambda alarm: -alarm.evidence)

    def _is_ours(self, slice_: Slice) -> bool:
        return self._shards == 1 or zlib.crc32(repr(slice_).encode()) % self._shards == self._shard

    def _sums_of(self, window: Window) -> tuple[list[Slice], NDArray[np.int64], NDArray[np.int64]]:
        """Slices that the window says something of, their rows (S,) and counts (S, WIDTH); in the order of rows.

        That order is the same after a checkpoint, whatever the numbers of slices in the index are.
        """
        sums, seen = self._index.sums(window)
        numbers = np.flatnonzero(seen)
        named = self._index.slices
        slices = [named[number] for number in numbers.tolist()]
        found = [self._rows.get(slice_, -1) for slice_ in slices]
        if -1 in found:
            reports = sums[numbers, REPORTS].tolist()
            new = [(-count, slice_) for count, slice_, row in zip(reports, slices, found, strict=True) if row < 0]
            self._make_room(len(new), [row for row in found if row >= 0])
            for _, slice_ in sorted(new):
                self._meet(slice_)
            found = [self._rows.get(slice_, -1) for slice_ in slices]
        rows = np.array(found, np.int64)
        order = np.argsort(rows)[int((rows < 0).sum()) :]
        rows = rows[order]
        self._seen[rows] = self._windows
        self._often[rows] += 1.0
        return [slices[place] for place in order.tolist()], rows, sums[numbers[order]]

    def _make_room(self, wanted: int, kept: list[int]) -> None:
        """Forget slices that were least seen, if more are wanted than there is room for; not those in kept rows."""
        lacking = len(self._rows) + wanted - self._most
        if lacking <= 0:
            return
        named = {row: slice_ for slice_, row in self._rows.items()}
        rows = np.setdiff1d(np.fromiter(named, np.int64, len(named)), kept)
        least = np.lexsort((rows, self._seen[rows], self._often[rows]))[:lacking]
        self._forget([named[row] for row in rows[least].tolist()])

    def _meet(self, slice_: Slice) -> None:
        """Give a slice a row, if there is one left: those of a window with most reports come first."""
        if len(self._rows) >= self._most:
            return
        row = self._free.pop() if self._free else len(self._rows)
        self._rows[slice_] = row
        self._bank.grow((row + 1) * len(METRICS))
        if row >= len(self._seen):
            self._seen = np.concatenate([self._seen, np.zeros_like(self._seen)])
            self._often = np.concatenate([self._often, np.zeros_like(self._often)])

    def _judge_shares(
        self, window_ms: int, ours: list[Slice], first: NDArray[np.int64], counts: NDArray[np.float64]
    ) -> Iterator[Alarm]:
        if not ours:
            return
        before, self._before = self._before, {}
        rows = (first[:, None] * len(METRICS) + np.arange(len(METRICS))).reshape(-1)
        total, bad = counts[:, 0:ATTEMPTS:2].reshape(-1), counts[:, 1:ATTEMPTS:2].reshape(-1)
        there = np.flatnonzero(total > 0)
        usual = self._bank.shares(rows[there])
        evidence = -np.log10(np.maximum(self._bank.see(rows[there], bad[there], total[there]), 1e-300))
        for place in np.flatnonzero(evidence >= SENSITIVE.lasting_evidence).tolist():
            at = int(there[place])
            slice_, metric = ours[at // len(METRICS)], METRICS[at % len(METRICS)]
            known = self._before[slice_, metric] = float(evidence[place])
            lately = before.get((slice_, metric), 0.0)
            if (known >= SENSITIVE.evidence or lately) and self._bank.goes_on(int(rows[at]), usual[place]):
                yield Alarm(
                    slice=slice_, metric=metric, window_ms=window_ms, evidence=known, expected=float(usual[place]),
                    total=float(total[at]), bad=float(bad[at]), before=lately,
                    excess=float(self._excess(int(rows[at]), bad[at], total[at], usual[place])),
                )  # fmt: skip

    def _excess(self, row: int, bad: float, total: float, usual: float) -> float:
        """Bad ones beyond what is usual, over the span that has most of them."""
        spans = [(bad, total), *(self._bank.recent(row, span) for span in (1, 2, 3))]
        return max(some_bad - usual * some for some_bad, some in spans)

    def _judge_starts(self, window_ms: int, sums: Mapping[Slice, NDArray[np.int64]]) -> Iterator[Alarm]:
        """Sessions that should have begun: by the whole and single values, whose numbers are large enough to miss."""
        for slice_, row in sums.items():
            if not (slice_ and slice_[0][0] == "title"):
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
            if evidence >= SENSITIVE.evidence:
                yield Alarm(
                    slice=slice_, metric=MISSING, window_ms=window_ms, evidence=evidence, expected=expected,
                    total=float(began), bad=expected - began, excess=expected - began,
                )  # fmt: skip

    def _judge_reports(self, window_ms: int, sums: Mapping[Slice, NDArray[np.int64]]) -> Iterator[Alarm]:
        """Reports that do not come although their sessions are there."""
        for slice_, row in sums.items():
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
        self._often *= _OFTEN_KEEP
        self._forget([
            slice_ for slice_, row in self._rows.items() if self._windows - self._seen[row] > _KEEP_WINDOWS
        ])  # fmt: skip

    def _forget(self, slices: list[Slice]) -> None:
        """Let go of slices: their rows are others' from now on."""
        rows = np.array([self._rows.pop(slice_) for slice_ in slices], np.int64)
        self._bank.reset((rows[:, None] * len(METRICS) + np.arange(len(METRICS))).reshape(-1))
        self._drifts.forget(rows)
        self._often[rows] = 0.0
        self._free += rows.tolist()
        for slice_ in slices:
            for known in (self._starts, self._began, self._reports):
                known.pop(slice_, None)

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned."""
        return stamped(_KIND, _VERSION, {
            "shard": self._shard, "shards": self._shards, "most": self._most, "windows": self._windows,
            "slices": [
                [slice_, row, int(self._seen[row]), float(self._often[row])] for slice_, row in self._rows.items()
            ],
            "free": self._free, "bank": base64.b85encode(self._bank.dump()).decode(),
            "drifts": self._drifts.state(),
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
        watch._rows = {slice_of(pairs): row for pairs, row, *_ in state["slices"]}
        watch._seen = np.zeros(1 + max([63, *watch._rows.values()]), np.int64)
        watch._often = np.zeros(len(watch._seen))
        for _, row, seen, often in state["slices"]:
            watch._seen[row], watch._often[row] = seen, often
        watch._bank = RatioBank.load(base64.b85decode(state["bank"]))
        watch._drifts = DriftWatch.from_state(state["drifts"])
        watch._before = {(slice_of(pairs), metric): evidence for pairs, metric, evidence in state["before"]}
        watch._starts = {slice_of(pairs): CountDetector.from_state(one) for pairs, one in state["starts"]}
        watch._began = {slice_of(pairs): count for pairs, count in state["began"]}
        watch._reports = {slice_of(pairs): list(known) for pairs, known in state["reports"]}
        return watch
