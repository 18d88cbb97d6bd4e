"""The benchmark of bitrate decisions: the single endpoint beside the no-op app, and batches of 1,000.

Both apps are up at once and measured in turns, round by round; the ratio is taken within a round, and its median over
the rounds is what counts. The batch is measured over HTTP, one request at a time, and in this process, by the CPU time
of one thread: what others do on the machine does not count there.

Units: *_ms are milliseconds, rates a second.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from rich import box
from rich.table import Table

from loadtests.closed import ClosedResult, Exchange, measure
from serve.bitrate.decisions import decisions_of
from serve.bitrate.planner import Policy
from serve.bitrate.schemas import MAX_SESSIONS
from serve.bitrate.sessions import observe
from serve.gateway.bitrate import read_sessions, rendered

ALONE, BUSY = 1, 16
"""Concurrencies: for bare latency, and for peak throughput."""

NOOP, SINGLE, BATCH = "no-op", "one session", f"batch of {MAX_SESSIONS:,}"

SINGLE_BAR: Final = 0.6
BATCH_BAR: Final = 20_000.0

_BODIES: Final = 500
_LADDERS: Final = (
    (300, 750, 1200, 1850, 2850, 4300),
    (235, 375, 560, 750, 1050, 1750, 2350, 3000, 4300, 5800),
    (1000, 2500, 5000, 8000, 16000, 40000),
)
_REPEATS: Final = 5


def draw_sessions(count: int, *, seed: int, with_sizes: bool = False) -> list[dict[str, Any]]:
    """Sessions in the middle of a title, as players and controllers describe them.

    Args:
        count: how many.
        seed: of all draws.
        with_sizes: whether the sizes of the upcoming segments come along.
    """
    numbers = np.random.default_rng(seed)
    sessions = []
    for place in range(count):
        ladder = _LADDERS[place % len(_LADDERS)]
        samples = int(numbers.integers(3, 12))
        kbps = np.exp(numbers.normal(np.log(ladder[len(ladder) // 2]), 0.4, samples))
        session: dict[str, Any] = {
            "session_id": f"s-{place}",
            "segment_index": int(numbers.integers(0, 100)),
            "segment_count": 150,
            "segment_s": 4,
            "buffer_s": round(float(numbers.uniform(0, 40)), 2),
            "max_buffer_s": 60,
            "last_rung": int(numbers.integers(0, len(ladder))),
            "throughput_kbps": [round(float(value), 1) for value in kbps],
            "download_s": [round(float(value), 3) for value in numbers.uniform(0.5, 4, samples)],
            "rungs_kbps": list(ladder),
            "cdn": "edge",
            "asn": "3320",
        }
        if with_sizes:
            nominal = np.outer(numbers.uniform(0.7, 1.3, 5), np.array(ladder) * 500.0)
            session["segment_bytes"] = nominal.astype(int).tolist()
        sessions.append(session)
    return sessions


class PolicyAlone:
    """A tick of 1,000 sessions on one core of this process: reading, planning and rendering, with no HTTP around it.

    Args:
        artifact: folder of the policy.
        seed: of the sessions.
    """

    def __init__(self, artifact: Path, *, seed: int) -> None:
        self._policy = Policy.load(artifact, device="cpu", threads=1)
        self._bodies = {
            with_sizes: orjson.dumps(draw_sessions(MAX_SESSIONS, seed=seed, with_sizes=with_sizes))
            for with_sizes in (False, True)
        }

    def measure(self, *, with_sizes: bool) -> float:
        """Decisions a second of one core's time, best of a few: what disturbs only ever slows it."""
        body = self._bodies[with_sizes]
        took_s = []
        for _ in range(_REPEATS):
            start_s = time.thread_time()
            sessions, _single = read_sessions(body)
            assert sessions is not None
            rendered({}, decisions_of(sessions, self._policy(observe(sessions))))
            took_s.append(time.thread_time() - start_s)
        return MAX_SESSIONS / min(took_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class BitrateRound:
    """What one round measured.

    Attributes:
        results: (target, concurrency) -> result.
        core: decisions a second of one core in this process.
        core_with_sizes: the same where all sizes are given.
    """

    results: dict[tuple[str, int], ClosedResult]
    core: float
    core_with_sizes: float

    def rps(self, target: str, concurrency: int) -> float:
        """Requests a second."""
        return self.results[target, concurrency].exchanges_rps

    def latency_ms(self, target: str, concurrency: int, percentile: str) -> float:
        """A percentile of the latency, such as `p99`."""
        return self.results[target, concurrency].latencies[-1][f"{percentile}_ms"]

    def to_noop(self, concurrency: int) -> float:
        """Decisions a second of the single endpoint over the no-op app's requests a second."""
        return self.rps(SINGLE, concurrency) / max(self.rps(NOOP, concurrency), 1e-9)

    @property
    def batch_decisions(self) -> float:
        """Decisions a second over HTTP in batches, one at a time."""
        return MAX_SESSIONS * self.rps(BATCH, ALONE)


def run_bitrate_rounds(
    targets: dict[str, str],
    *,
    policy: PolicyAlone,
    rounds: int,
    seconds: float,
    seed: int,
    on_step: Callable[[str], None],
) -> list[BitrateRound]:
    """Measure in turns.

    Args:
        targets: base URL of NOOP and SINGLE.
        policy: the policy in this process.
        rounds: how often each is measured; 3 or more let a median mean something.
        seconds: measured window of each measurement.
        seed: of all sessions.
        on_step: told what is measured now.
    """
    single = [_post(session) for session in draw_sessions(_BODIES, seed=seed)]
    batch = [_post(draw_sessions(MAX_SESSIONS, seed=seed))]
    plan: list[tuple[str, int, Sequence[Exchange]]] = [
        (NOOP, ALONE, single),
        (SINGLE, ALONE, single),
        (NOOP, BUSY, single),
        (SINGLE, BUSY, single),
        (BATCH, ALONE, batch),
    ]
    measured = []
    for number in range(rounds):
        results = {}
        for name, concurrency, exchanges in plan:
            on_step(f"round {number + 1} of {rounds}: {name}, {concurrency} at a time")
            url = targets[SINGLE if name == BATCH else name]
            results[name, concurrency] = measure(url, exchanges, concurrency=concurrency, seconds=seconds)
        measured.append(
            BitrateRound(
                results=results,
                core=policy.measure(with_sizes=False),
                core_with_sizes=policy.measure(with_sizes=True),
            )
        )
    return measured


def _post(document: object) -> Exchange:
    return [("POST", "/v1/bitrate", orjson.dumps(document).decode())]


@dataclass(frozen=True, slots=True, kw_only=True)
class BitrateReport:
    """All rounds, and what follows from them.

    Attributes:
        rounds: at least one.
        facts: seed, versions, commit, machine: what another run needs to compare.
    """

    rounds: list[BitrateRound]
    facts: dict[str, Any] = field(default_factory=dict)

    def median(self, figure: Callable[[BitrateRound], float]) -> float:
        """Median over the rounds of a figure of one round."""
        return statistics.median(figure(one) for one in self.rounds)

    @property
    def errors(self) -> dict[str, int]:
        """Errors and degraded answers of all measurements, by target and kind; the no-op app knows no `degraded`."""
        counted: dict[str, int] = {}
        for one in self.rounds:
            for (target, _), result in one.results.items():
                for kind, count in (result.errors | {"degraded": result.degraded}).items():
                    if count:
                        counted[f"{target}: {kind}"] = counted.get(f"{target}: {kind}", 0) + count
        return counted

    @property
    def failed(self) -> bool:
        """Whether any request got an error instead of an answer."""
        return any(result.errors for one in self.rounds for result in one.results.values())

    def bars(self) -> list[tuple[str, float, str, bool]]:
        """Each bar: what, figure, what was asked, whether it is met; never where answers were bad or degraded."""
        clean = not self.errors
        single, core = self.median(lambda one: one.to_noop(BUSY)), self.median(lambda one: one.core)
        batch = self.median(lambda one: one.batch_decisions)
        return [
            ("single decisions at 16, times no-op", single, f">= {SINGLE_BAR:g}", clean and single >= SINGLE_BAR),
            ("decisions/s of one core, batches", core, f">= {BATCH_BAR:,.0f}", clean and core >= BATCH_BAR),
            ("decisions/s over HTTP, batches", batch, f">= {BATCH_BAR:,.0f}", clean and batch >= BATCH_BAR),
        ]

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows: target, concurrency, p50, p99, requests and decisions a second, times no-op."""
        rows: list[tuple[str, ...]] = []
        for name, concurrency in self.rounds[0].results:
            figures = [
                self.median(lambda one, n=name, c=concurrency, p=percentile: one.latency_ms(n, c, p))  # type: ignore[misc]
                for percentile in ("p50", "p99")
            ]
            rps = self.median(lambda one, n=name, c=concurrency: one.rps(n, c))  # type: ignore[misc]
            decisions = {NOOP: "", SINGLE: f"{rps:,.0f}", BATCH: f"{MAX_SESSIONS * rps:,.0f}"}[name]
            ratio = f"{self.median(lambda one, c=concurrency: one.to_noop(c)):.2f}" if name == SINGLE else ""  # type: ignore[misc]
            rows.append(
                (name, str(concurrency), *(f"{value:.2f}" for value in figures), f"{rps:,.0f}", decisions, ratio)
            )
        return rows

    def table(self) -> Table:
        """The figures for the terminal; medians over the rounds."""
        table = Table(box=box.SIMPLE_HEAD, title="bitrate decisions, medians of rounds", title_justify="left")
        table.add_column(COLUMNS[0])
        for name in COLUMNS[1:]:
            table.add_column(name, justify="right")
        for row in self.rows():
            table.add_row(*row)
        return table

    def lines(self) -> list[str]:
        """The bars and errors in words."""
        sizes = self.median(lambda one: one.core_with_sizes)
        return [
            *(
                f"{'pass      ' if met else 'fall short'}  {what}: {figure:,.2f} (asked: {asked})"
                for what, figure, asked, met in self.bars()
            ),
            f"one core with the sizes of five upcoming segments in each session: {sizes:,.0f} decisions/s",
            *(f"errors  {what}: {count}" for what, count in self.errors.items()),
        ]

    def markdown(self) -> str:
        """The figures, bars and facts as a page for docs."""
        rule = "|" + "---|" * len(COLUMNS)
        head, *body = ["| " + " | ".join(row) + " |" for row in (COLUMNS, *self.rows())]
        opening = (
            f"# Bitrate benchmark\n\n`python -m deployments.bench --bitrate`; medians of {len(self.rounds)} rounds."
        )
        verdicts = "\n".join(f"- {line}" for line in self.lines())
        facts = "\n".join(f"- {name}: {value}" for name, value in self.facts.items())
        return "\n\n".join([opening, "\n".join([head, rule, *body]), verdicts, facts]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """All figures as one JSON object."""
        targets = {
            f"{name}, {concurrency}": {
                "rps": round(self.median(lambda one, n=name, c=concurrency: one.rps(n, c)), 1),  # type: ignore[misc]
                "p50_ms": self.median(lambda one, n=name, c=concurrency: one.latency_ms(n, c, "p50")),  # type: ignore[misc]
                "p99_ms": self.median(lambda one, n=name, c=concurrency: one.latency_ms(n, c, "p99")),  # type: ignore[misc]
                "rounds_rps": [round(one.rps(name, concurrency), 1) for one in self.rounds],
            }
            for name, concurrency in self.rounds[0].results
        }
        return {
            "targets": targets,
            "to_noop_at_1": round(self.median(lambda one: one.to_noop(ALONE)), 3),
            "core_with_sizes": round(self.median(lambda one: one.core_with_sizes)),
            "bars": [{"what": w, "figure": round(f, 3), "asked": a, "met": m} for w, f, a, m in self.bars()],
            "errors": self.errors,
            **self.facts,
        }


COLUMNS: Final = ("target", "at a time", "p50 ms", "p99 ms", "requests/s", "decisions/s", "times no-op")
