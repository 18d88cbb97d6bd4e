"""Detours: which of a broken pathway's clients go where instead, step by step away and step by step back.

Each client has a place between 0 and 1 on each pathway. A detour moves away those below `moved`. What moves in one step
is a band, which remembers where its clients went, so that later steps leave them there; on the way back the last band
shrinks first. So a client is moved at most once by each change of direction.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

NOTHING: Final = 1e-9
"""A share of the audience below which there is none."""

_LEAST_STEP: Final = 0.002
"""A share of the audience that is worth a step, unless it is all that is left; bounds the number of bands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """What moved in one step.

    Attributes:
        upto: clients below this place, and not below the band before, 0 to 1.
        to: pathway that receives them -> its part of them; all parts add up to 1.
    """

    upto: float
    to: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detour:
    """Around one pathway, for the clients of one scope.

    Attributes:
        pathway: what is avoided.
        scope: dimension -> value that the clients have in common; empty: everyone.
        size: share of the audience that would be on this pathway and in this scope, 0 to 1.
        confirmed_ms: when its outage was last known to go on, UTC milliseconds.
        bands: steps taken.
        level: share of its clients that may come back, 0 while it is avoided, 1 when it is over.
        returned_ms: when the level rose last; 0 while it is 0.
        breaks: how often it broke before it was calm for long.
    """

    pathway: str
    scope: Mapping[str, str]
    size: float
    confirmed_ms: int
    bands: tuple[Band, ...] = ()
    level: float = 0.0
    returned_ms: int = 0
    breaks: int = 1

    @property
    def moved(self) -> float:
        """Share of its clients that is moved away, 0 to 1."""
        return self.bands[-1].upto if self.bands else 0.0

    def band_at(self, where: float) -> Band | None:
        """The band of the client with this place; None: it is not moved."""
        return next((band for band in self.bands if where < band.upto), None)

    def received(self, above: float = 0.0) -> dict[str, float]:
        """Pathway -> share of the audience that it has from here.

        Args:
            above: clients below this place are counted elsewhere.
        """
        shares: dict[str, float] = {}
        below = above
        for band in self.bands:
            width = max(0.0, band.upto - below)
            for pathway, part in band.to.items():
                shares[pathway] = shares.get(pathway, 0.0) + width * self.size * part
            below = max(below, band.upto)
        return shares

    def confirmed(self, now_ms: int) -> Self:
        """It goes on; where clients had been let back, it broke again."""
        again = self.breaks + (self.level > 0)
        return replace(self, confirmed_ms=now_ms, level=0.0, returned_ms=0, breaks=again)

    def as_of(self, now_ms: int) -> Self:
        """The same by a clock that may be behind the one that its times are from: none of them is still to come."""
        if max(self.confirmed_ms, self.returned_ms) <= now_ms:
            return self
        return replace(self, confirmed_ms=min(self.confirmed_ms, now_ms), returned_ms=min(self.returned_ms, now_ms))

    def widened(self, limits: Mapping[str, float]) -> Self:
        """One step away.

        Args:
            limits: pathway -> share of the audience that it may receive now; the step is spread by them.
        """
        room = sum(limits.values())
        left = (1 - self.moved) * self.size
        if room <= NOTHING or self.moved >= 1 or room < min(left, _LEAST_STEP):
            return self
        upto = 1.0 if left <= room else self.moved + room / self.size
        to = {pathway: limit / room for pathway, limit in limits.items() if limit > NOTHING}
        return replace(self, bands=(*self.bands, Band(upto=min(1.0, upto), to=to)))

    def let_back(self, level: float, room: float, now_ms: int) -> Self:
        """One step back.

        Args:
            level: share of its clients that may be back after it.
            room: share of the audience that the pathway may receive now.
            now_ms: now.
        """
        least = self.moved - room / self.size if self.size > NOTHING else 0.0
        moved = min(self.moved, max(1 - level, least))
        bands = []
        for band in self.bands:
            bands.append(replace(band, upto=min(band.upto, moved)))
            if band.upto >= moved:
                break
        kept = tuple(bands) if moved > NOTHING else ()
        return replace(self, bands=kept, level=level if moved <= 1 - level + NOTHING else 1 - moved, returned_ms=now_ms)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """From plain data.

        Raises:
            AttributeError, KeyError, OverflowError, TypeError, ValueError: it is none of ours.
        """
        return cls(
            pathway=str(stored["pathway"]),
            scope=scope_of(stored["scope"]),
            size=finite(stored["size"]),
            confirmed_ms=int(stored["confirmed_ms"]),
            bands=tuple(Band(upto=finite(one["upto"]), to=shares_of(one["to"])) for one in stored["bands"]),
            level=finite(stored["level"]),
            returned_ms=int(stored["returned_ms"]),
            breaks=int(stored["breaks"]),
        )


def finite(number: Any) -> float:
    """A stored number.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not math.isfinite(value := float(number)):
        raise ValueError(f"number {number!r}, expected a finite one")
    return value


def scope_of(stored: Mapping[str, Any]) -> dict[str, str]:
    """A stored scope.

    Raises:
        AttributeError: it is none.
    """
    return {name: str(value) for name, value in stored.items()}


def shares_of(stored: Mapping[str, Any]) -> dict[str, float]:
    """Stored shares of pathways.

    Raises:
        AttributeError, TypeError, ValueError: they are none.
    """
    return {name: finite(share) for name, share in stored.items()}
