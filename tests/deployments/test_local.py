"""The stack with real Valkey, Ray and HAProxy, around a Serve application that does nothing."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import psutil
import pytest
import redis

from deployments import valkey
from deployments.local import Stack, StackOptions, options_json
from deployments.network import free_ports, listeners
from deployments.processes import ProcessRecord
from deployments.state import RunFolder, StackError, StackState


def parts(settings):
    """The recorded parts of a home's stack."""
    return parts_of(RunFolder(settings.home))


def parts_of(folder):
    """The same by its folder."""
    state = StackState.read(folder)
    return {} if state is None else dict(state.parts)


def members(records):
    """All living processes of recorded parts."""
    return [process for record in records.values() for process in record.session()]


def lives(process):
    """Whether a process lives on; it may end while it is asked."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.is_running()
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(autouse=True)
def nothing_left():
    """A test that fails leaves no stack to those after it."""
    yield
    for held in Held.started:
        if held.process.poll() is None:
            held.end(signal.SIGTERM)
    Held.started.clear()


class Held:
    """A stack held by a process of its own, as by `playhead up`."""

    started: ClassVar[list["Held"]] = []

    def __init__(self, settings, options):
        self.folder, self.options = RunFolder(settings.home), options
        self.folder.run.mkdir(parents=True, exist_ok=True)
        self.folder.events.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deployments.local", options_json(options)],
            env={**os.environ, "PLAYHEAD_HOME": str(settings.home)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(self)

    @property
    def told(self):
        text = self.folder.events.read_text() if self.folder.events.is_file() else ""
        return [json.loads(line) for line in text.splitlines()]

    def wait(self, condition, what, seconds=150):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, (what, self.told, self.process.stderr.read())
            assert time.monotonic() < deadline, (what, self.told)
            time.sleep(0.1)
        return found

    def ready(self):
        (state,) = self.wait(lambda: [line["ready"] for line in self.told if "ready" in line], "ready")
        return StackState.from_json(state)

    def open_ports(self):
        """Ports that it listens on at one look, none of them open to the network.

        Serve replaces HAProxy's process whenever replicas change. A look takes a while, so it may know only the process
        that has just handed its port over: what must be there is waited for, what must not be there never is.
        """
        held = [*members(parts_of(self.folder)), psutil.Process(self.process.pid)]
        found = listeners(process.pid for process in held)
        assert [entry for entry in found if not entry.local] == []
        return {entry.port for entry in found}

    def end(self, number):
        self.process.send_signal(number)
        status = self.process.wait(60)
        self.process.stderr.close()
        return status


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def answers(url):
    try:
        return get(url)
    except OSError:
        return None


@pytest.mark.stack
@pytest.mark.usefixtures("no_survivors")
def test_a_stack_serves_mends_itself_and_ends_whole(home_settings, noop_placement, monkeypatch):
    (port,) = free_ports(1)
    held = Held(home_settings, StackOptions(placement=str(noop_placement), port=port, data="d", prepare=False))
    state = held.ready()
    assert set(state.parts) == {"valkey", "ray", "sinks", "watchtower", "registry", "learner"}
    answer = get(f"{state.url}/readyz")
    assert answer.pop("inner") > 0
    assert answer == {"home": str(home_settings.home), "redis_url": state.redis_url, "dataset": "d"}

    # nothing is open to the network
    held.wait(lambda: {port, valkey_port(state)} <= held.open_ports(), "HAProxy's and Valkey's ports", 30)

    # a second one is refused, and the first does not notice
    with pytest.raises(StackError, match="already up"):
        Stack(home_settings, held.options, Silent()).start()

    # a store that dies comes back with what it had acknowledged, at the same address
    with contextlib.closing(redis.Redis.from_url(state.redis_url, socket_timeout=5)) as store:
        store.set("kept", 1)
        os.kill(state.parts["valkey"].pid, signal.SIGKILL)
        held.wait(lambda: parts(home_settings)["valkey"].pid != state.parts["valkey"].pid, "another Valkey", 20)
        held.wait(lambda: valkey.ping(state.redis_url) is None, "an answer", 20)
        assert store.get("kept") == b"1"

    # and so do the parts that work on the logs
    for name in ("sinks", "watchtower", "registry", "learner"):
        os.kill(state.parts[name].pid, signal.SIGKILL)
        held.wait(lambda name=name: parts(home_settings)[name].pid != state.parts[name].pid, f"another {name}", 20)

    # a stack that uses this one's Ray and store adds its application, and takes only that away again
    for name, value in {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{state.temporary}/token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }.items():
        monkeypatch.setenv(name, value)
    guest_placement = noop_placement.with_name("guest.yaml")
    guest_placement.write_text(noop_placement.read_text().replace("name: noop", "name: guest").replace("/", "/guest"))
    guest_settings = replace(home_settings, home=home_settings.home.with_name("guest"))
    guest = Held(
        guest_settings,
        StackOptions(
            placement=str(guest_placement),
            port=port,
            data="theirs",
            prepare=False,
            redis_url=state.redis_url,
            ray_address=state.ray_address,
        ),
    )
    guest_state = guest.ready()
    assert set(guest_state.parts) == {"ray", "sinks", "watchtower", "registry", "learner"}
    assert guest_state.url == state.url
    assert get(f"{state.url}/guest/readyz")["dataset"] == "theirs"
    assert get(f"{state.url}/readyz")["dataset"] == "d"
    assert guest.end(signal.SIGTERM) == 0
    assert members(guest_state.parts) == []
    assert valkey.ping(state.redis_url) is None
    held.wait(lambda: answers(f"{state.url}/guest/readyz") is None, "the guest's application gone", 30)
    assert get(f"{state.url}/readyz")["dataset"] == "d"

    # Ray without its raylet would answer for a while with nobody to mend it: it is started again whole
    (raylet,) = [found for found in state.parts["ray"].process().children() if found.name() == "raylet"]
    raylet.kill()
    held.wait(lambda: parts(home_settings)["ray"].pid != state.parts["ray"].pid, "another Ray", 20)
    assert members({"ray": state.parts["ray"]}) == []
    held.wait(lambda: answers(f"{state.url}/readyz"), "an answer")
    held.wait(lambda: {port, valkey_port(state)} <= held.open_ports(), "HAProxy's and Valkey's ports", 30)

    everything = members(parts(home_settings))
    assert len(everything) > 8  # Ray's many, HAProxy, replicas
    bystander = subprocess.Popen(["sleep", "60"])
    assert held.end(signal.SIGINT) == 0
    assert [process for process in everything if lives(process)] == []
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert not Path(state.temporary).exists()
    assert not held.folder.state.exists()
    assert answers(f"{state.url}/readyz") is None


@pytest.mark.stack
@pytest.mark.usefixtures("no_survivors")
def test_a_killed_run_is_cleaned_up_by_the_next_which_leaves_a_given_store_alone(
    home_settings, noop_placement, valkey_url
):
    (port,) = free_ports(1)
    options = StackOptions(placement=str(noop_placement), port=port, prepare=False)
    first = Held(home_settings, options)
    first.wait(lambda: "ray" in parts(home_settings), "Ray on its way")
    first.wait(lambda: len(parts(home_settings)["ray"].session()) > 3, "some of Ray's processes")
    left = StackState.read(first.folder)
    assert left is not None
    first.end(signal.SIGKILL)
    assert left.parts["valkey"].process() is not None

    second = Held(home_settings, StackOptions(**{**vars_of(options), "redis_url": valkey_url}))
    state = second.ready()
    assert members(left.parts) == []
    assert not Path(left.temporary).exists()
    assert any("a run that died" in line.get("text", "") for line in second.told)
    assert set(state.parts) == {"ray", "sinks", "watchtower", "registry", "learner"}
    assert get(f"{state.url}/readyz")["redis_url"] == valkey_url
    assert second.end(signal.SIGTERM) == 0
    assert members(state.parts) == []
    assert valkey.ping(valkey_url) is None


def test_a_taken_port_is_refused_by_its_holder(home_settings, noop_placement, notices):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        stack = Stack(home_settings, StackOptions(placement=str(noop_placement), port=port, prepare=False), notices)
        with pytest.raises(StackError) as caught:
            stack.start()
        stack.close()
    assert caught.value.field == f"port {port}"
    assert f"pid {os.getpid()}" in caught.value.got
    assert "--port" in caught.value.next_step
    assert parts(home_settings) == {}


def test_a_given_store_that_does_not_answer_is_refused(home_settings, noop_placement, notices):
    port, nobody = free_ports(2)
    options = StackOptions(
        placement=str(noop_placement), port=port, prepare=False, redis_url=f"redis://:secret@127.0.0.1:{nobody}/0"
    )
    stack = Stack(home_settings, options, notices)
    with pytest.raises(StackError, match="refused") as caught:
        stack.start()
    stack.close()
    assert caught.value.field == "REDIS_URL"
    assert "secret" not in str(caught.value)


def test_a_signal_while_it_starts_ends_it(home_settings, noop_placement):
    (port,) = free_ports(1)
    held = Held(home_settings, StackOptions(placement=str(noop_placement), port=port, prepare=False))
    held.wait(lambda: "ray" in parts(home_settings), "Ray on its way")
    records = parts(home_settings)
    assert held.end(signal.SIGTERM) == 130
    assert members(records) == []
    assert not held.folder.state.exists()


class Silent:
    def tell(self, notice):
        pass


def valkey_port(state):
    return int(state.redis_url.rpartition(":")[2].partition("/")[0])


def vars_of(options):
    return {name: getattr(options, name) for name in options.__slots__}


def test_a_part_that_dies_again_and_again_rests_longer_and_ends_nothing(home_settings, monkeypatch):
    stack = Stack(home_settings, StackOptions(prepare=False), Silent())
    started = []
    monkeypatch.setattr(stack, "_start_worker", started.append)
    monkeypatch.setattr(stack, "_write_state", lambda: None)
    dead = SimpleNamespace(record=ProcessRecord.of("watchtower", os.getpid()), log="watchtower.log")
    monkeypatch.setattr("deployments.local.processes.end", lambda *_, **__: [])
    stack._children["watchtower"] = stack._children["ray"] = dead
    rests = []
    for _ in range(9):
        stack._restart("watchtower", "ended")
        rests.append(round(stack._resting["watchtower"] - time.monotonic()))
    assert started == ["watchtower"] * 9
    assert rests == [0] * 5 + [32, 60, 60, 60]
    monkeypatch.setattr(stack, "_start_cluster", lambda: None)
    monkeypatch.setattr(stack, "_serve", lambda: None)
    for _ in range(5):
        stack._restart("ray", "ended")
    with pytest.raises(StackError, match="6 times"):
        stack._restart("ray", "ended")
