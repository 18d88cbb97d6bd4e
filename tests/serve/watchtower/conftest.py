"""Replicas of the Watchtower as processes, and the store that they work on."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import serve
from features.settings import Settings

CODE = """
import logging, sys, threading
from features.settings import Settings
from serve.watchtower.replica import WatchtowerReplica
logging.basicConfig(level=logging.WARNING)
WatchtowerReplica(Settings.from_env(), sys.argv[1]).run(threading.Event())
"""


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts replicas as processes; those that still live are killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(name: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ, "REDIS_URL": settings.redis_url, "PLAYHEAD_HOME": str(settings.home),
            "PYTHONPATH": str(Path(serve.__file__).parents[1]),
        }  # fmt: skip
        with (tmp_path / f"{name}.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-c", CODE, name], env=environment, stderr=log)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
