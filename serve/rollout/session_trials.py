"""A rollout of a bitrate policy at one of its stages: sessions that asked and what became of them in, a decision out.

Counted are sessions that asked for a bitrate in the stage, and began in it: those that never asked, or were under way
when the stage began, had another policy for some of their time. Whose arm: what the hash of the session's id says,
whoever answered. A session counts once: of a player that plays on under the same id the first record is taken.

Who asked, and who was counted, is kept in the store as one bit a session of many; two that share a bit count as one,
and one that shares that of another that asked is counted though it didn't: as often in either arm.

playhead:rollout:seen:MODEL:SALT:SHARE:asked|over   bits by session, until the stage ends
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

import redis
from mmh3 import hash as hashed

from serve.histograms import Histogram, dump, load
from serve.rollout.asked import Asked
from serve.rollout.assignment import place
from serve.rollout.decisions import (
    GOOD_QOE,
    REBUFFERED,
    SESSION_METRICS,
    STAGES,
    Decision,
    Judge,
    Limits,
    SessionCounts,
    WindowCounts,
)
from serve.rollout.outcomes import Record, Usual, kinds_of, learn
from serve.rollout.plans import RolloutPlan
from serve.rollout.trials import BITS, SEEN_TTL_S, seen_key
from serve.watchtower.state import checked, stamped

SETTLED_MS: Final = 5_000
"""After a stage begins, until all replicas go by its share."""

SESSION_LIMITS: Final = Limits(metrics=SESSION_METRICS, kept=GOOD_QOE, bounded={REBUFFERED: 1.2})

KIND: Final = "rollout-session-trial"

_ASKED: Final = "asked"
_OVER: Final = "over"
_LEARN_S: Final = 60.0
_LEARN_SESSIONS: Final = 50
_COUNTS: Final = ("requests", "profiles", *(name for name in SESSION_METRICS if name != "assignment"), GOOD_QOE)
_VERSION: Final = 1

Store = redis.Redis


class SessionTrial:
    """One bitrate policy's challenger at one share.

    Args:
        plan: with a challenger.
        limits: what the rollout may cost.
        usual: what the stage before learned of the champion; None: nothing yet.
    """

    def __init__(self, plan: RolloutPlan, limits: Limits | None = None, usual: Usual | None = None) -> None:
        self.model = plan.model
        self.salt = plan.salt
        self.share = plan.share
        self.since_ms = plan.since_ts + SETTLED_MS
        self.judge = Judge(limits=limits or SESSION_LIMITS)
        while self.judge.place + 1 < len(STAGES) and STAGES[self.judge.place + 1].share <= plan.share:
            self.judge.advance()
        self.usual = usual or Usual()
        self._window: dict[str, Histogram] = {}
        self._window_s = 0.0
        self._learned = 0
        self._counts: Counter[tuple[bool, str]] = Counter()
        self.asked = 0
        """Sessions that asked."""
        self.over = 0
        """Of those, how many are over."""

    def is_of(self, plan: RolloutPlan) -> bool:
        """Whether it is what the plan tries now."""
        return (self.salt, self.share) == (plan.salt, plan.share) and plan.challenger is not None

    def ask(self, store: Store, entries: Iterable[Asked]) -> None:
        """Take in sessions that asked; those of other rollouts and stages are left out.

        Raises:
            redis.RedisError: the store does not answer.
        """
        mine = [one for one in entries if one.salt == self.salt and abs(one.share - self.share) < 1e-9]
        names = [name for one in mine for name in one.sessions]
        for name, known in zip(names, self._mark(store, _ASKED, names), strict=True):
            if not known:
                self._counts[self._is_challenged(name), "profiles"] += 1
                self.asked += 1

    def take(self, store: Store, records: Iterable[Record]) -> None:
        """Take in sessions that are over, after those that asked.

        Raises:
            redis.RedisError: the store does not answer.
        """
        begun = [one for one in records if one["session"] and (one["first_ts"] or 0) >= self.since_ms]
        if not begun:
            return
        with store.pipeline(transaction=False) as pipe:
            for one in begun:
                pipe.getbit(self._key(_ASKED), _bit(one["session"]))
            asked = pipe.execute()
        mine = [one for one, has_asked in zip(begun, asked, strict=True) if has_asked]
        before = self._mark(store, _OVER, [one["session"] for one in mine])
        for one, known in zip(mine, before, strict=True):
            if not known:
                self._count(one)

    def _count(self, record: Record) -> None:
        challenged = self._is_challenged(record["session"])
        self.over += 1
        self._counts[challenged, "requests"] += 1
        for kind in kinds_of(record, self.usual):
            self._counts[challenged, kind] += 1
        if not challenged:
            learn(self._window, record)
            self._learned += 1

    def decide(self, seconds: float, *, is_drifting: bool) -> Decision:
        """Decide by what was taken in since the last time.

        Args:
            seconds: since then.
            is_drifting: whether the Watchtower suspects the challenger, and not the champion.
        """
        counts, self._counts = self._counts, Counter()
        self._window_s += seconds
        if self._window_s >= _LEARN_S and self._learned >= _LEARN_SESSIONS:
            self.usual.see(self._window)
            self._window, self._window_s, self._learned = {}, 0.0, 0
        challenger, champion = (
            SessionCounts(**{name: counts[challenged, name] for name in _COUNTS}) for challenged in (True, False)
        )
        seen = WindowCounts(challenger=challenger, champion=champion, seconds=seconds, is_drifting=is_drifting)
        return self.judge.see(seen, self.share)

    def told(self) -> dict[str, Any]:
        """What else there is to tell of it."""
        return {"sessions_asked": self.asked, "sessions_over": self.over}

    def seen_keys(self) -> list[str]:
        """Keys of who was seen, which nobody needs once the trial is over."""
        return [self._key(kind) for kind in (_ASKED, _OVER)]

    def _is_challenged(self, session: str) -> bool:
        return place(self.salt, session) < self.share

    def _mark(self, store: Store, kind: str, sessions: list[str]) -> list[int]:
        """Note sessions; whether each was noted before."""
        if not sessions:
            return []
        with store.pipeline(transaction=False) as pipe:
            for name in sessions:
                pipe.setbit(self._key(kind), _bit(name), 1)
            pipe.expire(self._key(kind), SEEN_TTL_S)
            return [int(known) for known in pipe.execute()[:-1]]

    def _key(self, kind: str) -> str:
        return seen_key(self.model, self.salt, self.share, kind)

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned."""
        return stamped(KIND, _VERSION, {
            "model": self.model, "salt": self.salt, "share": self.share, "since_ms": self.since_ms,
            "judge": self.judge.state(), "usual": self.usual.state(),
            "window": {name: dump(values) for name, values in self._window.items()}, "seconds": self._window_s,
            "learned": self._learned, "asked": self.asked, "over": self.over,
        })  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The reverse of `state`.

        Raises:
            InvalidInput: something else, or another version, wrote it.
        """
        state = checked(state, KIND, _VERSION)
        plan = RolloutPlan(model=state["model"], salt=state["salt"], share=state["share"], challenger="?")
        trial = cls(plan, usual=Usual.from_state(state["usual"]))
        trial.since_ms = state["since_ms"]
        trial.judge = Judge.from_state(state["judge"])
        trial._window = {name: load(values) for name, values in state["window"].items()}
        trial._window_s, trial._learned = state["seconds"], state["learned"]
        trial.asked, trial.over = state["asked"], state["over"]
        return trial


def _bit(session: str) -> int:
    return hashed(session.encode("utf-8", "surrogatepass"), signed=False) % BITS
