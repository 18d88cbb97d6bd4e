import asyncio
import os
import time

import pytest
import redis

from deployments.parts import start_worker
from deployments.processes import end
from deployments.state import RunFolder
from features.events import Event, EventKind
from features.sink import read_log
from features.stream import EventWriter
from serve.watchtower import board


@pytest.fixture
def worker(settings):
    environment = {**os.environ, "PLAYHEAD_HOME": str(settings.home), "REDIS_URL": settings.redis_url}
    child = start_worker("sinks", RunFolder(settings.home), environment)
    yield child
    end([child.record], grace_s=5)
    child.popen.wait()
    for stream in (child.popen.stdin, child.popen.stdout):
        stream.close()


def write(settings, event_id):
    async def run():
        writer = EventWriter(settings)
        event = Event(event_id=event_id, profile_id="p", title_id="t", kind=EventKind.PLAY, ts=1_700_000_000_000)
        await writer.write([event])
        await writer.close()

    asyncio.run(run())


def test_events_reach_the_files_and_the_worker_ends_with_its_starter(settings, worker):
    write(settings, "e1")
    deadline = time.monotonic() + 30
    while "e1" not in read_log(settings.home / "events")["event_id"].to_list():
        assert time.monotonic() < deadline
        assert worker.exit_status() is None, worker.log_tail()
        time.sleep(0.05)
    worker.popen.stdin.close()  # what happens to it when its starter is killed
    assert worker.popen.wait(10) == 0


def test_it_ends_when_asked(worker):
    worker.popen.terminate()
    assert worker.popen.wait(10) in {0, -15}  # -15: asked before it had begun


def test_a_watchtower_takes_its_roles_and_gives_them_back(settings):
    environment = {**os.environ, "PLAYHEAD_HOME": str(settings.home), "REDIS_URL": settings.redis_url}
    child = start_worker("watchtower", RunFolder(settings.home), environment)
    with redis.Redis.from_url(settings.redis_url) as store:
        deadline = time.monotonic() + 30
        while store.zcard(board.REPLICAS) == 0 or not store.get(board.lease_key(board.OUTAGE_ROLE)):
            assert time.monotonic() < deadline
            assert child.exit_status() is None, child.log_tail()
            time.sleep(0.05)
        child.popen.stdin.close()
        assert child.popen.wait(20) == 0, child.log_tail()
        assert store.get(board.lease_key(board.OUTAGE_ROLE)) is None
    child.popen.stdout.close()
