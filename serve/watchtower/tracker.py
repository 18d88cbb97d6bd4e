"""From alarms to outages: which slice is broken, since when, for how many, and whether it is over.

Each window's alarms are localised, metric by metric, over the leaves since the outage began. Slices that explain the
same sessions are one outage; its slice is the one that most evidence speaks for, window after window, so that a name
does not change with the noise. Alarms of many windows (serve.watchtower.drifts) are not localised, since the recent
leaves do not show what is slow: the slice with most evidence is named.

An outage is suspected at its first alarm, confirmed by a second (an alarm of many windows needs none), recovering once
its metrics are as usual again, and closed when they stay so; what was usual is what was so before it began.

Times UTC ms, by the log's clock.
"""

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from serve.telemetry.reports import DIMENSIONS
from serve.telemetry.windows import ATTEMPTS, METRICS, WIDTH, WINDOW_MS, Leaf, Window
from serve.watchtower.alarms import GAP, MISSING, Alarm, Slice, slice_of
from serve.watchtower.drifts import LONGEST, STEP
from serve.watchtower.localisation import Cause, evidence_of, localise
from serve.watchtower.localisation_table import LeafTable
from serve.watchtower.outages import Effect, Outage, State, as_json, from_json
from serve.watchtower.state import checked, stamped

FINE: Final = 36
"""Latest windows that are kept one by one; older ones are kept in blocks."""
BLOCK: Final = 30
BLOCKS: Final = 6
SPANS: Final = (2, 6, 18, 36)
"""Windows that a new outage's beginning is looked for in, shortest first."""

CONFIRMED_AFTER: Final = 2
"""Alarmed windows among the latest CONFIRMED_WITHIN: where few watch, trouble does not show in each window."""
CONFIRMED_WITHIN: Final = 12
RECOVERING_AFTER: Final = 6
CLOSED_AFTER: Final = 30
"""Windows as usual in a row."""
SUSPICION_ENDS: Final = 18
"""Windows as usual after which an outage that was never confirmed is dropped."""

LEAST_LIFT: Final = 1.5
"""Times the usual share, of a slice that is named."""
LEAST_EXCESS: Final = 4.0
"""Bad ones beyond what is usual, of a slice that is named."""
LEAST_HURT: Final = 5.0
"""Sessions that are hurt before an outage is confirmed."""
SAME: Final = 0.6
"""Share of a slice's trouble that lies in an outage's slice for it to be part of that outage."""
_MOST_LOCALISED: Final = 4
"""Metrics that are localised in one window."""
_EFFECT_WINDOWS: Final = 6
_CALM_WINDOWS: Final = 3
_CALM_WINDOWS_OF_FEW: Final = 12
_FEW: Final = 2.0
"""Bad ones a window at an outage's worst, below which more windows are looked at before all is well."""
_SURE_AFTER: Final = 4
_AGAIN_EVERY: Final = 12
"""An outage of so many windows is searched again only so often."""
_VOTE_KEEP: Final = 0.9
_GAP_WINDOWS: Final = 12
"""After a gap of telemetry, so many windows still hold what it left behind."""
_UNSURE_IN_GAPS: Final = frozenset({"start_timeouts", "stalls", "low_bitrate", "silence", MISSING})
"""Metrics that missing reports look like."""
_NEVER_ALONE: Final = frozenset({"silence"})
"""Metrics that add to an outage and never make one: players that cannot be heard may be well."""
_ONCE: Final = ("start_failures", "start_timeouts", "failures")
"""Metrics that a session is bad in once for all, by one of them."""
_KIND: Final = "tracker"
_VERSION: Final = 2

Ints = NDArray[np.int64]


@dataclass(slots=True)
class _Block:
    """Counts of one or more windows: leaves' numbers (L,) and counts (L, WIDTH)."""

    start_ms: int
    windows: int
    leaves: Ints
    counts: Ints


@dataclass(slots=True)
class _Case:
    """An outage and what is kept beside it."""

    outage: Outage
    votes: dict[Slice, float] = field(default_factory=dict)
    usual: dict[str, float] = field(default_factory=dict)  # metric -> share before it began
    alarmed: list[int] = field(default_factory=list)  # windows, latest last
    calm: int = 0
    hurt: float = 0.0
    pace: float = 0.0  # bad ones a window, at the worst
    slow: bool = False  # found by an alarm of many windows


class OutageTracker:
    """All outages that are open, and the recent windows that they are judged by."""

    def __init__(self) -> None:
        self._leaves: dict[Leaf, int] = {}
        self._names: list[Leaf] = []
        self._values: list[dict[str, int]] = [{} for _ in DIMENSIONS]
        self._codes = np.zeros((1024, len(DIMENSIONS)), np.int64)  # of names, by the values' places in _values
        self._fine: deque[_Block] = deque()
        self._coarse: deque[_Block] = deque()
        self._filling: list[_Block] = []
        self._cases: list[_Case] = []
        self._gaps: dict[Slice, int] = {}
        self._over: list[tuple[Slice, tuple[str, ...], int]] = []  # slice, metrics and end of what has closed lately

    @property
    def outages(self) -> list[Outage]:
        """Those that are open, oldest first."""
        return [case.outage for case in self._cases]

    @property
    def gaps(self) -> list[Slice]:
        """Slices whose telemetry is incomplete now."""
        return list(self._gaps)

    def see(self, window: Window, alarms: Sequence[Alarm]) -> list[Outage]:
        """Take a window in with its alarms; gives the outages that changed. Windows come in order, each once."""
        now = window.start_ms + WINDOW_MS
        self._keep(window)
        self._hear_gaps(window.start_ms, alarms)
        before = {case.outage.outage_id: case.outage for case in self._cases}
        usable = [alarm for alarm in alarms if alarm.metric != GAP and not self._is_unsure(alarm)]
        slow = [alarm for alarm in usable if alarm.windows > 1]
        for metric, of_metric in _by_metric(alarm for alarm in usable if alarm.windows == 1)[:_MOST_LOCALISED]:
            if not self._is_explained(metric, of_metric, window.start_ms):
                self._localise(metric, of_metric[0], window.start_ms, now)
        heard: set[str] = set()
        for alarm in sorted(slow, key=lambda one: -one.evidence):
            self._hear_slow(alarm, now, heard)
        changed = []
        for case in list(self._cases):
            self._live(case, window.start_ms, now)
            if case.outage != before.get(case.outage.outage_id) and self._is_told(case, before):
                changed.append(case.outage)
        self._over += [
            (slice_of(case.outage.slice.items()), tuple(case.usual), now)
            for case in self._cases
            if not case.outage.is_open and before[case.outage.outage_id].state != "suspected"
        ]
        self._over = [one for one in self._over if now - one[2] < LONGEST * WINDOW_MS]
        self._cases = [case for case in self._cases if case.outage.is_open]
        return changed

    @staticmethod
    def _is_told(case: _Case, before: Mapping[str, Outage]) -> bool:
        return case.outage.is_open or case.outage.outage_id in before

    def _keep(self, window: Window) -> None:
        """Keep a window's leaves; what leaves the fine ones goes into blocks."""
        numbers = [self._leaves.get(leaf, -1) for leaf in window.counts]
        if -1 in numbers:
            self._learn(leaf for leaf, number in zip(window.counts, numbers, strict=True) if number < 0)
            numbers = [self._leaves[leaf] for leaf in window.counts]
        self._fine.append(_Block(window.start_ms, 1, np.array(numbers, np.int64), window.table()))
        if len(self._fine) > FINE:
            self._filling.append(self._fine.popleft())
            if len(self._filling) == BLOCK:
                self._coarse.append(_added(self._filling))
                self._filling = []
                if len(self._coarse) > BLOCKS:
                    self._coarse.popleft()
                    self._forget_leaves()

    def _learn(self, leaves: Iterable[Leaf]) -> None:
        """Number leaves that are new."""
        for leaf in leaves:
            number = self._leaves[leaf] = len(self._names)
            self._names.append(leaf)
            if number == len(self._codes):
                self._codes = np.concatenate([self._codes, np.zeros_like(self._codes)])
            self._codes[number] = [
                known.setdefault(value, len(known)) for known, value in zip(self._values, leaf, strict=True)
            ]

    def _members(self, slice_: Slice) -> NDArray[np.bool_]:
        """Which leaves are in a slice, by number."""
        inside = np.ones(len(self._names), np.bool_)
        for dimension, value in slice_:
            place = _PLACE[dimension]
            inside &= self._codes[: len(inside), place] == self._values[place].get(value, -1)
        return inside

    def _forget_leaves(self) -> None:
        """Renumber the leaves that are still in use."""
        blocks = [*self._coarse, *self._filling, *self._fine]
        used = np.unique(np.concatenate([block.leaves for block in blocks]))
        if len(used) > len(self._names) // 2:
            return
        for block in blocks:
            block.leaves = np.searchsorted(used, block.leaves)
        kept = [self._names[number] for number in used.tolist()]
        self._leaves, self._names, self._values = {}, [], [{} for _ in DIMENSIONS]
        self._learn(kept)

    def _hear_gaps(self, window_ms: int, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            if alarm.metric == GAP:
                self._gaps[alarm.slice] = window_ms
        self._gaps = {
            slice_: seen for slice_, seen in self._gaps.items() if window_ms - seen < _GAP_WINDOWS * WINDOW_MS
        }

    def _is_unsure(self, alarm: Alarm) -> bool:
        """Whether missing reports alone may look like this."""
        if alarm.metric in _NEVER_ALONE:
            return True
        return alarm.metric in _UNSURE_IN_GAPS and any(_may_meet(alarm.slice, gap) for gap in self._gaps)

    def _table(self, metric: str, since_ms: int) -> LeafTable | None:
        """The leaves since a moment, and before it; None where nothing is known of before."""
        column = ATTEMPTS if metric == MISSING else 2 * METRICS.index(metric)
        size = len(self._names)
        sums = np.zeros((4, size))
        windows = 0
        for block in [*self._coarse, *self._filling, *self._fine]:
            place = 0 if block.start_ms >= since_ms else 2
            windows += block.windows if place else 0
            sums[place] += np.bincount(block.leaves, block.counts[:, column], size)
            if metric != MISSING:
                sums[place + 1] += np.bincount(block.leaves, block.counts[:, column + 1], size)
        there = np.flatnonzero(sums[0] + sums[2] > 0)
        if not windows or not len(there):
            return None
        dimensions, values, columns = [], [], []
        for place, dimension in enumerate(DIMENSIONS):
            known, numbers = _renumbered(self._codes[there, place], list(self._values[place]))
            if len(known) > 1:  # else its one value is everyone
                dimensions.append(dimension)
                values.append(known)
                columns.append(numbers)
        if not dimensions:
            return None
        now = sum(block.windows for block in self._fine if block.start_ms >= since_ms) or 1
        total, bad, total_before, bad_before = sums[:, there]
        if metric == MISSING:  # sessions a window, whatever the number of windows now
            total_before, windows = total_before * now / windows, 1
        return LeafTable(
            dimensions=tuple(dimensions), values=tuple(values), codes=np.array(columns, np.int64).T, total=total,
            bad=np.minimum(bad, total), total_before=total_before, bad_before=bad_before, windows=windows,
        )  # fmt: skip

    def _localise(self, metric: str, alarm: Alarm, window_ms: int, now: int) -> None:
        """Find what an alarm's metric comes down to, and lay it to an outage, or make one of it."""
        known = [
            case
            for case in self._cases
            if metric in case.usual and _may_meet(slice_of(case.outage.slice.items()), alarm.slice)
        ]
        if known:
            since = max(min(case.outage.started_ts for case in known), now - FINE * WINDOW_MS)
            spans = [math.ceil((now - since) / WINDOW_MS)]
        else:
            spans = list(SPANS)
        for span in spans:
            since = now - span * WINDOW_MS
            table = self._table(metric, since)
            if table is None:
                continue
            found = localise(table, metric="missing" if metric == MISSING else "bad", top=4)
            causes = [cause for cause in found.causes if cause.is_cause and _is_large(cause, metric)]
            if causes:
                for cause in causes:
                    self._lay(metric, slice_of(cause.slice_.items()), cause, table, since, window_ms, now)
                return
            if found.external:
                self._lay(metric, (), None, table, since, window_ms, now)
                return

    def _lay(
        self, metric: str, slice_: Slice, cause: Cause | None, table: LeafTable, since: int, window_ms: int, now: int
    ) -> None:
        """Lay a cause to the outage that it is part of, or make one."""
        vote = cause.evidence.log_likelihood_ratio if cause is not None else 10.0
        case = self._related(slice_, table)
        if case is None:
            case = self._open(slice_, metric, since, now)
            self._cases.append(case)
        case.votes[slice_] = case.votes.get(slice_, 0.0) + vote
        _note_alarm(case, window_ms)
        best = _best(case)
        case.usual.setdefault(metric, _usual(metric, best, table, windows=(now - since) / WINDOW_MS))
        evidence = case.outage.evidence
        if cause is not None:
            told = {"slice": dict(cause.slice_), "metric": metric, "score": cause.score, **evidence_of(cause)}
            others = [one for one in evidence if (one["slice"], one["metric"]) != (told["slice"], metric)]
            evidence = tuple(sorted([told, *others], key=lambda one: -float(one["log_likelihood_ratio"]))[:6])
        case.outage = replace(case.outage, slice=dict(best), evidence=evidence)

    def _hear_slow(self, alarm: Alarm, now: int, heard: set[str]) -> None:
        """Lay an alarm of many windows to what is open, or make an outage of it where nothing else explains it.

        Args:
            alarm: those of a step come by evidence, the strongest first.
            now: the end of the window.
            heard: ids of outages that an alarm of this step was laid to: one has a vote.
        """
        explained = False
        excess, vote = alarm.bad - alarm.expected * alarm.total, alarm.evidence * math.log(10)
        for case in self._cases:
            if alarm.metric in case.usual and _may_meet(slice_of(case.outage.slice.items()), alarm.slice):
                explained = True
                if case.outage.outage_id not in heard and _is_more(case, alarm):
                    heard.add(case.outage.outage_id)
                    case.slow, case.hurt = True, max(case.hurt, excess)
                    case.votes[alarm.slice] = case.votes.get(alarm.slice, 0.0) + vote
                    case.outage = replace(case.outage, slice=dict(_best(case)))
                    _note_alarm(case, alarm.window_ms)
        for slice_, metrics, _ in self._over:  # sums over an hour remember an outage that is over
            explained = explained or (alarm.metric in metrics and _may_meet(slice_, alarm.slice))
        if explained:
            return
        case = self._open(alarm.slice, alarm.metric, now - alarm.windows * WINDOW_MS, now)
        heard.add(case.outage.outage_id)
        case.slow, case.hurt = True, excess
        case.votes[alarm.slice] = vote
        case.usual[alarm.metric] = alarm.expected
        case.outage = replace(case.outage, evidence=({
            "slice": dict(alarm.slice), "metric": alarm.metric, "score": 1.0, "total": alarm.total, "bad": alarm.bad,
            "expected": alarm.expected * alarm.total, "excess": excess, "ratio_before": alarm.expected,
            "ratio_now": alarm.bad / alarm.total, "log_likelihood_ratio": vote, "p_value": 10**-alarm.evidence,
            "windows": alarm.windows,
        },))  # fmt: skip
        _note_alarm(case, alarm.window_ms)
        self._cases.append(case)

    def _is_explained(self, metric: str, alarms: Sequence[Alarm], window_ms: int) -> bool:
        """Whether a metric's alarms are what open outages make one expect, so that nothing needs to be searched."""
        for case in self._cases:
            slice_ = slice_of(case.outage.slice.items())
            if metric not in case.usual or not any(_may_meet(slice_, alarm.slice) for alarm in alarms):
                continue
            _note_alarm(case, window_ms)
            age = (window_ms - case.outage.detected_ts) // WINDOW_MS
            if age < _SURE_AFTER or age % _AGAIN_EVERY == 0:
                return False
        known = [slice_of(case.outage.slice.items()) for case in self._cases if metric in case.usual]
        return all(any(_may_meet(slice_, alarm.slice) for slice_ in known) for alarm in alarms)

    def _related(self, slice_: Slice, table: LeafTable) -> _Case | None:
        """The outage that a slice's trouble is part of."""
        for case in self._cases:
            other = slice_of(case.outage.slice.items())
            if slice_ == other or slice_ in case.votes:
                return case
        for case in self._cases:
            other = slice_of(case.outage.slice.items())
            if set(other) > set(slice_) or _overlap(slice_, other, table) >= SAME:
                return case
        return None

    def _open(self, slice_: Slice, metric: str, since: int, now: int) -> _Case:
        name = hashlib.sha256(f"{slice_}{metric}{now}".encode()).hexdigest()[:12]
        return _Case(
            Outage(
                outage_id=name, state="suspected", slice=dict(slice_), effects=(), started_ts=since, detected_ts=now,
                updated_ts=now,
            )
        )  # fmt: skip

    def _live(self, case: _Case, window_ms: int, now: int) -> None:
        """Bring an outage's figures and state up to the window."""
        slice_ = slice_of(case.outage.slice.items())
        effects = self._effects(case, slice_, _EFFECT_WINDOWS)
        excess = max((effect.bad - effect.expected * effect.total for effect in effects), default=0.0)
        alarmed = bool(case.alarmed) and case.alarmed[-1] == window_ms
        case.pace = max(case.pace, excess / _EFFECT_WINDOWS)
        calm = self._is_calm(case, slice_)
        case.calm = case.calm + 1 if calm else 0
        latest = self._latest(slice_)
        beyond = {
            metric: max(0.0, float(latest[column + 1]) - usual * float(latest[column]))
            for metric, usual in case.usual.items()
            if metric != MISSING
            for column in (2 * METRICS.index(metric),)
        }
        once = sum(beyond.pop(metric, 0.0) for metric in _ONCE)
        case.hurt = max(case.hurt + max([once, *beyond.values()]), excess)
        everyone = max(float(self._latest(())[2 * METRICS.index("silence")]), 1.0)
        for name in case.votes:
            case.votes[name] *= _VOTE_KEEP
        state = self._next_state(case, window_ms)
        outage = case.outage
        if alarmed or state != outage.state:
            case.outage = replace(
                outage, state=state, effects=tuple(sorted(effects, key=lambda one: one.expected - one.now)),
                updated_ts=now, closed_ts=now if state == "closed" else None, sessions_hurt=round(case.hurt),
                severity=min(max(excess / everyone, 0.0), 1.0) if alarmed else outage.severity,
            )  # fmt: skip

    def _is_calm(self, case: _Case, slice_: Slice) -> bool:
        """Whether an outage's metrics are as usual now."""
        if case.slow and self._fine[-1].start_ms - case.alarmed[-1] < 2 * STEP * WINDOW_MS:
            return False
        windows = FINE if case.slow else _CALM_WINDOWS if case.pace >= _FEW else _CALM_WINDOWS_OF_FEW
        return all(_is_usual(effect) for effect in self._effects(case, slice_, windows))

    def _next_state(self, case: _Case, window_ms: int) -> State:
        state = case.outage.state
        lately = sum(window_ms - window < CONFIRMED_WITHIN * WINDOW_MS for window in case.alarmed)
        if state == "suspected":
            if (lately >= CONFIRMED_AFTER or case.slow) and case.hurt >= LEAST_HURT:
                return "confirmed"
            return "closed" if case.calm >= SUSPICION_ENDS else "suspected"
        if case.calm >= CLOSED_AFTER:
            return "closed"
        return "recovering" if case.calm >= RECOVERING_AFTER else "confirmed"

    def _effects(self, case: _Case, slice_: Slice, most: int) -> list[Effect]:
        """An outage's metrics over some of the latest windows, or since it began."""
        since = max(case.outage.started_ts, self._fine[-1].start_ms - (most - 1) * WINDOW_MS)
        inside = self._members(slice_)
        counts = np.zeros(WIDTH, np.int64)
        for block in self._fine:
            if block.start_ms >= since:
                counts += block.counts[inside[block.leaves]].sum(axis=0)
        windows = sum(block.start_ms >= since for block in self._fine)
        effects = []
        for metric, usual in case.usual.items():
            if metric == MISSING:
                began, wanted = int(counts[ATTEMPTS]), usual * windows
                short = max(0, round(wanted - began))
                effects.append(
                    Effect(metric=metric, expected=0.0, now=short / max(wanted, 1.0), total=round(wanted), bad=short)
                )
                continue
            column = 2 * METRICS.index(metric)
            total, bad = int(counts[column]), int(counts[column + 1])
            effects.append(
                Effect(metric=metric, expected=usual, now=bad / total if total else 0.0, total=total, bad=bad)
            )
        return effects

    def _latest(self, slice_: Slice) -> Ints:
        """Counts of a slice in the latest window (WIDTH,)."""
        block = self._fine[-1]
        counts: Ints = block.counts[self._members(slice_)[block.leaves]].sum(axis=0)
        return counts

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned."""
        return stamped(_KIND, _VERSION, {
            "names": self._names,
            **{name: [_dumped(block) for block in blocks]
               for name, blocks in (("fine", self._fine), ("coarse", self._coarse), ("filling", self._filling))},
            "gaps": list(self._gaps.items()), "over": self._over,
            "cases": [
                {"outage": as_json(case.outage), "votes": list(case.votes.items()), "usual": case.usual,
                 "alarmed": case.alarmed, "calm": case.calm, "hurt": case.hurt,
                 "pace": case.pace, "slow": case.slow}
                for case in self._cases
            ],
        })  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The tracker that wrote this checkpoint.

        Raises:
            InvalidInput: another version wrote it.
        """
        state = checked(state, _KIND, _VERSION)
        tracker = cls()
        tracker._learn(tuple(leaf) for leaf in state["names"])
        tracker._fine = deque(_undumped(block) for block in state["fine"])
        tracker._coarse = deque(_undumped(block) for block in state["coarse"])
        tracker._filling = [_undumped(block) for block in state["filling"]]
        tracker._gaps = {slice_of(pairs): seen for pairs, seen in state["gaps"]}
        tracker._cases = [
            _Case(
                from_json(case["outage"]), {slice_of(pairs): vote for pairs, vote in case["votes"]},
                dict(case["usual"]), list(case["alarmed"]), case["calm"], case["hurt"], case["pace"], case["slow"],
            )
            for case in state["cases"]
        ]  # fmt: skip
        tracker._over = [(slice_of(pairs), tuple(metrics), end) for pairs, metrics, end in state["over"]]
        return tracker


def _is_more(case: _Case, alarm: Alarm) -> bool:
    """Whether an alarm of many windows says more of an outage. Of one that recovers, wider slices' sums hold it yet."""
    state = case.outage.state
    own = slice_of(case.outage.slice.items()) == alarm.slice
    return state == "suspected" or (case.slow and (state == "confirmed" or own))


def _best(case: _Case) -> Slice:
    """The slice that most evidence has spoken for."""
    return max(case.votes, key=lambda one: case.votes[one])


def _note_alarm(case: _Case, window_ms: int) -> None:
    if not case.alarmed or case.alarmed[-1] != window_ms:
        case.alarmed = [*case.alarmed[-5:], window_ms]


def _by_metric(alarms: Iterable[Alarm]) -> list[tuple[str, list[Alarm]]]:
    """The alarms of each metric, worst first."""
    found: dict[str, list[Alarm]] = {}
    for alarm in sorted(alarms, key=lambda one: -one.evidence):
        found.setdefault(alarm.metric, []).append(alarm)
    return list(found.items())


def _is_large(cause: Cause, metric: str) -> bool:
    evidence = cause.evidence
    if metric == MISSING:
        return -evidence.excess >= LEAST_EXCESS and evidence.ratio_now * LEAST_LIFT <= evidence.ratio_before
    return evidence.excess >= LEAST_EXCESS and evidence.ratio_now >= LEAST_LIFT * evidence.ratio_before


def _is_usual(effect: Effect) -> bool:
    """Whether a metric is no worse than chance makes of what was usual."""
    wanted = effect.expected * effect.total
    return effect.bad <= 1.2 * wanted + 2.5 * math.sqrt(wanted + 1.0)


def _may_meet(one: Slice, other: Slice) -> bool:
    """Whether a session can be in both."""
    named = dict(other)
    return all(named.get(dimension, value) == value for dimension, value in one)


_PLACE: Final = {dimension: place for place, dimension in enumerate(DIMENSIONS)}


def _renumbered(codes: Ints, names: Sequence[str]) -> tuple[tuple[str, ...], Ints]:
    """Values in the order in which they first come, and the codes by their places there (L,)."""
    first = np.full(len(names), -1)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    there = np.flatnonzero(first >= 0)
    there = there[np.argsort(first[there])]
    places = np.zeros(len(names), np.int64)
    places[there] = np.arange(len(there))
    return tuple(names[code] for code in there.tolist()), places[codes]


def _members(slice_: Slice, table: LeafTable) -> NDArray[np.bool_]:
    inside = np.ones(len(table.codes), bool)
    for dimension, value in slice_:
        if dimension not in table.dimensions:  # all have the same
            continue
        place = table.dimensions.index(dimension)
        values = table.values[place]
        inside &= table.codes[:, place] == (values.index(value) if value in values else -1)
    return inside


def _overlap(one: Slice, other: Slice, table: LeafTable) -> float:
    """Share of one slice's trouble that lies in another."""
    if not _may_meet(one, other):
        return 0.0
    trouble = table.bad if table.bad.any() else np.maximum(table.total_before - table.total, 0.0)
    first, second = _members(one, table), _members(other, table)
    return float(trouble[first & second].sum()) / max(float(trouble[first].sum()), 1.0)


def _usual(metric: str, slice_: Slice, table: LeafTable, *, windows: float) -> float:
    """Share of bad ones that was usual in a slice; of MISSING, starts a window."""
    inside = _members(slice_, table)
    before = float(table.total_before[inside].sum())
    if metric == MISSING:
        return before / windows
    whole = (float(table.bad_before.sum()) + 0.5) / (float(table.total_before.sum()) + 1.0)
    return (float(table.bad_before[inside].sum()) + 20.0 * whole) / (before + 20.0)


def _added(blocks: Sequence[_Block]) -> _Block:
    leaves, ids = np.unique(np.concatenate([block.leaves for block in blocks]), return_inverse=True)
    counts = np.zeros((len(leaves), WIDTH), np.int64)
    np.add.at(counts, ids, np.concatenate([block.counts for block in blocks]))
    return _Block(blocks[0].start_ms, sum(block.windows for block in blocks), leaves, counts)


def _dumped(block: _Block) -> list[Any]:
    return [block.start_ms, block.windows, block.leaves.tolist(), block.counts.tolist()]


def _undumped(dumped: Sequence[Any]) -> _Block:
    leaves = np.array(dumped[2], np.int64)
    return _Block(dumped[0], dumped[1], leaves, np.array(dumped[3], np.int64).reshape(len(leaves), WIDTH))
