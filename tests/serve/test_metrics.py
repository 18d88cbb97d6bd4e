"""Metrics: deferred observations count like immediate ones, and processes that share a folder show on one page."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serve.engines.fallback import count_fallback, take_fallbacks
from serve.metrics import BUCKETS_S, Metrics, PendingHistogram

WORKER = """
import sys
from serve.metrics import Metrics
metrics = Metrics()
for _ in range(int(sys.argv[1])):
    metrics.observe("features", 0.002)
metrics.request("/v1/home", 200)
metrics.model_live("recommend", "abc", live=True)
metrics.self_alarm("slow:recommend", "abc", total=5, is_open=True)
metrics.flush()
print("ready", flush=True)
sys.stdin.readline()
metrics.close()
"""


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of an exposition, by name and labels; read by the reference parser."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@given(st.lists(st.floats(min_value=0, max_value=100), max_size=50), st.lists(st.integers(0, 50), max_size=4))
def test_pending_observations_count_like_immediate_ones(amounts: list[float], flush_after: list[int]) -> None:
    shown = []
    for kind in (PendingHistogram, Histogram):
        registry = CollectorRegistry()
        histogram = kind("x_seconds", "x", registry=registry, buckets=BUCKETS_S)
        for index, amount in enumerate(amounts):
            histogram.observe(amount)
            if index in flush_after and isinstance(histogram, PendingHistogram):
                histogram.flush()
        if isinstance(histogram, PendingHistogram):
            histogram.flush()
        shown.append(
            {key: value for key, value in samples(generate_latest(registry)).items() if "created" not in key[0]}
        )
    pending, immediate = shown
    total = ("x_seconds_sum", ())
    assert abs(pending.pop(total) - immediate.pop(total)) <= 1e-9 * (1 + sum(amounts))
    assert pending == immediate


def test_counts_by_label() -> None:
    metrics = Metrics()
    metrics.request("/v1/home", 200)
    metrics.request("/v1/home", 200)
    metrics.degraded(["features_timeout", "model_missing"])
    metrics.cache("encoder", hits=1, misses=0)
    metrics.events(accepted=3, duplicates=2)
    metrics.stage_failure("ranking", "ranker_timeout")
    metrics.model_refused("recommend")
    metrics.refreshed("catalogue", 1_700_000_000.0)
    metrics.catalogue_titles(12)
    metrics.self_alarm("slow:recommend", "abc", total=3, is_open=True)
    metrics.self_alarm("slow:recommend", "old", total=1, is_open=True)
    metrics.self_alarm_over("slow:recommend", "old")
    metrics.flush()
    metrics.flush()
    found = samples(metrics.render())
    assert found["playhead_requests_total", (("route", "/v1/home"), ("status", "200"))] == 2
    assert found["playhead_degraded_total", (("reason", "model_missing"),)] == 1
    assert found["playhead_cache_total", (("cache", "encoder"), ("outcome", "hit"))] == 1
    assert found["playhead_events_total", (("outcome", "duplicate"),)] == 2
    assert found["playhead_stage_failures_total", (("kind", "ranker_timeout"), ("stage", "ranking"))] == 1
    assert found["playhead_model_refused_total", (("model", "recommend"),)] == 1
    assert found["playhead_refreshed_timestamp_seconds", (("part", "catalogue"),)] == 1_700_000_000.0
    assert metrics.marks == {"catalogue": 1_700_000_000.0}
    assert found["playhead_catalogue_titles", ()] == 12
    alarm = (("version", "abc"), ("what", "slow:recommend"))
    assert found["playhead_self_alarms_total", alarm] == 3
    assert found["playhead_self_alarms_open", alarm] == 1
    assert found["playhead_self_alarms_open", (("version", "old"), ("what", "slow:recommend"))] == 0


def test_processes_that_share_a_folder_show_on_one_page(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    command = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen([*command, count], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for count in ("3", "4")
    ]

    def page() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        code = "import sys; from serve.metrics import Metrics; sys.stdout.buffer.write(Metrics().render())"
        return samples(
            subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True).stdout
        )

    observed = ("playhead_stage_seconds_count", (("stage", "features"),))
    live = ("playhead_model_live", (("model", "recommend"), ("version", "abc")))
    alarms = ("playhead_self_alarms_total", (("version", "abc"), ("what", "slow:recommend")))
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
        both = page()
        assert both[observed] == 7
        assert both["playhead_requests_total", (("route", "/v1/home"), ("status", "200"))] == 2
        assert both[live] == 2
        assert both[alarms] == 5, "the Watchtower's count, which all show, is not added up"

        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()
        one = page()
        assert one[live] == 1, "a killed replica's gauges must not stay"
        assert one[observed] == 7, "what it counted must"

        workers[1].communicate(b"\n", timeout=20)
        assert live not in page(), "a replica that ended takes its gauges along"
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_engines_that_fall_back_are_counted_once() -> None:
    take_fallbacks()
    metrics = Metrics()
    for reason in ("call", "call", "load"):
        count_fallback("small/encoder", reason)
    metrics.flush()
    metrics.flush()
    text = metrics.render().decode()
    assert 'playhead_engine_fallbacks_total{graph="small/encoder",reason="call"} 2.0' in text
    assert 'playhead_engine_fallbacks_total{graph="small/encoder",reason="load"} 1.0' in text
