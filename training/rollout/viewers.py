"""Simulated viewers of a rollout, second by second: what makes naive statistics of canaries wrong is in them.

- Profiles differ: most come now and then, a few hundreds of times as often; each has its own taste for playing and its
  own speed of answers, and a few, who come often, have broken data and get errors half the time.
- Trouble comes in bursts: a replica pauses, and every answer of it waits; a store is away, and answers are degraded or
  errors, over both arms.
- The day changes: rates of requests, of plays and the speed of answers go up and down with it (a short one, so that a
  rollout sees some of it).

Times in seconds. Arrays of requests are (N,), in order of time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.histograms import Histogram, add
from serve.rollout.decisions import ArmCounts, WindowCounts
from serve.rollout.latency import VERY, SlowThreshold

CHUNK_S: Final = 60
DAY_S: Final = 1800.0
REPLICAS: Final = 4
KINDS: Final = ("requests", "profiles", "plays", "errors", "degraded", "slow", "very_slow")
SAMPLED: Final = 1000
"""Of a minute's champion answers, about how many go into the histogram."""

Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What the challenger does to its arm, as factors.

    Attributes:
        plays: of the probability that a request leads to a play.
        errors: of the probability of an error outside bursts.
        degraded: of that of a degraded answer.
        latency: of every answer's time.
        tail: of the time of those answers that are slow anyway.
    """

    plays: float = 1.0
    errors: float = 1.0
    degraded: float = 1.0
    latency: float = 1.0
    tail: float = 1.0


@dataclass(frozen=True, slots=True)
class Population:
    """Who may come.

    Attributes:
        turns: profiles, each as often as it comes against others, (T,).
        plays: probability that a request leads to a play, by profile, (P,).
        slowness: factor of its answers' times, (P,).
        errors: probability of an error, (P,).
    """

    turns: NDArray[np.int32]
    plays: Numbers
    slowness: Numbers
    errors: Numbers

    @classmethod
    def draw(cls, rng: np.random.Generator, profiles: int) -> "Population":
        """A population.

        Args:
            rng: source of chance.
            profiles: how many, P.
        """
        often = np.minimum(1 + rng.lognormal(0.0, 1.2, profiles), 300).astype(np.int64)
        broken = rng.random(profiles) < 0.0002
        often[broken] *= 20
        return cls(
            turns=np.repeat(np.arange(profiles, dtype=np.int32), often),
            plays=rng.beta(1.5, 3.5, profiles),
            slowness=np.exp(0.2 * rng.standard_normal(profiles)),
            errors=np.where(broken, 0.5, 0.001),
        )


class Traffic:
    """One rollout's requests, and what became of them.

    Args:
        rng: source of chance.
        population: who may come.
        effect: what the challenger does.
        rps: requests a second over a whole day.
        once: count a profile once a stage and kind, as ArmCounts asks; else every event, which is what is wrong.
    """

    def __init__(
        self, rng: np.random.Generator, population: Population, effect: Effect, *, rps: float = 300.0, once: bool = True
    ) -> None:
        self._rng = rng
        self._population = population
        self._effect = effect
        self._rps = rps
        self._once = once
        self._hashed = rng.random(len(population.plays))  # the assignment's hash of a profile: sticky over stages
        self._place = np.zeros(len(population.plays), dtype=np.int64)  # scratch of _counted
        self._threshold = SlowThreshold()
        self._at_s = float(rng.uniform(0.0, DAY_S))
        while self._threshold.slow_s is None:  # the champion alone, before the rollout
            self._chunk(0.0, self._unseen())

    def stage(self, share: float) -> Iterator[tuple[WindowCounts, float]]:
        """Windows of a second at a stage, without end, each with its share of the requests.

        Args:
            share: of the profiles.
        """
        seen = self._unseen()
        while True:
            counts = self._chunk(share, seen)
            for second in range(CHUNK_S):
                arms = [ArmCounts(**dict(zip(KINDS, arm, strict=True))) for arm in counts[:, :, second].tolist()]
                champion, challenger = arms
                window = WindowCounts(challenger=challenger, champion=champion)
                yield window, challenger.requests / max(challenger.requests + champion.requests, 1)

    def _unseen(self) -> dict[str, Flags]:
        return {kind: np.zeros(len(self._population.plays), dtype=np.bool_) for kind in KINDS}

    def _chunk(self, share: float, seen: dict[str, Flags]) -> NDArray[np.int64]:
        """Counts of a minute: (arms, kinds, seconds), the champion's arm first."""
        rng, population, effect = self._rng, self._population, self._effect
        day = np.sin((self._at_s + np.arange(CHUNK_S)) * (2.0 * np.pi / DAY_S))  # (S,)
        self._at_s += CHUNK_S
        seconds = np.repeat(np.arange(CHUNK_S), rng.poisson(self._rps * (1.0 + 0.5 * day)))  # (N,)
        who = population.turns[rng.integers(len(population.turns), size=len(seconds))]
        treated = self._hashed[who] < share
        at_s: Numbers = np.add(seconds, rng.random(len(seconds), dtype=np.float32), dtype=np.float64)
        replica = rng.integers(REPLICAS, size=len(seconds), dtype=np.int8)

        taken_s = np.exp(0.5 * rng.standard_normal(len(seconds), dtype=np.float32)).astype(np.float64)
        taken_s *= 0.02 * population.slowness[who] * (1.0 + 0.2 * day)[seconds]
        taken_s[treated] *= effect.latency
        for place, begin_s, end_s in self._bursts(per_minute=4.0, mean_s=0.4):
            hit = _within(seconds, at_s, replica == place, begin_s, end_s)
            taken_s[hit] += end_s - at_s[hit]
        slow_s = self._threshold.slow_s or np.inf
        taken_s[treated & (taken_s > slow_s)] *= effect.tail
        self._learn(taken_s[~treated])

        away = np.zeros(len(seconds), dtype=np.bool_)
        for place, begin_s, end_s in self._bursts(per_minute=0.5, mean_s=1.0):
            away[_within(seconds, at_s, replica == place, begin_s, end_s)] = True
        chance = rng.random((3, len(seconds)), dtype=np.float32)
        error = chance[0] < population.errors[who] * np.where(treated, effect.errors, 1.0) + 0.1 * away
        degraded = chance[1] < 0.005 * np.where(treated, effect.degraded, 1.0) + 0.5 * away
        first = self._counted(np.ones(len(seconds), dtype=np.bool_), who, seen["profiles"])
        plays = first & (
            chance[2] < population.plays[who] * (1.0 + 0.2 * day)[seconds] * np.where(treated, effect.plays, 1.0)
        )
        flags = {
            "requests": np.ones(len(seconds), dtype=np.bool_), "profiles": first, "plays": plays,
            "errors": self._counted(error, who, seen["errors"]),
            "degraded": self._counted(degraded, who, seen["degraded"]),
            "slow": self._counted(taken_s > slow_s, who, seen["slow"]),
            "very_slow": self._counted(taken_s > VERY * slow_s, who, seen["very_slow"]),
        }  # fmt: skip
        cell = seconds + CHUNK_S * treated
        counted = [np.bincount(cell[flags[kind]], minlength=2 * CHUNK_S).reshape(2, CHUNK_S) for kind in KINDS]
        return np.stack(counted, axis=1)

    def _counted(self, flags: Flags, who: NDArray[np.int32], seen: Flags) -> Flags:
        """Of the events, those that count: (N,)."""
        if not self._once:
            return flags
        places = np.flatnonzero(flags)
        places = places[~seen[who[places]]]
        self._place[who[places[::-1]]] = places[::-1]  # the earliest is written last
        first = np.zeros(len(flags), dtype=np.bool_)
        first[places[self._place[who[places]] == places]] = True
        seen[who[places]] = True
        return first

    def _learn(self, champion_s: Numbers) -> None:
        histogram: Histogram = {}
        for taken_s in champion_s[:: max(len(champion_s) // SAMPLED, 1)].tolist():
            add(histogram, taken_s)
        self._threshold.see(histogram)

    def _bursts(self, per_minute: float, mean_s: float) -> Iterator[tuple[int, float, float]]:
        """Replica, begin and end of each burst of a minute."""
        rng = self._rng
        for _ in range(int(rng.poisson(per_minute))):
            begin_s = float(rng.uniform(0.0, CHUNK_S))
            yield int(rng.integers(REPLICAS)), begin_s, begin_s + float(rng.exponential(mean_s))


def _within(seconds: NDArray[np.int64], at_s: Numbers, there: Flags, begin_s: float, end_s: float) -> NDArray[np.int64]:
    """Places of the requests of a burst; `seconds` are in order."""
    first, last = np.searchsorted(seconds, [int(begin_s), int(end_s) + 1])
    part = slice(int(first), int(last))
    return part.start + np.flatnonzero(there[part] & (at_s[part] >= begin_s) & (at_s[part] < end_s))
