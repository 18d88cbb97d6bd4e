"""When requests arrive and whom they are for: independent viewers, a few of them very active.

Units: rates are requests a second, times are seconds from the start of the run.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput

MAX_ARRIVALS: Final = 10_000_000
"""More than this in one plan is a unit mistake (about 1 GB of plan)."""


def poisson_arrivals_s(*, rate_rps: float, duration_s: float, seed: int) -> NDArray[np.float64]:
    """Times at which independent viewers ask: a Poisson process, whatever the service does meanwhile.

    Drawn as a Poisson count of uniform times, which is the same process as summed exponential gaps and needs no loop.

    Args:
        rate_rps: mean requests a second, above 0.
        duration_s: length of the run in seconds, above 0.
        seed: same seed, same arrivals.

    Returns:
        Sorted times, float64 (n,), each from 0 to duration_s; n is Poisson with mean rate_rps * duration_s.

    Raises:
        InvalidInput: a rate or duration that is not a positive finite number, or more than MAX_ARRIVALS expected.
    """
    for field, value in (("rate_rps", rate_rps), ("duration_s", duration_s)):
        if not (np.isfinite(value) and value > 0):
            raise InvalidInput(field=field, got=value, expected="a finite number above 0", next_step="Correct it.")
    if rate_rps * duration_s > MAX_ARRIVALS:
        raise InvalidInput(
            field="rate_rps * duration_s",
            got=rate_rps * duration_s,
            expected=f"at most {MAX_ARRIVALS} arrivals",
            next_step="Ask for a lower rate or a shorter run.",
        )
    rng = np.random.default_rng(seed)
    times_s = rng.uniform(0.0, duration_s, size=rng.poisson(rate_rps * duration_s))
    times_s.sort()
    return times_s


def zipf_draws(*, population: int, size: int, exponent: float, seed: int) -> NDArray[np.int64]:
    """Draw members of a population so that the r-th most active has weight 1 / r ** exponent.

    Who is active is itself drawn from the seed: the first ids of a list are nothing special.

    Args:
        population: number of members, at least 1.
        size: number of draws, 0 or more.
        exponent: 0 draws evenly; 1 is Zipf's law.
        seed: same seed, same draws.

    Returns:
        Indices of members, int64 (size,), each from 0 to population - 1.

    Raises:
        InvalidInput: an empty population, or an exponent below 0.
    """
    if population < 1:
        raise InvalidInput(
            field="population", got=population, expected="at least 1 member", next_step="Name some profiles or titles."
        )
    if not (np.isfinite(exponent) and exponent >= 0):
        raise InvalidInput(
            field="zipf_exponent", got=exponent, expected="a finite number, 0 or more", next_step="1.0 is usual."
        )
    rng = np.random.default_rng(seed)
    by_rank = rng.permutation(population)  # rank - 1 -> member
    cumulative = np.cumsum(np.arange(1, population + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(cumulative, rng.uniform(0.0, cumulative[-1], size=size), side="right")
    draws: NDArray[np.int64] = by_rank[np.minimum(ranks, population - 1)].astype(np.int64)
    return draws
