"""GET /v1/outages and its stream: what the Watchtower told, kept where the store goes, and followed as it changes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest
import redis
import yaml

from serve.arguments import Arguments
from serve.clock import now_ms
from serve.gateway import outages as routes
from serve.gateway.outages import OutageBoard, OutageList, OutageRoutes
from serve.metrics import Metrics
from serve.watchtower import board
from serve.watchtower.outages import Effect, Outage
from tests.conftest import ValkeyProcess
from tests.serve.gateway.conftest import OpenClient, until_shown
from tests.waiting import eventually

NOW = now_ms()
OUTAGE = Outage(
    outage_id="o1", state="confirmed", slice={"cdn": "north", "region": "eu"},
    effects=(Effect(metric="stalls", expected=0.01, now=0.2, total=500, bad=100),), started_ts=NOW - 60_000,
    detected_ts=NOW - 40_000, updated_ts=NOW, sessions_hurt=70, severity=0.04,
    evidence=({"slice": {"cdn": "north"}, "metric": "stalls", "score": 0.9},),
)  # fmt: skip
CLOSED = replace(OUTAGE, outage_id="o0", state="closed", detected_ts=NOW - 90_000_000, closed_ts=NOW - 80_000_000)


def put(url: str, *outages: Outage, as_of_ms: int | None = None) -> None:
    with redis.Redis.from_url(url) as store:
        for outage in outages:
            store.hset(board.OUTAGES, outage.outage_id, board.dump_outage(outage))
        store.set(board.AS_OF, now_ms() if as_of_ms is None else as_of_ms)


async def listed(client: httpx.AsyncClient, query: str = "") -> OutageList:
    answer = await client.get(f"/v1/outages{query}")
    assert answer.status_code == 200, answer.text
    return OutageList.model_validate_json(answer.content)


async def until(client: httpx.AsyncClient, count: int, query: str = "") -> OutageList:
    async def known() -> OutageList | None:
        found = await listed(client, query)
        return found if len(found.outages) == count and found.as_of_ts else None

    found: OutageList = await eventually(known)
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.app.POLL_S", 0.05)


async def test_open_outages_are_listed_and_closed_ones_on_request(
    arguments: Arguments, open_client: OpenClient
) -> None:
    async with open_client(arguments) as client:
        nothing = await listed(client)
        assert (nothing.outages, nothing.as_of_ts, nothing.degraded) == ((), None, ("outages_unknown",))
        put(arguments.settings().redis_url, OUTAGE, CLOSED)
        found = await until(client, 1)
        assert found.degraded == ()
        (outage,) = found.outages
        assert (outage.outage_id, outage.slice, outage.sessions_hurt) == ("o1", OUTAGE.slice, 70)
        assert outage.effects[0].bad == 100
        every = await until(client, 2, "?state=all")
        assert [one.outage_id for one in every.outages] == ["o1", "o0"]
        assert (await client.get("/v1/outages?state=none")).status_code == 422
        await until_shown(
            client,
            'playhead_outages{state="confirmed"} 1.0',
            'playhead_refreshed_timestamp_seconds{part="outages"}',
        )


async def test_what_was_known_stays_where_the_store_goes_and_is_said_to_be_old(
    arguments: Arguments, open_client: OpenClient, valkey_process: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "STALE_MS", 500)
    own = arguments.model_copy(update={"redis_url": valkey_process.url})
    async with open_client(own) as client:
        put(valkey_process.url, OUTAGE)
        await until(client, 1)
        valkey_process.kill()
        await asyncio.sleep(0.8)
        found = await listed(client)
        assert len(found.outages) == 1
        assert found.degraded == ("outages_stale",)


async def test_what_is_no_outage_in_the_store_leaves_what_was_known(
    arguments: Arguments, open_client: OpenClient
) -> None:
    async with open_client(arguments) as client:
        put(arguments.settings().redis_url, OUTAGE)
        await until(client, 1)
        with redis.Redis.from_url(arguments.settings().redis_url) as store:
            store.hset(board.OUTAGES, "o9", b'{"outage_id": 5}')
        await asyncio.sleep(0.3)
        assert len((await listed(client)).outages) == 1


async def events(answer: httpx.Response) -> AsyncIterator[tuple[int, Any]]:
    """Ids and outages of a stream."""
    name = 0
    async for line in answer.aiter_lines():
        if line.startswith("id: "):
            name = int(line[4:])
        elif line.startswith("data: "):
            yield name, orjson.loads(line[6:])


async def test_a_stream_tells_what_is_open_and_then_each_change(
    arguments: Arguments, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "STREAM_S", 4.0)
    url = arguments.settings().redis_url
    async with open_client(arguments) as client:
        put(url, OUTAGE, CLOSED)
        await until(client, 1)
        closing = replace(OUTAGE, state="closed", updated_ts=NOW + 5_000, closed_ts=NOW + 5_000)
        asyncio.get_running_loop().call_later(2.0, put, url, closing)
        answer = await client.get("/v1/outages/stream")
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = [(name, one["outage_id"], one["state"]) async for name, one in events(answer)]
        assert told == [(NOW, "o1", "confirmed"), (NOW + 5_000, "o1", "closed")]
        monkeypatch.setattr(routes, "STREAM_S", 0.5)
        again = await client.get("/v1/outages/stream", headers={"last-event-id": str(NOW)})
        assert [(name, one["state"]) async for name, one in events(again)] == [(NOW + 5_000, "closed")]
        nothing = await client.get("/v1/outages/stream", headers={"last-event-id": str(NOW + 5_000)})
        assert [name async for name, _ in events(nothing)] == []


class StillBoard(OutageBoard):
    """Knows some outages without a store."""

    def __init__(self, arguments: Arguments, *outages: Outage, as_of_ms: int = NOW) -> None:
        super().__init__(arguments.settings(), Metrics())
        self.put(*outages, as_of_ms=as_of_ms)

    def put(self, *outages: Outage, as_of_ms: int = NOW) -> None:
        self._known |= {outage.outage_id.encode(): outage for outage in outages}
        self._dumped |= {outage.outage_id.encode(): board.dump_outage(outage) for outage in outages}
        self._as_of_ms = as_of_ms


async def follow(known: OutageBoard, last_id: str = "", *, most: int = 99) -> tuple[list[tuple[str, str]], str]:
    """Outages of a stream that is cut off after some, each with its state, and the id that EventSource ends with."""
    found: list[tuple[str, str]] = []
    stream = OutageRoutes(known)._changes(routes._moment(last_id), asyncio.get_running_loop().time() + 0.05)
    async with aclosing(stream):
        async for event in stream:
            fields = dict(line.split(": ", 1) for line in event.decode().strip().splitlines())
            last_id = fields.get("id", last_id)
            if "data" in fields:
                outage = orjson.loads(fields["data"])
                found.append((outage["outage_id"], outage["state"]))
            if len(found) == most:
                break
    return found, last_id


async def test_a_stream_that_is_cut_off_anywhere_misses_nothing(arguments: Arguments) -> None:
    early = replace(OUTAGE, outage_id="late-found", detected_ts=NOW - 10_000, updated_ts=NOW - 10_000)
    known = StillBoard(
        arguments, OUTAGE, replace(OUTAGE, outage_id="o2"), replace(OUTAGE, outage_id="o3"), early, CLOSED
    )
    every = [("late-found", "confirmed"), *((f"o{place}", "confirmed") for place in (1, 2, 3))]
    for cut in range(1, 5):
        first, last_id = await follow(known, most=cut)
        second, last_id = await follow(known, last_id)
        assert len(first) == cut
        assert set(first) | set(second) >= set(every)
        assert first[0] == every[0], "the oldest change first: else its id would hide those before"
        assert await follow(known, last_id) == ([], last_id)


async def test_who_was_told_of_nothing_yet_hears_of_what_came_and_went_meanwhile(arguments: Arguments) -> None:
    known = StillBoard(arguments, CLOSED)
    nothing, last_id = await follow(known)
    assert (nothing, last_id) == ([], str(NOW))
    known.put(replace(OUTAGE, state="closed", updated_ts=NOW + 90_000), as_of_ms=NOW + 100_000)
    assert (await follow(known, last_id))[0] == [("o1", "closed")]


async def test_a_watchtower_that_began_anew_is_heard(arguments: Arguments) -> None:
    known = StillBoard(arguments, OUTAGE, CLOSED)
    assert (await follow(known, str(NOW + 3_600_000)))[0] == [("o1", "confirmed")]
    assert (await follow(StillBoard(arguments, OUTAGE, as_of_ms=0)))[0] == [], "nothing was read yet"


async def test_steering_goes_by_what_the_watchtower_tells(
    arguments: Arguments, open_client: OpenClient, tmp_path: Any
) -> None:
    file = tmp_path / "steering.yaml"
    file.write_text(yaml.safe_dump({"pathways": [
        {"id": "north", "weight": 100, "capacity": 1.0}, {"id": "south", "weight": 1, "capacity": 1.0},
    ]}))  # fmt: skip
    url = arguments.settings().redis_url
    put(url)
    async with open_client(arguments.model_copy(update={"steering": file})) as client:
        await asyncio.sleep(0.3)

        async def firsts() -> set[str]:
            answers = [(await client.get(f"/v1/steering/dash?sid=new{place}&region=eu")).json() for place in range(20)]
            return {answer["PATHWAY-PRIORITY"][0] for answer in answers}

        assert "north" in await firsts()
        put(url, OUTAGE)

        async def moved() -> bool:
            put(url)  # the Watchtower goes on
            return await firsts() == {"south"}

        await eventually(moved)
