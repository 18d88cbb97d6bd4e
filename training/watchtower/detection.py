"""Detectors run over series, each value scored before it is learned; Playhead's beside River's."""

import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from river import anomaly, preprocessing

from serve.errors import InvalidInput
from serve.watchtower.series import SeriesDetector
from training.recommend.progress import ProgressReport, silent
from training.watchtower.nab import Labelled, report
from training.watchtower.series import Series

PLAYHEAD: Final = "playhead"
RIVER: Final[Any] = anomaly  # its detectors' methods have no types
COLUMNS: Final = ("timestamp", "value", "anomaly_score", "label")

Floats: TypeAlias = NDArray[np.float64]
Step: TypeAlias = Callable[[float, float], float]
"""Time in seconds since 1970 and value in, anomaly score out; the value is then learned."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a detector made of a series.

    Attributes:
        scores: of each value, before it was learned; shape (rows,), in [0, 1].
        seconds: spent scoring and learning.
    """

    scores: Floats
    seconds: float


def playhead() -> Step:
    """A fresh SeriesDetector."""
    detector = SeriesDetector()

    def step(ts_s: float, value: float) -> float:
        x = {"timestamp": ts_s, "value": value}
        score = detector.score_one(x)
        detector.learn_one(x)
        return score

    return step


def standard_absolute_deviation() -> Step:
    """River's StandardAbsoluteDeviation; its distance d from the mean becomes d / (1 + d)."""
    detector = RIVER.StandardAbsoluteDeviation()

    def step(ts_s: float, value: float) -> float:
        del ts_s
        away = float(detector.score_one(None, value))
        detector.learn_one(None, value)
        return away / (1.0 + away) if math.isfinite(away) else 0.0

    return step


def gaussian_scorer() -> Step:
    """River's GaussianScorer with no window: the windowed form raises TypeError on real data."""
    detector = RIVER.GaussianScorer()

    def step(ts_s: float, value: float) -> float:
        del ts_s
        score = float(detector.score_one(None, value))
        detector.learn_one(None, value)
        return score if math.isfinite(score) else 0.0

    return step


def half_space_trees() -> Step:
    """River's HalfSpaceTrees of its default size over values that are scaled to [0, 1] as they come."""
    scaler: Any = preprocessing.MinMaxScaler()
    detector = RIVER.HalfSpaceTrees(seed=42)

    def step(ts_s: float, value: float) -> float:
        del ts_s
        x = {"value": value}
        scaler.learn_one(x)
        scaled = scaler.transform_one(x)
        score = float(detector.score_one(scaled))
        detector.learn_one(scaled)
        return min(max(score, 0.0), 1.0)

    return step


RIVALS: Final[dict[str, Callable[[], Step]]] = {
    "standard_absolute_deviation": standard_absolute_deviation,
    "gaussian_scorer": gaussian_scorer,
    "half_space_trees": half_space_trees,
}


def score(series: Series, step: Step) -> Scored:
    """Run a fresh detector over a series, one pass, with no look ahead."""
    rows = list(zip(series.times_s.tolist(), series.values.tolist(), strict=True))
    scores = np.zeros(len(rows))
    start = time.perf_counter()
    for row, (ts_s, value) in enumerate(rows):
        scores[row] = step(ts_s, value)
    return Scored(scores=scores, seconds=time.perf_counter() - start)


def evaluate(
    corpus: Sequence[Labelled], detector: Callable[[], Step], name: str, progress: ProgressReport = silent
) -> tuple[dict[str, Any], dict[str, Floats]]:
    """A detector over a benchmark's files.

    Args:
        corpus: the files.
        detector: makes a fresh one; called once a file.
        name: for the progress report.
        progress: told of each file.

    Returns:
        The report of `nab.report` and us_per_value, microseconds to score and learn one; and each file's scores.
    """
    scores: dict[str, Floats] = {}
    seconds = 0.0
    for done, one in enumerate(corpus):
        progress(name, done, len(corpus), one.name)
        scored = score(one.series, detector())
        scores[one.name] = scored.scores
        seconds += scored.seconds
    progress(name, len(corpus), len(corpus))
    rows = sum(len(one.series.values) for one in corpus)
    return {**report(corpus, scores), "us_per_value": seconds / rows * 1e6}, scores


def write_scores(folder: Path, corpus: Sequence[Labelled], scores: dict[str, Floats]) -> None:
    """One CSV a file, under its own name in `folder`: timestamp, value, anomaly_score, label (1 inside a window).

    Raises:
        InvalidInput: a file can't be written.
    """
    try:
        for one in corpus:
            path = folder / one.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                writer.writerows(_rows(one, scores[one.name]))
    except OSError as error:
        raise InvalidInput(
            field="--out", got=str(error), expected="a folder that can be written to",
            next_step="Name another folder, or make this one writable.",
        ) from error  # fmt: skip


def _rows(one: Labelled, scores: Floats) -> Iterator[tuple[str, float, str, int]]:
    values, labels = one.series.values.tolist(), one.labels.tolist()
    for stamp, value, found, label in zip(one.series.timestamps, values, scores.tolist(), labels, strict=True):
        yield stamp, value, f"{found:.17g}", label


def strongest(series: Series, scores: Floats, top: int) -> list[dict[str, Any]]:
    """The `top` rows that score highest, above 0 only; the earliest first of equals. Rows count from 1."""
    order = [row for row in np.argsort(-scores, kind="stable")[:top].tolist() if scores[row] > 0.0]
    return [
        {
            "row": row + 1, "timestamp": series.timestamps[row], "value": float(series.values[row]),
            "score": float(scores[row]),
        }
        for row in order
    ]  # fmt: skip
