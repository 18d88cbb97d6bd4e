"""How soon a drift of live traffic is noticed, and how often one is seen that is none: a simulated audience.

An audience of viewers with tastes of their own, some far more active than others, in a catalogue of titles with one to
three genres; pages are asked for with a daily cycle. The reference comes from a training log of the same audience, as
it does for a real model; what live viewers have watched before, and how long ago, is drawn from the reference itself.
Then nothing changes for days, or something does:

    taste        from one moment on, two thirds of all viewers watch the three genres that were watched least
    play rate    a third fewer pages lead to a play
    ranking      first plays are found where chance puts them, half of them beyond the first ten titles
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import chi2

from features.titles import Title
from serve.online.drift import DriftWatch
from serve.online.reference import GAP, HISTORY, TABLE, TITLES, Play, Reference, load_reference
from serve.online.tallies import BUCKET_MS
from training.recommend.reference import reference_of

GENRES: Final = 14
TITLES_SHOWN: Final = 400
VIEWERS: Final = 5_000
TRAINING_PLAYS: Final = 30_000
PLAY_RATE: Final = 0.3
HIT_RATE: Final = 0.6
STEADY_H: Final = 2
"""Hours before a change, and the longest that it is waited for, below."""
WITHIN_S: Final = 3_600
CHANGES: Final = ("taste", "play_rate", "ranking")

_BEGIN_MS: Final = 1_790_000_000_000 // 86_400_000 * 86_400_000
_DAY: Final = 86_400_000 // BUCKET_MS
_VISITS: Final = {"0": 0, "1-2": 1, "3-5": 3, "6-10": 6, "11-20": 11, "21-50": 21, "51-100": 51, "101+": 101}
_GAPS: Final = {
    "<5min": 10, "<1h": 400, "<6h": 4_000, "<1d": 30_000, "<3d": 90_000, "<7d": 300_000, "<30d": 700_000,
    "30d+": 3_000_000,
}  # fmt: skip

Progress = Callable[[str, int, int], None]
Integers = NDArray[np.int64]


class Audience:
    """Viewers, their tastes and their titles.

    Args:
        seed: of everything random.

    Attributes:
        reference: what a model would have been trained on.
    """

    def __init__(self, seed: int) -> None:
        self._rng = rng = np.random.default_rng(seed)
        popularity = 1 / np.arange(1, TITLES_SHOWN + 1)
        mixed = rng.permutation(TITLES_SHOWN)
        genre = rng.choice(GENRES, TITLES_SHOWN, p=_falling(GENRES, 0.7))
        self._titles = [
            Title(title_id=f"t{place}", name=f"Title {place}", genres=tuple(dict.fromkeys(
                f"g{one}" for one in (genre[place], *rng.integers(0, GENRES, int(rng.integers(0, 3))))
            )))
            for place in range(TITLES_SHOWN)
        ]  # fmt: skip
        self._pools = [np.flatnonzero(genre == one) for one in range(GENRES)]
        for one, pool in enumerate(self._pools):
            if not len(pool):
                self._pools[one] = np.array([one])
        self._weights = [popularity[mixed[pool]] / popularity[mixed[pool]].sum() for pool in self._pools]
        base = _falling(GENRES, 0.7)
        self._taste = rng.dirichlet(3 * GENRES * base / 4, VIEWERS).cumsum(axis=1)
        self._other = GENRES - 1 - np.arange(GENRES) % 3
        self._turned = rng.random(VIEWERS) < 2 / 3
        self._active = (rng.gamma(0.7, size=VIEWERS) + 0.01).cumsum()
        self._active /= self._active[-1]
        self.reference = self._train()
        self._visits = _draw(self.reference, HISTORY, _VISITS)
        self._gaps = _draw(self.reference, GAP, _GAPS)

    def plays(self, count: int, *, turned: bool = False) -> tuple[Integers, Integers]:
        """Who plays what: viewers and titles, (count,) each.

        Args:
            count: so many.
            turned: whether tastes have changed.
        """
        rng = self._rng
        viewers = np.searchsorted(self._active, rng.random(count))
        genres = (self._taste[viewers] < rng.random(count)[:, None]).sum(axis=1).clip(0, GENRES - 1)
        if turned:
            genres = np.where(self._turned[viewers], self._other[genres], genres)
        titles = [rng.choice(self._pools[one], p=self._weights[one]) for one in genres.tolist()]
        return viewers, np.array(titles, dtype=np.int64)

    def bucket(self, watch: DriftWatch, at: int, plays_per_s: float, change: str = "") -> None:
        """What happens in a bucket, and the watch's judgement of it.

        Args:
            watch: whose.
            at: the bucket.
            plays_per_s: on average over a day.
            change: one of CHANGES; empty: all is as it was.
        """
        rng = self._rng
        rate = 0.7 * PLAY_RATE if change == "play_rate" else PLAY_RATE
        pages = int(rng.poisson(plays_per_s / PLAY_RATE * BUCKET_MS / 1000 * _cycle(at * BUCKET_MS)))
        count = int(rng.binomial(pages, rate))
        watch.shown(pages)
        hits = rng.random(count) < (HIT_RATE * 0.8 if change == "ranking" else HIT_RATE)
        places = rng.integers(0, 10, count) if change == "ranking" else np.minimum(rng.geometric(0.35, count) - 1, 9)
        viewers, titles = self.plays(count, turned=change == "taste")
        visits, gaps = (values[rng.integers(0, len(values), count)] for values in (self._visits, self._gaps))
        columns = (viewers, titles, hits, places, visits, gaps)
        for viewer, title, hit, place, known, gap in zip(*(one.tolist() for one in columns), strict=True):
            watch.first_played(1 / math.log2(place + 2) if hit else 0.0)
            watch.played(at, Play(
                profile_id=f"p{viewer}", title_id=f"t{title}", ts=at * BUCKET_MS, visits=known, gap_s=gap, rank=place,
            ))  # fmt: skip
        watch.close(at)

    def _train(self) -> Reference:
        viewers, titles = self.plays(TRAINING_PLAYS)
        rng = self._rng
        days = np.sort(rng.random(TRAINING_PLAYS) * 14)
        moments = _BEGIN_MS - 15 * 86_400_000 + (days * 86_400_000).astype(np.int64)
        keep = rng.random(TRAINING_PLAYS) < np.array([_cycle(int(ts)) for ts in moments]) / 1.8
        events = pl.DataFrame({
            "event_id": [f"e{number}" for number in range(TRAINING_PLAYS)],
            "profile_id": [f"p{viewer}" for viewer in viewers.tolist()],
            "title_id": [f"t{title}" for title in titles.tolist()], "kind": "play", "ts": moments,
        }).filter(pl.Series(keep))  # fmt: skip
        tables = reference_of(events, self._titles)
        return load_reference(tables[TABLE], tables[TITLES])


def evaluate(
    *,
    seed: int = 0,
    days: float = 5,
    shifts: int = 20,
    plays_per_s: float = 3.0,
    changes: Sequence[str] = CHANGES,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Steady days, and changes of each kind.

    Args:
        seed: of the audiences.
        days: steady ones.
        shifts: of each kind.
        plays_per_s: on average.
        changes: which kinds.
        progress: told the part, how much of it is done, and of how much.

    Returns:
        `false_alarms_per_day` and `false_alarms_per_day_upper_95` (what it is at most), `false_alarms` by signal,
        `days`; `delays`: change -> `noticed` (share), `median_s`, `p90_s`, `by` (signal -> times that it came first).
    """
    tell = progress or (lambda *_: None)
    alarms: dict[str, int] = {}
    audience = Audience(seed)
    watch = DriftWatch("steady", audience.reference)
    known: set[str] = set()
    begin = _BEGIN_MS // BUCKET_MS
    for at in range(begin, begin + round(days * _DAY)):
        audience.bucket(watch, at, plays_per_s)
        drifting = drifting_of(watch, at)
        for name in drifting - known:
            alarms[name] = alarms.get(name, 0) + 1
        known = drifting
        if (at - begin) % 360 == 359:
            tell("steady days", at - begin + 1, round(days * _DAY))
    delays = {
        change: _changed(change, seed=seed, shifts=shifts, plays_per_s=plays_per_s, tell=tell) for change in changes
    }
    return {
        "seed": seed, "days": days, "plays_per_s": plays_per_s, "false_alarms": alarms,
        "false_alarms_per_day": sum(alarms.values()) / days,
        "false_alarms_per_day_upper_95": float(chi2.ppf(0.95, 2 * sum(alarms.values()) + 2)) / 2 / days,
        "shifts": shifts, "delays": delays,
    }  # fmt: skip


def drifting_of(watch: DriftWatch, at: int) -> set[str]:
    """Names of the signals that drift at the end of a bucket."""
    return {one["name"] for one in watch.told(at)["signals"] if one["since_ts"] is not None}


def _changed(change: str, *, seed: int, shifts: int, plays_per_s: float, tell: Progress) -> dict[str, Any]:
    seconds, first = [], dict[str, int]()
    for number in range(shifts):
        audience = Audience(1_000 * (seed + 1) + number)
        watch = DriftWatch("shift", audience.reference)
        begin = (_BEGIN_MS + (number * 7 % 24) * 3_600_000) // BUCKET_MS
        change_at = begin + STEADY_H * 3_600_000 // BUCKET_MS
        for at in range(begin, change_at):
            audience.bucket(watch, at, plays_per_s)
        before = drifting_of(watch, change_at - 1)
        for at in range(change_at, change_at + WITHIN_S * 1000 // BUCKET_MS):
            audience.bucket(watch, at, plays_per_s, change)
            if found := drifting_of(watch, at) - before:
                seconds.append((at - change_at + 1) * BUCKET_MS / 1000)
                for name in found:
                    first[name] = first.get(name, 0) + 1
                break
        tell(change, number + 1, shifts)
    return {
        "noticed": len(seconds) / shifts if shifts else 0.0,
        "median_s": float(np.median(seconds)) if seconds else None,
        "p90_s": float(np.quantile(seconds, 0.9)) if seconds else None,
        "by": first,
    }


def _cycle(ts: int) -> float:
    """Traffic at a moment, of what it is on average: 0.2 at its lowest, 1.8 in the evening."""
    return 1.0 + 0.8 * math.sin(2 * math.pi * ((ts % 86_400_000) / 86_400_000 - 0.55))


def _falling(count: int, power: float) -> NDArray[np.float64]:
    weights = np.arange(1, count + 1) ** -power
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _draw(reference: Reference, feature: str, values: Mapping[str, int]) -> Integers:
    """Values in the shares of the reference, to draw from."""
    shares = reference.shares.get(feature, {})
    drawn = [value for bin_, value in values.items() for _ in range(round(1_000 * shares.get(bin_, 0.0)))]
    return np.array(drawn or [0], dtype=np.int64)
