"""Simulated playback sessions of a bitrate policy's rollout: what makes naive comparisons of policies wrong is in them.

- Viewers differ: most watch now and then, a few a hundred times as often; each has a network of its own, and one in a
  hundred has one that is too slow for nearly everything and stalls half the time.
- Trouble comes in outages: for some minutes a delivery network fails or stalls sessions of a third of all viewers,
  whatever policy decides for them.
- The day changes how many sessions there are and how good networks are (a short one, so that a rollout sees some of
  it).

A session's arm is drawn by its id, so one viewer's sessions are of either. Arrays of sessions are (N,), in the order in
which they end; times in seconds unless named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve.bitrate.observations import PERCEPTUAL_WEIGHTS
from serve.bitrate.sessions import DEFAULT_SEGMENT_S
from serve.rollout.decisions import (
    BAD_QOE,
    FAILURES,
    GOOD_QOE,
    LOW_QUALITY,
    REBUFFERED,
    SLOW_STARTS,
    SessionCounts,
    WindowCounts,
)
from serve.rollout.outcomes import STALLED_SHARE, Usual, learn

CHUNK_S: Final = 60
"""At a time; and of a window that the champion's usual is learned from."""
STEP_S: Final = 5
"""Seconds of a look."""
DAY_S: Final = 7200.0
OUTAGES: Final = 0.03
"""Probability that one begins, a chunk."""
SAMPLED: Final = 150
"""Of a chunk's champion sessions, about how many are learned from."""

COUNTS: Final = ("requests", "profiles", "failures", "rebuffered", "low_quality", "slow_starts", "bad_qoe", "good_qoe")

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEffect:
    """What the challenger does to its arm.

    Attributes:
        rebuffering: factor of the probability that a session stalls at all.
        vmaf: points that its mean VMAF changes by.
        startup: factor of the time to the first picture.
        failures: factor of the probability that a session fails outside outages.
    """

    rebuffering: float = 1.0
    vmaf: float = 0.0
    startup: float = 1.0
    failures: float = 1.0


@dataclass(frozen=True, slots=True)
class Audience:
    """Who may watch.

    Attributes:
        turns: viewers, each as often as it watches against others, (T,).
        stalls: probability that a session stalls, by viewer, (V,).
        vmaf: mean VMAF of a viewer's sessions, (V,).
        startup_s: median time to the first picture, (V,).
        network: which of three delivery networks, (V,).
    """

    turns: NDArray[np.int32]
    stalls: Numbers
    vmaf: Numbers
    startup_s: Numbers
    network: NDArray[np.int8]

    @classmethod
    def draw(cls, rng: np.random.Generator, viewers: int) -> "Audience":
        """An audience.

        Args:
            rng: source of chance.
            viewers: how many, V.
        """
        often = np.minimum(1 + rng.lognormal(0.0, 1.2, viewers), 300).astype(np.int64)
        slow = rng.random(viewers) < 0.01
        speed = rng.standard_normal(viewers) - 3.0 * slow
        return cls(
            turns=np.repeat(np.arange(viewers, dtype=np.int32), often),
            stalls=np.where(slow, 0.5, np.clip(0.08 * np.exp(-0.6 * speed), 0.0, 0.5)),
            vmaf=np.clip(86.0 + 6.0 * speed, 20.0, 98.0),
            startup_s=0.9 * np.exp(-0.3 * speed),
            network=rng.integers(3, size=viewers, dtype=np.int8),
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """Sessions that ended, (N,) each.

    Attributes:
        at_s: when, within the chunk.
        treated: whether each is the challenger's.
        started: whether a picture was shown.
        failed: whether an error ended it.
        startup_ms: time to the first picture.
        played_ms: of playing.
        stall_ms: of stalling.
        vmaf: mean VMAF.
    """

    at_s: Numbers
    treated: Flags
    started: Flags
    failed: Flags
    startup_ms: Numbers
    played_ms: Numbers
    stall_ms: Numbers
    vmaf: Numbers

    def record(self, place: int) -> Mapping[str, Any]:
        """One of them, as serve.telemetry.records has it."""
        started = bool(self.started[place])
        return {
            "first_ts": 0, "last_ts": 60_000, "started": started,
            "startup_ms": float(self.startup_ms[place]) if started else None,
            "played_ms": float(self.played_ms[place]) if started else 0,
            "stall_ms": float(self.stall_ms[place]) if started else 0.0, "mean_kbps": None,
            "mean_vmaf": float(self.vmaf[place]) if started else None,
            "end": "failed" if self.failed[place] else "quit",
        }  # fmt: skip

    def kinds(self, usual: Usual) -> dict[str, Flags]:
        """What each counts as: serve.rollout.outcomes.kinds_of for all at once, kind -> (N,)."""
        stalled_s, played_s = self.stall_ms / 1000, self.played_ms / 1000
        qoe = PERCEPTUAL_WEIGHTS[0] * (stalled_s * DEFAULT_SEGMENT_S / played_s) + PERCEPTUAL_WEIGHTS[3] * self.vmaf
        failures = self.failed | ~self.started
        nobody = np.zeros(len(self.at_s), dtype=np.bool_)

        def beyond(name: str, values: Numbers, sign: float) -> Flags:
            limit = usual.limit(name)
            return nobody if limit is None else self.started & (sign * values > sign * limit)

        bad = failures | beyond("perceptual_qoe", qoe, -1.0)
        is_judged = usual.limit("perceptual_qoe") is not None
        return {
            FAILURES: failures,
            REBUFFERED: self.started & (self.stall_ms > STALLED_SHARE * (self.stall_ms + self.played_ms)),
            LOW_QUALITY: beyond("vmaf", self.vmaf, -1.0), SLOW_STARTS: beyond("startup_ms", self.startup_ms, 1.0),
            BAD_QOE: bad, GOOD_QOE: self.started & ~bad if is_judged else nobody,
        }  # fmt: skip


class Playback:
    """One rollout's sessions, and what became of them.

    Args:
        rng: source of chance.
        audience: who may watch.
        effect: what the challenger does.
        rate: sessions that end a second, over a whole day.
    """

    def __init__(
        self, rng: np.random.Generator, audience: Audience, effect: SessionEffect, *, rate: float = 40.0
    ) -> None:
        self._rng = rng
        self._audience = audience
        self._effect = effect
        self._rate = rate
        self._usual = Usual()
        self._at_s = float(rng.uniform(0.0, DAY_S))
        self._outage: tuple[float, int, float] = (0.0, 0, 0.0)  # until when, of which network, how bad

    def stage(self, share: float) -> Iterator[WindowCounts]:
        """Windows of STEP_S at a stage, without end.

        Args:
            share: of the sessions.
        """
        while True:
            ended = self._chunk(share)
            flags = ended.kinds(self._usual)
            flags |= dict.fromkeys(("requests", "profiles"), np.ones(len(ended.at_s), dtype=np.bool_))
            steps = CHUNK_S // STEP_S
            cell = (ended.at_s // STEP_S).astype(np.int64) + steps * ended.treated
            counted = [np.bincount(cell[flags[kind]], minlength=2 * steps).reshape(2, steps) for kind in COUNTS]
            for step in np.stack(counted, axis=-1).transpose(1, 0, 2).tolist():  # (steps, arms, kinds)
                champion, challenger = (SessionCounts(**dict(zip(COUNTS, arm, strict=True))) for arm in step)
                yield WindowCounts(challenger=challenger, champion=champion, seconds=STEP_S)
            self._learn(ended)

    def _chunk(self, share: float) -> Ended:
        rng, audience, effect = self._rng, self._audience, self._effect
        day = float(np.sin(self._at_s * 2.0 * np.pi / DAY_S))
        self._at_s += CHUNK_S
        count = int(rng.poisson(self._rate * CHUNK_S * (1.0 + 0.5 * day)))
        who = audience.turns[rng.integers(len(audience.turns), size=count)]
        treated = rng.random(count) < share
        stalls = audience.stalls[who] * (1.0 + 0.3 * day) * np.where(treated, effect.rebuffering, 1.0)
        fails = 0.01 * np.where(treated, effect.failures, 1.0)
        hit = self._hit(audience.network[who])
        chance = rng.random((3, count))
        stalled = chance[0] < stalls + 0.5 * hit
        failed = chance[1] < fails + 0.3 * hit
        played_ms = 1000.0 * np.clip(rng.lognormal(6.0, 1.2, count), 5.0, 7200.0)
        vmaf = audience.vmaf[who] - 2.0 * day + 4.0 * rng.standard_normal(count) + np.where(treated, effect.vmaf, 0.0)
        startup_s = audience.startup_s[who] * np.exp(0.5 * rng.standard_normal(count))
        return Ended(
            at_s=np.sort(rng.uniform(0.0, CHUNK_S, count)), treated=treated, started=~failed | (chance[2] < 0.5),
            failed=failed, startup_ms=1000.0 * startup_s * np.where(treated, effect.startup, 1.0),
            played_ms=played_ms, stall_ms=stalled * played_ms * 0.01 * rng.lognormal(0.7, 0.8, count),
            vmaf=np.clip(vmaf, 5.0, 100.0),
        )  # fmt: skip

    def _hit(self, network: NDArray[np.int8]) -> Numbers:
        """How hard an outage hits each session, 0 to 1."""
        until_s, where, how_bad = self._outage
        if self._at_s >= until_s and self._rng.random() < OUTAGES:
            self._outage = until_s, where, how_bad = (
                self._at_s + float(self._rng.exponential(240.0)),
                int(self._rng.integers(3)),
                float(self._rng.uniform(0.2, 1.0)),
            )
        return np.where((network == where) & (self._at_s < until_s), how_bad, 0.0)

    def _learn(self, ended: Ended) -> None:
        window: dict[str, dict[int, int]] = {}
        champion = np.flatnonzero(~ended.treated)
        for place in champion[:: max(len(champion) // SAMPLED, 1)].tolist():
            learn(window, ended.record(place))
        self._usual.see(window)
