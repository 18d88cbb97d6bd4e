"""Published logs of algorithms that we don't run: their decisions, replayed in the simulator.

Units: bitrate kbit/s, sizes bytes, delay ms.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.bitrate.observations import Observations
from serve.errors import InvalidInput, NotFound
from training.bitrate.columns import read_text, refuse
from training.bitrate.evaluate import play
from training.bitrate.qoe import LINEAR
from training.bitrate.simulator import PENSIEVE, Sessions, Settings
from training.bitrate.traces import Trace
from training.bitrate.video import Video

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

PUBLISHED: Final = "published_"
"""Before the name of an algorithm's folder: its name in tables."""

_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, eq=False)
class Replay:
    """Decisions that were logged elsewhere.

    Attributes:
        name: as tables print it.
        rungs: trace name -> rung of each segment (S,).
    """

    name: str
    rungs: Mapping[str, Integers]

    def start(self, n: int) -> None:
        """Nothing to forget."""

    def choose(self, observations: Observations, sessions: Sessions) -> Integers:
        """Rung of each session (B,)."""
        del observations
        names = [sessions.traces[trace].name for trace in sessions.state["trace"]]
        at = zip(names, sessions.state["segment"], strict=True)
        return np.array([self.rungs[name][min(segment, len(self.rungs[name]) - 1)] for name, segment in at])


def read_log(name: str, folder: Path, traces: Sequence[Trace], video: Video, settings: Settings = PENSIEVE) -> Replay:
    """Read the published log of one algorithm, and replay it to see that it is of these traces, title and settings.

    Args:
        name: of the algorithm.
        folder: a file for each trace, by the trace's name; a line for each segment: time s, bitrate kbit/s, buffer s,
            rebuffering s, bytes, delay ms and more.
        traces: all that must be there.
        video: whose ladder and sizes the logs must show.
        settings: whose delays the logs must show.

    Raises:
        NotFound: a trace has no log.
        InvalidInput: with the file: it is not of these traces, title or settings.
    """
    rungs, logged = {}, []
    for trace in traces:
        path = folder / trace.name
        try:
            kbps, size_bytes, delay_ms = np.loadtxt(io.StringIO(read_text(path)), usecols=(1, 4, 5), ndmin=2).T
        except ValueError as error:
            raise refuse(
                path, 0, str(error), "lines of numbers, bitrate in the 2nd, bytes and ms in the 5th and 6th"
            ) from None
        if len(kbps) != len(video.segment_bytes):
            raise refuse(path, 0, f"{len(kbps)} segments", f"{len(video.segment_bytes)}, as the title has")
        rungs[trace.name] = np.abs(video.rungs_kbps - kbps[:, None]).argmin(1)
        _agree(
            path, size_bytes, video.segment_bytes[np.arange(len(kbps)), rungs[trace.name]], "bytes, as the title has"
        )
        logged.append(delay_ms)
    replay = Replay(name, rungs)
    for trace, delay_ms, played_s in zip(
        traces, logged, play(replay, Sessions(traces, video, LINEAR, settings)).delay_s.T, strict=True
    ):
        _agree(folder / trace.name, delay_ms, played_s * 1000, "ms, as the simulator finds")
    return replay


def _agree(path: Path, logged: Floats, expected: Floats, what: str) -> None:
    wrong = np.flatnonzero(np.abs(logged - expected) > _TOLERANCE)
    if len(wrong):
        raise refuse(path, int(wrong[0]) + 1, float(logged[wrong[0]]), f"{expected[wrong[0]]:.6f} {what}")


def published(
    folder: Path, traces: Sequence[Trace], video: Video, settings: Settings = PENSIEVE
) -> tuple[list[Replay], list[str]]:
    """All published logs under a folder that are of these traces, title and settings.

    Returns:
        Them, named `published_` and the name of their folder, and why others were left out.

    Raises:
        NotFound: the folder is not there, or has no folders.
    """
    folders = sorted(path for path in folder.glob("*") if path.is_dir())
    if not folders:
        raise NotFound(
            field="logs", got=str(folder), expected="a folder of logs for each algorithm", next_step="Correct --logs."
        )
    replays, notes = [], []
    for path in folders:
        try:
            replays.append(read_log(PUBLISHED + path.name, path, traces, video, settings))
        except (InvalidInput, NotFound) as error:
            notes.append(f"{PUBLISHED}{path.name} left out: {error}")
    return replays, notes
