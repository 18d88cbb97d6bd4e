"""The open-loop client: every request leaves at its intended time, whatever became of the ones before it.

Latency is counted from the intended send time, so a stalled service cannot hide behind requests that a waiting client
never sent (coordinated omission). How far the client itself fell behind is recorded too: a slow generator must not be
taken for a slow service.

Units: times are seconds from the start of the run unless named otherwise; latencies and lags are milliseconds.
"""

import asyncio
import errno
import gc
import selectors
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import orjson

from serve.errors import InvalidInput

CPU_US_A_REQUEST: Final = 650
"""What one request costs this client in CPU (httpx 0.28, 2-core machine): its ceiling is about 1,500 a second."""

MAX_IN_FLIGHT: Final = 900
"""select(2), whose timer is exact to microseconds where epoll's is to milliseconds, takes descriptors below 1,024."""

START_DELAY_S: Final = 0.05
"""Head start, so that the first arrivals are not late because the loop was still being set up."""


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request, and when it is to leave.

    Attributes:
        at_s: intended send time, seconds from the start of the run.
        label: name of its kind in the report, such as `home`.
        method: HTTP method.
        path: path and query, already encoded.
        body: JSON bytes, or None.
    """

    at_s: float
    label: str
    method: str
    path: str
    body: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """How the client behaves.

    Attributes:
        base_url: scheme, host and port of the service.
        timeout_s: longest wait for one answer, counted from the real send.
        max_in_flight: requests open at a time; what would exceed it is counted as the error `overload`.
        headers: sent with every request.
        max_send_lag_ms: the generator kept up if its p99 send lag is at most this.
        max_cpu_share: and if it used at most this share of one core.
    """

    base_url: str
    timeout_s: float = 5.0
    max_in_flight: int = 256
    headers: Mapping[str, str] = field(default_factory=dict)
    max_send_lag_ms: float = 10.0
    max_cpu_share: float = 0.85

    def __post_init__(self) -> None:
        """Refuse numbers that the client cannot keep."""
        if not 1 <= self.max_in_flight <= MAX_IN_FLIGHT:
            raise InvalidInput(
                field="max_in_flight",
                got=self.max_in_flight,
                expected=f"1 to {MAX_IN_FLIGHT}",
                next_step="Run several clients for more open requests.",
            )
        if not self.timeout_s > 0:
            raise InvalidInput(
                field="timeout_s", got=self.timeout_s, expected="above 0 seconds", next_step="5 is usual."
            )


@dataclass(slots=True)
class Outcome:
    """What became of one planned request.

    Attributes:
        at_s: intended send time.
        label: its kind.
        latency_ms: from the intended send time to the last byte, or to the failure; 0 where it was never sent.
        send_lag_ms: how late it left; 0 where it was never sent.
        error: empty, or its kind: `timeout`, `connect`, `protocol`, `http_3xx`, `http_4xx`, `http_5xx`, `bad_body`,
            `overload`.
        degraded: the answer's `degraded` reasons were not empty.
    """

    at_s: float
    label: str
    latency_ms: float = 0.0
    send_lag_ms: float = 0.0
    error: str = ""
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole run.

    Attributes:
        outcomes: one for each planned request, in the order of their intended times.
        wall_s: from the start to the last answer, at least the planned duration.
        cpu_s: CPU time that the client's process used meanwhile.
        settings: what the client ran with.
    """

    outcomes: list[Outcome]
    wall_s: float
    cpu_s: float
    settings: ClientSettings


class _Lanes:
    """Keep-alive connections, the most recently used first.

    Each lane is an httpx transport with one connection. One shared httpx pool would look at every connection for every
    request: measured 2.0 ms of CPU a request with 16 connections and 8.8 ms with 64, against 0.65 ms with lanes.
    """

    def __init__(self) -> None:
        self._tls = ssl.create_default_context()
        self._free: list[httpx.AsyncHTTPTransport] = []
        self._all: list[httpx.AsyncHTTPTransport] = []
        self._limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=30.0)

    def take(self) -> httpx.AsyncHTTPTransport:
        if self._free:
            return self._free.pop()
        lane = httpx.AsyncHTTPTransport(verify=self._tls, limits=self._limits, trust_env=False)
        self._all.append(lane)
        return lane

    def give(self, lane: httpx.AsyncHTTPTransport) -> None:
        self._free.append(lane)

    async def drop(self, lane: httpx.AsyncHTTPTransport) -> None:
        """Close a lane whose request failed: whatever is still on its wire belongs to nobody."""
        self._all.remove(lane)
        await lane.aclose()

    async def close(self) -> None:
        for lane in self._all:
            await lane.aclose()


class _Run:
    """One run in progress."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self.base = httpx.URL(settings.base_url)
        self.lanes = _Lanes()
        self.start = 0.0
        headers = {"host": self.base.netloc.decode(), "accept": "application/json", "user-agent": "playhead-loadtests"}
        headers.update({name.lower(): value for name, value in settings.headers.items()})
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    def request(self, planned: PlannedRequest) -> httpx.Request:
        headers = self.headers
        if planned.body is not None:
            headers = [*headers, (b"content-type", b"application/json")]
        url = self.base.copy_with(raw_path=planned.path.encode())
        return httpx.Request(planned.method, url, headers=headers, content=planned.body)

    async def send(self, planned: PlannedRequest, outcome: Outcome) -> None:
        """Send one request and note what became of it; every failure is an outcome, none is raised."""
        clock = time.perf_counter
        intended = self.start + planned.at_s
        lane = self.lanes.take()
        response: httpx.Response | None = None
        body = b""
        outcome.send_lag_ms = max(0.0, (clock() - intended) * 1e3)
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                response = await lane.handle_async_request(self.request(planned))
                body = await response.aread()
                await response.aclose()
        except TimeoutError:
            outcome.error = "timeout"
        except (httpx.ConnectError, httpx.ConnectTimeout):
            outcome.error = "connect"
        except (httpx.HTTPError, OSError) as error:
            outcome.error = "connect" if getattr(error, "errno", None) == errno.ECONNREFUSED else "protocol"
        outcome.latency_ms = (clock() - intended) * 1e3
        if outcome.error:
            await self.lanes.drop(lane)
            return
        self.lanes.give(lane)
        assert response is not None
        if not 200 <= response.status_code < 300:
            outcome.error = f"http_{response.status_code // 100}xx"
        else:
            outcome.error, outcome.degraded = judge_body(body)


def judge_body(body: bytes) -> tuple[str, bool]:
    """Parse an answer: (`bad_body` unless it is a JSON object or empty, whether it says that it is degraded)."""
    if not body:
        return "", False  # 202 and 204 answers carry nothing
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "bad_body", False
    if not isinstance(answer, dict):
        return "bad_body", False
    return "", bool(answer.get("degraded"))


async def drive(
    plan: Sequence[PlannedRequest], settings: ClientSettings, *, on_progress: Callable[[float], None] | None = None
) -> Recording:
    """Send a plan and record what became of every request.

    Run it on a loop from `new_event_loop`; on another loop the timer's rounding shows up as send lag.

    Args:
        plan: requests sorted by at_s.
        settings: the client's.
        on_progress: called with the share of the plan that has left, 0 to 1, some times a second.
    """
    run = _Run(settings)
    tasks: set[asyncio.Task[None]] = set()
    outcomes: list[Outcome] = []
    thresholds = gc.get_threshold()
    gc.collect()
    gc.set_threshold(2_000, 20, 1_000_000)  # a full collection of a long run's outcomes would look like service latency
    try:
        cpu_start, next_progress_s = time.process_time(), 0.0
        run.start = time.perf_counter() + START_DELAY_S
        for planned in plan:
            await asyncio.sleep(run.start + planned.at_s - time.perf_counter())
            outcome = Outcome(planned.at_s, planned.label)
            outcomes.append(outcome)
            if len(tasks) >= settings.max_in_flight:
                outcome.error = "overload"
                continue
            task = asyncio.create_task(run.send(planned, outcome))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if on_progress is not None and planned.at_s >= next_progress_s:
                on_progress(len(outcomes) / len(plan))
                next_progress_s = planned.at_s + 0.2
        if tasks:
            await asyncio.gather(*tasks)
        wall_s, cpu_s = time.perf_counter() - run.start, time.process_time() - cpu_start
        if on_progress is not None:
            on_progress(1.0)
    finally:
        gc.set_threshold(*thresholds)
        for task in tasks:
            task.cancel()
        await run.lanes.close()
    return Recording(outcomes=outcomes, wall_s=wall_s, cpu_s=cpu_s, settings=settings)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop whose timer is exact: 0.2 ms late at the median, where asyncio's usual one is 0.9 ms late."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def run_plan(
    plan: Sequence[PlannedRequest], settings: ClientSettings, *, on_progress: Callable[[float], None] | None = None
) -> Recording:
    """`drive` from code that has no loop of its own."""

    async def main() -> Recording:
        return await drive(plan, settings, on_progress=on_progress)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main())


def probe(base_url: str, *, path: str = "/", timeout_s: float = 5.0) -> int:
    """Ask once whether anything answers HTTP there; the status, whatever it is.

    Raises:
        httpx.HTTPError: nothing answered in time.
    """
    options: dict[str, Any] = {"timeout": timeout_s, "trust_env": False}
    return httpx.get(base_url.rstrip("/") + path, **options).status_code
