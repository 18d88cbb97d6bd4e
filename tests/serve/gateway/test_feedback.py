"""Feedback, end to end: HTTP, the store, files, labels; and what bad input, a lost store and too much of it cost."""

import asyncio
import json
from typing import Any

import httpx
import polars as pl
import pytest
import redis

from features.settings import Settings
from features.sink import LogSink, read_log
from serve.arguments import Arguments
from serve.feedback.limits import RateLimit
from serve.feedback.records import COUNTS, FEEDBACK, STREAM
from serve.feedback.store import OTHERS
from serve.rollout.exposures import EXPOSURES
from serve.watchtower import board
from serve.watchtower.outages import Outage
from tests.conftest import ValkeyProcess
from tests.serve.gateway.conftest import OpenClient
from tests.waiting import eventually
from training.labels import make_labels, write_labels

SAID = {"kind": "tag", "subject_id": "t5", "verdict": "bad", "reporter": "anna", "detail": {"tag": "noir", "sure": 0.5}}


async def give(client: httpx.AsyncClient, status: int = 200, **changes: Any) -> dict[str, Any]:
    answer = await client.post("/v1/feedback", json={**SAID, **changes})
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def listed(client: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    answer = await client.get("/v1/feedback", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def drain(settings: Settings, log: Any) -> int:
    sink = LogSink(settings, settings.home / log.name, log, wait_ms=20)
    try:
        return sink.drain()
    finally:
        sink.close()


async def test_a_judged_page_is_stored_once_with_its_version_and_becomes_labels(
    client: httpx.AsyncClient, arguments: Arguments, store: redis.Redis
) -> None:
    page = (await client.get("/v1/home", params={"profile_id": "p1", "items": 4})).json()
    request_id, version = page["request_id"], page["versions"]["model"]
    (top,) = (row for row in page["rows"] if row["id"] == "top_picks")
    said = {"kind": "recommendation_row", "request_id": request_id, "row": "top_picks", "subject_id": None}
    await eventually(lambda: store.keys("playhead:exposures:versions:*"))  # a quarter of a second after the answer
    first = await give(client, **said)
    assert first | {"request_id": ""} == {
        "request_id": "", "feedback_id": first["feedback_id"], "accepted": True, "model": "recommend",
        "version": version, "version_from": "exposure",
    }  # fmt: skip
    again = await give(client, **said)
    assert (again["accepted"], again["feedback_id"], again["version"]) == (False, first["feedback_id"], version)
    one = await give(client, **said, title_id=top["items"][1]["title_id"], verdict="good", reason="fits:\n\tüber")
    refused = await give(client, 422, **said, version="0" * 12)
    assert refused["errors"][0]["field"] == "version"
    assert version in refused["errors"][0]["expected"]
    await give(client, **said | {"request_id": "never"}, verdict="unsure")

    found = await listed(client, kind="recommendation_row")
    assert [each["verdict"] for each in found["feedback"]] == ["unsure", "good", "bad"]
    assert found["complete"]
    counts = {each["version"]: (each["good"], each["bad"], each["unsure"]) for each in found["counts"]}
    assert counts == {version: (1, 1, 0), None: (0, 0, 1)}
    older = await listed(client, before=found["feedback"][1]["position"])
    assert [each["feedback_id"] for each in older["feedback"]] == [first["feedback_id"]]
    assert (await listed(client, before="0-00"))["feedback"] == []

    settings = arguments.settings()
    assert drain(settings, FEEDBACK) == 3
    assert drain(settings, EXPOSURES) == 1
    assert store.xlen(STREAM) == 3, "the newest stay"
    labels = make_labels(settings)
    assert labels["title_id"].to_list() == [
        *(item["title_id"] for item in top["items"]), top["items"][1]["title_id"], None,
    ]  # fmt: skip
    assert labels["label"].to_list() == [0, 0, 0, 0, 1, None]
    assert labels["rank"].to_list() == [0, 1, 2, 3, 1, None]
    assert labels["profile_id"].to_list() == ["p1"] * 5 + [None]
    assert labels["version"].to_list() == [version] * 5 + [None]
    assert labels["propensity"].to_list() == [1.0] * 5 + [None]
    assert labels.filter(label=1)["feedback_id"].to_list() == [one["feedback_id"]]
    for name in ("labels.parquet", "labels.csv"):
        write_labels(labels, settings.home / name)
    assert pl.read_parquet(settings.home / "labels.parquet").equals(labels)
    assert len(pl.read_csv(settings.home / "labels.csv")) == 6


async def test_labels_have_the_version_that_the_page_tells_whatever_was_said_before_it_was_known(
    client: httpx.AsyncClient, arguments: Arguments, store: redis.Redis
) -> None:
    page = (await client.get("/v1/home", params={"profile_id": "p1", "items": 4})).json()
    told = await eventually(lambda: store.keys("playhead:exposures:versions:*"))
    store.delete(*told)  # as if it were not told yet
    said = {"kind": "recommendation_row", "request_id": page["request_id"], "row": "top_picks", "subject_id": None}
    claimed = await give(client, **said, version="0" * 12)
    assert (claimed["version"], claimed["version_from"]) == ("0" * 12, "caller")
    settings = arguments.settings()
    drain(settings, FEEDBACK)
    drain(settings, EXPOSURES)
    labels = make_labels(settings)
    assert set(labels["version"]) == {page["versions"]["model"]}
    assert set(labels["version_from"]) == {"exposure"}


async def test_other_kinds_and_who_knows_their_version(client: httpx.AsyncClient, store: redis.Redis) -> None:
    tag = await give(client)
    assert (tag["model"], tag["version"], tag["version_from"]) == ("tags", None, None)
    rate = await give(client, kind="bitrate_decision", subject_id=None, request_id="r1", version="abc")
    assert (rate["model"], rate["version"], rate["version_from"]) == ("bitrate", "abc", "caller")
    score = await give(client, kind="quality_score", subject_id="../../etc")
    assert (score["model"], score["version"]) == ("quality", None)
    outage = Outage(
        outage_id="o-1", state="closed", slice={}, effects=(), started_ts=1, detected_ts=1, updated_ts=1, closed_ts=2
    )
    store.hset(board.OUTAGES, "o-1", board.dump_outage(outage))
    store.set(board.AS_OF, 2)

    async def listed_there() -> bool:
        return bool((await client.get("/v1/outages", params={"state": "all"})).json()["outages"])

    await eventually(listed_there)
    known = await give(client, kind="outage", subject_id="o-1", verdict="good")
    assert (known["model"], known["version_from"]) == ("watchtower", "outage")
    assert known["version"]
    missed = await give(client, kind="outage", subject_id="nobody-saw-it")
    assert missed["version"] is None
    found = await listed(client, reporter="anna", limit=2)
    assert [each["subject_id"] for each in found["feedback"]] == ["nobody-saw-it", "o-1"]
    assert not found["complete"]
    (said,) = (await listed(client, kind="tag"))["feedback"]
    assert said["detail"] == SAID["detail"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kind": "recommendation_row"}, "request_id"),
    ({"subject_id": None}, "subject_id"),
    ({"row": "top_picks"}, "row"),
    ({"verdict": "maybe"}, "verdict"),
    ({"reason": "x" * 1001}, "reason"),
    ({"reporter": ""}, "reporter"),
    ({"reporter": "a b"}, "reporter"),
    ({"detail": {str(number): number for number in range(17)}}, "detail"),
    ({"detail": {"x": [1]}}, "detail.x"),
    ({"detail": {"x": "y" * 257}}, "detail.x"),
    ({"detail": {"x": 1e400}}, "detail.x"),
    ({"detail": None}, "detail"),
    ({"version": " "}, "version"),
    ({"reason": "\x1b]0;another title\x07"}, "reason"),
    ({"detail": {"x": "\x9b2J"}}, "detail.x"),
    ({"stars": 5}, "stars"),
]


async def test_bad_input_is_refused_by_name_and_not_stored(client: httpx.AsyncClient, store: redis.Redis) -> None:
    for changes, field in WRONG:
        body = json.dumps({**SAID, **changes}).replace("Infinity", "1e400")
        answer = await client.post("/v1/feedback", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422, (changes, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        (first, *_) = answer.json()["errors"]
        assert first["field"].startswith(field), changes
        assert first["next_step"]
    for query in ({"limit": 0}, {"kind": "x"}, {"before": "now"}, {"colour": "red"}):
        assert (await client.get("/v1/feedback", params=query)).status_code == 422
    assert not store.exists(STREAM)


async def test_an_id_is_one_judgements(client: httpx.AsyncClient, store: redis.Redis) -> None:
    assert (await give(client, feedback_id="f1"))["accepted"]
    assert not (await give(client, feedback_id="f1"))["accepted"]
    problem = await give(client, 409, feedback_id="f1", verdict="good")
    assert problem["errors"][0]["field"] == "feedback_id"
    assert store.xlen(STREAM) == 1
    many = await asyncio.gather(*[give(client, feedback_id="f2") for _ in range(20)])
    assert sum(one["accepted"] for one in many) == 1


async def test_nothing_is_promised_without_the_store_and_nothing_that_was_is_lost(
    arguments: Arguments, open_client: OpenClient, valkey_process: ValkeyProcess
) -> None:
    asked = arguments.model_copy(update={"redis_url": valkey_process.url})
    async with open_client(asked) as client:
        assert (await give(client, feedback_id="kept"))["accepted"]
        valkey_process.kill()
        problem = await give(client, 503, feedback_id="later")
        assert "again" in problem["errors"][0]["next_step"]
        assert (await client.get("/v1/feedback")).status_code == 503
        valkey_process.start()

        async def taken() -> bool:
            return (await client.post("/v1/feedback", json=SAID | {"feedback_id": "later"})).status_code == 200

        await eventually(taken)
        assert not (await give(client, feedback_id="kept"))["accepted"]
        assert {each["feedback_id"] for each in (await listed(client))["feedback"]} == {"kept", "later"}


async def test_one_reporter_may_send_so_much(client: httpx.AsyncClient) -> None:
    for number in range(1000):
        answer = await client.post("/v1/feedback", json=SAID | {"reason": str(number)})
        if answer.status_code != 200:
            break
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await give(client, reporter="another"))["accepted"]


def test_a_bucket_fills_again_and_forgets_old_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    limit = RateLimit(2, 3, clock=lambda: now[0])
    assert [limit.admits("a") for _ in range(5)] == [True] * 3 + [False] * 2
    now[0] = 0.6
    assert [limit.admits("a") for _ in range(2)] == [True, False]
    monkeypatch.setattr("serve.feedback.limits.MOST_CALLERS", 2)
    assert all(limit.admits(caller) for caller in "bcd")
    assert len(limit._buckets) <= 3


async def test_counts_and_the_log_are_bounded(
    client: httpx.AsyncClient, settings: Settings, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.feedback.store._MOST_COUNTED", 2)
    for number in range(4):
        await give(client, version=f"v{number}")
    counts = {each["version"]: each["bad"] for each in (await listed(client))["counts"]}
    assert counts == {"v0": 1, "v1": 1, OTHERS: 2}
    assert store.hlen(COUNTS) == 3
    monkeypatch.setattr("serve.feedback.store.MOST_ENTRIES", 4)
    await give(client, 503, version="v9")
    keeps = {field: getattr(FEEDBACK, field) for field in FEEDBACK.__slots__} | {"keeps": 2}
    assert drain(settings, type(FEEDBACK)(**keeps)) == 4
    assert store.xlen(STREAM) == 2, "what is in files leaves the log, but the newest"
    assert (await give(client, version="v9"))["accepted"]
    assert read_log(settings.home / "feedback", FEEDBACK)["version"].to_list() == ["v0", "v1", "v2", "v3"]
    assert drain(settings, FEEDBACK) == 1
