"""Every policy over the same traces in the exact simulator.

Units: time s, bitrate kbit/s, sizes bytes. A session's value is its mean QoE per segment from its second one on (the
published simulator fixes the first); rebuffering and changes of rung are counted over the same segments.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from serve.artifacts import read_artifact, read_champion
from serve.bitrate.observations import Observations
from serve.engines import load_engine
from serve.engines.base import Engine
from serve.errors import InvalidInput, NotFound
from training.bitrate.optimum import Optimum
from training.bitrate.policies import Policy
from training.bitrate.qoe import LINEAR, Qoe
from training.bitrate.simulator import PENSIEVE, Sessions, Settings
from training.bitrate.traces import Trace
from training.bitrate.video import Video
from training.recommend.progress import ProgressReport, silent

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MODEL: Final = "bitrate"
PLAYHEAD: Final = "playhead"
OPTIMUM: Final = "optimum"
RIVALS: Final = ("robust_mpc", "published_mpc", "published_cmc")
"""Whom every other policy is compared with, trace by trace."""

BATCH: Final = 64
"""Sessions in lockstep: few enough for progress to move, far fewer than a policy graph takes."""


@dataclass(frozen=True, eq=False)
class Played:
    """What one policy did in N sessions of at most S segments; all but the first two are 0 after a session's end.

    Attributes:
        segments: fetched by each session (N,).
        seconds: of wall time that its decisions took, all together.
        rung: fetched (S, N).
        reward: QoE of the segment (S, N).
        delay_s: duration of the download (S, N).
        sleep_s: then waited (S, N).
        rebuffer_s: time that playback stood still (S, N).
        buffer_s: media in the buffer after all that (S, N).
    """

    segments: Integers
    seconds: float
    rung: Integers
    reward: Floats
    delay_s: Floats
    sleep_s: Floats
    rebuffer_s: Floats
    buffer_s: Floats

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Several batches as one."""
        longest = max(len(part.rung) for part in parts)
        tables = {
            name: np.concatenate(
                [np.pad(getattr(part, name), ((0, longest - len(part.rung)), (0, 0))) for part in parts], 1
            )
            for name in ("rung", "reward", "delay_s", "sleep_s", "rebuffer_s", "buffer_s")
        }
        return cls(np.concatenate([part.segments for part in parts]), sum(part.seconds for part in parts), **tables)

    def counted(self, table: NDArray[Any]) -> NDArray[Any]:
        """The sum over a session's segments from its second one on; over the first where there is no other (N,)."""
        sums: NDArray[Any] = np.where(self.segments > 1, table[1:].sum(0), table[0])
        return sums

    @property
    def fetched(self) -> NDArray[np.bool_]:
        """Which segments were (S, N)."""
        return np.arange(len(self.rung))[:, None] < self.segments

    @property
    def values(self) -> Floats:
        """Mean QoE per segment of each session (N,)."""
        return self.counted(self.reward) / np.maximum(self.segments - 1, 1)

    @property
    def switches(self) -> Integers:
        """Changes of rung of each session (N,)."""
        changes: Integers = ((np.diff(self.rung, axis=0) != 0) & self.fetched[1:]).sum(0)
        return changes


def play(policy: Policy, sessions: Sessions) -> Played:
    """Let a policy decide in all sessions until each is done."""
    policy.start(len(sessions))
    rows: dict[str, list[NDArray[Any]]] = {name: [] for name in ("rung", "reward", "delay_s", "sleep_s", "rebuffer_s")}
    levels_s: list[Floats] = []
    segments, seconds = np.zeros(len(sessions), np.int64), 0.0
    while not sessions.state["done"].all():
        segments += ~sessions.state["done"]
        seen, began = sessions.observe(), time.perf_counter()
        rungs = policy.choose(seen, sessions)
        seconds += time.perf_counter() - began
        outcome = sessions.step(rungs)
        for name, row in rows.items():
            row.append(getattr(outcome, name))
        levels_s.append(np.where(segments == len(levels_s) + 1, sessions.state["buffer_s"], 0.0))
    return Played(segments, seconds, **{name: np.stack(row) for name, row in rows.items()}, buffer_s=np.stack(levels_s))


@dataclass(frozen=True, eq=False)
class ModelPolicy:
    """The trained policy, run by the engine that serves it.

    Attributes:
        engine: of the artifact's graph `policy`.
        name: as tables print it.
    """

    engine: Engine
    name: str = PLAYHEAD

    @classmethod
    def load(cls, models: Path, version: str | None = None) -> Self:
        """The champion, a version of it, or the artifact in a folder.

        Raises:
            NotFound: no champion yet, or nothing there.
            ArtifactError: it can't be used.
        """
        folder: Path | None
        if version is None:
            folder = read_champion(models, MODEL)
        else:
            folder = next((path for path in (models / MODEL / version, Path(version)) if path.is_dir()), None)
        if folder is None:
            raise NotFound(
                field="model",
                got=version or "no champion",
                expected="a trained version, or the folder of an artifact",
                next_step="Run `playhead train bitrate`, or leave `playhead` out of --policy.",
            )
        return cls(load_engine(read_artifact(folder), "policy", batches=(1, BATCH)))

    def start(self, n: int) -> None:
        """Nothing to forget."""

    def choose(self, observations: Observations, sessions: Sessions) -> Integers:
        """Rung of each session (B,)."""
        del sessions
        rungs: Integers = self.engine(observations.as_inputs())["scores"].argmax(1).astype(np.int64)
        return rungs


def evaluate(
    policies: Sequence[Policy],
    traces: Sequence[Trace],
    video: Video,
    qoe: Qoe = LINEAR,
    settings: Settings = PENSIEVE,
    *,
    seed: int = 0,
    progress: ProgressReport = silent,
) -> tuple[dict[str, Any], dict[str, Played]]:
    """Run policies over all traces, one session a trace.

    Args:
        policies: with names that differ.
        traces: with names that differ.
        video: the title.
        qoe: what sessions are worth; policies are told it.
        settings: the rules of a session.
        seed: of what the settings leave to chance.
        progress: told how many sessions are done.

    Returns:
        A report, and what each policy did (segments by traces). The report:
        {"policies": {name: {"mean", "p5", "rebuffer_s", "switches", "bitrate_kbps", "decision_us", "traces": {trace:
        value}}}, "paired": {name: {rival: {"mean", "standard_error"}}}, "setting": {...}, "seconds"}. A session's value
        is its mean QoE per segment from the second one on; mean and p5 (5th percentile) are over traces; rebuffer_s,
        switches and bitrate_kbps are means over sessions; paired is the mean difference of values to a rival of RIVALS,
        with the standard error of that mean. `optimum` adds "upper_bound": no plan is better (mean over traces).

    Raises:
        InvalidInput: no policies or traces, names twice, or a QoE on VMAF for a title without it.
    """
    began = time.monotonic()
    _check("policies", [policy.name for policy in policies])
    _check("traces", [trace.name for trace in traces])
    batches = [traces[first : first + BATCH] for first in range(0, len(traces), BATCH)]
    played: dict[str, Played] = {}
    bounds: list[Floats] = []
    for policy in policies:
        parts = []
        for number, batch in enumerate(batches):
            parts.append(play(policy, Sessions(batch, video, qoe, settings, seed=seed + number)))
            if isinstance(policy, Optimum):
                bounds.append(policy.bounds)
            progress(policy.name, sum(len(part.segments) for part in parts), len(traces))
        played[policy.name] = Played.joined(parts)
    rows = {name: _row(one, traces, video) for name, one in played.items()}
    if bounds:
        rows[OPTIMUM]["upper_bound"] = float(np.concatenate(bounds).mean())
    report = {
        "policies": rows,
        "paired": {name: paired for name in rows if (paired := _paired(played, name))},
        "setting": {
            "traces": len(traces), "video": video.name, "segments": len(video.segment_bytes),
            "segment_s": video.segment_s, "rungs_kbps": video.rungs_kbps.tolist(), "qoe": vars(qoe), **vars(settings),
        },
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    return report, played


def _check(field: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise InvalidInput(
            field=field, got=twice or "none", expected="at least one, each once", next_step=f"Correct the {field}."
        )


def _row(played: Played, traces: Sequence[Trace], video: Video) -> dict[str, Any]:
    values = played.values
    sent_kbps = played.counted(np.where(played.fetched, video.rungs_kbps[played.rung], 0.0))
    return {
        "mean": float(values.mean()),
        "p5": float(np.percentile(values, 5)),
        "rebuffer_s": float(played.counted(played.rebuffer_s).mean()),
        "switches": float(played.switches.mean()),
        "bitrate_kbps": float((sent_kbps / np.maximum(played.segments - 1, 1)).mean()),
        "decision_us": round(played.seconds * 1e6 / int(played.segments.sum()), 1),
        "traces": {trace.name: float(value) for trace, value in zip(traces, values, strict=True)},
    }


def _paired(played: Mapping[str, Played], name: str) -> dict[str, dict[str, float]]:
    paired = {}
    for rival in RIVALS:
        if rival in played and rival != name:
            differences = played[name].values - played[rival].values
            error = differences.std(ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else 0.0
            paired[rival] = {"mean": float(differences.mean()), "standard_error": float(error)}
    return paired
