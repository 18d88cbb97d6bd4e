"""A rollout at one of its stages, as it is judged: exposures in, counts of profiles by arm, and a decision.

Whose arm: the one that a profile was assigned to, whoever answered. A profile counts once a stage and kind (page,
play, error, ...): whose its second event is, is known from its first (serve.rollout.sequential). Who was seen is kept
in the store, as one bit of many a profile and kind: two profiles that share a bit count as one, whatever their arms.
What a replica that died had read last is left out likewise.

playhead:rollout:seen:MODEL:SALT:SHARE:KIND   bits by profile, until the stage ends
playhead:rollout:page:REQUEST                 the first page of a profile, until its play or for PLAY_WITHIN_S
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

import redis
from mmh3 import hash as hashed

from serve.histograms import Histogram, add, dump, load
from serve.rollout.decisions import STAGES, ArmCounts, Decision, Judge, Limits, WindowCounts
from serve.rollout.exposures import PLAYED, SHOWN
from serve.rollout.latency import SlowThreshold, latency_bounds
from serve.rollout.plans import RolloutPlan
from serve.watchtower.state import checked, stamped

PLAY_WITHIN_S: Final = 1800
BITS: Final = 1 << 25
"""Of 1,000,000 profiles 1.5 % share one's bit."""

SEEN_TTL_S: Final = 14 * 86_400
"""For trials whose end nobody saw; else their keys are deleted then."""

STATUS_TTL_S: Final = 60

ARMS: Final = ("champion", "challenger")

_THRESHOLD_S: Final = 10.0
_KIND: Final = "rollout-trial"
_VERSION: Final = 1

Store = redis.Redis


class Trial:
    """One model's challenger at one share.

    Args:
        plan: with a challenger.
        limits: what the rollout may cost.
    """

    def __init__(self, plan: RolloutPlan, limits: Limits | None = None) -> None:
        self.model = plan.model
        self.salt = plan.salt
        self.share = plan.share
        self.judge = Judge(limits=limits)
        while self.judge.place + 1 < len(STAGES) and STAGES[self.judge.place + 1].share <= plan.share:
            self.judge.advance()
        self._threshold = SlowThreshold()
        self._champion: Histogram = {}
        self._champion_s = 0.0
        self._times: tuple[Histogram, Histogram] = ({}, {})
        self._counts: Counter[tuple[bool, str]] = Counter()

    def is_of(self, plan: RolloutPlan) -> bool:
        """Whether it is what the plan tries now."""
        return (self.salt, self.share) == (plan.salt, plan.share) and plan.challenger is not None

    def see(
        self, store: Store, exposures: Iterable[Mapping[str, Any]], seconds: float, *, is_drifting: bool
    ) -> Decision:
        """Take in what was told since the last time, and decide.

        Args:
            store: remembers who was seen.
            exposures: in their order; those of other models, rollouts and stages are left out.
            seconds: since the last time.
            is_drifting: whether the Watchtower suspects the challenger, and not the champion.
        """
        self.take(store, exposures)
        return self.decide(seconds, is_drifting=is_drifting)

    def take(self, store: Store, exposures: Iterable[Mapping[str, Any]]) -> None:
        """Take in some of what was told since the last decision.

        Args:
            store: remembers who was seen.
            exposures: in their order; those of other models, rollouts and stages are left out.
        """
        shown, plays = [], []
        for one in exposures:
            if one["kind"] == PLAYED:
                plays.append(one["request_id"])
            elif one["kind"] == SHOWN and one.get("model") == self.model and self._is_mine(one):
                shown.append(one)
        firsts = self._firsts(store, shown, self._counts)
        self._await_plays(store, firsts)
        self._count_plays(store, plays, self._counts)
        for one in shown:
            if not one["seconds"]:
                continue
            add(self._times[bool(one["challenged"])], one["seconds"])
            if not one["challenged"]:
                add(self._champion, one["seconds"])

    def decide(self, seconds: float, *, is_drifting: bool) -> Decision:
        """Decide by what was taken in since the last time.

        Args:
            seconds: since then.
            is_drifting: whether the Watchtower suspects the challenger, and not the champion.
        """
        counts, self._counts = self._counts, Counter()
        self._learn(seconds)
        return self.judge.see(
            WindowCounts(
                challenger=_arm(counts, challenged=True), champion=_arm(counts, challenged=False), seconds=seconds,
                is_drifting=is_drifting,
            ),
            self.share,
        )  # fmt: skip

    def _is_mine(self, one: Mapping[str, Any]) -> bool:
        expected = self.share if one["challenged"] else 1 - self.share
        return bool(one.get("salt") == self.salt and abs(one["propensity"] - expected) < 1e-9)

    def _kinds(self, one: Mapping[str, Any], batches: set[tuple[bool, float]]) -> Iterable[str]:
        """What a page counts as.

        Pages that were ranked in one batch have its time to the nanosecond: together they are slow once, since what
        held one of them up held up all, and tests of events are for events that come one by one.
        """
        yield "profiles"
        if one["failed"]:
            yield "errors"
        if one["degraded"]:
            yield "degraded"
        seconds, slow_s, very_slow_s = one["seconds"], self._threshold.slow_s, self._threshold.very_slow_s
        if seconds is None or slow_s is None or seconds <= slow_s or (one["challenged"], seconds) in batches:
            return
        batches.add((one["challenged"], seconds))
        yield "slow"
        if very_slow_s is not None and seconds > very_slow_s:
            yield "very_slow"

    def _firsts(
        self, store: Store, shown: Iterable[Mapping[str, Any]], counts: Counter[tuple[bool, str]]
    ) -> list[Mapping[str, Any]]:
        """Count each profile's first of each kind; gives the first pages."""
        batches: set[tuple[bool, float]] = set()
        asked = [(one, kind) for one in shown for kind in self._kinds(one, batches)]
        if not asked:
            return []
        with store.pipeline(transaction=False) as pipe:
            for one, kind in asked:
                pipe.setbit(self._seen_key(kind), hashed(one["profile_id"], signed=False) % BITS, 1)
            for kind in {kind for _, kind in asked}:
                pipe.expire(self._seen_key(kind), SEEN_TTL_S)
            before = pipe.execute()
        pages = []
        for (one, kind), known in zip(asked, before, strict=False):
            if kind == "profiles":
                counts[one["challenged"], "requests"] += 1
            if not known:
                counts[one["challenged"], kind] += 1
                if kind == "profiles":
                    pages.append(one)
        return pages

    def _await_plays(self, store: Store, pages: Iterable[Mapping[str, Any]]) -> None:
        with store.pipeline(transaction=False) as pipe:
            for one in pages:
                pipe.set(_page_key(one["request_id"]), self._tag(challenged=one["challenged"]), ex=PLAY_WITHIN_S)
            pipe.execute()

    def _count_plays(self, store: Store, requests: list[str], counts: Counter[tuple[bool, str]]) -> None:
        with store.pipeline(transaction=False) as pipe:
            for request_id in requests:
                pipe.getdel(_page_key(request_id))
            found = pipe.execute()
        for tag in found:
            for challenged in (True, False):
                if tag == self._tag(challenged=challenged).encode():
                    counts[challenged, "plays"] += 1

    def seen_keys(self) -> list[str]:
        """Keys of who was seen, which nobody needs once the trial is over."""
        return [self._seen_key(kind) for kind in ("profiles", "errors", "degraded", "slow", "very_slow")]

    def _learn(self, seconds: float) -> None:
        """What the champion's answers take, for the windows to come."""
        self._champion_s += seconds
        if self._champion_s >= _THRESHOLD_S:
            self._threshold.see(self._champion)
            self._champion, self._champion_s = {}, 0.0

    def told(self) -> dict[str, Any]:
        """What else there is to tell of it: bounds of each arm's times, which decide nothing."""
        return {"latency_s": {arm: latency_bounds(times) for arm, times in zip(ARMS, self._times, strict=True)}}

    def _seen_key(self, kind: str) -> str:
        return seen_key(self.model, self.salt, self.share, kind)

    def _tag(self, *, challenged: bool) -> str:
        return f"{self.model}:{self.salt}:{self.share:g}:{int(challenged)}"

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned."""
        return stamped(_KIND, _VERSION, {
            "model": self.model, "salt": self.salt, "share": self.share, "judge": self.judge.state(),
            "threshold": self._threshold.state(), "champion": list(self._champion.items()), "seconds": self._champion_s,
            "times": [dump(times) for times in self._times],
        })  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The reverse of `state`.

        Raises:
            InvalidInput: something else, or another version, wrote it.
        """
        state = checked(state, _KIND, _VERSION)
        trial = cls(RolloutPlan(model=state["model"], salt=state["salt"], share=state["share"], challenger="?"))
        trial.judge = Judge.from_state(state["judge"])
        trial._threshold = SlowThreshold.from_state(state["threshold"])
        trial._champion = {int(place): int(count) for place, count in state["champion"]}
        trial._champion_s = state["seconds"]
        champion, challenger = state.get("times", ((), ()))
        trial._times = load(champion), load(challenger)
        return trial


def seen_key(model: str, salt: str, share: float, kind: str) -> str:
    """Key of the bits of who was seen at a stage."""
    return f"playhead:rollout:seen:{model}:{salt}:{share:g}:{kind}"


def _page_key(request_id: str) -> str:
    return f"playhead:rollout:page:{request_id}"


def _arm(counts: Counter[tuple[bool, str]], *, challenged: bool) -> ArmCounts:
    names = ("requests", "profiles", "plays", "errors", "degraded", "slow", "very_slow")
    return ArmCounts(**{name: counts[challenged, name] for name in names})
