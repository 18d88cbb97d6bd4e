"""A CDN fails before your eyes: simulated viewers report to a running Playhead, which finds it and steers them away.

The viewers are loadtests.audience's, in real time, over HTTP like any player; each asks GET /v1/steering/dash where to
fetch from, at its start and again and again. What is shown is what the service answers, nothing else.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
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

_MOVED: Final = 0.05
"""Change of the broken CDN's share of viewers that is told."""

_TIMEOUT_S: Final = 5.0
_ROUTE_TTL_S: Final = 20.0
_NO_ANSWER: Final = (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError)
"""What asking where to fetch from may end with, besides an answer."""

_SHOWN: Final = (
    ("confirmed_s", "an outage of the CDN that failed, confirmed",
     "Warm up for longer; see the watchtower's log under the home folder."),
    ("steered_s", "viewers who are steered away from it", "See `playhead status`, and docs/steering.md on the plan."),
    ("closed_s", "an outage that is over some minutes after the CDN delivers again",
     "See GET /v1/outages and the watchtower's log under the home folder."),
)  # fmt: skip
"""What the demo is to show: the report's key, in words, and what to do where it did not happen."""


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
        least of the broken one, in the end) and what became of the reports (`sent`; `unanswered`: how often
        a viewer asked in vain where to fetch from).

    Raises:
        Unavailable: the service does not answer, or is not set up to steer; the viewers ceased to report.
    """
    with _client(settings) as client:
        default = _check(client)
        viewers = Viewers(settings, default)
        breaks_s = time.monotonic() + settings.warm_up_s
        viewers.start()
        try:
            return _follow(settings, client, tell, breaks_s, viewers)
        finally:
            viewers.stop()


def require(report: Mapping[str, Any]) -> None:
    """Refuse a report of a demo in which not all happened that was to be shown.

    Args:
        report: what `run` returned.

    Raises:
        Unavailable: the outage was not confirmed, nobody was steered, or it was not closed.
    """
    for key, wanted, next_step in _SHOWN:
        if report[key] is None:
            happened = [name for name, *_ in _SHOWN if report[name] is not None]
            raise Unavailable(
                field=key.removesuffix("_s"), got=", ".join(f"{name} {report[name]}" for name in happened) or "nothing",
                expected=wanted, next_step=next_step,
            )  # fmt: skip


class Viewers:
    """The simulated viewers: they report from a thread of their own, and ask where to fetch from.

    Args:
        settings: how the demo runs.
        default: the CDN of those who were never answered.

    Attributes:
        sent: what became of their reports.
        unanswered: how often one asked where to fetch from and was not answered; it stays where it is.
    """

    def __init__(self, settings: DemoSettings, default: str) -> None:
        self._settings = settings
        self._default = default
        self._known: dict[str, str] = {}
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.sent = Sent()
        self.unanswered = 0

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(_TIMEOUT_S * 4)

    def check(self) -> None:
        """Whether they still report.

        Raises:
            Unavailable: they ceased to: what the service says from then on is of no use.
        """
        if self._error is not None:
            raise Unavailable(
                field="viewers", got=f"{type(self._error).__name__}: {self._error}",
                expected="viewers that report to the end", next_step="Run the demo again; see the service's log.",
            ) from self._error  # fmt: skip

    def _work(self) -> None:
        try:
            asyncio.run(self._report())
        except Exception as error:  # noqa: BLE001 - told by check
            self._error = error

    async def _report(self) -> None:
        settings = self._settings
        with _client(settings) as client:
            audience = self._audience(client)
            reports = _in_thread(_until(audience.reports(), self._stop))
            await send(reports, SenderSettings(base_url=settings.url, headers=settings.headers), sent=self.sent)

    def _audience(self, client: httpx.Client) -> Audience:
        """Viewers who ask the service which CDN to use, one of which breaks after the warm-up."""
        settings, world = self._settings, build_world(_SEED)
        incident = Incident(
            incident_id="demo", kind="cdn_down", slice={"cdn": BROKEN},
            start_ms=EVENING_MS + int(settings.warm_up_s * 1000), duration_ms=int(settings.broken_s * 1000),
        )  # fmt: skip
        cdns = world.names[0]

        def route(context: Mapping[str, str], now_ms: int) -> str:
            viewer = context["sid"]
            if viewer not in self._known or now_ms >= EVENING_MS:
                self._known[viewer] = self._ask(client, context, cdns)
            return self._known[viewer]

        return Audience(
            seed=_SEED, start_ms=EVENING_MS, duration_s=settings.warm_up_s + settings.broken_s + settings.recovery_s,
            peak_concurrency=settings.viewers, interval_s=10.0, incidents=[incident], world=world, route=route,
            route_ttl_s=_ROUTE_TTL_S, warm_up_s=1800.0,
        )  # fmt: skip

    def _ask(self, client: httpx.Client, context: Mapping[str, str], cdns: Sequence[str]) -> str:
        """The CDN that the service names first; the one of before where it names none."""
        try:
            (first, *_) = priority(client, context["sid"], {name: context[name] for name in ("region", "asn")})
        except _NO_ANSWER:
            first = ""
        if first in cdns:
            return first
        self.unanswered += 1
        return self._known.get(context["sid"], self._default)


def _client(settings: DemoSettings) -> httpx.Client:
    return httpx.Client(base_url=settings.url, timeout=_TIMEOUT_S, headers=dict(settings.headers or {}))


def priority(client: httpx.Client, sid: str, query: Mapping[str, str]) -> list[str]:
    """Where a viewer is steered to, best first."""
    answer = client.get("/v1/steering/dash", params={"sid": sid, **query})
    answer.raise_for_status()
    return [str(one) for one in answer.json()["PATHWAY-PRIORITY"]]


def shares(client: httpx.Client) -> dict[str, float]:
    """Shares of a sample of viewers by the CDN that they are steered to.

    Those who are not answered are left out; nothing is said where those are most.
    """
    counts: dict[str, int] = {}
    unanswered = 0
    for place in range(_SAMPLE):
        try:
            first = priority(client, f"sample-{place}", {})[0]
        except _NO_ANSWER:
            unanswered += 1
            if unanswered > _SAMPLE // 2:
                return {}
            continue
        counts[first] = counts.get(first, 0) + 1
    return {name: counts[name] / (_SAMPLE - unanswered) for name in sorted(counts)}


async def _in_thread(reports: Iterator[Report]) -> AsyncIterator[Report]:
    """Reports as they are made, which takes answers of the service."""
    while (report := await asyncio.to_thread(next, reports, None)) is not None:
        yield report


def _until(reports: Iterator[Report], stop: threading.Event) -> Iterator[Report]:
    for report in reports:
        if stop.is_set():
            return
        yield report


def _check(client: httpx.Client) -> str:
    """The CDN that comes first, of a service that can show what is to be shown."""
    try:
        known = priority(client, "demo", {})
    except _NO_ANSWER as error:
        raise Unavailable(
            field="steering", got=str(error) or type(error).__name__, expected="a Playhead that steers",
            next_step="Bring one up with `make run`, or set `steering` of its placement (docs/steering.md).",
        ) from error  # fmt: skip
    if BROKEN not in known or len(known) < 2:
        raise Unavailable(
            field="steering", got=", ".join(sorted(known)), expected=f"{BROKEN} and another CDN",
            next_step="Run the demo on a stack with deployments/serve/steering.yaml, which `make run` has.",
        )  # fmt: skip
    return known[0]


def _follow(
    settings: DemoSettings, client: httpx.Client, tell: Callable[[float, str], None], breaks_s: float, viewers: Viewers
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
    while True:
        viewers.check()
        now_s = time.monotonic() - breaks_s
        if now_s >= 0 and not told_breaks:
            told_breaks = True
            report["shares"]["before"] = report["shares"]["end"] = last = shares(client) or before
            tell(
                now_s,
                f"{BROKEN} stops delivering; viewers by CDN: {_percent(last)}; "
                f"{viewers.sent.accepted:,} reports so far",
            )
        if now_s >= settings.broken_s and not told_mended:
            told_mended = True
            tell(now_s, f"{BROKEN} delivers again")
        for outage in _outages(client):
            _note(outage, states, report, tell, now_s)
        if told_breaks:
            back = _note_shares(shares(client), report, tell, now_s)
            if (report["closed_s"] is not None and back) or now_s > settings.broken_s + settings.recovery_s:
                break
        time.sleep(_POLL_S)
    sent = viewers.sent
    report["sent"] = {
        "reports": sent.reports, "accepted": sent.accepted, "failed": sent.failed, "unanswered": viewers.unanswered,
        "worst_lag_s": round(sent.worst_lag_s, 1),
    }  # fmt: skip
    return report


def _note_shares(
    current: Mapping[str, float], report: dict[str, Any], tell: Callable[[float, str], None], now_s: float
) -> bool:
    """Tell of viewers who were moved; whether they are back."""
    if not current:
        return False  # the service does not answer: nothing is known
    told = report["shares"]
    share, before = current.get(BROKEN, 0.0), told["before"].get(BROKEN, 0.0)
    told["least_broken"] = min(told["least_broken"], share)
    if abs(share - told["end"].get(BROKEN, 0.0)) >= _MOVED:
        told["end"] = current
        tell(now_s, f"steering: viewers by CDN: {_percent(current)}")
        if report["steered_s"] is None and share < before:
            report["steered_s"] = round(now_s, 1)
    return bool(share >= 0.9 * before)


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
