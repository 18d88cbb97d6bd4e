"""`make bench`: brings the no-op app, the naive graph and Playhead up, measures them in turns, and ends them again.

`python -m deployments.bench --bitrate` does the same for bitrate decisions, beside the no-op app.

Playhead runs with a home folder of its own (`<home>/bench`) and an embedded store, so that the benchmark's made-up
events never reach the real event log; data sets and models are the real home's.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from deployments import loopback
from deployments.cluster import ray_environment
from deployments.local import Stack, StackOptions
from deployments.network import free_ports
from deployments.progress import TerminalReporter
from deployments.state import StackError
from features.errors import ExplainedError
from features.settings import Settings
from loadtests.bench import NAIVE, NOOP, PLAYHEAD, BenchReport, EngineAlone, RedisAlone, run_rounds
from loadtests.bitrate import SINGLE, BitrateReport, PolicyAlone, run_bitrate_rounds
from loadtests.scenario import Audience
from serve.arguments import TOKEN_VARIABLE
from serve.artifacts import read_champion

STARTING_DEADLINE_S: Final = 240.0
ENDING_DEADLINE_S: Final = 60.0
REMOVAL_DEADLINE_S: Final = 10.0
BENCH: Final = "bench"
"""Folder in a home, of benchmarks' own home."""

_PACKAGES: Final = ("ray", "feast", "torch", "openvino", "fastapi", "redis")
_INGRESS_FLAGS: Final = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")


@contextmanager
def peer(name: str, *, args: Mapping[str, str], fast_ingress: bool) -> Iterator[str]:
    """One peer on a Ray of its own while the context lasts; its base URL.

    Args:
        name: `noop` or `naive`.
        args: the application's.
        fast_ingress: HAProxy and the throughput flag, as Playhead has; else Serve's defaults.

    Raises:
        StackError: it did not come up in time.
    """
    temp = Path(tempfile.mkdtemp(prefix="playhead-", dir="/tmp" if Path("/tmp").is_dir() else None))  # noqa: S108
    flags = ray_environment(temp)
    unwanted = {"PROMETHEUS_MULTIPROC_DIR"} if fast_ingress else {"PROMETHEUS_MULTIPROC_DIR", *_INGRESS_FLAGS}
    flags = {key: value for key, value in flags.items() if key not in unwanted}  # the metrics are Playhead's own
    port = free_ports(1)[0]
    log = temp / "host.log"
    command = [sys.executable, "-m", "loadtests.peers.host", name, "--port", str(port), "--temp", str(temp / "ray")]
    command += ["--args", json.dumps(dict(args)), "--hook", loopback.HOOK]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            bufsize=0,  # select must see all that was not read yet
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            env={**os.environ, **flags},
        )
    try:
        _wait_ready(name, process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(ENDING_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        deadline = time.monotonic() + REMOVAL_DEADLINE_S
        while temp.exists() and time.monotonic() < deadline:  # Ray's processes write logs until their very end
            shutil.rmtree(temp, ignore_errors=True)
            time.sleep(0.05)


def _wait_ready(name: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Read the peer's output until it says that it answers."""
    assert process.stdout is not None
    deadline = time.monotonic() + STARTING_DEADLINE_S
    while (left_s := deadline - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], min(left_s, 1.0))[0]:
            continue
        line = process.stdout.readline()
        if line.startswith(b'{"ready"'):
            return
        if not line:
            break
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
    raise StackError(
        field=name, got=" / ".join(lines[-3:]), expected="a peer that answers", next_step="Mend that first."
    )


def bench_settings(settings: Settings) -> Settings:
    """Settings of a home folder inside the real one: its own store and state, the real data sets and models."""
    home = settings.home / BENCH
    home.mkdir(parents=True, exist_ok=True)
    for shared in (settings.datasets, settings.models):
        shared.mkdir(parents=True, exist_ok=True)
        link = home / shared.name
        if not link.is_symlink():
            link.symlink_to(shared, target_is_directory=True)
    return replace(settings, home=home, feast_registry=str(home / "feast" / "registry.db"))


def facts(*, seed: int, seconds: float, model: str, data: str) -> dict[str, object]:
    """What another run needs to compare: seed, versions, commit, machine."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10, check=False
    )
    return {
        "seed": seed,
        "seconds_a_measurement": seconds,
        "data": data,
        "model": model,
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "cores": os.cpu_count() or 0,
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES),
    }


@contextmanager
def playhead(settings: Settings, *, data: str, console: Console) -> Iterator[tuple[Settings, Stack, ExitStack]]:
    """Playhead in a home folder of its own, up while the context lasts; what is added to the stack ends before it.

    Args:
        settings: the real home's.
        data: name of the data set.
        console: where progress is shown.

    Raises:
        ExplainedError: it could not be brought up; nothing of it is left running.
    """
    own = bench_settings(settings)
    os.environ.pop(TOKEN_VARIABLE, None)  # what asks it brings none
    with ExitStack() as stack:
        reporter = TerminalReporter(console)
        stack.callback(reporter.close)
        up = Stack(own, StackOptions(port=free_ports(1)[0], data=data), reporter)
        stack.callback(shutil.rmtree, own.home / "valkey", ignore_errors=True)
        stack.callback(up.close)
        up.start()
        yield own, up, stack


def champion(settings: Settings, model: str) -> Path:
    """Folder of a model's live version.

    Raises:
        StackError: there is none.
    """
    found = read_champion(settings.models, model)
    if found is None:
        raise StackError(
            field="model", got="none", expected="a live version", next_step=f"Train one: `playhead train {model}`."
        )
    return found


def run(settings: Settings, *, data: str, rounds: int, seconds: float, seed: int, console: Console) -> BenchReport:
    """Bring everything up, measure, end everything.

    Args:
        settings: the real home's.
        data: name of the data set.
        rounds: how often each target is measured.
        seconds: measured window of each measurement.
        seed: of all draws.
        console: where progress is shown.

    Raises:
        ExplainedError: something could not be brought up or measured; nothing of it is left running.
    """
    with playhead(settings, data=data, console=console) as (own, up, stack):
        state = up.state
        dataset = own.datasets / state.data
        artifact = champion(own, "recommend")
        audience = Audience.of_dataset(dataset)
        naive_args = {
            "artifact": str(artifact),
            "titles": str(dataset / "titles.parquet"),
            "home": str(own.home),
            "redis_url": state.redis_url,
            "feast_registry": own.feast_registry,
        }
        console.print("bringing up the no-op app and the naive graph ...")
        targets = {
            PLAYHEAD: state.url,
            NOOP: stack.enter_context(peer("noop", args={}, fast_ingress=True)),
            NAIVE: stack.enter_context(peer("naive", args=naive_args, fast_ingress=False)),
        }
        store = RedisAlone(state.redis_url, audience, seed=seed)
        stack.callback(store.close)
        measured = run_rounds(
            targets,
            audience=audience,
            engine=EngineAlone(artifact, dataset, audience, seed=seed),
            store=store,
            rounds=rounds,
            seconds=seconds,
            seed=seed,
            run_id=uuid.uuid4().hex[:12],
            on_step=lambda text: console.print(f"[dim]{text}[/]"),
        )
    return BenchReport(rounds=measured, facts=facts(seed=seed, seconds=seconds, model=artifact.name, data=state.data))


def run_bitrate(
    settings: Settings, *, data: str, rounds: int, seconds: float, seed: int, console: Console
) -> BitrateReport:
    """Bring the no-op app and Playhead up, measure bitrate decisions, end everything.

    Args and errors are those of `run`.
    """
    with playhead(settings, data=data, console=console) as (own, up, stack):
        artifact = champion(own, "bitrate")
        console.print("bringing up the no-op app ...")
        targets = {SINGLE: up.state.url, NOOP: stack.enter_context(peer("noop", args={}, fast_ingress=True))}
        measured = run_bitrate_rounds(
            targets,
            policy=PolicyAlone(artifact, seed=seed),
            rounds=rounds,
            seconds=seconds,
            seed=seed,
            on_step=lambda text: console.print(f"[dim]{text}[/]"),
        )
    told = facts(seed=seed, seconds=seconds, model=artifact.name, data="drawn sessions")
    return BitrateReport(rounds=measured, facts=told)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 if everything was measured without errors, whether or not the bars are met."""
    parser = argparse.ArgumentParser(description="No-op app, naive graph and Playhead, measured in one run.")
    parser.add_argument("--data", default="ml-100k", help="name of the data set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured window of each measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bitrate", action="store_true", help="measure bitrate decisions instead of pages")
    options = parser.parse_args(arguments)
    console, settings = Console(stderr=True), Settings.from_env()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    try:
        measure = run_bitrate if options.bitrate else run
        report: BenchReport | BitrateReport = measure(
            settings,
            data=options.data,
            rounds=options.rounds,
            seconds=options.seconds,
            seed=options.seed,
            console=console,
        )
    except ExplainedError as error:
        console.print(f"[red]{error}[/]")
        return 1
    folder = settings.home / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    name = "bench-bitrate" if options.bitrate else "bench"
    (folder / f"{name}.md").write_text(report.markdown(), encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    shown = Console()
    shown.print(report.table())
    for line in report.lines():
        shown.print(line)
    shown.print(f"written to {folder / name}.md")
    sys.stdout.write(json.dumps(report.to_json()) + "\n")
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
