"""POST, GET and OPTIONS /v1/telemetry in one process, on a real Valkey: what is acknowledged is in the log."""

import gzip
from typing import Any

import httpx
import pytest
import redis

from serve.arguments import Arguments
from serve.clock import now_ms
from serve.telemetry import log
from serve.telemetry.log import FIELD, PARTITIONS, reports_of, stream_key
from serve.telemetry.reports import Report
from tests.conftest import ValkeyProcess
from tests.serve.gateway.conftest import OpenClient, until_shown
from tests.waiting import eventually

EVENTS = (
    'cid="t42",cdn="north",e=ps,msd=840,sf=d,sid="a",sn=1,sta=p,ts=1790000000000,v=2\n'
    'bl=(11300;v),br=(3200;v),e=t,sid="b",sn=2,sta=p,ts=1790000030000,v=2,com.playhead-device="tv"\n'
)
CMCD = {"content-type": "application/cmcd"}


def logged(arguments: Arguments) -> list[Report]:
    with redis.Redis.from_url(arguments.settings().redis_url) as store:
        entries = [entry for partition in range(PARTITIONS) for entry in store.xrange(stream_key(partition))]
    return [report for _, fields in entries for report in reports_of(fields[FIELD])]


async def counted(client: httpx.AsyncClient, outcome: str, count: int) -> None:
    """Until the metrics say so."""
    await until_shown(client, f'playhead_telemetry_reports_total{{outcome="{outcome}"}} {count}.0')


def problem_of(answer: httpx.Response, status: int) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    (error,) = answer.json()["errors"]
    return dict(error)


@pytest.mark.parametrize("kind", ["application/cmcd", "text/plain;charset=UTF-8", "Application/CMCD"])
async def test_event_mode_is_in_the_log_before_the_answer(
    client: httpx.AsyncClient, arguments: Arguments, kind: str
) -> None:
    answer = await client.post("/v1/telemetry?region=eu&asn=64500", content=EVENTS, headers={"content-type": kind})
    assert answer.status_code == 200, answer.text
    assert answer.headers["access-control-allow-origin"] == "*"
    body = answer.json()
    assert (body["accepted"], body["rejected"], body["malformed"]) == (2, {}, {})
    one, other = sorted(logged(arguments), key=lambda report: report.session)
    assert (one.event, one.text("sta"), one.number("msd")) == ("ps", "p", 840)
    assert one.context == {"cdn": "north", "asn": "64500", "region": "eu", "title": "t42", "protocol": "dash"}
    assert other.context == {"asn": "64500", "region": "eu", "device": "tv"}
    assert other.number("br") == 3200
    assert abs(one.received_ms - now_ms()) < 10_000


async def test_json_is_taken_likewise(client: httpx.AsyncClient, arguments: Arguments) -> None:
    event = {"sid": "a", "e": "e", "ec": ["4001"], "br": {"v": 3200}, "com.x-y": 5, "bl": "much"}
    body = {"context": {"app": "tv-9.2", "region": 7}, "events": [event, "none", {"e": "t"}]}
    answer = (await client.post("/v1/telemetry?region=eu", json=body)).json()
    assert (answer["accepted"], answer["rejected"], answer["malformed"]) == (1, {"no sid": 2}, {"bl": 1})
    (report,) = logged(arguments)
    assert report.values == {"sid": "a", "e": "e", "ec": ["4001"], "br": {"v": 3200}, "com.x-y": 5}
    assert report.context == {"app": "tv-9.2", "region": "eu"}


async def test_one_report_may_come_with_a_get(client: httpx.AsyncClient, arguments: Arguments) -> None:
    query = {"CMCD": 'bl=21300,br=3200,bs,sid="q",su,tb=zz', "region": "eu"}
    answer = await client.get("/v1/telemetry", params=query)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["playhead-malformed"] == "tb"
    headers = {"CMCD-Session": 'sid="h",cid="t",sf=h', "CMCD-Status": "bs", "CMCD-Request": "bl=0"}
    assert (await client.get("/v1/telemetry", headers=headers)).status_code == 204
    one, other = sorted(logged(arguments), key=lambda report: report.session)
    assert one.values == {"sid": "h", "cid": "t", "sf": "h", "bs": True, "bl": 0}
    assert other.values == {"sid": "q", "bl": 21300, "br": 3200, "bs": True, "su": True}


async def test_browsers_may_ask_from_other_sites(
    arguments: Arguments, open_client: OpenClient, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PLAYHEAD_API_TOKEN", "secret-token-of-the-test")
    asked = {"origin": "https://player.example", "access-control-request-headers": "content-type"}
    async with open_client(arguments) as client:
        answer = await client.options("/v1/telemetry", headers=asked)
        assert answer.status_code == 204
        assert "content-type" in answer.headers["access-control-allow-headers"]
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert (await client.post("/v1/telemetry", content=EVENTS, headers=CMCD)).status_code == 401


@pytest.mark.parametrize(
    ("sent", "status", "field"),
    [
        ({"content": EVENTS, "headers": {"content-type": "image/png"}}, 415, "Content-Type"),
        ({"content": EVENTS}, 415, "Content-Type"),
        ({"content": "e=t,sta=p", "headers": CMCD}, 422, "sid"),
        ({"content": b"\xff\xfe\x00", "headers": CMCD}, 422, "sid"),
        ({"content": "", "headers": CMCD}, 422, "sid"),
        ({"json": {"events": {}}}, 422, "events"),
        ({"json": []}, 422, "events"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "body"),
        ({"content": b"x" * (2 << 20), "headers": CMCD}, 413, "body"),
    ],
)
async def test_what_holds_nothing_is_refused(
    client: httpx.AsyncClient, arguments: Arguments, sent: dict[str, Any], status: int, field: str
) -> None:
    assert problem_of(await client.post("/v1/telemetry", **sent), status)["field"] == field
    assert not logged(arguments)
    assert (await client.get("/v1/telemetry")).status_code == 422


async def test_more_than_a_request_may_hold_is_counted(client: httpx.AsyncClient, arguments: Arguments) -> None:
    lines = "\n".join(f'e=t,sid="s{place}"' for place in range(1200))
    patient = CMCD | {"x-request-timeout-seconds": "30"}
    body = (await client.post("/v1/telemetry", content=lines, headers=patient)).json()
    assert (body["accepted"], body["rejected"]) == (1000, {"too many": 200})
    assert len(logged(arguments)) == 1000
    await counted(client, "accepted", 1000)
    await counted(client, "rejected", 200)


async def test_what_was_acknowledged_outlives_a_killed_store(
    arguments: Arguments, open_client: OpenClient, valkey_process: ValkeyProcess
) -> None:
    own = arguments.model_copy(update={"redis_url": valkey_process.url})
    async with open_client(own) as client:
        assert (await client.post("/v1/telemetry", content=EVENTS, headers=CMCD)).status_code == 200
        valkey_process.kill()
        answer = await client.post("/v1/telemetry", content=EVENTS, headers=CMCD)
        problem_of(answer, 503)
        assert "retry-after" in answer.headers
        valkey_process.start()
        assert {report.session for report in logged(own)} == {"a", "b"}

        async def taken() -> bool:
            return (await client.post("/v1/telemetry", content=EVENTS, headers=CMCD)).status_code == 200

        await eventually(taken)
        assert len(logged(own)) == 4


async def test_a_log_is_bounded_in_bytes_as_well(
    arguments: Arguments, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MOST_BYTES", 300_000)
    monkeypatch.setattr(log, "_ASKED_EVERY_BYTES", 50_000)
    large = "\n".join(f'e=t,sid="one",ts={place},x-a="{"y" * 300}"' for place in range(200))
    async with open_client(arguments) as client:
        statuses = [(await client.post("/v1/telemetry", content=large, headers=CMCD)).status_code for _ in range(12)]
        assert statuses[:3] == [200] * 3
        assert statuses[-1] == 503
        with redis.Redis.from_url(arguments.settings().redis_url) as store:
            assert store.memory_usage(stream_key(log.partition_of("one"))) < 500_000
            store.xtrim(stream_key(log.partition_of("one")), maxlen=0, approximate=False)
        assert (await client.post("/v1/telemetry", content=large, headers=CMCD)).status_code == 200


async def test_a_compressed_body_is_refused_by_its_name(client: httpx.AsyncClient) -> None:
    content = gzip.compress(b'e=t,sid="one"')
    answer = await client.post("/v1/telemetry", content=content, headers=CMCD | {"Content-Encoding": "gzip"})
    assert problem_of(answer, 415)["field"] == "Content-Encoding"


async def test_a_log_that_nobody_reads_refuses_more_and_drops_nothing(
    arguments: Arguments, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MOST_ENTRIES", 3)
    one = 'e=t,sid="one"'
    async with open_client(arguments) as client:
        taken = [(await client.post("/v1/telemetry", content=one, headers=CMCD)).status_code for _ in range(5)]
        assert taken == [200, 200, 200, 503, 503]
        assert len(logged(arguments)) == 3
        await counted(client, "accepted", 3)
        await counted(client, "refused", 2)
        with redis.Redis.from_url(arguments.settings().redis_url) as store:
            store.xtrim(stream_key(log.partition_of("one")), maxlen=0, approximate=False)
        assert (await client.post("/v1/telemetry", content=one, headers=CMCD)).status_code == 200
