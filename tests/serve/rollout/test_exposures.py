"""Exposures as a gateway tells them: what was shown, what was played, and what a store that is down costs."""

import json
from typing import Any

import orjson
import polars as pl
import pytest
import redis

from features.events import Event, EventKind
from features.sink import LogSink, read_log
from serve.metrics import Metrics
from serve.rollout.exposures import (
    EXPOSURES,
    FIELD,
    FINISHED,
    PLAYED,
    SHOWN,
    STREAM,
    THUMBS_DOWN,
    THUMBS_UP,
    ExposureWriter,
    read_exposure,
)
from serve.schemas import Answer, Assigned

T0 = 1_790_000_000_000
ITEMS = b'[{"name":"x\\"play\\":1","play":0.25,"finish":1},{"play":null}]'
ANSWER = Answer(
    members=b'"rows":[{"items":%b}]' % ITEMS, versions={"model": "a" * 12}, degraded=(), generated_ts=T0,
    timings_ms={"ranker": 2.0}, assigned=Assigned("b" * 12, True, 0.25, "salt", True),  # noqa: FBT003
    shown=(("top", ("t1", "t2")),), slots=(("t1", 0.998), ("t2", 0.0001)), explored=1,
)  # fmt: skip


def told(store: redis.Redis) -> list[dict[str, Any]]:
    return [read_exposure(fields[FIELD]) for _, fields in store.xrange(STREAM)]


async def test_what_was_shown_and_played_is_told_in_order(store: redis.Redis, settings: Any) -> None:
    writer = ExposureWriter(settings.redis_url, "recommend", Metrics())
    writer.shown("r1", "p1", ANSWER, degraded=False, where={"device": "tv", "visits": 7})
    events = [
        Event(event_id=f"e{place}", profile_id="p1", title_id="t2", kind=kind, ts=T0 + 5, request_id=request_id)
        for place, (kind, request_id) in enumerate(
            [
                (EventKind.PLAY, "r1"), (EventKind.PLAY, None), (EventKind.IMPRESSION, "r1"),
                (EventKind.FINISH, "r1"), (EventKind.THUMBS_UP, "r1"), (EventKind.THUMBS_DOWN, "r1"),
                (EventKind.FINISH, ""),
            ]
        )
    ]  # fmt: skip
    writer.happened(events)
    await writer.flush()
    shown, played, *later = told(store)
    assert (shown["kind"], shown["profile_id"], shown["version"]) == (SHOWN, "p1", "a" * 12)
    assert (shown["assigned"], shown["challenged"], shown["propensity"]) == ("b" * 12, True, 0.25)
    assert (shown["failed"], shown["seconds"], shown["device"], shown["region"]) == (True, 0.002, "tv", None)
    assert shown["rows"] == [["top", ["t1", "t2"]]]
    assert (shown["slots"], shown["explored"]) == ([["t1", 0.998], ["t2", 0.0001]], 1)
    assert (played["kind"], played["request_id"], played["title_id"]) == (PLAYED, "r1", "t2")
    assert [one["kind"] for one in later] == [FINISHED, THUMBS_UP, THUMBS_DOWN]
    await writer.close()
    sink = LogSink(settings, settings.home / "exposures", EXPOSURES, wait_ms=20)
    try:
        assert sink.drain() == 5
    finally:
        sink.close()
    frame = read_log(settings.home / "exposures", EXPOSURES)
    assert frame["kind"].to_list() == [SHOWN, PLAYED, FINISHED, THUMBS_UP, THUMBS_DOWN]
    assert (json.loads(frame["chances"][0]), frame["visits"][0]) == ([0.25, None], 7)
    assert json.loads(frame["rows"][0]) == [["top", ["t1", "t2"]]]
    assert frame["slots"].to_list() == ['[["t1", 0.998], ["t2", 0.0001]]', None, None, None, None]
    assert frame["explored"].to_list() == [1, None, None, None, None]
    assert store.xlen(STREAM) == 5, "others read it too"


async def test_a_store_that_is_down_costs_no_answer_and_is_counted(valkey_process: Any) -> None:
    metrics = Metrics()
    writer = ExposureWriter(valkey_process.url, "recommend", metrics)
    valkey_process.kill()
    for _ in range(5):
        writer.shown("r1", "p1", ANSWER, degraded=False, where={})
    await writer.flush()
    metrics.flush()
    assert 'playhead_stage_failures_total{kind="StoreUnavailable",stage="exposures"} 5.0' in metrics.render().decode()
    await writer.close()


PLAIN = {"kind": SHOWN, "ts": T0, "request_id": "r", "profile_id": "p"}
OTHER: list[dict[str, Any]] = [
    {"rank": "1"}, {"seconds": "0.1"}, {"rows": [["top", "t1"]]}, {"rows": [["top", [1]]]}, {"rows": [["top"]]},
    {"rows": 7}, {"chances": ["0.5"]}, {"slots": [["t1"]]}, {"slots": [7]}, {"propensity": None}, {"failed": 1},
    {"title_id": 5}, {"version": 3}, {"visits": 1.5}, {"ts": 1 << 60}, {"ts": True}, {"ts": -1},
]  # fmt: skip


@pytest.mark.parametrize(
    "rubbish",
    [
        b"{", b"[]", b'{"ts": "now"}', b'{"ts": 1, "request_id": "r", "kind": "shown"}',
        *(orjson.dumps(PLAIN | one) for one in OTHER),
    ],
)  # fmt: skip
def test_what_is_no_exposure_is_refused(rubbish: bytes) -> None:
    assert read_exposure(orjson.dumps(PLAIN))["propensity"] == 1.0
    with pytest.raises(ValueError):
        read_exposure(rubbish)


async def test_files_of_before_exploration_are_read_with_those_of_now(store: redis.Redis, settings: Any) -> None:
    folder = settings.home / "exposures"
    before = {name: kind for name, kind in EXPOSURES.schema.items() if name not in {"slots", "explored"}}
    old = pl.DataFrame(
        [{"kind": SHOWN, "ts": T0, "request_id": "r0", "rows": "[]", "log_position": "1-0"}],
        schema={**before, "log_position": pl.String},
    )
    (folder / "date=2026-09-21").mkdir(parents=True)
    old.write_parquet(folder / "date=2026-09-21" / "part-old.parquet")
    assert read_log(folder, EXPOSURES)["slots"].to_list() == [None]
    told_before = b'{"kind":"shown","ts":1790000000001,"request_id":"r1","profile_id":"p"}'
    store.xadd(STREAM, {FIELD: told_before})
    sink = LogSink(settings, folder, EXPOSURES, wait_ms=20)
    try:
        assert sink.drain() == 1
    finally:
        sink.close()
    frame = read_log(folder, EXPOSURES)
    assert frame["request_id"].to_list() == ["r0", "r1"]
    assert frame["explored"].to_list() == [None, None]
