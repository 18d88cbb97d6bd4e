import asyncio
import os

import orjson
import psutil
import pytest
import redis

from deployments.parts import start_worker
from deployments.processes import end
from deployments.state import RunFolder
from features.events import Event, EventKind
from features.sink import read_log
from features.stream import EventWriter
from serve.rollout.board import MODELS, plan_key
from serve.rollout.decisions import LEAST_VARIABLE
from serve.rollout.plans import RolloutPlan
from serve.watchtower import board
from serve.watchtower.webhook import ADDRESS_VARIABLE
from tests.waiting import wait_for


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

    def written():
        assert worker.exit_status() is None, worker.log_tail()
        return "e1" in read_log(settings.home / "events")["event_id"].to_list()

    wait_for(written)
    worker.popen.stdin.close()  # what happens to it when its starter is killed
    assert worker.popen.wait(10) == 0


def test_it_ends_when_asked(worker):
    worker.popen.terminate()
    assert worker.popen.wait(10) in {0, -15}  # -15: asked before it had begun


def test_a_watchtower_takes_its_roles_and_gives_them_back(settings):
    environment = {**os.environ, "PLAYHEAD_HOME": str(settings.home), "REDIS_URL": settings.redis_url}
    child = start_worker("watchtower", RunFolder(settings.home), environment)
    with redis.Redis.from_url(settings.redis_url) as store:

        def at_work():
            assert child.exit_status() is None, child.log_tail()
            return store.zcard(board.REPLICAS) and store.get(board.lease_key(board.OUTAGE_ROLE))

        wait_for(at_work)
        child.popen.stdin.close()
        assert child.popen.wait(20) == 0, child.log_tail()
        assert store.get(board.lease_key(board.OUTAGE_ROLE)) is None
    child.popen.stdout.close()


def test_a_watchtower_that_cannot_begin_ends_whatever_is_told_of_outages(settings):
    environment = {**os.environ, "PLAYHEAD_HOME": str(settings.home), "REDIS_URL": settings.redis_url}
    environment |= {LEAST_VARIABLE: "soon", ADDRESS_VARIABLE: "http://127.0.0.1:9/"}
    child = start_worker("watchtower", RunFolder(settings.home), environment)
    try:
        assert child.popen.wait(30) != 0
        assert LEAST_VARIABLE in child.log_tail()
    finally:
        end([child.record], grace_s=1)
        for stream in (child.popen.stdin, child.popen.stdout):
            stream.close()


def test_the_registry_part_looks_and_ends_when_asked(settings):
    """It holds no MLflow while there is nothing to do; a plan of a version that is nowhere ends nothing."""
    environment = {**os.environ, "PLAYHEAD_HOME": str(settings.home), "REDIS_URL": settings.redis_url}
    environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    child = start_worker("registry", RunFolder(settings.home), environment)
    with redis.Redis.from_url(settings.redis_url) as store:
        plan = RolloutPlan(model="recommend", revision=1, champion="0" * 12)
        store.set(plan_key("recommend"), orjson.dumps(plan.as_json()))
        store.sadd(MODELS, "recommend")

        def told():
            assert child.exit_status() is None, child.log_tail()
            return "MLflow registry that answers" in child.log_tail()

        wait_for(told)
    assert psutil.Process(child.record.pid).memory_info().rss < 200 << 20
    child.popen.stdin.close()
    assert child.popen.wait(20) == 0, child.log_tail()
    child.popen.stdout.close()
