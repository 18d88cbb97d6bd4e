"""A data set and what viewers did since: real log files, a real store."""

import asyncio
import threading

import polars as pl
import pytest

from features.additions import put_titles
from features.events import Event, EventKind
from features.settings import Settings
from features.sink import LogSink
from features.store import materialise
from features.stream import EventWriter
from features.titles import Title
from serve.errors import InvalidInput, NotFound
from training.checks import check_data
from training.datasets import Dataset, DatasetError, open_dataset
from training.datasets.dataset import write_dataset
from training.snapshots import take_snapshot

NOW = 1_800_000_000_000
HOUR = 3_600_000


def play(event_id: str, ts: int, *, profile: str = "p0", title: str = "t0", **fields: object) -> Event:
    return Event(event_id=event_id, profile_id=profile, title_id=title, kind=EventKind.PLAY, ts=ts, **fields)


@pytest.fixture
def base(settings: Settings) -> Dataset:
    events = [play("e0", NOW - 9 * HOUR), play("e1", NOW - 8 * HOUR, profile="p1", title="t1")]
    return write_dataset(
        settings.datasets / "mine",
        source="a test",
        events=pl.DataFrame(
            [event.model_dump() | {"kind": event.kind.value} for event in events], infer_schema_length=None
        ),
        titles=pl.DataFrame({"title_id": ["t0", "t1"], "name": ["Zero", "One"]}),
        profiles=pl.DataFrame({"profile_id": ["p1"], "region": ["eu"], "kids": [True]}),
        notes=("made up",),
    )


def log(settings: Settings, *events: Event) -> None:
    """What the service does with events: to the store, from there by the sink into Parquet."""

    async def write() -> None:
        writer = EventWriter(settings)
        await writer.write(list(events))
        await writer.close()

    asyncio.run(write())
    sink = LogSink(settings, settings.home / "events", wait_ms=100)
    while sink.drain():
        pass
    sink.close()


def test_a_snapshot_is_the_base_and_what_viewers_did_since(settings: Settings, base: Dataset) -> None:
    log(settings, play("n1", NOW - HOUR, profile="new", region="us"), play("e1", NOW), play("n0", NOW - 2 * HOUR))
    log(settings, play("n1", NOW - HOUR, profile="new", region="us"))  # twice
    taken = take_snapshot(settings, "mine", name="live", now_ms=NOW)
    assert taken == open_dataset(settings.datasets / "live")
    assert [event.event_id for event in taken.events()] == ["e0", "e1", "n0", "n1"]
    profiles = {profile.profile_id: profile for profile in taken.profiles()}
    assert profiles["p1"].kids
    assert profiles["new"].region == "us"  # as the store knows it
    notes = " ".join(taken.notes)
    assert "made up" in notes
    assert "1 live events were in the base already" in notes
    assert "1 profiles are new, 1 of them known" in notes
    assert take_snapshot(settings, "mine", name="live", now_ms=NOW).snapshot == taken.snapshot


def test_it_is_cut_where_asked(settings: Settings, base: Dataset) -> None:
    log(settings, play("n0", NOW - 2 * HOUR), play("n1", NOW - HOUR))
    taken = take_snapshot(settings, "mine", name="cut", until_ms=NOW - HOUR, now_ms=NOW)
    assert [event.event_id for event in taken.events()] == ["e0", "e1", "n0"]
    assert any("1 events at" in note for note in taken.notes)
    assert "1 live events" in taken.source
    with pytest.raises(InvalidInput, match="events"):
        take_snapshot(settings, "mine", name="cut", until_ms=5, now_ms=NOW)
    assert open_dataset(settings.datasets / "cut").snapshot == taken.snapshot


def test_the_future_and_the_broken_are_refused_and_counted(settings: Settings, base: Dataset) -> None:
    log(
        settings,
        play("near", NOW + HOUR - 1),
        play("far", NOW + HOUR + 1),
        play("beyond", NOW, position_s=90.0, duration_s=60.0),
        play("seconds", NOW // 1000),
    )
    taken = take_snapshot(settings, "mine", now_ms=NOW)
    assert [event.event_id for event in taken.events()] == ["e0", "e1", "near"]
    assert "1 live events from more than an hour in the future were refused." in taken.notes
    assert "2 live events break the rules of an import and were dropped." in taken.notes


def test_titles_are_kept_as_the_store_knows_them_and_unknown_ones_are_dropped(
    settings: Settings, base: Dataset
) -> None:
    more = Title(title_id="t9", name="Nine", year=2020, genres=("Drama", "War"), duration_s=60.0, regions=("eu",))
    frame = pl.DataFrame([title.model_dump() for title in (*base.titles(), more)])
    catalogue = write_dataset(settings.datasets / "wider", source="", events=base.frame("events"), titles=frame)
    materialise(settings, catalogue.path)
    log(settings, play("n0", NOW, title="t9"), play("n1", NOW, title="nobody-knows"))
    taken = take_snapshot(settings, "mine", now_ms=NOW)
    assert [event.event_id for event in taken.events()] == ["e0", "e1", "n0"]
    assert taken.titles()[-1] == more
    notes = " ".join(taken.notes)
    assert "1 titles came from the online store." in notes
    assert "1 live events of 1 titles (nobody-knows)" in notes


def test_titles_put_beside_the_base_are_part_of_the_catalogue_and_their_events_are_kept(
    settings: Settings, base: Dataset
) -> None:
    new = Title(title_id="t9", name="Nine", year=2020, genres=("Drama",), duration_s=60.0, added_ts=NOW - HOUR)
    other = Title(title_id="t1", name="One, mended", genres=("War",))
    put_titles(settings, "mine", [new, other])
    log(settings, play("n0", NOW, title="t9"))
    taken = take_snapshot(settings, "mine", now_ms=NOW)
    assert [event.event_id for event in taken.events()] == ["e0", "e1", "n0"]
    titles = {title.title_id: title for title in taken.titles()}
    assert titles.keys() == {"t0", "t1", "t9"}
    assert (titles["t9"], titles["t1"]) == (new, other)
    assert "2 titles were put beside mine while it was served." in taken.notes
    assert check_data(taken, None, now_ms=NOW).ok


def test_without_a_store_the_known_part_is_taken(settings: Settings, base: Dataset) -> None:
    log(settings, play("n0", NOW, profile="new"), play("n1", NOW, title="t9"))
    alone = Settings(home=settings.home, redis_url="redis://127.0.0.1:1/0", feast_registry="")
    taken = take_snapshot(alone, "mine", now_ms=NOW)
    assert [event.event_id for event in taken.events()] == ["e0", "e1", "n0"]
    assert "does not answer" in " ".join(taken.notes)
    assert {profile.profile_id for profile in taken.profiles()} == {"p0", "p1", "new"}


def test_no_log_no_base_no_name(settings: Settings, base: Dataset) -> None:
    assert take_snapshot(settings, "mine", now_ms=NOW).rows["events"] == 2
    with pytest.raises(NotFound, match="dataset"):
        take_snapshot(settings, "other")
    with pytest.raises(InvalidInput, match="name"):
        take_snapshot(settings, "mine", name="ml-100k")
    with pytest.raises(InvalidInput, match="name"):
        take_snapshot(settings, "mine", name="../up")


def test_a_damaged_file_of_the_log_is_named(settings: Settings, base: Dataset) -> None:
    log(settings, play("n0", NOW))
    (file,) = (settings.home / "events").glob("date=*/part-*.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=file.name):
        take_snapshot(settings, "mine", now_ms=NOW)


def test_a_snapshot_while_the_sink_writes_is_whole(settings: Settings, base: Dataset) -> None:
    stop = threading.Event()

    def write() -> None:
        for number in range(20):
            log(settings, play(f"n{number}", NOW - HOUR + number))
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    counts = []
    while not stop.is_set():
        counts.append(take_snapshot(settings, "mine", now_ms=NOW).rows["events"])
    thread.join()
    assert counts == sorted(counts)
    assert take_snapshot(settings, "mine", now_ms=NOW).rows["events"] == 22
