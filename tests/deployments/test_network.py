import os
import socket

import pytest

from deployments.network import Listener, free_ports, holder, is_free, listeners


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
