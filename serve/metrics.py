"""Prometheus metrics of the online service: latency by stage, fallbacks by reason, caches, catalogue and model.

Units: seconds, as Prometheus wants them. Observations wait in plain lists and dicts and are folded into the metrics
by `flush`, which a background task calls about once a second: on the request's path an observation costs a list append.

Where PROMETHEUS_MULTIPROC_DIR was set before the process started, all processes that share that folder are rendered
together by any of them.
"""

import bisect
import glob
import math
import os
import re
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from serve.engines.fallback import take_fallbacks

STAGES: Final = (
    "gateway", "features", "ranking", "encoder", "ranker", "page", "events", "bitrate", "planner", "telemetry",
)  # fmt: skip
"""Parts of an answer's way: gateway is the whole request; ranking holds encoder, ranker and page; bitrate
is from readable sessions to decisions, planner one call of the policy, which requests may share; telemetry is from
reports that were read to their acknowledgement by the log."""

BUCKETS_S: Final = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075,
    0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
"""Upper bounds of the latency buckets, seconds."""

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_LIVE_FILE = re.compile(r"gauge_live[a-z]*_(\d+)\.db$")


class PendingHistogram(Histogram):
    """A histogram whose observations wait in a list until `flush` folds them in at once.

    A multi-process observation writes to a mapped file twice, under a lock: 4-5 us. An append is 0.05 us, and a flush
    writes each touched bucket once, whatever the number of observations.
    """

    def _metric_init(self) -> None:
        super()._metric_init()
        self._pending: list[float] = []

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:  # noqa: ARG002
        """Note one value; exemplars are not kept."""
        self._pending.append(amount)

    def flush(self) -> None:
        """Fold what waits into the buckets."""
        if not self._pending:
            return
        waiting, self._pending = self._pending, []
        bounds = self._upper_bounds
        for index, count in Tally(bisect.bisect_left(bounds, amount) for amount in waiting).items():
            self._buckets[index].inc(count)
        self._sum.inc(sum(waiting))


class Metrics:
    """All metrics of one process.

    Cheap enough to be called several times a request; not thread-safe between `flush` and the rest, so call all of it
    from the event loop and only `render` from wherever.

    Attributes:
        marks: when each part was last read, as `refreshed` was told.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] if values.ValueClass is not values.MutexValue else None
        if self._folder is not None:
            os.makedirs(self._folder, exist_ok=True)  # noqa: PTH103 - the library speaks strings
        self._stage_s = PendingHistogram(
            "playhead_stage_seconds", "Time spent in each stage.", ["stage"], registry=self.registry, buckets=BUCKETS_S
        )
        self._stages = {stage: self._stage_s.labels(stage) for stage in STAGES}
        self._counters = {
            "requests": Counter(
                "playhead_requests", "Answers by route and status.", ["route", "status"], registry=self.registry
            ),
            "degraded": Counter(
                "playhead_degraded",
                "Answers that a stage fell back for, by reason.",
                ["reason"],
                registry=self.registry,
            ),
            "cache": Counter(
                "playhead_cache", "Cache look-ups by outcome.", ["cache", "outcome"], registry=self.registry
            ),
            "events": Counter("playhead_events", "Events by outcome.", ["outcome"], registry=self.registry),
            "telemetry": Counter(
                "playhead_telemetry_reports", "Reports of players by outcome.", ["outcome"], registry=self.registry
            ),
            "malformed": Counter(
                "playhead_telemetry_malformed",
                "CMCD keys whose values could not be used.",
                ["key"],
                registry=self.registry,
            ),
            "decisions": Counter(
                "playhead_bitrate_decisions",
                "Bitrate decisions by what made them: the model, or the simple rule.",
                ["source"],
                registry=self.registry,
            ),
            "refused": Counter(
                "playhead_model_refused", "Model versions that were not taken live.", ["model"], registry=self.registry
            ),
            "shadow_pages": Counter(
                "playhead_shadow_pages",
                "Pages that a shadow made beside the answer.",
                ["version"],
                registry=self.registry,
            ),
            "shadow_overlap": Counter(
                "playhead_shadow_overlap",
                "Sum over those pages of the share of first titles that the shown page had, too.",
                ["version"],
                registry=self.registry,
            ),
            "stage_failures": Counter(
                "playhead_stage_failures", "Calls of a stage that failed.", ["stage", "kind"], registry=self.registry
            ),
            "engine_fallbacks": Counter(
                "playhead_engine_fallbacks",
                "Loads, bindings and calls of a graph that went to the CPU because the GPU could not take them.",
                ["graph", "reason"],
                registry=self.registry,
            ),
        }
        self.marks: dict[str, float] = {}
        self._pending: Tally[tuple[str, ...]] = Tally()
        self._refreshed = Gauge(
            "playhead_refreshed_timestamp_seconds",
            "When the part was last read, the oldest of all replicas; age = time() - this.",
            ["part"],
            registry=self.registry,
            multiprocess_mode="livemin",
        )
        self._titles = Gauge(
            "playhead_catalogue_titles", "Titles in the catalogue.", registry=self.registry, multiprocess_mode="livemin"
        )
        self._model = Gauge(
            "playhead_model_live",
            "Replicas on which this version answers.",
            ["model", "version"],
            registry=self.registry,
            multiprocess_mode="livesum",
        )

        self._outages = Gauge(
            "playhead_outages",
            "Open outages by state, as this service last knew.",
            ["state"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self._steering_leads = Gauge(
            "playhead_steering_leads",
            "Gateways that lead the steering plan; 0: each goes on alone.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._self_alarms = Gauge(  # the Watchtower's count, which all replicas show: it must not be added up
            "playhead_self_alarms_total",
            "Episodes in which something of Playhead itself was not as usual, as the Watchtower counts them.",
            ["what", "version"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self._self_alarms_open = Gauge(
            "playhead_self_alarms_open",
            "Whether such an episode goes on.",
            ["what", "version"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )

        self._online = Gauge(  # the Watchtower's figures, which all replicas show
            "playhead_online",
            "What the version's answers led to in the last five minutes; NaN where nothing tells.",
            ["model", "role", "figure"],
            registry=self.registry,
            multiprocess_mode="livemostrecent",
        )
        self._drift = Gauge(
            "playhead_drift",
            "How far live traffic is from what the champion learned (psi), or the mean of what came of it.",
            ["model", "signal"],
            registry=self.registry,
            multiprocess_mode="livemostrecent",
        )
        self._drifting = Gauge(
            "playhead_drifting",
            "Whether it drifts.",
            ["model", "signal"],
            registry=self.registry,
            multiprocess_mode="livemostrecent",
        )

    def observe(self, stage: str, seconds: float) -> None:
        """Note how long a stage took; `stage` comes from code, never from a caller."""
        known = self._stages.get(stage)
        if known is None:
            known = self._stages[stage] = self._stage_s.labels(stage)
        known.observe(seconds)

    def request(self, route: str, status: int) -> None:
        """Count one answer. `route` is a path template, never a caller's path."""
        self._pending["requests", route, str(status)] += 1

    def degraded(self, reasons: Iterable[str]) -> None:
        """Count an answer's reasons for being less than it could be."""
        for reason in reasons:
            self._pending["degraded", reason] += 1

    def cache(self, name: str, *, hits: int, misses: int) -> None:
        """Count look-ups."""
        self._pending["cache", name, "hit"] += hits
        self._pending["cache", name, "miss"] += misses

    def events(self, *, accepted: int, duplicates: int) -> None:
        """Count written events."""
        self._pending["events", "accepted"] += accepted
        self._pending["events", "duplicate"] += duplicates

    def telemetry(
        self, *, accepted: int = 0, rejected: int = 0, refused: int = 0, malformed: Mapping[str, int] | None = None
    ) -> None:
        """Count reports of players.

        Args:
            accepted: that are in the log.
            rejected: that could not be used.
            refused: that the log did not acknowledge; players send them again.
            malformed: how often each key could not be used; keys of the standards alone, never a caller's own.
        """
        for outcome, number in (("accepted", accepted), ("rejected", rejected), ("refused", refused)):
            if number:
                self._pending["telemetry", outcome] += number
        for key, number in (malformed or {}).items():
            self._pending["malformed", key] += number

    def decisions(self, *, model: int, rule: int) -> None:
        """Count bitrate decisions."""
        if model:
            self._pending["decisions", "model"] += model
        if rule:
            self._pending["decisions", "rule"] += rule

    def stage_failure(self, stage: str, kind: str) -> None:
        """Count a stage's failure, by the kind of error."""
        self._pending["stage_failures", stage, kind] += 1

    def shadowed(self, version: str, overlap: float) -> None:
        """Count a page of a shadow, and the share of its first titles that the shown page had, too."""
        self._pending["shadow_pages", version] += 1
        self._counters["shadow_overlap"].labels(version).inc(overlap)

    def model_refused(self, model: str) -> None:
        """Count a version that could not be loaded."""
        self._pending["refused", model] += 1

    def model_live(self, model: str, version: str, *, live: bool) -> None:
        """Say whether a version answers in this process."""
        self._model.labels(model, version).set(1 if live else 0)

    def refreshed(self, part: str, timestamp_s: float) -> None:
        """Say when a part (catalogue, title_stats, outages, health) was last read, Unix seconds."""
        self.marks[part] = timestamp_s
        self._refreshed.labels(part).set(timestamp_s)

    def outages(self, states: Sequence[str], as_of_s: float) -> None:
        """Say how many outages are open in each state, and up to when that is known, Unix seconds."""
        counts = Tally(states)
        for state in ("suspected", "confirmed", "recovering"):
            self._outages.labels(state).set(counts[state])
        if as_of_s:
            self.refreshed("outages", as_of_s)

    def steering_leads(self, *, leads: bool) -> None:
        """Say whether this process leads the steering plan."""
        self._steering_leads.set(1 if leads else 0)

    def self_alarm(self, what: str, version: str, *, total: int, is_open: bool) -> None:
        """Say how often something of Playhead itself was not as usual, and whether it is so now.

        Args:
            what: `signal:subject`, such as `slow:recommend`.
            version: of a model; empty where the subject is none.
            total: episodes so far.
            is_open: whether one goes on.
        """
        self._self_alarms.labels(what, version).set(total)
        self._self_alarms_open.labels(what, version).set(1 if is_open else 0)

    def online(self, model: str, role: str, figure: str, value: float | None) -> None:
        """Say what a version's answers led to; None: nothing tells."""
        self._online.labels(model, role, figure).set(math.nan if value is None else value)

    def drift(self, model: str, signal: str, value: float | None, *, drifting: bool) -> None:
        """Say how far a signal is from what the champion learned, and whether that is a drift."""
        self._drift.labels(model, signal).set(math.nan if value is None else value)
        self._drifting.labels(model, signal).set(1 if drifting else 0)

    def self_alarm_over(self, what: str, version: str) -> None:
        """Say that nothing goes on of what nobody judges any more."""
        self._self_alarms_open.labels(what, version).set(0)

    def catalogue_titles(self, count: int) -> None:
        """Say how many titles the catalogue holds."""
        self._titles.set(count)

    def flush(self) -> None:
        """Fold what waits into the metrics; call it about once a second."""
        for stage in self._stages.values():
            stage.flush()
        for (graph, reason), count in take_fallbacks().items():
            self._pending["engine_fallbacks", graph, reason] += count
        pending, self._pending = self._pending, Tally()
        for (name, *labels), count in pending.items():
            self._counters[name].labels(*labels).inc(count)

    def render(self) -> bytes:
        """The text exposition of all processes that share the folder, or of this one; takes milliseconds."""
        if self._folder is None:
            return generate_latest(self.registry)
        for path in glob.glob(os.path.join(self._folder, "gauge_live*.db")):  # noqa: PTH118, PTH207
            found = _LIVE_FILE.search(path)
            if found and not psutil.pid_exists(int(found[1])):  # a replica that was killed could not say goodbye
                mark_process_dead(int(found[1]), self._folder)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        MultiProcessCollector(registry, self._folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def close(self) -> None:
        """Fold in what waits and take this process's gauges off the shared page."""
        self.flush()
        if self._folder is not None:
            mark_process_dead(os.getpid(), self._folder)  # type: ignore[no-untyped-call]
