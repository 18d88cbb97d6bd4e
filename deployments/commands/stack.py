"""`playhead up`, `down`, `status`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.commands.output import FAILED, INTERRUPTED, Json, Output, answering, reporting

if TYPE_CHECKING:
    from deployments.local import StackOptions
    from deployments.progress import Reporter
    from deployments.state import RunFolder, StackState
    from features.settings import Settings

_LOOK_S = 0.1
_DOWN_DEADLINE_S = 60.0

Placement = Annotated[str, typer.Option(help="local, cluster, or the path of a Serve configuration.")]
Port = Annotated[int, typer.Option(min=1024, max=65535, help="Where it answers, on 127.0.0.1.")]
Data = Annotated[str, typer.Option(help="Name of the data set; `playhead data` lists and makes them.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return once it answers; `playhead down` ends it.")]


def up(
    *,
    detach: Detach = False,
    placement: Placement = "local",
    port: Port = 8000,
    data: Data = "ml-100k",
    as_json: Json = False,
) -> None:
    """Bring everything up on this machine and show a real home page. Ctrl-C ends it.

    REDIS_URL and RAY_ADDRESS name servers to use instead of the embedded ones.
    """
    from deployments.local import Interrupted, StackOptions, hold  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        options = StackOptions(
            placement=placement if placement in {"local", "cluster"} else str(Path(placement).resolve()),
            port=port,
            data=data,
            redis_url=os.environ.get("REDIS_URL") or None,
            ray_address=os.environ.get("RAY_ADDRESS") or None,
        )
        with reporting(output) as reporter:
            if detach:
                _show(output, settings, _detached(settings, options, reporter), detached=True)
                return

            def on_ready(state: "StackState") -> None:
                _show(output, settings, state, detached=False)

            try:
                hold(settings, options, reporter, on_ready)
            except Interrupted:
                output.console.print("ended before it was up; nothing is left")
                raise typer.Exit(INTERRUPTED) from None
        output.console.print("ended; nothing is left")


def down(*, as_json: Json = False) -> None:
    """End what `playhead up` started, and nothing else."""
    import contextlib  # noqa: PLC0415
    import signal  # noqa: PLC0415

    import psutil  # noqa: PLC0415

    from deployments.leftovers import clean  # noqa: PLC0415
    from deployments.state import RunFolder, StackError, StackLock, StackState  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output, reporting(output) as reporter:
        folder = RunFolder(Settings.from_env().home)
        if not folder.lock.is_file():
            output.console.print("nothing is up")
            output.answer({"ended": 0})
            return
        lock, ended, asked = StackLock(folder), 0, False
        deadline = time.monotonic() + _DOWN_DEADLINE_S
        while not lock.take():
            state = None if asked else StackState.read(folder)  # one that starts tells who it is soon after its lock
            process = None if state is None else state.supervisor.process()
            if state is not None and process is not None:
                ended = sum(len(part.session()) for part in state.parts.values())
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)
                asked = True
            if time.monotonic() > deadline:
                raise StackError(
                    field="stack",
                    got=f"pid {lock.holder()} still holds it after {_DOWN_DEADLINE_S:g} s",
                    expected="an end",
                    next_step="kill -9 that process, then run `playhead down` again: it ends what is left.",
                )
            time.sleep(_LOOK_S)
        try:
            ended += clean(folder, reporter)
        finally:
            lock.release()
        output.console.print(f"ended {ended} processes" if ended else "nothing is up")
        output.answer({"ended": ended})


def status(*, as_json: Json = False) -> None:
    """Show what is up: parts, memory, address. Exit status 0 only if it answers."""
    from rich.table import Table  # noqa: PLC0415

    from deployments.network import readiness  # noqa: PLC0415
    from deployments.state import RunFolder, StackLock, StackState  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        folder = RunFolder(Settings.from_env().home)
        state = StackState.read(folder)
        if state is None or StackLock(folder).holder() is None:
            traces = "" if state is None else "; a run that died left traces, `playhead down` cleans up"
            output.console.print(f"down{traces}")
            output.answer({"up": False, "ready": False, "stale": state is not None})
            raise typer.Exit(FAILED)
        trouble = readiness(state.url)
        parts = {"supervisor": [state.supervisor], **{name: [part] for name, part in state.parts.items()}}
        table = Table("part", "pid", "processes", "memory", "up for", box=None, pad_edge=False)
        rows: dict[str, Any] = {}
        for name, (record,) in parts.items():
            members = [record.process()] if name == "supervisor" else record.session()
            alive = [member for member in members if member is not None]
            size = sum(_memory_bytes(member) for member in alive)
            age_s = time.time() - record.started_s
            rows[name] = {"pid": record.pid, "processes": len(alive), "memory_bytes": size, "age_s": round(age_s)}
            table.add_row(name, str(record.pid), str(len(alive)), f"{size / 2**20:.0f} MiB", f"{age_s:.0f} s")
        output.console.print(f"{state.url}  {'ready' if trouble is None else f'not ready: {trouble}'}")
        output.console.print(f"placement {state.placement}, data {state.data}, store {_shown(state.redis_url)}")
        output.console.print(table)
        fields = {"url": state.url, "placement": state.placement, "data": state.data, "parts": rows}
        output.answer({"up": True, "ready": trouble is None, **fields, "redis_url": _shown(state.redis_url)})
        if trouble is not None:
            raise typer.Exit(FAILED)


def _memory_bytes(process: Any) -> int:
    import psutil  # noqa: PLC0415

    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _shown(url: str) -> str:
    """A URL without its password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _show(output: Output, settings: "Settings", state: "StackState", *, detached: bool) -> None:
    """The phases, then a real profile's page and a player's next rung, and the requests that ask for them."""
    from deployments import nextrung  # noqa: PLC0415
    from deployments.homepage import fetch_settled, page_lines, request_of, some_profile  # noqa: PLC0415

    profile = some_profile(settings.datasets / state.data)
    total = state.phases.get("total", 0.0)
    answer: dict[str, Any] = {"url": state.url, "seconds": round(total, 2), "phases": _rounded(state.phases)}
    if profile is not None:
        page = fetch_settled(state.url, profile)
        output.console.print()
        for line in page_lines(page, output.console.width):
            output.console.print(line, soft_wrap=True)
        output.console.print()
        output.console.print(f"  [bold]{request_of(state.url, profile)}[/]", soft_wrap=True)
        decision = nextrung.fetch(state.url)
        output.console.print()
        output.console.print(nextrung.decision_line(decision), soft_wrap=True)
        output.console.print(f"  [bold]{nextrung.request_of(state.url)}[/]", soft_wrap=True)
        answer["profile_id"], answer["rows"] = profile, len(page["rows"])
        answer["bitrate_kbps"], answer["versions"] = decision["bitrate_kbps"], page["versions"] | decision["versions"]
    end = "`playhead down` ends it" if detached else "Ctrl-C ends it"
    output.console.print(f"  up in {total:.1f} s at {state.url}  ·  docs at {state.url}/docs  ·  {end}", soft_wrap=True)
    output.answer(answer)


def _rounded(phases: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds, 2) for name, seconds in phases.items()}


def _detached(settings: "Settings", options: "StackOptions", reporter: "Reporter") -> "StackState":
    """Start a stack in the background and tell its phases until it answers.

    Raises:
        StackError: it could not be brought up; nothing of it is left.
    """
    from deployments.local import options_json  # noqa: PLC0415
    from deployments.state import RunFolder, StackLock, already_up  # noqa: PLC0415

    folder = RunFolder(settings.home)
    holder = StackLock(folder).holder()
    if holder is not None:
        raise already_up(holder)
    folder.events.unlink(missing_ok=True)
    log = folder.log("up")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.local", options_json(options)],
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            env={**os.environ, "PLAYHEAD_HOME": str(settings.home)},
            start_new_session=True,
        )
    try:
        return _follow(folder, process, reporter)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def _follow(folder: "RunFolder", process: "subprocess.Popen[bytes]", reporter: "Reporter") -> "StackState":
    from deployments.progress import Notice  # noqa: PLC0415
    from deployments.state import StackError, StackState  # noqa: PLC0415

    for told in _lines(folder, process):
        if "phase" in told:
            reporter.tell(Notice.from_json(told))
        elif "ready" in told:
            return StackState.from_json(told["ready"])
        elif "error" in told:
            raise StackError(**told["error"])
    raise StackError(
        field="stack",
        got=f"its process ended (status {process.poll()})",
        expected="a stack that answers",
        next_step=f"See {folder.log('up')}.",
    )


def _lines(folder: "RunFolder", process: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    """What the background process tells, as it comes, until it ends."""
    done, rest = 0, ""
    while True:
        ended = process.poll() is not None
        if folder.events.is_file():
            with folder.events.open(encoding="utf-8") as stream:
                stream.seek(done)
                text = stream.read()
                done = stream.tell()
            *whole, rest = (rest + text).split("\n")
            yield from (json.loads(line) for line in whole if line)
        if ended:
            return
        time.sleep(_LOOK_S)
