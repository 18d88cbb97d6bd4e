"""Changes of outages reach the operator's address in order, signed, and again until they are taken."""

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import redis

from features.settings import Settings
from serve.errors import InvalidInput
from serve.watchtower import board, webhook
from serve.watchtower.webhook import Webhook, WebhookSettings


@dataclass
class Receiver:
    """Takes what it is sent, after the statuses that it is told to answer first."""

    statuses: list[int] = field(default_factory=list)
    taken: list[tuple[str, bytes, str]] = field(default_factory=list)
    asked: int = 0
    url: str = ""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.asked += 1
            body = self.rfile.read(int(self.headers["content-length"]))
            status = state.statuses.pop(0) if state.statuses else 204
            if status == 204:
                headers = self.headers
                state.taken.append((headers["playhead-delivery"], body, headers.get("playhead-signature", "")))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(settings: Settings) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(settings.redis_url) as client:
        yield client


@pytest.fixture
def telling(store: "redis.Redis", receiver: Receiver) -> Iterator[Callable[..., threading.Event]]:
    stops: list[tuple[threading.Event, threading.Thread]] = []

    def start(name: str = "one", url: str = "") -> threading.Event:
        hook = Webhook(store, WebhookSettings(address=url or receiver.url, secret="s3cret"), name)
        stop = threading.Event()
        thread = threading.Thread(target=hook.run, args=(stop,))
        thread.start()
        stops.append((stop, thread))
        return stop

    yield start
    for stop, thread in stops:
        stop.set()
        thread.join(10)


def change(store: "redis.Redis", number: int) -> None:
    store.xadd(board.LOG, {board.CHANGE: b'{"change": %d}' % number})


def wait_for(met: Callable[[], Any], within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_changes_come_in_order_signed_and_again_until_taken(
    store: "redis.Redis", receiver: Receiver, telling: Callable[..., threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_FIRST_PAUSE_S", 0.05)
    change(store, 0)  # before the webhook was set up
    telling()
    wait_for(lambda: store.get(board.state_key(board.WEBHOOK_ROLE)))
    receiver.statuses = [503, 429, 500]
    for number in (1, 2, 3):
        change(store, number)
    wait_for(lambda: len(receiver.taken) == 3)
    assert [body for _, body, _ in receiver.taken] == [b'{"change": %d}' % number for number in (1, 2, 3)]
    assert receiver.asked == 6
    for name, body, signature in receiver.taken:
        assert signature == "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
        assert name in {entry.decode() for entry, _ in store.xrange(board.LOG)}


def test_what_is_refused_for_good_or_too_often_does_not_hold_up_the_rest(
    store: "redis.Redis", receiver: Receiver, telling: Callable[..., threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(webhook, "MOST_TRIES", 3)
    telling()
    wait_for(lambda: store.get(board.state_key(board.WEBHOOK_ROLE)))
    receiver.statuses = [400, 500, 500, 500]
    for number in (1, 2, 3):
        change(store, number)
    wait_for(lambda: receiver.taken)
    assert [body for _, body, _ in receiver.taken] == [b'{"change": 3}']


def test_another_replica_goes_on_where_one_stopped(
    store: "redis.Redis", receiver: Receiver, telling: Callable[..., threading.Event]
) -> None:
    stop = telling("one")
    wait_for(lambda: store.get(board.state_key(board.WEBHOOK_ROLE)))
    telling("two")
    change(store, 1)
    wait_for(lambda: len(receiver.taken) == 1)
    stop.set()
    change(store, 2)
    wait_for(lambda: len(receiver.taken) == 2)
    assert [body for _, body, _ in receiver.taken] == [b'{"change": 1}', b'{"change": 2}']


def test_nobody_there_is_waited_for(store: "redis.Redis") -> None:
    hook = Webhook(store, WebhookSettings(address="http://127.0.0.1:9/"), "one")
    with httpx.Client(timeout=1) as client:
        assert hook.step(client) == 0.5
        change(store, 1)
        pauses = [hook.step(client) for _ in range(8)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


@pytest.mark.parametrize("address", ["ftp://a/b", "nonsense", "http://", "file:///etc/passwd"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="PLAYHEAD_OUTAGE_WEBHOOK"):
        WebhookSettings.from_env({webhook.ADDRESS_VARIABLE: address})
    assert WebhookSettings.from_env({}) is None
    found = WebhookSettings.from_env({webhook.ADDRESS_VARIABLE: "https://a/b", webhook.SECRET_VARIABLE: "s"})
    assert found == WebhookSettings(address="https://a/b", secret="s")
