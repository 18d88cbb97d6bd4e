"""Many simulated rollouts: how often one is rolled back for nothing, and how many requests it takes to see harm."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from scipy.stats import beta

from serve.rollout.decisions import ASSIGNMENT, METRICS, STAGES, Judge, Limits
from serve.rollout.session_trials import SESSION_LIMITS
from training.rollout.sessions import STEP_S, Audience, Playback, SessionEffect
from training.rollout.viewers import Effect, Population, Traffic

PROFILES: Final = 400_000
MOST_S: Final = 3600
"""Seconds after which a simulated rollout is left undecided."""

ALIKE: Final = Effect()
EFFECTS: Final[Mapping[str, Effect]] = {
    "plays -20 %": Effect(plays=0.8),
    "plays -50 %": Effect(plays=0.5),
    "p99 x2": Effect(latency=2.0),
    "p99 x2, tail only": Effect(tail=2.0),
    "errors x3": Effect(errors=3.0),
    "degraded x3": Effect(degraded=3.0),
}
HELD: Final = ("plays -20 %", "p99 x2")
"""Effects that are also tried at each stage alone, for as long as it takes."""

VIEWERS: Final = 100_000
MOST_POLICY_S: Final = 4 * 3600
"""As MOST_S, of bitrate policies: sessions tell less often."""
POLICY_EFFECTS: Final[Mapping[str, SessionEffect]] = {
    "rebuffering +20 %": SessionEffect(rebuffering=1.2),
    "rebuffering x2": SessionEffect(rebuffering=2.0),
    "VMAF -5": SessionEffect(vmaf=-5.0),
    "start-up x1.5": SessionEffect(startup=1.5),
    "failures x3": SessionEffect(failures=3.0),
}
POLICY_HELD: Final = ("rebuffering +20 %", "VMAF -5")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How one rollout ended.

    Attributes:
        ended: rolled_back, promoted or undecided.
        metric: what was blamed.
        share: of the stage at which it ended.
        seconds: what it took.
        requests: of both arms.
        challenger_requests: of the challenger's arm.
    """

    ended: str
    metric: str | None
    share: float
    seconds: int
    requests: int
    challenger_requests: int


def roll_out(
    seed: Sequence[int], population: Population, effect: Effect, *, once: bool = True, held: int | None = None
) -> Trial:
    """Simulate one rollout, looked at every second.

    Args:
        seed: of all chance in it.
        population: who may come.
        effect: what the challenger does.
        once: count as serve.rollout.decisions.ArmCounts asks; else every request and event, with each window's share
            of requests.
        held: stay at this stage (its place among STAGES); None: go on as the judge says.
    """
    traffic = Traffic(np.random.default_rng(seed), population, effect, once=once)
    metrics = METRICS if once else {name: one for name, one in METRICS.items() if name != ASSIGNMENT}
    judge = Judge(STAGES, Limits(metrics=metrics) if held is None else Limits(metrics=metrics, least_s=float("inf")))
    for _ in range(held or 0):
        judge.advance()
    windows = traffic.stage(judge.stage.share)
    challenger, total = 0, 0
    for second in range(MOST_S):
        counts, share = next(windows)
        challenger += counts.challenger.requests
        total += counts.challenger.requests + counts.champion.requests
        decision = judge.see(counts, None if once else share)
        ended = {"wait": None, "roll_back": "rolled_back", "advance": "promoted"}[decision.action]
        if decision.action == "advance" and judge.advance():
            windows, ended = traffic.stage(judge.stage.share), None
        if ended is not None:
            return Trial(
                ended=ended, metric=decision.metric, share=decision.share, seconds=second + 1, requests=total,
                challenger_requests=challenger,
            )  # fmt: skip
    return Trial(
        ended="undecided", metric=None, share=judge.stage.share, seconds=MOST_S, requests=total,
        challenger_requests=challenger,
    )  # fmt: skip


def roll_out_policy(
    seed: Sequence[int], audience: Audience, effect: SessionEffect, *, held: int | None = None
) -> Trial:
    """Simulate one rollout of a bitrate policy.

    Args:
        seed: of all chance in it.
        audience: who may watch.
        effect: what the challenger does.
        held: stay at this stage (its place among STAGES); None: go on as the judge says.

    Returns:
        How it ended; its requests are sessions that are over.
    """
    playback = Playback(np.random.default_rng(seed), audience, effect)
    limits = SESSION_LIMITS if held is None else replace(SESSION_LIMITS, least_s=float("inf"))
    judge = Judge(STAGES, limits)
    for _ in range(held or 0):
        judge.advance()
    windows = playback.stage(judge.stage.share)
    challenger, total = 0, 0
    for step in range(MOST_POLICY_S // STEP_S):
        counts = next(windows)
        challenger += counts.challenger.requests
        total += counts.challenger.requests + counts.champion.requests
        decision = judge.see(counts)
        ended = {"wait": None, "roll_back": "rolled_back", "advance": "promoted"}[decision.action]
        if decision.action == "advance" and judge.advance():
            windows, ended = playback.stage(judge.stage.share), None
        if ended is not None:
            return Trial(
                ended=ended, metric=decision.metric, share=decision.share, seconds=(step + 1) * STEP_S, requests=total,
                challenger_requests=challenger,
            )  # fmt: skip
    return Trial(
        ended="undecided", metric=None, share=judge.stage.share, seconds=MOST_POLICY_S, requests=total,
        challenger_requests=challenger,
    )  # fmt: skip


def evaluate_policy(
    *, seed: int, runs: int, viewers: int = VIEWERS, progress: Progress = lambda _name, _done, _total: None
) -> dict[str, Any]:
    """Roll out bitrate policies that are alike, and worse ones.

    Args:
        seed: of all chance.
        runs: rollouts of a policy that is like the champion; a tenth as many of each worse one.
        viewers: of the simulated audience.
        progress: told of what is run, how many were, and of how many.

    Returns:
        As `evaluate`, of sessions instead of requests, and without what would be if every event were counted.
    """
    audience = Audience.draw(np.random.default_rng([seed, 1]), viewers)

    def many(name: str, place: int, count: int, effect: SessionEffect, held: int | None = None) -> list[Trial]:
        trials = []
        for run in range(count):
            trials.append(roll_out_policy((seed, place, run), audience, effect, held=held))
            progress(name, run + 1, count)
        return trials

    fewer = max(runs // 10, 1)
    alike = many("alike", 1001, runs, SessionEffect())
    false = [trial for trial in alike if trial.ended == "rolled_back"]
    detected = {
        name: _detection(many(name, 1002 + place, fewer, effect))
        for place, (name, effect) in enumerate(POLICY_EFFECTS.items())
    }
    at_one_stage = {
        name: {
            f"{stage.share:g}": _detection(
                many(f"{name} at {stage.share:.0%}", 1100 + 10 * place + held, fewer, POLICY_EFFECTS[name], held)
            )
            for held, stage in enumerate(STAGES)
        }
        for place, name in enumerate(POLICY_HELD)
    }
    return {
        "seed": seed,
        "false_rollback_rate": len(false) / runs,
        "false_rollback_rate_upper_95": upper(len(false), runs),
        "runs": runs,
        "looks": sum(trial.seconds // STEP_S for trial in alike),
        "false_rollbacks": [asdict(trial) for trial in false],
        "promoted": sum(trial.ended == "promoted" for trial in alike) / runs,
        "requests_to_promote": _quantiles([trial for trial in alike if trial.ended == "promoted"], len(alike)),
        "requests_to_detect": detected,
        "requests_at_one_stage": at_one_stage,
    }


def evaluate(
    *, seed: int, runs: int, profiles: int = PROFILES, progress: Progress = lambda _name, _done, _total: None
) -> dict[str, Any]:
    """Roll out challengers that are alike, and worse ones.

    Args:
        seed: of all chance.
        runs: rollouts of a challenger that is like the champion. A tenth of them run again with every event counted,
            which tells what the unit that is counted is good for; each worse challenger is rolled out as often.
        profiles: of the simulated population.
        progress: told of what is run, how many were, and of how many.

    Returns:
        false_rollback_rate and its one-sided 95 % upper bound (Clopper and Pearson), requests_to_detect by effect,
        requests_at_one_stage by effect and share, requests_to_promote, and the same rate if every event were counted.
    """
    population = Population.draw(np.random.default_rng([seed, 0]), profiles)

    def many(name: str, place: int, count: int, effect: Effect, **how: Any) -> list[Trial]:
        trials = []
        for run in range(count):
            trials.append(roll_out((seed, place, run), population, effect, **how))
            progress(name, run + 1, count)
        return trials

    fewer = max(runs // 10, 1)
    alike = many("alike", 1, runs, ALIKE)
    false = [trial for trial in alike if trial.ended == "rolled_back"]
    naive = many("alike, every event counted", 1, fewer, ALIKE, once=False)
    detected = {
        name: _detection(many(name, 2 + place, fewer, effect)) for place, (name, effect) in enumerate(EFFECTS.items())
    }
    at_one_stage = {
        name: {
            f"{stage.share:g}": _detection(
                many(f"{name} at {stage.share:.0%}", 100 * (place + 1) + held, fewer, EFFECTS[name], held=held)
            )
            for held, stage in enumerate(STAGES)
        }
        for place, name in enumerate(HELD)
    }
    return {
        "seed": seed,
        "false_rollback_rate": len(false) / runs,
        "false_rollback_rate_upper_95": upper(len(false), runs),
        "runs": runs,
        "looks": sum(trial.seconds for trial in alike),
        "false_rollbacks": [asdict(trial) for trial in false],
        "promoted": sum(trial.ended == "promoted" for trial in alike) / runs,
        "requests_to_promote": _quantiles([trial for trial in alike if trial.ended == "promoted"], len(alike)),
        "requests_to_detect": detected,
        "requests_at_one_stage": at_one_stage,
        "every_event_counted": _every_event(naive),
    }


def upper(hits: int, runs: int, confidence: float = 0.95) -> float:
    """Upper bound of a probability (C. J. Clopper and E. S. Pearson, Biometrika 26, 1934), one-sided."""
    return 1.0 if hits >= runs else float(beta.ppf(confidence, hits + 1, runs - hits))


def _every_event(naive: Sequence[Trial]) -> dict[str, Any]:
    hits = sum(trial.ended == "rolled_back" for trial in naive)
    return {
        "runs": len(naive),
        "false_rollback_rate": hits / len(naive),
        "blamed": dict(Counter(trial.metric for trial in naive if trial.metric)),
    }


def _detection(trials: Sequence[Trial]) -> dict[str, Any]:
    """Of all trials: those that were not rolled back count as more requests than any."""
    caught = [trial for trial in trials if trial.ended == "rolled_back"]
    return {
        **_quantiles(caught, len(trials)),
        "detected": len(caught) / len(trials),
        "promoted": sum(trial.ended == "promoted" for trial in trials) / len(trials),
        "runs": len(trials),
        "by_stage": {f"{share:g}": count for share, count in sorted(Counter(one.share for one in caught).items())},
        "blamed": dict(Counter(trial.metric for trial in caught)),
    }


def _quantiles(trials: Sequence[Trial], of: int) -> dict[str, float | None]:
    """Median and p90; None where too few of all got there."""
    told: dict[str, float | None] = {}
    for prefix, attribute in (("", "requests"), ("challenger_", "challenger_requests"), ("seconds_", "seconds")):
        ordered = sorted(getattr(trial, attribute) for trial in trials)
        for name, share in (("median", 0.5), ("p90", 0.9)):
            place = int(np.ceil(share * of)) - 1
            told[prefix + name] = ordered[place] if 0 <= place < len(ordered) else None
    return told
