"""Whether live traffic drifts from what the champion learned: shares of bins against its reference, and falling means.

Shares: the population stability index of the newest plays against the reference, sum of (p - q) ln(p / q) over bins,
less what so few plays and bins make of it by chance: with n plays and B bins the index of the same distribution is
(B - 1) / n on average (it is about chi-squared / n; Yurdakul and Naranjo, "Statistical properties of the population
stability index", Journal of Risk Model Validation 14, 2020). The usual bounds: 0.1 is a warning, 0.25 a drift.

Falling means: ADWIN over the share of pages that are played and over the first play's NDCG@10, a number for each PAGES
pages and each FIRSTS first plays.

One play of a profile a minute counts: a viewer who tries ten titles is not ten. The score drift of versions, which
needs no reference, is the Watchtower's role `vitals`.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, Self

from mmh3 import hash as hashed

from serve.online.adaptive import AdaptiveMean
from serve.online.board import DRIFTING, PLAY_RATE, QUALITY, STEADY
from serve.online.reference import FEATURES, HOUR, Play, Reference
from serve.online.tallies import BUCKET_MS

WARN: Final = 0.1
DRIFT: Final = 0.25

ENOUGH: Final = 500
"""Plays that a judgement takes where there are so many: the newest ones."""
LEAST: Final = 200
"""Plays without which nothing is judged."""
PAGES: Final = 100
FIRSTS: Final = 30
SHORTEST_S: Final = 60
LONGEST_S: Final = 3_600

_SHORTEST: Final = SHORTEST_S * 1000 // BUCKET_MS
_LONGEST: Final = LONGEST_S * 1000 // BUCKET_MS
_MINUTE: Final = 60_000 // BUCKET_MS
_HOUR: Final = 3_600_000 // BUCKET_MS
_DAY_H: Final = 24
_MOST_COUNTED: Final = 20_000
_SMOOTHED: Final = 0.5
_LEAST_SHARE: Final = 0.005
"""Of a bin of the reference: fewer plays than that in a bin make noise of the index."""

Shares = Mapping[str, float]


def stability_index(counts: Mapping[str, float], reference: Shares) -> float:
    """The population stability index of counts against shares, less what chance makes of it; 0 or more.

    Args:
        counts: bin -> plays, of at least one; bins that the reference lacks count as rare ones.
        reference: bin -> share.
    """
    bins = sorted({*reference, *counts})
    expected = [max(reference.get(one, 0.0), _LEAST_SHARE) for one in bins]
    whole = sum(expected)
    total = sum(counts.values()) + _SMOOTHED * len(bins)
    index = 0.0
    for one, share in zip(bins, expected, strict=True):
        q = share / whole
        p = (counts.get(one, 0.0) + _SMOOTHED) / total
        index += (p - q) * math.log(p / q)
    return max(0.0, index - (len(bins) - 1) / max(sum(counts.values()), 1.0))


class DriftWatch:
    """The drift of one model's live traffic from what its champion learned.

    Args:
        version: the champion.
        reference: what it learned from; None: only means are watched.

    Attributes:
        version: as given.
        reference: likewise; may be given later.
    """

    def __init__(self, version: str, reference: Reference | None) -> None:
        self.version = version
        self.reference = reference
        self._buckets: dict[int, dict[str, Counter[str]]] = {}
        self._hours: dict[int, int] = {}  # hour since the epoch -> plays
        self._minute = 0
        self._counted: set[int] = set()  # profiles of that minute
        self._since: dict[str, int] = {}
        self._judged: dict[str, bool] = {}  # feature -> whether its first judgement was a drift
        self._values: dict[str, tuple[float, float]] = {}  # feature -> index, plays
        self._means = {PLAY_RATE: AdaptiveMean(), QUALITY: AdaptiveMean()}
        self._pages, self._played, self._firsts, self._gains = 0.0, 0.0, 0.0, 0.0  # since the last numbers

    def shown(self, pages: int = 1) -> None:
        """The champion made pages in the bucket."""
        self._pages += pages

    def first_played(self, gain: float) -> None:
        """A page of the champion's was played for the first time.

        Args:
            gain: NDCG@10 of the play.
        """
        self._played += 1
        self._firsts += 1
        self._gains += gain

    def played(self, at: int, play: Play) -> None:
        """A title of one of its pages was played.

        Args:
            at: the bucket, counted in BUCKET_MS.
            play: the play.
        """
        if self.reference is None:
            return
        if at // _MINUTE != self._minute:
            self._minute, self._counted = at // _MINUTE, set()
        profile = hashed(play.profile_id, signed=False)
        if profile in self._counted or len(self._counted) >= _MOST_COUNTED:
            return
        self._counted.add(profile)
        counts = self._buckets.setdefault(at, {})
        for feature, bin_, weight in self.reference.bins(play):
            if feature in self.reference.shares and feature != HOUR:
                counts.setdefault(feature, Counter())[bin_] += weight  # type: ignore[assignment]  # genres: parts
        self._hours[at // _HOUR] = self._hours.get(at // _HOUR, 0) + 1

    def close(self, at: int) -> None:
        """Judge at the end of a bucket.

        Args:
            at: the bucket.
        """
        end_ms = (at + 1) * BUCKET_MS
        if self._pages >= PAGES:
            self._means[PLAY_RATE].see(min(self._played / self._pages, 1.0), end_ms)
            self._pages = self._played = 0.0
        if self._firsts >= FIRSTS:
            self._means[QUALITY].see(self._gains / self._firsts, end_ms)
            self._firsts = self._gains = 0.0
        for old in [one for one in self._buckets if one <= at - _LONGEST]:
            del self._buckets[old]
        for old in [one for one in self._hours if one <= at // _HOUR - _DAY_H]:
            del self._hours[old]
        if self.reference is None:
            return
        for feature, shares in self.reference.shares.items():
            self._judge(feature, self._recent(feature, at), shares, end_ms)

    def _recent(self, feature: str, at: int) -> Mapping[str, float]:
        """The newest plays by bin: ENOUGH, of a minute at least and an hour at most; of hours, those of a day."""
        if feature == HOUR:
            found: Counter[str] = Counter()
            if len(self._hours) == _DAY_H:
                for hour, count in self._hours.items():
                    begin = hour % _DAY_H // 3 * 3
                    found[f"{begin:02}-{begin + 3:02}"] += count
            return found
        recent: Counter[str] = Counter()
        total = 0.0
        for one in range(at, at - _LONGEST, -1):
            counts = self._buckets.get(one, {}).get(feature)
            if counts:
                recent.update(counts)
                total += sum(counts.values())
            if total >= ENOUGH and at - one + 1 >= _SHORTEST:
                break
        return recent

    def _judge(self, feature: str, counts: Mapping[str, float], shares: Shares, end_ms: int) -> None:
        plays = sum(counts.values())
        if plays < LEAST:
            self._values.pop(feature, None)
            return
        index = stability_index(counts, shares)
        self._values[feature] = (index, plays)
        self._judged.setdefault(feature, index >= DRIFT)
        if index >= DRIFT:
            self._since.setdefault(feature, end_ms)
        elif index < WARN:
            self._since.pop(feature, None)
            self._judged[feature] = False

    def told(self, at: int) -> dict[str, Any]:
        """What is known at the end of a bucket, JSON-able.

        Returns:
            `ts`, `version`, `reference` (whether there is one), `status`, `since_ts` (of the oldest signal that drifts;
            null while steady) and `signals`: `name`, `kind` (`psi` or `adwin`), `value` (the index; the mean since the
            last change), `bound` (a drift at or above it; the mean before a fall), `state` (`waiting` for plays,
            `steady`, `warning`, `drifting`), `since_ts`, `n` (plays; numbers), and `from_start`: it was a drift from
            the first judgement on, so that data and traffic never were alike, and it is no change.
        """
        signals = []
        for feature in FEATURES:
            if self.reference is None or feature not in self.reference.shares:
                continue
            index, plays = self._values.get(feature, (None, 0.0))
            since = self._since.get(feature)
            state = "waiting" if index is None else "warning" if index >= WARN else STEADY
            state = DRIFTING if since is not None else state
            signals.append({
                "name": feature, "kind": "psi", "value": index, "bound": DRIFT, "state": state, "since_ts": since,
                "n": round(plays), "from_start": since is not None and self._judged.get(feature, False),
            })  # fmt: skip
        for name, series in self._means.items():
            state = DRIFTING if series.since_ts is not None else STEADY if series.count else "waiting"
            signals.append({
                "name": name, "kind": "adwin", "value": series.mean, "bound": series.before, "state": state,
                "since_ts": series.since_ts, "n": series.count, "from_start": False,
            })  # fmt: skip
        since_ts = min((one["since_ts"] for one in signals if one["since_ts"] is not None), default=None)
        return {
            "ts": (at + 1) * BUCKET_MS, "version": self.version, "reference": self.reference is not None,
            "status": STEADY if since_ts is None else DRIFTING, "since_ts": since_ts, "signals": signals,
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able; the reference is the artifact's."""
        return {
            "version": self.version, "buckets": [[at, counts] for at, counts in self._buckets.items()],
            "hours": list(self._hours.items()), "minute": self._minute, "counted": sorted(self._counted),
            "since": self._since, "judged": self._judged, "values": self._values,
            "sums": [self._pages, self._played, self._firsts, self._gains],
            "means": {name: series.state() for name, series in self._means.items()},
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any], reference: Reference | None) -> Self:
        """The reverse of `state`."""
        watch = cls(state["version"], reference)
        watch._buckets = {
            int(at): {feature: Counter(bins) for feature, bins in counts.items()} for at, counts in state["buckets"]
        }
        watch._hours = {int(hour): int(count) for hour, count in state["hours"]}
        watch._minute, watch._counted = int(state["minute"]), set(state["counted"])
        watch._since, watch._judged = dict(state["since"]), dict(state["judged"])
        watch._values = {feature: (index, plays) for feature, (index, plays) in state["values"].items()}
        watch._pages, watch._played, watch._firsts, watch._gains = map(float, state["sums"])
        watch._means = {name: AdaptiveMean.from_state(state["means"][name]) for name in watch._means}
        return watch
