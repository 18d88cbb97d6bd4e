"""Localisers over the same generated incidents: top-1, top-3, F1 and time, level by level."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from training.watchtower.incidents import Incident
from training.watchtower.rivals import METHODS, Verdict


def judge(incident: Incident, verdict: Verdict) -> tuple[bool, bool, float]:
    """Whether a verdict is right at first, within three, and its F1.

    Slices are right only when they are the injected ones, name by name. Top-1: the first is one of the causes. Top-3:
    of the first three as many are as there are causes (three where there are more). F1 is of the causes named together.
    With no cause injected all three ask the same: no cause named, and `external` said where everything degraded.
    """
    if not incident.causes:
        right = not verdict.causes and verdict.external == incident.external
        return right, right, float(right)
    if verdict.external:
        return False, False, 0.0
    first = [one in incident.causes for one in verdict.ranked[:3]]
    hits = sum(one in incident.causes for one in verdict.causes)
    f1 = 2.0 * hits / (len(verdict.causes) + len(incident.causes))
    return first[:1] == [True], sum(first) >= min(3, len(incident.causes)), f1


def compare(
    incidents: Iterable[Incident], *, methods: Iterable[str] = tuple(METHODS),
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:  # fmt: skip
    """Every method over every incident.

    Returns:
        method -> level (and `all`) -> cases, top1, top3, f1 (0 to 1, means) and ms (median per incident; worst_ms).
    """
    names = tuple(methods)
    judged: dict[tuple[str, str], list[tuple[bool, bool, float, float]]] = defaultdict(list)
    for done, incident in enumerate(incidents, start=1):
        table = incident.table()
        for name in names:
            start = time.perf_counter()
            verdict = METHODS[name](table)
            ms = (time.perf_counter() - start) * 1e3
            for level in (incident.level, "all"):
                judged[name, level].append((*judge(incident, verdict), ms))
        if progress is not None:
            progress(done)
    report: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in names}
    for (name, level), rows in judged.items():
        top1, top3, f1, ms_each = np.array(rows, dtype=np.float64).T
        report[name][level] = {
            "cases": len(rows), "top1": float(top1.mean()), "top3": float(top3.mean()), "f1": float(f1.mean()),
            "ms": float(np.median(ms_each)), "worst_ms": float(ms_each.max()),
        }  # fmt: skip
    return report
