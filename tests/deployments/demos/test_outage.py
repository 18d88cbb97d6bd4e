"""The demo of an outage: it fails where it showed less than it should, and goes on where single requests fail."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from deployments.demos import outage as demo
from deployments.demos.outage import DemoSettings, Viewers, require, shares
from serve.errors import Unavailable

SHOWN = {"confirmed_s": 20.0, "steered_s": 11.0, "closed_s": 349.0}


@pytest.mark.parametrize("missing", sorted(SHOWN))
def test_what_was_not_shown_is_a_failure(missing: str) -> None:
    require(SHOWN)
    with pytest.raises(Unavailable, match=missing.removesuffix("_s")):
        require(SHOWN | {missing: None})


@dataclass
class Service:
    """Steers all to the CDN that will break; fails every so many requests for it, or says nonsense."""

    url: str = ""
    fails_every: int = 3
    nonsense: dict[str, Any] = field(default_factory=dict)
    asked: int = 0


@pytest.fixture
def service() -> Iterator[Service]:
    state = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16

        def do_GET(self) -> None:
            state.asked += 1
            if state.asked % state.fails_every == 0:
                self.close_connection = True  # without an answer
            elif state.asked % state.fails_every == 1:
                self._answer(state.nonsense)
            else:
                self._answer({"PATHWAY-PRIORITY": [demo.BROKEN, "west"]})

        def do_POST(self) -> None:
            lines = self.rfile.read(int(self.headers["content-length"])).splitlines()
            self._answer({"accepted": len(lines)})

        def _answer(self, document: dict[str, Any]) -> None:
            content = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def test_shares_are_of_those_who_are_answered(service: Service) -> None:
    with httpx.Client(base_url=service.url, timeout=2) as client:
        service.fails_every = 10
        assert shares(client) == {demo.BROKEN: 1.0}
        service.fails_every = 2  # each one fails, one way or the other
        assert shares(client) == {}


def test_viewers_report_on_where_steering_fails_or_answers_nonsense(service: Service) -> None:
    service.nonsense = {"PATHWAY-PRIORITY": ["a CDN of another world"]}
    viewers = Viewers(DemoSettings(url=service.url, viewers=100), default="west")
    viewers.start()
    until = time.monotonic() + 30
    while viewers.sent.accepted < 5 and time.monotonic() < until:
        viewers.check()
        time.sleep(0.05)
    viewers.stop()
    viewers.check()
    assert viewers.sent.accepted >= 5
    assert viewers.sent.failed == 0
    assert 0 < viewers.unanswered < service.asked


def test_viewers_who_cease_to_report_are_noticed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(*_: Any, **__: Any) -> None:
        raise ValueError("gone")

    monkeypatch.setattr(demo, "send", send)
    viewers = Viewers(DemoSettings(url=service.url, viewers=100), default="west")
    viewers.start()
    viewers.stop()
    with pytest.raises(Unavailable, match="gone"):
        viewers.check()
