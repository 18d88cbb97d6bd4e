"""Changes of outages reach the operator's address in order, signed, and again until they are taken."""

import asyncio
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

from serve.errors import InvalidInput
from serve.watchtower import board, leases, webhook
from serve.watchtower.webhook import Webhook, WebhookSettings
from tests.waiting import wait_for


@dataclass
class Receiver:
    """Takes what it is sent, after the statuses that it is told to answer first; a body may come for some time."""

    statuses: list[int] = field(default_factory=list)
    taken: list[tuple[str, bytes, str]] = field(default_factory=list)
    asked: int = 0
    drip_s: float = 0.0
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
            until = time.monotonic() + state.drip_s
            while time.monotonic() < until:
                try:
                    self.wfile.write(b"x" * 1000)
                except OSError:
                    return
                time.sleep(0.01)

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
def telling(store: redis.Redis, receiver: Receiver) -> Iterator[Callable[..., threading.Event]]:
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


def change(store: redis.Redis, number: int) -> None:
    store.xadd(board.LOG, {board.CHANGE: b'{"change": %d}' % number})


def test_changes_come_in_order_signed_and_again_until_taken(
    store: redis.Redis, receiver: Receiver, telling: Callable[..., threading.Event], monkeypatch: pytest.MonkeyPatch
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
    store: redis.Redis, receiver: Receiver, telling: Callable[..., threading.Event], monkeypatch: pytest.MonkeyPatch
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
    store: redis.Redis, receiver: Receiver, telling: Callable[..., threading.Event]
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


def test_nobody_there_is_waited_for(store: redis.Redis) -> None:
    hook = Webhook(store, WebhookSettings(address="http://127.0.0.1:9/"), "one")
    with asyncio.Runner() as runner:
        assert hook.step(runner) == 0.5
        change(store, 1)
        pauses = [hook.step(runner) for _ in range(8)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


@pytest.mark.parametrize(
    "address",
    ["ftp://a/b", "nonsense", "http://", "file:///etc/passwd", "http://a/b\n", " http://a/b", "http://a b/",
     "http://a:99999/", "http://[::1", "http://a/\x00"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="PLAYHEAD_OUTAGE_WEBHOOK") as refused:
        WebhookSettings.from_env({webhook.ADDRESS_VARIABLE: address})
    assert repr(address) in str(refused.value)
    assert WebhookSettings.from_env({}) is None
    found = WebhookSettings.from_env({webhook.ADDRESS_VARIABLE: "https://a/b", webhook.SECRET_VARIABLE: "s"})
    assert found == WebhookSettings(address="https://a/b", secret="s")


@pytest.fixture
def dripping() -> Iterator[str]:
    """Address of a receiver whose answer comes byte by byte and never ends."""
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            while not stop.is_set():
                try:
                    self.wfile.write(b"H")
                except OSError:
                    return
                time.sleep(0.02)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.timed
def test_a_receiver_that_never_ends_is_given_up_in_time_and_the_role_is_kept(
    store: redis.Redis, dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_DEADLINE_S", 1.0)
    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    monkeypatch.setattr(leases, "LEASE_MS", 400)
    hook = Webhook(store, WebhookSettings(address=dripping), "one")
    with asyncio.Runner() as runner:
        hook.step(runner)
        change(store, 1)
        monkeypatch.setattr(webhook, "MOST_TRIES", 1)
        began = time.monotonic()
        assert hook.step(runner) == 0.0, "given up, with the lease"
        assert 0.9 < time.monotonic() - began < 5
    assert store.get(board.state_key(board.WEBHOOK_ROLE)) == store.xrange(board.LOG)[-1][0]


@pytest.mark.timed
def test_no_more_is_read_of_an_answer_than_its_status(
    store: redis.Redis, receiver: Receiver, telling: Callable[..., threading.Event]
) -> None:
    telling()
    wait_for(lambda: store.get(board.state_key(board.WEBHOOK_ROLE)))
    receiver.drip_s = 20
    began = time.monotonic()
    for number in (1, 2):
        change(store, number)
    wait_for(lambda: len(receiver.taken) == 2)
    assert time.monotonic() - began < 5
    assert receiver.asked == 2


def test_nothing_ends_the_telling(
    store: redis.Redis, receiver: Receiver, telling: Callable[..., threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(webhook, "_LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(webhook, "MOST_TRIES", 2)
    sound, bad = Webhook._send, [1, 1]

    async def send(self: Webhook, name: str, body: bytes) -> int:
        if bad:
            raise httpx.InvalidURL(str(bad.pop()))
        return await sound(self, name, body)

    monkeypatch.setattr(Webhook, "_send", send)
    telling()
    wait_for(lambda: store.get(board.state_key(board.WEBHOOK_ROLE)))
    change(store, 1)
    wait_for(lambda: not bad)
    broken = [1]

    def step(self: Webhook, runner: asyncio.Runner) -> float:
        if broken:
            raise ValueError(broken.pop())
        return whole(self, runner)

    whole = Webhook.step
    monkeypatch.setattr(Webhook, "step", step)
    change(store, 2)
    wait_for(lambda: receiver.taken)
    assert (broken, [body for _, body, _ in receiver.taken]) == ([], [b'{"change": 2}'])
