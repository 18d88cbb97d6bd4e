"""What one version's ranker remembers of viewers, handed to the next version's before that one answers."""

import numpy as np
from numpy.typing import NDArray

from serve.catalogue import Catalogue
from serve.logs import get
from serve.memory import Acquaintance, Memory
from serve.scoring import Scorer

_log = get("inheritance")


class Inheritance:
    """Viewers whom one version knows, on their way into the memory of another.

    A title that only the other version knows, and the catalogue no longer holds, is part of no history until its
    viewer's next event.

    Args:
        before: memory of the one.
        one: the catalogue in its rows.
        memory: of the other.
        other: the same catalogue in the other's rows.
        scorer: of the other.

    Attributes:
        memory: of the other, which has another one where the catalogue changes.
    """

    def __init__(self, before: Memory, one: Catalogue, memory: Memory, other: Catalogue, scorer: Scorer) -> None:
        self.memory = memory
        self._scorer = scorer
        self._before = before
        self._catalogues = one, other
        self._rows: NDArray[np.int64] | None = None
        self._waiting = list(reversed(before.known().items()))
        self._met: dict[str, Acquaintance] = {}

    def __len__(self) -> int:
        """How many are still to come."""
        return len(self._waiting)

    def encode(self, count: int) -> None:
        """Encode the histories of the next ones, by a process that gives way where there is one; for a thread."""
        if self._rows is None:
            self._rows = _rows_there(*self._catalogues)
        rows = self._rows
        batch = [self._waiting.pop() for _ in range(min(count, len(self._waiting)))]
        moved = {profile_id: who.moved(rows) for profile_id, who in batch}
        met = {profile_id: who for profile_id, who in moved.items() if who is not None}
        if not met:
            return
        self._met |= met
        try:
            states = self._scorer.encode_beside([who.visits.tolist() for who in met.values()])
        except Exception as error:  # noqa: BLE001 - their pages encode them, and tell what is wrong
            _log.warning("%d histories not encoded ahead by %s: %s", len(met), self._scorer.version, error)
            return
        for who, state in zip(met.values(), states, strict=True):
            who.state = state.copy()

    def hand_over(self) -> int:
        """Put those who came into the other's memory, but for whose history changed meanwhile; how many are encoded."""
        met = {}
        for profile_id, who in self._met.items():
            now = self._before.recall(profile_id)
            if now is not None and now.stamp == who.stamp:
                who.stats = now.stats
                met[profile_id] = who
        self.memory.inherit(met)
        return sum(who.state is not None for who in met.values())


def _rows_there(one: Catalogue, other: Catalogue) -> NDArray[np.int64]:
    """The other's row of each row of the one, (N,); 0: none."""
    return np.array([other.rows.get(title_id, 0) for title_id in one.title_ids], dtype=np.int64)
