"""The closed-loop driver: N connections, each with one request open at all times; for throughput and bare latency.

It runs in a process of its own and costs 40 to 60 us of CPU a request (epoll, raw sockets, httptools), because on a
small machine it takes its time from the service that it measures. Closed loops hide stalls: what viewers wait under a
given load is the open-loop client's matter.

Units: latencies are milliseconds, windows seconds.
"""

import json
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any, Final
from urllib.parse import urlsplit

import httptools
import orjson

from loadtests.report import summarise
from serve.errors import Unavailable

RECEIVE_BYTES: Final = 262_144

Request = tuple[str, str, str | None]
"""Method, path and body of one request."""

JSON_TYPE: Final = "application/json"

Exchange = Sequence[Request]
"""Requests that one connection sends one after another, such as an event and the home page after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedResult:
    """What a closed loop measured, over its measured window only.

    Attributes:
        exchanges_rps: finished exchanges a second; equals requests a second where an exchange is one request.
        exchanges: how many finished.
        latencies: of the first, second, ... request of an exchange: p50_ms, p99_ms and others.
        errors: count by kind (`http_4xx`, `http_5xx`, `timeout`, `connection`).
        degraded: answers whose `degraded` was not empty.
        cpu_us_a_request: what the driver itself cost.
    """

    exchanges_rps: float
    exchanges: int
    latencies: list[dict[str, float]]
    errors: dict[str, int]
    degraded: int
    cpu_us_a_request: float


class _Connection:
    """One keep-alive connection; httptools calls its on_* methods."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.queue: Iterator[bytes] = iter(())
        self.position = 0
        self.sent_at = 0.0
        self.complete = False
        self.body: list[bytes] = []
        self.connect()

    def connect(self) -> None:
        self.socket = socket.create_connection(self.address, timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.parser = httptools.HttpResponseParser(self)

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        self.complete = True

    def send(self, data: bytes) -> None:
        self.complete = False
        self.body.clear()
        self.sent_at = time.perf_counter()
        self.socket.sendall(data)


def render(request: Request, host: str, content_type: str = JSON_TYPE) -> bytes:
    """A request's bytes on the wire."""
    method, path, body = request
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\naccept: application/json\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    payload = body.encode()
    return f"{head}content-type: {content_type}\r\ncontent-length: {len(payload)}\r\n\r\n".encode() + payload


class _Loop:
    """The loop of one measurement."""

    def __init__(
        self, address: tuple[str, int], exchanges: Sequence[Exchange], timeout_s: float, content_type: str
    ) -> None:
        host = f"{address[0]}:{address[1]}"
        rendered = [[render(request, host, content_type) for request in exchange] for exchange in exchanges]
        self.next_exchange = cycle(rendered)
        self.address, self.timeout_s = address, timeout_s
        self.poll = select.epoll()
        self.connections: dict[int, _Connection] = {}
        self.latencies_ms: list[list[float]] = [[] for _ in exchanges[0]]
        self.errors: Counter[str] = Counter()
        self.finished = self.degraded = 0

    def open(self, concurrency: int) -> None:
        for _ in range(concurrency):
            connection = _Connection(self.address)
            self.connections[connection.socket.fileno()] = connection
            self.poll.register(connection.socket, select.EPOLLIN)
            self.begin(connection)

    def begin(self, connection: _Connection) -> None:
        connection.queue, connection.position = iter(next(self.next_exchange)), 0
        connection.send(next(connection.queue))

    def replace(self, connection: _Connection, kind: str) -> None:
        """Count an error, and go on with a new connection and the next exchange."""
        self.errors[kind] += 1
        del self.connections[connection.socket.fileno()]
        self.poll.unregister(connection.socket)
        connection.socket.close()
        connection.connect()
        self.connections[connection.socket.fileno()] = connection
        self.poll.register(connection.socket, select.EPOLLIN)
        self.begin(connection)

    def receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
            if data:
                connection.parser.feed_data(data)
        except (OSError, httptools.HttpParserError):
            data = b""
        if not data:
            self.replace(connection, "connection")
            return
        if not connection.complete:
            return
        elapsed_ms = (time.perf_counter() - connection.sent_at) * 1e3
        status = connection.parser.get_status_code()
        if 200 <= status < 300:
            self.latencies_ms[connection.position].append(elapsed_ms)
            body = b"".join(connection.body)
            if b'"degraded":' in body and b'"degraded":[]' not in body:
                self.degraded += 1
        else:
            self.errors[f"http_{status // 100}xx"] += 1
        following = next(connection.queue, None)
        if following is not None:
            connection.position += 1
            connection.send(following)
        else:
            self.finished += 1
            self.begin(connection)

    def run(self, seconds: float) -> tuple[float, float]:
        """Keep all connections busy for a while; wall and CPU seconds."""
        start, cpu_start = time.perf_counter(), time.process_time()
        next_check = start + 0.5
        while (now := time.perf_counter()) - start < seconds:
            for descriptor, _ in self.poll.poll(0.25):
                self.receive(self.connections[descriptor])
            if now >= next_check:
                next_check = now + 0.5
                for connection in list(self.connections.values()):
                    if now - connection.sent_at > self.timeout_s:
                        self.replace(connection, "timeout")
        return time.perf_counter() - start, time.process_time() - cpu_start

    def forget(self) -> None:
        """Drop what the warm-up measured."""
        for values in self.latencies_ms:
            values.clear()
        self.errors.clear()
        self.finished = self.degraded = 0

    def close(self) -> None:
        for connection in self.connections.values():
            connection.socket.close()
        self.poll.close()


def drive(
    base_url: str,
    exchanges: Sequence[Exchange],
    *,
    concurrency: int,
    seconds: float,
    warmup_s: float = 1.0,
    timeout_s: float = 10.0,
    content_type: str = JSON_TYPE,
) -> ClosedResult:
    """Measure in this process; `measure` does it in a process of its own.

    Args:
        base_url: http://HOST:PORT.
        exchanges: sent in turn, from the first again after the last; all of the same number of requests.
        concurrency: connections, each with one request open.
        seconds: measured window.
        warmup_s: the same load before it, not measured.
        timeout_s: an answer that takes longer is the error `timeout`.
        content_type: of the bodies.
    """
    parts = urlsplit(base_url)
    loop = _Loop((parts.hostname or "127.0.0.1", parts.port or 80), exchanges, timeout_s, content_type)
    try:
        loop.open(concurrency)
        loop.run(warmup_s)
        loop.forget()
        wall_s, cpu_s = loop.run(seconds)
    finally:
        loop.close()
    requests = sum(len(values) for values in loop.latencies_ms)
    return ClosedResult(
        exchanges_rps=loop.finished / wall_s,
        exchanges=loop.finished,
        latencies=[summarise(values).to_json() for values in loop.latencies_ms],
        errors=dict(loop.errors),
        degraded=loop.degraded,
        cpu_us_a_request=cpu_s / max(requests, 1) * 1e6,
    )


def measure(
    base_url: str,
    exchanges: Sequence[Exchange],
    *,
    concurrency: int,
    seconds: float,
    warmup_s: float = 1.0,
    content_type: str = JSON_TYPE,
) -> ClosedResult:
    """`drive` in a process of its own.

    Raises:
        Unavailable: the driver could not measure; its last line of output says why.
    """
    job: dict[str, Any] = {"base_url": base_url, "exchanges": exchanges, "concurrency": concurrency}
    job |= {"seconds": seconds, "warmup_s": warmup_s, "content_type": content_type}
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.closed"],
        input=orjson.dumps(job),
        capture_output=True,
        timeout=seconds + warmup_s + 60,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
        raise Unavailable(
            field="closed-loop driver", got=lines[-1], expected="a measurement", next_step=f"Is {base_url} up?"
        )
    return ClosedResult(**orjson.loads(done.stdout))


def main() -> None:
    """Read a job from standard input, write the result to standard output, both JSON."""
    job = orjson.loads(sys.stdin.buffer.read())
    sys.stdout.write(json.dumps(asdict(drive(**job))) + "\n")


if __name__ == "__main__":
    main()
