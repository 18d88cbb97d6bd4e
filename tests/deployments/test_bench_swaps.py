"""Swaps under load: what is late, and no swap without load."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments import bench_swaps
from deployments.bench_swaps import Load, Swaps, borrowed, peak_rps
from deployments.state import StackError
from loadtests.client import ClientSettings, Outcome, Recording
from serve.artifacts import read_artifact
from serve.rollout.standing import SERVING
from tests.contracts.small_model import copy_of, small_artifact


def test_percentiles_are_over_all_and_the_late_are_counted() -> None:
    latencies = [10.0] * 195 + [100.0] * 5
    outcomes = [Outcome(at_s=0.0, label="home", latency_ms=one) for one in latencies]
    outcomes.append(Outcome(at_s=0.0, label="home", latency_ms=5_000.0, error="timeout"))
    recording = Recording(outcomes, wall_s=1.0, cpu_s=0.1, settings=ClientSettings(base_url="http://playhead"))
    load = Load.of(recording, 20.0)
    assert (load.requests, load.failed, load.late) == (201, 1, 5)
    assert (load.p50_ms, load.p99_ms, load.max_ms) == (10.0, 100.0, 100.0)
    assert Load.of(recording).late == 0


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


def test_the_models_folder_is_as_it_was_afterwards(tmp_path: Path) -> None:
    artifact = copy_of(small_artifact(), tmp_path)
    serving = artifact.parent / SERVING
    serving.write_bytes(b"what serves")
    with borrowed(artifact) as twin:
        assert not serving.exists()
        assert twin != artifact
        assert read_artifact(twin).version == twin.name
        serving.write_bytes(b"the twin")
    assert serving.read_bytes() == b"what serves"
    assert sorted(path.name for path in artifact.parent.iterdir()) == sorted([artifact.name, SERVING])
