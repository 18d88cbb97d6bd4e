"""From the log to Parquet: nothing lost, nothing twice, against a real Valkey and a real kill."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from features.events import Event, EventKind
from features.sink import EVENTS, GROUP, LogSink, read_log
from features.stream import STREAM, EventWriter
from tests.waiting import HUNG_S, wait_for

DAY_MS = 24 * 3600 * 1000
START = 1_700_000_000_000


def an_event(index, **fields):
    return Event(**{"event_id": f"e{index}", "profile_id": "p1", "title_id": "t1", "kind": "play",
                    "ts": START + index * 1000, **fields})  # fmt: skip


def write(settings, events):
    async def main():
        writer = EventWriter(settings, deadline_ms=20_000)
        for start in range(0, len(events), 500):
            await writer.write(events[start : start + 500])
        await writer.close()

    asyncio.run(main())


@pytest.fixture
def client(settings):
    with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as made:
        yield made


@contextlib.contextmanager
def a_sink(settings, folder, **options):
    sink = LogSink(settings, folder, **{"wait_ms": 20, **options})
    try:
        yield sink
    finally:
        sink.close()


def test_events_come_back_as_they_were_in_their_order(settings, tmp_path, client):
    events = [an_event(i, kind=list(EventKind)[i % 8], ts=START + (i % 3) * DAY_MS, rank=i % 4 or None, region="FR",
                       position_s=i / 7, duration_s=10.0, request_id="r", row="Top") for i in range(50)]  # fmt: skip
    write(settings, events)
    with a_sink(settings, tmp_path / "log", most=20) as sink:
        assert sink.backlog() == 50
        assert [sink.drain() for _ in range(4)] == [20, 20, 10, 0]
        assert sink.backlog() == 0
    frame = read_log(tmp_path / "log")
    assert dict(frame.schema) == EVENTS.schema
    assert [Event.model_validate(row) for row in frame.iter_rows(named=True)] == events
    assert sorted(folder.name for folder in (tmp_path / "log").iterdir()) == [
        "date=2023-11-14", "date=2023-11-15", "date=2023-11-16",
    ]  # fmt: skip
    assert client.xpending(STREAM, GROUP)["pending"] == 0


def test_a_folder_without_events_is_an_empty_frame(tmp_path):
    assert dict(read_log(tmp_path).schema) == EVENTS.schema
    assert read_log(tmp_path).height == 0


def test_what_was_written_but_not_acknowledged_is_read_once(settings, tmp_path, monkeypatch):
    write(settings, [an_event(i) for i in range(10)])
    with a_sink(settings, tmp_path) as sink:
        monkeypatch.setattr(sink._client, "xack", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sink.drain()
        assert sink.backlog() == 10, "nothing may be trimmed before it is acknowledged"
    assert read_log(tmp_path).height == 10
    write(settings, [an_event(10)])
    with a_sink(settings, tmp_path) as again:
        assert [again.drain() for _ in range(3)] == [10, 1, 0]
        assert again.backlog() == 0
    assert read_log(tmp_path)["event_id"].to_list() == [f"e{i}" for i in range(11)]
    assert len(list(tmp_path.glob("*/part-*.parquet"))) == 3


def test_a_full_disk_loses_nothing(settings, tmp_path, monkeypatch):
    write(settings, [an_event(i) for i in range(10)])

    def full(*_):
        raise OSError(28, "No space left on device")

    with a_sink(settings, tmp_path) as sink:
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            sink.drain()
        assert list(tmp_path.glob("*/*")) == []
        monkeypatch.undo()
        assert sink.drain() == 10
    assert read_log(tmp_path).height == 10


def test_the_log_is_kept_for_slower_readers(settings, tmp_path, client):
    client.xgroup_create(STREAM, "another", id="0", mkstream=True)
    write(settings, [an_event(i) for i in range(10)])
    with a_sink(settings, tmp_path) as sink:
        assert sink.drain() == 10
        assert sink.backlog() == 10
        ((_, entries),) = client.xreadgroup("another", "me", {STREAM: ">"}, count=4)
        client.xack(STREAM, "another", *[position for position, _ in entries[:3]])
        write(settings, [an_event(10)])
        assert sink.drain() == 1
        assert client.xrange(STREAM)[0] == entries[3], "read by the other, not acknowledged"


def test_what_a_lost_sink_held_is_taken_over(settings, tmp_path, client, monkeypatch):
    monkeypatch.setattr("features.sink._OTHER_IDLE_MS", 0)
    client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    write(settings, [an_event(i) for i in range(5)])
    client.xreadgroup(GROUP, "lost", {STREAM: ">"})
    with a_sink(settings, tmp_path) as sink:
        assert sink.drain() == 5
    assert read_log(tmp_path).height == 5


def test_entries_that_are_no_events_are_set_aside(settings, tmp_path, client):
    client.xadd(STREAM, {"event": "{}"})
    client.xadd(STREAM, {"other": "x"})
    write(settings, [an_event(1)])
    with a_sink(settings, tmp_path) as sink:
        assert sink.drain() == 3
        assert sink.backlog() == 0
    assert read_log(tmp_path).height == 1
    assert len((tmp_path / "rejected.txt").read_text().splitlines()) == 2


def test_unfinished_files_of_a_killed_sink_are_cleared(settings, tmp_path):
    left = tmp_path / "date=2024-01-01" / ".part-x.parquet.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half")
    assert read_log(tmp_path).height == 0
    with a_sink(settings, tmp_path):
        assert not left.exists()


def test_run_waits_out_a_store_that_is_down_and_stops_when_told(settings, valkey_process, tmp_path, caplog):
    settings = replace(settings, redis_url=valkey_process.url)
    stop = threading.Event()
    with a_sink(settings, tmp_path) as sink:
        thread = threading.Thread(target=sink.run, args=(stop,), kwargs={"pause_s": 0.02})
        thread.start()
        try:
            valkey_process.kill()
            wait_for(lambda: "round failed" in caplog.text)
            valkey_process.start()
            write(settings, [an_event(i) for i in range(5)])
            wait_for(lambda: read_log(tmp_path).height == 5)
        finally:
            stop.set()
            thread.join(timeout=20)
        assert not thread.is_alive()


CHILD = """
import os, random, signal, sys, threading, time
from pathlib import Path
import redis
from features.settings import Settings
from features.sink import LogSink
from features.stream import STREAM

def die(left):
    with redis.Redis.from_url(sys.argv[1]) as store:
        while store.xlen(STREAM) > left:
            time.sleep(0.002)
    time.sleep(random.uniform(0.0, 0.01))
    os.kill(os.getpid(), signal.SIGKILL)

settings = Settings(home=Path("."), redis_url=sys.argv[1], feast_registry="")
sink = LogSink(settings, Path(sys.argv[2]), most=37, wait_ms=50)
threading.Thread(target=die, args=(int(sys.argv[3]),), daemon=True).start()
sink.run(threading.Event())
"""
"""A sink that is killed once so few events are left: whoever watched it from outside might be late."""


def test_no_trouble_ends_a_sink(settings, tmp_path, client, caplog):
    write(settings, [an_event(0)])
    troubles = iter([TypeError("no event of this release")])

    def read(dumped):
        for trouble in troubles:
            raise trouble
        return EVENTS.read(dumped)

    with a_sink(settings, tmp_path / "log", log=replace(EVENTS, read=read)) as sink:
        stop = threading.Event()
        thread = threading.Thread(target=sink.run, args=(stop,), kwargs={"pause_s": 0.01})
        thread.start()
        try:
            wait_for(lambda: read_log(tmp_path / "log").height == 1)
        finally:
            stop.set()
            thread.join(timeout=20)
    assert "no event of this release" in caplog.text


def test_a_time_that_is_no_day_is_set_aside(settings, tmp_path, client):
    write(settings, [an_event(0), an_event(1)])

    def read(dumped):
        row = EVENTS.read(dumped)
        return row | {"ts": 1 << 60} if row["event_id"] == "e0" else row

    with a_sink(settings, tmp_path / "log", log=replace(EVENTS, read=read)) as sink:
        assert sink.drain() == 2
    assert read_log(tmp_path / "log")["event_id"].to_list() == ["e1"]
    assert len((tmp_path / "log" / "rejected.txt").read_text().splitlines()) == 1


def test_sinks_killed_again_and_again_lose_nothing(settings, tmp_path, client):
    folder = tmp_path / "log"
    events = [an_event(i, ts=START + i * 7_200_000) for i in range(1200)]
    write(settings, events)
    left = client.xlen(STREAM)
    for round_ in range(4):
        target = 0 if round_ == 3 else left - 200
        command = [sys.executable, "-c", CHILD, settings.redis_url, str(folder), str(target)]
        killed = subprocess.run(command, cwd=Path(__file__).parents[2], timeout=HUNG_S, check=False)
        assert killed.returncode == -signal.SIGKILL
        left = client.xlen(STREAM)
        if round_ < 3:
            assert left > 0, "it was to be killed mid-way"
    assert left == 0
    assert read_log(folder)["event_id"].to_list() == [event.event_id for event in events]
