"""What a time of the day or week usually brings. The period is learned: the one that predicts best is used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

DAY_S: Final = 86400.0
WEEK_S: Final = 7 * DAY_S
BIN_S: Final = {DAY_S: 900.0, WEEK_S: 3600.0}
"""Periods that are tried, and how finely each is kept."""
LATEST: Final = 0.3
"""Weight of the latest visit to a time of the period: a few visits replace the past."""
LEVEL_MEMORY: Final = 200
SKILL_MEMORY: Final = 2000
TRIES: Final = 50
"""Values that a period must have predicted before it is relied on."""


class Profile:
    """The mean value at each time of a period.

    Args:
        period_s: length of the period, s.
        bin_s: how finely time is told apart, s.
    """

    def __init__(self, period_s: float, bin_s: float) -> None:
        self.period_s = period_s
        self.bin_s = bin_s
        self._means: dict[int, float] = {}
        self._visits: dict[int, int] = {}
        self._now: int | None = None  # the bin being filled, counted from 1970
        self._sum = 0.0
        self._count = 0

    def usual(self, ts_s: float) -> float | None:
        """The mean at this time of earlier periods; None if it was never seen."""
        return self._means.get(self._phase(int(ts_s // self.bin_s)))

    def learn(self, ts_s: float, value: float) -> None:
        """Take a value in; it counts once its bin is over."""
        now = int(ts_s // self.bin_s)
        if now != self._now:
            self._close()
            self._now = now
        self._sum += value
        self._count += 1

    def _phase(self, bin_: int) -> int:
        return int(bin_ % round(self.period_s / self.bin_s))

    def _close(self) -> None:
        if self._now is None or not self._count:
            return
        phase = self._phase(self._now)
        mean = self._sum / self._count
        visits = self._visits.get(phase, 0) + 1
        before = self._means.get(phase, mean)
        self._visits[phase] = visits
        self._means[phase] = before + (mean - before) * max(LATEST, 1.0 / visits)
        self._sum, self._count = 0.0, 0

    def state(self) -> dict[str, Any]:
        """What `from_state` needs: JSON-able."""
        return {
            "period_s": self.period_s, "bin_s": self.bin_s, "now": self._now, "sum": self._sum, "count": self._count,
            "means": {str(phase): [mean, self._visits[phase]] for phase, mean in self._means.items()},
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Profile":
        """The profile that wrote this state."""
        profile = cls(state["period_s"], state["bin_s"])
        profile._now, profile._sum, profile._count = state["now"], state["sum"], state["count"]
        for phase, (mean, visits) in state["means"].items():
            profile._means[int(phase)] = mean
            profile._visits[int(phase)] = visits
        return profile


@dataclass(kw_only=True)
class Skill:
    """Mean absolute error of one way to predict; smaller is better."""

    error: float = 0.0
    count: int = 0

    def learn(self, error: float) -> None:
        """Take one error in."""
        self.count += 1
        self.error += (abs(error) - self.error) / min(self.count, SKILL_MEMORY)


class SeasonalBaseline:
    """Predicts a value from its time: by the slow level, the time of day, or the time of the week.

    The three are compared by their recent absolute error wherever a period has been seen before; with no timestamps,
    or before a day has passed, the level predicts.
    """

    def __init__(self) -> None:
        self._level = 0.0
        self._count = 0
        self._profiles = [Profile(period_s, bin_s) for period_s, bin_s in BIN_S.items()]
        self._skills = [Skill() for _ in range(1 + len(self._profiles))]

    @property
    def period_s(self) -> float | None:
        """The period that predicts best now, s; None: none does better than the level."""
        best = self._best([True] * len(self._skills))
        return None if best == 0 else self._profiles[best - 1].period_s

    def predict(self, ts_s: float | None) -> float | None:
        """The value that is usual at this time.

        Args:
            ts_s: seconds since 1970; None: unknown.

        Returns:
            None before the first value, and, given a time, until some period of it was seen before.
        """
        predictions = self._predictions(ts_s)
        if self._count == 0 or (ts_s is not None and all(one is None for one in predictions[1:])):
            return None
        return predictions[self._best([one is not None for one in predictions])]

    def learn(self, ts_s: float | None, value: float) -> None:
        """Take a value in."""
        predictions = self._predictions(ts_s)
        if any(one is not None for one in predictions[1:]):
            for skill, one in zip(self._skills, predictions, strict=True):
                if one is not None:
                    skill.learn(value - one)
        self._count += 1
        self._level += (value - self._level) / min(self._count, LEVEL_MEMORY)
        if ts_s is not None:
            for profile in self._profiles:
                profile.learn(ts_s, value)

    def _predictions(self, ts_s: float | None) -> list[float | None]:
        return [self._level, *(None if ts_s is None else profile.usual(ts_s) for profile in self._profiles)]

    def _best(self, usable: list[bool]) -> int:
        """Which of the usable predictions has erred least of those tried often enough; 0, the level, without any."""
        best = 0
        for place in range(1, len(usable)):
            skill = self._skills[place]
            if usable[place] and skill.count >= TRIES and skill.error < self._skills[best].error:
                best = place
        return best

    def state(self) -> dict[str, Any]:
        """What `from_state` needs: JSON-able."""
        return {
            "level": self._level, "count": self._count, "profiles": [one.state() for one in self._profiles],
            "skills": [[one.error, one.count] for one in self._skills],
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "SeasonalBaseline":
        """The baseline that wrote this state."""
        baseline = cls()
        baseline._level, baseline._count = state["level"], state["count"]
        baseline._profiles = [Profile.from_state(one) for one in state["profiles"]]
        baseline._skills = [Skill(error=error, count=count) for error, count in state["skills"]]
        return baseline
