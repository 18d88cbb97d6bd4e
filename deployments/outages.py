"""The whole watch on a simulated audience: what was found against what is true, and what a report costs."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from loadtests.audience.incidents import schedule
from loadtests.audience.scoring import belongs, score
from loadtests.audience.sessions import Audience
from loadtests.audience.world import DAY_MS, build_world
from serve.telemetry.windows import WINDOW_MS
from serve.watchtower.outages import Outage
from serve.watchtower.tower import Watchtower


def watch_audience(
    *, seed: int, days: int, peak: int, start_ms: int, advance: Callable[[float], None] = lambda _: None
) -> dict[str, Any]:
    """Let a simulated audience report, and hold the outages that were confirmed against the incidents that were.

    Args:
        seed: of the world, its viewers and its incidents.
        days: simulated, 1 and more.
        peak: viewers at a time at the evening peak.
        start_ms: when the simulation begins, UTC ms.
        advance: told of the share of the reports that were heard.

    Returns:
        Figures as loadtests.audience.scoring.Score has them, `incidents`, `false_alarms`, `reports` and
        `us_per_report`, the watch's own time alone.
    """
    world = build_world(seed)
    incidents = schedule(seed, days, world=world, start_ms=start_ms)
    audience = Audience(
        seed=seed, start_ms=start_ms, duration_s=days * DAY_MS // 1000, incidents=incidents, world=world,
        peak_concurrency=peak,
    )  # fmt: skip
    tower = Watchtower(start_ms)
    called: dict[str, Outage] = {}
    confirmed: set[str] = set()
    reports, spent_s, clock = 0, 0.0, start_ms
    end_ms = start_ms + days * DAY_MS

    def note(changed: list[Outage]) -> None:
        for outage in changed:
            called[outage.outage_id] = outage
            if outage.state == "confirmed":
                confirmed.add(outage.outage_id)

    begun_s = time.perf_counter()
    for report in audience.reports():
        spent_s -= time.perf_counter()
        if report.received_ms - clock >= WINDOW_MS:
            clock = report.received_ms
            advance(min((clock - start_ms) / (end_ms - start_ms), 1.0))
        changed = tower.hear(report, report.received_ms)
        if changed:
            note(changed)
        spent_s += time.perf_counter()
        reports += 1
    note(tower.advance(end_ms))
    outages = [called[name] for name in called if name in confirmed]
    truths = audience.truths()
    scored = score(truths, outages, world=world, days=days)
    findings = {finding.incident_id: finding for finding in scored.findings}
    return scored.summary() | {
        "incidents": [
            {
                "kind": truth.incident.kind, "slice": dict(truth.incident.slice), "share": truth.share,
                "start_ms": truth.incident.start_ms, "harmless": not truth.incident.is_outage,
                "delay_s": None, "named": None,
                **({} if (found := findings.get(truth.incident.incident_id)) is None else asdict(found)),
            }
            for truth in truths
        ],
        "false_alarms": [
            _told(outage) for outage in outages if not any(belongs(outage, truth, world) for truth in truths)
        ],
        "outages": [_told(outage) for outage in outages],
        "days": days, "seed": seed, "reports": reports, "us_per_report": round(spent_s / max(reports, 1) * 1e6, 1),
        "seconds": round(time.perf_counter() - begun_s, 1),
    }  # fmt: skip


def _told(outage: Outage) -> dict[str, Any]:
    return {
        "slice": dict(outage.slice), "metrics": [effect.metric for effect in outage.effects],
        "detected_ts": outage.detected_ts, "closed_ts": outage.closed_ts, "sessions_hurt": outage.sessions_hurt,
    }  # fmt: skip
