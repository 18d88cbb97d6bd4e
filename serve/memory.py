"""What a ranker remembers of viewers: their folded history and encoder state, until their next event.

Belongs to one event loop.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from features.events import EventKind
from features.history import KIND_CODES
from features.profiles import ProfileFeatures, ProfileStats
from features.ranking import context_vector
from features.sequences import visits
from serve.catalogue import Catalogue
from serve.viewer import Viewer

_FINISH = KIND_CODES[EventKind.FINISH]
_THUMBS_UP = KIND_CODES[EventKind.THUMBS_UP]
_THUMBS_DOWN = KIND_CODES[EventKind.THUMBS_DOWN]

_ANYBODY = ""  # no profile's id: all unknown profiles are one acquaintance, so that they push nobody out


@dataclass(slots=True, kw_only=True, eq=False)
class Acquaintance:
    """One viewer as last seen.

    Attributes:
        stamp: names the history; another history has another stamp.
        viewer: the folded history.
        stats: facts beside the history, as last read.
        state: float32 (d,), the encoder's; None until it was needed.
        visits: int64 (T, 3), the encoder's input, oldest first: row, actions and UTC seconds.
        counts: titles, finishes, thumbs-ups and thumbs-downs in the history.
        last_ts_ms: newest event, UTC milliseconds; None without history.
    """

    stamp: Hashable
    viewer: Viewer
    stats: ProfileStats
    state: NDArray[np.float32] | None
    visits: NDArray[np.int64]
    counts: tuple[int, int, int, int]
    last_ts_ms: int | None

    def context(self, now_ms: int) -> NDArray[np.float32]:
        """float32 (C,), equal to features.ranking.request_context of the history."""
        titles, finishes, thumbs_up, thumbs_down = self.counts
        gap_s = 0.0 if self.last_ts_ms is None else max(now_ms - self.last_ts_ms, 0) / 1000
        return context_vector(
            titles=titles,
            gap_s=gap_s,
            now_ms=now_ms,
            finishes=finishes,
            thumbs_up=thumbs_up,
            thumbs_down=thumbs_down,
            kids=self.stats.kids,
        )

    def moved(self, rows: NDArray[np.int64]) -> Self | None:
        """The same viewer in other rows of the same catalogue, for another model; None where a title has no row there.

        Args:
            rows: (N,), the row there of each row here; 0: none.
        """
        moved = self.visits.copy()
        moved[:, 0] = rows[moved[:, 0]]
        if not moved[:, 0].all():
            return None
        return replace(self, viewer=self.viewer.moved(rows), visits=moved, state=None)


class Memory:
    """Acquaintances by profile, the least recently seen forgotten first. For one catalogue and one model.

    Attributes:
        hits: look-ups that found the same history.
        misses: look-ups that did not.
    """

    def __init__(self, capacity: int) -> None:
        """Start empty.

        Args:
            capacity: most viewers to remember, at least 1.
        """
        self.hits = 0
        self.misses = 0
        self._capacity = capacity
        self._known: OrderedDict[str, Acquaintance] = OrderedDict()

    def __len__(self) -> int:
        """How many viewers are remembered."""
        return len(self._known)

    def known(self) -> dict[str, Acquaintance]:
        """Who is remembered, by profile, the last seen first."""
        return {profile_id: who for profile_id, who in reversed(self._known.items()) if profile_id != _ANYBODY}

    def inherit(self, known: Mapping[str, Acquaintance]) -> None:
        """Remember viewers whom another memory knew, in its order; who is known here stays, and is forgotten last.

        Args:
            known: as `known` gives them, in this memory's rows.
        """
        own = self._known
        self._known = OrderedDict(reversed(list(known.items())))
        for profile_id, who in own.items():
            self._known.pop(profile_id, None)
            self._known[profile_id] = who
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)

    def recall(self, profile_id: str) -> Acquaintance | None:
        """A viewer as last seen, however long ago; None if never, or forgotten."""
        return self._known.get(profile_id)

    def meet(self, profile: ProfileFeatures, catalogue: Catalogue) -> Acquaintance:
        """A viewer as it is now; folds the history if it changed since last time.

        Args:
            profile: features, not degraded.
            catalogue: the catalogue that this memory is for.
        """
        history = profile.history
        entries = history.entries
        profile_id = profile.profile_id if profile.known else _ANYBODY
        stamp = (history.n_events, len(entries), entries[-1] if entries else None)
        found = self._known.get(profile_id)
        if found is not None and found.stamp == stamp:
            self.hits += 1
            self._known.move_to_end(profile_id)
            found.stats = profile.stats
            return found
        self.misses += 1
        kinds = [entry.kind for entry in entries]
        met = Acquaintance(
            stamp=stamp,
            viewer=Viewer.of(history, catalogue),
            stats=profile.stats,
            state=None,
            visits=np.array(visits(entries, catalogue.rows), dtype=np.int64).reshape(-1, 3),
            counts=(
                len({entry.title_id for entry in entries}),
                kinds.count(_FINISH),
                kinds.count(_THUMBS_UP),
                kinds.count(_THUMBS_DOWN),
            ),
            last_ts_ms=entries[-1].ts_ms if entries else None,
        )
        self._known[profile_id] = met
        self._known.move_to_end(profile_id)
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return met
