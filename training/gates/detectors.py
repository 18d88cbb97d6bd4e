"""The gate of the detectors' settings: what both call on the same later evenings, whose incidents are known.

False alarms are compared by evening, what became of incidents by incident: nothing else is independent. Both are
replayed beside each other on one scene, so that whatever is by chance in an evening is the same for both. Promptness is
1 at once, one half after HALF_S, 0 for what is missed: so it is not the incidents that creep for an hour which decide.
Settings have no graphs and no engine time. Shapes: N incidents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from serve.artifacts import Artifact
from serve.errors import ArtifactError
from serve.watchtower.settings import DetectorSettings
from training.detectors.days import Day, replay
from training.detectors.train import figures
from training.gates.hearing import Hearing
from training.gates.intervals import Floats, codes_of
from training.gates.noninferiority import Margin, is_better, judge
from training.gates.soundness import check_changed, check_lineage
from training.gates.verdict import Check, Verdict

T = TypeVar("T")

HALF_S: Final = 60.0
"""The delay of which promptness is one half, seconds."""
LEAST_INCIDENTS: Final = 8
"""That must have to be found, and of a kind for it to be looked at by itself."""


@dataclass(frozen=True, kw_only=True)
class DetectorGateSettings:
    """What is asked of settings.

    Attributes:
        false_alarms: margins of false alarms an evening; of suspicions where nobody was hurt, confirmed or not.
        found: margins of the share of incidents that are found; of that whose cause is named first.
        promptness: margins of promptness of confirmation; of suspicion.
    """

    false_alarms: Margin = field(default_factory=lambda: Margin(overall=0.5, slices=1.0, relative=False, others=2.0))
    found: Margin = field(default_factory=lambda: Margin(overall=0.1, slices=0.3, relative=False, others=0.15))
    promptness: Margin = field(default_factory=lambda: Margin(overall=0.1, slices=0.3, relative=False, others=0.1))


def gate_detectors(
    candidate: Artifact, champion: Artifact, days: Sequence[Day], *, settings: DetectorGateSettings | None = None
) -> Verdict:
    """Ask whether settings may go on.

    Args:
        candidate: the artifact.
        champion: the artifact that it would replace.
        days: later ones than either was tuned on.
        settings: what is asked.

    Raises:
        ArtifactError: the champion's settings are not usable.
    """
    settings = settings or DetectorGateSettings()
    checks = [check_lineage(candidate, timed=False)]
    facts: dict[str, Any] = {"evenings": [day.name for day in days]}
    hearing = Hearing(candidate=candidate, champion=champion, checks=checks, facts=facts)

    theirs = DetectorSettings.of(champion)
    try:
        ours = DetectorSettings.of(candidate)
    except ArtifactError as error:
        return hearing.refused("the Watchtower", error)
    pairs = [(mine, other) for day in days for mine, other in [replay(day, [ours, theirs])]]
    facts |= {"candidate": figures([mine for mine, _ in pairs]), "champion": figures([other for _, other in pairs])}
    same = all(mine == other for mine, other in pairs)
    checks.append(check_changed(candidate, champion, same_answers=same))
    incidents = [
        (mine, other)
        for ours_of, theirs_of in pairs
        for mine, other in zip(ours_of.found, theirs_of.found, strict=True)
        if mine.counts
    ]
    facts["incidents"] = len(incidents)
    if len(incidents) < LEAST_INCIDENTS:
        checks.append(
            Check(
                name="incidents", passed=False, measured=float(len(incidents)), bound=float(LEAST_INCIDENTS),
                text=f"{len(incidents)} incidents have to be found, {LEAST_INCIDENTS} are needed to say anything",
            )
        )  # fmt: skip
        return hearing.verdict()
    days_of, units = np.arange(len(pairs)), codes_of([mine.incident_id for mine, _ in incidents])
    kinds = np.array([mine.kind for mine, _ in incidents])
    slices = {str(kind): kinds == kind for kind in sorted(set(kinds.tolist()))}
    cost = _both(pairs, lambda score: -score.cost_s)
    _, (whole, *_) = judge(
        "cost", *cost, days_of, {}, Margin(overall=np.inf, slices=np.inf, relative=False), unit="evenings"
    )
    suspected = _both(pairs, lambda score: -float(score.suspected_falsely))
    parts = [
        judge(
            "false alarms", *_both(pairs, lambda score: -float(score.false_alarms)), days_of, {}, settings.false_alarms,
            unit="evenings", others={"false suspicions": suspected},
        ),
        judge(
            "found", *_both(incidents, lambda one: float(one.is_found)), units, slices, settings.found,
            unit="incidents", least=LEAST_INCIDENTS,
            others={"named first": _both(incidents, lambda one: float(one.first))},
        ),
        judge(
            "promptness of confirmation", *_both(incidents, lambda one: _promptness(one.confirmed_s)), units, slices,
            settings.promptness, unit="incidents", least=LEAST_INCIDENTS,
            others={"promptness of suspicion": _both(incidents, lambda one: _promptness(one.suspected_s))},
        ),
    ]  # fmt: skip
    checks += [check for found, _ in parts for check in found]
    comparisons = [whole, *(one for _, found in parts for one in found)]
    better = all(check.passed for check in checks) and is_better(whole)
    return hearing.verdict(comparisons=tuple(comparisons), better=bool(better))


def _both(pairs: Sequence[tuple[T, T]], of: Callable[[T], float]) -> tuple[Floats, Floats]:
    """A measure of the candidate's and the champion's."""
    mine, other = (np.array([of(pair[place]) for pair in pairs], np.float64) for place in (0, 1))
    return mine, other


def _promptness(delay_s: float | None) -> float:
    return 0.0 if delay_s is None else HALF_S / (HALF_S + max(delay_s, 0.0))
