"""What is wrong with this machine's Playhead, one finding a part, each with the next step."""

import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from deployments import network, valkey
from deployments.preparation import BITRATE, MODEL, registry_is_current
from deployments.state import RunFolder, StackLock, StackState
from features.settings import Settings
from serve.errors import PlayheadError

LEAST_PYTHON: Final = (3, 11)
LEAST_FREE_BYTES: Final = 2 * 2**30
LEAST_FREE_SHARE: Final = 0.03
CONSTRAINTS: Final = Path(__file__).parent.parent / "constraints.txt"
_NAMED: Final = 5
_MOST_BEHIND_S: Final = 60.0
_UP: Final = "playhead up"


class Verdict(StrEnum):
    """How a part is."""

    OK = "ok"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found about one part.

    Attributes:
        part: what was looked at.
        verdict: how it is.
        text: what was seen.
        next_step: what to do; empty where all is well.
    """

    part: str
    verdict: Verdict
    text: str
    next_step: str = ""

    def as_json(self) -> dict[str, str]:
        """The fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What is examined.

    Attributes:
        settings: where the parts are.
        port: where the service would listen.
        data: name of the data set.
        environment: variables.
        python: version of the interpreter.
        constraints: file of pinned versions.
    """

    settings: Settings
    port: int = 8000
    data: str = "ml-100k"
    environment: Mapping[str, str]
    python: tuple[int, int] = (sys.version_info.major, sys.version_info.minor)
    constraints: Path = CONSTRAINTS

    @property
    def folder(self) -> RunFolder:
        """The run's files."""
        return RunFolder(self.settings.home)


def _ok(part: str, text: str) -> Finding:
    return Finding(part=part, verdict=Verdict.OK, text=text)


def _wrong(part: str, text: str, next_step: str) -> Finding:
    return Finding(part=part, verdict=Verdict.WRONG, text=text, next_step=next_step)


def running_state(folder: RunFolder) -> StackState | None:
    """The state of the stack that is up; None where none is."""
    state = StackState.read(folder)
    return state if state is not None and StackLock(folder).holder() is not None else None


def check_python(seen: Circumstances) -> Finding:
    """Whether the interpreter is new enough."""
    text = f"{seen.python[0]}.{seen.python[1]} at {sys.executable}"
    if seen.python < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return _wrong("python", text, f"Use Python {least} or newer: make clean run PYTHON=/path/to/python{least}")
    return _ok("python", text)


def check_packages(seen: Circumstances) -> Finding:
    """Whether what is installed is what is pinned, and nothing needed is missing."""
    pinned = dict(_pins(seen.constraints))
    installed = {_canonical(part.metadata["Name"]): part.version for part in metadata.distributions()}
    missing = [name for name in _needed() if name not in installed]
    other = [
        f"{name} {installed[name]} instead of {version}"
        for name, version in pinned.items()
        if name in installed and installed[name].split("+")[0] != version
    ]
    step = "Install again: make clean run, or pip install --constraint constraints.txt --editable ."
    if missing:
        return _wrong("packages", f"missing: {_some(missing)}", step)
    if other:
        return _wrong("packages", f"not as pinned: {_some(other)}", step)
    return _ok("packages", f"{len(pinned)} as pinned" if pinned else "none missing; no constraints.txt to compare with")


def check_disk(seen: Circumstances) -> Finding:
    """Whether there is room to write."""
    folder = next(path for path in [seen.settings.home, *seen.settings.home.parents] if path.is_dir())
    usage = shutil.disk_usage(folder)
    text = f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.0f} at {folder}"
    if usage.free < LEAST_FREE_BYTES or usage.free < LEAST_FREE_SHARE * usage.total:
        return _wrong("disk", text, "Free some space, or set PLAYHEAD_HOME to a folder on another disk.")
    return _ok("disk", text)


def check_stack(seen: Circumstances) -> Finding:
    """Whether the stack is up and answers, or has left traces of a crash."""
    state, holder = StackState.read(seen.folder), StackLock(seen.folder).holder()
    if state is not None and holder is None:
        left = sum(len(part.session()) for part in state.parts.values())
        return _wrong("stack", f"a run that died left its state and {left} processes", "playhead down, or playhead up")
    if state is None or holder is None:
        return _wrong("stack", "not up", _UP)
    if not state.ready:
        return _wrong("stack", f"on its way up (pid {holder})", f"Wait, and see {seen.folder.home / 'logs'}.")
    dead = [name for name, part in state.parts.items() if part.process() is None]
    if dead:
        return _wrong("stack", f"parts that ended: {_some(dead)}", f"See {seen.folder.home / 'logs'}.")
    return _ok("stack", f"up (pid {holder}), placement {state.placement}")


def check_port(seen: Circumstances) -> Finding:
    """Whether the service's port is free or ours."""
    state = running_state(seen.folder)
    if state is not None and state.ready:
        trouble = network.readiness(state.url)
        if trouble is not None:
            return _wrong("service", f"{state.url}: {trouble}", f"See {seen.folder.home / 'logs'}.")
        return _ok("service", f"{state.url} answers")
    if not network.is_free(seen.port):
        text = f"port {seen.port} is taken by {network.holder(seen.port)}"
        return _wrong("service", text, "End that process, or choose another port: playhead up --port N")
    return _ok("service", f"port {seen.port} is free")


def check_redis(seen: Circumstances) -> Finding:
    """Whether the online store answers."""
    state, given = running_state(seen.folder), seen.environment.get("REDIS_URL")
    url = state.redis_url if state is not None else given or seen.settings.redis_url
    address = url.rpartition("@")[2].removeprefix("redis://").removeprefix("rediss://")
    trouble = valkey.ping(url)
    if trouble is None:
        return _ok("redis", f"{address} answers")
    step = "Start that server or correct REDIS_URL; unset it to use the embedded one." if given else _UP
    return _wrong("redis", f"{address}: {trouble}", step)


def check_ray(seen: Circumstances) -> Finding:
    """Whether Ray can be reached."""
    state, given = running_state(seen.folder), seen.environment.get("RAY_ADDRESS")
    address = state.ray_address if state is not None and state.ray_address else given or ""
    if not address:
        return _wrong("ray", "not up", _UP)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return _wrong("ray", f"RAY_ADDRESS is {address}", "Set RAY_ADDRESS to host:port, or unset it.")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError as error:
        step = "Start that Ray or correct RAY_ADDRESS; unset it to use the embedded one." if given else _UP
        return _wrong("ray", f"{address}: {error}", step)
    return _ok("ray", f"{address} answers")


def check_watchtower(seen: Circumstances) -> Finding:
    """Whether what players tell is judged, of a stack that is up."""
    from redis import RedisError  # noqa: PLC0415

    from serve.watchtower import board  # noqa: PLC0415

    state = running_state(seen.folder)
    if state is None or not state.ready:
        return _ok("watchtower", "not asked: the stack is not up")
    try:
        with board.Store.from_url(state.redis_url, socket_timeout=2, socket_connect_timeout=2) as store:
            told: Any = store.get(board.AS_OF)
    except RedisError as error:
        return _wrong("watchtower", f"unknown: {error}", "See what is said of redis.")
    part = state.parts.get("watchtower")
    process = part.process() if part is not None else None
    now_s = time.time()
    since_s = max(int(told) / 1000 if told else 0.0, process.create_time() if process is not None else 0.0)
    if now_s - since_s > _MOST_BEHIND_S:
        log = seen.folder.home / "logs" / "watchtower.log"
        step = f"See {log}; end process {process.pid if process else '?'}, and it goes on where it was."
        return _wrong("watchtower", f"has judged nothing for {now_s - since_s:.0f} s", step)
    return _ok("watchtower", f"judged up to {now_s - int(told) / 1000:.0f} s ago" if told else "just started")


def check_exposure(seen: Circumstances) -> Finding:
    """Whether any of our ports is open beyond this machine."""
    state = running_state(seen.folder)
    pids = [member.pid for part in (state.parts.values() if state else ()) for member in part.session()]
    found = network.listeners(pids)
    open_ones = [f"{entry.name} {entry.address}:{entry.port}" for entry in found if not entry.local]
    if open_ones:
        return _wrong("exposure", f"open to the network: {_some(open_ones)}", "Close them by a firewall; report this.")
    return _ok("exposure", f"{len(found)} ports, all on this machine only" if state else "nothing listens")


def check_data(seen: Circumstances) -> Finding:
    """Whether the data set is there and whole."""
    from training.datasets import open_dataset  # noqa: PLC0415  (imports polars)

    dataset = open_dataset(seen.settings.datasets / seen.data)
    return _ok("data", f"{dataset.name}: {dataset.rows['events']:,} events, {dataset.rows['titles']:,} titles")


def check_registry(seen: Circumstances) -> Finding:
    """Whether Feast's registry is there and current."""
    registry = seen.settings.feast_registry
    if "://" not in registry and not Path(registry).is_file():
        return _wrong("registry", f"{registry} is missing", f"{_UP} makes it.")
    if not registry_is_current(seen.settings):
        return _wrong("registry", f"{registry} does not hold the present definitions", f"{_UP} applies them.")
    return _ok("registry", registry)


def check_model(seen: Circumstances) -> Finding:
    """Whether the champion that recommends is there, file by file."""
    return _check_champion("model", MODEL, seen)


def check_policy(seen: Circumstances) -> Finding:
    """Whether the champion that decides bitrates is there, file by file."""
    return _check_champion("policy", BITRATE, seen)


def _check_champion(part: str, model: str, seen: Circumstances) -> Finding:
    from serve.artifacts import read_artifact, read_champion  # noqa: PLC0415

    champion = read_champion(seen.settings.models, model)
    if champion is None:
        return _wrong(part, f"no champion in {seen.settings.models / model}", f"playhead train {model}, or {_UP}")
    try:
        manifest = read_artifact(champion).manifest
    except PlayheadError as error:
        text = f"{champion}: {error.field} is {error.got}, expected {error.expected}"
        return _wrong(part, text, f"{error.next_step} Again: playhead train {model}")
    return _ok(part, f"{manifest.name} {manifest.version}, {len(manifest.files)} files")


CHECKS: Final[Mapping[str, Callable[[Circumstances], Finding]]] = {
    "python": check_python,
    "packages": check_packages,
    "disk": check_disk,
    "data": check_data,
    "registry": check_registry,
    "model": check_model,
    "policy": check_policy,
    "stack": check_stack,
    "service": check_port,
    "redis": check_redis,
    "ray": check_ray,
    "watchtower": check_watchtower,
    "exposure": check_exposure,
}


def examine(seen: Circumstances) -> Iterator[Finding]:
    """Look at all parts. A check that fails itself is a finding, too."""
    for part, check in CHECKS.items():
        try:
            yield check(seen)
        except PlayheadError as error:
            yield _wrong(part, f"{error.field}: {error.got}, expected {error.expected}", error.next_step)
        except Exception as error:  # noqa: BLE001 - a broken part must not hide the others
            yield _wrong(part, f"{type(error).__name__}: {error}", "Install again if it names a package.")


def circumstances(settings: Settings, *, port: int, data: str) -> Circumstances:
    """What `playhead doctor` examines; a stack that is up says its own data set."""
    state = running_state(RunFolder(settings.home))
    return Circumstances(
        settings=settings, port=port, data=state.data if state is not None else data, environment=os.environ
    )


def _pins(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            name, found, version = line.partition("==")
            if found and not line.startswith("#"):
                yield _canonical(name), version.split(";")[0].strip()


def _needed() -> list[str]:
    """What the package itself depends on, without extras."""
    try:
        lines = metadata.requires("playhead") or []
    except metadata.PackageNotFoundError:
        return ["playhead"]
    return [_canonical(re.split(r"[\s\[<>=!~;(]", line)[0]) for line in lines if "extra ==" not in line]


def _canonical(name: Any) -> str:
    return re.sub(r"[-_.]+", "-", str(name).strip()).lower()


def _some(parts: list[str]) -> str:
    more = len(parts) - _NAMED
    return ", ".join(parts[:_NAMED]) + (f" and {more} more" if more > 0 else "")
