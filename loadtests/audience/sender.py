"""Sends an audience's reports to a running Playhead, in real time or faster.

The sender is an open loop: reports leave when they are due, whatever became of the ones before, so that a slow service
shows as a lag and as requests in flight, not as an audience that waits.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import httpx

from loadtests.audience.bodies import Body, Form, bodies
from serve.errors import InvalidInput
from serve.telemetry.reports import Report

PATH: Final = "/v1/telemetry"
_AGAIN: Final = frozenset({408, 429, 503})
_RETRY_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderSettings:
    """How reports are sent.

    Attributes:
        base_url: scheme, host and port of the service.
        factor: simulated time per real time; 1: real time, 60: an hour in a minute.
        form: `cmcd` or `json`.
        tick_s: reports that fall due within so many real seconds go together.
        most: reports of one request, 1 to 1,000.
        mixed: whether one request may hold several contexts.
        timeout_s: longest wait for an answer.
        attempts: how often one request is tried, at least once; the service counts what comes twice once.
        most_in_flight: requests at a time; what would exceed it waits, and shows as lag.
        headers: sent with every request.
    """

    base_url: str
    factor: float = 1.0
    form: Form = "cmcd"
    tick_s: float = 0.25
    most: int = 100
    mixed: bool = True
    timeout_s: float = 10.0
    attempts: int = 3
    most_in_flight: int = 32
    headers: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be kept.

        Raises:
            InvalidInput: a number out of range.
        """
        for field, value in (("factor", self.factor), ("tick_s", self.tick_s), ("timeout_s", self.timeout_s)):
            if value <= 0:
                raise InvalidInput(field=field, got=value, expected="above 0", next_step="Correct it.")
        if not 1 <= self.most <= 1000:
            raise InvalidInput(field="most", got=self.most, expected="1 to 1,000", next_step="100 is usual.")
        for field, count in (("attempts", self.attempts), ("most_in_flight", self.most_in_flight)):
            if count < 1:
                raise InvalidInput(field=field, got=count, expected="1 or more", next_step="Correct it.")


@dataclass(slots=True)
class Sent:
    """What became of reports.

    Attributes:
        reports: those that were sent.
        accepted: those that the service says are in its log.
        failed: those whose requests failed in the end, or were refused.
        requests: answered requests and failed ones, each once.
        worst_lag_s: real seconds by which a request's answer came after it was due, at most.
    """

    reports: int = 0
    accepted: int = 0
    failed: int = 0
    requests: int = 0
    worst_lag_s: float = 0.0


async def send(
    reports: Iterable[Report] | AsyncIterable[Report], settings: SenderSettings, *, sent: Sent | None = None
) -> Sent:
    """Send reports as their time comes; the first is due at once.

    The players' clocks (`ts`) are moved along: a report's `ts` is behind the time of sending as far as it was behind
    `received_ms`, by the factor less. What a report says of lengths (msd, bsd, bsda, bl) is left as it is, so only at
    factor 1 do these agree with the clocks.

    Args:
        reports: in the order of `received_ms`, such as Audience.reports(); taken as they fall due. Those that take
            time to make should come asynchronously: what is in flight waits else.
        settings: how.
        sent: counts to go on from, to be read while this runs.

    Returns:
        The counts, once all is answered.
    """
    counts = sent or Sent()
    in_flight = asyncio.Semaphore(settings.most_in_flight)
    async with (
        httpx.AsyncClient(
            base_url=settings.base_url, timeout=settings.timeout_s, headers=dict(settings.headers or {}),
            limits=httpx.Limits(max_connections=settings.most_in_flight),
        ) as client,
        asyncio.TaskGroup() as tasks,
    ):  # fmt: skip
        began, wall_ms, first_ms = 0.0, 0, None
        waiting: list[Report] = []
        tick = 0
        async for report in _each(reports):
            if first_ms is None:
                began, wall_ms, first_ms = time.monotonic(), time.time_ns() // 1_000_000, report.received_ms
            due_s = (report.received_ms - first_ms) / 1000 / settings.factor
            while due_s >= (tick + 1) * settings.tick_s:
                tick = await _flush(waiting, tick, began, client, settings, in_flight, counts, tasks)
            sent_ms = wall_ms + int(due_s * 1000)
            ts = sent_ms - int((report.received_ms - int(report.values["ts"])) / settings.factor)
            waiting.append(replace(report, received_ms=sent_ms, values={**report.values, "ts": ts}))
        await _flush(waiting, tick, began, client, settings, in_flight, counts, tasks)
    return counts


async def _each(reports: Iterable[Report] | AsyncIterable[Report]) -> AsyncIterator[Report]:
    if isinstance(reports, AsyncIterable):
        async for report in reports:
            yield report
    else:
        for report in reports:
            yield report


async def _flush(
    waiting: list[Report], tick: int, began: float, client: httpx.AsyncClient, settings: SenderSettings,
    in_flight: asyncio.Semaphore, counts: Sent, tasks: asyncio.TaskGroup,
) -> int:  # fmt: skip
    """Send what is due at a tick's end, when it comes; the next tick."""
    due = began + (tick + 1) * settings.tick_s
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    for one in bodies(waiting, settings.form, most=settings.most, mixed=settings.mixed) if waiting else ():
        await in_flight.acquire()
        tasks.create_task(_post(one, due, client, settings, in_flight, counts))
    waiting.clear()
    return tick + 1


async def _post(
    one: Body, due: float, client: httpx.AsyncClient, settings: SenderSettings, in_flight: asyncio.Semaphore,
    counts: Sent,
) -> None:  # fmt: skip
    """One request, tried again where that may help."""
    accepted = 0
    try:
        for attempt in range(settings.attempts):
            if attempt:
                await asyncio.sleep(_RETRY_S * 2 ** (attempt - 1))
            try:
                answer = await client.post(
                    f"{PATH}?{one.query}" if one.query else PATH, content=one.content,
                    headers={"Content-Type": one.content_type},
                )  # fmt: skip
            except httpx.HTTPError:
                continue
            if answer.status_code == httpx.codes.OK:
                accepted = int(answer.json()["accepted"])
            if answer.status_code not in _AGAIN:
                break
    finally:
        in_flight.release()
        counts.requests += 1
        counts.reports += one.reports
        counts.accepted += accepted
        counts.failed += one.reports - accepted
        counts.worst_lag_s = max(counts.worst_lag_s, time.monotonic() - due)
