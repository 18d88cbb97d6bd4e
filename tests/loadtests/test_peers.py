import os
import subprocess

import httpx
import psutil
import pytest

from deployments.bench import peer
from deployments.network import listeners
from loadtests.closed import drive

pytestmark = pytest.mark.stack


def descendants():
    return {process.pid for process in psutil.Process(os.getpid()).children(recursive=True)}


def test_the_no_op_app_answers_behind_haproxy_on_loopback_and_leaves_nothing():
    before = descendants()
    with peer("noop", args={}, fast_ingress=True) as url:
        assert httpx.get(url, timeout=5).json() == {}
        started = descendants() - before
        assert any("haproxy" in psutil.Process(pid).name() for pid in started)
        assert [listener for listener in listeners(started) if not listener.local] == []
        result = drive(url, [[("GET", "/v1/home?profile_id=1", None)]], concurrency=4, seconds=0.5)
        assert result.errors == {}
        assert result.exchanges_rps > 50
    psutil.wait_procs([psutil.Process(pid) for pid in started if psutil.pid_exists(pid)], timeout=20)
    assert [pid for pid in started if psutil.pid_exists(pid)] == []


def test_an_unknown_peer_is_refused():
    done = subprocess.run(
        ["python", "-m", "loadtests.peers.host", "fastest", "--port", "1", "--temp", "x"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert b"noop" in done.stderr
