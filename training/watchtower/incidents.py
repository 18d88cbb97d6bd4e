"""Generated incidents: leaf counts of a service in one-minute windows, the last of which holds what went wrong.

Traffic is skewed (Zipf) and its dimensions depend on each other as real ones do: a network lies mostly in one region,
an app version runs on one device, a region prefers a CDN. Bad ratios differ by value and by leaf, drift and are noisier
than counting. Incidents are graded: each level is hard in its own way.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from serve.watchtower.localisation_table import BAD, TIMESTAMP, TOTAL, LeafTable, leaf_table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Slice = dict[str, str]

WINDOW_MS: Final = 60_000
_START_MS: Final = 1_767_225_600_000
_TRIES: Final = 4000


@dataclass(frozen=True, kw_only=True)
class Level:
    """One kind of incident.

    Attributes:
        name: of the level.
        depths: how many dimensions a cause may have.
        causes: how many causes at once.
        shares: range of a cause's share of the sessions.
        strengths: range of the share of good sessions that fail in it.
        noise: relative standard deviation of a leaf's ratio from window to window.
        leaves: range.
        dimensions: range.
        windows: range of windows of history.
        what: `slices`, `external`, `quiet` or `shift`.
        uneven: standard deviation of the log of a cause's strength between the values of another dimension.
        wander: standard deviation of the log of each value's ratio from window to window.
        spikes: share of leaves whose ratio is eight times as high, anew in each window.
        clump: sessions that come, and go bad, together.
        late: windows before the last one in which the incident is on already.
    """

    name: str
    depths: tuple[int, ...] = (1,)
    causes: int = 1
    shares: tuple[float, float] = (0.03, 0.4)
    strengths: tuple[float, float] = (0.3, 0.95)
    noise: float = 0.1
    leaves: tuple[int, int] = (1000, 8000)
    dimensions: tuple[int, int] = (3, 7)
    windows: tuple[int, int] = (15, 40)
    what: str = "slices"
    uneven: float = 0.0
    wander: float = 0.0
    spikes: float = 0.0
    clump: int = 1
    late: int = 0


LEVELS: Final = (
    Level(name="one dimension"),
    Level(name="two dimensions", depths=(2,), shares=(0.02, 0.3)),
    Level(name="three dimensions", depths=(3,), shares=(0.01, 0.2), dimensions=(4, 7)),
    Level(name="partial failure", depths=(1, 2), strengths=(0.05, 0.3)),
    Level(name="small slice", depths=(1, 2, 3), shares=(0.005, 0.015), strengths=(0.15, 0.9)),
    Level(name="noisy", depths=(1, 2), noise=0.4, strengths=(0.1, 0.6)),
    Level(name="two causes", depths=(1, 2), causes=2, shares=(0.02, 0.3)),
    Level(name="five minutes", depths=(1, 2, 3), windows=(5, 5), shares=(0.01, 0.3), strengths=(0.1, 0.9)),
    Level(name="many leaves", depths=(1, 2, 3), leaves=(15_000, 50_000), dimensions=(5, 7), windows=(5, 10),
          shares=(0.01, 0.3), strengths=(0.1, 0.9)),
    Level(name="uneven", depths=(1, 2), uneven=0.6, strengths=(0.1, 0.6), shares=(0.02, 0.3)),
    Level(name="wandering", depths=(1, 2), wander=0.15, strengths=(0.1, 0.6), shares=(0.02, 0.3)),
    Level(name="spiky", depths=(1, 2), spikes=0.02, strengths=(0.1, 0.9)),
    Level(name="clumps", depths=(1, 2), clump=5, strengths=(0.1, 0.9)),
    Level(name="noticed late", depths=(1, 2), late=2, strengths=(0.1, 0.9), shares=(0.02, 0.3)),
    Level(name="external", what="external", strengths=(0.03, 0.5)),
    Level(name="no incident", what="quiet", noise=0.25, wander=0.1),
    Level(name="traffic shift", what="shift", shares=(0.02, 0.3)),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Incident:
    """One generated incident. L leaves, D dimensions, W windows of which the last is the incident's.

    Attributes:
        level: name of its level.
        dimensions: names.
        values: per dimension its values.
        codes: (L, D).
        total: (W, L) sessions.
        bad: (W, L) of them bad.
        causes: what was injected; empty for `external`, `no incident` and `traffic shift`.
        external: whether everything degraded alike.
    """

    level: str
    dimensions: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    codes: Ints
    total: Floats
    bad: Floats
    causes: tuple[Slice, ...]
    external: bool

    @property
    def at_ms(self) -> int:
        """Timestamp of the incident's window."""
        return _START_MS + (len(self.total) - 1) * WINDOW_MS

    def frame(self) -> pl.DataFrame:
        """The rows of a file: timestamp (ms), dimensions, total, bad; leaves without sessions are missing."""
        window, leaf = np.nonzero(self.total)
        columns: dict[str, pl.Series] = {TIMESTAMP: pl.Series(_START_MS + window * WINDOW_MS)}
        for at, (name, values) in enumerate(zip(self.dimensions, self.values, strict=True)):
            columns[name] = pl.Series(list(values), dtype=pl.String).gather(self.codes[leaf, at])
        columns[TOTAL] = pl.Series(self.total[window, leaf])
        columns[BAD] = pl.Series(self.bad[window, leaf])
        return pl.DataFrame(columns)

    def table(self) -> LeafTable:
        """What a localiser gets to see."""
        return leaf_table(self.frame(), self.dimensions, at_ms=self.at_ms, history_ms=len(self.total) * WINDOW_MS)


def incidents(seed: int, count: int, *, levels: tuple[Level, ...] = LEVELS) -> Iterator[Incident]:
    """`count` incidents, level after level in turn; the same for the same seed."""
    for index, level in zip(range(count), itertools.cycle(levels), strict=False):
        yield _Generator(np.random.default_rng([seed, index]), level).incident()


def _zipf(rng: np.random.Generator, card: int, power: float) -> Floats:
    shares = (np.arange(card) + 1.0) ** -power
    return rng.permuted(shares / shares.sum())


class _Generator:
    """Draws one incident of a level."""

    def __init__(self, rng: np.random.Generator, level: Level) -> None:
        self._rng, self._level = rng, level

    def incident(self) -> Incident:
        """The incident."""
        rng, level = self._rng, self._level
        while True:
            names, values, codes, share = self._leaves()
            per_window = len(codes) * np.exp(rng.uniform(np.log(2.0), np.log(20.0)))
            ratio = self._ratios(codes)
            windows = int(rng.integers(level.windows[0], level.windows[1], endpoint=True))
            rate = share * per_window
            chosen = self._slices(codes, share) if level.what in {"slices", "shift"} else []
            if chosen is None:
                continue
            drawn = self._counts(rate, ratio, windows, codes, chosen)
            if drawn is None:
                continue
            total, bad = drawn
            causes = chosen if level.what == "slices" else []
            return Incident(
                level=level.name, dimensions=names, values=values, codes=codes, total=total, bad=bad,
                causes=tuple({names[at]: values[at][code] for at, code in one} for one in causes),
                external=level.what == "external",
            )  # fmt: skip

    def _leaves(self) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], Ints, Floats]:
        rng, level = self._rng, self._level
        wanted = int(np.exp(rng.uniform(*np.log(level.leaves))))
        number = int(rng.integers(level.dimensions[0], level.dimensions[1], endpoint=True))
        cards = {
            "cdn": int(rng.integers(3, 5, endpoint=True)), "region": int(rng.integers(5, 14)),
            "asn": int(rng.integers(20, 150)), "device": int(rng.integers(5, 10)), "app": int(rng.integers(10, 30)),
            "title": int(rng.integers(20, 300)), "protocol": 2,
        }  # fmt: skip
        kept = {"cdn", "asn", "region"} if number == 3 else {"cdn", "asn", "region", "device"}
        rest = [name for name in cards if name not in kept]
        kept |= set(rng.permutation(rest)[: number - len(kept)].tolist())
        names = tuple(name for name in cards if name in kept)
        drawn = self._sessions(cards, 6 * wanted)
        rows = np.stack([drawn[name] for name in names], axis=1)
        codes, counted = np.unique(rows, axis=0, return_counts=True)
        if len(codes) > wanted:
            top = np.argsort(-(counted + rng.uniform(0, 3, len(counted))))[:wanted]
            codes, counted = codes[np.sort(top)], counted[np.sort(top)]
        share = counted * np.exp(rng.normal(0, 0.3, len(counted)))
        values = tuple(tuple(f"{name}-{code}" for code in range(cards[name])) for name in names)
        return names, values, codes.astype(np.int64), share / share.sum()

    def _sessions(self, cards: dict[str, int], size: int) -> dict[str, Ints]:
        rng = self._rng

        def follows(parent: str, child: str, loyalty: float, power: float) -> Ints:
            """Values of `child`, each mostly beside its own value of `parent`."""
            home = rng.integers(0, cards[parent], cards[child])
            base = _zipf(rng, cards[child], power)
            table = np.where(home == np.arange(cards[parent])[:, None], loyalty, 1.0 - loyalty) * base
            table[table.sum(axis=1) == 0] = base
            bounds = np.cumsum(table / table.sum(axis=1, keepdims=True), axis=1)
            draws = rng.random(size)
            out: Ints = np.minimum((bounds[drawn[parent]] < draws[:, None]).sum(axis=1), cards[child] - 1)
            return out

        drawn: dict[str, Ints] = {}
        for name, power in (("region", 0.8), ("device", 0.8), ("title", 0.9)):
            drawn[name] = rng.choice(cards[name], size, p=_zipf(rng, cards[name], power))
        drawn["asn"] = follows("region", "asn", 0.97, 0.9)
        drawn["cdn"] = follows("region", "cdn", 0.75, 0.5)
        drawn["app"] = follows("device", "app", 1.0, 1.0)
        drawn["protocol"] = follows("device", "protocol", 0.9, 0.3)
        return drawn

    def _ratios(self, codes: Ints) -> Floats:
        rng = self._rng
        ratio = np.full(len(codes), np.exp(rng.uniform(np.log(0.003), np.log(0.06))))
        for column in codes.T:
            factor = np.exp(rng.normal(0, 0.3, int(column.max()) + 1))
            factor[rng.random(len(factor)) < 0.03] *= 4.0
            ratio *= factor[column]
        clipped: Floats = np.clip(ratio * np.exp(rng.normal(0, 0.2, len(codes))), 1e-4, 0.4)
        return clipped

    def _slices(self, codes: Ints, share: Floats) -> list[tuple[tuple[int, int], ...]] | None:
        """Slices of the level's sizes that no shorter name means, and that don't lie in each other."""
        rng, level = self._rng, self._level
        chosen: list[tuple[tuple[int, int], ...]] = []
        taken = np.zeros(len(codes), dtype=np.bool_)
        for _ in range(_TRIES):
            depth = int(rng.choice(level.depths))
            leaf = codes[int(rng.choice(len(codes), p=share))]
            dimensions = sorted(rng.choice(codes.shape[1], depth, replace=False).tolist())
            one = tuple((at, int(leaf[at])) for at in dimensions)
            inside = members(codes, one)
            size = float(share[inside].sum())
            if not level.shares[0] <= size <= level.shares[1] or (taken & inside).any():
                continue
            if inside.sum() < 3 or not _shortest(codes, share, one, inside):
                continue
            chosen.append(one)
            taken |= inside
            if len(chosen) == level.causes:
                return chosen
        return None

    def _counts(
        self, rate: Floats, ratio: Floats, windows: int, codes: Ints, chosen: list[tuple[tuple[int, int], ...]]
    ) -> tuple[Floats, Floats] | None:
        rng, level = self._rng, self._level
        leaves = len(rate)
        times = np.arange(windows + 1)
        traffic = np.exp(rng.normal(0, 0.004) * times + rng.normal(0, 0.02, windows + 1))
        drift = np.exp(rng.normal(0, 0.003) * times + np.cumsum(rng.normal(0, 0.01, windows + 1)))
        rates = rate * traffic[:, None] / level.clump
        if level.what == "shift":
            rates[-1] *= np.exp(rng.uniform(-0.3, 0.7))
            rates[-1, members(codes, chosen[0])] *= np.exp(rng.uniform(np.log(2.0), np.log(6.0)))
        total = rng.poisson(rates).astype(np.float64)
        ratios = ratio * drift[:, None] * np.exp(rng.normal(0, level.noise, (windows + 1, leaves)) - level.noise**2 / 2)
        if level.wander:
            for column in codes.T:
                ratios *= np.exp(rng.normal(0, level.wander, (windows + 1, int(column.max()) + 1)))[:, column]
        if level.spikes:
            ratios = np.where(rng.random(ratios.shape) < level.spikes, np.minimum(8.0 * ratios, 0.9), ratios)
        if level.what == "external":
            ratios[-1:] = self._degraded(ratios[-1:], np.ones(leaves))
        if level.what == "slices":
            for one in chosen:
                inside = members(codes, one)
                before = ratios[-1, inside].copy()
                strength = self._unevenness(codes, one)[inside]
                ratios[-1 - level.late :, inside] = self._degraded(ratios[-1 - level.late :, inside], strength)
                usual = float((rates[-1, inside] * before).sum())
                excess = float((rates[-1, inside] * ratios[-1, inside]).sum()) - usual
                if excess < 15.0 + 5.0 * np.sqrt(usual) or excess < usual:
                    return None
        bad = rng.binomial(total.astype(np.int64), np.clip(ratios, 0.0, 1.0)).astype(np.float64)
        return total * level.clump, bad * level.clump

    def _unevenness(self, codes: Ints, one: tuple[tuple[int, int], ...]) -> Floats:
        """(L,) factors of a cause's strength, by the values of a dimension that is not in its name."""
        others = [at for at in range(codes.shape[1]) if at not in {dimension for dimension, _ in one}]
        if not self._level.uneven or not others:
            return np.ones(len(codes))
        column = codes[:, self._rng.choice(others)]
        factors: Floats = np.exp(self._rng.normal(0, self._level.uneven, int(column.max()) + 1))[column]
        return factors

    def _degraded(self, ratios: Floats, strength: Floats) -> Floats:
        """(W, N) ratios once all leaves fail alike, uneven by a fifth: some sessions anew, or a factor on the ratio."""
        rng = self._rng
        uneven = strength * np.exp(rng.normal(0, 0.2, ratios.shape[1]))
        if rng.random() < 0.7:
            share = np.exp(rng.uniform(*np.log(self._level.strengths)))
            worse: Floats = ratios + (1.0 - ratios) * np.minimum(share * uneven, 1.0)
            return worse
        raised: Floats = np.minimum(
            ratios * np.maximum(np.exp(rng.uniform(np.log(3.0), np.log(10.0))) * uneven, 1.0), 0.98
        )
        return raised


def members(codes: Ints, one: tuple[tuple[int, int], ...]) -> NDArray[np.bool_]:
    """(L,) which leaves a slice of (dimension, code) pairs holds."""
    inside = np.ones(len(codes), dtype=np.bool_)
    for dimension, code in one:
        inside &= codes[:, dimension] == code
    return inside


def _shortest(codes: Ints, share: Floats, one: tuple[tuple[int, int], ...], inside: NDArray[np.bool_]) -> bool:
    """Whether at least a tenth of each broader slice lies outside, and no other value means nearly the same."""
    size = share[inside].sum()
    if len(one) > 1:
        broader = [members(codes, tuple(pair for pair in one if pair != left)) for left in one]
        if any(size > 0.9 * share[wide].sum() for wide in broader):
            return False
    for left in one:
        beside = members(codes, tuple(pair for pair in one if pair != left))
        for dimension in set(range(codes.shape[1])) - {at for at, _ in one}:
            values = np.bincount(codes[beside, dimension], share[beside])
            common = np.bincount(codes[inside, dimension], share[inside], len(values))
            if (common > 0.9 * (values + size - common)).any():
                return False
    return True
