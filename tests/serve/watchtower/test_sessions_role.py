"""The role that folds a partition of the log into sessions, on a real Valkey."""

import time

import pytest
import redis

from features.renditions import Rendition, store_renditions
from features.settings import Settings
from serve.telemetry import records
from serve.telemetry.log import FIELD, Said, partition_of, stream_key
from serve.telemetry.windows import REPORTS, WINDOW_MS
from serve.watchtower import board
from serve.watchtower.leases import Leases
from serve.watchtower.replica import WatchtowerReplica
from serve.watchtower.roles.sessions import SessionsRole
from tests.serve.watchtower.audience import read_up_to
from tests.waiting import wait_for


def test_entries_that_are_none_of_ours_are_left_out(store: redis.Redis, settings: Settings) -> None:
    at = int(time.time() * 1000) - 60_000
    partition = partition_of("good")
    (good,) = Said(at, {}, [{"sid": "good", "e": "ps", "sta": "p", "ts": at}]).parts().values()
    store.xadd(stream_key(partition), {"strange": b"x"}, id=f"{at}-1")
    store.xadd(stream_key(partition), {FIELD: b"{"}, id=f"{at}-2")
    store.xadd(stream_key(partition), {FIELD: b'{"at": 1}'}, id=f"{at}-3")
    store.xadd(stream_key(partition), {FIELD: good}, id=f"{at}-4")
    replica = WatchtowerReplica(settings, "only")
    wait_for(lambda: (replica.turn() or True) and read_up_to(store, at))
    counts = board.read_window(store, at // WINDOW_MS * WINDOW_MS)[0].counts
    assert sum(row[REPORTS] for row in counts.values()) == 1


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
    wait_for(lambda: (replica.turn() or True) and store.xlen(records.STREAM) == 2)
    found = {one["session"]: one for _, fields in store.xrange(records.STREAM)
             for one in [records.SESSIONS.read(fields[records.FIELD])]}  # fmt: skip
    assert found["measured"]["mean_vmaf"] == pytest.approx((60 * 10 + 75 * 20) / 30), "2000 is midway, by its logarithm"
    assert found["other"]["mean_vmaf"] is None
    assert found["other"]["mean_kbps"] == pytest.approx((1000 * 10 + 2000 * 20) / 30)
