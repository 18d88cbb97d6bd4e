"""Generated traces and titles, by seed: training where there are no files, and variety where there are.

Units: time s, throughput kbit/s, sizes bytes, VMAF 0..100.

A trace is Markov-modulated: ln(kbit/s) is the sum of a level that jumps at random times (cells, load, streets), a
first-order autoregression (scheduling, fading), and outages (tunnels, blockage, contention) that come and go as a
two-state chain; it is then scaled to the mean that was drawn. All parameters are drawn anew for each trace, within the
ranges of its family.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.bitrate.observations import RUNGS
from serve.errors import InvalidInput
from training.bitrate.compiled import compiled
from training.bitrate.traces import Trace
from training.bitrate.video import Video

Floats = NDArray[np.float64]
Range = tuple[float, float]
MAX_TOP_KBPS: Final = 60_000.0


@dataclass(frozen=True)
class Family:
    """A kind of network; ranges are drawn from log-uniformly, for each trace.

    Attributes:
        name: of the family.
        step_s: between rows.
        mean_kbps: mean of a trace.
        deviation: of ln(kbit/s), without outages.
        level_s: mean stay at a level.
        fast_s: correlation time of the autoregression.
        outage_every_s: mean time between outages.
        outage_s: mean length of one.
        outage_left: share of the throughput that an outage leaves.
    """

    name: str
    step_s: float
    mean_kbps: Range
    deviation: Range
    level_s: Range
    fast_s: Range
    outage_every_s: Range
    outage_s: Range
    outage_left: Range


FAMILIES: Final = (
    # Riiser et al., MMSys 2013: HSDPA on Norwegian buses, trams, trains, ferries and cars; deep fades, tunnels
    Family("3g", 1.0, (300, 3500), (0.15, 1.0), (10, 60), (5, 40), (40, 1000), (2, 15), (0.01, 0.4)),
    # van der Hooft et al., IEEE Comm. Letters 2016 (Ghent); Raca et al., MMSys 2018 (Cork): moving LTE, 0-110 Mbit/s
    Family("4g", 1.0, (1500, 40_000), (0.2, 0.9), (5, 60), (1, 10), (60, 1000), (1, 8), (0.01, 0.4)),
    # Narayanan et al., IMC 2020 (Lumos5G); Raca et al., MMSys 2020: up to over 1 Gbit/s, blocked within a second
    Family("5g", 1.0, (8000, 400_000), (0.3, 1.1), (3, 40), (0.5, 5), (15, 300), (1, 8), (0.01, 0.3)),
    # FCC, Measuring Broadband America (raw data; Pensieve trained on its slow lines): steady, congested at times
    Family("broadband", 2.0, (500, 60_000), (0.03, 0.35), (30, 300), (2, 30), (100, 3000), (5, 40), (0.2, 0.8)),
    # Airtime shared with neighbours: short dips, changes as people walk; ranges of our own, fitted to no published set
    Family("wifi", 0.5, (1000, 80_000), (0.1, 0.7), (5, 120), (0.3, 4), (10, 300), (0.5, 5), (0.05, 0.6)),
)


@compiled
def _modulate(steps: Floats, normals: Floats, uniforms: Floats, log_kbps: Floats) -> None:
    """Fill ln(kbit/s), rows by traces; `steps` holds what `generate_traces` draws for each trace."""
    for trace in range(log_kbps.shape[1]):
        level, fast, jump, memory, enter, leave, left = steps[:, trace]
        slow, quick, out, depth = normals[0, 0, trace], normals[1, 0, trace], False, 0.0
        fresh = np.sqrt(1 - memory * memory)
        for row in range(len(log_kbps)):
            if uniforms[0, row, trace] < jump:
                slow = normals[0, row, trace]
            quick = memory * quick + fresh * normals[1, row, trace]
            if uniforms[1, row, trace] < (leave if out else enter):
                out = not out
                depth = left * uniforms[0, row, trace] * 2
            log_kbps[row, trace] = level * slow + fast * quick + (depth if out else 0.0)


def generate_traces(
    count: int, *, seed: int, families: Sequence[Family] = FAMILIES, span_s: float = 320.0
) -> list[Trace]:
    """Draw `count` traces of `span_s` seconds, evenly over the families.

    Raises:
        InvalidInput: fewer than one trace or family, or a span below 10 s or above a day.
    """
    if count < 1 or not families or not 10 <= span_s <= 86_400:
        raise InvalidInput(
            field="synthetic", got=(count, len(families), span_s), expected="traces, families, a span of 10 s to a day",
            next_step="Ask for at least one trace of at least one family.",
        )  # fmt: skip
    random = np.random.default_rng(seed)
    traces: list[Trace] = []
    for i, family in enumerate(families):
        share = len(range(i, count, len(families)))
        if share:
            traces += _generate_family(family, share, span_s, random)
    return [traces[i] for i in random.permutation(count)]


def _generate_family(family: Family, count: int, span_s: float, random: np.random.Generator) -> list[Trace]:
    rows = round(span_s / family.step_s) + 1

    def draw(span: Range) -> Floats:
        return np.exp(random.uniform(np.log(span[0]), np.log(span[1]), count))

    deviation, of_level = draw(family.deviation), random.uniform(0.1, 0.9, count)
    steps = np.stack([
        deviation * np.sqrt(of_level),
        deviation * np.sqrt(1 - of_level),
        1 - np.exp(-family.step_s / draw(family.level_s)),
        np.exp(-family.step_s / draw(family.fast_s)),
        1 - np.exp(-family.step_s / draw(family.outage_every_s)),
        1 - np.exp(-family.step_s / draw(family.outage_s)),
        np.log(draw(family.outage_left)),
    ])  # fmt: skip
    log_kbps = np.empty((rows, count))
    _modulate(steps, random.standard_normal((2, rows, count)), random.random((2, rows, count)), log_kbps)
    kbps = np.exp(log_kbps)
    kbps *= draw(family.mean_kbps) / kbps[1:].mean(0)
    times_s = np.linspace(0.0, (rows - 1) * family.step_s, rows)
    return [Trace(f"{family.name}-{i}", times_s, column) for i, column in enumerate(np.ascontiguousarray(kbps.T))]


def generate_videos(count: int, *, seed: int) -> list[Video]:
    """Draw `count` titles of 2..12 rungs between 100 kbit/s and 60 Mbit/s, with segments of 1..10 s, 1 to 10 minutes.

    Sizes vary by scenes (of 5 to 30 s) that all rungs share, and a little by rung. Quality is logistic in ln(bitrate),
    which fits Envivio's VMAF (half quality at 0.62 Mbit/s, steepness 1.7); half quality moves with the title (what is
    shown, codec and screen) and with the scene: what is harder to code is larger and yet looks worse (on Envivio, ln of
    half quality rises 1.6 times as fast as ln of the size).
    """
    random = np.random.default_rng(seed)
    return [_generate_video(f"title-{i}", random) for i in range(count)]


def _generate_video(name: str, random: np.random.Generator) -> Video:
    rungs = int(random.integers(2, RUNGS + 1))
    bottom = np.exp(random.uniform(np.log(100), np.log(1200)))
    top = min(bottom * np.exp(random.uniform(np.log(1.25), np.log(2.4)) * (rungs - 1)), MAX_TOP_KBPS)
    gaps = random.uniform(0.6, 1.4, rungs - 1)
    ladder = bottom * np.exp(np.append(0.0, np.cumsum(gaps) / gaps.sum()) * np.log(top / bottom))
    segment_s = float(random.choice([1, 2, 2, 4, 4, 5, 6, 8, 10, random.uniform(1, 10)]))
    segments = max(4, round(random.uniform(60, 600) / segment_s))

    cuts = random.random(segments) < segment_s / random.uniform(5, 30)
    scene = random.standard_normal(segments + 1)[np.cumsum(cuts)]
    swing = random.uniform(0, 0.4)
    factors = np.exp(
        np.clip(swing * scene + random.normal(0, 0.25 * swing, segments), -1.0, 0.8)[:, None]
        + random.normal(0, 0.03, (segments, rungs))
    )
    factors *= np.exp(random.normal(0, 0.04, rungs)) / factors.mean(0)
    kbps = ladder * factors

    half_kbps = np.exp(np.log(620) + random.normal(0, 0.5) + random.uniform(0.8, 2.2) * swing * scene)
    vmaf = 100 / (1 + (half_kbps[:, None] / kbps) ** random.uniform(1.2, 2.2))
    vmaf = np.maximum.accumulate(np.clip(vmaf + random.normal(0, 0.7, (segments, rungs)), 0, 100), 1)
    return Video(name, segment_s, ladder, np.ceil(kbps * segment_s * 125), vmaf)
