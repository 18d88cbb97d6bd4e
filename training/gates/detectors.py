"""The gate of the detectors' settings: what both call on the same later evenings, whose incidents are known.

False alarms are compared by evening, what became of incidents by incident: nothing else is independent. Both are
replayed beside each other on one scene, so that whatever is by chance in an evening is the same for both. Delays count
where both found the incident, and to DELAY_S at most: what one of them missed is judged as missed, and what creeps for
an hour says nothing of what breaks at once. Settings have no graphs and no engine time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from serve.artifacts import Artifact
from serve.errors import ArtifactError
from serve.watchtower.settings import DetectorSettings
from training.detectors.days import Day, DayScore, Found, replay
from training.detectors.train import figures
from training.gates.intervals import Floats, codes_of
from training.gates.noninferiority import Margin, is_better, judge
from training.gates.soundness import check_changed, check_lineage
from training.gates.verdict import Check, Comparison, Verdict

DELAY_S: Final = 900.0
"""Longer delays count as this one."""
LEAST_INCIDENTS: Final = 8
"""That must have to be found, and of a kind for it to be looked at by itself."""


@dataclass(frozen=True, kw_only=True)
class DetectorGateSettings:
    """What is asked of settings.

    Attributes:
        false_alarms: margin, false alarms an evening.
        false_suspicions: margin, suspicions an evening where nobody was hurt, confirmed or not.
        found: margins, share of the incidents that have to be found.
        suspected: margin of the delay to the first alarm, seconds.
        confirmed: margins of the delay to the confirmation, seconds.
        named: margin, share of causes that are named first.
    """

    false_alarms: float = 0.5
    false_suspicions: float = 2.0
    found: Margin = field(default_factory=lambda: Margin(overall=0.1, slices=0.3, relative=False))
    suspected: float = 30.0
    confirmed: Margin = field(default_factory=lambda: Margin(overall=30.0, slices=120.0, relative=False))
    named: float = 0.15


@dataclass(frozen=True, kw_only=True)
class _Incident:
    """What became of an incident under both."""

    ours: Found
    theirs: Found


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

    def verdict(**more: Any) -> Verdict:
        return Verdict(
            model=candidate.manifest.name, candidate=candidate.version, champion=champion.version,
            checks=tuple(checks), facts=facts, **more,
        )  # fmt: skip

    theirs = DetectorSettings.of(champion)
    try:
        ours = DetectorSettings.of(candidate)
    except ArtifactError as error:
        checks.append(Check(name="served", passed=False, text=f"the Watchtower refuses it: {error}"))
        return verdict()
    pairs = [(mine, other) for day in days for mine, other in [replay(day, [ours, theirs])]]
    facts |= {"candidate": figures([mine for mine, _ in pairs]), "champion": figures([other for _, other in pairs])}
    same = all(mine == other for mine, other in pairs)
    checks.append(check_changed(candidate, champion, same_answers=same))
    incidents = _incidents(pairs)
    facts["incidents"] = len(incidents)
    if len(incidents) < LEAST_INCIDENTS:
        checks.append(
            Check(
                name="incidents", passed=False, measured=float(len(incidents)), bound=float(LEAST_INCIDENTS),
                text=f"{len(incidents)} incidents have to be found, {LEAST_INCIDENTS} are needed to say anything",
            )
        )  # fmt: skip
        return verdict()
    whole = _by_day("cost", pairs, lambda score: score.cost_s, np.inf, told=True)
    parts = [
        _by_day("false alarms", pairs, lambda score: float(score.false_alarms), settings.false_alarms),
        _by_day("false suspicions", pairs, lambda score: float(score.suspected_falsely), settings.false_suspicions),
        *_by_incident(incidents, settings),
    ]
    checks += [check for found, _ in parts for check in found]
    comparisons = [whole[1][0], *(one for _, found in parts for one in found)]
    better = all(check.passed for check in checks) and is_better(comparisons[0])
    return verdict(comparisons=tuple(comparisons), better=bool(better))


def _by_day(
    measure: str, pairs: Sequence[tuple[DayScore, DayScore]], of: Callable[[DayScore], float], margin: float, *,
    told: bool = False,
) -> tuple[list[Check], list[Comparison]]:  # fmt: skip
    """A measure of evenings, of which less is better."""
    mine, other = (-np.array([of(pair[place]) for pair in pairs], np.float64) for place in (0, 1))
    compared = judge(
        measure, mine, other, np.arange(len(pairs)), {}, Margin(overall=margin, slices=margin, relative=False),
        unit="evenings",
    )  # fmt: skip
    return ([], compared[1]) if told else compared


def _by_incident(
    incidents: Sequence[_Incident], settings: DetectorGateSettings
) -> list[tuple[list[Check], list[Comparison]]]:
    """What became of incidents, each a unit."""
    kinds = np.array([one.ours.kind for one in incidents])
    both = [one for one in incidents if one.ours.is_found and one.theirs.is_found]

    def values(chosen: Sequence[_Incident], of: Callable[[Found], float]) -> tuple[Floats, Floats]:
        return (
            np.array([of(one.ours) for one in chosen], np.float64),
            np.array([of(one.theirs) for one in chosen], np.float64),
        )

    def slices(chosen: Sequence[_Incident]) -> dict[str, Any]:
        own = np.array([one.ours.kind for one in chosen])
        return {str(kind): own == kind for kind in sorted(set(kinds.tolist()))}

    def units(chosen: Sequence[_Incident]) -> Any:
        return codes_of([one.ours.incident_id for one in chosen])

    parts = [
        judge(
            "found", *values(incidents, lambda one: float(one.is_found)), units(incidents), slices(incidents),
            settings.found, unit="incidents", least=LEAST_INCIDENTS,
        )
    ]  # fmt: skip
    if not both:
        return parts
    parts += [
        judge(
            "promptness of suspicion", *values(both, lambda one: -min(one.suspected_s or 0.0, DELAY_S)), units(both),
            {}, Margin(overall=settings.suspected, slices=1.0, relative=False), unit="incidents",
        ),
        judge(
            "promptness of confirmation", *values(both, lambda one: -min(one.confirmed_s or 0.0, DELAY_S)), units(both),
            slices(both), settings.confirmed, unit="incidents", least=LEAST_INCIDENTS,
        ),
        judge(
            "named first", *values(both, lambda one: float(one.first)), units(both), {},
            Margin(overall=settings.named, slices=1.0, relative=False), unit="incidents",
        ),
    ]  # fmt: skip
    return parts


def _incidents(pairs: Sequence[tuple[DayScore, DayScore]]) -> list[_Incident]:
    """Those that have to be found."""
    return [
        _Incident(ours=mine, theirs=other)
        for ours, theirs in pairs
        for mine, other in zip(ours.found, theirs.found, strict=True)
        if mine.counts
    ]
