"""Writing events: durable, once, in any number of writers, against a real Valkey."""

import asyncio
import contextlib
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from features.errors import InvalidBatch, StoreTimeout, StoreUnavailable
from features.events import Event, EventKind
from features.online import OnlineFeatures
from features.popularity import TitleStatistics, title_key
from features.records import profile_key
from features.stream import MAX_BATCH, PLAYS, STREAM, EventWriter, WriteReceipt, seen_key
from features.views import TITLE_STATS

START = 1_700_000_000_000


def an_event(index, profile="p1", **fields):
    return Event(**{"event_id": f"{profile}-{index}", "profile_id": profile, "title_id": f"t{index % 50}",
                    "kind": "play", "ts": START + index * 1000, **fields})  # fmt: skip


@pytest.fixture
async def features(settings):
    reader = OnlineFeatures(settings)
    yield reader
    await reader.close()


@pytest.fixture
async def writer(settings):
    made = EventWriter(settings)
    yield made
    await made.close()


@pytest.fixture
def client(settings):
    with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as made:
        yield made


def logged(client):
    return [Event.model_validate_json(fields[b"event"]) for _, fields in client.xrange(STREAM)]


async def test_a_batch_is_stored_once(writer, features, client):
    events = [an_event(index, f"p{index % 7}", kind=random.choice(list(EventKind))) for index in range(100)]
    assert await writer.write(events) == WriteReceipt(100, 0)
    assert await writer.write(events) == WriteReceipt(0, 100)
    assert await writer.write(events[:1] * 3 + [an_event(500), an_event(500)]) == WriteReceipt(1, 4)
    assert sorted(event.event_id for event in logged(client)) == sorted({e.event_id for e in [*events, an_event(500)]})
    counts = [(await features.read(f"p{index}")).stats.counts for index in range(7)]
    assert sum(sum(count.values()) for count in counts) == 101
    assert writer.outcomes["accepted"] == 101
    assert int(client.get(PLAYS)) == sum(event.kind is EventKind.PLAY for event in logged(client))
    assert client.ttl(seen_key("p1-1")) > 6 * 24 * 3600


async def test_the_log_holds_events_whole(writer, client):
    event = an_event(1, kind="progress", position_s=3.5, duration_s=7.0, request_id="r", row="Top picks", rank=3,
                     device="tv", region="FR")  # fmt: skip
    await writer.write([event])
    assert logged(client) == [event]


async def test_an_empty_batch_is_nothing_and_a_huge_one_refused(writer, client):
    assert await writer.write([]) == WriteReceipt(0, 0)
    with pytest.raises(InvalidBatch) as told:
        await writer.write([an_event(index) for index in range(MAX_BATCH + 1)])
    assert told.value.got == str(MAX_BATCH + 1)
    assert not client.exists(STREAM)


async def test_a_full_batch_of_as_many_profiles(writer, features):
    assert (await writer.write([an_event(1, f"p{index}") for index in range(MAX_BATCH)])).accepted == MAX_BATCH
    assert (await features.read(f"p{MAX_BATCH - 1}")).history.n_events == 1


async def test_no_writer_loses_to_another(settings, features, client):
    """Writers on connections of their own, as in many processes, all on one profile, each with retries of its own."""
    writers = [EventWriter(settings, deadline_ms=20_000) for _ in range(8)]
    shared = [an_event(10_000 + index) for index in range(20)]
    batches = [[an_event(100 * w + index) for index in range(15)] for w in range(8)]

    async def write(writer, events):
        receipts = [await writer.write([event, random.choice(shared)]) for event in events]
        receipts.append(await writer.write(shared))
        return sum(receipt.accepted for receipt in receipts)

    accepted = await asyncio.gather(*(write(w, events) for w, events in zip(writers, batches, strict=True)))
    expected = 8 * 15 + 20
    assert sum(accepted) == expected
    profile = await features.read("p1")
    assert profile.history.n_events == profile.stats.counts[EventKind.PLAY] == expected
    assert {entry.ts_ms for entry in profile.history.entries} == {e.ts for es in [*batches, shared] for e in es}
    assert client.xlen(STREAM) == expected
    assert sum(writer.outcomes["conflict"] for writer in writers) > 0, "the writers never met"
    for writer in writers:
        await writer.close()


async def test_an_event_id_counts_once_even_for_two_profiles(settings, client):
    """Two writers that both found the id unseen: the script itself decides."""
    writers = [EventWriter(settings), EventWriter(settings)]
    for index in range(100):
        events = [an_event(index, profile, event_id=f"same{index}") for profile in ("p1", "p2")]
        receipts = await asyncio.gather(*(w.write([e]) for w, e in zip(writers, events, strict=True)))
        assert sum(receipt.accepted for receipt in receipts) == 1
    assert client.xlen(STREAM) == 100
    for writer in writers:
        await writer.close()


async def test_writers_of_one_process_take_turns(writer, features):
    await asyncio.gather(*(writer.write([an_event(index)]) for index in range(200)))
    assert (await features.read("p1")).history.n_events == 200
    assert writer.outcomes["conflict"] == 0


async def test_batches_that_overlap_do_not_wait_for_each_other_for_ever(writer):
    profiles = [f"p{index}" for index in range(20)]
    batches = []
    for index in range(20):
        random.shuffle(profiles)
        batches.append(writer.write([an_event(index, profile) for profile in profiles]))
    assert sum(receipt.accepted for receipt in await asyncio.gather(*batches)) == 400


async def test_title_statistics_follow_at_once(settings, writer):
    kinds = [EventKind.IMPRESSION] * 5 + [EventKind.PLAY] * 300 + [EventKind.FINISH] * 2 + [EventKind.THUMBS_UP]
    await writer.write([an_event(index, title_id="t", kind=kind) for index, kind in enumerate(kinds)])
    reader = TitleStatistics(settings)
    found = await reader.read_all(["t", "none"])
    await reader.close()
    stats = found["t"]
    assert (stats.impressions, stats.plays, stats.finishes, stats.thumbs_up, stats.thumbs_down) == (5, 300, 2, 1, 0)
    assert stats.last_ts_ms == START + 307_000
    assert stats.decayed_plays(stats.last_ts_ms) == pytest.approx(300, rel=0.001)
    assert found["none"].plays == 0
    assert found["none"].decayed_plays(START) == 0


async def test_one_titles_rubbish_does_not_hide_the_others_statistics(settings, writer, client, caplog):
    await writer.write([an_event(index, title_id=title) for index, title in enumerate(["good", "bad"])])
    client.hset(title_key("bad"), TITLE_STATS.field("plays"), b"\xff")
    client.set(title_key("text"), "no hash")
    reader = TitleStatistics(settings)
    found = await reader.read_all(["bad", "good", "text"])
    await reader.close()
    assert [found[title].plays for title in ("bad", "good", "text")] == [0, 1, 0]
    assert [name in caplog.text for name in ("title bad", "title good", "title text")] == [True, False, True]


@pytest.mark.parametrize("poison", [("set", "text"), ("rpush", "a", "list"), ("zadd", {"a": 1})])
async def test_a_key_of_another_type_holds_nobody_up(settings, writer, features, client, caplog, poison):
    """Profiles', titles' and marks' keys that somebody wrote over: all events are stored once, the others as ever."""
    how, *what = poison
    await writer.write([an_event(0, "good"), an_event(1, "good")])
    for key in (profile_key("bad"), title_key("t2"), seen_key("good-3"), PLAYS):
        client.delete(key)
        getattr(client, how)(key, *what)
    events = [*(an_event(index, "good") for index in range(2, 5)), *(an_event(index, "bad") for index in range(4))]
    receipt = await writer.write(events)
    seen = 1 if how == "set" else 0  # a text there says so, whoever wrote it
    assert receipt == WriteReceipt(7 - seen, seen)
    assert (await writer.write(events)).duplicates == 7
    assert len(logged(client)) == 9 - seen
    good, bad = await features.read("good"), await features.read("bad")
    assert (good.degraded, good.history.n_events, good.stats.kids) == ((), 5 - seen, False)
    assert (bad.degraded, bad.history.n_events, bad.stats.kids) == ((), 4, True)  # a doubtful profile is a kids profile
    reader = TitleStatistics(settings)
    stats = await reader.read_all(["t1", "t2"])
    await reader.close()
    assert [stats[title].plays for title in ("t1", "t2")] == [2, 2]
    assert writer.outcomes["corrupt"] == 1
    assert "profile bad" in caplog.text
    for key in (profile_key("bad"), title_key("t2")):  # kept for whoever wants to know
        assert client.type(key + b":unreadable") == {"set": b"string", "rpush": b"list", "zadd": b"zset"}[how]


async def test_a_log_of_another_type_stores_nothing(writer, features, client):
    client.set(STREAM, "no stream")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
            await writer.write([an_event(1)])
    assert not (await features.read("p1")).known
    assert not client.exists(seen_key("p1-1"), title_key("t1"))
    client.delete(STREAM)
    assert await writer.write([an_event(1)]) == WriteReceipt(1, 0)
    assert (await features.read("p1")).history.n_events == 1


async def test_a_store_that_forgot_the_script_is_taught_again(writer, client):
    await writer.write([an_event(1)])
    client.script_flush()
    assert await writer.write([an_event(2), an_event(3, "p2")]) == WriteReceipt(2, 0)


async def test_a_store_that_refuses_writes_is_unavailable(settings, valkey_process):
    writer = EventWriter(replace(settings, redis_url=valkey_process.url))
    with contextlib.closing(redis.Redis.from_url(valkey_process.url)) as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="OOM"):
            await writer.write([an_event(1)])
        client.config_set("maxmemory", "0")
        assert not client.exists(STREAM)
    assert await writer.write([an_event(1)]) == WriteReceipt(1, 0)
    await writer.close()


async def test_a_write_without_an_answer_may_be_sent_again(settings, valkey_process):
    """The store carries the write out although the caller has given up: the retry finds duplicates."""
    settings = replace(settings, redis_url=valkey_process.url)
    writer, reader = EventWriter(settings, deadline_ms=200), OnlineFeatures(settings)
    await writer.write([an_event(0)])
    for index in range(1, 6):
        valkey_process.process.send_signal(signal.SIGSTOP)
        writing = asyncio.create_task(writer.write([an_event(index)]))
        await asyncio.sleep(0.01)
        with pytest.raises(StoreTimeout):
            await writing
        valkey_process.process.send_signal(signal.SIGCONT)
        receipt = await writer.write([an_event(index)])
        assert receipt.accepted + receipt.duplicates == 1
    profile = await reader.read("p1", 1000.0)
    assert profile.history.n_events == 6
    await writer.close()
    await reader.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from features.events import Event
from features.settings import Settings
from features.stream import EventWriter

async def main(url, name):
    writer = EventWriter(Settings(home=Path("."), redis_url=url, feast_registry=""), deadline_ms=20000)
    for batch in range(10000):
        await writer.write([Event(event_id=f"{name}-{batch}-{i}", profile_id=f"p{i % 3}", title_id="t", kind="play",
                                  ts=1_700_000_000_000 + batch) for i in range(9)])
        print(batch, flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


async def test_writers_and_store_killed_at_any_moment_lose_nothing_acknowledged(settings, valkey_process):
    """SIGKILL of a writer's process, then of the store: log, marks and features agree, and all that was acknowledged is
    there; sending everything again stores the rest once."""
    settings = replace(settings, redis_url=valkey_process.url)
    acknowledged = {}
    for name in ("a", "b", "c"):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, valkey_process.url, name, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        lines = [await process.stdout.readline() for _ in range(random.randrange(5, 40))]
        if name == "c":
            valkey_process.kill()
        process.kill()
        lines += (await process.stdout.read()).splitlines()
        await process.wait()
        acknowledged[name] = int(lines[-1])
    valkey_process.start()
    with contextlib.closing(redis.Redis.from_url(valkey_process.url)) as client:
        stored = logged(client)
        ids = {event.event_id for event in stored}
        assert len(ids) == len(stored)
        assert {f"{n}-{b}-{i}" for n, last in acknowledged.items() for b in range(last + 1) for i in range(9)} <= ids
        assert all(client.exists(seen_key(event_id)) for event_id in ids)
        writer, reader = EventWriter(settings), OnlineFeatures(settings)
        for profile in ("p0", "p1", "p2"):
            expected = [event for event in stored if event.profile_id == profile]
            assert (await reader.read(profile, 2000.0)).history.n_events == len(expected)
        for name, last in acknowledged.items():
            for batch in range(last + 2):
                await writer.write(
                    [
                        Event(event_id=f"{name}-{batch}-{i}", profile_id=f"p{i % 3}", title_id="t", kind="play",
                              ts=START + batch)
                        for i in range(9)
                    ]
                )  # fmt: skip
        total = sum(last + 2 for last in acknowledged.values()) * 9
        assert client.xlen(STREAM) == total
        assert sum([(await reader.read(p)).history.n_events for p in ("p0", "p1", "p2")]) == client.xlen(STREAM)
        await writer.close()
        await reader.close()
