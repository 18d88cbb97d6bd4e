"""The Numenta Anomaly Benchmark's published rules: windows, rewards, profiles, one threshold for all, normalisation.

Lavin and Ahmad, "Evaluating Real-time Anomaly Detection Algorithms: the Numenta Anomaly Benchmark" (2015), section
II, and NAB's wiki. A detection inside a labelled window earns up to 1, the more the earlier, once a window; a window
with none costs the profile's weight of a miss; each detection outside costs up to the profile's weight of a false
alarm, less just after a window. The first 15 % of a file's rows (of at most 5000) are for learning and count for
nothing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput
from training.watchtower.series import Series, read_series

Floats: TypeAlias = NDArray[np.float64]

WINDOWS: Final = Path("labels") / "combined_windows.json"
PROBATION: Final = 0.15
PROBATION_ROWS: Final = 5000
STEEPNESS: Final = 5.0
FAR: Final = 3.0
NEVER: Final = 1.1
"""A threshold above every score: no detection."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What an operator's application cares about (NAB's config/profiles.json, as published).

    Attributes:
        name: as reports key it.
        hit: worth of a window that is detected at its first row.
        false_alarm: cost of a detection far from any window.
        miss: cost of a window without a detection.
    """

    name: str
    hit: float = 1.0
    false_alarm: float = 0.11
    miss: float = 1.0


PROFILES: Final = (
    Profile(name="standard"),
    Profile(name="reward_low_fp", false_alarm=0.22),
    Profile(name="reward_low_fn", miss=2.0),
)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A series with its labelled windows.

    Attributes:
        name: folder/file, as the label file keys it.
        series: what the file holds.
        windows: first and last row of each labelled window, in order, both inside it.
    """

    name: str
    series: Series
    windows: tuple[tuple[int, int], ...]

    @property
    def group(self) -> str:
        """The corpus' folder that the file lies in."""
        return self.name.rpartition("/")[0]

    @property
    def probation(self) -> int:
        """Rows at the start that count for nothing."""
        return probation(len(self.series.values))

    @property
    def labels(self) -> NDArray[np.int8]:
        """1 for each row inside a window, else 0; shape (rows,)."""
        marks = np.zeros(len(self.series.values), np.int8)
        for first, last in self.windows:
            marks[first : last + 1] = 1
        return marks


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one threshold earns on some files under one profile.

    Attributes:
        score: normalised: 0 for a detector that never speaks, 100 for one that is right at each window's first row.
        threshold: rows that score at least this are detections.
        hits: windows detected.
        misses: windows not detected.
        false_alarms: rows outside every window that are detections.
    """

    score: float
    threshold: float
    hits: int
    misses: int
    false_alarms: int


def probation(rows: int) -> int:
    """How many rows at the start of a file of `rows` rows count for nothing."""
    return min(int(PROBATION * rows), int(PROBATION * PROBATION_ROWS))


def reward(position: Floats) -> Floats:
    """The scaled sigmoid (paper, equation 1), from nearly 1 down to -1.

    Args:
        position: relative to a window: -1 its first row, 0 just past its last, above 0 behind it in window lengths.
    """
    inside = 2.0 / (1.0 + np.exp(STEEPNESS * np.minimum(position, FAR))) - 1.0
    return np.where(position >= FAR, -1.0, inside)


def read_corpus(folder: Path) -> list[Labelled]:
    """All series that `folder`'s labels/combined_windows.json names and data/ holds.

    Raises:
        InvalidInput: there is no such label file, it isn't one, or a file in it can't be read.
    """
    path = folder / WINDOWS
    try:
        named = json.loads(path.read_text(encoding="utf-8"))
        spans = {str(name): [(str(first), str(last)) for first, last in pairs] for name, pairs in named.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InvalidInput(
            field="--nab", got=f"{path}: {error}", expected=f"a folder with {WINDOWS} and data/",
            next_step="Name the corpus' folder, such as ../shared/data/nab.",
        ) from error  # fmt: skip
    there = [name for name in spans if (folder / "data" / name).is_file()]
    if not there:
        raise InvalidInput(
            field="--nab", got=f"none of {len(spans)} labelled files in {folder / 'data'}",
            expected="the files that the labels name, such as data/realTweets/Twitter_volume_AAPL.csv",
            next_step="Name the corpus' folder, such as ../shared/data/nab.",
        )  # fmt: skip
    return [_labelled(name, read_series(folder / "data" / name), spans[name]) for name in sorted(there)]


def _labelled(name: str, series: Series, spans: Iterable[tuple[str, str]]) -> Labelled:
    times = series.times
    windows = []
    for first, last in spans:
        inside = np.flatnonzero((times >= np.datetime64(first, "us")) & (times <= np.datetime64(last, "us")))
        if len(inside):
            windows.append((int(inside[0]), int(inside[-1])))
    return Labelled(name=name, series=series, windows=tuple(sorted(windows)))


def row_rewards(rows: int, windows: Sequence[tuple[int, int]]) -> tuple[Floats, NDArray[np.int64]]:
    """What a detection at each row is worth before weights, and which window the row is in.

    Returns:
        Rewards of shape (rows,): inside a window up to 1 at its first row (scaled so), outside from 0 down to -1. The
        window's index of shape (rows,), -1 outside.
    """
    worth = np.full(rows, -1.0)
    window_of = np.full(rows, -1, np.int64)
    index = np.arange(rows)
    for number, (first, last) in enumerate(windows):
        width = last - first + 1
        worth[last + 1 :] = reward((index[last + 1 :] - last) / max(width - 1, 1))
        inside = index[first : last + 1]
        worth[inside] = reward(-(last - inside + 1) / width) / reward(np.array(-1.0))
        window_of[inside] = number
    return worth, window_of


class Rules:
    """The rules over fixed files: scores in, outcomes out.

    Args:
        corpus: the files; at least one window among them outside probation.
    """

    def __init__(self, corpus: Sequence[Labelled]) -> None:
        worth, windows, counted = [], [], []
        offset = 0
        for one in corpus:
            rows = len(one.series.values)
            rewards, window_of = row_rewards(rows, one.windows)
            worth.append(rewards)
            windows.append(np.where(window_of < 0, -1, window_of + offset))
            counted.append(np.arange(rows) >= one.probation)
            offset += len(one.windows)
        self.counted = np.concatenate(counted)
        self.worth = np.concatenate(worth)[self.counted]
        self.window_of = np.concatenate(windows)[self.counted]
        self.windows = np.unique(self.window_of[self.window_of >= 0])

    def best(self, scores: Sequence[Floats], profile: Profile) -> Outcome:
        """The outcome of the threshold that earns most; the highest of equals.

        Args:
            scores: one array of shape (rows,) a file, each in [0, 1], in the corpus' order.
            profile: whose weights.
        """
        flat = np.concatenate(scores)[self.counted]
        order = np.argsort(-flat, kind="stable")
        gains = self._gains(order, profile)
        ends = np.flatnonzero(np.append(np.diff(flat[order]) != 0, True))
        totals = np.concatenate(([0.0], np.cumsum(gains)[ends]))
        chosen = int(np.argmax(totals))
        threshold = NEVER if chosen == 0 else float(flat[order][ends[chosen - 1]])
        return self.at(scores, profile, threshold)

    def at(self, scores: Sequence[Floats], profile: Profile, threshold: float) -> Outcome:
        """The outcome of a given threshold. See `best`."""
        flat = np.concatenate(scores)[self.counted]
        spoken = np.flatnonzero(flat >= threshold)
        total = float(self._gains(spoken, profile).sum())
        hit = np.unique(self.window_of[spoken])
        hits = int((hit >= 0).sum())
        possible = len(self.windows) * (profile.hit + profile.miss)
        return Outcome(
            score=100.0 * total / possible if possible else 0.0,
            threshold=threshold,
            hits=hits,
            misses=len(self.windows) - hits,
            false_alarms=int((self.window_of[spoken] < 0).sum()),
        )

    def _gains(self, order: NDArray[np.int64], profile: Profile) -> Floats:
        """What each further detection adds to the null detector's score, taken in this order; shape of `order`."""
        window_of, worth = self.window_of[order], self.worth[order]
        gains = np.where(window_of < 0, worth * profile.false_alarm, 0.0)
        for window in self.windows:
            rows = np.flatnonzero(window_of == window)
            if len(rows):
                reached = np.maximum.accumulate(worth[rows]) * profile.hit
                gains[rows] = np.diff(reached, prepend=-profile.miss)
        return gains


def report(corpus: Sequence[Labelled], scores: Mapping[str, Floats]) -> dict[str, Any]:
    """Scores under the three profiles, each with its own threshold, and what each file adds under the standard one.

    Args:
        corpus: the files.
        scores: by file name: arrays of shape (rows,) in [0, 1].
    """
    rules = Rules(corpus)
    ordered = [scores[one.name] for one in corpus]
    outcomes = {profile.name: rules.best(ordered, profile) for profile in PROFILES}
    standard = PROFILES[0]
    files = {}
    for one in corpus:
        outcome = Rules([one]).at([scores[one.name]], standard, outcomes[standard.name].threshold)
        files[one.name] = {
            "rows": len(one.series.values), "windows": len(one.windows), "detected": outcome.hits,
            "false_alarms": outcome.false_alarms, "standard": round(outcome.score, 3) if one.windows else None,
        }  # fmt: skip
    return {
        **{name: round(outcome.score, 4) for name, outcome in outcomes.items()},
        "thresholds": {name: outcome.threshold for name, outcome in outcomes.items()},
        "detections": {
            name: {"hits": one.hits, "misses": one.misses, "false_alarms": one.false_alarms}
            for name, one in outcomes.items()
        },
        "groups": groups(corpus, scores),
        "files": files,
    }


def groups(corpus: Sequence[Labelled], scores: Mapping[str, Floats]) -> dict[str, dict[str, float]]:
    """Each folder's standard score, at its own best threshold and at the one that the other folders choose."""
    standard = PROFILES[0]
    rows: dict[str, dict[str, float]] = {}
    for group in sorted({one.group for one in corpus}):
        inside = [one for one in corpus if one.group == group]
        others = [one for one in corpus if one.group != group]
        rules = Rules(inside)
        if not len(rules.windows) or not others:
            continue
        mine = [scores[one.name] for one in inside]
        elsewhere = Rules(others).best([scores[one.name] for one in others], standard)
        rows[group] = {
            "windows": len(rules.windows),
            "own_threshold": round(rules.best(mine, standard).score, 3),
            "others_threshold": round(rules.at(mine, standard, elsewhere.threshold).score, 3),
        }
    return rows
