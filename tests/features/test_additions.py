"""Titles beside a data set: put, replaced, taken out, bounded; and what a reader sees of it."""

import threading
from pathlib import Path

import pytest
import redis

from features.additions import AddedTitles, added_key, put_titles, read_added, remove_titles, revision_key
from features.errors import CorruptRecord, InvalidBatch, StoreUnavailable
from features.settings import Settings
from features.titles import Title
from tests.conftest import ValkeyProcess
from tests.serve.conftest import make_title
from training.datasets.additions import read_titles


async def test_a_reader_sees_each_change(settings: Settings, store: redis.Redis) -> None:
    reader = AddedTitles(settings, "small")
    assert (await reader.revision(), await reader.read()) == (None, [])
    first, second = make_title(901), make_title(902)
    done = put_titles(settings, "small", [first, second, first])
    assert (done.new, done.replaced, done.total) == (2, 0, 2)
    revision = await reader.revision()
    assert await reader.read() == read_added(settings, "small") == [first, second]
    renamed = make_title(902, name="Renamed")
    done = put_titles(settings, "small", [renamed])
    assert (done.new, done.replaced, done.total) == (0, 1, 2)
    assert await reader.revision() not in {None, revision}
    assert await reader.read() == [first, renamed]
    assert remove_titles(settings, "small", ["t901", "absent"]) == 1
    assert await reader.read() == [renamed]
    assert read_added(settings, "another") == []
    store.hset(added_key("small"), "x", "{}")
    with pytest.raises(CorruptRecord):
        await reader.read()
    await reader.close()


async def test_many_titles_are_parsed_off_the_event_loop(
    settings: Settings, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_titles(settings, "small", [make_title(901)])
    parse, threads = Title.model_validate_json, set[int]()

    def seen(dumped: bytes) -> Title:
        threads.add(threading.get_ident())
        return parse(dumped)

    monkeypatch.setattr(Title, "model_validate_json", seen)
    reader = AddedTitles(settings, "small")
    assert await reader.read() == [make_title(901)]
    await reader.close()
    assert threads
    assert threading.get_ident() not in threads


def test_there_may_be_so_many(settings: Settings, store: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.additions.MOST_ADDED", 3)
    put_titles(settings, "small", [make_title(number) for number in range(3)])
    assert put_titles(settings, "small", [make_title(2, name="again")]).total == 3
    revision = store.get(revision_key("small"))
    with pytest.raises(InvalidBatch, match="at most 3"):
        put_titles(settings, "small", [make_title(2), make_title(3)])
    assert store.get(revision_key("small")) == revision, "all or none"


def test_a_store_that_is_away_is_told(settings: Settings, valkey_process: ValkeyProcess) -> None:
    valkey_process.kill()
    away = Settings(home=settings.home, redis_url=valkey_process.url, feast_registry="")
    for change in (lambda: put_titles(away, "small", [make_title(1)]), lambda: read_added(away, "small")):
        with pytest.raises(StoreUnavailable):
            change()


def test_a_file_is_checked_as_an_import_is(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("title_id,name,genres,kids\nn1,One,Drama|Crime,true\nn2,Two,,false\n")
    titles, problems = read_titles(path, now_ms=5)
    assert problems == []
    assert [(title.title_id, title.genres, title.kids, title.added_ts) for title in titles] == [
        ("n1", ("Drama", "Crime"), True, 5), ("n2", (), False, 5),
    ]  # fmt: skip
    path.write_text("title_id,name,year\nn1,One,soon\n")
    titles, problems = read_titles(path)
    assert titles == []
    assert "year" in str(problems[0])
    path.write_text("title_id\nn1\n")
    assert "name" in str(read_titles(path)[1][0])
