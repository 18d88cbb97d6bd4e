"""Starts that do not come: how many are usual by now, and whether those that lack are missing or began elsewhere.

Whoever is steered away from a CDN begins on another: fewer starts of what players or steering choose are a shift and
not an absence, unless the audience around them has lost those starts as well. Units: starts; time UTC ms.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from serve.telemetry.windows import ATTEMPTS
from serve.watchtower.alarms import MISSING, Slice, slice_of
from serve.watchtower.counts import CountDetector
from serve.watchtower.history import History
from serve.watchtower.likelihoods import poisson_tail
from serve.watchtower.outages import Effect

CHOSEN: Final = frozenset({"cdn", "protocol"})
"""Dimensions whose value players or steering choose; all others a viewer brings along."""

_USUAL_SHARE: Final = 0.8
"""Of the starts that are usual; as many are as usual, whatever their number."""
_CHANCE: Final = 0.005
"""Probability of so few by chance, below which they are fewer than usual."""
_LOST_AROUND: Final = 0.5
"""Of what a slice lacks: the audience around it lacks more, or it is a shift."""
_SURE_AROUND: Final = 4.0
"""Standard deviations of the starts around a slice, that they lack more than, or it is a shift."""
_TELLING: Final = 10.0
"""Starts that are usual in so many windows that none at all would not be chance."""
_ADOPTED: Final = 8640
"""Windows, a day, after which another number of starts is how things are: an outage does not become the season."""


def around(slice_: Slice) -> Slice:
    """The audience that a slice's starts may go over to: the slice without what is chosen."""
    return tuple(pair for pair in slice_ if pair[0] not in CHOSEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsualStarts:
    """What was usual before starts went missing.

    Attributes:
        slice: of whom.
        own: starts a window, of the slice.
        around: starts a window, of the audience around it; of a slice in which nothing is chosen, its own.
        level: everyone's starts a window by the season, at that time; None where that was not known.
    """

    slice: Slice
    own: float
    around: float
    level: float | None

    def telling(self, windows: int, most: int) -> int:
        """Windows to look at, `windows` at least: so many that a lack would show, up to `most`."""
        if around(self.slice) != self.slice:
            return most
        return min(most, max(windows, math.ceil(_TELLING / max(self.own, 0.01))))

    def state(self) -> list[Any]:
        """As JSON takes it."""
        return [self.slice, self.own, self.around, self.level]

    @classmethod
    def from_state(cls, state: Sequence[Any]) -> Self:
        """The reverse of `state`."""
        return cls(slice=slice_of(state[0]), own=state[1], around=state[2], level=state[3])


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """Starts of a slice over some windows.

    Attributes:
        usual: how many are usual.
        began: how many there were.
        usual_around: how many are usual in the audience around it.
        began_around: how many there were.
    """

    usual: float
    began: float
    usual_around: float
    began_around: float

    @property
    def missing(self) -> float:
        """Starts that did not come, neither here nor around."""
        return max(0.0, min(self.usual - self.began, self.usual_around - self.began_around))

    @property
    def are_missing(self) -> bool:
        """Whether fewer came than chance makes of what is usual, and they did not come around instead."""
        if poisson_tail(self.began, _USUAL_SHARE * self.usual, upper=False) >= _CHANCE:
            return False
        if self.usual_around == self.usual and self.began_around == self.began:
            return True
        by_chance = _SURE_AROUND * math.sqrt(self.usual_around + 1.0)
        return self.usual_around - self.began_around > max(_LOST_AROUND * (self.usual - self.began), by_chance)

    def effect(self) -> Effect:
        """As it is told: `bad` of the `total` starts that are usual are missing; none is expected to be."""
        share = self.missing / max(self.usual, 1.0)
        return Effect(
            metric=MISSING, expected=0.0, now=min(share, 1.0), total=round(self.usual), bad=round(self.missing)
        )


class StartWatch:
    """How many starts are usual in a slice, by what is kept of the latest windows and by the season.

    Args:
        history: the windows.
        season: a detector of everyone's starts; None: one that knows nothing.
    """

    def __init__(self, history: History, season: CountDetector | None = None) -> None:
        self._history = history
        self._season = season or CountDetector(half_life=360, warm_up=90, adopt_after=_ADOPTED)

    def learn(self) -> None:
        """Learn from the latest window what the season brings."""
        at = self._history.latest_ms
        self._season.learn_one({"count": self._began((), at)[0], "timestamp": at / 1000})

    def before(self, slice_: Slice, until_ms: int) -> UsualStarts | None:
        """What was usual in a slice before a moment, and is scaled by the season from then on; None: none is known."""
        own, windows = self._history.before(slice_, until_ms)
        if not windows:
            return None
        wider, _ = self._history.before(around(slice_), until_ms)
        return UsualStarts(
            slice=slice_, own=int(own[ATTEMPTS]) / windows, around=int(wider[ATTEMPTS]) / windows, level=self._level()
        )

    def since(self, usual: UsualStarts, since_ms: int) -> Starts:
        """Those of the latest windows since a moment, beside what is usual."""
        began, windows = self._began(usual.slice, since_ms)
        level = self._level()
        scale = windows if usual.level is None or level is None else windows * level / usual.level
        return Starts(
            usual=usual.own * scale, began=began,
            usual_around=usual.around * scale, began_around=self._began(around(usual.slice), since_ms)[0],
        )  # fmt: skip

    def is_absence(self, slice_: Slice, since_ms: int) -> bool:
        """Whether what a slice lacks since a moment lacks around it, too; always where nothing of it is chosen."""
        if around(slice_) == slice_:
            return True
        usual = self.before(slice_, since_ms)
        return usual is not None and self.since(usual, since_ms).are_missing

    def _began(self, slice_: Slice, since_ms: int) -> tuple[int, int]:
        """Starts of a slice since a moment, and over how many windows."""
        counts, windows = self._history.since(slice_, since_ms)
        return int(counts[ATTEMPTS]), windows

    def _level(self) -> float | None:
        """Starts of everyone that the season lets expect in a window now; None before enough were seen."""
        if not self._season.is_warm:
            return None
        return self._season.expected({"timestamp": self._history.latest_ms / 1000})

    def state(self) -> dict[str, Any]:
        """A checkpoint of the season: JSON-able."""
        return self._season.state()

    @classmethod
    def from_state(cls, state: Mapping[str, Any], history: History) -> Self:
        """The watch that wrote this checkpoint.

        Raises:
            InvalidInput: another version wrote it.
        """
        return cls(history, CountDetector.from_state(state))
