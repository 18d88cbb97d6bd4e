"""Incidents with the parameters of a published generator, as ratios of two measures."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from training.watchtower.incidents import Incident, members

_TRIES: Final = 4000


@dataclass(frozen=True, kw_only=True)
class PublicSetting:
    """Parameters of the generator in RiskLoc (Kalander, arXiv 2205.10004, section V-A), for a ratio of two measures.

    Attributes:
        name: of the data set.
        cards: values per dimension; every combination is a leaf.
        noise: range of the relative forecast error.
        severities: range of the share of what is good that an anomaly takes, the noise added.
        deviations: range of its standard deviation between leaves.
        anomalies: range of their number.
        elements: range of the slices in one anomaly.
        last_layer: every anomaly is one leaf.
        zeros: range of the share of leaves without sessions.
    """

    name: str
    cards: tuple[int, ...]
    noise: tuple[float, float] = (0.0, 0.25)
    severities: tuple[float, float] = (0.2, 1.0)
    deviations: tuple[float, float] = (0.0, 0.1)
    anomalies: tuple[int, int] = (1, 3)
    elements: tuple[int, int] = (1, 3)
    last_layer: bool = False
    zeros: tuple[float, float] = (0.0, 0.25)


PUBLIC: Final = (
    PublicSetting(name="public S", cards=(10, 12, 10, 8, 5)),
    PublicSetting(
        name="public L", cards=(10, 24, 10, 15), noise=(0.0, 0.1), severities=(0.5, 1.0), deviations=(0.0, 0.0),
        anomalies=(1, 5), elements=(1, 1), last_layer=True,
    ),
    PublicSetting(name="public H, a part", cards=(5, 5, 50, 5, 4, 2)),
)  # fmt: skip


def public_incidents(seed: int, count: int, *, settings: tuple[PublicSetting, ...] = PUBLIC) -> Iterator[Incident]:
    """`count` incidents of the published settings in turn; the same for the same seed."""
    for index, setting in zip(range(count), itertools.cycle(settings), strict=False):
        yield _public(np.random.default_rng([seed, index, 1]), setting)


def _public(rng: np.random.Generator, setting: PublicSetting) -> Incident:
    names = tuple("abcdefghij"[: len(setting.cards)])
    codes = np.array(list(itertools.product(*(range(card) for card in setting.cards))), dtype=np.int64)
    leaves = len(codes)
    total = np.round(rng.weibull(rng.uniform(0.5, 1.0), leaves) * 100.0)
    total *= rng.random(leaves) > rng.uniform(*setting.zeros)
    noise = rng.uniform(*setting.noise)
    ratio = rng.uniform(0.02, 0.3)
    before = np.clip(total * ratio * (1.0 + rng.normal(0, noise, leaves)), 0.0, total)
    now = total * ratio
    swapped = rng.random(leaves) < 0.5
    before, now = np.where(swapped, now, before), np.where(swapped, before, now)
    chosen: list[tuple[tuple[int, int], ...]] = []
    taken = np.zeros(leaves, dtype=np.bool_)
    for _ in range(int(rng.integers(*setting.anomalies, endpoint=True))):
        depth = len(names) if setting.last_layer else int(rng.integers(1, len(names), endpoint=True))
        dimensions = sorted(rng.choice(len(names), depth, replace=False).tolist())
        severity = rng.uniform(*setting.severities) + noise
        deviation = rng.uniform(*setting.deviations)
        wanted = int(rng.integers(*setting.elements, endpoint=True))
        for _ in range(_TRIES):
            one = tuple((at, int(rng.integers(setting.cards[at]))) for at in dimensions)
            inside = members(codes, one)
            if (taken & inside).any() or total[inside].sum() == 0 or taken.mean() + inside.mean() > 0.6:
                continue
            taken |= inside
            chosen.append(one)
            left = np.clip(1.0 - rng.normal(severity, deviation, inside.sum()), 0.0, 1.0)
            now[inside] = total[inside] - (total[inside] - before[inside]) * left
            wanted -= 1
            if wanted == 0:
                break
    values = tuple(
        tuple(f"{name}{code + 1}" for code in range(card)) for name, card in zip(names, setting.cards, strict=True)
    )
    return Incident(
        level=setting.name, dimensions=names, values=values, codes=codes, total=np.stack([total, total]),
        bad=np.stack([before, now]),
        causes=tuple({names[at]: values[at][code] for at, code in one} for one in chosen), external=False,
    )  # fmt: skip
