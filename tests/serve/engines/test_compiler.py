"""Graphs that another process compiles: the same engines, its end costs an error, and it gives way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from serve.artifacts import Artifact, Manifest
from serve.engines import compiler, load_engine
from serve.engines.compiler import (
    NICENESS,
    NICENESS_VARIABLE,
    Compiler,
    Graph,
    compiling_by,
    imported,
    load_niceness,
    taking_turns,
)
from serve.engines.openvino import OpenVinoEngine
from serve.errors import ArtifactError, InvalidInput
from tests.contracts.small_model import example, resealed_artifact, small_artifact
from tests.waiting import wait_for


def graph(artifact: Artifact, name: str = "encoder", **fields: object) -> Graph:
    given = {
        "xml": artifact.read_bytes(f"openvino/{name}.xml"),
        "weights": artifact.read_bytes(f"openvino/{name}.bin"),
        "shapes": None,
        "options": {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1},
    }
    return Graph(**given | fields)  # type: ignore[arg-type]


@contextmanager
def compiling_beside() -> Iterator[None]:
    with closing(Compiler(load_niceness())) as one, compiling_by(one):
        yield


@pytest.fixture
def beside() -> Iterator[Compiler]:
    one = Compiler(NICENESS)
    yield one
    one.close()


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if Path(compiler.__file__).name in " ".join(one.cmdline())]


@pytest.mark.parametrize("name", ["encoder", "ranker", "titles"])
def test_an_engine_that_was_compiled_beside_answers_alike(name: str) -> None:
    artifact = small_artifact()
    inputs = example(name, batch=2, time=7)
    here = load_engine(artifact, name, "cpu")
    with compiling_beside():
        there = load_engine(artifact, name, "cpu")
        assert len(children()) == 1
    assert not children(), "it ends with the block"
    for answer in (there(inputs), there.sibling()(inputs)):
        for output, expected in here(inputs).items():
            np.testing.assert_array_equal(answer[output], expected)


def test_the_process_that_compiled_a_graph_runs_it_as_long_as_it_is_there() -> None:
    artifact = small_artifact()
    inputs, other = example("encoder", batch=2, time=7), example("encoder", batch=1, time=5)
    table = inputs.pop("table")
    del other["table"]
    here = load_engine(artifact, "encoder", "cpu")
    with compiling_beside():
        there = load_engine(artifact, "encoder", "cpu")
        engines = [there.bind({"table": table}), there.sibling().bind({"table": 2 * table})]
        (process,) = children()
        before = process.cpu_times()
        for engine, bound in zip(engines, (table, 2 * table), strict=True):
            for given in (inputs, other, inputs):
                expected = here({**given, "table": bound})["state"]
                np.testing.assert_allclose(engine.run_beside(given)["state"], expected, atol=1e-5)
        for _ in range(200):
            engines[0].run_beside(inputs)
        assert sum(process.cpu_times()[:2]) > sum(before[:2])
        with pytest.raises(InvalidInput, match="titles"):
            engines[0].run_beside({**inputs, "titles": inputs["titles"].astype(np.float32)})
        rebound = engines[0].bind({"table": 3 * table})
        expected = here({**inputs, "table": 3 * table})["state"]
        np.testing.assert_allclose(rebound.run_beside(inputs)["state"], expected, atol=1e-5)
        process.kill()
        process.wait()
        with pytest.raises(RuntimeError, match="ended with"):
            rebound.run_beside(inputs)
        np.testing.assert_array_equal(
            rebound.run_beside(inputs)["state"], rebound(inputs)["state"]
        )  # here, from now on
    np.testing.assert_array_equal(engines[1].run_beside(inputs)["state"], engines[1](inputs)["state"])


def test_what_a_failed_run_was_given_is_not_what_the_next_one_goes_by() -> None:
    artifact = small_artifact()
    inputs = example("encoder", batch=2, time=7)
    table = inputs.pop("table")
    with compiling_beside():
        engine = load_engine(artifact, "encoder", "cpu")
        assert isinstance(engine, OpenVinoEngine)
        one = engine.bind({"table": table})
        expected = one.run_beside(inputs)["state"]
        assert engine._beside is not None
        with pytest.raises(RuntimeError):
            engine._beside.run({**inputs, "nothing of the sort": table}, {"table": 2 * table})
        np.testing.assert_array_equal(one.run_beside(inputs)["state"], expected)


def test_a_run_that_takes_too_long_ends_the_process_and_is_made_here_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = small_artifact()
    inputs = example("encoder", batch=2, time=7)
    with compiling_beside():
        engine = load_engine(artifact, "encoder", "cpu")
        (process,) = children()
        process.suspend()
        monkeypatch.setattr(compiler, "RUN_S", 0.2)
        with pytest.raises(RuntimeError, match=r"took more than 0\.2 s"):
            engine.run_beside(inputs)
        np.testing.assert_array_equal(engine.run_beside(inputs)["state"], engine(inputs)["state"])


def test_sizes_that_are_fixed_are_fixed_beside_too() -> None:
    artifact = small_artifact()
    sizes = {"B": 1, "T": 7}
    with compiling_beside():
        there = load_engine(artifact, "encoder", "cpu", sizes=sizes)
    inputs = example("encoder", batch=1, time=7)
    expected = load_engine(artifact, "encoder", "cpu", sizes=sizes)(inputs)["state"]
    np.testing.assert_array_equal(there(inputs)["state"], expected)
    assert there.spec.limits["T"] == (7, 7)


def test_what_openvino_cannot_read_is_refused_and_the_next_is_compiled(tmp_path: Path) -> None:
    def garble(path: Path, manifest: Manifest) -> Manifest:
        (path / "openvino" / "encoder.xml").write_text("<net>")
        return manifest

    artifact = resealed_artifact(small_artifact(), tmp_path, garble)
    with compiling_beside():
        with pytest.raises(ArtifactError, match=r"files\.openvino/encoder\.xml"):
            load_engine(artifact, "encoder", "cpu")
        (process,) = children()
        load_engine(artifact, "ranker", "cpu")
        assert children() == [process]


def test_a_process_that_is_killed_is_an_error_and_another_one_takes_over(beside: Compiler) -> None:
    one = graph(small_artifact())
    first = beside.compile(one)
    (process,) = children()
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(RuntimeError, match="the process that compiles ended with -9"):
        beside.compile(one)
    assert imported(beside.compile(one).content, one.options).outputs
    assert imported(first.content, one.options).outputs


def test_one_that_takes_too_long_is_ended() -> None:
    slow = Compiler(0, deadline_s=0.001)
    with pytest.raises(RuntimeError, match=r"took more than 0\.001 s"):
        slow.compile(graph(small_artifact()))
    assert not children()


def test_one_that_was_closed_starts_no_other(beside: Compiler) -> None:
    beside.compile(graph(small_artifact()))
    beside.close()
    with pytest.raises(RuntimeError, match="given up"):
        beside.compile(graph(small_artifact()))
    assert not children()


def test_it_does_not_outlive_who_asks() -> None:
    script = (
        "import os, subprocess\n"
        "from serve.engines.compiler import Compiler\n"
        "one = Compiler(0)\n"
        "process = one._running()\n"
        "print(process.pid, flush=True)\n"
        "pipe = process.stdin.fileno()\n"  # held open, so that only the end of the parent tells
        "subprocess.Popen(['sleep', '20'], stdout=subprocess.DEVNULL, pass_fds=[pipe])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60, check=False)
    compiling = int(answer.stdout.split()[0])
    wait_for(lambda: not psutil.pid_exists(compiling) or psutil.Process(compiling).status() == psutil.STATUS_ZOMBIE, 15)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="sessions have priorities on Linux alone")
@pytest.mark.parametrize(("given", "added"), [("0", 0), ("3", 3), ("much", NICENESS), ("-5", 0)])
def test_it_gives_way(monkeypatch: pytest.MonkeyPatch, given: str, added: int) -> None:
    monkeypatch.setenv(NICENESS_VARIABLE, given)
    own = psutil.Process().nice()
    with compiling_beside():
        load_engine(small_artifact(), "ranker", "cpu")
        (process,) = children()
        assert process.nice() == min(own + added, 19)
        assert os.getsid(process.pid) == process.pid, "it would lower its parent's session else"
        autogroup = Path(f"/proc/{process.pid}/autogroup")
        if added and autogroup.exists():
            assert autogroup.read_text().split()[-1] == str(min(own + added, 19))
    assert psutil.Process().nice() == own


def test_it_starts_with_little() -> None:
    script = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*sorted(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-P", "-c", script, compiler.__file__], capture_output=True, text=True, timeout=60, check=True
    )
    heavy = {"numpy", "openvino", "pyarrow", "pydantic", "serve.engines", "serve.artifacts"}
    assert not heavy & set(answer.stdout.split())


def test_what_is_done_beside_answers_rests_as_long_as_it_took(
    beside: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    monkeypatch.setattr(compiler.time, "sleep", rests.append)
    artifact = small_artifact()
    load_engine(artifact, "encoder", "cpu").sibling()
    assert not rests, "nobody is waited for"
    with compiling_by(beside):
        engine = load_engine(artifact, "encoder", "cpu")
        n_rests = len(rests)
        engine.sibling()
        with taking_turns():
            until_s = time.thread_time() + 0.05
            while time.thread_time() < until_s:
                pass
    assert n_rests >= 2, "what was compiled is read, and tried out"
    assert len(rests) == n_rests + 2
    assert rests[-1] >= 0.05
