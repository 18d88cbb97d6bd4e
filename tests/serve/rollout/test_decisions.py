"""Wait, advance or roll back: who is blamed first, what a stage must show, what a restart changes (nothing)."""

import json
from dataclasses import replace

import numpy as np
import pytest

from serve.errors import InvalidInput
from serve.rollout.decisions import (
    ASSIGNMENT,
    DRIFT,
    ERRORS,
    METRICS,
    PLAYS,
    STAGES,
    ArmCounts,
    Judge,
    Limits,
    Metric,
    Stage,
    WindowCounts,
)

CHAMPION = ArmCounts(requests=9900, profiles=9900, plays=2970, errors=10, degraded=50, slow=99, very_slow=10)
CHALLENGER = ArmCounts(requests=100, profiles=100, plays=30, errors=0, degraded=1, slow=1, very_slow=0)
CALM = WindowCounts(challenger=CHALLENGER, champion=CHAMPION)
SOON = Limits(least_s=5.0)


def window(**challenger):
    return replace(CALM, challenger=replace(CHALLENGER, **challenger))


def until(judge, counts, action, most=200):
    for _ in range(most):
        decision = judge.see(counts)
        if decision.action == action:
            return decision
    raise AssertionError(f"never {action}: {decision.reason}")


def test_a_ratio_has_to_be_ruled_out_before_the_last_stage_is_passed():
    judge = Judge(limits=Limits(least_s=1.0, bounded={ERRORS: 1.5}))
    waited = []
    for stage in STAGES:
        challenger = ArmCounts(plays=int(3e5 * stage.share), errors=round(10 * stage.share))
        champion = ArmCounts(plays=int(3e5 * (1 - stage.share)), errors=round(10 * (1 - stage.share)))
        counts = WindowCounts(challenger=challenger, champion=champion)
        first = judge.see(counts)
        waited.append((first.action, until(judge, counts, "advance").seconds if first.action == "wait" else 1.0))
        judge = Judge.from_state(json.loads(json.dumps(judge.state())))
        judge.advance()
    assert [action for action, _ in waited] == ["advance", "advance", "wait"]
    assert waited[-1][1] > 10, "plays were enough at once, errors were not"
    assert "errors at 1.5 times the champion's rate isn't ruled out" in first.reason


def test_a_challenger_that_is_alike_passes_all_stages():
    judge = Judge(limits=SOON)
    for stage in STAGES:
        share = stage.share
        counts = WindowCounts(
            challenger=ArmCounts(requests=int(1e5 * share), profiles=int(1e5 * share), plays=int(3e4 * share)),
            champion=ArmCounts(
                requests=int(1e5 * (1 - share)), profiles=int(1e5 * (1 - share)), plays=int(3e4 * (1 - share))
            ),
        )
        decision = until(judge, counts, "advance")
        assert decision.share == share
        assert decision.seconds >= SOON.least_s
        assert {one.metric for one in decision.evidence} == set(METRICS)
        assert f"{stage.margin:.0%}" in decision.reason
        assert judge.advance() == (stage is not STAGES[-1])
    json.dumps(decision.fields(), allow_nan=False)


def test_a_stage_lasts_long_enough_and_says_what_is_lacking():
    judge = Judge(limits=Limits(least_s=1000.0))
    decision = until(judge, CALM, "wait")
    assert "of 1000 s" in decision.reason
    assert decision.evidence == ()
    few = Judge(limits=Limits(least_s=1.0)).see(
        WindowCounts(challenger=ArmCounts(requests=1), champion=ArmCounts(requests=99))
    )
    assert (few.action, few.metric) == ("wait", None)
    assert "30%" in few.reason
    assert "ruled out" in few.reason


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("errors", {"errors": 5}),
        ("degraded", {"degraded": 9}),
        ("slow", {"slow": 12}),
        ("very_slow", {"very_slow": 5}),
        ("plays", {"plays": 15}),
        ("assignment", {"profiles": 60}),
        ("assignment", {"profiles": 160}),
    ],
)
def test_harm_is_rolled_back_with_its_evidence(name, changed):
    judge = Judge(limits=Limits(least_s=1e9))
    decision = until(judge, window(**changed), "roll_back")
    assert decision.metric == name
    assert decision.reason.startswith(f"{name}: ")
    found = next(one for one in decision.evidence if one.metric == name)
    assert found.e_value >= found.needed
    assert (found.high < 1.0) if changed.get("plays") or changed.get("profiles") == 60 else (found.low > 1.0)
    assert decision.challenger_requests * 99 == decision.champion_requests > 0


def test_better_is_no_harm():
    judge = Judge(limits=SOON)
    for _ in range(100):
        decision = judge.see(window(plays=60, errors=0, degraded=0, slow=0))
        assert decision.action in {"wait", "advance"}
    assert decision.action == "advance"


def test_who_is_blamed_first():
    everything = window(profiles=1, plays=0, errors=90, degraded=90, slow=90, very_slow=90)
    assert Judge().see(replace(everything, is_drifting=True)).metric == ASSIGNMENT
    assert Judge().see(replace(window(errors=90, plays=0), is_drifting=True)).metric == ERRORS
    assert Judge().see(replace(window(plays=0), is_drifting=True)).metric == PLAYS
    assert Judge().see(replace(CALM, is_drifting=True)).metric == DRIFT


def test_a_roll_back_comes_before_a_stage_that_is_passed():
    judge = Judge(limits=Limits(least_s=1.0))
    until(judge, CALM, "advance")
    assert judge.see(replace(CALM, is_drifting=True)).action == "roll_back"


def test_a_roll_back_stays_one():
    judge = Judge(limits=SOON)
    assert judge.see(window(errors=90)).action == "roll_back"
    restored = Judge.from_state(json.loads(json.dumps(judge.state())))
    for _ in range(50):
        assert judge.see(CALM).metric == ERRORS
    assert restored.see(CALM).metric == ERRORS


def test_what_is_suspect_is_not_promoted():
    judge = Judge(limits=Limits(least_s=1.0))
    until(judge, CALM, "advance")
    judge.see(window(errors=4))
    decision = judge.see(CALM)
    assert decision.action == "wait"
    assert decision.reason.startswith("errors is suspect")
    until(judge, replace(CALM, champion=replace(CHAMPION, errors=200)), "advance")


def test_a_stage_begins_without_what_was_known():
    judge = Judge(limits=SOON)
    until(judge, CALM, "advance")
    assert judge.advance()
    decision = judge.see(WindowCounts(challenger=ArmCounts(requests=7), champion=ArmCounts(requests=63)))
    assert (decision.share, decision.seconds, decision.challenger_requests) == (0.1, 1.0, 7)
    assert all(one.challenger == one.champion == 0 for one in judge.evidence())


def test_all_that_is_spent_adds_up():
    judge = Judge()
    spent = sum(1.0 / one.needed for one in judge.evidence()) * len(STAGES)
    assert spent == pytest.approx(judge.limits.false_rollbacks)
    with pytest.raises(InvalidInput):
        Limits(metrics={PLAYS: Metric(direction="fewer", spent=0.9), ERRORS: Metric(direction="more", spent=0.2)})


@pytest.mark.parametrize("stages", [(), (Stage(share=1.0, margin=0.1),), (Stage(share=0.1, margin=0.0),)])
def test_stages_that_cannot_be_judged_are_refused(stages):
    with pytest.raises(InvalidInput):
        Judge(stages)


def test_a_restored_judge_decides_the_same():
    rng = np.random.default_rng(3)
    judge = Judge(limits=SOON)
    for look in range(60):
        if look % 20 == 7:
            judge = Judge.from_state(json.loads(json.dumps(judge.state(), allow_nan=False)))
        twin = Judge.from_state(judge.state())
        counts = WindowCounts(
            challenger=ArmCounts(requests=20, profiles=int(rng.poisson(20)), plays=int(rng.poisson(6))),
            champion=ArmCounts(requests=1980, profiles=int(rng.poisson(1980)), plays=int(rng.poisson(594))),
        )
        decision = judge.see(counts)
        assert twin.see(counts) == decision
        assert twin.state() == judge.state()
        if decision.action == "advance":
            judge.advance()
    assert judge.place > 0
    with pytest.raises(InvalidInput):
        Judge.from_state({**judge.state(), "version": 0})


def test_a_share_of_the_windows_own_counts_instead_of_the_stages():
    halves = WindowCounts(challenger=ArmCounts(profiles=500), champion=ArmCounts(profiles=500))
    assert Judge().see(halves, share=0.5).action == "wait"
    assert Judge().see(halves).metric == ASSIGNMENT
