"""A server on 127.0.0.1 that gives every request the same answer: a Playhead as it should never be, or a fixed one."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    """What came: path with query, headers by their names in lower case, body."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Answers:
    """The server.

    Attributes:
        port: where it listens.
        requests: what came so far.
    """

    port: int
    requests: list[Request] = field(default_factory=list)


@contextmanager
def answering(status: int, headers: Mapping[str, str] | None = None, body: str = "") -> Iterator[Answers]:
    """Run it.

    Args:
        status: of each answer.
        headers: of each answer.
        body: of each answer.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = {name.lower(): value for name, value in self.headers.items()}
            answers.requests.append(Request(self.path, sent, self.rfile.read(int(sent.get("content-length", 0)))))
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    answers = Answers(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
