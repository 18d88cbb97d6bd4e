"""Parts of the tests of the stack: a Serve application that does nothing, and homes whose processes are counted."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.processes import end
from deployments.progress import Notice
from deployments.state import RunFolder, StackState
from features.settings import Settings

NOOP_MODULE = """
from fastapi import FastAPI
from ray import serve

api = FastAPI()


@serve.deployment(max_ongoing_requests=10, ray_actor_options={"num_cpus": 0})
class Inner:
    async def __call__(self) -> int:
        return os.getpid()


@serve.deployment(max_ongoing_requests=10, ray_actor_options={"num_cpus": 0})
@serve.ingress(api)
class Outer:
    def __init__(self, inner, arguments):
        self.inner, self.arguments = inner, arguments

    @api.get("/readyz")
    async def ready(self):
        return {"inner": await self.inner.remote(), **self.arguments}


def build(arguments: dict):
    return Outer.bind(Inner.bind(), arguments)
"""

NOOP_PLACEMENT = """
proxy_location: HeadOnly
http_options: {host: 127.0.0.1}
applications:
  - name: noop
    route_prefix: /
    import_path: playhead_noop:build
"""


class Notices:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Notice] = []

    def tell(self, notice: Notice) -> None:
        self.told.append(notice)

    def texts(self, phase: str) -> list[str]:
        return [notice.text for notice in self.told if notice.phase == phase]


@pytest.fixture
def notices() -> Notices:
    return Notices()


@pytest.fixture
def home_settings(tmp_path: Path) -> Settings:
    """Settings of a home in which nothing is there yet, and no store of which is known."""
    home = tmp_path / "home"
    return Settings(home=home, redis_url="redis://127.0.0.1:1/0", feast_registry=str(home / "feast" / "registry.db"))


@pytest.fixture
def noop_placement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A placement of a Serve application with two deployments; Ray's workers find its module by PYTHONPATH."""
    folder = tmp_path / "noop"
    folder.mkdir()
    (folder / "playhead_noop.py").write_text("import os\n" + NOOP_MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = folder / "noop.yaml"
    path.write_text(NOOP_PLACEMENT)
    return path


@pytest.fixture
def no_survivors(home_settings: Settings) -> Iterator[None]:
    """Ends, at the end of a test that failed half way, what its stack left behind."""
    yield
    state = StackState.read(RunFolder(home_settings.home))
    for record in state.parts.values() if state is not None else ():
        end([record], grace_s=0)
