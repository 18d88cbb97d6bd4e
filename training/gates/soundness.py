"""Checks of an artifact itself, whatever its model: graphs, figures, size, lineage, and whether it is new at all."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from serve.artifacts import DERIVED, Artifact
from serve.engines.openvino import OpenVinoEngine
from serve.engines.parity import differences
from serve.errors import ArtifactError
from training.gates.intervals import Floats, bootstrap, weighted_quantile
from training.gates.verdict import Check

LARGEST: Final = 2.0
"""Times the champion's size."""
REPEATS: Final = 3
"""Tries of what is timed; the fastest counts."""
SLOWEST: Final = 1.25
"""Times the champion's engine time, at the upper bound."""


def check_graphs(artifact: Artifact) -> list[Check]:
    """Whether every graph computes finite figures, the same compiled as exported.

    Its own example is run by OpenVINO and held against what torch made of it when it was exported (`example`'s
    outputs, which the manifest's hashes cover); a graph that can't be run fails.

    Args:
        artifact: the candidate.
    """
    broken, apart = [], []
    worst = 0.0
    for graph, spec in artifact.manifest.graphs.items():
        try:
            inputs, recorded = artifact.example(graph)
            compiled = OpenVinoEngine.load(artifact, graph)(inputs)
        except ArtifactError as error:
            apart.append(f"{graph} can't be run: {error}")
            worst = np.inf
            continue
        for name, values in compiled.items():
            if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                broken.append(f"{graph}.{name}: {np.count_nonzero(~np.isfinite(values))} of {values.size}")
        for name, away in differences(spec, recorded, compiled).items():
            worst = max(worst, away / spec.tolerance)
            if away > spec.tolerance:
                apart.append(f"{graph}.{name} is {away:.3g} from torch's, may be {spec.tolerance:g}")
    return [
        Check(
            name="finite", passed=not broken, measured=float(len(broken)), bound=0.0,
            text=f"outputs with NaN or infinity: {'; '.join(broken)}" if broken
            else "all graphs give finite figures for their examples",
        ),
        Check(
            name="parity", passed=not apart, measured=worst, bound=1.0,
            text="; ".join(apart) if apart
            else f"compiled graphs are torch's: the greatest error is {worst:.2g} of what is allowed",
        ),
    ]  # fmt: skip


def check_size(candidate: Artifact, champion: Artifact) -> Check:
    """Whether the candidate is at most LARGEST times the champion's size."""
    sizes = [_bytes(artifact) for artifact in (candidate, champion)]
    share = sizes[0] / max(sizes[1], 1)
    return Check(
        name="size", passed=share <= LARGEST, measured=share, bound=LARGEST,
        text=f"{sizes[0] / 1e6:.2f} MB against {sizes[1] / 1e6:.2f} MB, {share:.2f} times, may be {LARGEST:g}",
    )  # fmt: skip


def _bytes(artifact: Artifact) -> int:
    return sum(
        (artifact.path / name).stat().st_size for name in artifact.manifest.files if not name.startswith(DERIVED)
    )


def check_changed(candidate: Artifact, champion: Artifact, *, same_answers: bool) -> Check:
    """Whether the candidate is another model than the champion: a rollout of the same would be for nothing.

    Args:
        candidate: the candidate.
        champion: the champion.
        same_answers: whether both answered all that was asked in the same way.
    """
    same_content = _content(candidate) == _content(champion)
    why = "its content is the champion's" if same_content else "all answers are the champion's"
    same = same_content or same_answers
    return Check(
        name="no change", passed=not same, measured=float(same), bound=0.0,
        text=f"no change: {why}; a rollout would be for nothing" if same else "it differs from the champion",
    )  # fmt: skip


def _content(artifact: Artifact) -> Mapping[str, object]:
    """Graphs and tables; of a model that has none, its parameters."""
    files = {
        name: digest
        for name, digest in artifact.manifest.files.items()
        if name.startswith("openvino/") or name.endswith(".parquet")
    }
    return files or artifact.manifest.parameters


def check_lineage(candidate: Artifact, *, timed: bool) -> Check:
    """Whether the manifest says where the candidate comes from.

    Args:
        candidate: the candidate.
        timed: whether its data have times.
    """
    lineage = candidate.manifest.lineage
    missing = (
        ["all of it"] if lineage is None
        else [
            name for name, there in (
                ("dataset", lineage.dataset or candidate.manifest.data_snapshot), ("environment", lineage.environment),
                ("last_ts_ms", lineage.last_ts_ms or not timed),
            ) if not there
        ]
    )  # fmt: skip
    return Check(
        name="lineage", passed=not missing, measured=float(len(missing)), bound=0.0,
        text=f"the manifest's lineage lacks {', '.join(missing)}" if missing
        else "the manifest says what it was made from and with what",
    )  # fmt: skip


def check_latency(candidate_s: Floats, champion_s: Floats, *, seed: int) -> Check:
    """Whether the candidate's engine time is at most SLOWEST times the champion's, by the upper bound.

    Args:
        candidate_s: seconds of each answer (I,).
        champion_s: of the same answers (I,).
        seed: of the bootstrap.
    """
    logs = np.log(candidate_s / champion_s)
    found = bootstrap(lambda weights: np.exp(weighted_quantile(logs, weights, 0.5)), len(logs), len(logs), seed=seed)
    return Check(
        name="latency", passed=found.high <= SLOWEST, measured=found.high, bound=SLOWEST,
        text=f"{found.value:.2f} times the champion's engine time ({found.low:.2f} to {found.high:.2f}), median of "
        f"{len(logs)} answers timed turn about; may be {SLOWEST:g}",
    )  # fmt: skip


def time_turns(
    candidate: Callable[[int], object], champion: Callable[[int], object], places: Sequence[int]
) -> tuple[Floats, Floats]:
    """Seconds of both for the same work: turn about, who is first changes, the best of a few tries each.

    Args:
        candidate: does the work at a place.
        champion: likewise.
        places: of the work.

    Returns:
        Candidate's and champion's seconds (len(places),).
    """
    seconds = np.full((2, len(places)), np.inf)
    for order, place in enumerate(places):
        for turn in range(REPEATS):
            for who in ((0, 1), (1, 0))[(order + turn) % 2]:
                began = time.perf_counter()
                (candidate, champion)[who](place)
                seconds[who, order] = min(seconds[who, order], time.perf_counter() - began)
    return seconds[0], seconds[1]


def quantiles_ms(seconds: Floats) -> tuple[float, float, float, float]:
    """10 %, 50 %, 90 % and 99 % of some seconds, in ms."""
    low, middle, high, highest = (np.quantile(seconds, (0.1, 0.5, 0.9, 0.99)) * 1000).tolist()
    return low, middle, high, highest
