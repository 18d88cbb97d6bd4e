"""`playhead up`, `down`, `status`."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.commands.output import FAILED, INTERRUPTED, Json, Output, answering, reporting

if TYPE_CHECKING:
    from deployments.state import StackState
    from features.settings import Settings

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
    from deployments.background import start  # noqa: PLC0415
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
                _show(output, settings, start(settings, options, reporter), detached=True)
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
    from deployments.background import end  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output, reporting(output) as reporter:
        ended = end(Settings.from_env(), reporter)
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
