import os
import socket
import time

import pytest
import redis

from deployments.doctor import (
    CHECKS,
    Circumstances,
    Verdict,
    check_disk,
    check_model,
    check_packages,
    check_policy,
    check_port,
    check_python,
    check_ray,
    check_redis,
    check_registry,
    check_stack,
    check_watchtower,
    examine,
)
from deployments.network import free_ports
from deployments.processes import ProcessRecord
from deployments.state import RunFolder, StackLock, StackState
from features.settings import Settings
from serve.artifacts import set_champion
from serve.watchtower import board
from tests.contracts.small_model import copy_of, small_artifact
from tests.serve.bitrate.small_policy import small_policy
from tests.serve.gateway.conftest import install_model


@pytest.fixture
def seen(home_settings):
    def circumstances(**changes):
        return Circumstances(**{"settings": home_settings, "environment": {}, **changes})

    return circumstances


def test_a_fresh_machine_is_told_all_that_is_missing_and_what_to_do(seen):
    (port,) = free_ports(1)
    findings = {finding.part: finding for finding in examine(seen(port=port))}
    assert set(findings) == set(CHECKS)
    wrong = {part for part, finding in findings.items() if finding.verdict is Verdict.WRONG}
    assert wrong >= {"data", "registry", "model", "policy", "stack", "redis", "ray"}
    assert "python" not in wrong
    assert all(findings[part].next_step for part in wrong)


def test_an_old_python(seen):
    finding = check_python(seen(python=(3, 10)))
    assert finding.verdict is Verdict.WRONG
    assert finding.text.startswith("3.10 at ")
    assert "PYTHON=" in finding.next_step


def test_packages_that_are_not_as_pinned(seen, tmp_path):
    pins = tmp_path / "constraints.txt"
    pins.write_text("pytest==0.0.1\nnot-installed-here==1.0\n# a comment==2\n")
    finding = check_packages(seen(constraints=pins))
    assert finding.verdict is Verdict.WRONG
    assert "pytest" in finding.text
    assert "instead of 0.0.1" in finding.text
    assert "not-installed-here" not in finding.text


def test_a_taken_port_names_its_holder(seen):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        finding = check_port(seen(port=server.getsockname()[1]))
    assert finding.verdict is Verdict.WRONG
    assert f"pid {os.getpid()}" in finding.text
    assert "--port" in finding.next_step


def test_a_store_that_is_not_there(seen):
    (port,) = free_ports(1)
    finding = check_redis(seen(environment={"REDIS_URL": f"redis://:secret@127.0.0.1:{port}/0"}))
    assert finding.verdict is Verdict.WRONG
    assert f"127.0.0.1:{port}" in finding.text
    assert "refused" in finding.text
    assert "secret" not in finding.text
    assert "REDIS_URL" in finding.next_step


def test_a_store_that_answers(seen, valkey_url):
    assert check_redis(seen(environment={"REDIS_URL": valkey_url})).verdict is Verdict.OK


def test_a_ray_that_is_not_there(seen):
    (port,) = free_ports(1)
    finding = check_ray(seen(environment={"RAY_ADDRESS": f"127.0.0.1:{port}"}))
    assert finding.verdict is Verdict.WRONG
    assert "refused" in finding.text
    assert check_ray(seen(environment={"RAY_ADDRESS": "auto"})).verdict is Verdict.WRONG


def test_a_run_that_died(seen, home_settings):
    folder = RunFolder(home_settings.home)
    state = StackState(
        supervisor=ProcessRecord("supervisor", 2**22 - 1, 1.0), url="", placement="local", data="d", redis_url=""
    )
    state.write(folder)
    finding = check_stack(seen())
    assert finding.verdict is Verdict.WRONG
    assert "died" in finding.text
    assert "playhead down" in finding.next_step
    lock = StackLock(folder)
    assert lock.take()
    assert "on its way up" in check_stack(seen()).text
    lock.release()


def test_a_registry_that_is_missing_or_old(seen, home_settings):
    assert "missing" in check_registry(seen()).text
    registry = home_settings.home / "feast" / "registry.db"
    registry.parent.mkdir(parents=True)
    registry.write_bytes(b"")
    assert "present definitions" in check_registry(seen()).text


def test_a_full_disk_is_seen_at_the_nearest_folder_that_exists(seen, home_settings):
    finding = check_disk(seen())
    assert str(home_settings.home.parent) in finding.text
    assert "GiB free" in finding.text


def test_a_missing_policy_is_named_with_the_verb_that_makes_one(seen, home_settings):
    finding = check_policy(seen())
    assert finding.verdict is Verdict.WRONG
    assert "playhead train bitrate" in finding.next_step
    install_model(home_settings.home, small_policy(), "bitrate")
    assert check_policy(seen()).verdict is Verdict.OK


def test_a_damaged_model_is_named_file_by_file(seen, home_settings, tmp_path):
    assert "no champion" in check_model(seen()).text
    artifact = small_artifact()
    path = copy_of(artifact, home_settings.models / "recommend")
    set_champion(home_settings.models, "recommend", artifact.version)
    assert check_model(seen()).verdict is Verdict.OK
    name = next(name for name in artifact.manifest.files if name.endswith(".pt2"))
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    finding = check_model(seen())
    assert finding.verdict is Verdict.WRONG
    assert name in finding.text
    assert "playhead train recommend" in finding.next_step


def test_a_check_that_breaks_does_not_hide_the_others(tmp_path):
    settings = Settings(home=tmp_path / "file" / "home", redis_url="redis://127.0.0.1:1/0", feast_registry="x")
    (tmp_path / "file").write_text("not a folder")
    findings = list(examine(Circumstances(settings=settings, environment={})))
    assert [finding.part for finding in findings] == list(CHECKS)


def test_a_watchtower_that_judges_nothing(seen, settings):
    folder = RunFolder(settings.home)
    me = ProcessRecord.of("watchtower", os.getpid())
    state = StackState(
        supervisor=me, url="http://127.0.0.1:1", placement="local", data="d", redis_url=settings.redis_url,
        parts={"watchtower": me}, ready=True,
    )  # fmt: skip
    now_ms = int(time.time() * 1000)
    state.write(folder)
    lock = StackLock(folder)
    assert lock.take()
    with redis.Redis.from_url(settings.redis_url) as store:
        store.set(board.AS_OF, now_ms - 5_000)
        finding = check_watchtower(seen(settings=settings))
        assert (finding.verdict, finding.text) == (Verdict.OK, "judged up to 5 s ago")
        began_ms = int(me.process().create_time() * 1000)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deployments.doctor.time.time", lambda: began_ms / 1000 + 200)
            store.set(board.AS_OF, began_ms + 100_000)
            finding = check_watchtower(seen(settings=settings))
        assert finding.verdict is Verdict.WRONG
        assert finding.text == "has judged nothing for 100 s"
        assert str(os.getpid()) in finding.next_step
    lock.release()
