"""Which Ray runs a job: the one that RAY_ADDRESS names, else that of the stack of this home, else one of its own."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import psutil

from deployments import loopback
from deployments.network import LOOPBACK
from deployments.state import RunFolder, StackLock, StackState
from training.jobs import NICENESS, RayPlace

_PREFIX: Final = "playhead-job-"
_FEW_CPUS: Final = 4
"""Logical: a job of two workers fits on any machine."""

OBJECT_STORE_BYTES: Final = 100 << 20
STREAMING_OBJECT_STORE_BYTES: Final = 512 << 20


@contextlib.contextmanager
def ray_place(
    home: Path,
    *,
    cpus: float = 1.0,
    object_store_bytes: int = OBJECT_STORE_BYTES,
    environment: Mapping[str, str] = os.environ,
) -> Iterator[tuple[RayPlace, str]]:
    """Find a Ray for a job, or make ready to start one; its files are gone after the block.

    Args:
        home: PLAYHEAD_HOME.
        cpus: that the job asks for; a Ray of its own has as many.
        object_store_bytes: shared memory of a Ray of its own.
        environment: where RAY_ADDRESS is looked for.

    Yields:
        The place, and words for it.
    """
    named = environment.get("RAY_ADDRESS")
    if named:
        yield RayPlace(address=named, node_ip=None), f"Ray at {named}"
        return
    folder = RunFolder(home)
    state = StackState.read(folder)
    if state is not None and state.ray_address and StackLock(folder).holder() is not None:
        yield _stack_place(state), "the stack's Ray"
        return
    _sweep()
    temporary = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_short_folder()))
    try:
        yield own_place(temporary, cpus=cpus, object_store_bytes=object_store_bytes), "a Ray of its own"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def own_place(temporary: Path, *, cpus: float = 1.0, object_store_bytes: int = OBJECT_STORE_BYTES) -> RayPlace:
    """A Ray of its own on 127.0.0.1.

    Args:
        temporary: folder of its files and sockets; a short path.
        cpus: that the job asks for.
        object_store_bytes: its shared memory.
    """
    return RayPlace(
        temporary=str(temporary),
        cpus=max(os.cpu_count() or 1, _FEW_CPUS, -int(-cpus // 1)),
        object_store_bytes=object_store_bytes,
        node_ip=LOOPBACK,
        hook=loopback.HOOK,
        environment={
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": str(NICENESS),
            "RAY_enable_worker_prestart": "0",  # workers started ahead lack the hook
            "RAY_prestart_worker_first_driver": "0",
            **loopback.environment(temporary, temporary / "haproxy"),
        },
    )


def _stack_place(state: StackState) -> RayPlace:
    """The Ray of a stack that is up: an embedded one takes only who has its token."""
    token = Path(state.temporary) / "token"
    if not token.is_file():  # the stack uses a Ray that it did not start
        return RayPlace(address=state.ray_address, node_ip=None)
    return RayPlace(
        address=state.ray_address,
        node_ip=LOOPBACK,
        hook=loopback.HOOK,
        environment={
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
        },
    )


def _short_folder() -> Path:
    """Where temporary folders have short paths: sockets' paths are limited."""
    return Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())  # noqa: S108


def _sweep() -> None:
    """Remove what jobs that were killed left: their folders name a process that is gone."""
    for folder in _short_folder().glob(f"{_PREFIX}*"):
        number = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(folder, ignore_errors=True)
