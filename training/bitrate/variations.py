"""Variations of given traces: networks that are like them and were never measured.

A policy that sees the same hundred traces in each round learns them by heart: without variations it gets worse on
others after some millions of decisions (docs/bitrate.md).

Units: time s, throughput kbit/s.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.bitrate.traces import MAX_KBPS, MIN_MEAN_KBPS, Trace

Floats = NDArray[np.float64]

SPAN_S: Final = 330.0
"""Length of a variation."""

STRETCH: Final = (0.75, 1.33)
"""Time runs faster or slower by a factor of this range."""

SPLICED: Final = 0.5
"""Share of variations that are made of several traces."""

PIECE_S: Final = (30.0, 200.0)
"""Length of their pieces."""

FLICKER: Final = 0.2
"""Most standard deviation of ln(kbit/s) that is added to each row on its own."""


def vary(
    traces: Sequence[Trace], count: int, random: np.random.Generator, *, speed: tuple[float, float] = (1.0, 1.0)
) -> list[Trace]:
    """Draw variations.

    Each begins somewhere in a trace, and goes on round its end; half of them go on in other traces, brought some of the
    way to the first one's mean. Pieces are stretched in time and half of them reversed; all rows flicker.

    Args:
        traces: what is varied, at least one.
        count: how many to draw.
        random: draws.
        speed: throughput is multiplied by a factor of this range, one for each variation.
    """
    return [_variation(f"variation-{place}", traces, random, speed) for place in range(count)]


def _variation(name: str, traces: Sequence[Trace], random: np.random.Generator, speed: tuple[float, float]) -> Trace:
    first = trace = traces[int(random.integers(len(traces)))]
    spliced = random.random() < SPLICED
    steps: list[Floats] = []
    rates: list[Floats] = []
    left_s = SPAN_S
    while left_s > 0:
        stretch = draw(random, STRETCH)
        step_s, kbps = _piece(trace, (min(left_s, draw(random, PIECE_S)) if spliced else left_s) / stretch, random)
        steps.append(step_s * stretch)
        rates.append(kbps * (first.mean_kbps / trace.mean_kbps) ** random.random())
        left_s -= float(steps[-1].sum())
        trace = traces[int(random.integers(len(traces)))]
    kbps = np.concatenate(rates) * draw(random, speed)
    kbps *= np.exp(random.uniform(0, FLICKER) * random.standard_normal(len(kbps)))
    kbps = np.clip(kbps, 2 * MIN_MEAN_KBPS, MAX_KBPS)
    return Trace(name, np.concatenate([[0.0], np.cumsum(np.concatenate(steps))]), np.concatenate([kbps[:1], kbps]))


def _piece(trace: Trace, span_s: float, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Rows that take at least `span_s`, from a random one on: how long each takes, and its throughput."""
    step_s, kbps = np.diff(trace.times_s), trace.kbps[1:]
    rows = np.arange(int(len(step_s) * (1 + np.ceil(span_s / step_s.sum())))) + random.integers(len(step_s))
    step_s, kbps = step_s[rows % len(step_s)], kbps[rows % len(kbps)]
    end = int(np.searchsorted(np.cumsum(step_s), span_s)) + 1
    way = -1 if random.random() < 0.5 else 1
    return step_s[:end][::way], kbps[:end][::way]


def draw(random: np.random.Generator, span: tuple[float, float]) -> float:
    """A number of the range, evenly in its logarithm."""
    return float(np.exp(random.uniform(np.log(span[0]), np.log(span[1]))))
