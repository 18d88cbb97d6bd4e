"""A CDN fails before your eyes: simulated viewers report to a running Playhead, which finds it and steers them away.

The viewers are loadtests.audience's, in real time, over HTTP like any player; each asks GET /v1/steering/dash where to
fetch from, at its start and again and again. What is shown is what the service answers, nothing else.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from loadtests.audience.incidents import Incident
from loadtests.audience.sender import SenderSettings, Sent, send
from loadtests.audience.sessions import Audience
from loadtests.audience.world import FIRST_DAY_MS, HOUR_MS, build_world
from serve.clock import now_ms
from serve.errors import Unavailable
from serve.telemetry.reports import Report

BROKEN: Final = "north"
EVENING_MS: Final = FIRST_DAY_MS + 19 * HOUR_MS
"""When the viewers' evening begins, simulated: they are many, and their number is steady."""

_SEED: Final = 4
_POLL_S: Final = 1.0
_SAMPLE: Final = 200
"""Viewers that are asked about, for the shares that are shown."""

_TIMEOUT_S: Final = 5.0
_ROUTE_TTL_S: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """How the demo runs.

    Attributes:
        url: a running Playhead.
        viewers: at a time.
        warm_up_s: before anything breaks; detectors take 8 minutes to learn what is usual.
        broken_s: how long the CDN is down.
        recovery_s: longest wait for the end of the outage.
        headers: sent with every request.
    """

    url: str
    viewers: int = 600
    warm_up_s: float = 480.0
    broken_s: float = 150.0
    recovery_s: float = 600.0
    headers: Mapping[str, str] | None = None


def run(settings: DemoSettings, tell: Callable[[float, str], None]) -> dict[str, Any]:
    """Run the demo; takes warm_up_s + broken_s + a few minutes.

    Args:
        settings: how.
        tell: told of each thing that happens: seconds since the CDN broke, and in words.

    Returns:
        When what happened (`detected_s`, `confirmed_s`, `steered_s`, `recovering_s`, `closed_s`; seconds since the CDN
        broke, None where it did not), the slice that was named (`slice`), shares of viewers by CDN (`shares`: before,
        least of the broken one, in the end) and what became of the reports (`sent`).

    Raises:
        Unavailable: the service does not answer, or is not set up to steer.
    """
    with httpx.Client(base_url=settings.url, timeout=_TIMEOUT_S, headers=dict(settings.headers or {})) as client:
        _check(client)
        audience = _audience(settings, client)
        sent, stop = Sent(), threading.Event()
        began_s = time.monotonic()
        sender = threading.Thread(
            target=lambda: asyncio.run(
                send(
                    _until(audience.reports(), stop),
                    SenderSettings(base_url=settings.url, headers=settings.headers), sent=sent,
                )
            ),
            daemon=True,
        )  # fmt: skip
        sender.start()
        try:
            return _follow(settings, client, tell, began_s + settings.warm_up_s, sent)
        finally:
            stop.set()
            sender.join(_TIMEOUT_S * 4)


def _audience(settings: DemoSettings, client: httpx.Client) -> Audience:
    """Viewers who ask the service which CDN to use, one of which breaks after the warm-up."""
    world = build_world(_SEED)
    incident = Incident(
        incident_id="demo", kind="cdn_down", slice={"cdn": BROKEN},
        start_ms=EVENING_MS + int(settings.warm_up_s * 1000), duration_ms=int(settings.broken_s * 1000),
    )  # fmt: skip

    known: dict[str, str] = {}

    def route(context: Mapping[str, str], now_ms: int) -> str:
        viewer = context["sid"]
        if viewer not in known or now_ms >= EVENING_MS:
            known[viewer] = priority(client, viewer, {name: context[name] for name in ("region", "asn")})[0]
        return known[viewer]

    return Audience(
        seed=_SEED, start_ms=EVENING_MS, duration_s=settings.warm_up_s + settings.broken_s + settings.recovery_s,
        peak_concurrency=settings.viewers, interval_s=10.0, incidents=[incident], world=world, route=route,
        route_ttl_s=_ROUTE_TTL_S, warm_up_s=1800.0,
    )  # fmt: skip


def priority(client: httpx.Client, sid: str, query: Mapping[str, str]) -> list[str]:
    """Where a viewer is steered to, best first."""
    answer = client.get("/v1/steering/dash", params={"sid": sid, **query})
    answer.raise_for_status()
    return [str(one) for one in answer.json()["PATHWAY-PRIORITY"]]


def shares(client: httpx.Client) -> dict[str, float]:
    """Shares of a sample of viewers by the CDN that they are steered to."""
    counts: dict[str, int] = {}
    for place in range(_SAMPLE):
        first = priority(client, f"sample-{place}", {})[0]
        counts[first] = counts.get(first, 0) + 1
    return {name: counts[name] / _SAMPLE for name in sorted(counts)}


def _until(reports: Iterator[Report], stop: threading.Event) -> Iterator[Report]:
    for report in reports:
        if stop.is_set():
            return
        yield report


def _check(client: httpx.Client) -> None:
    try:
        known = set(priority(client, "demo", {}))
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise Unavailable(
            field="steering", got=str(error) or type(error).__name__, expected="a Playhead that steers",
            next_step="Bring one up with `make run`, or set `steering` of its placement (docs/steering.md).",
        ) from error  # fmt: skip
    if BROKEN not in known or len(known) < 2:
        raise Unavailable(
            field="steering", got=", ".join(sorted(known)), expected=f"{BROKEN} and another CDN",
            next_step="Run the demo on a stack with deployments/serve/steering.yaml, which `make run` has.",
        )  # fmt: skip


def _follow(
    settings: DemoSettings, client: httpx.Client, tell: Callable[[float, str], None], breaks_s: float, sent: Sent
) -> dict[str, Any]:
    """Watch what the service says until the outage is over."""
    report: dict[str, Any] = dict.fromkeys(
        ("detected_s", "confirmed_s", "steered_s", "recovering_s", "closed_s", "slice", "sessions_hurt")
    )
    before = shares(client)
    report["shares"] = {"before": before, "least_broken": before.get(BROKEN, 0.0), "end": before}
    tell(time.monotonic() - breaks_s, f"{settings.viewers} viewers, by CDN: {_percent(before)}; learning what is usual")
    states: dict[str, str] = {}
    told_breaks = told_mended = False
    last = before
    while True:
        now_s = time.monotonic() - breaks_s
        if now_s >= 0 and not told_breaks:
            told_breaks = True
            last = report["shares"]["before"] = shares(client)
            tell(
                now_s, f"{BROKEN} stops delivering; viewers by CDN: {_percent(last)}; {sent.accepted:,} reports so far"
            )
        if now_s >= settings.broken_s and not told_mended:
            told_mended = True
            tell(now_s, f"{BROKEN} delivers again")
        for outage in _outages(client):
            _note(outage, states, report, tell, now_s)
        if told_breaks:
            current = shares(client)
            moved = abs(current.get(BROKEN, 0.0) - last.get(BROKEN, 0.0))
            report["shares"]["least_broken"] = min(report["shares"]["least_broken"], current.get(BROKEN, 0.0))
            if moved >= 0.05:
                last = report["shares"]["end"] = current
                tell(now_s, f"steering: viewers by CDN: {_percent(current)}")
                if report["steered_s"] is None and current.get(BROKEN, 0.0) < before.get(BROKEN, 0.0):
                    report["steered_s"] = round(now_s, 1)
            back = current.get(BROKEN, 0.0) >= 0.9 * report["shares"]["before"].get(BROKEN, 0.0)
            if (report["closed_s"] is not None and back) or now_s > settings.broken_s + settings.recovery_s:
                break
        time.sleep(_POLL_S)
    report["sent"] = {"reports": sent.reports, "accepted": sent.accepted, "failed": sent.failed}
    return report


def _outages(client: httpx.Client) -> list[dict[str, Any]]:
    try:
        answer = client.get("/v1/outages", params={"state": "all"})
        answer.raise_for_status()
    except httpx.HTTPError:
        return []
    found: list[dict[str, Any]] = answer.json()["outages"]
    since_ms = now_ms() - HOUR_MS
    return [outage for outage in found if outage["detected_ts"] >= since_ms]


def _note(
    outage: dict[str, Any], states: dict[str, str], report: dict[str, Any], tell: Callable[[float, str], None],
    now_s: float,
) -> None:  # fmt: skip
    """Tell of an outage that is in another state than before."""
    name, state = outage["outage_id"], outage["state"]
    if states.get(name) == state or (name not in states and state == "closed"):
        states.setdefault(name, state)
        return
    states[name] = state
    where = ", ".join(f"{dimension} {value}" for dimension, value in outage["slice"].items()) or "everyone"
    worst = outage["effects"][0] if outage["effects"] else None
    why = "" if worst is None else f"; {worst['metric']} {worst['now']:.0%}, usually {worst['expected']:.1%}"
    tell(now_s, f"outage {state}: {where}; {outage['sessions_hurt']} sessions hurt{why}")
    if outage["slice"].get("cdn") != BROKEN:
        return
    report["slice"], report["sessions_hurt"] = outage["slice"], outage["sessions_hurt"]
    key = {"suspected": "detected_s"}.get(state, f"{state}_s")
    if report.get(key) is None:
        report[key] = round(now_s, 1)
    if report["detected_s"] is None:
        report["detected_s"] = report[key]


def _percent(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in found.items())
