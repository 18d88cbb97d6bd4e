"""The viewer: what a page needs to know of a profile's history, worked out once for each new event.

Rows are rows of one catalogue. Titles that the catalogue does not hold are left out.
"""

from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from features.events import EventKind
from features.history import KIND_CODES, History
from serve.catalogue import Catalogue

FINISHED: Final = 0.95
"""From this share watched on a title counts as finished: the rest is credits."""

TOP_GENRES: Final = 3

_PLAY: Final = KIND_CODES[EventKind.PLAY]
_PROGRESS: Final = KIND_CODES[EventKind.PROGRESS]
_FINISH: Final = KIND_CODES[EventKind.FINISH]
_THUMBS_UP: Final = KIND_CODES[EventKind.THUMBS_UP]
_THUMBS_DOWN: Final = KIND_CODES[EventKind.THUMBS_DOWN]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Viewer:
    """A history seen from a page. All rows are newest first.

    Attributes:
        watched: rows played, finished or judged.
        disliked: rows whose last judgement was a thumbs-down.
        playing: rows begun and not finished, disliked ones aside.
        progress: share of each of `playing` already watched, 0 to 1.
        loved: rows finished or liked, disliked ones and those begun again aside.
        liked: those of `loved` with a thumbs-up.
        genres: up to TOP_GENRES genres that tell this viewer from others, first the most telling.
    """

    watched: NDArray[np.int64]
    disliked: NDArray[np.int64]
    playing: NDArray[np.int64]
    progress: tuple[float, ...]
    loved: NDArray[np.int64]
    liked: frozenset[int]
    genres: tuple[int, ...]

    @classmethod
    def of(cls, history: History, catalogue: Catalogue) -> Self:
        """Fold a history."""
        playing: dict[int, float] = {}  # each dict is ordered by last touch: a row is popped before it is put in
        loved: dict[int, None] = {}
        judged: dict[int, bool] = {}
        interest: dict[int, float] = {}
        rows = catalogue.rows
        for _, kind, title_id, progress in history.entries:
            row = rows.get(title_id)
            if row is None or kind > _THUMBS_DOWN:
                continue
            seen = interest.pop(row, 0.0)
            if kind in (_PLAY, _PROGRESS) and progress < FINISHED:
                playing.pop(row, None)
                playing[row] = progress
                interest[row] = max(seen, 0.25)
            elif kind == _THUMBS_DOWN:
                judged[row] = False
                interest[row] = -1.0
            else:
                if kind == _THUMBS_UP:
                    judged[row] = True
                else:
                    playing.pop(row, None)
                loved.pop(row, None)
                loved[row] = None
                interest[row] = 1.0 + (kind == _THUMBS_UP)
        disliked = [row for row, good in judged.items() if not good]
        for row in disliked:
            playing.pop(row, None)
            loved.pop(row, None)
        begun = list(playing.items())[::-1]
        return cls(
            watched=_newest_first(interest),
            disliked=np.array(disliked[::-1], dtype=np.int64),
            playing=np.array([row for row, _ in begun], dtype=np.int64),
            progress=tuple(progress for _, progress in begun),
            loved=_newest_first({row: None for row in loved if row not in playing}),
            liked=frozenset(row for row, good in judged.items() if good),
            genres=_top_genres(interest, catalogue),
        )

    def moved(self, rows: NDArray[np.int64]) -> Self:
        """The same viewer in other rows of the same catalogue.

        Args:
            rows: (N,), the row there of each row here.
        """
        return replace(
            self, watched=rows[self.watched], disliked=rows[self.disliked], playing=rows[self.playing],
            loved=rows[self.loved], liked=frozenset(rows[list(self.liked)].tolist()),
        )  # fmt: skip


def _newest_first(rows: dict[int, float] | dict[int, None]) -> NDArray[np.int64]:
    return np.array(list(rows)[::-1], dtype=np.int64)


def _top_genres(interest: dict[int, float], catalogue: Catalogue) -> tuple[int, ...]:
    """Genres by interest in their titles times rarity, as words are weighed by tf-idf; only liked ones."""
    if not interest:
        return ()
    rows = np.array(list(interest), dtype=np.int64)
    weights = (catalogue.members[:, rows] @ np.array(list(interest.values()))) * catalogue.rarity  # (G,)
    best = np.argsort(-weights, kind="stable")[:TOP_GENRES]
    return tuple(int(genre) for genre in best if weights[genre] > 0)
