"""How well outages were found: what was detected against what is true.

An outage and an incident belong together where their times touch (the first alarm between the incident's start and a
little after its end, no alarm before it) and their slices share viewers. Delays count from the incident's start, when
the cause sets in, which may be well before anybody is hurt: buffers hide it for half a minute, a slow burn for longer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from loadtests.audience.incidents import Kind
from loadtests.audience.sessions import Truth
from loadtests.audience.world import World
from serve.errors import InvalidInput
from serve.watchtower.outages import Outage

LEAST_SHARE: Final = 0.01
"""Of sessions hurt: an outage that hurts as many must be found; a smaller one may be."""

GRACE_MS: Final = 600_000
"""The first alarm may come so long after an incident's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What became of one incident that is an outage.

    Attributes:
        incident_id: the incident.
        kind: its kind.
        share: of sessions that it hurt, 0 to 1.
        delay_s: from its start to the first alarm; None where it was missed.
        delay_after_hurt_s: the same from when the first session was hurt, 0 at least.
        top1: whether its slice, or one of the very same viewers, was named first.
        top3: whether it was among the first three named.
        named: the slice that was named first.
    """

    incident_id: str
    kind: Kind
    share: float
    delay_s: float | None = None
    delay_after_hurt_s: float | None = None
    top1: bool = False
    top3: bool = False
    named: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well outages were found; None where there was nothing to tell it from.

    Attributes:
        median_delay_s: from start to first alarm, over incidents that count and were found; lower is better.
        precision: share of outages called that belong to an incident that is one; higher is better.
        recall: share of the incidents that hurt LEAST_SHARE or more that were found; higher is better.
        top1: share of those found whose slice was named first.
        top3: share of those found whose slice was among the first three.
        false_alarms_per_day: outages called that belong to no incident at all, a day.
        harmless_called: kind -> outages called that belong to incidents of a kind that hurts nobody, and to no other.
        findings: each incident that is an outage, small ones too.
    """

    median_delay_s: float | None
    precision: float | None
    recall: float | None
    top1: float | None
    top3: float | None
    false_alarms_per_day: float
    harmless_called: Mapping[str, int]
    findings: tuple[Finding, ...]

    def summary(self) -> dict[str, Any]:
        """The figures, as `playhead eval outages --json` prints them."""
        return {
            "median_delay_s": self.median_delay_s, "precision": self.precision, "recall": self.recall,
            "top1": self.top1, "top3": self.top3, "false_alarms_per_day": self.false_alarms_per_day,
            "harmless_called": dict(self.harmless_called),
        }  # fmt: skip


def score(
    truths: Sequence[Truth], outages: Sequence[Outage], *, world: World, days: float, least_share: float = LEAST_SHARE
) -> Score:
    """Compare what was called with what is true.

    Args:
        truths: all incidents, those that are no outages too.
        outages: all outages that were called, each once, as it stood in the end.
        world: where.
        days: how long was watched, above 0.
        least_share: share of sessions hurt from which an incident counts for delay, recall and causes.

    Raises:
        InvalidInput: no time was watched.
    """
    if days <= 0:
        raise InvalidInput(field="days", got=days, expected="above 0", next_step="Give the days that were watched.")
    harmful = [truth for truth in truths if truth.incident.is_outage]
    harmless = [truth for truth in truths if not truth.incident.is_outage]
    true, false = 0, 0
    harmless_called: dict[str, int] = {truth.incident.kind: 0 for truth in harmless}
    for outage in outages:
        if any(belongs(outage, truth, world) for truth in harmful):
            true += 1
            continue
        kind = next((truth.incident.kind for truth in harmless if belongs(outage, truth, world)), None)
        if kind is None:
            false += 1
        else:
            harmless_called[kind] += 1
    findings = tuple(_finding(truth, outages, world) for truth in harmful)
    counted = [one for one in findings if one.share >= least_share]
    found = [one for one in counted if one.delay_s is not None]
    return Score(
        median_delay_s=median(one.delay_s for one in found if one.delay_s is not None) if found else None,
        precision=true / len(outages) if outages else None,
        recall=len(found) / len(counted) if counted else None,
        top1=sum(one.top1 for one in found) / len(found) if found else None,
        top3=sum(one.top3 for one in found) / len(found) if found else None,
        false_alarms_per_day=false / days, harmless_called=harmless_called, findings=findings,
    )  # fmt: skip


def belongs(outage: Outage, truth: Truth, world: World) -> bool:
    """Whether an outage that was called may be about an incident: their times touch and their slices share viewers."""
    incident = truth.incident
    in_time = incident.start_ms <= outage.detected_ts <= incident.end_ms + GRACE_MS
    return in_time and world.overlap(outage.slice, incident.slice) > 0.0


def named(outage: Outage) -> list[dict[str, str]]:
    """The slices that an outage names, most likely first: its own, then those of its evidence, each once."""
    slices = [dict(outage.slice)]
    for cause in outage.evidence:
        slice_ = cause.get("slice")
        if isinstance(slice_, Mapping) and dict(slice_) not in slices:
            slices.append(dict(slice_))
    return slices


def _finding(truth: Truth, outages: Sequence[Outage], world: World) -> Finding:
    """What became of an incident; of several outages about it the one that hurt most tells the cause."""
    incident = truth.incident
    own = [outage for outage in outages if belongs(outage, truth, world)]
    if not own:
        return Finding(incident_id=incident.incident_id, kind=incident.kind, share=truth.share)
    detected = min(outage.detected_ts for outage in own)
    largest = min(own, key=lambda outage: (-outage.sessions_hurt, outage.detected_ts))
    right = [world.same_viewers(slice_, incident.slice) for slice_ in named(largest)[:3]]
    since_hurt = detected - (truth.first_hurt_ms if truth.first_hurt_ms is not None else incident.start_ms)
    return Finding(
        incident_id=incident.incident_id, kind=incident.kind, share=truth.share,
        delay_s=(detected - incident.start_ms) / 1000, delay_after_hurt_s=max(0, since_hurt) / 1000,
        top1=right[0], top3=any(right), named=dict(largest.slice),
    )  # fmt: skip
