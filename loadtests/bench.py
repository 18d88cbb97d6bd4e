"""The benchmark's measurements: floor, naive graph and Playhead, by ratio in one run on one machine.

All targets are up at once and are measured in turns, round by round, so that a machine whose speed drifts, or that
others share, treats them alike; ratios are taken within a round, and their median over the rounds is what counts.

Units: *_ms are milliseconds, rps requests a second. Ratios to the naive graph: higher is better; to the floor: lower.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import orjson
import polars as pl
import redis
from rich import box
from rich.table import Table

from features.events import Event
from features.history import History
from features.profiles import ProfileStats
from features.ranking import request_context
from features.records import READ_FIELDS, profile_key
from features.sequences import encoder_inputs, visits
from features.titles import Title, content_features
from loadtests.arrivals import zipf_draws
from loadtests.closed import ClosedResult, Exchange, measure
from loadtests.scenario import Audience
from serve.artifacts import read_artifact, read_table
from serve.engines import load_engine
from serve.tensors import TensorSpec

ALONE, BUSY = 1, 16
"""Concurrencies: for bare latency, and for peak throughput."""

THROUGHPUT_BAR, THROUGHPUT_STRETCH = 12.0, 20.0
FLOOR_BAR, FLOOR_STRETCH = 1.6, 1.3

NOOP, NAIVE, PLAYHEAD, FRESH = "no-op", "naive", "playhead", "playhead after an event"

DEGRADED_SHARE: Final = 0.002
"""Degraded answers, of all of a target, with which its figures still count; they are told in any case."""

EXCHANGES: Final = 4_000
"""Pages in one drawn list; a run starts again at its end, with the same profiles as active as before."""

FRESH_A_SECOND: Final = 2_500
"""Event and page pairs prepared for each second: more than a small machine answers, so that no event id comes twice."""


def home_pages(audience: Audience, *, seed: int) -> list[Exchange]:
    """Home pages of profiles drawn by Zipf's law over the whole audience."""
    profiles = zipf_draws(population=len(audience.profile_ids), size=EXCHANGES, exponent=1.0, seed=seed)
    return [[("GET", _home(audience.profile_ids[index]), None)] for index in profiles.tolist()]


def fresh_home_pages(audience: Audience, *, size: int, seed: int, run_id: str) -> list[Exchange]:
    """Each profile plays a title, then asks for its page: no answer or encoder state can come from a cache."""
    profiles = zipf_draws(population=len(audience.profile_ids), size=size, exponent=1.0, seed=seed)
    titles = np.random.default_rng(seed).integers(0, len(audience.title_ids), size=size)
    now_ms = int(time.time() * 1e3)
    exchanges: list[Exchange] = []
    for index, (profile, title) in enumerate(zip(profiles.tolist(), titles.tolist(), strict=True)):
        profile_id = audience.profile_ids[profile]
        event = {"event_id": f"{run_id}-{index}", "profile_id": profile_id, "title_id": audience.title_ids[title]}
        event |= {"kind": "play", "ts": now_ms + index}
        body = orjson.dumps({"events": [event]}).decode()
        exchanges.append([("POST", "/v1/events", body), ("GET", _home(profile_id), None)])
    return exchanges


def _home(profile_id: str) -> str:
    return f"/v1/home?profile_id={quote(profile_id, safe='')}"


class EngineAlone:
    """The model's share of a request and nothing else: encoder and ranker in this process, batch 1, real histories.

    Args:
        artifact: folder of the model.
        dataset: folder of the prepared data set.
        audience: whose histories, Zipf-drawn.
        seed: of the draw.
        profiles: how many histories.
    """

    def __init__(self, artifact: Path, dataset: Path, audience: Audience, *, seed: int, profiles: int = 100) -> None:
        model = read_artifact(artifact)
        vocabulary = read_table(model, "vocabulary")
        rows = dict(zip(vocabulary["title_id"].to_pylist(), vocabulary["row"].to_pylist(), strict=True))
        size = max(rows.values()) + 1
        titles = [Title(**row) for row in pl.read_parquet(dataset / "titles.parquet").to_dicts()]
        known = [title for title in titles if title.title_id in rows]
        content = np.zeros((size, content_features([]).shape[1]), dtype=np.float32)
        content[[rows[title.title_id] for title in known]] = content_features(known)
        table = load_engine(model, "titles")({"content": content, "ids": np.arange(size, dtype=np.int64)})["vectors"]
        stats = next(spec for spec in model.graph("ranker").inputs if spec.name == "title_stats")
        self._encoder = load_engine(model, "encoder").bind({"table": table})
        ranker = load_engine(model, "ranker")
        self._ranker = ranker.bind({"table": table, "title_stats": np.zeros((size, _width(stats)), dtype=np.float32)})
        self._eligible = np.ones((1, size), dtype=np.bool_)
        self._eligible[0, 0] = False
        length = int(str(model.manifest.parameters["length"]))
        draws = zipf_draws(population=len(audience.profile_ids), size=profiles, exponent=1.0, seed=seed)
        wanted = [audience.profile_ids[index] for index in draws.tolist()]
        histories = _histories(dataset / "events.parquet", set(wanted))
        now_ms = int(time.time() * 1e3)
        self._requests = [
            (
                encoder_inputs([visits(histories[profile_id].entries, rows)], length),
                request_context(histories[profile_id], ProfileStats(), now_ms)[None],
            )
            for profile_id in wanted
        ]

    def measure(self) -> tuple[float, float]:
        """Median milliseconds of the encoder and of the ranker, one call each."""
        encoder_ms, ranker_ms = [], []
        for inputs, context in self._requests:
            start = time.perf_counter()
            state = self._encoder(inputs)["state"]
            middle = time.perf_counter()
            self._ranker({"state": state, "eligible": self._eligible, "context": context})
            encoder_ms.append((middle - start) * 1e3)
            ranker_ms.append((time.perf_counter() - middle) * 1e3)
        return statistics.median(encoder_ms), statistics.median(ranker_ms)


def _width(spec: TensorSpec) -> int:
    return int(spec.shape[-1])


def _histories(events: Path, profile_ids: set[str]) -> dict[str, History]:
    histories = {profile_id: History() for profile_id in profile_ids}
    frame = pl.read_parquet(events).filter(pl.col("profile_id").is_in(list(profile_ids)))
    for row in frame.sort("ts").to_dicts():
        histories[row["profile_id"]].apply(Event(**row))
    return histories


class RedisAlone:
    """One raw read of a real profile's record: HMGET of all the fields that a page needs, by a plain client.

    Args:
        url: the store.
        audience: whose records, Zipf-drawn.
        seed: of the draw.
        reads: how many.
    """

    def __init__(self, url: str, audience: Audience, *, seed: int, reads: int = 300) -> None:
        self._client = redis.Redis.from_url(url, encoding="latin-1", socket_timeout=5, socket_connect_timeout=5)
        draws = zipf_draws(population=len(audience.profile_ids), size=reads, exponent=1.0, seed=seed)
        self._keys = [profile_key(audience.profile_ids[index]) for index in draws.tolist()]

    def measure(self) -> float:
        """Median milliseconds of one read."""
        took_ms = []
        for key in self._keys:
            start = time.perf_counter()
            self._client.hmget(key.decode("latin-1"), list(READ_FIELDS))
            took_ms.append((time.perf_counter() - start) * 1e3)
        return statistics.median(took_ms)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round measured.

    Attributes:
        results: (target, concurrency) -> result.
        encoder_ms: the encoder alone.
        ranker_ms: the ranker alone.
        redis_ms: one raw read.
    """

    results: dict[tuple[str, int], ClosedResult]
    encoder_ms: float
    ranker_ms: float
    redis_ms: float

    def p50_ms(self, target: str) -> float:
        """Median latency of a target's page at concurrency 1."""
        return self.results[target, ALONE].latencies[-1]["p50_ms"]

    def rps(self, target: str) -> float:
        """Pages a second of a target at concurrency 16."""
        return self.results[target, BUSY].exchanges_rps

    @property
    def floor_ms(self) -> float:
        """What a page cannot be faster than: no-op p50, one raw Redis read and the engines that it needs alone.

        The engine is the whole model: encoder and ranker.
        """
        return self.remembered_floor_ms + self.encoder_ms

    @property
    def remembered_floor_ms(self) -> float:
        """The stricter floor of a page that follows no new event: the state is remembered, only the ranker runs."""
        return self.p50_ms(NOOP) + self.ranker_ms + self.redis_ms


def run_rounds(
    targets: dict[str, str],
    *,
    audience: Audience,
    engine: EngineAlone,
    store: RedisAlone,
    rounds: int,
    seconds: float,
    seed: int,
    run_id: str,
    on_step: Callable[[str], None],
) -> list[Round]:
    """Measure all targets in turns.

    Args:
        targets: base URL of NOOP, NAIVE and PLAYHEAD.
        audience: whose pages.
        engine: the engine alone.
        store: the raw Redis read.
        rounds: how often each is measured; 3 or more let a median mean something.
        seconds: measured window of each measurement.
        seed: of all draws.
        run_id: makes event ids unique across runs.
        on_step: told what is measured now.
    """
    pages = home_pages(audience, seed=seed)
    measured = []
    for number in range(rounds):
        results = {}
        for concurrency in (ALONE, BUSY):
            for name in (NOOP, NAIVE, PLAYHEAD, FRESH):
                on_step(f"round {number + 1} of {rounds}: {name}, {concurrency} at a time")
                exchanges: Sequence[Exchange] = pages
                if name == FRESH:
                    size, prefix = int((seconds + 1) * FRESH_A_SECOND), f"{run_id}-{number}-{concurrency}"
                    exchanges = fresh_home_pages(audience, size=size, seed=seed + number, run_id=prefix)
                url = targets[PLAYHEAD if name == FRESH else name]
                results[name, concurrency] = measure(url, exchanges, concurrency=concurrency, seconds=seconds)
        encoder_ms, ranker_ms = engine.measure()
        measured.append(Round(results=results, encoder_ms=encoder_ms, ranker_ms=ranker_ms, redis_ms=store.measure()))
    return measured


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All rounds, and what follows from them.

    Attributes:
        rounds: at least one.
        facts: seed, versions, commit, machine: what another run needs to compare.
    """

    rounds: list[Round]
    facts: dict[str, Any] = field(default_factory=dict)

    def median(self, figure: Callable[[Round], float]) -> float:
        """Median over the rounds of a figure of one round."""
        return statistics.median(figure(one) for one in self.rounds)

    def to_floor(self, target: str) -> float:
        """p50 alone over the floor; lower is better."""
        return self.median(lambda one: one.p50_ms(target) / one.floor_ms)

    def to_remembered_floor(self) -> float:
        """Playhead's p50 alone over the floor without the encoder; lower is better."""
        return self.median(lambda one: one.p50_ms(PLAYHEAD) / one.remembered_floor_ms)

    def to_naive(self, target: str) -> float:
        """Throughput at 16 over the naive graph's; higher is better."""
        return self.median(lambda one: one.rps(target) / max(one.rps(NAIVE), 1e-9))

    @property
    def errors(self) -> dict[str, int]:
        """Errors and degraded answers of all measurements, by target and kind."""
        counted: dict[str, int] = {}
        for one in self.rounds:
            for (target, _), result in one.results.items():
                for kind, count in result.errors.items():
                    counted[f"{target}: {kind}"] = counted.get(f"{target}: {kind}", 0) + count
                if result.degraded:
                    counted[f"{target}: degraded"] = counted.get(f"{target}: degraded", 0) + result.degraded
        return counted

    @property
    def failed(self) -> bool:
        """Whether any request of any target got an error instead of an answer."""
        return any(result.errors for one in self.rounds for result in one.results.values())

    def _clean(self, target: str) -> bool:
        """No error, and at most DEGRADED_SHARE of the answers degraded: a store read that came late."""
        results = [result for one in self.rounds for (name, _), result in one.results.items() if name == target]
        degraded = sum(result.degraded for result in results)
        return not any(result.errors for result in results) and degraded <= DEGRADED_SHARE * sum(
            result.exchanges for result in results
        )

    def bars(self) -> list[tuple[str, float, str, bool]]:
        """Each bar: what, figure, what was asked, whether it is met; never where its own target gave bad answers."""
        clean, fresh_clean = self._clean(PLAYHEAD), self._clean(FRESH)
        naive, floor, fresh = self.to_naive(PLAYHEAD), self.to_floor(PLAYHEAD), self.to_floor(FRESH)
        return [
            ("throughput at 16, times naive", naive, f">= {THROUGHPUT_BAR:g}", clean and naive >= THROUGHPUT_BAR),
            ("the same, stretch", naive, f">= {THROUGHPUT_STRETCH:g}", clean and naive >= THROUGHPUT_STRETCH),
            ("p50 alone, times floor", floor, f"<= {FLOOR_BAR:g}", clean and floor <= FLOOR_BAR),
            ("the same, stretch", floor, f"<= {FLOOR_STRETCH:g}", clean and floor <= FLOOR_STRETCH),
            (
                "p50 alone after a new event, times floor",
                fresh,
                f"<= {FLOOR_BAR:g}",
                fresh_clean and fresh <= FLOOR_BAR,
            ),
        ]

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows, ceiling first: name, p50 and p99 alone, rps at 16, times floor, times naive."""
        rows: list[tuple[str, ...]] = []
        floor_ms = self.median(lambda one: one.floor_ms)
        rows.append(("floor", f"{floor_ms:.2f}", "", "", "1.00", ""))
        for name in (NOOP, PLAYHEAD, FRESH, NAIVE):
            p99_ms = self.median(lambda one, name=name: one.results[name, ALONE].latencies[-1]["p99_ms"])  # type: ignore[misc]
            p50_ms = self.median(lambda one, name=name: one.p50_ms(name))  # type: ignore[misc]
            rps = self.median(lambda one, name=name: one.rps(name))  # type: ignore[misc]
            ratios = (f"{self.to_floor(name):.2f}", f"{self.to_naive(name):.1f}")
            rows.append((name, f"{p50_ms:.2f}", f"{p99_ms:.2f}", f"{rps:,.0f}", *ratios))
        return rows

    def parts(self) -> str:
        """What the floor is made of, in words."""
        noop_ms, encoder_ms, ranker_ms, redis_ms = (
            self.median(lambda one: one.p50_ms(NOOP)),
            self.median(lambda one: one.encoder_ms),
            self.median(lambda one: one.ranker_ms),
            self.median(lambda one: one.redis_ms),
        )
        return (
            f"floor = no-op {noop_ms:.2f} ms + encoder {encoder_ms:.2f} ms + ranker {ranker_ms:.2f} ms + "
            f"Redis {redis_ms:.2f} ms; without the encoder, whose state is remembered, the ratio is "
            f"{self.to_remembered_floor():.2f}"
        )

    def table(self) -> Table:
        """The figures for the terminal; medians over the rounds."""
        table = Table(box=box.SIMPLE_HEAD, title="benchmark, medians of rounds", title_justify="left")
        table.add_column("target")
        for name in COLUMNS[1:]:
            table.add_column(name, justify="right")
        for row in self.rows():
            table.add_row(*row)
        return table

    def lines(self) -> list[str]:
        """The floor's parts, bars and errors in words."""
        verdicts = [
            f"{'pass      ' if met else 'fall short'}  {what}: {figure:.2f} (asked: {asked})"
            for what, figure, asked, met in self.bars()
        ]
        return [self.parts(), *verdicts, *(f"errors  {what}: {count}" for what, count in self.errors.items())]

    def markdown(self) -> str:
        """The figures, bars and facts as a page for docs."""
        rule = "|" + "---|" * len(COLUMNS)
        table = "\n".join("| " + " | ".join(row) + " |" for row in (COLUMNS, *self.rows()))
        head, _, body = table.partition("\n")
        facts = "\n".join(f"- {name}: {value}" for name, value in self.facts.items())
        verdicts = "\n".join(f"- {line}" for line in self.lines())
        opening = f"# Benchmark\n\n`make bench`; medians of {len(self.rounds)} rounds."
        return "\n\n".join([opening, f"{head}\n{rule}\n{body}", verdicts, facts]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """All figures as one JSON object."""
        targets = {
            name: {
                "p50_ms": self.median(lambda one, name=name: one.p50_ms(name)),  # type: ignore[misc]
                "p99_ms": self.median(lambda one, name=name: one.results[name, ALONE].latencies[-1]["p99_ms"]),  # type: ignore[misc]
                "rps_at_16": round(self.median(lambda one, name=name: one.rps(name)), 1),  # type: ignore[misc]
                "to_floor": round(self.to_floor(name), 3),
                "to_naive": round(self.to_naive(name), 2),
                "rounds_rps_at_16": [round(one.rps(name), 1) for one in self.rounds],
                "rounds_p50_ms": [one.p50_ms(name) for one in self.rounds],
                "driver_cpu_us": round(self.rounds[-1].results[name, BUSY].cpu_us_a_request, 1),
            }
            for name in (NOOP, NAIVE, PLAYHEAD, FRESH)
        }
        bars = [{"what": w, "figure": round(f, 3), "asked": a, "met": m} for w, f, a, m in self.bars()]
        return {
            "floor_ms": round(self.median(lambda one: one.floor_ms), 3),
            "to_floor_without_encoder": round(self.to_remembered_floor(), 3),
            "encoder_ms": round(self.median(lambda one: one.encoder_ms), 3),
            "ranker_ms": round(self.median(lambda one: one.ranker_ms), 3),
            "redis_ms": round(self.median(lambda one: one.redis_ms), 3),
            "targets": targets,
            "bars": bars,
            "errors": self.errors,
            **self.facts,
        }


COLUMNS: Final = ("target", "p50 ms at 1", "p99 ms at 1", "rps at 16", "p50 / floor", "rps / naive")
