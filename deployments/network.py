"""Ports of this machine: which are free, who holds one, which are open to others, and who answers."""

import errno
import http.client
import itertools
import secrets
import socket
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import psutil

LOOPBACK: Final = "127.0.0.1"
CHOSEN_FROM: Final = range(20_000, 30_000)
"""Above Ray's workers (to 19,999), below Serve's replicas (from 30,000) and below what Linux (from 32,768) and macOS
(from 49,152) give by themselves to connections and to whoever binds port 0."""

_walk: Final = itertools.count(secrets.randbelow(len(CHOSEN_FROM)))


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket.

    Attributes:
        address: where it is bound, an IP address.
        port: its port.
        pid: whose it is; None where the system does not tell.
        name: that process's name; empty where unknown.
    """

    address: str
    port: int
    pid: int | None
    name: str

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.address.removeprefix("::ffff:").startswith("127.") or self.address == "::1"


def is_free(port: int) -> bool:
    """Whether 127.0.0.1:port can be bound now."""
    return _can_bind(port) and not any(listener.port == port for listener in listeners())


def free_ports(count: int, *, preferred: Iterable[int] = ()) -> list[int]:
    """Ports that nothing listens on: the preferred ones that are free, then some of `CHOSEN_FROM`.

    What listens only a minute later (HAProxy starts after Ray) finds its port free still: the system gives none of that
    range to anybody by itself, and of our processes each walks through it from a place of its own.

    Args:
        count: how many.
        preferred: tried first, in order.

    Raises:
        OSError: fewer are free.
    """
    found = [port for port in preferred if is_free(port)][:count]
    taken = {listener.port for listener in listeners()}  # once: it looks at every process of the machine
    for _ in CHOSEN_FROM:
        if len(found) >= count:
            return found
        port = CHOSEN_FROM[next(_walk) % len(CHOSEN_FROM)]
        if port not in found and port not in taken and _can_bind(port):
            found.append(port)
    raise OSError(errno.EADDRINUSE, f"fewer than {count} free ports from {CHOSEN_FROM[0]} to {CHOSEN_FROM[-1]}")


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def listeners(pids: Iterable[int] | None = None) -> list[Listener]:
    """Listening TCP sockets, of some processes or of all that the system tells us about."""
    wanted = None if pids is None else set(pids)
    found = []
    for pid in psutil.pids() if wanted is None else wanted:
        try:
            process = psutil.Process(pid)
            connections = process.net_connections(kind="tcp")
            name = process.name()
        except (psutil.Error, OSError):
            continue
        found += [
            Listener(connection.laddr.ip, connection.laddr.port, pid, name)
            for connection in connections
            if connection.status == psutil.CONN_LISTEN
        ]
    return found


def holder(port: int) -> str:
    """Who listens on a port, for people: `python (pid 123)`; words for a process that the system does not show us."""
    for listener in listeners():
        if listener.port == port and listener.pid is not None:
            return f"{listener.name} (pid {listener.pid})"
    return "a process of another user"


def open_url(url: str, timeout_s: float, posted: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
    """Ask by HTTP, never through the proxy that the environment may name: this machine's own services are behind none.

    Args:
        url: what to ask for.
        timeout_s: the longest wait.
        posted: JSON, the body of a POST; None: GET.
        headers: sent as well.

    Raises:
        urllib.error.HTTPError: the answer is a refusal.
        OSError: there is no answer.
    """
    said = {**(headers or {}), **({} if posted is None else {"Content-Type": "application/json"})}
    request = urllib.request.Request(url, posted, said)  # noqa: S310 - our own service's
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout_s)


def readiness(url: str, *, timeout_s: float = 2.0) -> str | None:
    """Ask a service whether it takes traffic; None if it does, else why not."""
    try:
        with open_url(f"{url}/readyz", timeout_s) as answer:
            return None if answer.status == 200 else f"status {answer.status}"
    except urllib.error.HTTPError as error:
        return f"status {error.code}: {error.read(300).decode(errors='replace')}"
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def silence(url: str, *, timeout_s: float = 10.0) -> str | None:
    """Ask a service whether anybody answers there at all; None for any HTTP answer, be it a refusal, else why not."""
    try:
        with open_url(f"{url}/healthz", timeout_s):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return None
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
