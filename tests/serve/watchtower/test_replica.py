"""Replicas of the Watchtower on a real Valkey: the same windows and outages whoever reads, however often one dies."""

import logging
import signal
import subprocess
import threading
import time
import zlib
from collections.abc import Callable

import orjson
import pytest
import redis

from features.settings import Settings
from serve.telemetry import records
from serve.telemetry.log import PARTITIONS, reports_of, stream_key
from serve.telemetry.sessions import DEAD_MS
from serve.telemetry.windows import REPORTS, WINDOW_MS
from serve.watchtower import board
from serve.watchtower.outages import Outage
from serve.watchtower.replica import WatchtowerReplica
from serve.watchtower.roles.sessions import SESSIONS_FORMAT
from serve.watchtower.tower import Watchtower
from tests.serve.watchtower.audience import (
    BROKEN_FROM_S,
    MINUTES,
    Entry,
    append,
    audience,
    expected_records,
    expected_windows,
    outages,
    read_up_to,
)
from tests.waiting import wait_for


@pytest.mark.timeout(300)
def test_windows_and_outages_are_the_same_however_often_replicas_die(
    store: redis.Redis, settings: Settings, start: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    now = int(time.time() * 1000)
    began = (now - MINUTES * 60_000) // WINDOW_MS * WINDOW_MS
    entries = audience(began)
    append(store, entries)
    expected = expected_windows(entries)
    last = max(expected)
    replicas = [start("a"), start("b")]
    for death in range(3):
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


def test_a_role_that_raises_stops_no_other_and_goes_on_once_it_can(
    store: redis.Redis, settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = WatchtowerReplica(settings, "only")
    with monkeypatch.context() as broken:
        broken.setattr("serve.watchtower.roles.rollouts.RolloutRole.step", lambda _: 1 / 0)
        replica.turn()
        replica.turn()
    assert caplog.text.count("role rollouts failed") == 1, "it waits"
    assert caplog.text.count("ZeroDivisionError") >= 1
    states = {lease.role for lease in replica._roles}
    assert states == set(replica.leases.held) - {board.ROLLOUT_ROLE}
    replica._failed_s[board.ROLLOUT_ROLE] -= 6
    replica.turn()
    assert {lease.role for lease in replica._roles} == set(replica.leases.held)
    replica.leases.close()
