"""The bitrate policy's gate: both versions in the same held-out sessions of the exact simulator, family by family.

Traces and titles are generated with seeds that no training draws (above 2**31); where published traces lie on disk, the
eighth that training leaves out is a family of its own. QoE is measured per segment, in the range of the title's
quality, so that titles count alike. Units: time s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve.artifacts import Artifact
from serve.engines import load_engine
from serve.engines.base import Engine
from serve.errors import ArtifactError
from training.bitrate.critic import Scale
from training.bitrate.evaluate import BATCH, ModelPolicy, play
from training.bitrate.material import Material
from training.bitrate.simulator import Sessions
from training.bitrate.synthetic import FAMILIES, generate_traces, generate_videos
from training.gates.hearing import Hearing
from training.gates.intervals import Floats, Interval, bootstrap, weighted_quantile
from training.gates.noninferiority import Margin, is_better, judge
from training.gates.soundness import (
    check_changed,
    check_graphs,
    check_lineage,
    check_size,
    time_turns,
)
from training.gates.verdict import Check, Comparison, Verdict

GRAPH: Final = "policy"
FIRST_SEED: Final = 2**31
"""Training draws its seeds below."""
GIVEN: Final = "published"

_TITLES: Final = 8
_TAIL: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class BitrateSettings:
    """What is asked of a policy; QoE in the range of the title's quality.

    Attributes:
        traces: of each family.
        qoe: margins of the mean QoE.
        tail: the most that the 5th percentile of sessions may be worse.
        stalls: the most that rebuffering may be longer, seconds per segment.
        timed: decisions that are timed.
        seed: of what is generated, 0 and up.
    """

    traces: int = 60
    qoe: Margin = field(default_factory=lambda: Margin(overall=0.01, slices=0.03, relative=False))
    tail: float = 0.05
    stalls: float = 0.02
    timed: int = 200
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Outcome:
    """What a version did in N sessions."""

    qoe: Floats
    stalls_s: Floats
    rungs: NDArray[np.int64]


def gate_bitrate(
    candidate: Artifact,
    champion: Artifact,
    *,
    settings: BitrateSettings | None = None,
    material: Material | None = None,
) -> Verdict:
    """Ask whether a policy may go on.

    Args:
        candidate: the artifact.
        champion: the artifact that it would replace.
        settings: what is asked.
        material: whose held-out traces are a family; None: Material.default().

    Raises:
        ArtifactError: the champion can't be served.
    """
    settings = settings or BitrateSettings()
    checks = [check_lineage(candidate, timed=False), *check_graphs(candidate), check_size(candidate, champion)]
    facts: dict[str, Any] = {"seed": FIRST_SEED + settings.seed}
    hearing = Hearing(candidate=candidate, champion=champion, checks=checks, facts=facts)

    if not hearing.is_sound:
        return hearing.verdict()
    try:
        mine = load_engine(candidate, GRAPH, "cpu", batches=(1, BATCH))
    except ArtifactError as error:
        return hearing.refused("serving", error)
    other = load_engine(champion, GRAPH, "cpu", batches=(1, BATCH))
    worlds = held_out_sessions(settings, material or Material.default())
    facts |= {"sessions": sum(len(world) for world in worlds.values()), "families": ", ".join(worlds)}
    ours, theirs = _play(mine, worlds), _play(other, worlds)
    same = np.array_equal(ours.rungs, theirs.rungs)
    checks.append(check_changed(candidate, champion, same_answers=same))
    compared, comparisons = _compare(ours, theirs, worlds, settings)
    checks += compared
    seconds = _time(mine, other, next(iter(worlds.values())), settings)
    hearing.time(*seconds, settings.seed)
    return hearing.verdict(
        comparisons=tuple(comparisons), better=not same and is_better(comparisons[0]),
    )  # fmt: skip


def held_out_sessions(settings: BitrateSettings, material: Material) -> dict[str, Sessions]:
    """Family -> sessions that no training plays, the same each time.

    Args:
        settings: how many, and the seed.
        material: whose held-out traces are the family GIVEN, in its own titles, where they were not generated.
    """
    seed = FIRST_SEED + settings.seed
    titles = generate_videos(_TITLES, seed=seed)
    worlds = {
        family.name: Sessions(
            generate_traces(settings.traces, seed=seed + 1 + place, families=[family]), titles, seed=seed
        )
        for place, family in enumerate(FAMILIES)
    }
    generated = {family.name for family in FAMILIES}
    given = [trace for trace in material.held_out if trace.name.partition("-")[0] not in generated]
    if given:
        worlds[GIVEN] = Sessions(given, material.titles, seed=seed)
    return worlds


def _play(engine: Engine, worlds: Mapping[str, Sessions]) -> _Outcome:
    """Let a version decide in all sessions."""
    qoe, stalls, rungs = [], [], []
    for sessions in worlds.values():
        sessions.reset()
        played = play(ModelPolicy(engine), sessions)
        qoe.append(played.values / Scale(sessions).unit)
        stalls.append(played.counted(played.rebuffer_s) / np.maximum(played.segments - 1, 1))
        rungs.append(played.rung.ravel())
    return _Outcome(
        qoe=np.concatenate(qoe), stalls_s=np.concatenate(stalls), rungs=np.concatenate(rungs).astype(np.int64)
    )


def _compare(
    ours: _Outcome, theirs: _Outcome, worlds: Mapping[str, Sessions], settings: BitrateSettings
) -> tuple[list[Check], list[Comparison]]:
    names = np.repeat(list(worlds), [len(world) for world in worlds.values()])
    units = np.arange(len(names), dtype=np.int64)
    families = {name: names == name for name in worlds}
    checks, comparisons = judge("qoe", ours.qoe, theirs.qoe, units, families, settings.qoe, unit="sessions")
    margin = Margin(overall=settings.stalls, slices=settings.stalls, relative=False)
    more, compared = judge("stalls", -ours.stalls_s, -theirs.stalls_s, units, {}, margin, unit="sessions")
    tail = _tail(ours.qoe, theirs.qoe, settings.seed)
    low = float(np.quantile(ours.qoe, _TAIL)), float(np.quantile(theirs.qoe, _TAIL))
    text = (
        f"5th percentile of sessions {low[0]:.4f} against {low[1]:.4f}, {tail.value:+.4f} ({tail.low:+.4f} to "
        f"{tail.high:+.4f}), may be {-settings.tail:+g}"
    )
    passed = tail.low > -settings.tail
    more.append(Check(name="qoe p5", passed=passed, measured=tail.low, bound=-settings.tail, text=text))
    told = Comparison(
        measure="qoe p5", group="all", candidate=low[0], champion=low[1], difference=tail, margin=settings.tail,
        relative=False, decisive=True,
    )  # fmt: skip
    return checks + more, [*comparisons, *compared, told]


def _tail(ours: Floats, theirs: Floats, seed: int) -> Interval:
    """Difference of the two 5th percentiles, over drawn sessions."""
    return bootstrap(
        lambda drawn: weighted_quantile(ours, drawn, _TAIL) - weighted_quantile(theirs, drawn, _TAIL),
        len(ours), len(ours), seed=seed,
    )  # fmt: skip


def _time(mine: Engine, other: Engine, sessions: Sessions, settings: BitrateSettings) -> tuple[Floats, Floats]:
    """Seconds of single decisions."""
    sessions.reset()
    inputs = sessions.observe().as_inputs()
    random = np.random.default_rng(settings.seed)
    places = random.integers(0, len(sessions), settings.timed).tolist()

    def call(engine: Engine, place: int) -> None:
        engine({name: values[place : place + 1] for name, values in inputs.items()})

    return time_turns(lambda place: call(mine, place), lambda place: call(other, place), places)
