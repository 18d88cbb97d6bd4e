"""Swaps of a model under load, measured: `python -m deployments.bench_swaps`.

Brings Playhead up in a home folder of its own, with two versions of the recommender that differ in name alone, and asks
for home pages in an open loop at a share of the peak, which is the highest rate of such a loop that is answered with a
p99 of PEAK_P99_MS and no failure. First nothing is changed; then, at the same rate and in one run, one version after
the other is made the champion over HTTP, one every few seconds or each once the one before is live, until the run is
about to end: no swap without load. At last nothing is changed again.
A machine that others share is another from minute to minute, so pages that are asked for while a version is swapped
are held against those between swaps, some seconds away; the minutes without swaps tell what swaps leave behind.
Reported: failed and late requests and percentiles of each kind, how many swaps there were and how long one takes, and
the memory of the gateway's process after the first swaps and after the last.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from rich.console import Console

from deployments.bench import BENCH, champion, playhead
from deployments.preparation import BITRATE
from deployments.service import ask
from deployments.state import RunFolder, StackError, StackLock, StackState, already_up
from features.errors import ExplainedError
from features.settings import Settings
from loadtests.client import ClientSettings, Outcome, run_plan
from loadtests.closed import measure
from loadtests.scenario import Audience, plan_requests, read_scenario
from serve.artifacts import MANIFEST, Manifest, content_version, read_artifact, read_champion, set_champion
from serve.engines.compiler import NICENESS, NICENESS_VARIABLE
from serve.gateway.rollouts import OPERATOR_HEADER, OPERATOR_VARIABLE

MODEL: Final = "recommend"
BAR: Final = 1.5
"""Times the p99 between swaps that the p99 of pages asked for during them may be. What took longer than that is late.
"""

PEAK_P99_MS: Final = 50.0
"""Of a rate that is not beyond the peak."""

_PEAK_CONCURRENCY: Final = 16
_PEAK_S: Final = 8.0
_PEAK_PROBES: Final = 6
"""Halvings between nothing and the rate of a closed loop."""
_PEAK_TRIES: Final = 2
"""Of a rate: one pause of a machine that others share is no peak."""

_WARM_S: Final = 5.0
_ASKED_S: Final = 60.0
"""Of each of the two runs without swaps."""
_SWAP_S: Final = 15.0
"""From the start of a swap to that of the next; replicas look each 2 s, load beside the answers, and get acquainted."""
_SETTLES_S: Final = 1.0
"""After a version is live: the one before is let go."""

_LIVE_WITHIN_S: Final = 60.0
_SETTLED_AFTER: Final = 10
"""Swaps after which the memory is what it should come back to: engines' caches have filled by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What became of requests.

    Attributes:
        requests: all.
        failed: without an answer of 200, or with one that is none.
        degraded: answers that were less than they could be.
        p50_ms: median latency from the intended send time.
        p99_ms: its 99th percentile.
        max_ms: the longest.
        late: answers that took longer than BAR times what is usual.
    """

    requests: int
    failed: int
    degraded: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    late: int

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], usual_p99_ms: float | None = None) -> "Load":
        """From what a client recorded.

        Args:
            outcomes: of some requests.
            usual_p99_ms: the p99 between swaps; None: these are those requests.
        """
        answered = [one.latency_ms for one in outcomes if not one.error] or [float("nan")]
        p50, p99 = np.percentile(answered, [50, 99]).tolist()
        late_ms = BAR * (p99 if usual_p99_ms is None else usual_p99_ms)
        return cls(
            requests=len(outcomes), failed=sum(bool(one.error) for one in outcomes),
            degraded=sum(one.degraded for one in outcomes), p50_ms=p50, p99_ms=p99, max_ms=max(answered),
            late=sum(latency_ms > late_ms for latency_ms in answered),
        )  # fmt: skip


def twin_of(artifact: Path) -> Path:
    """Another version of an artifact beside it: the same files, and one more entry in its metrics."""
    manifest = read_artifact(artifact).manifest
    changed = Manifest.model_validate({**manifest.model_dump(), "metrics": {**manifest.metrics, "twin": 1}})
    changed = changed.model_copy(update={"version": content_version(changed)})
    folder = artifact.parent / changed.version
    if not folder.is_dir():
        hidden = folder.with_name(f".{folder.name}.tmp")
        shutil.copytree(artifact, hidden, dirs_exist_ok=True)
        (hidden / MANIFEST).write_text(changed.model_dump_json(indent=1), encoding="utf-8")
        hidden.rename(folder)
    return folder


def borrowed(settings: Settings) -> Settings:
    """A home of its own with the real one's data sets and live models by links.

    What a service notes of versions that take turns (`serving.json`) is of no use to the real home, and would harm it.

    Raises:
        StackError: such a bench is going on.
    """
    home = settings.home / "swaps"
    models, data = home / "models", home / "data"
    holder = StackLock(RunFolder(home / BENCH)).holder()
    if holder is not None:
        raise already_up(holder)
    home.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(models, ignore_errors=True)  # of a run before
    for name in (MODEL, BITRATE):  # what a stack would train, if it had none
        live = read_champion(settings.models, name)
        if live is not None:
            (models / name).mkdir(parents=True)
            (models / name / live.name).symlink_to(live, target_is_directory=True)
            set_champion(models, name, live.name)
    data.unlink(missing_ok=True)
    data.symlink_to(settings.datasets, target_is_directory=True)
    return replace(settings, home=home)


class Swaps:
    """Makes one version after the other the champion, in a thread of its own, while there is load.

    Args:
        url: the service.
        token: the operator's.
        versions: that take turns.
        pid: process whose memory is watched.
        every_s: from the start of a swap to that of the next, unless it takes longer.

    Attributes:
        spans: when each began and was live, seconds of time.perf_counter.
        memory_bytes: of the process after each.
        trouble: what went wrong, if anything.
    """

    def __init__(self, url: str, token: str, versions: Sequence[str], pid: int, every_s: float) -> None:
        self.spans: list[tuple[float, float]] = []
        self.memory_bytes: list[int] = []
        self.trouble = ""
        self._url = url
        self._headers = {OPERATOR_HEADER: token}
        self._versions = versions
        self._process = psutil.Process(pid)
        self._every_s = every_s
        self._until_s = 0.0
        self._thread = threading.Thread(target=self._run)

    @property
    def seconds(self) -> list[float]:
        """That each swap took."""
        return [live_s - began_s for began_s, live_s in self.spans]

    def apart(self, outcomes: Sequence[Outcome], start_s: float) -> tuple[list[Outcome], list[Outcome]]:
        """Requests that were to be sent while a version was swapped, or _SETTLES_S after that, and the others.

        Args:
            outcomes: of one run.
            start_s: when it began, seconds of time.perf_counter.
        """
        swapping: list[Outcome] = []
        between: list[Outcome] = []
        for one in outcomes:
            at_s = start_s + one.at_s
            is_swapping = any(began_s <= at_s < live_s + _SETTLES_S for began_s, live_s in self.spans)
            (swapping if is_swapping else between).append(one)
        return swapping, between

    @contextmanager
    def going_on(self, seconds: float) -> Iterator[None]:
        """Swap while the block runs, which is to take so long; none begins that could outlast it."""
        self._until_s = time.perf_counter() + seconds
        self._thread.start()
        try:
            yield
        finally:
            self._until_s = 0.0
            self._thread.join()

    def _run(self) -> None:
        turn = 0
        try:
            while not self.trouble and time.perf_counter() + max([_SWAP_S, *self.seconds]) <= self._until_s:
                next_s = time.perf_counter() + self._every_s
                self._swap(self._versions[turn % len(self._versions)])
                turn += 1
                time.sleep(max(0.0, min(next_s, self._until_s) - time.perf_counter()))
        except ExplainedError as error:
            self.trouble = str(error)

    def _swap(self, version: str) -> None:
        began = time.perf_counter()
        body = {"version": version, "share": 1, "force": True, "by": "bench"}
        ask(self._url, f"/v1/models/{MODEL}/promote", body, self._headers)
        while self._live() != version:
            if time.perf_counter() - began > _LIVE_WITHIN_S:
                self.trouble = f"{version} was not live after {_LIVE_WITHIN_S:g} s"
                return
            time.sleep(0.05)
        self.spans.append((began, time.perf_counter()))
        self.memory_bytes.append(self._process.memory_info().rss)

    def _live(self) -> str | None:
        models = ask(self._url, "/v1/models")["models"]
        return next((one["version"] for one in models if one["name"] == MODEL and one["role"] == "champion"), None)


def peak_rps(load_at: Callable[[float], Load], most_rps: float) -> float:
    """The highest rate that is answered in time, to a 64th of `most_rps`; a rate that is not is tried twice.

    Args:
        load_at: asks at a rate, requests a second, for a while.
        most_rps: more than that is not tried.

    Raises:
        StackError: no rate that was tried is.
    """
    low, high = 0.0, most_rps
    for _ in range(_PEAK_PROBES):
        rate = (low + high) / 2
        tries = (load_at(rate) for _ in range(_PEAK_TRIES))
        is_in_time = any(not load.failed and load.p99_ms <= PEAK_P99_MS for load in tries)
        low, high = (rate, high) if is_in_time else (low, rate)
    if not low:
        raise StackError(
            field="peak", got=f"less than {high:.1f} pages a second", expected=f"a p99 of {PEAK_P99_MS:g} ms",
            next_step="End what else this machine does, or use a larger one.",
        )  # fmt: skip
    return low


def gateway_pid(state: StackState) -> int:
    """The process that answers: of the stack's Ray workers the one that runs the gateway's replica."""
    workers = [process for part in state.parts.values() for process in part.session()]
    named = [process for process in workers if "Gateway" in process.name() or "Gateway" in " ".join(process.cmdline())]
    return max(named or workers, key=lambda process: process.memory_info().rss).pid


def run(
    settings: Settings,
    *,
    data: str,
    swaps: int,
    every_s: float,
    share: float,
    seed: int,
    console: Console,
    niceness: int = NICENESS,
) -> dict[str, Any]:
    """Bring Playhead up, measure, end it.

    Args:
        settings: the real home's.
        data: name of the data set.
        swaps: how many.
        every_s: from the start of one to that of the next; 0: without a rest.
        share: of the peak rate that is asked for, 0 to 1.
        seed: of the requests.
        console: where progress is shown.
        niceness: by which what compiles yields to answers; 0: not at all.

    Raises:
        ExplainedError: something could not be brought up or measured; nothing of it is left running.
    """
    token = os.environ[OPERATOR_VARIABLE] = secrets.token_hex(16)
    os.environ[NICENESS_VARIABLE] = str(niceness)  # the service's processes have the environment of this one
    home = borrowed(settings)
    first = champion(home, MODEL)
    second = twin_of(first)
    with playhead(home, data=data, console=console) as (own, up, _):
        audience = Audience.of_dataset(own.datasets / up.state.data)
        scenario = read_scenario("home")
        exchanges = [[("GET", f"/v1/home?profile_id={name}", None)] for name in audience.profile_ids[:200]]
        most = measure(up.state.url, exchanges, concurrency=_PEAK_CONCURRENCY, seconds=_PEAK_S).exchanges_rps
        client = ClientSettings(base_url=up.state.url)

        def asked(seconds: float, turn: int, rate: float) -> tuple[list[Outcome], float]:
            start_ms, run_id = int(time.time() * 1e3), uuid.uuid4().hex[:12]
            plan = plan_requests(
                scenario,
                audience,
                rate_rps=rate,
                duration_s=seconds,
                seed=seed + turn,
                start_ms=start_ms,
                run_id=run_id,
            )
            start_s = time.perf_counter()
            return run_plan(plan, client).outcomes, start_s

        asked(_WARM_S, 0, most / 4)
        peak = peak_rps(lambda rate: Load.of(asked(_PEAK_S, 0, rate)[0]), most)
        rate = share * peak
        console.print(f"peak {peak:.0f} pages a second, {most:.0f} in a closed loop; asking for {rate:.0f}")
        before, _ = asked(_ASKED_S, 1, rate)
        done = Swaps(up.state.url, token, (second.name, first.name), gateway_pid(up.state), every_s)
        seconds = (swaps + 1) * max(every_s, _SWAP_S)
        with done.going_on(seconds):
            swapped, start_s = asked(seconds, 2, rate)
        after, _ = asked(_ASKED_S, 3, rate)
    if done.trouble or not done.seconds:
        raise StackError(field="swaps", got=done.trouble or "none", expected="each live",
                         next_step="See the service's logs.")  # fmt: skip
    swapping, between = done.apart(swapped, start_s)
    usual = Load.of(between if every_s else before + after)  # without a rest, next to nothing is between
    loads = {
        name: Load.of(outcomes, usual.p99_ms)
        for name, outcomes in (
            ("before", before), ("swapping", swapping), ("between", between), ("after", after),
        )
    }  # fmt: skip
    without = Load.of(before + after)
    settled = min(_SETTLED_AFTER, len(done.seconds) - 1)
    return {
        "swaps": len(done.seconds), "swaps_wanted": swaps, "every_s": every_s,
        "swap_s": {"median": float(np.median(done.seconds)), "max": max(done.seconds)},
        "peak_rps": peak, "closed_rps": most, "rate_rps": rate,
        "loads": {name: asdict(load) for name, load in loads.items()},
        "niceness": niceness,
        "p50_ratio": loads["swapping"].p50_ms / usual.p50_ms, "p99_ratio": loads["swapping"].p99_ms / usual.p99_ms,
        "p99_ratio_to_without": Load.of(swapped).p99_ms / without.p99_ms,
        "memory_mib": {
            f"after {settled + 1}": done.memory_bytes[settled] / 2**20, "after all": done.memory_bytes[-1] / 2**20,
        },
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 if all swaps were made, no request failed and the p99 was at most BAR times that between."""
    parser = argparse.ArgumentParser(description="Swaps of a model under load.")
    parser.add_argument("--data", default="ml-100k", help="name of the data set")
    parser.add_argument(
        "--swaps", type=int, default=50, help=f"as many at least; the run takes {_SWAP_S:g} s for each, or --every"
    )
    parser.add_argument("--every", type=float, default=_SWAP_S, metavar="SECONDS",
                        help="from the start of a swap to that of the next; 0: without a rest")  # fmt: skip
    parser.add_argument("--share", type=float, default=0.7, help="of the peak rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--niceness", type=int, default=NICENESS, choices=range(20), metavar="0 to 19",
                        help="by which what compiles yields to answers; 0: not at all, for comparison")  # fmt: skip
    options = parser.parse_args(arguments)
    console, settings = Console(stderr=True), Settings.from_env()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    try:
        report = run(
            settings,
            data=options.data,
            swaps=options.swaps,
            every_s=options.every,
            share=options.share,
            seed=options.seed,
            console=console,
            niceness=options.niceness,
        )
    except ExplainedError as error:
        console.print(f"[red]{error}[/]")
        return 1
    for name, load in report["loads"].items():
        console.print(
            f"  {name:8}  {load['requests']:,} pages, {load['failed']} failed, {load['degraded']} degraded, "
            f"p50 {load['p50_ms']:.2f} ms, p99 {load['p99_ms']:.2f}, longest {load['max_ms']:.1f}, "
            f"{load['late']} late"
        )
    console.print(f"  {report['swaps']} swaps, {report['swap_s']['median']:.2f} s each in the median")
    console.print(
        f"  p99 of swapping {report['p99_ratio']:.2f} times that between swaps (at most {BAR}), "
        f"p50 {report['p50_ratio']:.2f}; compilers yield by {report['niceness']}"
    )
    console.print(
        f"  p99 of all with swaps {report['p99_ratio_to_without']:.2f} times that of the minutes before and after"
    )
    console.print("  memory  " + ", ".join(f"{name} {size:.0f} MiB" for name, size in report["memory_mib"].items()))
    sys.stdout.write(json.dumps(report) + "\n")
    was_done = report["swaps"] >= report["swaps_wanted"]
    failed = sum(load["failed"] for load in report["loads"].values())
    return 0 if was_done and not failed and report["p99_ratio"] <= BAR else 1


if __name__ == "__main__":
    raise SystemExit(main())
