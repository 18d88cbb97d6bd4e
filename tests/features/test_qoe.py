"""How playback went, and throughput: what is written is read, and what is none of ours is none."""

import asyncio
import contextlib
from dataclasses import replace

import pytest
import redis

from features.errors import InvalidData, StoreUnavailable
from features.layout import ValueKind, encode
from features.link import StoreLink
from features.networks import KEPT_S, NetworkReader, Throughput, network_key, store_throughput
from features.popularity import title_key
from features.qoe import Qoe, QoeReader, store_qoe
from features.views import NETWORK_QOE, TITLE_QOE

NOW = 1_790_000_000_000
SEEN = Qoe(123.5, 0.01, 0.2, 0.03, 0.004, 0.5, NOW)
OTHER = Qoe(20.0, 0.0, 1.0, 0.0, 0.0, 0.0, NOW - 1)
NORTH, SOUTH = ("north", "64500"), ("south", "64500")


@pytest.fixture
def client(settings):
    with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as made:
        yield made


@pytest.fixture
def catalogue(client):
    for title in ("t1", "t2", "é"):
        client.hset(title_key(title), "known", "1")


def read(settings, networks, titles):
    async def main():
        reader = QoeReader(settings)
        try:
            return await asyncio.gather(reader.read_networks(networks, 5000.0), reader.read_titles(titles, 5000.0))
        finally:
            await reader.close()

    return asyncio.run(main())


@pytest.mark.usefixtures("catalogue")
def test_what_is_written_is_read(settings):
    store_qoe(settings, {NORTH: SEEN, SOUTH: OTHER}, {"t1": OTHER, "é": SEEN})
    assert read(settings, [SOUTH, NORTH, ("north", "")], ["t1", "é", "none"]) == [
        {SOUTH: OTHER, NORTH: SEEN, ("north", ""): None},
        {"t1": OTHER, "é": SEEN, "none": None},
    ]
    store_qoe(settings, {NORTH: OTHER}, {})
    assert read(settings, [NORTH, SOUTH], []) == [{NORTH: OTHER, SOUTH: OTHER}, {}]
    store_qoe(settings, {}, {})
    assert read(settings, [], []) == [{}, {}]


async def test_throughput_of_the_same_network_stands_beside_it(settings):
    throughput = Throughput(8.0, 0.5, 30, NOW)
    store_throughput(settings, {NORTH: throughput})
    store_qoe(settings, {NORTH: SEEN}, {})
    link = StoreLink(settings.redis_url)
    networks, qoe = NetworkReader(settings, link=link), QoeReader(settings, link=link)
    assert await networks.read([NORTH, SOUTH], 5000.0) == {NORTH: throughput, SOUTH: None}
    assert await qoe.read_networks([NORTH], 5000.0) == {NORTH: SEEN}
    assert await networks.read([], 5000.0) == {}
    await link.close()


@pytest.mark.parametrize(
    "values", [{"stalls": 1.1}, {"failures": -0.1}, {"low_bitrate": float("nan")}, {"weight": -1.0}]
)
def test_what_is_out_of_range_is_refused_and_not_read(settings, client, values):
    wrong = replace(SEEN, **values)
    with pytest.raises(InvalidData) as told:
        store_qoe(settings, {NORTH: SEEN}, {"t1": wrong})
    assert told.value.field == "qoe of t1"
    assert client.dbsize() == 0
    row = TITLE_QOE.row({name: getattr(wrong, name) for name in TITLE_QOE.features}, NOW)
    client.hset(title_key("t1"), items=row)
    assert read(settings, [], ["t1"]) == [{}, {"t1": None}]


def test_what_players_name_does_not_stay_for_ever(settings, client):
    store_qoe(settings, {NORTH: SEEN}, {"invented": SEEN})
    store_throughput(settings, {SOUTH: Throughput(8.0, 0.5, 3, NOW)})
    assert not client.exists(title_key("invented")), "of titles the catalogue decides"
    assert {client.ttl(network_key(one)) for one in (NORTH, SOUTH)} == {KEPT_S}


@pytest.mark.usefixtures("catalogue")
def test_rubbish_is_none_and_harms_no_other(settings, client):
    store_qoe(settings, {NORTH: SEEN, SOUTH: SEEN}, {"t1": SEEN, "t2": SEEN})
    client.hset(network_key(NORTH), NETWORK_QOE.field("stalls"), b"\xff")
    client.hdel(network_key(SOUTH), NETWORK_QOE.field("last_ts_ms"))
    client.hset(title_key("t1"), TITLE_QOE.field("weight"), encode(ValueKind.INT64, 3))
    client.set(title_key("t3"), b"text")
    assert read(settings, [NORTH, SOUTH], ["t1", "t2", "t3"]) == [
        {NORTH: None, SOUTH: None},
        {"t1": None, "t2": SEEN, "t3": None},
    ]


def test_a_store_that_is_down_says_so(settings, valkey_process):
    valkey_process.kill()
    down = replace(settings, redis_url=valkey_process.url)
    for write in (
        lambda: store_qoe(down, {NORTH: SEEN}, {}),
        lambda: store_throughput(down, {NORTH: Throughput(8.0, 0.5, 3, NOW)}),
    ):
        with pytest.raises(StoreUnavailable) as told:
            write()
        assert told.value.field == "online store"
    with pytest.raises(StoreUnavailable):
        read(down, [NORTH], [])
