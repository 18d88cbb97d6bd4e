from pathlib import Path

import pytest

from features.settings import Settings
from serve.errors import InvalidInput, NotFound, Unavailable
from training.datasets import DatasetError, names, prepare
from training.datasets.dataset import write_dataset
from training.datasets.synthetic import generate


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", redis_url="redis://127.0.0.1:1/0", feast_registry="unused")


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


@pytest.fixture
def imported(home: Settings) -> Path:
    made = generate(profiles=20, titles=20, events=200, seed=0)
    path = home.datasets / "mine"
    write_dataset(path, source="a test", events=made.events, titles=made.titles, profiles=made.profiles)
    return path


def test_a_set_is_made_once_and_then_opened(home: Settings) -> None:
    told: list[tuple[str, float]] = []
    first = prepare("synthetic", home, progress=lambda text, share: told.append((text, share)))
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1] == ("Prepared synthetic", 1.0)
    told.clear()
    again = prepare("synthetic", home, progress=lambda text, share: told.append((text, share)))
    assert again == first
    assert told[-1] == ("Opened synthetic", 1.0)
    assert names(home) == ["synthetic"]


def test_refresh_brings_the_times_to_now(home: Settings) -> None:
    old = prepare("synthetic", home, as_of_ms=1_770_000_000_000)
    new = prepare("synthetic", home, as_of_ms=1_780_000_000_000, refresh=True)
    assert new.last_ts_ms > old.last_ts_ms


def test_a_damaged_set_of_ours_is_made_again(home: Settings) -> None:
    dataset = prepare("synthetic", home)
    (dataset.path / "events.parquet").write_bytes(b"cut off")
    assert prepare("synthetic", home).rows == dataset.rows


def test_a_damaged_imported_set_is_an_error(home: Settings, imported: Path) -> None:
    assert prepare("mine", home).name == "mine"
    (imported / "events.parquet").write_bytes(b"cut off")
    with pytest.raises(DatasetError, match=r"mine/events\.parquet"):
        prepare("mine", home)


def test_an_unknown_name_says_which_there_are(home: Settings, imported: Path) -> None:
    with pytest.raises(NotFound, match="one of mine, ml-100k, synthetic"):
        prepare("other", home)
    with pytest.raises(InvalidInput):
        prepare("../mine", home)


@pytest.mark.usefixtures("no_index")
def test_with_no_index_the_synthetic_audience_comes_only_when_asked_for(home: Settings) -> None:
    with pytest.raises(Unavailable, match="playhead data prepare synthetic"):
        prepare("ml-100k", home)
    told: list[str] = []
    dataset = prepare("ml-100k", home, fallback=True, progress=lambda text, _: told.append(text))
    assert dataset.name == "synthetic"
    assert any("ml-100k is not available" in text for text in told)


def test_movielens_is_prepared_by_name(home: Settings, wheel_cache: Path) -> None:
    (home.home / "cache").parent.mkdir(parents=True)
    (home.home / "cache").symlink_to(wheel_cache)
    dataset = prepare("ml-100k", home)
    assert dataset.rows == {"events": 261_485, "titles": 1682, "profiles": 943}
