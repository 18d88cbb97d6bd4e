"""Reading profiles: the deadline, the fallback, and recovery, against a real Valkey."""

import asyncio
import contextlib
import signal
import socket
import time
from dataclasses import replace

import pytest
import redis
import uvloop

from features.errors import StoreTimeout, StoreUnavailable
from features.events import Event
from features.layout import ValueKind, command, encode
from features.link import StoreLink
from features.online import OnlineFeatures
from features.records import READ_FIELDS, profile_key
from features.stream import EventWriter
from tests.waiting import eventually


def an_event(index=0, profile="p1", **fields):
    return Event(**{"event_id": f"{profile}-{index}", "profile_id": profile, "title_id": f"t{index}", "kind": "play",
                    "ts": 1_700_000_000_000 + index, **fields})  # fmt: skip


@contextlib.asynccontextmanager
async def parts(settings):
    features, writer = OnlineFeatures(settings), EventWriter(settings)
    try:
        yield features, writer
    finally:
        await features.close()
        await writer.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a task leaked"


async def test_a_read_sees_the_last_write(settings):
    async with parts(settings) as (features, writer):
        await writer.write([an_event(region="FR", device="tv", position_s=1.0, duration_s=3.0)])
        profile = await features.read("p1")
        assert (profile.known, profile.degraded, profile.stats.region, profile.stats.device) == (True, (), "FR", "tv")
        (entry,) = profile.history.entries
        assert entry.title_id == "t0"
        assert entry.progress == pytest.approx(1 / 3, abs=1e-7)
        assert features.outcomes["ok"] == 1


@pytest.mark.parametrize("remembered", [0, 2, 512])
async def test_what_is_remembered_of_a_read_never_shows(settings, remembered):
    features, writer = OnlineFeatures(settings, remembered=remembered), EventWriter(settings)
    for index in range(3):
        await writer.write([an_event(index, f"p{profile}") for profile in range(5)])
        for profile in [*range(5), 0, 0]:
            read = await features.read(f"p{profile}")
            assert [entry.title_id for entry in read.history.entries] == [f"t{i}" for i in range(index + 1)]
            assert read.history.n_events == read.stats.counts["play"] == index + 1
            read.history.entries.clear()
            read.history.n_events = 99
    assert len(features._decoded) == min(remembered, 5)
    await features.close()
    await writer.close()


async def test_an_unknown_profile_is_not_degraded(settings):
    async with parts(settings) as (features, _):
        profile = await features.read("nobody")
        assert (profile.known, profile.degraded, profile.history.entries) == (False, (), [])
        assert features.outcomes["unknown"] == 1


async def test_concurrent_reads_leave_in_one_write_and_keep_apart(settings):
    async with parts(settings) as (features, writer):
        await writer.write([an_event(index, f"p{index}") for index in range(100)])
        await features.read("p0")
        with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as client:
            before = client.info("stats")["total_reads_processed"]
            profiles = await asyncio.gather(*(features.read(f"p{index}") for index in range(100)))
            calls = client.info("stats")["total_reads_processed"] - before
        assert [profile.history.entries[0].title_id for profile in profiles] == [f"t{index}" for index in range(100)]
        assert calls <= 5, "one read of the socket for all, and those of the INFO commands themselves"


@pytest.mark.timed
async def test_a_store_that_is_down_degrades_at_once_and_recovers(settings, valkey_process):
    settings = replace(settings, redis_url=valkey_process.url)
    async with parts(settings) as (features, writer):
        await writer.write([an_event()])
        valkey_process.kill()
        began = time.monotonic()
        profiles = await asyncio.gather(*(features.read("p1", 200.0) for _ in range(20)))
        assert {profile.degraded for profile in profiles} == {("features_unavailable",)}
        assert time.monotonic() - began < 0.4
        with pytest.raises(StoreUnavailable) as told:
            await writer.write([an_event(1)])
        assert str(valkey_process.port) in told.value.got
        valkey_process.start()

        async def recovered():
            return (await features.read("p1")).known

        await eventually(recovered)

        async def written():
            with contextlib.suppress(StoreUnavailable):
                return await writer.write([an_event(1)])

        await eventually(written)
        assert (await features.read("p1")).history.n_events == 2
        assert features.outcomes["features_unavailable"] >= 20


@pytest.mark.timed
async def test_a_frozen_store_costs_no_more_than_the_deadline_and_recovers(settings, valkey_process):
    settings = replace(settings, redis_url=valkey_process.url)
    async with parts(settings) as (features, writer):
        await writer.write([an_event()])
        assert (await features.read("p1")).known
        valkey_process.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            profiles = await asyncio.gather(*(features.read("p1", 50.0) for _ in range(50)))
            assert time.monotonic() - began < 0.5
            assert {profile.degraded for profile in profiles} == {("features_timeout",)}
        finally:
            valkey_process.process.send_signal(signal.SIGCONT)

        async def recovered():
            return (await features.read("p1")).known

        await eventually(recovered)


async def test_a_connection_that_went_dead_is_made_anew(settings, valkey_process):
    """A server that hangs for ever is left for a new connection after stall_s."""
    link = StoreLink(valkey_process.url, stall_s=0.1)
    try:
        await link.call(command("PING"), deadline_s=1.0)
        wire = link._wire
        valkey_process.process.send_signal(signal.SIGSTOP)
        with pytest.raises(StoreTimeout):
            await link.call(command("PING"), deadline_s=0.15)
        with pytest.raises(StoreTimeout):
            await link.call(command("PING"), deadline_s=0.05)
        assert link._wire is not wire
    finally:
        valkey_process.process.send_signal(signal.SIGCONT)
    assert await link.call(command("PING"), deadline_s=5.0) == [b"PONG"]
    await link.close()


async def test_a_dead_store_cannot_pile_up_requests(settings, valkey_process):
    link = StoreLink(valkey_process.url, max_in_flight=10)
    await link.call(command("PING"), deadline_s=1.0)
    valkey_process.process.send_signal(signal.SIGSTOP)
    try:
        results = await asyncio.gather(
            *(link.call(command("PING"), deadline_s=0.1) for _ in range(15)), return_exceptions=True
        )
    finally:
        valkey_process.process.send_signal(signal.SIGCONT)
    assert [type(result) for result in results] == [StoreTimeout] * 10 + [StoreUnavailable] * 5
    await link.close()


async def test_an_abandoned_read_does_not_shift_the_replies_of_others(settings):
    async with parts(settings) as (features, writer):
        await writer.write([an_event(index, f"p{index}") for index in range(3)])
        await features.read("p0")
        reads = [asyncio.create_task(features.read(f"p{index}")) for index in range(3)]
        await asyncio.sleep(0)
        reads[1].cancel()
        first, abandoned, last = await asyncio.gather(*reads, return_exceptions=True)
        assert isinstance(abandoned, asyncio.CancelledError)
        assert (first.history.entries[0].title_id, last.history.entries[0].title_id) == ("t0", "t2")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, b"\xff\xff\xff"),
        (1, b"j\x02\x08\x63"),
        (2, b""),
        (3, None),
        (4, b"\x00garbage"),
        (5, b"\xff"),
        (11, b"\xff"),
    ],
)
async def test_corrupt_records_degrade_and_the_next_event_heals(settings, field, value):
    async with parts(settings) as (features, writer):
        await writer.write([an_event(index) for index in range(5)])
        with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as client:
            if value is None:
                client.hdel(profile_key("p1"), READ_FIELDS[field])
            else:
                client.hset(profile_key("p1"), READ_FIELDS[field], value)
        assert (await features.read("p1")).degraded == ("features_corrupt",)
        assert features.outcomes["features_corrupt"] == 1
        assert (await writer.write([an_event(9)])).accepted == 1
        healed = await features.read("p1")
        assert (healed.known, healed.degraded, healed.history.n_events) == (True, (), 1)
        assert writer.outcomes["corrupt"] == 1


@pytest.mark.parametrize(("kids", "field", "expected"), [(True, 0, True), (False, 0, False), (False, 11, True)])
async def test_a_damaged_record_opens_nothing_to_kids(settings, kids, field, expected):
    async with parts(settings) as (features, writer):
        await writer.write([an_event()])
        with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as client:
            client.hset(profile_key("p1"), READ_FIELDS[11], encode(ValueKind.BOOL, kids))
            assert (await features.read("p1")).stats.kids is kids
            client.hset(profile_key("p1"), READ_FIELDS[field], b"\xff")
        await writer.write([an_event(1)])
        assert (await features.read("p1")).stats.kids is expected


async def test_a_key_of_another_type_is_corrupt(settings):
    async with parts(settings) as (features, _):
        with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as client:
            client.set(profile_key("p1"), "text")
        assert (await features.read("p1")).degraded == ("features_corrupt",)


async def test_a_server_that_is_no_redis_is_unavailable(settings):
    async def hello(reader, writer):
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(hello, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    features = OnlineFeatures(replace(settings, redis_url=f"redis://127.0.0.1:{port}/0"))
    assert (await features.read("p1", 1000.0)).degraded == ("features_unavailable",)
    await features.close()
    server.close()
    await server.wait_closed()


async def test_password_and_database_are_used(valkey_process):
    with contextlib.closing(redis.Redis.from_url(valkey_process.url)) as client:
        client.config_set("requirepass", "s3cret")
    wrong = StoreLink(f"redis://:guess@127.0.0.1:{valkey_process.port}/3")
    with pytest.raises(StoreUnavailable) as told:
        await wrong.call(command("PING"), deadline_s=2.0)
    assert "WRONGPASS" in told.value.got
    assert "guess" not in str(told.value)
    await wrong.close()
    link = StoreLink(f"redis://:s3cret@127.0.0.1:{valkey_process.port}/3")
    await link.call(command("SET", "here", "yes"), deadline_s=2.0)
    await link.close()
    with contextlib.closing(redis.Redis(port=valkey_process.port, password="s3cret", db=3)) as client:
        assert client.get("here") == b"yes"


def test_uvloop_will_do(settings):
    """Ray Serve runs its replicas on uvloop, whose transports are not asyncio's."""

    async def main():
        async with parts(settings) as (features, writer):
            await writer.write([an_event()])
            return await features.read("p1", 1000.0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()).known


async def test_a_port_where_nothing_listens_is_refused_within_the_deadline(settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        features = OnlineFeatures(replace(settings, redis_url=f"redis://127.0.0.1:{taken.getsockname()[1]}/0"))
        began = time.monotonic()
        assert (await features.read("p1", 300.0)).degraded == ("features_unavailable",)
        assert time.monotonic() - began < 0.35
        await features.close()
