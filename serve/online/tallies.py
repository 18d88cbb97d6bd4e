"""What pages of one version led to, counted in buckets of 10 s, and the figures of sliding windows over them.

What happens is counted when it happens: a play in the window of the play, whenever its page was shown. So a window's
rates are of what happened in it, right in a steady state at once, and late by the way from a page to its play where
traffic or a version's share changes.

Intervals are of 95 %: Wilson's for shares (E. B. Wilson, JASA 22, 1927), normal ones for means. They take pages as
independent, which those of one profile are not quite.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import numpy as np

from serve.histograms import Histogram, dump, load, merge, quantile
from serve.online.reference import Grounds

BUCKET_MS: Final = 10_000
WINDOWS_S: Final = (300, 3_600)
"""Windows that figures are of; the first is the one that is shown first."""

RANKS: Final = 20
"""Places in a row whose rates are told; plays further right count as plays only."""
CUTOFF: Final = 10
"""Titles of a page, as it is read, in which the first play is looked for."""
CHANCE_BINS: Final = 10
MOST_TITLES: Final = 100_000
"""Titles whose last showing is remembered, a version; coverage counts no more than these."""

_KEPT: Final = WINDOWS_S[-1] * 1000 // BUCKET_MS
_Z: Final = 1.959964

NAMES: Final = (
    "pages", "played", "plays", "finished", "thumbs_up", "thumbs_down", "degraded", "failed", "ranked", "gain",
    "gain_squared", "hits", "bits", "titles",
)  # fmt: skip
"""What is counted: pages; those with a play; plays, finishes and thumbs of pages; pages that are degraded, or failed;
first plays whose page is known, and the sums of their NDCG@10, its square and hits; bits of self-information of shown
titles, and so many titles."""

_AT: Final = {name: place for place, name in enumerate(NAMES)}
_SLOTS: Final = len(NAMES)
_RANK_PLAYS: Final = _SLOTS + RANKS
_CHANCES: Final = _RANK_PLAYS + RANKS
"""Three numbers a bin: titles, sum of their chances, plays of them."""
WIDTH: Final = _CHANCES + 3 * CHANCE_BINS


class Bucket:
    """What happened in one.

    Attributes:
        numbers: as NAMES has them, then slots by rank, plays by rank and chances, (WIDTH,).
        seconds: of the ranker.
    """

    __slots__ = ("numbers", "seconds")

    def __init__(self, numbers: list[float] | None = None, seconds: Histogram | None = None) -> None:
        self.numbers = numbers or [0.0] * WIDTH
        self.seconds = {} if seconds is None else seconds

    def add(self, name: str, value: float = 1.0) -> None:
        """Count."""
        self.numbers[_AT[name]] += value

    def slot(self, rank: int, count: int = 1) -> None:
        """Titles were shown at a rank."""
        if rank < RANKS:
            self.numbers[_SLOTS + rank] += count

    def rank_play(self, rank: int) -> None:
        """A title at a rank was played."""
        if 0 <= rank < RANKS:
            self.numbers[_RANK_PLAYS + rank] += 1

    def chance(self, chance: float) -> None:
        """A title was shown that is played with this chance, as the model has it."""
        place = _chance_place(chance)
        self.numbers[place] += 1
        self.numbers[place + 1] += chance

    def chance_play(self, chance: float) -> None:
        """It was played."""
        self.numbers[_chance_place(chance) + 2] += 1


def _chance_place(chance: float) -> int:
    return _CHANCES + 3 * min(max(int(chance * CHANCE_BINS), 0), CHANCE_BINS - 1)


class VersionTally:
    """What pages of one version led to, in the last hour."""

    def __init__(self) -> None:
        self._buckets: dict[int, Bucket] = {}
        self._shown: dict[str, int] = {}  # title -> last bucket that it was shown in

    def bucket(self, at: int) -> Bucket:
        """The bucket that began at `at` * BUCKET_MS."""
        found = self._buckets.get(at)
        if found is None:
            found = self._buckets[at] = Bucket()
        return found

    def show(self, at: int, title_ids: Sequence[str]) -> None:
        """Titles were shown in a bucket."""
        shown = self._shown
        for title_id in title_ids:
            if title_id in shown or len(shown) < MOST_TITLES:
                shown[title_id] = at

    def forget(self, now: int) -> None:
        """Drop what is older than the longest window, at the end of a bucket."""
        for at in [at for at in self._buckets if at <= now - _KEPT]:
            del self._buckets[at]
        if now % 30 == 0:
            self._shown = {title: at for title, at in self._shown.items() if at > now - _KEPT}

    @property
    def last(self) -> int:
        """The last bucket with anything in it; -1 without any."""
        return max(self._buckets, default=-1)

    def measure(self, now: int, window_s: int, grounds: Grounds) -> dict[str, Any]:
        """Figures of the window that ends with a bucket.

        Args:
            now: the bucket.
            window_s: one of WINDOWS_S.
            grounds: of the version.

        Returns:
            `pages`, `plays`, `finished`, `thumbs_up`, `thumbs_down` (counts); shares with `value`, `low`, `high` and
            `n` each: `play_rate` (pages with a play), `finish_rate` (of plays), `thumbs_up_rate` and `thumbs_down_rate`
            (of plays), `hr@10`, `degraded_share`, `failed_share`; `ndcg@10` (a mean, likewise, of the first play of
            each page that got one; 0 where it is not among the first ten titles that the model ranked); `ctr_by_rank`,
            a list of them with `rank`; `coverage` (share of the version's titles that were shown); `novelty_bits`
            (mean self-information of shown titles); `ranker_p99_s`; `calibration` (`predicted`, `observed`, `ratio` of
            observed to predicted, `error`: mean distance of both over bins of chances, weighed by titles, `n`).
            None where there is nothing to tell from.
        """
        first = now - window_s * 1000 // BUCKET_MS
        part = [bucket for at, bucket in self._buckets.items() if first < at <= now]
        sums = np.sum([bucket.numbers for bucket in part], axis=0).tolist() if part else [0.0] * WIDTH
        seconds: Histogram = {}
        for bucket in part:
            merge(seconds, bucket.seconds)
        value = {name: sums[place] for name, place in _AT.items()}
        shown = sum(first < at <= now for at in self._shown.values())
        figures: dict[str, Any] = {
            name: round(value[name]) for name in ("pages", "plays", "finished", "thumbs_up", "thumbs_down")
        }
        ranked, plays = value["ranked"], value["plays"]
        return figures | {
            "play_rate": share(value["played"], value["pages"]),
            "finish_rate": share(value["finished"], plays),
            "thumbs_up_rate": share(value["thumbs_up"], plays),
            "thumbs_down_rate": share(value["thumbs_down"], plays),
            "ctr_by_rank": [
                {"rank": rank, **found}
                for rank in range(RANKS)
                if (found := share(sums[_RANK_PLAYS + rank], sums[_SLOTS + rank])) is not None
            ],
            "ndcg@10": _mean(value["gain"], value["gain_squared"], ranked),
            "hr@10": share(value["hits"], ranked),
            "degraded_share": share(value["degraded"], value["pages"]),
            "failed_share": share(value["failed"], value["pages"]),
            "coverage": min(1.0, shown / grounds.titles) if grounds.titles and part else None,
            "novelty_bits": value["bits"] / value["titles"] if value["titles"] else None,
            "ranker_p99_s": quantile(seconds, 0.99) if seconds else None,
            "calibration": _calibration(sums[_CHANCES:]),
        }

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able."""
        return {
            "buckets": [[at, bucket.numbers, dump(bucket.seconds)] for at, bucket in self._buckets.items()],
            "shown": self._shown,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The reverse of `state`.

        Raises:
            ValueError: it is something else.
        """
        tally = cls()
        for at, numbers, seconds in state["buckets"]:
            if len(numbers) != WIDTH:
                raise ValueError(f"a bucket of {len(numbers)} numbers, expected {WIDTH}")
            tally._buckets[int(at)] = Bucket([float(number) for number in numbers], load(seconds))
        tally._shown = {str(title): int(at) for title, at in state["shown"].items()}
        return tally


def share(count: float, total: float) -> dict[str, float] | None:
    """A share with its interval of 95 %; None of nothing. More than all counts as all: see the module."""
    if total <= 0:
        return None
    rate = min(count / total, 1.0)
    spread = _Z * math.sqrt(rate * (1 - rate) / total + _Z**2 / (4 * total**2))
    middle, norm = rate + _Z**2 / (2 * total), 1 + _Z**2 / total
    low, high = max(0.0, (middle - spread) / norm), min(1.0, (middle + spread) / norm)
    return {"value": rate, "low": min(low, rate), "high": max(high, rate), "n": round(total)}


def _mean(total: float, squared: float, count: float) -> dict[str, float] | None:
    if count <= 0:
        return None
    mean = total / count
    half = _Z * math.sqrt(max(squared / count - mean**2, 0.0) / count)
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "n": round(count)}


def _calibration(sums: Sequence[float]) -> dict[str, float] | None:
    bins = [(sums[place], sums[place + 1], sums[place + 2]) for place in range(0, len(sums), 3)]
    count = sum(one[0] for one in bins)
    if count <= 0:
        return None
    predicted, observed = (sum(one[place] for one in bins) / count for place in (1, 2))
    return {
        "predicted": predicted,
        "observed": observed,
        "ratio": observed / predicted if predicted > 0 else 0.0,
        "error": sum(abs(chances - plays) for _, chances, plays in bins) / count,
        "n": round(count),
    }
