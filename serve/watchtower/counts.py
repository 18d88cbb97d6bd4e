"""Detectors for counts by window: bad ones out of a total, and how many there were at all; calibrated when few.

Scores are 1 - p, where p is the probability of a count at least so extreme given the past: on data that do not change,
no more than a share a of the windows score 1 - a or more, however small the counts are. Sums over 1, 3, 12 and 36
windows are judged together, so a large jump is seen in its first window and a small one once it has added up.

A window that is called anomalous isn't learned. Windows that stay so for `adopt_after` windows are the new normal: the
baseline starts anew from them, so a shift is one episode of bounded length and the detector never freezes.
"""

import math
from collections.abc import Mapping
from functools import partial
from numbers import Real
from typing import Any, Final

from river.base import AnomalyDetector

from serve.errors import InvalidInput
from serve.watchtower.likelihoods import beta_binomial_tail, negative_binomial_tail
from serve.watchtower.rates import (
    DIRECTIONS,
    LEAST_SIZE,
    SPANS,
    TRIED_SPANS,
    Recent,
    Shift,
    Spread,
    combined,
    sided,
    spreads,
)
from serve.watchtower.seasonality import BIN_S, TRIES, Profile, Skill
from serve.watchtower.series import seconds
from serve.watchtower.state import checked, stamped

RATIO: Final = "ratio"
COUNT: Final = "count"
VERSION: Final = 1
QUICKER: Final = 6.0
"""How much sooner the quick level forgets than the slow one; the one that predicts better is used."""


class RatioDetector(AnomalyDetector):
    """Is the share of bad ones in this window's total beyond what the past makes likely?

    A beta-binomial: the share's mean is learned (a Beta posterior that forgets), and so is how much more it varies from
    window to window than chance. It takes dicts of two whole numbers; a window that lacks either, or whose total is 0,
    scores 0 and is not learned. More than the total is taken as the total.

    Args:
        bad: key of the number of bad ones.
        total: key of the number of all.
        direction: what is anomalous: more, fewer, or both.
        half_life: windows after which one counts half in the baseline.
        warm_up: windows that are learned before any scores above 0.
        adopt_after: anomalous windows that make a new normal.
        alarm: windows less probable than this are not learned.

    Raises:
        InvalidInput: an unknown direction.
    """

    def __init__(
        self, bad: str = "bad", total: str = "total", direction: str = "more", half_life: int = 360,
        warm_up: int = 90, adopt_after: int = 180, alarm: float = 1e-4,
    ) -> None:  # fmt: skip
        _check(direction)
        self.bad = bad
        self.total = total
        self.direction = direction
        self.half_life = half_life
        self.warm_up = warm_up
        self.adopt_after = adopt_after
        self.alarm = alarm
        self._keep = 2.0 ** (-1.0 / half_life)
        self._count = 0
        self._past = (0.0, 0.0)
        self._recent = Recent(2)
        self._shift = Shift(2, adopt_after)
        self._spreads = spreads(half_life, LEAST_SIZE)
        self._asked: tuple[int, tuple[float, float], float] | None = None  # the windows learned, a row, its probability

    @property
    def share(self) -> float:
        """The share of bad ones that is usual now."""
        return (self._past[0] + 0.5) / (self._past[1] + 1.0)

    def p_value(self, x: Mapping[Any, Any]) -> float:
        """Probability of a share at least this extreme, in (0, 1]; 1 for windows that can't be judged."""
        row = self._row(x)
        return 1.0 if row is None else self._probability(row)

    def score_one(self, x: Mapping[Any, Any]) -> float:
        """1 - `p_value`: in [0, 1], larger is more anomalous."""
        return 1.0 - self.p_value(x)

    def learn_one(self, x: Mapping[Any, Any]) -> None:
        """Take a window into the past."""
        row = self._row(x)
        if row is None:
            return
        anomalous = self._probability(row) < self.alarm
        self._count += 1
        if self._past[1] > 0.0:
            self._learn_spread(row, anomalous=anomalous)
        left = self._recent.push(row, anomalous=anomalous)
        if left is None:
            return
        adopted = self._shift.learn(left[0], anomalous=left[1])
        if adopted is not None:
            self._past = (adopted[0], adopted[1])
            self._recent.clear()
        elif not left[1]:
            self._past = (self._past[0] * self._keep + left[0][0], self._past[1] * self._keep + left[0][1])

    def _row(self, x: Mapping[Any, Any]) -> tuple[float, float] | None:
        bad, total = _amount(x.get(self.bad)), _amount(x.get(self.total))
        return None if bad is None or not total else (min(bad, total), total)

    def _learn_spread(self, row: tuple[float, float], *, anomalous: bool) -> None:
        share = self.share
        for sums, spread in zip(self._recent.sums(row), self._spreads, strict=True):
            if sums is not None:
                bad, total = sums
                plain = total * share * (1.0 - share)
                trusted = self._count > self.warm_up
                spread.learn((bad - total * share) ** 2 / plain, total - 1.0, anomalous=anomalous, trusted=trusted)

    def _probability(self, row: tuple[float, float]) -> float:
        if self._asked is None or self._asked[:2] != (self._count, row):
            self._asked = (self._count, row, self._judged(row))
        return self._asked[2]

    def _judged(self, row: tuple[float, float]) -> float:
        if self._count < self.warm_up or self._past[1] <= 0.0:
            return 1.0
        share = self.share
        tails: list[float | None] = []
        for span, sums, spread in zip(SPANS, self._recent.sums(row), self._spreads, strict=True):
            if sums is None or spread.count < TRIED_SPANS * span:
                tails.append(None)
                continue
            bad, total = sums
            concentration = 1.0 / (1.0 / (self._past[1] + 2.0) + min(spread.value, 0.99)) - 1.0
            tail = partial(beta_binomial_tail, bad, total, share, concentration)
            tails.append(sided(tail, self.direction))
        return combined(tails)

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned. A detector restored from it scores bit for bit the same."""
        return stamped(RATIO, VERSION, {
            "settings": self._get_params(), "count": self._count, "past": list(self._past),
            "recent": self._recent.state(), "shift": self._shift.state(),
            "spreads": [spread.state() for spread in self._spreads],
        })  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "RatioDetector":
        """The detector that wrote this checkpoint.

        Raises:
            InvalidInput: another detector or version wrote it.
        """
        state = checked(state, RATIO, VERSION)
        detector = cls(**state["settings"])
        detector._count = state["count"]
        detector._past = (state["past"][0], state["past"][1])
        detector._recent = Recent.from_state(2, state["recent"])
        detector._shift = Shift.from_state(state["shift"])
        detector._spreads = [Spread.from_state(spread) for spread in state["spreads"]]
        return detector


class CountDetector(AnomalyDetector):
    """Is the number in this window beyond, or short of, what the past makes likely?

    A negative binomial whose mean is a slow level, a quick one, or the slow one times what the time of day or week
    usually brings, whichever has predicted best; how much more it varies than chance is learned. Zeros count: feed each
    window, the empty ones too, and silence is detected. Dicts come in; one without a count scores 0, unlearned.

    Args:
        count: key of the number.
        timestamp: key of the window's time: seconds since 1970, a datetime or ISO 8601; without it, no seasons.
        direction: what is anomalous: more, fewer (silence too), or both.
        half_life: windows after which one counts half in the level.
        warm_up: windows that are learned before any scores above 0.
        adopt_after: anomalous windows that make a new normal.
        alarm: windows less probable than this are not learned.

    Raises:
        InvalidInput: an unknown direction.
    """

    def __init__(
        self, count: str = "count", timestamp: str = "timestamp", direction: str = "both", half_life: int = 360,
        warm_up: int = 90, adopt_after: int = 180, alarm: float = 1e-4,
    ) -> None:  # fmt: skip
        _check(direction)
        self.count = count
        self.timestamp = timestamp
        self.direction = direction
        self.half_life = half_life
        self.warm_up = warm_up
        self.adopt_after = adopt_after
        self.alarm = alarm
        self._count = 0
        self._profiles = [Profile(period_s, bin_s) for period_s, bin_s in BIN_S.items()]
        half_lives = [half_life, half_life / QUICKER, *(half_life for _ in self._profiles)]
        self._keeps = [2.0 ** (-1.0 / one) for one in half_lives]
        ways = len(half_lives)
        self._past = [(0.0, 0.0)] * ways  # by way to predict: counts, and what that way said without the level
        self._skills = [Skill() for _ in range(ways)]
        self._recent = Recent(2)  # counts and expected counts
        self._waiting = Recent(2 + ways)  # counts, time and each way's say: what the baseline will learn
        self._shift = Shift(1 + 2 * ways, adopt_after)
        self._spreads = spreads(half_life)
        self._asked: tuple[int, float, float, float] | None = None  # windows learned, count, expected, probability

    @property
    def is_warm(self) -> bool:
        """Whether enough was learned to judge anything."""
        return self._count >= self.warm_up and self._past[0][1] > 0.0

    def expected(self, x: Mapping[Any, Any]) -> float:
        """The count that is usual at this window's time."""
        return self._expected(self._says(seconds(x.get(self.timestamp))))[0]

    def p_value(self, x: Mapping[Any, Any]) -> float:
        """Probability of a count at least this extreme, in (0, 1]; 1 for windows that can't be judged.

        Raises:
            ValueError: the timestamp is text that is no ISO 8601.
        """
        count = _amount(x.get(self.count))
        if count is None:
            return 1.0
        return self._probability(count, *self._expected(self._says(seconds(x.get(self.timestamp)))))

    def score_one(self, x: Mapping[Any, Any]) -> float:
        """1 - `p_value`: in [0, 1], larger is more anomalous."""
        return 1.0 - self.p_value(x)

    def learn_one(self, x: Mapping[Any, Any]) -> None:
        """Take a window into the past.

        Raises:
            ValueError: the timestamp is text that is no ISO 8601.
        """
        count = _amount(x.get(self.count))
        if count is None:
            return
        ts_s = seconds(x.get(self.timestamp))
        says = self._says(ts_s)
        expected, uncertainty = self._expected(says)
        anomalous = self._probability(count, expected, uncertainty) < self.alarm
        self._count += 1
        if self._past[0][1] > 0.0:
            self._learn_fit(count, expected, says, anomalous=anomalous)
        self._recent.push((count, expected), anomalous=anomalous)
        row = (count, math.nan if ts_s is None else ts_s, *(math.nan if say is None else say for say in says))
        left = self._waiting.push(row, anomalous=anomalous)
        if left is not None:
            self._absorb(*left)

    def _says(self, ts_s: float | None) -> list[float | None]:
        """What each way predicts before its level is applied: 1 for a level alone; None where it knows nothing."""
        usual = [None if ts_s is None else profile.usual(ts_s) for profile in self._profiles]
        return [1.0, 1.0, *usual]

    def _scaled(self, way: int, say: float) -> float:
        counted, said = self._past[way]
        return say * (counted + 0.5) / (said + 0.5)

    def _expected(self, says: list[float | None]) -> tuple[float, float]:
        """Expected count by the way that has erred least, and its squared relative uncertainty."""
        best = 0
        for way, say in enumerate(says):
            skill = self._skills[way]
            if way and say is not None and skill.count >= TRIES and skill.error < self._skills[best].error:
                best = way
        say = says[best]
        assert say is not None
        return max(self._scaled(best, say), 1e-6), 1.0 / (self._past[best][0] + 1.0)

    def _probability(self, count: float, expected: float, uncertainty: float) -> float:
        asked = (self._count, count, expected)
        if self._asked is None or self._asked[:3] != asked:
            self._asked = (*asked, self._judged(count, expected, uncertainty))
        return self._asked[3]

    def _judged(self, count: float, expected: float, uncertainty: float) -> float:
        if not self.is_warm:
            return 1.0
        tails: list[float | None] = []
        for span, sums, spread in zip(SPANS, self._recent.sums((count, expected)), self._spreads, strict=True):
            if sums is None or spread.count < TRIED_SPANS * span:
                tails.append(None)
                continue
            total, mean = sums
            tail = partial(negative_binomial_tail, total, mean, spread.value + uncertainty)
            tails.append(sided(tail, self.direction))
        return combined(tails)

    def _learn_fit(self, count: float, expected: float, says: list[float | None], *, anomalous: bool) -> None:
        """Take in how well each way, and the one in use, predicted."""
        for way, say in enumerate(says):
            if say is not None and not anomalous:
                self._skills[way].learn(count - self._scaled(way, say))
        for sums, spread in zip(self._recent.sums((count, expected)), self._spreads, strict=True):
            if sums is not None:
                total, mean = sums
                trusted = self._count > self.warm_up
                spread.learn((total - mean) ** 2 / mean, mean, anomalous=anomalous, trusted=trusted)

    def _absorb(self, row: tuple[float, ...], anomalous: bool) -> None:  # noqa: FBT001  (a pair, as it comes)
        """Let the baseline learn a window, or the shift that it is part of."""
        count, ts_s, *says = row
        pairs = [(0.0, 0.0) if math.isnan(say) else (count, say) for say in says]
        adopted = self._shift.learn((1.0, *(number for pair in pairs for number in pair)), anomalous=anomalous)
        if adopted is not None:
            sums = adopted[1:]
            self._past = [(sums[2 * way], sums[2 * way + 1]) for way in range(len(self._past))]
            self._recent.clear()
        elif not anomalous:
            self._past = [
                past if math.isnan(say) else (past[0] * keep + pair[0], past[1] * keep + pair[1])
                for past, pair, say, keep in zip(self._past, pairs, says, self._keeps, strict=True)
            ]
            if not math.isnan(ts_s):
                for profile in self._profiles:
                    profile.learn(ts_s, count)

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned. A detector restored from it scores bit for bit the same."""
        return stamped(COUNT, VERSION, {
            "settings": self._get_params(), "count": self._count, "past": [list(pair) for pair in self._past],
            "profiles": [profile.state() for profile in self._profiles],
            "skills": [[skill.error, skill.count] for skill in self._skills], "recent": self._recent.state(),
            "waiting": self._waiting.state(), "shift": self._shift.state(),
            "spreads": [spread.state() for spread in self._spreads],
        })  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "CountDetector":
        """The detector that wrote this checkpoint.

        Raises:
            InvalidInput: another detector or version wrote it.
        """
        state = checked(state, COUNT, VERSION)
        detector = cls(**state["settings"])
        detector._count = state["count"]
        detector._past = [(pair[0], pair[1]) for pair in state["past"]]
        detector._profiles = [Profile.from_state(profile) for profile in state["profiles"]]
        detector._skills = [Skill(error=error, count=count) for error, count in state["skills"]]
        detector._recent = Recent.from_state(2, state["recent"])
        detector._waiting = Recent.from_state(2 + len(detector._past), state["waiting"])
        detector._shift = Shift.from_state(state["shift"])
        detector._spreads = [Spread.from_state(spread) for spread in state["spreads"]]
        return detector


def _amount(value: Any) -> float | None:
    """A count as a number; None for what is none."""
    number = float(value) if isinstance(value, Real) else math.nan
    return number if math.isfinite(number) and number >= 0 else None


def _check(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise InvalidInput(
            field="direction", got=direction, expected=" or ".join(DIRECTIONS), next_step="Name one of them."
        )
