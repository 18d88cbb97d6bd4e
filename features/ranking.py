"""What the ranker knows beside the encoder's state: statistics of titles and the context of a request.

One set of functions for training and serving. All features are within -2 to 2 and do not change their meaning when the
number of viewers grows: counts are relative to the catalogue's most played title, rates are smoothed, and times are
relative to the request.

Shapes: N title rows (row 0 is padding), S statistics, C context features. Units: *_ms UTC milliseconds.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.events import EventKind
from features.history import KIND_CODES, History
from features.popularity import TitleStats
from features.profiles import ProfileStats

STATISTICS: Final = ("played", "popularity", "finish_rate", "thumbs_up_rate", "thumbs_down_rate", "trend")
"""Names of the columns of `title_statistics`."""

STATISTICS_SIZE: Final = len(STATISTICS)

TREND: Final = STATISTICS.index("trend")
"""Column of the trend, which is also a term of the retrieval's score."""

CONTEXT: Final = (
    "any_history",
    "visits",
    "gap",
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
    "finish_rate",
    "thumbs_up_rate",
    "thumbs_down_rate",
    "kids",
)
"""Names of the columns of `request_context`."""

CONTEXT_SIZE: Final = len(CONTEXT)

_PRIOR_PLAYS: Final = 10.0
"""How many plays at the catalogue's own rate are added to each title's (empirical Bayes)."""

_LONGEST_TREND: Final = 20.0
"""Trends more than this many halvings below the strongest count as the same."""

_DAY_MS: Final = 86_400_000


def title_statistics(stats: Sequence[TitleStats | None]) -> NDArray[np.float32]:
    """Statistics of the rows of a title table.

    Args:
        stats: one for each row; None for padding and for titles of which nothing is known.

    Returns:
        float32 (N, S) in the order of STATISTICS.
    """
    columns = np.array(
        [
            (s.plays, s.finishes, s.thumbs_up, s.thumbs_down, s.trend) if s is not None else (0, 0, 0, 0, -math.inf)
            for s in stats
        ],
        dtype=np.float64,
    ).reshape(-1, 5)
    return statistics_matrix(*columns.T)


def statistics_matrix(
    plays: NDArray[np.float64],
    finishes: NDArray[np.float64],
    thumbs_up: NDArray[np.float64],
    thumbs_down: NDArray[np.float64],
    trend: NDArray[np.float64],
) -> NDArray[np.float32]:
    """The same from columns, each (N,), for whole logs.

    Args:
        plays: times started.
        finishes: times watched to the end.
        thumbs_up: times liked.
        thumbs_down: times disliked.
        trend: log2 of the decayed plays; -inf without plays.

    Returns:
        float32 (N, S) in the order of STATISTICS.
    """
    matrix = np.zeros((len(plays), STATISTICS_SIZE), dtype=np.float32)
    most = max(float(plays.max(initial=0.0)), 1.0)
    total = max(float(plays.sum()), 1.0)
    matrix[:, 0] = plays > 0
    matrix[:, 1] = np.log1p(plays) / math.log1p(most)
    for column, counts in ((2, finishes), (3, thumbs_up), (4, thumbs_down)):
        rate = min(float(counts.sum()) / total, 1.0)
        matrix[:, column] = np.minimum((counts + _PRIOR_PLAYS * rate) / (plays + _PRIOR_PLAYS), 1.0)
    matrix[:, TREND] = relative_trend(trend)
    return matrix


def relative_trend(trend: NDArray[np.float64]) -> NDArray[np.float32]:
    """Trends against the strongest one, as `title_statistics` and the retrieval's score have them.

    Args:
        trend: (N,), log2 of the decayed plays; -inf without plays.

    Returns:
        float32 (N,), 0 for the strongest, -1 for _LONGEST_TREND halvings below it and less; all 0 without any plays.
    """
    strongest = float(trend.max(initial=-math.inf))
    if strongest == -math.inf:
        return np.zeros(len(trend), dtype=np.float32)
    return np.clip((trend - strongest) / _LONGEST_TREND, -1.0, 0.0).astype(np.float32)


def request_context(history: History, stats: ProfileStats, now_ms: int) -> NDArray[np.float32]:
    """The context of one request.

    Args:
        history: the profile's newest events.
        stats: facts beside it.
        now_ms: time of the request.

    Returns:
        float32 (C,) in the order of CONTEXT. Rates are 0 where nothing was played, hours are UTC.
    """
    entries = history.entries
    kinds = [entry.kind for entry in entries]
    titles = len({entry.title_id for entry in entries})
    gap_s = max(now_ms - entries[-1].ts_ms, 0) / 1000 if entries else 0.0
    return context_vector(
        titles=titles,
        gap_s=gap_s,
        now_ms=now_ms,
        finishes=kinds.count(KIND_CODES[EventKind.FINISH]),
        thumbs_up=kinds.count(KIND_CODES[EventKind.THUMBS_UP]),
        thumbs_down=kinds.count(KIND_CODES[EventKind.THUMBS_DOWN]),
        kids=stats.kids,
    )


def context_vector(
    *, titles: int, gap_s: float, now_ms: int, finishes: int, thumbs_up: int, thumbs_down: int, kids: bool
) -> NDArray[np.float32]:
    """The same from counts.

    Args:
        titles: how many titles the history holds.
        gap_s: seconds since its newest event.
        now_ms: time of the request.
        finishes: finishes in the history.
        thumbs_up: thumbs-ups in the history.
        thumbs_down: thumbs-downs in the history.
        kids: whether it is a kids profile.
    """
    hour = 2 * math.pi * (now_ms % _DAY_MS) / _DAY_MS
    weekday = 2 * math.pi * (now_ms // _DAY_MS % 7) / 7
    shown = max(titles, 1)
    return np.array(
        [
            titles > 0,
            math.log1p(titles) / math.log1p(200),
            min(math.log1p(gap_s) / math.log1p(365 * 86_400), 1.5),
            math.sin(hour),
            math.cos(hour),
            math.sin(weekday),
            math.cos(weekday),
            min(finishes / shown, 1.0),
            min(thumbs_up / shown, 1.0),
            min(thumbs_down / shown, 1.0),
            kids,
        ],
        dtype=np.float32,
    )
