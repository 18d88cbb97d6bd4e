"""Wait, advance or roll back: what windows of counts say of a challenger, looked at as often as one likes.

Each metric has a test at each stage (serve.rollout.sequential), which begins anew with the stage: the same profiles
come again, so what they did at one stage is no new evidence at the next. The tests' alphas add up to
`Limits.false_rollbacks`, so a challenger that is like the champion is rolled back with no more than that probability in
a whole rollout, by whatever metric (the union bound asks for no independence). Score drift is the Watchtower's word and
comes on top.

A stage is passed when what is to be kept (plays; of bitrate policies, sessions of good QoE) is shown to be no worse
than its margin: a test of its own, whose null is a challenger exactly that much worse. Such a challenger passes with
probability `Limits.risk` at most. Before the last stage is passed, a ratio of some metrics' rates may have to be ruled
out likewise.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, Self

from serve.errors import InvalidInput
from serve.rollout.plans import STAGES as SHARES
from serve.rollout.sequential import CountTest, Direction, evidence_text
from serve.watchtower.state import checked, stamped

Action = Literal["wait", "advance", "roll_back"]

ASSIGNMENT: Final = "assignment"
ERRORS: Final = "errors"
DEGRADED: Final = "degraded"
SLOW: Final = "slow"
VERY_SLOW: Final = "very_slow"
PLAYS: Final = "plays"
FAILURES: Final = "failures"
REBUFFERED: Final = "rebuffered"
LOW_QUALITY: Final = "low_quality"
SLOW_STARTS: Final = "slow_starts"
BAD_QOE: Final = "bad_qoe"
GOOD_QOE: Final = "good_qoe"
DRIFT: Final = "score_drift"

LEAST_VARIABLE: Final = "PLAYHEAD_ROLLOUT_LEAST_S"

_LONGEST_STAGE_S: Final = 30 * 86_400.0
_KIND: Final = "rollout-judge"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What is tested.

    Attributes:
        direction: what harms.
        spent: of all false roll-backs that are allowed, the share that this metric may cause.
        tolerated: ratio of the challenger's rate to the champion's that is no reason to roll back.
    """

    direction: Direction
    spent: float
    tolerated: float = 1.0


METRICS: Final[Mapping[str, Metric]] = {
    ASSIGNMENT: Metric(direction="either", spent=0.05),
    ERRORS: Metric(direction="more", spent=0.2),
    DEGRADED: Metric(direction="more", spent=0.15),
    VERY_SLOW: Metric(direction="more", spent=0.1, tolerated=1.1),
    SLOW: Metric(direction="more", spent=0.1, tolerated=1.1),
    PLAYS: Metric(direction="fewer", spent=0.4),
}
"""In order of precedence: the first whose evidence suffices is named. If profiles aren't split as they should be,
nothing else can be believed."""

SESSION_METRICS: Final[Mapping[str, Metric]] = {
    ASSIGNMENT: Metric(direction="either", spent=0.05),
    FAILURES: Metric(direction="more", spent=0.2),
    REBUFFERED: Metric(direction="more", spent=0.25),
    LOW_QUALITY: Metric(direction="more", spent=0.2),
    SLOW_STARTS: Metric(direction="more", spent=0.1, tolerated=1.1),
    BAD_QOE: Metric(direction="more", spent=0.2),
}
"""Of sessions, for bitrate policies; likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A step of a rollout.

    Attributes:
        share: probability with which a profile is the challenger's, above 0 and below 1.
        margin: relative loss of plays that has to be ruled out before the next stage, above 0 and below 0.95.
    """

    share: float
    margin: float


STAGES: Final = tuple(
    Stage(share=share, margin=margin) for share, margin in zip(SHARES, (0.3, 0.15, 0.05), strict=True)
)
"""The first stage exposes few and can tell little; before everybody gets the challenger, 5 % are ruled out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a rollout may cost.

    Attributes:
        false_rollbacks: probability that a challenger like the champion is ever rolled back, score drift apart.
        risk: probability that a challenger whose plays are worse by a stage's margin passes that stage.
        suspicion: e-value of any harm from which on a stage isn't passed, though it is too little to roll back.
        least_s: seconds that a stage lasts at least, for faults that need time.
        metrics: by name, in order of precedence; their `spent` add up to 1 at most.
        kept: what must not become fewer for a stage to be passed, as the arms' counts call it.
        bounded: metric -> ratio of its rates, above 1, that has to be ruled out before the last stage is passed.

    Raises:
        InvalidInput: the metrics spend more than all.
    """

    false_rollbacks: float = 0.01
    risk: float = 0.05
    suspicion: float = 10.0
    least_s: float = 300.0
    metrics: Mapping[str, Metric] = field(default_factory=lambda: METRICS)
    kept: str = PLAYS
    bounded: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Self:
        """The limits, with the least duration of a stage from PLAYHEAD_ROLLOUT_LEAST_S where it is set.

        Raises:
            InvalidInput: it is no number of seconds.
        """
        text = env.get(LEAST_VARIABLE)
        if text is None:
            return cls()
        try:
            least_s = float(text)
        except ValueError:
            least_s = -1.0
        if not 0 <= least_s <= _LONGEST_STAGE_S:
            raise InvalidInput(
                field=LEAST_VARIABLE, got=text, expected=f"seconds, 0 to {_LONGEST_STAGE_S:g}", next_step="Correct it."
            )
        return cls(least_s=least_s)

    def __post_init__(self) -> None:
        spent = sum(metric.spent for metric in self.metrics.values())
        if spent > 1.0 + 1e-9:
            raise InvalidInput(
                field="metrics", got=f"shares that add up to {spent:g}", expected="1 at most",
                next_step="Give some of the metrics less.",
            )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmCounts:
    """What one arm did in a window.

    Whose arm: the one that the profile was assigned to with the stage's own propensity, whoever answered in the end.
    What follows counts a profile once a stage and kind; later ones of the same profile are left out. (One event a
    replica and second, instead, would cap the larger arm's more than the smaller one's.)

    Attributes:
        requests: all; told with the evidence, not tested.
        profiles: seen for the first time in the stage.
        plays: profiles whose first request of the stage led to a play; counted once that is settled.
        errors: profiles with their first error of the stage.
        degraded: profiles with their first answer that is less than it could be.
        slow: profiles with their first answer above SlowThreshold.slow_s.
        very_slow: the same, above SlowThreshold.very_slow_s.
    """

    requests: int = 0
    profiles: int = 0
    plays: int = 0
    errors: int = 0
    degraded: int = 0
    slow: int = 0
    very_slow: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCounts:
    """What became of one arm's sessions in a window.

    Whose arm: the one that the session id was assigned to with the stage's own propensity, whoever answered in the end.
    A session counts once a stage; see serve.rollout.outcomes for what is what.

    Attributes:
        requests: sessions that are over; told with the evidence, not tested.
        profiles: sessions that asked for a bitrate for the first time in the stage.
        failures: of those that are over, without a picture, or ended by an error.
        rebuffered: that stalled for too large a share.
        low_quality: whose mean quality is below the champion's usual.
        slow_starts: that waited longer for their first picture than the champion's usually do.
        bad_qoe: that were bad in all.
        good_qoe: that were not, as far as that is known.
    """

    requests: int = 0
    profiles: int = 0
    failures: int = 0
    rebuffered: int = 0
    low_quality: int = 0
    slow_starts: int = 0
    bad_qoe: int = 0
    good_qoe: int = 0


_COUNTED: Final = {ASSIGNMENT: "profiles"}
"""Metrics that the arms' counts call otherwise."""

Arm = ArmCounts | SessionCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowCounts:
    """What happened in a window.

    Attributes:
        challenger: its arm.
        champion: its arm.
        seconds: how long the window was.
        is_drifting: the Watchtower suspects the challenger's scores, and not the champion's.
    """

    challenger: Arm
    champion: Arm
    seconds: float = 1.0
    is_drifting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one test knows.

    Attributes:
        metric: its name.
        challenger: events of the challenger's arm.
        champion: events of the champion's.
        ratio: the challenger's rate over the champion's, the likeliest; None before the first event.
        low: lower end of the ratio's 95 % confidence sequence.
        high: upper end; None if unbounded.
        e_value: evidence of harm: 1 is none.
        needed: e-value that rolls back.
    """

    metric: str
    challenger: int
    champion: int
    ratio: float | None
    low: float
    high: float | None
    e_value: float
    needed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now, and why.

    Attributes:
        action: wait, advance or roll_back.
        reason: in words.
        metric: what is to blame for a roll-back; None else.
        share: the stage's.
        seconds: that the stage has lasted.
        challenger_requests: of the stage.
        champion_requests: of the stage.
        evidence: of all metrics, for a step; empty while waiting (ask `Judge.evidence`).
    """

    action: Action
    reason: str
    metric: str | None
    share: float
    seconds: float
    challenger_requests: int
    champion_requests: int
    evidence: tuple[Evidence, ...] = ()

    def fields(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


class Judge:
    """Judges one rollout, window after window. A new rollout needs a new judge, and a new salt.

    Args:
        stages: in order.
        limits: what the rollout may cost.

    Raises:
        InvalidInput: no stage, or shares or margins beyond their ranges.
    """

    def __init__(self, stages: tuple[Stage, ...] = STAGES, limits: Limits | None = None) -> None:
        self.stages = stages
        self.limits = limits or Limits()
        if not stages or not all(0.0 < one.share < 1.0 and 0.0 < one.margin < 0.95 for one in stages):
            raise InvalidInput(
                field="stages", got=str(stages), expected="shares above 0 and below 1, margins above 0 and below 0.95",
                next_step="Leave out the stage at which everybody has the challenger: it has nothing to compare with.",
            )  # fmt: skip
        self.place = 0
        self._blamed: tuple[str, str] | None = None
        self._begin()

    @property
    def stage(self) -> Stage:
        """The one that is judged now."""
        return self.stages[self.place]

    def _begin(self) -> None:
        limits = self.limits
        self._tests = {
            name: CountTest(
                one.direction, limits.false_rollbacks * one.spent / len(self.stages), tolerated=one.tolerated
            )
            for name, one in limits.metrics.items()
        }
        self._harmless = CountTest("more", limits.risk, tolerated=1.0 - self.stage.margin)
        is_last = self.place + 1 == len(self.stages)
        bounded = limits.bounded.items() if is_last else ()
        self._bounded = {name: CountTest("fewer", limits.risk, tolerated=ratio) for name, ratio in bounded}
        self._seconds = 0.0
        self._requests = (0, 0)

    def see(self, counts: WindowCounts, share: float | None = None) -> Decision:
        """Take a window in. A roll-back stays one whatever comes after it.

        Args:
            counts: what happened in it.
            share: probability with which its profiles were the challenger's, where that isn't the stage's.

        Raises:
            InvalidInput: a count below 0, or a share beyond 0 to 1.
        """
        share = self.stage.share if share is None else share
        for name, test in (*self._tests.items(), *self._bounded.items()):
            counted = _COUNTED.get(name, name)
            test.see(getattr(counts.challenger, counted), getattr(counts.champion, counted), share)
        kept = self.limits.kept
        self._harmless.see(getattr(counts.challenger, kept), getattr(counts.champion, kept), share)
        self._seconds += counts.seconds
        challenger, champion = self._requests
        self._requests = (challenger + counts.challenger.requests, champion + counts.champion.requests)
        self._blamed = self._blamed or self._blame(counts)
        if self._blamed is not None:
            metric, reason = self._blamed
            return self._decision("roll_back", reason, metric)
        lacks = self._lacks()
        return self._decision("wait", lacks) if lacks else self._decision("advance", self._passed())

    def advance(self) -> bool:
        """Begin the next stage: call it once its share is in force. False if this was the last."""
        if self.place + 1 == len(self.stages):
            return False
        self.place += 1
        self._begin()
        return True

    def evidence(self) -> tuple[Evidence, ...]:
        """What is known at this stage, of all metrics."""
        return tuple(self._evidence(name) for name in self._tests)

    def _blame(self, counts: WindowCounts) -> tuple[str, str] | None:
        for name, test in self._tests.items():
            if test.rejected:
                found = self._evidence(name)
                high = "" if found.high is None else f" to {found.high:.3g}"
                return name, (
                    f"{name}: {found.ratio:.3g} times the champion's rate (95 %: {found.low:.3g}{high}), "
                    f"{found.challenger} events against {found.champion}, e-value {evidence_text(found.e_value)}, "
                    f"{evidence_text(found.needed)} is enough"
                )
        return (DRIFT, "score_drift: the Watchtower suspects the challenger's scores") if counts.is_drifting else None

    def _lacks(self) -> str:
        """Why the stage is not passed yet; empty if it is."""
        if self._seconds < self.limits.least_s:
            return f"{self._seconds:.0f} of {self.limits.least_s:.0f} s"
        if not self._harmless.rejected:
            told, needed = evidence_text(self._harmless.e_value), evidence_text(1.0 / self.limits.risk)
            return f"{self._loss(self.stage.margin)} isn't ruled out: {told} of {needed}"
        for name, bound in self._bounded.items():
            if not bound.rejected:
                told, needed = evidence_text(bound.e_value), evidence_text(1.0 / self.limits.risk)
                return f"{name} at {bound.tolerated:g} times the champion's rate isn't ruled out: {told} of {needed}"
        name, test = max(self._tests.items(), key=lambda one: one[1].log_e)
        if test.e_value >= self.limits.suspicion:
            return f"{name} is suspect: e-value {evidence_text(test.e_value)}"
        return ""

    def _passed(self) -> str:
        told = evidence_text(self._harmless.e_value)
        return f"{self._loss(self.stage.margin)} is ruled out (e-value {told}), no metric is suspect"

    def _loss(self, margin: float) -> str:
        what = {PLAYS: "plays", GOOD_QOE: "sessions of good QoE"}.get(self.limits.kept, self.limits.kept)
        return f"a loss of {margin:.0%} of {what}"

    def _evidence(self, name: str) -> Evidence:
        test = self._tests[name]
        ratio = test.ratio(0.05)
        return Evidence(
            metric=name, challenger=test.challenger, champion=test.champion, ratio=ratio.estimate, low=ratio.low,
            high=ratio.high, e_value=test.e_value, needed=1.0 / test.alpha,
        )  # fmt: skip

    def _decision(self, action: Action, reason: str, metric: str | None = None) -> Decision:
        return Decision(
            action=action, reason=reason, metric=metric, share=self.stage.share, seconds=self._seconds,
            challenger_requests=self._requests[0], champion_requests=self._requests[1],
            evidence=() if action == "wait" else self.evidence(),
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned. A judge restored from it decides the same."""
        return stamped(_KIND, _VERSION, {
            "stages": [asdict(stage) for stage in self.stages], "limits": asdict(self.limits), "place": self.place,
            "blamed": None if self._blamed is None else list(self._blamed), "seconds": self._seconds,
            "requests": list(self._requests), "tests": {name: test.state() for name, test in self._tests.items()},
            "harmless": self._harmless.state(), "bounded": {name: test.state() for name, test in self._bounded.items()},
        })  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Judge":
        """The judge that wrote this checkpoint.

        Raises:
            InvalidInput: something else, or another version, wrote it.
        """
        state = checked(state, _KIND, _VERSION)
        metrics = {name: Metric(**one) for name, one in state["limits"]["metrics"].items()}
        limits = Limits(**{**state["limits"], "metrics": metrics})
        judge = cls(tuple(Stage(**stage) for stage in state["stages"]), limits)
        judge.place = state["place"]
        judge._blamed = None if state["blamed"] is None else (state["blamed"][0], state["blamed"][1])
        judge._seconds = state["seconds"]
        judge._requests = (state["requests"][0], state["requests"][1])
        judge._tests = {name: CountTest.from_state(state["tests"][name]) for name in metrics}
        judge._harmless = CountTest.from_state(state["harmless"])
        judge._bounded = {name: CountTest.from_state(test) for name, test in state.get("bounded", {}).items()}
        return judge
