"""Exploration of home pages: now and then one slot shows another candidate, with a probability that is written down.

With probability epsilon over request ids a page is explored: one of the first slots of the main personalised row, each
as likely, gets a title drawn from the ranked candidates that the page does not hold and that may stand on it, the one
at place r (from 0, by score) with probability proportional to 1 / (r + 1). All other slots stay as they are, so that
over request ids, for one profile and its candidates,

    the slot's own title is shown with probability 1 - epsilon / m,  m first slots
    another candidate with probability        epsilon / m * q(r),    q(r) = 1 / (r + 1) / (1 + 1/2 + ... + 1/K)

What was shown for whatever reason can so be weighed by the inverse of its propensity (Horvitz and Thompson, JASA 47,
1952; Li et al., "Unbiased offline evaluation of contextual-bandit-based news article recommendation", WSDM 2011).

Shapes: K candidates that could be drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.pages import MAIN_ROW, Ranking, Slate
from serve.shelves import Rows

MOST_EPSILON: Final = 0.2
"""Largest share of pages that may be explored."""

_KEY: Final = b"playhead exploration"
_SPACE: Final = float(1 << 64)
_CUMULATED: Final = np.cumsum(1.0 / np.arange(1, 4097))
"""Sums of 1 / (r + 1) over the first places; candidates beyond are not drawn."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What a request id draws; three independent numbers, evenly over ids, 0 to 1.

    Attributes:
        explores: below epsilon: the page is explored.
        slot: which slot.
        title: which candidate.
    """

    explores: float
    slot: float
    title: float

    @classmethod
    def of(cls, request_id: str, profile_id: str) -> "Draw":
        """The draw of one request: the same on every replica, and the same again.

        Args:
            request_id: names the answer.
            profile_id: whose page; so that callers who send one id for all don't have one draw for all.
        """
        unit = f"{request_id}\0{profile_id}".encode("utf-8", "surrogatepass")
        digest = blake2b(unit, digest_size=24, key=_KEY).digest()
        numbers = [int.from_bytes(digest[start : start + 8], "little") / _SPACE for start in (0, 8, 16)]
        return cls(*numbers)


@dataclass(frozen=True, slots=True)
class Slots:
    """The first slots of the main row as they are shown.

    Attributes:
        rows: the title in each slot.
        propensities: of each of them, in its slot, given profile and candidates; above 0, at most 1.
        explored: the slot that was explored; None: none was.
    """

    rows: tuple[int, ...]
    propensities: tuple[float, ...]
    explored: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """How much is explored.

    Attributes:
        epsilon: probability that a page is explored, 0 to MOST_EPSILON; 0: none is.
        slots: how many first slots of the main row may be; at least 1.
    """

    epsilon: float = 0.0
    slots: int = 10

    def explore(
        self, page: Sequence[Slate], ranking: Ranking, free: NDArray[np.bool_], draw: Draw | None
    ) -> Slots | None:
        """Explore a page, or don't, as it is drawn; the main row is changed in place, in one slot at most.

        Args:
            page: the rows.
            ranking: the candidates.
            free: bool (N,), which titles the page does not hold and may hold in any of its rows.
            draw: what the request drew; None: nothing, and nothing could have been explored.

        Returns:
            What the first slots show; None where the page has no main row, or no model ranked it for its viewer.
        """
        main = next((slate for slate in page if slate.id == MAIN_ROW), None)
        if main is None or not ranking.personal:
            return None
        count = min(self.slots, len(main.rows))
        pool = self._pool(ranking, free) if draw is not None and self.epsilon > 0 else _NONE
        if draw is None or not len(pool):
            return Slots(tuple(main.rows[:count].tolist()), (1.0,) * count, None)
        each = self.epsilon / count  # that just this slot is explored
        explored = None
        propensities = [1.0 - each] * count
        if draw.explores < self.epsilon:
            explored = min(int(draw.slot * count), count - 1)
            whole = float(_CUMULATED[len(pool) - 1])
            found = int(np.searchsorted(_CUMULATED[: len(pool)], draw.title * whole, side="right"))
            place = min(found, len(pool) - 1)
            main.rows = main.rows.copy()
            main.rows[explored] = pool[place]
            propensities[explored] = each / (place + 1) / whole
        return Slots(tuple(main.rows[:count].tolist()), tuple(propensities), explored)

    def _pool(self, ranking: Ranking, free: NDArray[np.bool_]) -> Rows:
        """Candidates that could be drawn, best first."""
        return ranking.rows.compress(free.take(ranking.rows))[: len(_CUMULATED)]


_NONE: Final[Rows] = np.empty(0, dtype=np.int64)
