"""Telemetry, measured: what a report costs from its line to the judged window, and what the HTTP path takes in.

    make bench-telemetry
    python -m deployments.bench_telemetry --json --url http://127.0.0.1:8000

A simulated audience (loadtests.audience) watches. In this process, on one core, its lines go through every step of the
service in turn; detectors are warm before anything is measured. Then batches go over HTTP, from a closed loop in a
process of its own, to a gateway in another, and what was acknowledged is counted in the log.

Units: costs are microseconds of CPU a report (events and reports are one thing here), so that other work on the machine
adds less to them than to wall time; rates are reports a second.
"""

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import polars as pl
import redis
import uvicorn
from rich.console import Console
from rich.table import Table

from deployments.network import LOOPBACK, free_ports
from deployments.processes import end
from deployments.state import RunFolder, StackError, StackState
from deployments.valkey import start_valkey, url_of, wait_loaded
from features.errors import ExplainedError
from features.settings import Settings
from features.titles import Title
from loadtests.audience.bodies import CMCD_TYPE, Body, bodies
from loadtests.audience.incidents import Incident
from loadtests.audience.sender import PATH
from loadtests.audience.sessions import Audience
from loadtests.closed import ClosedResult, measure
from serve.arguments import TOKEN_VARIABLE, Arguments
from serve.telemetry.log import FIELD, PARTITIONS, Said, reports_of, stream_key
from serve.telemetry.reports import Report, read_lines
from serve.telemetry.windows import WINDOW_MS, Window
from serve.watchtower.tower import Watchtower

STEPS: Final = ("CMCD lines", "log entries", "entries read", "sessions", "windows", "detectors", "outages")
BATCH: Final = 100
BAR_ONE_CORE: Final = 10_000.0
"""Reports a second that one core must take through every step."""
BAR_HTTP: Final = 5_000.0
"""Reports a second that the HTTP path must take in on two cores."""
CONNECTIONS: Final = 16

START_MS: Final = 1_790_190_000_000 // WINDOW_MS * WINDOW_MS
"""An evening, in Europe."""
_WARM_UP_S: Final = 700
"""More than the 60 windows that the detectors learn before they judge."""
_STARTING_S: Final = 60.0
_BODIES: Final = 300


@dataclass(slots=True)
class Spent:
    """CPU seconds by step, and what they were spent on.

    Attributes:
        cpu_s: by step.
        wall_s: of all.
        reports: how many went through.
        windows: how many were judged.
        slowest_window_s: of CPU, from its end to its outages.
        checkpoints_s: of CPU, for the sessions that changed as JSON, as a replica of the Watchtower stores them with
            each window; not part of the whole.
        alarms: that the windows raised.
        line_chars: of all lines.
    """

    cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    wall_s: float = 0.0
    reports: int = 0
    windows: int = 0
    slowest_window_s: float = 0.0
    checkpoints_s: float = 0.0
    alarms: int = 0
    line_chars: int = 0

    def as_json(self) -> dict[str, Any]:
        """What is reported."""
        cpu_s = sum(self.cpu_s.values())
        return {
            "reports": self.reports, "windows": self.windows, "alarms": self.alarms,
            "line_chars": round(self.line_chars / self.reports), "us_per_report": cpu_s / self.reports * 1e6,
            "reports_per_cpu_s": self.reports / cpu_s, "reports_per_s": self.reports / self.wall_s,
            "slowest_window_ms": self.slowest_window_s * 1e3, "checkpoints_us": self.checkpoints_s / self.reports * 1e6,
            "steps_us": {name: spent_s / self.reports * 1e6 for name, spent_s in self.cpu_s.items()},
        }  # fmt: skip


class Chain:
    """Every step of the service on the way of a report, in one process.

    Args:
        now: the log's clock, UTC ms.
    """

    def __init__(self, now: int) -> None:
        self.tower = Watchtower(now)

    def feed(self, body: Body, now: int, spent: Spent) -> None:
        """Take a body through: its lines become entries of the log, they are read, and windows that are over judged."""
        at = time.process_time()

        def note(step: str) -> None:
            nonlocal at
            spent.cpu_s[step] += (done := time.process_time()) - at
            at = done

        said, _, _ = read_lines(body.content.decode(), BATCH)
        note("CMCD lines")
        entries = Said(now, {}, said).parts()
        note("log entries")
        reports = [report for entry in entries.values() for report in reports_of(entry)]
        note("entries read")
        windows = list(self.tower.sessions.advance(now))
        note("windows")
        for window in windows:
            self._judge(window, spent)
        if windows:
            spent.checkpoints_s += self.store_sessions()
        at = time.process_time()
        for report in reports:
            self.tower.sessions.take(report, now)
        note("sessions")
        spent.reports += len(reports)
        spent.line_chars += len(body.content) - len(said) + 1

    def store_sessions(self) -> float:
        """Make JSON of the sessions that changed; CPU seconds."""
        began, sessions = time.process_time(), self.tower.sessions
        for name in sessions.touched:
            if (session := sessions.session(name)) is not None:
                orjson.dumps(session.dump())
        sessions.touched.clear()
        return time.process_time() - began

    def _judge(self, window: Window, spent: Spent) -> None:
        began = time.process_time()
        alarms = self.tower.watch.see(window)
        seen = time.process_time()
        self.tower.tracker.see(window, alarms)
        done = time.process_time()
        spent.cpu_s["detectors"] += seen - began
        spent.cpu_s["outages"] += done - seen
        spent.windows += 1
        spent.alarms += len(alarms)
        spent.slowest_window_s = max(spent.slowest_window_s, done - began)


def measure_chain(viewers: int, seconds: int, warm_up_s: int, *, broken: bool = False) -> dict[str, Any]:
    """Take an audience's reports through every step in this process.

    Args:
        viewers: at a time, at an ordinary evening's peak.
        seconds: of the audience's time that are measured.
        warm_up_s: of its time before, unmeasured and without the steps before sessions.
        broken: a CDN fails as the measured time begins, so that windows hold alarms, localisation and an outage.
    """
    incidents = (Incident(
        incident_id="bench", kind="cdn_down", slice={"cdn": "north"}, start_ms=START_MS + warm_up_s * 1000,
        duration_ms=3_600_000, magnitude=0.7,
    ),) if broken else ()  # fmt: skip
    audience = Audience(
        seed=5, start_ms=START_MS, duration_s=warm_up_s + seconds, peak_concurrency=viewers, incidents=incidents
    )
    reports = audience.reports()
    chain, first = Chain(START_MS), None
    for report in reports:
        if report.received_ms >= START_MS + warm_up_s * 1000:
            first = report
            break
        chain.tower.hear(report, report.received_ms)
    batches = list(_batches(first, reports))
    chain.store_sessions()
    gc.collect()  # what the audience left behind is none of the service's
    spent = Spent()
    there = len(chain.tower.sessions)
    began = time.perf_counter()
    for body, now in batches:
        chain.feed(body, now, spent)
    spent.wall_s = time.perf_counter() - began
    return {"viewers": there, "slices": len(chain.tower.watch), "broken": broken, **spent.as_json()}


def _batches(first: Report | None, rest: Iterator[Report]) -> Iterator[tuple[Body, int]]:
    """Bodies, and when each came."""
    waiting = [first] if first is not None else []
    while waiting := [*waiting, *islice(rest, BATCH - len(waiting))]:
        (body,) = bodies(waiting, most=BATCH)
        yield body, waiting[-1].received_ms
        waiting = []


def some_bodies(count: int, viewers: int) -> list[Body]:
    """So many batches of an audience."""
    audience = Audience(seed=6, start_ms=START_MS, duration_s=86_400, peak_concurrency=viewers, warm_up_s=1200)
    return [body for body, _ in islice(_batches(None, audience.reports()), count)]


def measure_http(url: str, redis_url: str, *, seconds: float, sent: Sequence[Body], live: bool) -> dict[str, Any]:
    """Send batches in a closed loop, and count in the log what was acknowledged.

    Args:
        url: of the service.
        redis_url: of its store.
        seconds: measured, after a second of the same load.
        sent: in turn.
        live: whether a Watchtower reads the log, and trims it; then only the number of entries is known.

    Raises:
        Unavailable: the driver could not measure.
    """
    exchanges = [[("POST", PATH, body.content.decode())] for body in sent]

    def load(lasting_s: float) -> ClosedResult:
        return measure(url, exchanges, concurrency=CONNECTIONS, seconds=lasting_s, warmup_s=0.0, content_type=CMCD_TYPE)

    load(1.0)
    with redis.Redis.from_url(redis_url, socket_timeout=10) as store:
        before = _settled(store, live=live)  # with what the load before had on its way when it ended
        result = load(seconds)
        kept = _settled(store, live=live) - before
    acknowledged = result.exchanges - sum(count for kind, count in result.errors.items() if kind.startswith("http_"))
    parts = [len(Said(0, {}, read_lines(body.content.decode(), BATCH)[0]).parts()) for body in sent]
    per_batch = min(parts) if live else BATCH
    return {
        "reports_per_s": acknowledged * BATCH / seconds, "requests_per_s": result.exchanges_rps,
        "p50_ms": result.latencies[0]["p50_ms"], "p99_ms": result.latencies[0]["p99_ms"], "errors": result.errors,
        "connections": CONNECTIONS, "batch": BATCH, "acknowledged_reports": acknowledged * BATCH,
        "in_log": kept, "in_log_unit": "entries" if live else "reports",
        "lost": max(0, acknowledged * per_batch - kept), "client_us_a_request": result.cpu_us_a_request,
    }  # fmt: skip


def _counted(store: redis.Redis, *, live: bool) -> int:
    """Reports in the log; of one that is read and trimmed, the entries that ever were."""
    streams = [stream_key(partition) for partition in range(PARTITIONS)]
    if live:
        told: list[Any] = [store.xinfo_stream(stream) for stream in streams if store.exists(stream)]
        return sum([int(one["entries-added"]) for one in told])
    count = 0
    for stream in streams:
        position: bytes | str = "-"
        while True:
            entries: Any = store.xrange(stream, position, count=1000)
            if not entries:
                break
            count += sum([len(orjson.loads(fields[FIELD])["said"]) for _, fields in entries])
            position = b"(" + entries[-1][0]
    return count


def _settled(store: redis.Redis, *, live: bool) -> int:
    """The same once it does not change: the last requests were sent and not waited for."""
    known = -1
    while known != (known := _counted(store, live=live)):
        time.sleep(0.2)
    return known


@contextmanager
def own_gateway(settings: Settings) -> Iterator[tuple[str, str]]:
    """A gateway in a process of its own, on an embedded store; its URL and the store's.

    Raises:
        StackError: it did not come up in time.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-telemetry-", dir=settings.home) as home:
        folder = RunFolder(Path(home))
        port, store_port = free_ports(2)
        titles = folder.home / "data" / "bench"
        titles.mkdir(parents=True)
        known = [
            Title(title_id=f"t{number}", name=f"Title {number}", genres=("Drama",), regions=("eu",))
            for number in range(3)
        ]
        pl.DataFrame([title.model_dump() for title in known]).write_parquet(titles / "titles.parquet")
        store = start_valkey(folder, store_port, dict(os.environ))
        server = None
        try:
            wait_loaded(store, folder, store_port)
            log = folder.log("gateway")
            with log.open("wb") as stream:
                server = subprocess.Popen(
                    [sys.executable, "-m", "deployments.bench_telemetry", "--serve", str(port), "--home", home,
                     "--store", url_of(store_port)],
                    stdout=stream, stderr=stream,
                    env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
                )  # fmt: skip
            _wait_ready(server, f"http://{LOOPBACK}:{port}", log)
            yield f"http://{LOOPBACK}:{port}", url_of(store_port)
        finally:
            if server is not None:
                server.terminate()
                server.wait()
            end([store.record], grace_s=2.0)
            store.popen.wait()


def _wait_ready(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _STARTING_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/healthz", timeout=1.0).status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                return
        except httpx.HTTPError:
            time.sleep(0.05)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no answer"]
    raise StackError(field="gateway", got=lines[-1], expected="an answer", next_step="Correct what it says.")


def serve(port: int, home: Path, redis_url: str) -> None:
    """Run the gateway until told to stop."""
    import uvloop  # noqa: PLC0415 - these, and Ray with them, are this process's alone

    from serve.app import open_gateway  # noqa: PLC0415

    async def run() -> None:
        entrance = await open_gateway(Arguments(dataset="bench", home=home, redis_url=redis_url))
        await uvicorn.Server(uvicorn.Config(entrance, port=port, log_level="warning", access_log=False)).serve()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def table_of(report: dict[str, Any]) -> Table:
    """The steps' costs."""
    chains = report["chain"]
    table = Table(box=None, pad_edge=False)
    table.add_column("us a report")
    for one in chains:
        table.add_column("a CDN fails" if one["broken"] else "all is well", justify="right")
    for step in STEPS:
        table.add_row(step, *(f"{one['steps_us'][step]:.1f}" for one in chains))
    table.add_row("whole", *(f"{one['us_per_report']:.1f}" for one in chains))
    table.add_row("reports per CPU second", *(f"{one['reports_per_cpu_s']:,.0f}" for one in chains))
    table.add_row("beside: checkpoints of sessions", *(f"{one['checkpoints_us']:.1f}" for one in chains))
    table.add_row("slowest window, ms", *(f"{one['slowest_window_ms']:.0f}" for one in chains))
    return table


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure everything that is asked for."""
    report: dict[str, Any] = {"load_before": os.getloadavg(), "cores": os.cpu_count()}
    states = (False,) if options.no_outage else (False, True)
    report["chain"] = [
        measure_chain(options.viewers, options.seconds, options.warm_up, broken=broken) for broken in states
    ]
    well = report["chain"][0]
    if not options.json:
        console.print(table_of(report))
        print(
            f"  {well['viewers']:,} sessions, {well['slices']:,} slices, {well['line_chars']} characters a line; "
            f"asked {BAR_ONE_CORE:,.0f} a second on one core"
        )
    if not options.no_http:
        sent = some_bodies(min(_BODIES, max(1, options.viewers // 20)), options.viewers)
        settings = Settings.from_env()
        if options.url:
            state = StackState.read(RunFolder(settings.home))
            redis_url = state.redis_url if state is not None else settings.redis_url
            report["http"] = measure_http(options.url, redis_url, seconds=options.http_seconds, sent=sent, live=True)
        else:
            with own_gateway(settings) as (url, redis_url):
                report["http"] = measure_http(url, redis_url, seconds=options.http_seconds, sent=sent, live=False)
        report["http"]["url"] = options.url or "own gateway"
    report["load_after"] = os.getloadavg()
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deployments.bench_telemetry", description=__doc__.split("\n")[0])
    parser.add_argument("--viewers", type=int, default=20_000, help="at a time, at the evening's peak")
    parser.add_argument("--seconds", type=int, default=60, help="of the audience's time that are measured")
    parser.add_argument("--warm-up", type=int, default=_WARM_UP_S, help="of its time before")
    parser.add_argument("--http-seconds", type=float, default=10.0)
    parser.add_argument("--url", default="", help="of a running Playhead; without, a gateway of its own is started")
    parser.add_argument("--no-http", action="store_true", help="one core only")
    parser.add_argument("--no-outage", action="store_true", help="without the run in which a CDN fails")
    parser.add_argument("--json", action="store_true", help="one JSON object alone")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--store", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve, options.home, options.store)
        return 0
    console = Console()
    try:
        report = run(options, console)
    except ExplainedError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    if not options.json and "http" in report:
        http = report["http"]
        print(
            f"  HTTP: {http['reports_per_s']:,.0f} reports/s (asked {BAR_HTTP:,.0f}), p50 {http['p50_ms']:.1f} ms, "
            f"p99 {http['p99_ms']:.1f} ms, {http['acknowledged_reports']:,} acknowledged, {http['lost']:,} lost"
        )
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
