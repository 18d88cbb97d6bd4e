"""Swaps under load: what is late, and no swap without load."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments import bench_swaps
from deployments.bench import BENCH
from deployments.bench_swaps import MODEL, Load, Swaps, borrowed, peak_rps, twin_of
from deployments.state import RunFolder, StackError, StackLock
from features.settings import Settings
from loadtests.client import Outcome
from serve.artifacts import read_artifact, read_champion, set_champion
from serve.rollout.standing import SERVING
from tests.contracts.small_model import copy_of, small_artifact


def test_percentiles_are_over_all_and_the_late_are_counted() -> None:
    latencies = [10.0] * 195 + [100.0] * 5
    outcomes = [Outcome(at_s=0.0, label="home", latency_ms=one) for one in latencies]
    outcomes.append(Outcome(at_s=0.0, label="home", latency_ms=5_000.0, error="timeout"))
    load = Load.of(outcomes, usual_p99_ms=20.0)
    assert (load.requests, load.failed, load.late) == (201, 1, 5)
    assert (load.p50_ms, load.p99_ms, load.max_ms) == (10.0, 100.0, 100.0)
    assert Load.of(outcomes).late == 0


def test_pages_during_a_swap_are_held_against_those_between() -> None:
    swaps = Swaps("http://playhead", "token", ("b", "a"), os.getpid(), 15.0)
    swaps.spans = [(100.0, 103.5), (115.0, 117.0)]
    outcomes = [Outcome(at_s=at_s, label="home") for at_s in (0.0, 9.9, 10.0, 14.4, 14.6, 25.1, 28.1)]
    swapping, between = swaps.apart(outcomes, start_s=90.0)
    assert [one.at_s for one in swapping] == [10.0, 14.4, 25.1]
    assert [one.at_s for one in between] == [0.0, 9.9, 14.6, 28.1]
    assert swaps.seconds == [3.5, 2.0]


def test_the_peak_is_the_highest_rate_that_is_answered_in_time() -> None:
    def load_at(rate: float, most: float) -> Load:
        p99_ms = 10.0 if rate <= most else 400.0
        return Load(requests=100, failed=0, degraded=0, p50_ms=5.0, p99_ms=p99_ms, max_ms=p99_ms, late=0)

    assert peak_rps(lambda rate: load_at(rate, 300.0), 640.0) == pytest.approx(300.0, abs=10)
    assert peak_rps(lambda rate: load_at(rate, 9_999.0), 640.0) == pytest.approx(640.0, abs=10)
    pauses = iter([400.0] + 99 * [10.0])  # one pause of the machine lowers no peak
    assert peak_rps(lambda _: replace(load_at(1.0, 2.0), p99_ms=next(pauses)), 640.0) > 600
    with pytest.raises(StackError, match="peak"):
        peak_rps(lambda rate: load_at(rate, 0.0), 640.0)


@pytest.mark.parametrize(("every_s", "most"), [(0.0, 10**6), (0.15, 3)])
def test_swaps_are_made_while_there_is_load(every_s: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    live = ["a"]
    times: list[float] = []

    def ask(url: str, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> Any:
        times.append(time.monotonic())
        if body is not None:
            live.append(body["version"])
        return {"models": [{"name": "recommend", "version": live[-1], "role": "champion"}]}

    monkeypatch.setattr(bench_swaps, "ask", ask)
    monkeypatch.setattr(bench_swaps, "_SWAP_S", 0.1)
    swaps = Swaps("http://playhead", "token", ("b", "a"), os.getpid(), every_s)
    with swaps.going_on(0.5):
        time.sleep(0.5)
        ended = time.monotonic()
    assert max(times) <= ended
    assert most >= len(swaps.seconds) == len(live) - 1 > 1
    assert live[:3] == ["a", "b", "a"]


def test_the_models_of_the_real_home_stay_as_they_are(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0", feast_registry="unused")
    artifact = copy_of(small_artifact(), settings.models / MODEL)
    set_champion(settings.models, MODEL, artifact.name)

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in settings.models.rglob("*") if path.is_file()}

    before = files()
    for _ in range(2):  # the first one may have been killed
        home = borrowed(settings)
        own = read_champion(home.models, MODEL)
        assert own is not None
        twin = twin_of(own)
        (own.parent / SERVING).write_bytes(b"the twin")
        assert twin.name != own.name == artifact.name
        assert read_artifact(twin).version == twin.name
    assert files() == before
    lock = StackLock(RunFolder(home.home / BENCH))
    assert lock.take()
    with pytest.raises(StackError, match="already up"):
        borrowed(settings)
    lock.release()
    assert twin.is_dir()
