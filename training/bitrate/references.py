"""The published rules that a policy is measured against, for any ladder, segment length, buffer cap and QoE.

All decide from Observations alone and keep no state, so each batch of sessions is one call.
Units: time s, bitrate and throughput kbit/s, sizes bytes. Before its first sample a rule takes the lowest rung, unless
the buffer alone decides.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.bitrate.observations import LOOKAHEAD, RUNGS, Observations
from training.bitrate.compiled import compiled
from training.bitrate.policies import Policy
from training.bitrate.simulator import BYTES_PER_KBIT, Sessions

Rungs = NDArray[np.int64]
Floats = NDArray[np.float64]

SAMPLES: Final = 5
"""Downloads that predictions look back on (Yin et al. 2015)."""

_PLANNED: Final = (
    "throughput_kbps", "buffer_s", "max_buffer_s", "segment_s", "last_rung", "last_quality", "remaining", "rungs_kbps",
    "segment_bytes", "quality", "weights",
)  # fmt: skip

_PRICES: Final = np.array([0.0, 0.125, 0.25, 0.5, 0.75, 1.0])
"""Share of the rebuffer weight at which a bound prices download time; see `_plan`."""


@compiled
def _harmonic_mean(samples: np.ndarray, end: int) -> float:
    """Of the newest SAMPLES before `end` that exist (above 0); 0 where there is none."""
    count, inverse = 0, 0.0
    for sample in samples[max(end - SAMPLES, 0) : end]:
        if sample > 0:
            count += 1
            inverse += 1.0 / sample
    return count / inverse if count else 0.0


@compiled
def predict_kbps(samples: np.ndarray, robust: bool) -> float:  # noqa: FBT001  compiled code has no keyword arguments
    """Throughput expected next: the harmonic mean of the newest 5 samples (0 without any).

    Args:
        samples: kbit/s, newest last, 0 where there is none (HISTORY,).
        robust: divide it by 1 + the largest relative error that such predictions made on the newest 5 samples.
    """
    expected, worst = _harmonic_mean(samples, len(samples)), 0.0
    if robust:
        for i in range(max(len(samples) - SAMPLES, 0), len(samples)):
            before = _harmonic_mean(samples, i)
            if before > 0 and samples[i] > 0:
                worst = max(worst, abs(before - samples[i]) / samples[i])
    return expected / (1.0 + worst)


@compiled
def _swing(change: float, rise: float, fall: float) -> float:
    return rise * change if change > 0 else -fall * change


@compiled
def _plan(  # noqa: C901, PLR0912
    kbps: float, buffer_s: float, max_buffer_s: float, segment_s: float, last_quality: float, sizes: np.ndarray,
    quality: np.ndarray, weights: np.ndarray,
) -> int:  # fmt: skip
    """First rung of the sequence with the highest QoE if throughput stayed at `kbps`; exact, by branch and bound.

    A branch is left when even this bound can't beat the best sequence known. What is still to come rebuffers for at
    least (its download time - buffer - media it adds in between), and for at least 0; so at any price between 0 and the
    rebuffer weight, its value is at most the sum over segments of the best (quality + change - price * download time),
    plus price * (buffer + that media). Ties go to the higher rung.

    Args:
        kbps: throughput, above 0.
        buffer_s: media in the buffer.
        max_buffer_s: its cap.
        segment_s: length of a segment.
        last_quality: of the segment fetched last; NaN: none was.
        sizes: bytes by segment and rung (H, R).
        quality: likewise.
        weights: rebuffer, rise, fall, quality.
    """
    horizon, rungs = sizes.shape
    rebuffer, rise, fall = weights[0], weights[1], weights[2]
    took_s = np.empty((horizon, rungs))
    tail = np.zeros((horizon + 1, len(_PRICES)))
    for i in range(horizon - 1, -1, -1):
        for p in range(len(_PRICES)):
            most = -np.inf
            for r in range(rungs):
                took_s[i, r] = sizes[i, r] / BYTES_PER_KBIT / kbps
                turn = 0.0 if i == 0 else -np.inf
                for a in range(rungs if i > 0 else 0):
                    turn = max(turn, _swing(quality[i, r] - quality[i - 1, a], rise, fall))
                most = max(most, weights[3] * quality[i, r] + turn + rebuffer * _PRICES[p] * took_s[i, r])
            tail[i, p] = tail[i + 1, p] + most
    path = np.full(horizon, rungs, np.int64)
    value, level_s = np.zeros(horizon + 1), np.zeros(horizon + 1)
    level_s[0] = buffer_s
    best, choice = -math.inf, 0
    constant, depth = rungs - 1, 0  # sequences of one rung come first, so that bounds cut early
    while depth >= 0:
        if constant >= 0:
            path[depth] = constant
        else:
            path[depth] -= 1
            if path[depth] < 0:
                path[depth] = rungs
                depth -= 1
                continue
        rung = path[depth]
        change = quality[depth, rung] - (last_quality if depth == 0 else quality[depth - 1, path[depth - 1]])
        stall_s = max(took_s[depth, rung] - level_s[depth], 0.0)
        value[depth + 1] = value[depth] + weights[3] * quality[depth, rung] + rebuffer * stall_s
        if not np.isnan(change):
            value[depth + 1] += _swing(change, rise, fall)
        level_s[depth + 1] = min(max(level_s[depth] - took_s[depth, rung], 0.0) + segment_s, max_buffer_s)
        if depth + 1 == horizon:
            if value[horizon] > best:
                best, choice = float(value[horizon]), path[0]
            if constant >= 0:
                constant -= 1
                depth = 0
                if constant < 0:
                    path[:] = rungs
            continue
        if constant < 0:
            bound = np.inf
            for p in range(len(_PRICES)):
                media_s = level_s[depth + 1] + (horizon - 2 - depth) * segment_s
                bound = min(bound, tail[depth + 1, p] - rebuffer * _PRICES[p] * media_s)
            if value[depth + 1] + bound <= best:
                continue
        depth += 1
    return choice


@compiled
def _plan_all(
    robust: bool, chosen: Rungs,  # noqa: FBT001  and the inputs _PLANNED
    throughput_kbps: np.ndarray, buffer_s: np.ndarray, max_buffer_s: np.ndarray, segment_s: np.ndarray,
    last_rung: np.ndarray, last_quality: np.ndarray, remaining: np.ndarray, rungs_kbps: np.ndarray,
    segment_bytes: np.ndarray, quality: np.ndarray, weights: np.ndarray,
) -> None:  # fmt: skip
    for i in range(len(chosen)):
        kbps: float = predict_kbps(throughput_kbps[i], robust)
        horizon, rungs = int(min(remaining[i], LOOKAHEAD)), int((rungs_kbps[i] > 0).sum())
        if kbps > 0 and horizon > 0:
            chosen[i] = _plan(
                kbps, buffer_s[i], max_buffer_s[i], segment_s[i], last_quality[i] if last_rung[i] >= 0 else np.nan,
                segment_bytes[i, :horizon, :rungs], quality[i, :horizon, :rungs], weights[i],
            )  # fmt: skip


@dataclass(frozen=True)
class Mpc:
    """Model predictive control over a horizon of 5 segments (Yin et al., SIGCOMM 2015).

    It plans for the session's own QoE, segment sizes and buffer cap over all rung sequences. As in the evaluation of
    Pensieve, the throughput of the plan is the harmonic mean of 5 samples, which `robust` (RobustMPC) divides by
    1 + the largest error of its last 5 predictions; samples count the request's round trip. The published log `mpc` is
    a little more careful at each start: it remembers the errors of the trace before, which no player could.

    Attributes:
        robust: RobustMPC.
    """

    robust: bool = True

    @property
    def name(self) -> str:
        """As tables print it."""
        return "robust_mpc" if self.robust else "mpc"

    def start(self, n: int) -> None:
        """Nothing to forget."""

    def choose(self, observations: Observations, sessions: Sessions) -> Rungs:
        """Rung of each session (B,)."""
        del sessions
        chosen = np.zeros(len(observations), np.int64)
        _plan_all(self.robust, chosen, *(observations.as_inputs()[name].astype(np.float64) for name in _PLANNED))
        return chosen


def _highest_below(rungs_kbps: np.ndarray, kbps: np.ndarray) -> Rungs:
    """Highest rung that is not above `kbps` (B,), or the lowest one."""
    fits = (rungs_kbps > 0) & (rungs_kbps <= kbps[:, None])
    return np.where(fits.any(1), RUNGS - 1 - fits[:, ::-1].argmax(1), 0).astype(np.int64)


@dataclass(frozen=True)
class Throughput:
    """The throughput rule: the highest rung below the harmonic mean of the newest 5 samples."""

    name: str = "throughput"

    def start(self, n: int) -> None:
        """Nothing to forget."""

    def choose(self, observations: Observations, sessions: Sessions) -> Rungs:
        """Rung of each session (B,)."""
        del sessions
        samples = observations.throughput_kbps[:, -SAMPLES:].astype(np.float64)
        there = samples > 0
        inverse = np.divide(1.0, samples, out=np.zeros_like(samples), where=there).sum(1)
        kbps = np.divide(there.sum(1), inverse, out=np.zeros_like(inverse), where=inverse > 0)
        return _highest_below(observations.rungs_kbps, kbps)


@dataclass(frozen=True)
class Bba:
    """Buffer-based adaptation, BBA-0 (Huang et al., SIGCOMM 2014), as comparisons with Pensieve run it.

    The lowest rung within the reservoir, the highest one above reservoir and cushion, in between the map from buffer to
    rung is linear. Reservoir and cushion are the published comparisons' 5 s and 10 s (the paper's 90 s and 126 s are
    for a buffer of 240 s); a buffer too small for both shrinks them in proportion. The published log `bb` is this rule.
    """

    name: str = "bba"
    reservoir_s: float = 5.0
    cushion_s: float = 10.0

    def start(self, n: int) -> None:
        """Nothing to forget."""

    def choose(self, observations: Observations, sessions: Sessions) -> Rungs:
        """Rung of each session (B,)."""
        del sessions
        highest = (observations.rungs_kbps > 0).sum(1) - 1
        full_s = observations.max_buffer_s.astype(np.float64)
        scale = np.minimum(full_s / (self.reservoir_s + self.cushion_s), 1.0)
        share = (observations.buffer_s / scale - self.reservoir_s) / self.cushion_s
        rungs: Rungs = np.floor(np.clip(share, 0.0, 1.0) * highest).astype(np.int64)
        return rungs


@dataclass(frozen=True)
class Bola:
    """BOLA-BASIC (Spiteri et al., INFOCOM 2016) with the parameters told by two buffer levels, as dash.js sets them.

    Maximises (V * (utility + gamma p) - buffer) / bitrate, where utility is ln(bitrate / lowest bitrate): V and gamma p
    are such that the lowest rung loses its last merit against the next ones near `low_s` and the highest rung is worth
    fetching up to `high_s`. A buffer too small for `high_s` shrinks both in proportion.
    """

    name: str = "bola"
    low_s: float = 17.5
    high_s: float = 38.0

    def start(self, n: int) -> None:
        """Nothing to forget."""

    def choose(self, observations: Observations, sessions: Sessions) -> Rungs:
        """Rung of each session (B,)."""
        del sessions
        rungs_kbps = observations.rungs_kbps.astype(np.float64)
        there = rungs_kbps > 0
        utility = np.log(np.where(there, rungs_kbps, 1.0) / rungs_kbps[:, :1])
        highest = np.where(there, utility, 0.0).max(1)
        scale = np.minimum(observations.max_buffer_s / self.high_s, 1.0)
        gain_s = scale * (self.high_s - self.low_s) / np.maximum(highest, 1e-9)
        merit = gain_s[:, None] * utility + (scale * self.low_s - observations.buffer_s)[:, None]
        score = np.where(there, merit / np.where(there, rungs_kbps, 1.0), -np.inf)
        rungs: Rungs = score.argmax(1).astype(np.int64)
        return rungs


REFERENCES: Final[dict[str, Callable[[], Policy]]] = {
    "throughput": Throughput,
    "bba": Bba,
    "bola": Bola,
    "mpc": lambda: Mpc(robust=False),
    "robust_mpc": Mpc,
}
"""Name -> the policy."""
