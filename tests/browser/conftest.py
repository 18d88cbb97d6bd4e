"""A title, an edge, Playhead and a browser, all real. A test skips where a program or package it needs is absent."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from serve.arguments import Arguments
from tests.browser.edge import NGINX, Nginx, running_nginx
from tests.browser.playhead import PlayheadServer
from tests.browser.title import Title, make_title
from tests.conftest import ValkeyProcess
from tests.serve.conftest import make_title as make_catalogue_title
from tests.serve.gateway.conftest import install_model, write_titles
from training.bitrate.export import NAME, export_bitrate
from training.bitrate.model import BitratePolicy

HERE: Final = Path(__file__).parent
PLAYERS: Final = HERE.parents[1] / "deployments" / "players"
CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE: Final = shutil.which("node")

OpenEdge = Callable[..., AbstractContextManager[Nginx]]


@pytest.fixture(scope="session")
def _needs_nginx() -> None:
    if NGINX is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")


@pytest.fixture(scope="session")
def _needs_browser() -> None:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    if NODE is None:
        pytest.skip("node is not installed (Debian: apt-get install nodejs)")
    if not (HERE / "node_modules" / "playwright-core").is_dir():
        pytest.skip("the players are not installed (npm ci --prefix tests/browser)")


@pytest.fixture(scope="session")
def title(tmp_path_factory: pytest.TempPathFactory) -> Title:
    """The title, encoded once."""
    return make_title(tmp_path_factory.mktemp("titles") / "title")


@pytest.fixture(scope="session")
def root(_needs_nginx: None, tmp_path_factory: pytest.TempPathFactory, title: Title) -> Path:
    """What the edge serves: the title, the test pages, the players' modules and libraries."""
    folder = tmp_path_factory.mktemp("root")
    for name, path in {
        "title": title.folder,
        "page": HERE / "page",
        "players": PLAYERS,
        "npm": HERE / "node_modules",
    }.items():
        (folder / name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the real policy graph, not trained; its export takes a while."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("policy")
    return export_bitrate(folder, BitratePolicy(), metrics={}, report={}, data_snapshot="none", seed=0).path


@pytest.fixture(scope="module")
def playhead(
    _shared_valkey: ValkeyProcess, tmp_path_factory: pytest.TempPathFactory, policy: Path
) -> Iterator[PlayheadServer]:
    """A running Playhead with that policy: it plans by what its planner makes of the network."""
    home = tmp_path_factory.mktemp("home")
    write_titles(home, [make_catalogue_title(number) for number in range(1, 4)])
    install_model(home, policy, NAME)
    server = PlayheadServer(Arguments(dataset="small", home=home, redis_url=_shared_valkey.url))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def open_edge(_needs_nginx: None, tmp_path: Path, root: Path) -> OpenEdge:
    """Opens an edge that asks Playhead at a port of 127.0.0.1."""
    return lambda port, **settings: running_nginx(tmp_path / "edge", root, port, **settings)


@pytest.fixture
def edge(open_edge: OpenEdge, playhead: PlayheadServer) -> Iterator[Nginx]:
    """An edge that asks Playhead."""
    with open_edge(playhead.port) as nginx:
        yield nginx


@dataclass(frozen=True)
class Viewing:
    """What a page measured.

    Attributes:
        fetched: video segments.
        played_s: where the playhead stood at the end.
        stalls: how often it waited after the start.
        decisions: what the shipped client counted.
        answers: Playhead's to it that came in time: question, index of the segment (from 0), rung, degraded.
        told: the console, for a failed test's reader.
        sent: requests that held CMCD: method, url, headers, body, status (0: no answer).
    """

    fetched: int
    played_s: float
    stalls: int
    decisions: dict[str, int]
    answers: list[dict[str, Any]]
    told: list[str]
    sent: list[dict[str, Any]]


class Browser:
    """Headless Chromium behind a slow network."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def view(
        self,
        url: str,
        *,
        kbps: int,
        steps: Sequence[tuple[str, int]] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Viewing:
        """Watch a page until it says that it is done.

        Args:
            url: of the page.
            kbps: what the network carries.
            steps: an expression over the page, and what the network carries once it holds; in order.
            meanwhile: runs beside it.
        """
        assert NODE is not None
        given: dict[str, Any] = {
            "chromium": CHROMIUM,
            "profile": str(self._folder / "profile"),
            "url": url,
            "kbps": kbps,
            "latencyMs": 20,
            "timeoutMs": 50_000,
            "steps": [{"when": when, "kbps": after} for when, after in steps],
        }
        beside = threading.Thread(target=meanwhile)
        beside.start()
        done = subprocess.run(
            [NODE, str(HERE / "drive.mjs"), json.dumps(given)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        beside.join(60)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["error"] is None, report
        del report["error"]
        return Viewing(**report)


@pytest.fixture
def browser(_needs_browser: None, tmp_path: Path) -> Browser:
    """A browser with a profile of its own."""
    return Browser(tmp_path)
