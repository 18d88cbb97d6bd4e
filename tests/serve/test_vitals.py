"""What a gateway counts of itself: windows that add up, written to a real Valkey, and never in a request's way."""

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import redis

from serve import vitals
from serve.histograms import code_of
from serve.metrics import Metrics
from serve.vitals import SAMPLE_EVERY, WINDOW_MS, Age, RouteCounts, VersionCounts, Vitals, VitalsWriter, Window
from tests.conftest import ValkeyProcess
from tests.serve.test_metrics import samples
from tests.waiting import eventually

T0 = 1_790_000_000_000 // WINDOW_MS * WINDOW_MS


def nobody() -> None:
    return None


def some() -> Vitals:
    told = Vitals()
    told.answered("/v1/home", 200, 0.004, ("unknown_profile",))
    told.answered("/v1/home", 200, 0.004, ("unknown_profile", "features_timeout"))
    told.answered("/v1/home", 503, 0.5, ())
    model = told.model("recommend", nobody)
    model.decided("a", seconds=0.001)
    model.decided("a", failed=1)
    model.scored("a", 0.25)
    return told


def test_a_window_is_what_was_counted_and_counting_begins_anew() -> None:
    told = some()
    window = told.take()
    route = RouteCounts(3, 1, 1, {code_of(0.004): 2, code_of(0.5): 1})
    version = VersionCounts(2, 1, {code_of(0.001): 1}, {code_of(0.25): 1})
    assert window == Window({"/v1/home": route}, {"recommend": {"a": version}})
    assert told.take() == Window({}, {"recommend": {}})


def test_windows_of_replicas_add_up_and_the_oldest_part_counts() -> None:
    one, other = some().take(), some().take()
    one.parts = {"title_stats": Age(50.0, 60.0), "catalogue": Age(3.0, 120.0)}
    other.parts = {"title_stats": Age(70.0, 120.0)}  # a replica that reads it half as often
    together = Window()
    for window in (one, other):
        together.merge(Window.load(window.dump()))
    assert together.routes["/v1/home"].total == 6
    assert together.models["recommend"]["a"] == VersionCounts(4, 2, {code_of(0.001): 2}, {code_of(0.25): 2})
    assert together.parts == one.parts


@pytest.mark.parametrize(
    "dumped",
    [
        b"{", b"[]", b"7", b'{"layout": 2}', b'{"layout": 1, "routes": {}}',
        b'{"layout": 1, "routes": {"/": [1, 2]}, "models": {}, "parts": {}}',
        b'{"layout": 1, "routes": {"/": [-1, 0, 0, []]}, "models": {}, "parts": {}}',
        b'{"layout": 1, "routes": {}, "models": {"m": {"v": [1, 0, [[5, 0]], []]}}, "parts": {}}',
    ],
)  # fmt: skip
def test_what_is_no_window_is_refused(dumped: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Window.load(dumped)


def test_failures_without_an_answer_count_for_the_version_that_should_have_answered() -> None:
    told = Vitals()
    live: list[str | None] = [None]
    model = told.model("bitrate", lambda: live[0])
    model.failed()  # nobody to blame
    assert told.take().models["bitrate"] == {}
    model.decided("a", 4)
    model.failed(2)
    live[0] = "b"
    model.failed(3)
    assert told.take().models["bitrate"] == {"a": VersionCounts(6, 2), "b": VersionCounts(3, 3)}


@pytest.mark.parametrize("module", ["serve.gateway.application", "serve.vitals", "serve.watchtower.health"])
def test_counting_and_reading_need_no_detectors(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('river', 'scipy', 'sklearn', 'pandas') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == "[]"


def test_one_in_some_is_in_the_sample() -> None:
    model = Vitals().model("recommend", nobody)
    assert sum(model.decided("a", seconds=0.1) for _ in range(10 * SAMPLE_EVERY)) == 10
    assert not any(model.decided("a") for _ in range(SAMPLE_EVERY)), "what was not timed was not the model's"


class Clock:
    def __init__(self) -> None:
        self.now_ms = T0 + 3_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(vitals, "now_ms", clock)
    return clock


async def test_a_window_is_written_once_it_is_over(valkey_url: str, clock: Clock) -> None:
    told, metrics = some(), Metrics()
    writer = VitalsWriter(told, metrics, valkey_url, "r1", {"catalogue": 120.0, "title_stats": 60.0})
    await writer.look()
    metrics.refreshed("catalogue", T0 / 1000)
    clock.now_ms = T0 + WINDOW_MS + 400
    await writer.look()
    await writer.look()
    told.answered("/readyz", 200, 0.001, ())
    clock.now_ms = T0 + 500
    await writer.look()  # a clock that was put back
    clock.now_ms = T0 + 2 * WINDOW_MS + 100
    await writer.look()
    with redis.Redis.from_url(valkey_url) as store:
        (dumped,) = store.hvals(vitals.window_key(T0))
        expected = some().take()
        expected.parts = {"catalogue": Age(10.4, 120.0)}
        assert Window.load(dumped) == expected
        assert 0 < store.ttl(vitals.window_key(T0)) <= vitals.WINDOW_TTL_S
        assert list(Window.load(store.hget(vitals.window_key(T0 + WINDOW_MS), "r1")).routes) == ["/readyz"]
    await writer.close()


async def test_what_the_store_does_not_take_is_dropped_and_said_once(
    valkey_process: ValkeyProcess, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, metrics = some(), Metrics()
    writer = VitalsWriter(told, metrics, valkey_process.url, "r1", {})
    lines: list[str] = []
    monkeypatch.setattr(writer._log, "warning", lambda message, **_: lines.append(message))
    monkeypatch.setattr(writer._log, "info", lambda message, **_: lines.append(message))
    valkey_process.kill()
    for _ in range(3):
        told.answered("/v1/home", 200, 0.004, ())
        clock.now_ms += WINDOW_MS
        await writer.look()
        assert told.take().routes == {}, "nothing is kept"
    valkey_process.start()
    told.answered("/v1/home", 200, 0.004, ())

    async def written_again() -> bool:
        clock.now_ms += WINDOW_MS
        await writer.look()
        return len(lines) == 2

    await eventually(written_again)
    assert lines == ["windows are dropped", "windows are written again"]
    metrics.flush()
    failed = {key: count for key, count in samples(metrics.render()).items() if "stage_failures_total" in key[0]}
    assert {dict(labels)["stage"] for _, labels in failed} == {"vitals"}
    assert sum(failed.values()) >= 3
    with redis.Redis.from_url(valkey_process.url) as store:
        latest = (clock.now_ms // WINDOW_MS - 1) * WINDOW_MS
        assert store.keys("playhead:vitals:*") == [vitals.window_key(latest).encode()]
    await writer.close()


def test_a_request_costs_about_what_counting_it_costs() -> None:
    """By ratio to the metrics' own counting of the same request; in CPU time, for other programs' load is not ours."""
    metrics, told = Metrics(), Vitals()
    model = told.model("recommend", nobody)

    def counted() -> None:
        metrics.observe("gateway", 0.004)
        metrics.request("/v1/home", 200)

    def watched() -> None:
        told.answered("/v1/home", 200, 0.004, ())
        model.decided("a", seconds=0.001)

    def best(work: Callable[[], None]) -> float:
        found = []
        for _ in range(7):
            started = time.thread_time()
            for _ in range(5000):
                work()
            found.append(time.thread_time() - started)
            metrics.flush()
            told.take()
        return min(found)

    assert best(watched) < 4 * best(counted)
