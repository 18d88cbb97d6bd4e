"""One small Ray for all tests of training that need one, started when the first asks for it."""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from deployments.rays import own_place
from training.jobs import connected

HOLDER = """
import json, sys
from training.jobs import RayPlace, connected
with connected(RayPlace(**json.loads(sys.argv[1])), "holder"):
    import ray
    print(json.dumps(ray.get_runtime_context().gcs_address), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="session")
def small_ray():
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
            yield ray
        holder.stdin.close()
        holder.wait(60)
    shutil.rmtree(folder, ignore_errors=True)
