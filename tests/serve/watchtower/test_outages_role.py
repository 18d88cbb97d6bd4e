"""The role that makes outages, on a real Valkey: what it tells the feature store of how playback goes."""

import asyncio
import logging
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import redis

from features.networks import NetworkReader
from features.popularity import title_key
from features.qoe import Qoe, QoeReader
from features.settings import Settings
from serve.telemetry.windows import WINDOW_MS, Window
from serve.watchtower import board
from serve.watchtower.leases import Leases
from serve.watchtower.networks import NetworkSums
from serve.watchtower.qoe import QoeSums
from serve.watchtower.roles.outages import OutagesRole
from tests.serve.watchtower.audience import append, audience, expected_windows
from tests.waiting import wait_for


def catalogue(store: redis.Redis, titles: Iterable[str]) -> None:
    for title in titles:
        store.hset(title_key(title), "known", "1")


def told_of(settings: Settings, networks: list[Any], titles: list[str]) -> list[dict[Any, Any]]:
    """Throughput of networks, how playback goes on them, and of titles: what the feature store has."""

    async def main() -> list[dict[Any, Any]]:
        throughput, qoe = NetworkReader(settings), QoeReader(settings)
        try:
            return [
                await throughput.read(networks, 5000.0),
                await qoe.read_networks(networks, 5000.0),
                await qoe.read_titles(titles, 5000.0),
            ]
        finally:
            await throughput.close()
            await qoe.close()

    return asyncio.run(main())


@pytest.mark.timeout(300)
def test_how_playback_goes_is_told_the_same_when_a_replica_dies(
    store: redis.Redis, settings: Settings, start: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    began = (int(time.time() * 1000) - 5 * 60_000) // WINDOW_MS * WINDOW_MS  # its end is yet to come: no window is new
    entries = audience(began, seed=2)
    append(store, entries)
    windows = expected_windows(entries)
    end = max(windows) + WINDOW_MS
    sums = QoeSums()
    expected: dict[int, tuple[dict[Any, Qoe], dict[str, Qoe]]] = {}
    for start_ms in range(began, end + 60 * 60_000, WINDOW_MS):  # partitions that stand still are not waited for
        sums.add(windows.get(start_ms, Window(start_ms)))
        if (start_ms + WINDOW_MS) % 60_000 == 0:
            expected[start_ms + WINDOW_MS] = sums.networks(), sums.titles()
    last_told = end // 60_000 * 60_000
    networks, titles = expected[last_told]
    catalogue(store, titles)
    assert (len(networks), len(titles)) == (18, 9)
    replicas = {name: start(name) for name in ("a", "b")}
    wait_for(lambda: int(store.get(board.AS_OF) or 0) >= began + 4 * 60_000, pause_s=0.01)
    owner = wait_for(lambda: store.get(board.lease_key(board.OUTAGE_ROLE))).decode().partition(":")[0]
    replicas[owner].send_signal(signal.SIGKILL)
    replicas[owner].wait()
    assert int(store.get(board.AS_OF) or 0) < last_told, "it is killed midway"
    wait_for(lambda: int(store.get(board.AS_OF) or 0) >= end)

    def told() -> tuple[int, dict[Any, Any], dict[Any, Any]]:
        throughput, of_networks, of_titles = told_of(settings, list(networks), list(titles))
        return throughput["north", "eu-0"].last_ts_ms, of_networks, of_titles

    def is_as_expected() -> bool:
        at, of_networks, of_titles = told()  # between two minutes they may be of both
        return at >= last_told and (of_networks, of_titles) == expected[at]

    wait_for(is_as_expected)
    _, of_networks, _ = told()
    assert of_networks["north", "eu-0"].start_failures > 5 * of_networks["south", "eu-0"].start_failures


def test_a_feature_store_that_does_not_answer_is_told_a_minute_later(
    store: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    began = (int(time.time() * 1000) - 3 * 60_000) // 60_000 * 60_000
    leaf = ("north", "1", "", "", "", "t1", "")
    store.set(board.BEGAN, began)
    catalogue(store, ["t1"])
    down = Settings(home=settings.home, redis_url="redis://127.0.0.1:1/0", feast_registry=settings.feast_registry)
    leases = Leases(store, "only", [board.OUTAGE_ROLE])
    leases.tick()
    role = OutagesRole(store, leases, leases.held[board.OUTAGE_ROLE], down)
    monkeypatch.setattr(board, "is_complete", lambda *_: True)

    def minute(number: int) -> None:
        for start_ms in range(began + number * 60_000, began + (number + 1) * 60_000, WINDOW_MS):
            window = Window(start_ms)
            for metric in ("errors", "stalls"):
                for place in range(20):
                    window.add(leaf, metric, bad=place < 5 and metric == "stalls")
            store.hset(board.window_key(start_ms), "0", board.dump_window(window, NetworkSums()))
            store.hset(board.alarms_key(start_ms), mapping={str(shard): b"[]" for shard in range(board.SHARDS)})
            assert role.step()

    with caplog.at_level(logging.WARNING):
        minute(0)
    assert "how playback goes was not written" in caplog.text
    assert told_of(settings, [("north", "1")], ["t1"])[1:] == [{("north", "1"): None}, {"t1": None}]
    role = OutagesRole(
        store, leases, leases.held[board.OUTAGE_ROLE], settings
    )  # as if it answered again; from the checkpoint
    minute(1)
    _, networks, titles = told_of(settings, [("north", "1")], ["t1"])
    (seen,) = titles.values()
    assert networks == {("north", "1"): seen}
    assert seen.stalls == pytest.approx(0.25)
    assert 230 < seen.weight < 240, "of both minutes"
    assert seen.last_ts_ms == began + 120_000
