import contextlib
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deployments import local
from deployments.network import CHOSEN_FROM, Listener, free_ports, holder, is_free, listeners, readiness, silence


@pytest.fixture
def taken():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_listening_port_is_not_free_and_its_holder_is_named(taken):
    assert not is_free(taken)
    assert f"pid {os.getpid()}" in holder(taken)


def test_a_port_taken_on_all_interfaces_is_not_free():
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        assert not is_free(server.getsockname()[1])


def test_free_ports_prefer_what_is_preferred(taken):
    (other,) = free_ports(1)
    assert free_ports(1, preferred=[taken, other]) == [other]
    ports = free_ports(20, preferred=[taken])
    assert len(set(ports)) == 20
    assert taken not in ports


def test_a_free_port_is_none_that_the_system_gives_by_itself():
    named = {free_ports(1)[0] for _ in range(50)}
    assert len(named) == 50  # nor is one named twice, though nothing has bound it yet
    span = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(span.read_text("ascii").split()[0]) if span.exists() else 32_768
    if lowest < CHOSEN_FROM.stop:
        pytest.skip(f"this system was set to give ports from {lowest} on")
    assert named <= set(range(1024, lowest))


def test_where_no_port_is_free_that_is_said(monkeypatch):
    monkeypatch.setattr("deployments.network._can_bind", lambda _port: False)
    with pytest.raises(OSError, match="fewer than 2 free ports from 20000 to 29999"):
        free_ports(2)


def test_listeners_of_a_process(taken):
    mine = [entry for entry in listeners([os.getpid()]) if entry.port == taken]
    assert [(entry.address, entry.pid) for entry in mine] == [("127.0.0.1", os.getpid())]
    assert mine[0].local


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.7", False),
    ],
)
def test_what_others_can_reach(address, local):
    assert Listener(address, 1, None, "").local is local


@pytest.fixture
def service():
    """A service that answers what the test says, after as long as it says: (its answers, its URL)."""
    answers = {"status": 200, "after_s": 0.0}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(answers["after_s"])
            with contextlib.suppress(OSError):  # who asked may not have waited
                self.send_response(answers["status"])
                self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield answers, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [200, 404, 500, 503])
def test_any_http_answer_breaks_the_silence(service, status):
    answers, url = service
    answers["status"] = status
    assert silence(url) is None
    assert (readiness(url) is None) == (status == 200)


def test_a_late_answer_breaks_the_silence_in_time_only(service):
    answers, url = service
    answers["after_s"] = 0.3
    assert silence(url, timeout_s=5) is None
    assert "timed out" in silence(url, timeout_s=0.05)


def test_nobody_and_one_who_speaks_no_http_are_silent():
    (nobody,) = free_ports(1)
    assert "refused" in silence(f"http://127.0.0.1:{nobody}")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def hang_up():
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert silence(url)
        assert readiness(url)
        thread.join()


class TestVigil:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch):
        monkeypatch.setattr(local, "_SILENCE_S", 0.3)

    @pytest.fixture
    def told(self):
        return []

    @pytest.fixture
    def vigil(self, told):
        return local.Vigil(told.append)

    @staticmethod
    def watched(vigil, url, failure="", seconds=1.0):
        """The first reason for a restart within a time well over the silence that is allowed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if (found := vigil.look(url, failure)) is not None:
                return found
            time.sleep(0.02)
        return None

    def test_overload_is_told_and_left_alone(self, service, vigil, told):
        answers, url = service
        answers["status"] = 503
        assert self.watched(vigil, url) is None
        assert len(told) == 1
        assert "503" in told[0]
        answers["status"] = 200
        assert vigil.look(url, "") is None
        assert told[1:] == ["takes traffic again"]

    def test_silence_is_borne_for_a_while_and_then_ends_in_a_restart(self, vigil):
        (nobody,) = free_ports(1)
        assert vigil.look(f"http://127.0.0.1:{nobody}", "") is None
        assert "refused" in self.watched(vigil, f"http://127.0.0.1:{nobody}")

    def test_what_serve_calls_failed_is_started_again_though_its_ingress_answers(self, service, vigil):
        answers, url = service
        answers["status"] = 503
        assert self.watched(vigil, url, "UNHEALTHY: no replica starts") == "UNHEALTHY: no replica starts"

    def test_what_takes_traffic_is_left_alone_whatever_serve_says(self, service, vigil, told):
        assert self.watched(vigil, service[1], "UNHEALTHY: one of many replicas") is None
        assert told == []
