"""One embedded registry and three versions, made once for all tests that need them."""

import pytest

from serve.artifacts import Artifact
from tests.contracts.small_model import small_artifact
from tests.training.versions import settings_of, variant
from training.registry import Registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry.of(settings_of(tmp_path_factory.mktemp("home")), {})


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    folder = tmp_path_factory.mktemp("versions")
    return [variant(small_artifact(), folder, mark) for mark in range(3)]
