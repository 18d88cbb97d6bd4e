"""From rows of titles to JSON bytes, with no object per title.

What never changes about a title (its id, name, year, genres) is rendered once, when the catalogue is built. A page
joins these fragments with the numbers of the request, which are all printed in one call. `serve.schemas` says what the
bytes must be, and tests hold them to it.
"""

from collections.abc import Sequence
from functools import cache
from operator import itemgetter
from typing import Final

import numpy as np
import orjson
from numpy.typing import NDArray

from serve.pages import ESTIMATES, Ranking, Slate
from serve.schemas import MAX_ITEMS
from serve.shelves import Rows

_STEPS: Final = 10_000
"""Probabilities are printed to 1 / _STEPS, from tables of all that can be printed; null comes last."""

_SCORE_DECIMALS: Final = 4
_RANKS: Final = tuple(b',"rank":%d,"score":' % rank for rank in range(MAX_ITEMS))
_STRIDE: Final = 6  # parts of one title: opening, rank, score, play, finish, thumbs_up


def render_rows(page: Sequence[Slate], fragments: Sequence[bytes], ranking: Ranking) -> bytes:
    """The JSON array `rows` of a home page.

    Args:
        page: rows to show, none empty, none longer than MAX_ITEMS.
        fragments: opening of each title's JSON object, by row of the catalogue.
        ranking: estimates of the candidates; other titles get null.
    """
    if not page:
        return b"[]"
    rows = np.concatenate([slate.rows for slate in page])
    parts = _parts(rows, fragments, _estimates(rows, ranking, len(fragments)))
    start = 0
    for slate in page:
        count = len(slate.rows)
        end = start + count
        first, last = start * _STRIDE, end * _STRIDE - 1
        parts[first + 1 : last : _STRIDE] = _RANKS[:count]
        if slate.progress is not None:
            for place, share in enumerate(slate.progress):
                parts[first + place * _STRIDE + 5] += b',"progress":%.4f' % share
        head = orjson.dumps({"id": slate.id, "title": slate.title, "reason": slate.reason})
        parts[first] = b'%b,"items":[%b' % (head[:-1], parts[first][2:])  # no title stands before it
        parts[last] += b"}]},"
        start = end
    return b"[%b]" % b"".join(parts)[:-1]


def render_items(rows: Rows, fragments: Sequence[bytes], scores: NDArray[np.float32]) -> bytes:
    """The JSON array `items` of similar titles.

    Args:
        rows: titles, at most MAX_ITEMS.
        fragments: opening of each title's JSON object, by row of the catalogue.
        scores: float32, score of each of `rows`.
    """
    if not len(rows):
        return b"[]"
    values = np.full((len(ESTIMATES), len(rows)), np.nan, dtype=np.float32)
    values[0] = scores
    parts = _parts(rows, fragments, values)
    parts[1::_STRIDE] = _RANKS[: len(rows)]
    return b"[%b}]" % b"".join(parts)[2:]


def _estimates(rows: Rows, ranking: Ranking, size: int) -> NDArray[np.float32]:  # (4, n)
    places = np.full(size, len(ranking.rows), dtype=np.int64)  # (N,) the column of NaN for all but the candidates
    places[ranking.rows] = np.arange(len(ranking.rows))
    return ranking.values.take(places.take(rows), axis=1)


def _parts(rows: Rows, fragments: Sequence[bytes], values: NDArray[np.float32]) -> list[bytes]:
    """Parts of all titles but their ranks; each title's opening closes the title before it."""
    parts = [b""] * (len(rows) * _STRIDE)
    parts[0::_STRIDE] = _picked(fragments, rows)
    scores = values[0].round(_SCORE_DECIMALS)
    parts[2::_STRIDE] = orjson.dumps(scores, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    steps = np.fmax(np.fmin(values[1:] * np.float32(_STEPS), _STEPS + 1), 0)  # (3, n), NaN to the null at the end
    for place, (table, step) in enumerate(zip(_tables(), np.rint(steps).astype(np.int64), strict=True)):
        parts[3 + place :: _STRIDE] = _picked(table, step)
    return parts


@cache
def _tables() -> tuple[tuple[bytes, ...], ...]:
    """For each probability's name, all that can be printed: `,"play":0.0` to `,"play":1.0`, then null."""
    shares = (*(step / _STEPS for step in range(_STEPS + 1)), None)
    return tuple(
        tuple(b',"%b":%b' % (name.encode(), orjson.dumps(share)) for share in shares) for name in ESTIMATES[1:]
    )


def _picked(parts: Sequence[bytes], places: NDArray[np.int64]) -> Sequence[bytes]:
    found: Sequence[bytes] = itemgetter(*places.tolist(), 0)(parts)[:-1]  # with a single place it would give no tuple
    return found
