"""Replicas of the Watchtower on a real Valkey: the same windows and outages whoever reads, however often one dies."""

import asyncio
import logging
import random
import signal
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pytest
import redis

from features.networks import NetworkReader
from features.popularity import title_key
from features.qoe import Qoe, QoeReader
from features.renditions import Rendition, store_renditions
from features.settings import Settings
from serve.telemetry import records
from serve.telemetry.log import FIELD, PARTITIONS, Said, partition_of, reports_of, stream_key
from serve.telemetry.reports import Report
from serve.telemetry.sessions import DEAD_MS, Sessions, Summary
from serve.telemetry.windows import REPORTS, WINDOW_MS, Window
from serve.watchtower import board
from serve.watchtower.leases import LEASE_MS, LeaseLost, Leases
from serve.watchtower.networks import NetworkSums, throughput_of
from serve.watchtower.outages import Outage
from serve.watchtower.qoe import QoeSums
from serve.watchtower.replica import SESSIONS_FORMAT, OutagesRole, SessionsRole, WatchtowerReplica
from serve.watchtower.tower import Watchtower
from tests.serve.watchtower.conftest import wait_for

MINUTES = 25
BROKEN_FROM_S = 20 * 60

Entry = tuple[int, int, bytes]
"""When, partition, bytes."""


def audience(start_ms: int, minutes: int = MINUTES, seed: int = 0) -> list[Entry]:
    """What 2 sessions a second say; from BROKEN_FROM_S on, the CDN north breaks half of its starts and playbacks."""
    rng = random.Random(seed)
    said: list[tuple[int, dict[str, Any], dict[str, str]]] = []
    for place in range(minutes * 60 * 2):
        at = rng.randrange(minutes * 60_000)
        cdn, region = rng.choice(("north", "north", "south", "west")), rng.choice(("eu", "us"))
        context = {"region": region, "device": rng.choice(("tv", "phone")), "asn": f"{region}-{rng.randrange(3)}"}
        base = {"sid": f"s{place}", "cdn": cdn, "cid": f"t{rng.randrange(9)}", "sf": "d"}

        def say(when: int, number: int, base: dict[str, Any] = base, context: Any = context, **values: Any) -> None:
            said.append((when, {**base, "ts": start_ms + when, "sn": number, **values}, context))

        def broken(when: int, cdn: str = cdn) -> bool:
            return cdn == "north" and when >= BROKEN_FROM_S * 1000 and rng.random() < 0.5

        say(at, 0, e="ps", sta="s")
        if broken(at):
            say(at + 900, 1, e="e", sta="f", ec="7")
            continue
        say(at + 900, 1, e="ps", sta="p", br={"v": 3000}, mtp={"v": rng.randrange(4000, 30000)})
        end, number = at + rng.randrange(30_000, 400_000), 2
        for when in range(at + 30_000, end, 30_000):
            state = "r" if broken(when) or rng.random() < 0.01 else "p"
            say(when, number, e="t" if state == "p" else "ps", sta=state, br={"v": 3000}, mtp={"v": 9000})
            number += 1
        say(end, number, e="ps", sta="e")
    said.sort(key=lambda one: one[0])
    entries = []
    for place in range(0, len(said), 20):
        batch = [one for one in said[place : place + 20] if one[0] < minutes * 60_000]
        for one in batch:
            ((partition, entry),) = Said(start_ms + one[0], one[2], [one[1]]).parts().items()
            entries.append((start_ms + one[0], partition, entry))
    return entries


def append(store: redis.Redis, entries: list[Entry]) -> None:
    pipe = store.pipeline(transaction=False)
    for sequence, (at, partition, entry) in enumerate(entries):
        pipe.xadd(stream_key(partition), {FIELD: entry}, id=f"{at}-{sequence + 1}")
    pipe.execute()


def expected_windows(entries: list[Entry]) -> dict[int, Window]:
    """Window by window, as one process that never dies sees them."""
    by_partition: dict[int, Sessions] = {}
    windows: dict[int, Window] = {}
    last = entries[-1][0] // WINDOW_MS * WINDOW_MS
    for at, partition, entry in entries:
        sessions = by_partition.setdefault(partition, Sessions(at))
        for window in sessions.advance(at):
            windows.setdefault(window.start_ms, Window(window.start_ms)).merge(window)
        for report in reports_of(entry):
            sessions.take(report, at)
    for sessions in by_partition.values():
        for window in sessions.advance(last):
            windows.setdefault(window.start_ms, Window(window.start_ms)).merge(window)
    return {start: window for start, window in windows.items() if start < last}


def expected_records(entries: list[Entry]) -> set[tuple[str, str, float]]:
    """Sessions that are over by the last entry's window, as one process that never dies sees them."""
    over: list[Summary] = []
    by_partition: dict[int, Sessions] = {}
    for at, partition, entry in entries:
        sessions = by_partition.setdefault(partition, Sessions(at, closed=over.append))
        for _ in sessions.advance(at):
            pass
        for report in reports_of(entry):
            sessions.take(report, at)
    for sessions in by_partition.values():
        for _ in sessions.advance(entries[-1][0] // WINDOW_MS * WINDOW_MS):
            pass
    return {(one.session, one.end, one.played_ms) for one in over}


def read_up_to(store: redis.Redis, end_ms: int) -> bool:
    found = store.hgetall(board.PROGRESS)
    return len(found) == PARTITIONS and all(int(told.split(b":")[0]) >= end_ms for told in found.values())


def outages(store: redis.Redis) -> list[Any]:
    return [board.load_outage(dumped) for dumped in store.hvals(board.OUTAGES)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("deaths", [0, 3])
def test_windows_and_outages_are_the_same_however_often_replicas_die(
    store: redis.Redis, settings: Settings, start: Callable[[str], subprocess.Popen[bytes]], deaths: int
) -> None:
    now = int(time.time() * 1000)
    began = (now - MINUTES * 60_000) // WINDOW_MS * WINDOW_MS
    entries = audience(began)
    append(store, entries)
    expected = expected_windows(entries)
    last = max(expected)
    replicas = [start("a"), start("b")]
    for death in range(deaths):
        wait_for(lambda: store.hlen(board.PROGRESS))
        time.sleep(0.5 + death)
        victim = replicas.pop(0)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        replicas.append(start(f"again-{death}"))
    wait_for(lambda: read_up_to(store, last + WINDOW_MS))
    seen = {start_ms: board.read_window(store, start_ms)[0] for start_ms in expected}
    for start_ms, window in expected.items():
        assert seen[start_ms].counts == window.counts, (start_ms - began) // WINDOW_MS
    logged = [records.SESSIONS.read(fields[records.FIELD]) for _, fields in store.xrange(records.STREAM)]
    told = [(one["session"], one["end"], one["played_ms"]) for one in logged if one["last_ts"] < last - DEAD_MS]
    assert len(told) == len(set(told)) > 1000, "each once"
    assert set(told) <= expected_records(entries)
    over_by_then = {one["session"] for one in logged}
    assert all(session in over_by_then for session, _, _ in expected_records(entries)), "none is missing"
    reports = sum(row[REPORTS] for window in seen.values() for row in window.counts.values())
    assert reports == sum(at < last + WINDOW_MS for at, _, _ in entries)
    wait_for(lambda: int(store.get(board.AS_OF) or 0) >= last + WINDOW_MS)
    (outage,) = [one for one in outages(store) if one.state == "confirmed"]
    assert dict(outage.slice) == {"cdn": "north"}
    assert 0 <= outage.detected_ts - (began + BROKEN_FROM_S * 1000) <= 60_000
    changes = [board.load_outage(fields[board.CHANGE]) for _, fields in store.xrange(board.LOG)]
    states = [(one.outage_id, one.updated_ts, one.state) for one in changes]
    assert len(states) == len(set(states)), "each change is told once"
    assert sum(store.xlen(stream_key(partition)) for partition in range(PARTITIONS)) < len(entries) // 10


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

    wait_for(is_as_expected, 20)
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


def test_in_one_process_it_is_the_same_watch(store: redis.Redis, settings: Settings) -> None:
    now = int(time.time() * 1000)
    began = (now - MINUTES * 60_000) // WINDOW_MS * WINDOW_MS
    entries = audience(began, seed=1)
    append(store, entries)
    replica = WatchtowerReplica(settings, "only")
    stop = threading.Event()
    thread = threading.Thread(target=replica.run, args=(stop,))
    thread.start()
    last = entries[-1][0] // WINDOW_MS * WINDOW_MS
    try:
        wait_for(lambda: int(store.get(board.AS_OF) or 0) >= last)
    finally:
        stop.set()
        thread.join(20)
    tower = Watchtower(entries[0][0])
    for at, _, entry in entries:
        for report in reports_of(entry):
            tower.hear(report, at)
    tower.advance(last)
    (expected,) = tower.tracker.outages
    (found,) = [one for one in outages(store) if one.is_open]
    assert (found.slice, found.detected_ts) == (expected.slice, expected.detected_ts)
    assert store.zcard(board.REPLICAS) == 0, "it said farewell"
    assert not store.keys(board.lease_key("*"))


def test_entries_that_are_none_of_ours_are_left_out(store: redis.Redis, settings: Settings) -> None:
    at = int(time.time() * 1000) - 60_000
    partition = partition_of("good")
    (good,) = Said(at, {}, [{"sid": "good", "e": "ps", "sta": "p", "ts": at}]).parts().values()
    store.xadd(stream_key(partition), {"strange": b"x"}, id=f"{at}-1")
    store.xadd(stream_key(partition), {FIELD: b"{"}, id=f"{at}-2")
    store.xadd(stream_key(partition), {FIELD: b'{"at": 1}'}, id=f"{at}-3")
    store.xadd(stream_key(partition), {FIELD: good}, id=f"{at}-4")
    replica = WatchtowerReplica(settings, "only")
    wait_for(lambda: (replica.turn() or True) and read_up_to(store, at), 20)
    counts = board.read_window(store, at // WINDOW_MS * WINDOW_MS)[0].counts
    assert sum(row[REPORTS] for row in counts.values()) == 1


def test_roles_spread_over_replicas_and_come_back(store: redis.Redis) -> None:
    roles = [board.OUTAGE_ROLE, *board.slice_roles(), *board.session_roles()]
    one, other = Leases(store, "one", roles), Leases(store, "other", roles)

    def tick(*leases: Leases) -> None:
        for lease in leases:
            lease._renewed_s = 0.0
            lease.tick()

    tick(one)
    assert set(one.held) == set(roles)
    for _ in range(3):
        tick(other, one)
    assert set(one.held) | set(other.held) == set(roles)
    assert not set(one.held) & set(other.held)
    assert abs(len(one.held) - len(other.held)) <= 1
    other.close()
    for _ in range(2):
        tick(one)
    assert set(one.held) == set(roles)


def test_only_the_owner_writes(store: redis.Redis) -> None:
    leases = Leases(store, "one", ["role"])
    leases.tick()
    lease = leases.held["role"]
    leases.commit(lease, [["SET", "a", 1], ["HSET", "h", "f", "v"], ["SET", "a", 2]])
    assert (store.get("a"), store.hget("h", "f")) == (b"2", b"v")
    store.set(board.lease_key("role"), "another", px=LEASE_MS)
    with pytest.raises(LeaseLost):
        leases.commit(lease, [["SET", "a", 3]])
    assert store.get("a") == b"2"
    assert not leases.held
    leases.release("role")
    assert store.get(board.lease_key("role")) == b"another"
    store.delete(board.lease_key("role"))
    leases._renewed_s = 0.0
    leases.tick()
    again = leases.held["role"]
    with pytest.raises(LeaseLost):
        leases.commit(lease, [["SET", "a", 3]])  # what it knew before another had the role is old
    leases.commit(again, [["SET", "a", 4]])
    assert (store.get("a"), leases.held) == (b"4", {"role": again})


def test_leases_are_held_through_a_long_step_but_not_by_one_that_is_stuck(
    store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LEASE_MS": 300, "RENEW_S": 0.05, "MOST_STUCK_S": 1.0}.items():
        monkeypatch.setattr(f"serve.watchtower.leases.{name}", value)
    leases = Leases(store, "one", ["role"])
    with leases.renewing():
        leases.tick()
        lease = leases.held["role"]
        time.sleep(0.7)  # the step
        leases.commit(lease, [["SET", "a", 1]])
        assert leases.held == {"role": lease}
        leases.tick()
        wait_for(lambda: store.get(board.lease_key("role")) is None, 10)
        with pytest.raises(LeaseLost):
            leases.commit(lease, [["SET", "a", 2]])
    assert store.get("a") == b"1"


def test_a_replica_that_was_away_while_another_worked_goes_on_from_there(
    store: redis.Redis, settings: Settings
) -> None:
    entries = audience((int(time.time() * 1000) - 4 * 60_000) // WINDOW_MS * WINDOW_MS, minutes=4)
    parts = [
        entries[: len(entries) // 3],
        entries[len(entries) // 3 : 2 * len(entries) // 3],
        entries[-len(entries) // 3 :],
    ]
    one, other = WatchtowerReplica(settings, "one"), WatchtowerReplica(settings, "other")

    def work(replica: WatchtowerReplica, more: list[Entry]) -> None:
        append(store, more)
        replica.leases._renewed_s = 0.0
        wait_for(lambda: (replica.turn() or True) and read_up_to(store, more[-1][0] // WINDOW_MS * WINDOW_MS), 60)

    work(one, parts[0])
    store.delete(*store.keys(board.lease_key("*")), board.REPLICAS)  # one is away for long
    work(other, parts[1])
    other.leases.close()
    work(one, parts[2])
    for start_ms, window in expected_windows(entries).items():
        assert board.read_window(store, start_ms)[0].counts == window.counts


def test_windows_are_waited_for_after_nothing_ran(store: redis.Redis) -> None:
    end_ms, now_ms = 1_000_000, 1_090_000
    for partition in range(PARTITIONS):
        store.hset(board.PROGRESS, str(partition), f"{end_ms - WINDOW_MS}:{now_ms - 60_000}")
    assert not board.is_complete(store, end_ms, now_ms, since_ms=now_ms - 2_000), "they have just begun to go on"
    assert board.is_complete(store, end_ms, now_ms, since_ms=now_ms - board.LATE_MS), "nobody goes on"
    store.hset(board.PROGRESS, "3", f"{end_ms - WINDOW_MS}:{now_ms - 1_000}")
    assert not board.is_complete(store, end_ms, now_ms, since_ms=now_ms - 60_000), "one is still reading"


def test_a_step_is_bounded_however_much_one_request_brings(store: redis.Redis, settings: Settings) -> None:
    at = int(time.time() * 1000) - 60_000
    partition = partition_of("a")
    for place in range(40):
        said = [{"sid": "a", "e": "t", "sta": "p", "ts": at + place * 1000 + one} for one in range(1000)]
        store.xadd(stream_key(partition), {FIELD: Said(at, {}, said).parts()[partition]}, id=f"{at + place}-1")
    leases = Leases(store, "only", [f"sessions:{partition}"])
    leases.tick()
    role = SessionsRole(store, leases, leases.held[f"sessions:{partition}"], partition)
    taken = []
    while sum(taken) < 40_000:
        before = role.sessions.tally.reports
        assert role.step()
        taken.append(role.sessions.tally.reports - before)
    assert max(taken) <= 8_000, "the other roles, and the leases, wait no longer"


def test_alarms_and_throughput_survive_the_board(store: redis.Redis, settings: Settings) -> None:
    from serve.watchtower.alarms import Alarm  # noqa: PLC0415

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


def test_sessions_are_recorded_with_the_quality_that_was_measured(store: redis.Redis, settings: Settings) -> None:
    renditions = [Rendition(1000, 4.0, [1, 1], [50.0, 70.0]), Rendition(4000, 4.0, [1, 1], [90.0, 90.0])]
    store_renditions(settings, {"t": renditions}, ts_ms=1)
    at = int(time.time() * 1000) - 20 * 60_000
    said = [
        (0, {"e": "ps", "sta": "s", "cid": "t"}), (1_000, {"e": "ps", "sta": "p", "br": {"v": 1000}}),
        (11_000, {"e": "bc", "br": {"v": 2000}}), (31_000, {"e": "ps", "sta": "e"}),
    ]  # fmt: skip
    for name in ("measured", "other"):
        for when, values in said:
            title = {"cid": "t" if name == "measured" else "unknown"} if "cid" in values else {}
            report = {"sid": name, "ts": at + when, **values, **title}
            ((partition, entry),) = Said(at + when, {}, [report]).parts().items()
            store.xadd(stream_key(partition), {FIELD: entry}, id=f"{at + when}-{1 if name == 'other' else 2}")
    replica = WatchtowerReplica(settings, "only")
    wait_for(lambda: (replica.turn() or True) and store.xlen(records.STREAM) == 2, 20)
    found = {one["session"]: one for _, fields in store.xrange(records.STREAM)
             for one in [records.SESSIONS.read(fields[records.FIELD])]}  # fmt: skip
    assert found["measured"]["mean_vmaf"] == pytest.approx((60 * 10 + 75 * 20) / 30), "2000 is midway, by its logarithm"
    assert found["other"]["mean_vmaf"] is None
    assert found["other"]["mean_kbps"] == pytest.approx((1000 * 10 + 2000 * 20) / 30)


def test_checkpoints_that_cannot_be_read_begin_anew(
    store: redis.Redis, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    entries = audience((int(time.time() * 1000) - 4 * 60_000) // WINDOW_MS * WINDOW_MS, minutes=4)
    half = entries[: len(entries) // 2]
    append(store, half)
    replica = WatchtowerReplica(settings, "one")
    as_of = half[-1][0] // WINDOW_MS * WINDOW_MS
    wait_for(lambda: (replica.turn() or True) and int(store.get(board.AS_OF) or 0) >= as_of, 60)
    replica.leases.close()
    for place, role in enumerate(board.session_roles()):
        head = orjson.loads(store.hget(board.state_key(role), "head"))
        store.hset(board.state_key(role), "head", orjson.dumps(head | {"format": 0}) if place % 2 else b"{")
    judges = [board.OUTAGE_ROLE, *board.slice_roles()]
    for place, role in enumerate(judges):
        state = orjson.loads(zlib.decompress(store.get(board.state_key(role))))
        state["tracker" if role == board.OUTAGE_ROLE else "watch"]["version"] = 0
        store.set(board.state_key(role), b"?" if place % 2 else zlib.compress(orjson.dumps(state)))
    lost = Outage(
        outage_id="lost", state="confirmed", slice={"cdn": "west"}, effects=(), started_ts=as_of, detected_ts=as_of,
        updated_ts=as_of, closed_ts=None, sessions_hurt=9, severity=0.1, evidence=(),
    )  # fmt: skip
    store.hset(board.OUTAGES, "lost", board.dump_outage(lost))
    append(store, entries[len(half) :])
    another = WatchtowerReplica(settings, "another")
    last = entries[-1][0] // WINDOW_MS * WINDOW_MS
    with caplog.at_level(logging.WARNING):
        wait_for(lambda: (another.turn() or True) and int(store.get(board.AS_OF) or 0) >= last, 60)
    for role in [*judges, *board.session_roles()]:
        assert f"{role} begins anew" in caplog.text
    assert [(one.outage_id, one.state) for one in outages(store)] == [("lost", "closed")], "nobody watches it any more"
    head = orjson.loads(store.hget(board.state_key(board.session_roles()[0]), "head"))
    assert head["format"] == SESSIONS_FORMAT
