"""Feast's own view of the online store, and filling it from a data set."""

import asyncio
import contextlib
import json
import random
import time
import warnings
from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest
import redis
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from features import store as store_module
from features.definitions import BITRATE, QOE, RECOMMEND
from features.errors import FeaturesError, InvalidData, StoreUnavailable
from features.events import Event, EventKind
from features.layout import entity_key
from features.offline import features_at, title_statistics
from features.online import OnlineFeatures
from features.popularity import TitleStatistics, TitleStats, title_key
from features.qoe import Qoe, QoeReader, store_qoe
from features.records import READ_FIELDS, profile_key
from features.sink import EVENTS as EVENT_LOG
from features.store import apply, materialise, open_store
from features.stream import FILLED_KEY, STREAM, EventWriter
from features.views import (
    NETWORK_QOE,
    NETWORK_THROUGHPUT,
    RENDITION_SEGMENTS,
    TITLE_METADATA,
    TITLE_QOE,
    TITLE_STATS,
    VIEWS,
)

START = 1_700_000_000_000
PROFILES = pl.DataFrame(
    {"profile_id": [f"p{i}" for i in range(6)], "region": ["FR", "DE", "", "JP", "FR", "US"], "kids": [False, True] * 3}
)


def some_events(count, seed=1, prefix="e", start=START):
    rng = random.Random(seed)
    return [
        Event(
            event_id=f"{prefix}{i}", profile_id=f"p{rng.randrange(5)}", title_id=f"t{rng.randrange(30)}",
            kind=rng.choice(list(EventKind)), ts=start + i * 1000, position_s=rng.random() * 100, duration_s=100.0,
            region=rng.choice([None, "BR"]), device=rng.choice([None, "tv"]),
        )
        for i in range(count)
    ]  # fmt: skip


EVENTS = some_events(300)


def as_frame(events):
    return pl.DataFrame([event.model_dump(mode="json") for event in events], schema=EVENT_LOG.schema)


def a_dataset(folder, events):
    folder.mkdir(parents=True, exist_ok=True)
    as_frame(events).write_parquet(folder / "events.parquet")
    PROFILES.write_parquet(folder / "profiles.parquet")
    pl.DataFrame(
        {
            "title_id": [f"t{i}" for i in range(32)],
            "name": [f"Title {i}" for i in range(32)],
            "year": [1990 + i for i in range(32)],
            "genres": [["Drama", "Comedy"][: i % 3] for i in range(32)],
            "duration_s": [5400.0] * 32,
            "kids": [i % 2 == 0 for i in range(32)],
            "regions": [["FR"] if i % 5 == 0 else [] for i in range(32)],
            "added_ts": [START + i for i in range(32)],
        },
        schema_overrides={"genres": pl.List(pl.String), "regions": pl.List(pl.String)},
    ).write_parquet(folder / "titles.parquet")
    return folder


def online(settings, action):
    """Run an async action with a reader, a writer and title statistics."""

    async def main():
        parts = OnlineFeatures(settings), EventWriter(settings), TitleStatistics(settings)
        try:
            return await action(*parts)
        finally:
            for part in parts:
                await part.close()

    return asyncio.run(main())


def read_profiles(settings):
    async def action(reader, *_):
        return [await reader.read(profile, 5000.0) for profile in PROFILES["profile_id"]]

    return online(settings, action)


def read_titles(settings):
    return online(settings, lambda _reader, _writer, titles: titles.read_all([f"t{i}" for i in range(32)]))


def write(settings, events):
    return online(settings, lambda _reader, writer, _titles: writer.write(events))


def expected_profiles(events):
    rows = pl.DataFrame({"profile_id": PROFILES["profile_id"], "ts": [START * 2] * PROFILES.height})
    return features_at(as_frame(events), rows, PROFILES)


def assert_titles(settings, events, *, last_ts_ms=True):
    expected = title_statistics(as_frame(events))
    for title, got in read_titles(settings).items():
        wanted = expected.get(title, TitleStats())
        assert got.trend == pytest.approx(wanted.trend, abs=1e-9)
        if last_ts_ms:
            assert got.last_ts_ms == wanted.last_ts_ms
        assert replace(got, trend=0, last_ts_ms=0) == replace(wanted, trend=0, last_ts_ms=0)


@pytest.fixture
def client(settings):
    with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as made:
        yield made


def test_filling_is_folding(settings, tmp_path):
    events = some_events(400)
    dataset = a_dataset(tmp_path / "data", events + events[:50])
    steps = []
    filled = materialise(settings, dataset, progress=lambda done, total: steps.append((done, total)))
    assert (filled.profiles, filled.titles, filled.events, filled.already_live) == (6, 32, 400, 0)
    assert steps[-1] == (38, 38)
    assert read_profiles(settings) == expected_profiles(events)
    assert_titles(settings, events)


def test_filling_twice_is_filling_once(settings, tmp_path, client):
    events = some_events(300)
    dataset = a_dataset(tmp_path / "data", events)
    materialise(settings, dataset)
    before = read_profiles(settings), read_titles(settings)
    assert materialise(settings, dataset).profiles == 0
    client.delete(FILLED_KEY)
    assert materialise(settings, dataset).profiles == 0
    assert (read_profiles(settings), read_titles(settings)) == before


def test_a_fill_that_died_half_way_is_run_again(settings, tmp_path, monkeypatch):
    events = some_events(300)
    dataset = a_dataset(tmp_path / "data", events)
    monkeypatch.setattr(store_module, "_CHUNK", 4)

    def die_at(fatal):
        def die(done, _total):
            if done == fatal:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            materialise(settings, dataset, progress=die)

    for fatal in (4, 6, 14):
        die_at(fatal)
    assert materialise(settings, dataset).titles == 24
    assert read_profiles(settings) == expected_profiles(events)
    assert_titles(settings, events)


def test_events_that_came_through_the_api_stay(settings, tmp_path):
    past, live = some_events(300), some_events(200, seed=2, prefix="live", start=START + 10**6)
    dataset = a_dataset(tmp_path / "data", past)
    write(settings, live[:100])
    materialise(settings, dataset)
    write(settings, live[100:])
    versions = [profile.history.n_events for profile in read_profiles(settings)]
    materialise(settings, dataset)
    assert read_profiles(settings) == expected_profiles(past + live)
    assert [profile.history.n_events for profile in read_profiles(settings)] == versions
    assert_titles(settings, past + live)


def test_a_data_set_made_from_the_log_counts_nothing_twice(settings, tmp_path):
    """Filled from the past, lived, and filled again from the past and what was lived."""
    past, live = some_events(300), some_events(200, seed=2, prefix="live", start=START + 10**6)
    materialise(settings, a_dataset(tmp_path / "data", past))
    write(settings, live)
    filled = materialise(settings, a_dataset(tmp_path / "data", past + live))
    assert filled.already_live == 200
    found, expected = read_profiles(settings), expected_profiles(past + live)
    for got, wanted in zip(found, expected, strict=True):
        assert got.history.entries == wanted.history.entries
        assert got.stats == wanted.stats
        assert got.history.n_events > wanted.history.n_events - 1, "the version may only grow"
    assert_titles(settings, past + live)


def test_another_data_set_takes_the_place_of_one_that_nobody_used(settings, tmp_path, client, monkeypatch):
    monkeypatch.setattr(store_module, "_CHUNK", 4)
    theirs = [
        event.model_copy(update={"profile_id": f"q{event.profile_id}", "title_id": f"u{event.title_id}"})
        for event in EVENTS
    ]
    materialise(settings, a_dataset(tmp_path / "theirs", theirs))
    client.xgroup_create(STREAM, "a sink that waits", mkstream=True)
    client.set("not ours", 1)
    materialise(settings, a_dataset(tmp_path / "ours", EVENTS))
    assert read_profiles(settings) == expected_profiles(EVENTS)
    assert_titles(settings, EVENTS)
    titles = {event.title_id for event in theirs}
    assert client.exists(*(profile_key(event.profile_id) for event in theirs), *map(title_key, titles)) == 0
    assert client.get("not ours") == b"1"


def test_another_data_set_is_refused_once_viewers_used_the_store(settings, tmp_path, client):
    live = some_events(50, seed=2, prefix="live", start=START + 10**6)
    materialise(settings, a_dataset(tmp_path / "ours", EVENTS))
    write(settings, live)
    before = read_profiles(settings), read_titles(settings)
    for _ in range(2):
        with pytest.raises(InvalidData) as told:
            materialise(settings, a_dataset(tmp_path / "theirs", some_events(30, seed=5)))
        assert "ours" in told.value.got
        assert "--data ours" in told.value.next_step
        assert "PLAYHEAD_HOME" in told.value.next_step
    assert (read_profiles(settings), read_titles(settings)) == before
    client.xtrim(STREAM, 0)  # written to files by the sink, and still viewers' events
    with pytest.raises(InvalidData):
        materialise(settings, tmp_path / "theirs")
    materialise(settings, tmp_path / "ours")
    assert read_profiles(settings) == expected_profiles(EVENTS + live)


def test_an_event_that_comes_while_the_store_changes_hands_is_not_lost(settings, tmp_path, client, monkeypatch):
    """The event comes between the look at the log and the removal."""
    materialise(settings, a_dataset(tmp_path / "ours", EVENTS))
    asked = redis.client.Pipeline.xinfo_stream

    def asked_too_early(pipe, *arguments):
        found = asked(pipe, *arguments)
        write(settings, some_events(1, prefix="live", start=START + 10**6))
        return found

    client.xgroup_create(STREAM, "a sink that waits", mkstream=True)
    monkeypatch.setattr(redis.client.Pipeline, "xinfo_stream", asked_too_early)
    with pytest.raises(InvalidData, match="ours"):
        materialise(settings, a_dataset(tmp_path / "theirs", some_events(30, seed=5)))
    materialise(settings, tmp_path / "ours")
    assert read_profiles(settings) == expected_profiles(EVENTS + some_events(1, prefix="live", start=START + 10**6))


def test_a_change_of_data_sets_that_died_half_way_is_run_again(settings, tmp_path, client, monkeypatch):
    monkeypatch.setattr(store_module, "_CHUNK", 3)
    ours, theirs = a_dataset(tmp_path / "ours", EVENTS), a_dataset(tmp_path / "theirs", some_events(30, seed=5))
    materialise(settings, ours)
    drop, calls = store_module._drop, []

    def die_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        drop(*arguments)

    for then, events in ((ours, EVENTS), (theirs, some_events(30, seed=5))):
        calls.clear()
        with monkeypatch.context() as patched:
            patched.setattr(store_module, "_drop", die_at_the_third)
            with pytest.raises(KeyboardInterrupt):
                materialise(settings, theirs)
        materialise(settings, then)
        assert read_profiles(settings) == expected_profiles(events)
        assert_titles(settings, events)


def test_versions_grow_when_a_smaller_data_set_follows(settings, tmp_path):
    materialise(settings, a_dataset(tmp_path / "data", some_events(300)))
    before = [profile.history.n_events for profile in read_profiles(settings)]
    materialise(settings, a_dataset(tmp_path / "data", some_events(10)))
    after = read_profiles(settings)
    assert all(new.history.n_events > old for new, old in zip(after, before, strict=True))
    assert [f.stats.counts for f in after] == [f.stats.counts for f in expected_profiles(some_events(10))]
    assert_titles(settings, some_events(10), last_ts_ms=False)


def test_a_corrupt_record_is_filled_anew(settings, tmp_path, client):
    events = some_events(300)
    dataset = a_dataset(tmp_path / "data", events)
    materialise(settings, dataset)
    client.hset(profile_key("p1"), READ_FIELDS[0], b"\xff\xff")
    live = Event(event_id="live", profile_id="p1", title_id="t1", kind="play", ts=START + 10**7)
    write(settings, [live])
    materialise(settings, dataset)
    (got,) = [f for f in read_profiles(settings) if f.profile_id == "p1"]
    (wanted,) = [f for f in expected_profiles([*events, live]) if f.profile_id == "p1"]
    assert got == wanted


def test_a_key_of_another_type_is_filled_anew(settings, tmp_path, client):
    for key in (profile_key("p1"), title_key("t1")):
        client.set(key, "text")
    materialise(settings, a_dataset(tmp_path / "data", EVENTS))
    assert read_profiles(settings) == expected_profiles(EVENTS)
    assert_titles(settings, EVENTS)
    assert client.get(profile_key("p1") + b":unreadable") == b"text"


def test_writers_and_a_fill_at_the_same_time(settings, tmp_path, monkeypatch):
    past, live = some_events(300), some_events(300, seed=2, prefix="live", start=START + 10**6)
    dataset = a_dataset(tmp_path / "data", past)
    monkeypatch.setattr(store_module, "_CHUNK", 2)

    async def action(_reader, writer, _titles):
        filling = asyncio.create_task(asyncio.to_thread(materialise, settings, dataset))
        for event in live:
            await writer.write([event])
        await filling

    online(settings, action)
    assert read_profiles(settings) == expected_profiles(past + live)
    assert_titles(settings, past + live)


@pytest.mark.parametrize("name", ["events.parquet", "titles.parquet", "profiles.parquet"])
def test_a_missing_or_broken_file_is_named(settings, tmp_path, name):
    dataset = a_dataset(tmp_path / "data", some_events(10))
    (dataset / name).write_bytes(b"PAR1 this is no Parquet")
    with pytest.raises(InvalidData) as told:
        materialise(settings, dataset)
    assert told.value.field == name
    (dataset / name).unlink()
    with pytest.raises(InvalidData, match=name):
        materialise(settings, dataset)


def test_a_bad_title_is_named(settings, tmp_path):
    dataset = a_dataset(tmp_path / "data", some_events(10))
    titles = pl.read_parquet(dataset / "titles.parquet").with_columns(year=pl.lit(99_999))
    titles.write_parquet(dataset / "titles.parquet")
    with pytest.raises(InvalidData) as told:
        materialise(settings, dataset)
    assert told.value.field == "titles.parquet, row 0, year"


def test_filling_a_store_that_is_down_says_so(settings, tmp_path, valkey_process):
    valkey_process.kill()
    with pytest.raises(StoreUnavailable):
        materialise(replace(settings, redis_url=valkey_process.url), a_dataset(tmp_path / "data", some_events(10)))


def test_feast_reads_the_same(settings, tmp_path):
    """Stock Feast, through its registry and feature services, says what OnlineFeatures says."""
    apply(settings)
    apply(settings)
    materialise(settings, a_dataset(tmp_path / "data", some_events(300)))
    write(settings, some_events(100, seed=3, prefix="live", start=START + 10**6))
    store = open_store(settings)
    assert {entity.name for entity in store.list_entities()} >= {"profile", "title", "rung", "cdn", "asn"}
    rows = [{"profile_id": profile} for profile in [*PROFILES["profile_id"], "nobody"]]
    answer = store.get_online_features(store.get_feature_service(RECOMMEND), rows).to_dict()
    for index, features in enumerate(read_profiles(settings)):
        got = {name: values[index] for name, values in answer.items()}
        entries, stats = features.history.entries, features.stats
        assert got == {
            "profile_id": features.profile_id,
            "title_ids": [entry.title_id for entry in entries],
            "kinds": [entry.kind for entry in entries],
            "ts_ms": [entry.ts_ms for entry in entries],
            "progress": [entry.progress for entry in entries],
            "n_events": features.history.n_events,
            "counts": list(stats.counts.values()),
            "first_ts_ms": stats.first_ts_ms,
            "last_ts_ms": stats.last_ts_ms,
            "my_list": list(stats.my_list),
            "region": stats.region,
            "device": stats.device,
            "kids": stats.kids,
        }
    assert answer["n_events"][-1] is None

    titles = [f"{view.name}:{feature}" for view in (TITLE_METADATA, TITLE_STATS) for feature in view.features]
    answer = store.get_online_features(titles, [{"title_id": f"t{i}"} for i in range(32)]).to_dict()
    for index, stats in enumerate(read_titles(settings).values()):
        assert answer["plays"][index] == stats.plays
        assert answer["trend"][index] == stats.trend
    assert answer["name"][7] == "Title 7"
    assert answer["regions"][5] == ["FR"]
    assert answer["added_ts_ms"][3] == START + 3


def test_feast_sees_the_time_of_the_newest_event(settings, client):
    """A row's event time is what Feast checks a view's ttl against."""
    apply(settings)
    events = some_events(50)
    write(settings, events)
    store = open_store(settings)
    provider = store._get_provider()
    newest = {e.profile_id: e.ts for e in events if e.kind is not EventKind.IMPRESSION}
    for profile, ts in newest.items():
        key = EntityKey(join_keys=["profile_id"], entity_values=[Value(string_val=profile)])
        ((at, _),) = provider.online_read(store.config, store.get_feature_view("profile_history"), [key])
        assert round(at.timestamp() * 1000) == ts


def test_feasts_writes_are_read_back_by_us(settings, client):
    """Views with two keys, written by Feast, lie where our layout says."""
    apply(settings)
    store = open_store(settings)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"cdn": ["c1"], "asn": ["64500"], "log_mean_kbps": [8.0], "log_std_kbps": [0.5], "sessions": [3],
         "last_ts_ms": [START], "event_timestamp": [pandas.Timestamp(START, unit="ms", tz="UTC")]}
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store.write_to_online_store("network_throughput", frame)
    assert client.hlen(entity_key({"asn": "64500", "cdn": "c1"})) == len(NETWORK_THROUGHPUT.features) + 1
    service = store.get_feature_service(BITRATE)
    names = {view.name for view in service.feature_view_projections}
    assert names == {NETWORK_THROUGHPUT.name, RENDITION_SEGMENTS.name}


def test_feast_reads_how_playback_goes(settings, client):
    """Stock Feast, through its service, says what QoeReader says of networks and titles."""
    apply(settings)
    networks = {
        ("c1", "64500"): Qoe(50.0, 0.1, 0.2, 0.3, 0.4, 0.5, START),
        ("c2", "7"): Qoe(20.5, 0, 0, 0, 0, 1, START),
    }
    titles = {"t1": Qoe(90.25, 0.01, 0.02, 0.03, 0.04, 0.05, START + 1)}
    client.hset(title_key("t1"), "known", "1")
    store_qoe(settings, networks, titles)

    async def main():
        reader = QoeReader(settings)
        try:
            found = await reader.read_networks([*networks, ("c3", "7")], 5000.0)
            return found, await reader.read_titles(["t1", "t2"], 5000.0)
        finally:
            await reader.close()

    of_networks, of_titles = asyncio.run(main())
    assert of_networks == {**networks, ("c3", "7"): None}
    assert of_titles == {**titles, "t2": None}
    store = open_store(settings)
    asked = [(network, title) for network in of_networks for title in of_titles]
    rows = [{"cdn": cdn, "asn": asn, "title_id": title} for (cdn, asn), title in asked]
    service = store.get_feature_service(QOE)
    answer = store.get_online_features(service, rows, full_feature_names=True).to_dict()
    for index, (network, title) in enumerate(asked):
        for view, seen in ((NETWORK_QOE, of_networks[network]), (TITLE_QOE, of_titles[title])):
            got = {feature: answer[f"{view.name}__{feature}"][index] for feature in view.features}
            assert got == (asdict(seen) if seen else dict.fromkeys(view.features))
    ours = {("network_qoe", ("cdn", "asn"), ("c1", "64500")), ("title_qoe", ("title_id",), ("t1",))}
    for view, names, values in ours:
        key = EntityKey(join_keys=list(names), entity_values=[Value(string_val=value) for value in values])
        ((at, _),) = store._get_provider().online_read(store.config, store.get_feature_view(view), [key])
        assert round(at.timestamp() * 1000) == (START if view == "network_qoe" else START + 1)


def test_a_registry_is_replaced_whole(settings, tmp_path):
    apply(settings)
    broken = settings.home / "feast" / "registry.db"
    broken.write_bytes(b"\xff half a registry")
    apply(settings)
    assert len(open_store(settings).list_feature_views()) == len(VIEWS)
    assert [path.name for path in broken.parent.iterdir()] == ["registry.db"]


def test_the_registry_may_be_a_database(settings, tmp_path):
    pytest.importorskip("sqlalchemy")
    settings = replace(settings, feast_registry=f"sqlite:///{tmp_path}/registry.sqlite")
    apply(settings)
    assert len(open_store(settings).list_feature_services()) == 3


@pytest.mark.parametrize("url", ["unix:///tmp/valkey.sock", "redis://:a,b@127.0.0.1:6379/0"])
def test_what_feast_cannot_reach_is_refused(settings, url):
    with pytest.raises(FeaturesError) as told:
        open_store(replace(settings, redis_url=url))
    assert told.value.field == "REDIS_URL"
    assert "a,b" not in str(told.value)


def test_credentials_reach_feast(settings):
    made = store_module._connection_string(replace(settings, redis_url="rediss://me:12@h:7/3"))
    host, *options = made.split(",")
    assert host == "h:7"
    assert {k: json.loads(v) for k, v in (o.split("=", 1) for o in options)} == {
        "db": 3, "socket_timeout": 0.5, "socket_connect_timeout": 0.5, "username": "me", "password": "12", "ssl": True,
    }  # fmt: skip


def test_a_large_data_set_is_filled_in_seconds(settings, tmp_path):
    rng, size = np.random.default_rng(1), 100_000
    folder = a_dataset(tmp_path / "data", some_events(1))
    pl.DataFrame(
        {
            "event_id": [f"e{i}" for i in range(size)],
            "profile_id": [f"p{i}" for i in rng.integers(0, 900, size)],
            "title_id": [f"t{i}" for i in rng.zipf(1.3, size) % 2000],
            "kind": rng.choice([kind.value for kind in EventKind], size),
            "ts": np.sort(rng.integers(0, 10**9, size)) + START,
            "position_s": rng.random(size) * 5000,
            "duration_s": np.full(size, 5000.0),
        }
    ).write_parquet(folder / "events.parquet")
    began = time.process_time()
    assert materialise(settings, folder).events == size
    assert time.process_time() - began < 30  # ten times what it takes: it must not become quadratic
