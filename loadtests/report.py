"""From a recording to numbers: percentiles, errors by kind, and whether the generator can be believed.

Percentiles cover the requests that were answered well, and those that timed out with the time they had waited. A quick
error is left out (it would make the service look fast) and counted instead.

Units: latencies and lags are milliseconds; lower is better.
"""

import importlib.metadata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from hdrh.histogram import HdrHistogram
from rich import box
from rich.table import Table

from loadtests.client import Outcome, Recording

PERCENTILES: Final[dict[str, float]] = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}
HIGHEST_US: Final = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A latency distribution from an HDR histogram of 3 significant digits; all zero where nothing was recorded."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    def to_json(self) -> dict[str, float]:
        """The distribution as JSON keys, rounded to microseconds."""
        names = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms", "mean_ms")
        return {name: round(getattr(self, name), 3) for name in names}


def histogram(values_ms: Iterable[float]) -> HdrHistogram:
    """An HDR histogram (1 us to 1 h, 3 significant digits) of latencies in milliseconds."""
    recorded = HdrHistogram(1, HIGHEST_US, 3)
    for value_ms in values_ms:
        recorded.record_value(min(max(1, round(value_ms * 1e3)), HIGHEST_US))
    return recorded


def summarise(values_ms: Iterable[float]) -> Latency:
    """Percentiles of latencies in milliseconds."""
    recorded = histogram(values_ms)
    if recorded.total_count == 0:
        return Latency(count=0, mean_ms=0.0, p50_ms=0.0, p90_ms=0.0, p99_ms=0.0, p999_ms=0.0, max_ms=0.0)
    at = {f"{name}_ms": recorded.get_value_at_percentile(share) / 1e3 for name, share in PERCENTILES.items()}
    return Latency(
        count=recorded.total_count,
        mean_ms=recorded.get_mean_value() / 1e3,
        max_ms=recorded.get_max_value() / 1e3,
        **at,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """Whether the load was really offered as planned.

    Attributes:
        kept_up: the figures can be believed.
        reasons: why not, in words; empty where it kept up.
        send_lag: how late requests left.
        cpu_share: share of one core that the generator used.
        max_send_lag_ms: the threshold on the p99 send lag.
        max_cpu_share: the threshold on the CPU share.
    """

    kept_up: bool
    reasons: tuple[str, ...]
    send_lag: Latency
    cpu_share: float
    max_send_lag_ms: float
    max_cpu_share: float

    def to_json(self) -> dict[str, Any]:
        """The verdict and what it rests on."""
        return {
            "generator_kept_up": self.kept_up,
            "reasons": list(self.reasons),
            "send_lag_p50_ms": round(self.send_lag.p50_ms, 3),
            "send_lag_p99_ms": round(self.send_lag.p99_ms, 3),
            "send_lag_max_ms": round(self.send_lag.max_ms, 3),
            "max_send_lag_ms": self.max_send_lag_ms,
            "cpu_share": round(self.cpu_share, 3),
            "max_cpu_share": self.max_cpu_share,
        }


def judge_generator(recording: Recording) -> Generator:
    """Decide from send lag and CPU share whether the generator kept up with its plan."""
    settings = recording.settings
    lag = summarise(outcome.send_lag_ms for outcome in recording.outcomes if outcome.error != "overload")
    cpu_share = recording.cpu_s / recording.wall_s if recording.wall_s > 0 else 0.0
    reasons = []
    if lag.p99_ms > settings.max_send_lag_ms:
        reasons.append(
            f"requests left late: p99 send lag {lag.p99_ms:.1f} ms, expected at most {settings.max_send_lag_ms:g} ms"
        )
    if cpu_share > settings.max_cpu_share:
        reasons.append(f"the generator used {cpu_share:.0%} of a core, expected at most {settings.max_cpu_share:.0%}")
    return Generator(
        kept_up=not reasons,
        reasons=tuple(reasons),
        send_lag=lag,
        cpu_share=cpu_share,
        max_send_lag_ms=settings.max_send_lag_ms,
        max_cpu_share=settings.max_cpu_share,
    )


def timed(outcome: Outcome) -> bool:
    """Whether a request counts in the percentiles: answered well, or timed out."""
    return outcome.error in {"", "timeout"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run measured.

    Attributes:
        scenario: its name.
        target: base URL of the service.
        seed: of arrivals, profiles and titles.
        started: UTC time.
        duration_s: planned length.
        offered_rps: planned requests over planned length.
        rps: good answers a second of wall time.
        outcomes: one for each planned request, in order.
        latency: of all timed requests.
        by_label: (requests, errors, latency) of each kind of request.
        errors: count by kind; empty is best.
        degraded: good answers that said they were degraded.
        generator: whether the load was offered as planned.
    """

    scenario: str
    target: str
    seed: int
    started: datetime
    duration_s: float
    offered_rps: float
    rps: float
    outcomes: list[Outcome]
    latency: Latency
    by_label: dict[str, tuple[int, int, Latency]]
    errors: dict[str, int]
    degraded: int
    generator: Generator

    @classmethod
    def of(
        cls, recording: Recording, *, scenario: str, seed: int, duration_s: float, started: datetime | None = None
    ) -> Self:
        """Summarise a recording; `started` is now where it is not given."""
        outcomes = recording.outcomes
        by_label = {}
        for label in dict.fromkeys(outcome.label for outcome in outcomes):
            mine = [outcome for outcome in outcomes if outcome.label == label]
            failed = sum(1 for outcome in mine if outcome.error)
            by_label[label] = (len(mine), failed, summarise(o.latency_ms for o in mine if timed(o)))
        errors = Counter(outcome.error for outcome in outcomes if outcome.error)
        good = len(outcomes) - errors.total()
        return cls(
            scenario=scenario,
            target=recording.settings.base_url,
            seed=seed,
            started=started or datetime.now(UTC),
            duration_s=duration_s,
            offered_rps=len(outcomes) / duration_s,
            rps=good / max(recording.wall_s, duration_s),
            outcomes=outcomes,
            latency=summarise(outcome.latency_ms for outcome in outcomes if timed(outcome)),
            by_label=by_label,
            errors=dict(errors.most_common()),
            degraded=sum(1 for outcome in outcomes if outcome.degraded),
            generator=judge_generator(recording),
        )

    @property
    def error_count(self) -> int:
        """Requests that got no good answer."""
        return sum(self.errors.values())

    def to_json(self) -> dict[str, Any]:
        """One JSON object: rps, percentiles in ms, errors by kind, the generator's verdict."""
        return {
            "scenario": self.scenario,
            "target": self.target,
            "seed": self.seed,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": self.duration_s,
            "requests": len(self.outcomes),
            "offered_rps": round(self.offered_rps, 2),
            "rps": round(self.rps, 2),
            **self.latency.to_json(),
            "errors": self.errors,
            "error_count": self.error_count,
            "degraded": self.degraded,
            "by_request": {
                label: {"requests": requests, "errors": failed, **latency.to_json()}
                for label, (requests, failed, latency) in self.by_label.items()
            },
            "generator": self.generator.to_json(),
            "versions": {name: importlib.metadata.version(name) for name in ("httpx", "hdrhistogram")},
        }

    def table(self) -> Table:
        """The run as a table for the terminal."""
        table = Table(
            title=f"{self.scenario} on {self.target}: {self.offered_rps:.0f} requests/s for {self.duration_s:g} s",
            caption=self.verdict(),
            box=box.SIMPLE_HEAD,
            title_justify="left",
            caption_justify="left",
        )
        table.add_column("request")
        for name in ("requests", "errors", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms"):
            table.add_column(name, justify="right")
        rows = list(self.by_label.items())
        if len(rows) != 1:
            rows.append(("all", (len(self.outcomes), self.error_count, self.latency)))
        for label, (requests, failed, latency) in rows:
            figures = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms, latency.max_ms)
            colour = "red" if failed else "green"
            table.add_row(label, f"{requests:,}", f"[{colour}]{failed:,}[/]", *(f"{value:.2f}" for value in figures))
        return table

    def verdict(self) -> str:
        """Throughput, errors by kind and the generator's verdict in words, one a line."""
        lines = [f"{self.rps:.1f} good answers a second, {self.degraded:,} degraded"]
        if self.errors:
            lines.append("errors: " + ", ".join(f"{kind} {count:,}" for kind, count in self.errors.items()))
        generator = self.generator
        if generator.kept_up:
            lines.append(
                f"the generator kept up: p99 send lag {generator.send_lag.p99_ms:.2f} ms, "
                f"{generator.cpu_share:.0%} of a core"
            )
        else:
            lines.append("do not trust these latencies, the generator fell behind: " + "; ".join(generator.reasons))
        return "\n".join(lines)

    def write_html(self, path: Path) -> Path:
        """Write the run as one self-contained page; the path."""
        from loadtests.page import render  # noqa: PLC0415  page needs this module's names

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(self), encoding="utf-8")
        return path
