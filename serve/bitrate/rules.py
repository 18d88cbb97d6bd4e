"""The simple rule: what answers where the model cannot be asked. A pure, total function of a readable session.

Throughput is taken as log-normal around the harmonic mean of the newest samples, or as the network's prior; the rule
takes the highest rung that a cautious share of it carries, that the buffer outlasts, and that is one step up at most.
"""

import math
from dataclasses import dataclass
from typing import Final

from serve.bitrate.sessions import Session

SAFE_REBUFFER: Final = 0.05
"""A rung is called safe if fetching it empties the buffer with a lower probability than this."""

_SAMPLES: Final = 5
_SHARE: Final = 0.75
"""Share of the expected throughput that is planned with (as in the throughput rules of DASH players)."""

_LEAST_DEVIATION: Final = 0.25
"""Of ln(throughput) from one download to the next, even where the samples agree."""

_GREATEST_DEVIATION: Final = 1.0
_UNKNOWN: Final = (math.log(1000.0), 1.0)
"""Where there are neither samples nor a prior: half of all networks carry 1 Mbit/s, one in six less than 370 kbit/s."""

_Z10: Final = 1.2815515655446004


@dataclass(frozen=True, slots=True)
class Choice:
    """What the rule says of a session.

    Attributes:
        rung: index into the session's rungs_kbps; 0 where there is none.
        safe_rung: the highest that is safe by SAFE_REBUFFER; at least the lowest.
        rebuffer_probability: that fetching `rung` empties the buffer, 0 to 1; before playback, that it takes longer
            than it plays.
        throughput_kbps: quantiles .1, .5 and .9 of the next download's throughput.
    """

    rung: int
    safe_rung: int
    rebuffer_probability: float
    throughput_kbps: tuple[float, float, float]


def choose(session: Session) -> Choice:
    """The rung to fetch next; never raises.

    Args:
        session: as `read_session` leaves it.
    """
    mean, deviation = _expected(session)
    quantiles = (math.exp(mean - _Z10 * deviation), math.exp(mean), math.exp(mean + _Z10 * deviation))
    started = bool(session.throughput_kbps)
    patience_s = session.buffer_s if started and session.buffer_s > 0 else session.segment_s
    affordable_kbps = _SHARE * (quantiles[1] if started else math.exp(mean - deviation))
    rung = safe_rung = 0
    chances = [_chance(size_bits / patience_s, mean, deviation) for size_bits in _next_bits(session)]
    for candidate, (kbps, chance) in enumerate(zip(session.rungs_kbps, chances, strict=True)):
        if candidate and chance >= SAFE_REBUFFER:
            break
        safe_rung = candidate
        if kbps <= affordable_kbps:
            rung = candidate
    if session.last_rung >= 0:
        rung = min(rung, session.last_rung + 1)
    return Choice(rung, safe_rung, chances[rung] if chances else 0.0, quantiles)


def _expected(session: Session) -> tuple[float, float]:
    """Mean and deviation of ln(kbit/s) of the next download."""
    newest = session.throughput_kbps[-_SAMPLES:]
    if not newest:
        return session.prior_log_kbps if session.prior_log_kbps[1] > 0 else _UNKNOWN
    mean = -math.log(math.fsum(1.0 / kbps for kbps in newest) / len(newest))
    spread = math.sqrt(math.fsum((math.log(kbps) - mean) ** 2 for kbps in newest) / len(newest))
    return mean, min(max(spread, _LEAST_DEVIATION), _GREATEST_DEVIATION)


def _next_bits(session: Session) -> list[float]:
    """Size of the next segment by rung, in thousands of bits."""
    if session.segment_bytes:
        return [0.008 * size for size in session.segment_bytes[0]]
    return [kbps * session.segment_s for kbps in session.rungs_kbps]


def _chance(needed_kbps: float, mean: float, deviation: float) -> float:
    """That a log-normal throughput is below what is needed."""
    return 0.5 * math.erfc((mean - math.log(needed_kbps)) / (deviation * math.sqrt(2.0)))
