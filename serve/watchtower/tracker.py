"""From alarms to outages: which slice is broken, since when, for how many, and whether it is over.

Each window's alarms are localised, metric by metric, over the leaves since the outage began. Slices that explain the
same sessions are one outage; its slice is the one that most evidence speaks for, window after window, so that a name
does not change with the noise. Alarms of many windows (serve.watchtower.drifts) are not localised, since the recent
leaves do not show what is slow: the slice with most evidence is named.

Which alarms there are, and what an outage makes of them, is a matter of settings: trackers with other settings may look
at the same scene beside the one that is told of.

An outage is suspected at its first alarm, confirmed by a second (an alarm of many windows needs none), recovering once
its metrics are as usual again, and closed when they stay so; what was usual is what was so before it began.

Times UTC ms, by the log's clock.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Self

from serve.telemetry.windows import METRICS, WINDOW_MS, Window
from serve.watchtower.alarms import GAP, MISSING, Alarm, Slice, may_meet, slice_of
from serve.watchtower.cases import Case, Past
from serve.watchtower.drifts import STEP
from serve.watchtower.history import FINE, Excerpt
from serve.watchtower.localisation import Cause, evidence_of
from serve.watchtower.outages import Effect, Outage, State
from serve.watchtower.scene import Scene
from serve.watchtower.settings import DEFAULTS, DetectorSettings
from serve.watchtower.state import checked, stamped

SPANS: Final = (2, 6, 18, 36)
"""Windows that a new outage's beginning is looked for in, shortest first."""

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
_UNSURE_IN_GAPS: Final = frozenset({"start_timeouts", "stalls", "low_bitrate", "silence", MISSING})
"""Metrics that missing reports look like."""
_NEVER_ALONE: Final = frozenset({"silence"})
"""Metrics that add to an outage and never make one: players that cannot be heard may be well."""
_ONCE: Final = ("start_failures", "start_timeouts", "failures")
"""Metrics that a session is bad in once for all, by one of them."""
_KIND: Final = "tracker"
_VERSION: Final = 3


class OutageTracker:
    """All outages that are open, and the recent windows that they are judged by.

    Args:
        settings: of alarms and outages.
        scene: what is looked at; None: one of its own.

    Attributes:
        settings: may be replaced between two windows.
        left_out: searches for causes that were not made for want of an allowance.
    """

    def __init__(self, settings: DetectorSettings = DEFAULTS, scene: Scene | None = None) -> None:
        self.settings = settings
        self.left_out = 0
        self._scene = scene or Scene()
        self._cases: list[Case] = []
        self._past = Past()
        self._allowance: int | None = None

    @property
    def outages(self) -> list[Outage]:
        """Those that are open, oldest first."""
        return [case.outage for case in self._cases]

    @property
    def gaps(self) -> list[Slice]:
        """Slices whose telemetry is incomplete now."""
        return self._scene.gaps.slices

    def see(self, window: Window, signs: Sequence[Alarm]) -> list[Outage]:
        """Take a window and its signs in; gives the outages that changed. Windows come in order, each once."""
        self._scene.see(window, signs)
        return self.judge(window.start_ms, signs)

    def beside(self, settings: DetectorSettings, known: Mapping[str, Any] | None = None) -> "OutageTracker":
        """Another tracker of the same scene, which is asked by `judge` after this one has seen a window.

        Args:
            settings: of that one.
            known: its own checkpoint (`own_state`); None: it begins with what is open here.

        Raises:
            KeyError: that is no checkpoint of a tracker.
        """
        other = OutageTracker(settings, self._scene)
        other._take(self.own_state() if known is None else known)
        return other

    def judge(self, window_ms: int, signs: Sequence[Alarm], allowance: int | None = None) -> list[Outage]:
        """Judge the window that the scene saw last; gives the outages that changed.

        Args:
            window_ms: when it began.
            signs: of it.
            allowance: searches for causes that this may make, beside those that others made in this window; None: all
                that it takes.
        """
        self._allowance = allowance
        now = window_ms + WINDOW_MS
        alarms = self.settings.alarms(signs)
        before = {case.outage.outage_id: case.outage for case in self._cases}
        usable = [
            alarm
            for alarm in alarms
            if alarm.metric != GAP and not self._is_unsure(alarm) and not self._is_shift(alarm, now)
        ]
        slow = [alarm for alarm in usable if alarm.windows > 1]
        for metric, of_metric in _by_metric(alarm for alarm in usable if alarm.windows == 1)[:_MOST_LOCALISED]:
            if not self._is_explained(metric, of_metric, window_ms):
                self._localise(metric, of_metric[0], window_ms, now)
        heard: set[str] = set()
        for alarm in sorted(slow, key=lambda one: -one.evidence):
            self._hear_slow(alarm, now, heard)
        changed = []
        for case in list(self._cases):
            self._live(case, window_ms, now)
            if case.outage != before.get(case.outage.outage_id) and self._is_told(case, before):
                changed.append(case.outage)
        for case in self._cases:
            if not case.outage.is_open and before[case.outage.outage_id].state != "suspected":
                self._past.add(case, now)
        self._past.forget(now)
        self._cases = [case for case in self._cases if case.outage.is_open]
        return changed

    @staticmethod
    def _is_told(case: Case, before: Mapping[str, Outage]) -> bool:
        return case.outage.is_open or case.outage.outage_id in before

    def _is_unsure(self, alarm: Alarm) -> bool:
        """Whether missing reports alone may look like this."""
        if alarm.metric in _NEVER_ALONE:
            return True
        return alarm.metric in _UNSURE_IN_GAPS and self._scene.gaps.may_hold(alarm.slice)

    def _is_shift(self, alarm: Alarm, now: int) -> bool:
        """Whether starts that an alarm lacks began elsewhere, over any span."""
        if alarm.metric != MISSING:
            return False
        return not any(self._scene.starts.is_absence(alarm.slice, now - span * WINDOW_MS) for span in SPANS)

    def _localise(self, metric: str, alarm: Alarm, window_ms: int, now: int) -> None:
        """Find what an alarm's metric comes down to, and lay it to an outage, or make one of it."""
        known = [case for case in self._cases if metric in case.metrics and may_meet(case.slice, alarm.slice)]
        if known:
            since = max(min(case.outage.started_ts for case in known), now - FINE * WINDOW_MS)
            spans = [math.ceil((now - since) / WINDOW_MS)]
        else:
            spans = self._spans(metric, alarm.slice, now)
        for span in spans:
            since = now - span * WINDOW_MS
            if not self._may_search(metric, since):
                return
            searched = self._scene.search(metric, since)
            if searched is None:
                continue
            excerpt, found = searched
            causes = [
                cause
                for cause in found.causes
                if cause.is_cause and self._is_large(cause, metric)
                and (metric != MISSING or self._scene.starts.is_absence(slice_of(cause.slice_.items()), since))
            ]  # fmt: skip
            if causes:
                for cause in causes:
                    self._lay(metric, slice_of(cause.slice_.items()), cause, excerpt, since, window_ms, now)
                return
            if found.external:
                self._lay(metric, (), None, excerpt, since, window_ms, now)
                return

    def _may_search(self, metric: str, since: int) -> bool:
        """Whether a search costs nothing, or is still allowed."""
        if self._allowance is None or self._scene.is_searched(metric, since):
            return True
        self._allowance -= 1
        self.left_out += self._allowance < 0
        return self._allowance >= 0

    def _spans(self, metric: str, slice_: Slice, now: int) -> list[int]:
        """Windows to look back over, of SPANS; where an outage is over, only those that it left calm.

        A slice that nobody was in, such as viewers who were steered away, has no windows of its own meanwhile: the sums
        that raised the alarm remember the outage.
        """
        calm_ms = self._past.end(metric, slice_) - self.settings.closed_after * WINDOW_MS
        return [span for span in SPANS if now - span * WINDOW_MS >= calm_ms]

    def _lay(
        self, metric: str, slice_: Slice, cause: Cause | None, excerpt: Excerpt, since: int, window_ms: int, now: int
    ) -> None:
        """Lay a cause to the outage that it is part of, or make one."""
        vote = cause.evidence.log_likelihood_ratio if cause is not None else 10.0
        case = self._related(slice_, excerpt)
        if case is None:
            case = self._open(slice_, metric, since, now)
            self._cases.append(case)
        case.vote(slice_, vote)
        case.note_alarm(window_ms)
        if metric != MISSING:
            case.usual.setdefault(metric, self._usual(metric, case.best, since))
        elif case.starts is None:
            case.starts = self._scene.starts.before(case.best, since)
        evidence = case.outage.evidence
        if cause is not None:
            told = {"slice": dict(cause.slice_), "metric": metric, "score": cause.score, **evidence_of(cause)}
            others = [one for one in evidence if (one["slice"], one["metric"]) != (told["slice"], metric)]
            evidence = tuple(sorted([told, *others], key=lambda one: -float(one["log_likelihood_ratio"]))[:6])
        case.outage = replace(case.outage, slice=dict(case.best), evidence=evidence)

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
            if alarm.metric in case.metrics and may_meet(case.slice, alarm.slice):
                explained = True
                if case.outage.outage_id not in heard and _is_more(case, alarm):
                    heard.add(case.outage.outage_id)
                    case.slow, case.hurt = True, max(case.hurt, excess)
                    case.vote(alarm.slice, vote)
                    case.outage = replace(case.outage, slice=dict(case.best))
                    case.note_alarm(alarm.window_ms)
        if explained or self._past.end(alarm.metric, alarm.slice):  # sums over an hour remember an outage
            return
        case = self._open(alarm.slice, alarm.metric, now - alarm.windows * WINDOW_MS, now)
        heard.add(case.outage.outage_id)
        case.slow, case.hurt = True, excess
        case.vote(alarm.slice, vote)
        case.usual[alarm.metric] = alarm.expected
        case.outage = replace(case.outage, evidence=({
            "slice": dict(alarm.slice), "metric": alarm.metric, "score": 1.0, "total": alarm.total, "bad": alarm.bad,
            "expected": alarm.expected * alarm.total, "excess": excess, "ratio_before": alarm.expected,
            "ratio_now": alarm.bad / alarm.total, "log_likelihood_ratio": vote, "p_value": 10**-alarm.evidence,
            "windows": alarm.windows,
        },))  # fmt: skip
        case.note_alarm(alarm.window_ms)
        self._cases.append(case)

    def _is_explained(self, metric: str, alarms: Sequence[Alarm], window_ms: int) -> bool:
        """Whether a metric's alarms are what open outages make one expect, so that nothing needs to be searched."""
        for case in self._cases:
            slice_ = case.slice
            if metric not in case.metrics or not any(may_meet(slice_, alarm.slice) for alarm in alarms):
                continue
            case.note_alarm(window_ms)
            age = (window_ms - case.outage.detected_ts) // WINDOW_MS
            if age < _SURE_AFTER or age % _AGAIN_EVERY == 0:
                return False
        known = [case.slice for case in self._cases if metric in case.metrics]
        return all(any(may_meet(slice_, alarm.slice) for slice_ in known) for alarm in alarms)

    def _related(self, slice_: Slice, excerpt: Excerpt) -> Case | None:
        """The outage that a slice's trouble is part of."""
        for case in self._cases:
            other = case.slice
            if slice_ == other or slice_ in case.votes:
                return case
        for case in self._cases:
            other = case.slice
            if set(other) > set(slice_) or self._scene.history.overlap(slice_, other, excerpt) >= SAME:
                return case
        return None

    def _open(self, slice_: Slice, metric: str, since: int, now: int) -> Case:
        name = hashlib.sha256(f"{slice_}{metric}{now}".encode()).hexdigest()[:12]
        return Case(
            Outage(
                outage_id=name, state="suspected", slice=dict(slice_), effects=(), started_ts=since, detected_ts=now,
                updated_ts=now,
            )
        )  # fmt: skip

    def _live(self, case: Case, window_ms: int, now: int) -> None:
        """Bring an outage's figures and state up to the window."""
        slice_ = case.slice
        if case.starts is not None and case.starts.slice != slice_:
            case.starts = self._scene.starts.before(slice_, case.outage.started_ts)
        effects = self._effects(case, slice_, _EFFECT_WINDOWS)
        excess = max((effect.bad - effect.expected * effect.total for effect in effects), default=0.0)
        alarmed = bool(case.alarmed) and case.alarmed[-1] == window_ms
        case.pace = max(case.pace, excess / _EFFECT_WINDOWS)
        calm = self._is_calm(case, slice_)
        case.calm = case.calm + 1 if calm else 0
        latest, _ = self._scene.history.since(slice_, window_ms)
        beyond = {
            metric: max(0.0, float(latest[column + 1]) - usual * float(latest[column]))
            for metric, usual in case.usual.items()
            for column in (2 * METRICS.index(metric),)
        }
        once = sum(beyond.pop(metric, 0.0) for metric in _ONCE)
        case.hurt = max(case.hurt + max([once, *beyond.values()]), excess)
        everyone = max(float(self._scene.history.since((), window_ms)[0][2 * METRICS.index("silence")]), 1.0)
        case.fade(_VOTE_KEEP)
        state = self._next_state(case, window_ms)
        outage = case.outage
        if alarmed or state != outage.state:
            case.outage = replace(
                outage, state=state, effects=tuple(sorted(effects, key=lambda one: one.expected - one.now)),
                updated_ts=now, closed_ts=now if state == "closed" else None, sessions_hurt=round(case.hurt),
                severity=min(max(excess / everyone, 0.0), 1.0) if alarmed else outage.severity,
            )  # fmt: skip

    def _is_calm(self, case: Case, slice_: Slice) -> bool:
        """Whether an outage's metrics are as usual now."""
        if case.slow and self._scene.history.latest_ms - case.alarmed[-1] < 2 * STEP * WINDOW_MS:
            return False
        windows = FINE if case.slow else _CALM_WINDOWS if case.pace >= _FEW else _CALM_WINDOWS_OF_FEW
        if case.starts is not None:
            since = self._latest_of(case, case.starts.telling(windows, FINE))
            if self._scene.starts.since(case.starts, since).are_missing:
                return False
        return all(_is_usual(effect) for effect in self._shares(case, slice_, windows))

    def _next_state(self, case: Case, window_ms: int) -> State:
        state, settings = case.outage.state, self.settings
        lately = sum(window_ms - window < settings.confirmed_within * WINDOW_MS for window in case.alarmed)
        if state == "suspected":
            if (lately >= settings.confirmed_after or case.slow) and case.hurt >= settings.least_hurt:
                return "confirmed"
            return "closed" if case.calm >= settings.suspicion_ends else "suspected"
        if case.calm >= settings.closed_after:
            return "closed"
        return "recovering" if case.calm >= settings.recovering_after else "confirmed"

    def _is_large(self, cause: Cause, metric: str) -> bool:
        evidence, settings = cause.evidence, self.settings
        if metric == MISSING:
            lifted = evidence.ratio_now * settings.least_lift <= evidence.ratio_before
            return -evidence.excess >= settings.least_excess and lifted
        return evidence.excess >= settings.least_excess and (
            evidence.ratio_now >= settings.least_lift * evidence.ratio_before
        )

    def _effects(self, case: Case, slice_: Slice, most: int) -> list[Effect]:
        """An outage's metrics over some of the latest windows, or since it began."""
        shares = self._shares(case, slice_, most)
        if case.starts is None:
            return shares
        return [*shares, self._scene.starts.since(case.starts, self._latest_of(case, most)).effect()]

    def _shares(self, case: Case, slice_: Slice, most: int) -> list[Effect]:
        """Those of its metrics that are shares of bad ones."""
        counts, _ = self._scene.history.since(slice_, self._latest_of(case, most))
        effects = []
        for metric, usual in case.usual.items():
            column = 2 * METRICS.index(metric)
            total, bad = int(counts[column]), int(counts[column + 1])
            effects.append(
                Effect(metric=metric, expected=usual, now=bad / total if total else 0.0, total=total, bad=bad)
            )
        return effects

    def _latest_of(self, case: Case, most: int) -> int:
        """When some of the latest windows began, or the outage, whichever is later."""
        return max(case.outage.started_ts, self._scene.history.latest_ms - (most - 1) * WINDOW_MS)

    def _usual(self, metric: str, slice_: Slice, since_ms: int) -> float:
        """Share of bad ones that was usual in a slice before a moment."""
        counts, _ = self._scene.history.before(slice_, since_ms)
        everyone, _ = self._scene.history.before((), since_ms)
        column = 2 * METRICS.index(metric)
        whole = (float(everyone[column + 1]) + 0.5) / (float(everyone[column]) + 1.0)
        return (float(counts[column + 1]) + 20.0 * whole) / (float(counts[column]) + 20.0)

    def own_state(self) -> dict[str, Any]:
        """What it keeps beside the scene: JSON-able."""
        return {"over": self._past.state(), "cases": [case.state() for case in self._cases]}

    def state(self) -> dict[str, Any]:
        """A checkpoint with the scene: JSON-able, versioned. Settings are not in it."""
        return stamped(_KIND, _VERSION, {**self._scene.state(), **self.own_state()})

    @classmethod
    def from_state(cls, state: Mapping[str, Any], settings: DetectorSettings = DEFAULTS) -> Self:
        """The tracker that wrote this checkpoint.

        Raises:
            InvalidInput: another version wrote it.
        """
        state = checked(state, _KIND, _VERSION)
        tracker = cls(settings, Scene.from_state(state))
        tracker._take(state)
        return tracker

    def _take(self, state: Mapping[str, Any]) -> None:
        self._cases = [Case.from_state(case) for case in state["cases"]]
        self._past = Past.from_state(state["over"])


def _is_more(case: Case, alarm: Alarm) -> bool:
    """Whether an alarm of many windows says more of an outage. Of one that recovers, wider slices' sums hold it yet."""
    state = case.outage.state
    own = case.slice == alarm.slice
    return state == "suspected" or (case.slow and (state == "confirmed" or own))


def _by_metric(alarms: Iterable[Alarm]) -> list[tuple[str, list[Alarm]]]:
    """The alarms of each metric, worst first."""
    found: dict[str, list[Alarm]] = {}
    for alarm in sorted(alarms, key=lambda one: -one.evidence):
        found.setdefault(alarm.metric, []).append(alarm)
    return list(found.items())


def _is_usual(effect: Effect) -> bool:
    """Whether a metric is no worse than chance makes of what was usual."""
    wanted = effect.expected * effect.total
    return effect.bad <= 1.2 * wanted + 2.5 * math.sqrt(wanted + 1.0)
