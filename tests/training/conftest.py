"""Made once for all tests that need them: an embedded registry, three versions, and one small Ray."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.rays import own_place
from serve.artifacts import Artifact
from tests.contracts.small_model import small_artifact
from tests.training.versions import settings_of, variant
from training.jobs import connected
from training.registry import Registry

HOLDER = """
import json, sys
from training.jobs import RayPlace, connected
with connected(RayPlace(**json.loads(sys.argv[1])), "holder"):
    import ray
    print(json.dumps(ray.get_runtime_context().gcs_address), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="session")
def small_ray() -> Iterator[Any]:
    folder = Path(tempfile.mkdtemp(prefix="ph-test-", dir="/tmp"))
    place = own_place(folder)
    fields = {name: getattr(place, name) for name in place.__dataclass_fields__}
    with (
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, json.dumps(fields)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path.cwd(),
        ) as holder,  # fmt: skip
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in place.environment.items():
            patch.setenv(name, value)
        address = json.loads(holder.stdout.readline())
        with connected(replace(place, address=address), "tests"):
            yield sys.modules["ray"]
        holder.stdin.close()
        holder.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry.of(settings_of(tmp_path_factory.mktemp("home")), {})


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    folder = tmp_path_factory.mktemp("versions")
    return [variant(small_artifact(), folder, mark) for mark in range(3)]
