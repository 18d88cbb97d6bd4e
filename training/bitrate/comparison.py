"""`playhead eval bitrate`: what was asked for, checked and read before anything runs, and the report.

Units: time s, bitrate kbit/s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from serve.errors import InvalidInput
from training.bitrate.evaluate import OPTIMUM, PLAYHEAD, ModelPolicy, Played, evaluate
from training.bitrate.optimum import Optimum
from training.bitrate.plot import render
from training.bitrate.policies import Policy
from training.bitrate.published import PUBLISHED, Replay, published
from training.bitrate.qoe import Qoe
from training.bitrate.references import REFERENCES
from training.bitrate.simulator import PENSIEVE, Settings
from training.bitrate.synthetic import FAMILIES, generate_traces, generate_videos
from training.bitrate.traces import Format, Trace, read_traces
from training.bitrate.video import Video, read_video
from training.recommend.progress import ProgressReport, silent

ALL: Final = "all"
ENVIVIO_KBPS: Final = (300.0, 750.0, 1200.0, 1850.0, 2850.0, 4300.0)
"""The ladder that comparisons on Envivio use; taken where none is given and the sizes fit it within 5 %."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to compare.

    Attributes:
        traces: folder of traces; None: generate them.
        format: of the traces.
        family: whose traces are generated where there is no folder.
        count: how many are generated.
        sizes: folder of the title's sizes; None: generate a title, too.
        vmaf: folder of the title's VMAF.
        ladder_kbps: nominal bitrates; None: ENVIVIO_KBPS where it fits, else as the sizes say.
        segment_s: length of a segment.
        max_buffer_s: cap of the buffer.
        qoe: as Qoe.of reads it.
        policies: names, or `all`.
        logs: folder of published logs; None: `logs` beside the folder of traces, if it is there.
        model: version or folder of the policy to run as `playhead`; None: the champion.
        seed: of what is generated.
        plot: where to draw one session.
        plot_trace: which one; None: where the policy stays farthest below the optimum.
    """

    traces: Path | None = None
    format: str = "auto"
    family: str | None = None
    count: int = 100
    sizes: Path | None = None
    vmaf: Path | None = None
    ladder_kbps: Sequence[float] | None = None
    segment_s: float = 4.0
    max_buffer_s: float = PENSIEVE.max_buffer_s
    qoe: str = "linear"
    policies: Sequence[str] = (ALL,)
    logs: Path | None = None
    model: str | None = None
    seed: int = 0
    plot: Path | None = None
    plot_trace: str | None = None


def compare(request: Request, models: Path, progress: ProgressReport = silent) -> dict[str, Any]:
    """Run a comparison.

    Args:
        request: what to compare.
        models: folder of models, for the champion.
        progress: told how far each policy is.

    Returns:
        As training.bitrate.evaluate.evaluate, with "notes" on what was left out and why, and "plot" where one was
        drawn: {"path", "policy", "trace"}; that is the first policy asked for.

    Raises:
        InvalidInput: something that can't be used; nothing was run.
        NotFound: a folder, file or model that is not there; nothing was run.
        ArtifactError: a model that can't be used; nothing was run.
    """
    qoe = Qoe.of(request.qoe)
    settings = replace(PENSIEVE, max_buffer_s=request.max_buffer_s)
    traces, video = _traces(request), _title(request)
    if qoe.measure == "vmaf" and video.vmaf is None:
        raise _refuse("vmaf", None, f"the folder of the segments' VMAF, which the QoE {qoe.name} is defined on")
    replays, notes = _logs(request, traces, video, settings)
    policies, missing = _policies(request, models, replays)
    if request.plot is not None:
        _check_plot(request, request.plot, traces)
        if OPTIMUM not in {policy.name for policy in policies}:
            policies.append(Optimum())
    report, played = evaluate(policies, traces, video, qoe, settings, seed=request.seed, progress=progress)
    report["notes"] = notes + missing
    if request.plot is not None:
        report["plot"] = _draw(request, request.plot, played, traces, video, settings)
    return report


def _refuse(field: str, got: object, expected: str) -> InvalidInput:
    return InvalidInput(field=f"--{field}", got=got, expected=expected, next_step=f"Correct --{field}.")


def _traces(request: Request) -> list[Trace]:
    if request.traces is None:
        families = [family for family in FAMILIES if family.name == request.family]
        if not families:
            names = ", ".join(family.name for family in FAMILIES)
            raise _refuse("traces", request.family, f"a folder of traces, or --family of {names}")
        return generate_traces(request.count, seed=request.seed, families=families)
    if request.family is not None:
        raise _refuse("family", request.family, "either --traces or --family")
    if request.format not in get_args(Format):
        raise _refuse("format", request.format, ", ".join(get_args(Format)))
    return read_traces(request.traces, request.format)  # type: ignore[arg-type]  # checked above


def _title(request: Request) -> Video:
    if request.sizes is None:
        if request.traces is not None:
            raise _refuse("sizes", None, "the folder of the title's segment sizes")
        return generate_videos(1, seed=request.seed)[0]
    video = read_video(request.sizes, request.vmaf, request.ladder_kbps, request.segment_s)
    fits = len(video.rungs_kbps) == len(ENVIVIO_KBPS) and np.allclose(video.rungs_kbps, ENVIVIO_KBPS, rtol=0.05)
    return replace(video, rungs_kbps=np.array(ENVIVIO_KBPS)) if request.ladder_kbps is None and fits else video


def _logs(
    request: Request, traces: Sequence[Trace], video: Video, settings: Settings
) -> tuple[list[Replay], list[str]]:
    if request.logs is not None:
        replays, notes = published(request.logs, traces, video, settings)
        if not replays:
            raise _refuse("logs", str(request.logs), f"logs of these traces, this title and settings. {notes[0]}")
        return replays, notes
    beside = request.traces.resolve().parent / "logs" if request.traces is not None else None
    asked = any(name == ALL or name.startswith(PUBLISHED) for name in request.policies)
    if not asked or beside is None or not beside.is_dir():
        return [], []
    return published(beside, traces, video, settings)


def _policies(request: Request, models: Path, replays: Sequence[Replay]) -> tuple[list[Policy], list[str]]:
    logged = {replay.name: replay for replay in replays}
    known = [PLAYHEAD, *REFERENCES, OPTIMUM, *logged]
    wrong = [name for name in request.policies if name not in {ALL, *known}]
    if wrong or not request.policies:
        raise _refuse("policy", ", ".join(wrong), f"{ALL}, or some of {', '.join(known)}")
    names = known if ALL in request.policies else list(dict.fromkeys(request.policies))
    notes = []
    if ALL in request.policies and request.model is None and not (models / "bitrate" / "champion").exists():
        names.remove(PLAYHEAD)
        notes.append(f"{PLAYHEAD} left out: no champion yet; run `playhead train bitrate`")
    policies: list[Policy] = []
    for name in names:
        if name == PLAYHEAD:
            policies.append(ModelPolicy.load(models, request.model))
        elif name == OPTIMUM:
            policies.append(Optimum())
        else:
            policies.append(logged[name] if name in logged else REFERENCES[name]())
    return policies, notes


def _check_plot(request: Request, path: Path, traces: Sequence[Trace]) -> None:
    if not path.parent.is_dir() or path.is_dir():
        raise _refuse("plot", str(path), "a file in a folder that is there")
    if request.plot_trace is not None and request.plot_trace not in {trace.name for trace in traces}:
        raise _refuse("plot-trace", request.plot_trace, f"the name of a trace, such as {traces[0].name}")


def _draw(
    request: Request, path: Path, played: dict[str, Played], traces: Sequence[Trace], video: Video, settings: Settings
) -> dict[str, str]:
    name = next(iter(played))
    names = [trace.name for trace in traces]
    gaps = played[OPTIMUM].values - played[name].values
    index = int(gaps.argmax()) if request.plot_trace is None else names.index(request.plot_trace)
    page = render(traces[index], video, settings, index, {name: played[name], OPTIMUM: played[OPTIMUM]})
    path.write_text(page, encoding="utf-8")
    return {"path": str(path), "policy": name, "trace": names[index]}
