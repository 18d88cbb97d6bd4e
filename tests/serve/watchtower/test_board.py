"""What replicas tell each other: it comes back as it was, and windows are waited for until they are whole."""

import orjson
import pytest
import redis

from serve.telemetry.log import PARTITIONS
from serve.telemetry.reports import Report
from serve.telemetry.windows import WINDOW_MS
from serve.watchtower import board
from serve.watchtower.alarms import Alarm
from serve.watchtower.networks import NetworkSums, throughput_of


def test_windows_are_waited_for_after_nothing_ran(store: redis.Redis) -> None:
    end_ms, now_ms = 1_000_000, 1_090_000
    for partition in range(PARTITIONS):
        store.hset(board.PROGRESS, str(partition), f"{end_ms - WINDOW_MS}:{now_ms - 60_000}")
    assert not board.is_complete(store, end_ms, now_ms, since_ms=now_ms - 2_000), "they have just begun to go on"
    assert board.is_complete(store, end_ms, now_ms, since_ms=now_ms - board.LATE_MS), "nobody goes on"
    store.hset(board.PROGRESS, "3", f"{end_ms - WINDOW_MS}:{now_ms - 1_000}")
    assert not board.is_complete(store, end_ms, now_ms, since_ms=now_ms - 60_000), "one is still reading"


def test_alarms_and_throughput_survive_the_board() -> None:
    alarm = Alarm(
        slice=(("cdn", "a"), ("region", "eu")), metric="stalls", window_ms=5, evidence=9.5, expected=0.1, total=9.0,
        bad=5.0,
    )  # fmt: skip
    assert list(board.load_alarms(board.dump_alarms([alarm]))) == [alarm]
    sums = NetworkSums()
    for kbps in (1000, 4000) * 20:
        sums.hear(Report("s", 0, {"mtp": {"v": kbps}}, {"cdn": "a", "asn": "7"}))
    sums.hear(Report("s", 0, {"mtp": {"v": 5}}, {"cdn": "a", "asn": "7"}))
    sums.hear(Report("s", 0, {"mtp": {"v": 5000}}, {"cdn": "a"}))
    again = NetworkSums.load(orjson.loads(orjson.dumps(sums.dump())))
    (found,) = throughput_of(again, 9).values()
    assert found.log_mean_kbps == pytest.approx(7.6009, abs=1e-3)
    assert found.log_std_kbps == pytest.approx(0.6931, abs=1e-3)
    assert (found.sessions, found.last_ts_ms) == (40, 9)
