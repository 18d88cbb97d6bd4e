"""Tuning the detectors' settings on days whose incidents are known, and the version that comes of it.

All changes of one setting are replayed beside each other; then those that helped are brought together, the best first,
beside combinations of them that are drawn. The best of all by cost (training.detectors.days) is the version, the start
itself where nothing is better: the seed fixes days and draws, so it fixes the version.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import numpy as np

from serve.artifacts import Artifact
from serve.watchtower.settings import DEFAULTS, MODEL, PARAMETER, DetectorSettings, bounds
from training.detectors.days import Day, DayScore, replay
from training.export import export_artifact
from training.lineage import lineage_of
from training.recommend.progress import ProgressReport, silent

Change = Mapping[str, float]

STEPS: Final[Mapping[str, tuple[float, ...]]] = {
    "evidence": (0.75, 0.875, 1.15, 1.3),
    "lasting_evidence": (0.85, 1.2),
    "least_bad": (0.75, 1.5),
    "slow_evidence": (0.85, 1.2),
    "slow_least_bad": (0.75, 1.5),
    "least_excess": (0.75, 1.5),
    "least_hurt": (0.6, 1.6),
    "confirmed_after": (1.5, 2.0),
    "confirmed_within": (0.5, 1.5),
    "suspicion_ends": (0.67, 1.67),
}
"""Factors by which each setting is tried; what is not here keeps its value. An outage is never confirmed by fewer
alarms than at the start: how rarely one window errs is more than a few evenings show."""
_DRAWN: Final = 12
"""Combinations of changes that helped, which are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What came of a search.

    Attributes:
        settings: the best.
        scores: of them, by day.
        before: of the settings that it started from, by day.
        tried: how many settings were replayed.
    """

    settings: DetectorSettings
    scores: Sequence[DayScore]
    before: Sequence[DayScore]
    tried: int


def tune(days: Sequence[Day], start: DetectorSettings, seed: int, progress: ProgressReport = silent) -> Tuned:
    """The settings that cost least on some days.

    Args:
        days: that were watched, one at least.
        start: where the search begins.
        seed: of what is drawn.
        progress: told after each day.
    """
    singles = [change for change in _changes(start) if changed(start, change) is not None]
    scores = _replayed(days, start, [{}, *singles], "changes", progress)
    before, costs = scores[0], [_cost(found) for found in scores]
    helped = sorted((place for place in range(1, len(scores)) if costs[place] < costs[0]), key=lambda at: costs[at])
    known = [({}, before), *[(singles[place - 1], scores[place]) for place in helped]]
    together = _together([singles[place - 1] for place in helped], seed)
    together = [change for change in together if changed(start, change) is not None]
    if together:
        known += zip(together, _replayed(days, start, together, "together", progress), strict=True)
    change, best = min(known, key=lambda one: _cost(one[1]))
    settings = changed(start, change)
    assert settings is not None
    return Tuned(settings=settings, scores=best, before=before, tried=len(scores) + len(together))


def train_detectors(
    destination: Path, days: Sequence[Day], seed: int = 0, progress: ProgressReport = silent, *,
    parent: Artifact | None = None, run: str = "",
) -> Artifact:  # fmt: skip
    """Tune, and write the artifact `destination/<version>`; the champion is not changed.

    Args:
        destination: folder of the model's versions, such as `.playhead/models/detectors`.
        days: that were watched.
        seed: of what is drawn.
        progress: told how far it is.
        parent: version that the search starts from; None: the defaults.
        run: id of the tracked run.

    Raises:
        ArtifactError: the parent's settings are not usable, or the version can't be written.
    """
    start = DEFAULTS if parent is None else DetectorSettings.of(parent)
    tuned = tune(days, start, seed, progress)
    metrics = figures(tuned.scores) | {
        "start": figures(tuned.before), "days": len(tuned.scores), "tried": tuned.tried,
        "incidents": sum(len(score.counted) for score in tuned.scores),
    }  # fmt: skip
    return export_artifact(
        destination, name=MODEL, graphs={}, tables={}, parameters={PARAMETER: tuned.settings.model_dump()},
        metrics=metrics, data_snapshot=_snapshot(days),
        lineage=lineage_of(None, seed=seed, parent="" if parent is None else parent.version, run=run),
    )  # fmt: skip


def changed(start: DetectorSettings, change: Change) -> DetectorSettings | None:
    """Settings with some of them multiplied, within their ranges; None where they do not fit together."""
    fields: dict[str, Any] = start.model_dump()
    for name, factor in change.items():
        low, high = bounds(name)
        value = min(max(fields[name] * factor, low), high)
        fields[name] = round(value) if isinstance(fields[name], int) else round(value, 3)
    try:
        return DetectorSettings(**fields)
    except ValueError:
        return None


def figures(scores: Sequence[DayScore]) -> dict[str, Any]:
    """Scores of some days in figures, as the manifest has them."""
    counted = [found for score in scores for found in score.counted]
    suspected = [found.suspected_s for found in counted if found.suspected_s is not None]
    confirmed = [found.confirmed_s for found in counted if found.confirmed_s is not None]
    return {
        "cost_s": round(_cost(scores), 3),
        "false_alarms": round(mean(score.false_alarms for score in scores), 4),
        "false_suspicions": round(mean(score.false_suspicions for score in scores), 4),
        "recall": round(len(confirmed) / len(counted), 4) if counted else None,
        "median_suspected_s": median(suspected) if suspected else None,
        "median_confirmed_s": median(confirmed) if confirmed else None,
        "named_first": round(mean(found.first for found in counted if found.is_found), 4) if confirmed else None,
    }


def _changes(start: DetectorSettings) -> list[Change]:
    """Those of one setting that change it, each once."""
    found: list[Change] = []
    for name, factors in STEPS.items():
        seen = {getattr(start, name)}
        for factor in factors:
            settings = changed(start, {name: factor})
            if settings is None or getattr(settings, name) not in seen:
                seen.add(None if settings is None else getattr(settings, name))
                found.append({name: factor})
    return found


def _together(helped: Sequence[Change], seed: int) -> list[Change]:
    """Changes that helped brought together: the best first, each beside those before, and some that are drawn."""
    found: list[Change] = []
    so_far: dict[str, float] = {}
    for change in helped:
        if not change.keys() & so_far.keys():
            so_far = so_far | dict(change)
            found.append(dict(so_far))
    random = np.random.default_rng([seed, 3])
    for _ in range(_DRAWN if len(helped) > 1 else 0):
        drawn: dict[str, float] = {}
        for place in random.permutation(len(helped))[: int(random.integers(2, 5))].tolist():
            drawn = dict(helped[place]) | drawn
        found.append(drawn)
    return [change for place, change in enumerate(found) if len(change) > 1 and change not in found[:place]]


def _replayed(
    days: Sequence[Day], start: DetectorSettings, changes: Sequence[Change], stage: str, progress: ProgressReport
) -> list[list[DayScore]]:
    """The scores of each change, by day."""
    tried = [settings for change in changes if (settings := changed(start, change)) is not None]
    scores: list[list[DayScore]] = [[] for _ in tried]
    for place, day in enumerate(days):
        progress(stage, place, len(days), f"{len(tried)} settings on {day.name}")
        for known, score in zip(scores, replay(day, tried), strict=True):
            known.append(score)
    progress(stage, len(days), len(days))
    return scores


def _cost(scores: Sequence[DayScore]) -> float:
    """A day's in the mean, seconds."""
    return mean(score.cost_s for score in scores)


def _snapshot(days: Sequence[Day]) -> str:
    return hashlib.sha256("\n".join(day.name for day in days).encode()).hexdigest()[:16]
