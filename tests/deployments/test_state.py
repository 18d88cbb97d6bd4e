import subprocess
import sys

from deployments.processes import ProcessRecord
from deployments.state import RunFolder, StackLock, StackState, service_url

HOLDER = """
import sys
from pathlib import Path
from deployments.state import RunFolder, StackLock
lock = StackLock(RunFolder(Path(sys.argv[1])))
print(lock.take(), flush=True)
sys.stdin.read()
"""


def state() -> StackState:
    return StackState(
        supervisor=ProcessRecord("supervisor", 7, 1.5),
        url="http://127.0.0.1:8123",
        placement="local",
        data="ml-100k",
        redis_url="redis://127.0.0.1:6399/0",
        parts={"valkey": ProcessRecord("valkey", 8, 2.5)},
        phases={"valkey": 0.25},
    )


def test_state_is_read_as_it_was_written(tmp_path):
    folder = RunFolder(tmp_path)
    assert StackState.read(folder) is None
    state().write(folder)
    assert StackState.read(folder) == state()
    assert service_url(tmp_path) == "http://127.0.0.1:8123"


def test_a_state_of_another_shape_is_no_state(tmp_path):
    folder = RunFolder(tmp_path)
    folder.run.mkdir()
    for text in ("", "{", "[]", '{"url": "x"}', '{"supervisor": 3}', "\x00"):
        folder.state.write_text(text)
        assert StackState.read(folder) is None


def test_one_holder_at_a_time_and_none_after_its_death(tmp_path):
    folder, mine = RunFolder(tmp_path), StackLock(RunFolder(tmp_path))
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert mine.holder() == other.pid
        assert not mine.take()
        other.kill()
        other.wait()
    assert mine.holder() is None
    assert mine.take()
    assert not StackLock(folder).take()
    mine.release()
    assert StackLock(folder).holder() is None
