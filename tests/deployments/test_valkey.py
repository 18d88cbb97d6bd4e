import contextlib
import os

import psutil
import pytest
import redis

from deployments.network import free_ports
from deployments.processes import end
from deployments.state import RunFolder, StackError
from deployments.valkey import ping, start_valkey, url_of, wait_loaded


@pytest.fixture
def store(tmp_path):
    folder, (port,) = RunFolder(tmp_path), free_ports(1)
    children = []

    def run():
        child = start_valkey(folder, port, dict(os.environ))
        children.append(child)
        wait_loaded(child, folder, port)
        return child, url_of(port)

    yield run
    for child in children:
        end([child.record], grace_s=2)
        child.popen.wait()


def client(url):
    return contextlib.closing(redis.Redis.from_url(url, socket_timeout=5, decode_responses=True))


def test_what_was_acknowledged_survives_a_kill(store):
    child, url = store()
    with client(url) as first:
        first.set("key", "value")
    child.popen.kill()
    child.popen.wait()
    assert ping(url) is not None
    _, url = store()
    with client(url) as second:
        assert second.get("key") == "value"
        assert second.config_get("appendonly") == {"appendonly": "yes"}
        assert second.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_it_listens_on_this_machine_only(store):
    child, _ = store()
    addresses = {
        entry.laddr.ip for entry in psutil.Process(child.popen.pid).net_connections() if entry.status == "LISTEN"
    }
    assert addresses == {"127.0.0.1"}


def test_a_damaged_file_is_refused_with_the_servers_words(store, tmp_path):
    child, url = store()
    with client(url) as first:
        first.set("key", "value" * 100)
    end([child.record], grace_s=5)
    child.popen.wait()
    (tmp_path / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(StackError) as caught:
        store()
    assert caught.value.field == "valkey"
    assert "manifest" in caught.value.got
    assert str(tmp_path / "valkey") in caught.value.next_step


def test_ping_says_why_not():
    (port,) = free_ports(1)
    assert "refused" in str(ping(url_of(port)))
    assert ping("nonsense://x") is not None
