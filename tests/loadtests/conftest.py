import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import free_port


@pytest.fixture(scope="session")
def closed_port_url() -> str:
    """URL of a port that nothing listens on."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a real server, in a process of its own, with known delays and faults."""
    port = free_port()
    process = subprocess.Popen([sys.executable, str(Path(__file__).parent / "known_server.py"), str(port)])
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    while True:
        try:
            httpx.get(f"{url}/healthz", timeout=1)
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            break
    yield url
    process.kill()  # not terminate: it would wait for answers that tests left open
    process.wait(10)
