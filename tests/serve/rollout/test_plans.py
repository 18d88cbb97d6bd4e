"""Plans as values, and who is answered by which version."""

import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import InvalidInput
from serve.rollout.assignment import assign, place
from serve.rollout.plans import STAGES, RolloutPlan, next_stage

STEADY = RolloutPlan(model="recommend", champion="a" * 12)
TRIED = STEADY.begun("b" * 12, 0.1, 1000)


def test_a_rollout_goes_from_stage_to_stage_to_the_champion() -> None:
    plan = STEADY.begun("b" * 12, STAGES[0], 1000)
    assert (plan.revision, plan.share, plan.started_ts, plan.champion) == (1, 0.01, 1000, "a" * 12)
    shares = []
    while (share := next_stage(plan.share)) is not None:
        plan = plan.shared(share, 2000)
        shares.append(plan.share)
    assert shares == [0.1, 0.5]
    done = plan.promoted(3000)
    assert (done.champion, done.previous, done.challenger, done.share) == ("b" * 12, "a" * 12, None, 0.0)
    assert done.revision == 4
    with pytest.raises(InvalidInput, match="the champion"):
        done.rolled_back(4000)  # asked for twice, it must not cost the champion
    back = done.rolled_back(4000, "b" * 12)
    assert (back.champion, back.previous) == ("a" * 12, None)
    with pytest.raises(InvalidInput, match="a champion before"):
        back.rolled_back(5000, "a" * 12)


def test_a_roll_back_leaves_the_champion_and_the_way_back() -> None:
    plan = TRIED.promoted(1).begun("c" * 12, 0.5, 2).rolled_back(3)
    assert (plan.champion, plan.previous, plan.challenger, plan.share) == ("b" * 12, "a" * 12, None, 0.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda: STEADY.shared(0.5, 1), lambda: STEADY.promoted(1), lambda: STEADY.held(paused=True, now_ms=1),
        lambda: STEADY.begun("a" * 12, 0.1, 1), lambda: STEADY.begun("b" * 12, 0.0, 1),
        lambda: STEADY.begun("b" * 12, 1.01, 1), lambda: TRIED.begun("c" * 12, 0.1, 1),
        lambda: TRIED.shared(float("nan"), 1), lambda: STEADY.crowned("a" * 12, 1),
        lambda: TRIED.rolled_back(1, "c" * 12), lambda: STEADY.rolled_back(1),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(change: Any) -> None:
    with pytest.raises(InvalidInput):
        change()


def test_a_shadow_that_is_promoted_is_none_any_more() -> None:
    plan = TRIED.shadowed("b" * 12, 1).promoted(2)
    assert (plan.champion, plan.shadow) == ("b" * 12, None)
    assert TRIED.shadowed("c" * 12, 1).promoted(2).shadow == "c" * 12


def test_each_rollout_tries_other_units() -> None:
    again = TRIED.rolled_back(5).begun("b" * 12, 0.1, 6)
    assert again.salt != TRIED.salt
    units = [f"p{number}" for number in range(2000)]
    both = sum(assign(TRIED, unit).challenged and assign(again, unit).challenged for unit in units)
    assert both < 60, "a tenth of a tenth, not the same tenth"


def test_plans_survive_the_store() -> None:
    for plan in (STEADY, TRIED, TRIED.held(paused=True, now_ms=3), TRIED.shadowed("d" * 12, 4)):
        assert RolloutPlan.from_json(orjson.loads(orjson.dumps(plan.as_json()))) == plan


@pytest.mark.parametrize(
    "document",
    [
        [], None, {}, {"format": 1}, TRIED.as_json() | {"format": 2}, TRIED.as_json() | {"share": 2},
        TRIED.as_json() | {"revision": -1}, TRIED.as_json() | {"champion": 7}, TRIED.as_json() | {"more": 1},
        TRIED.as_json() | {"share": "much"}, TRIED.as_json() | {"salt": None}, TRIED.as_json() | {"revision": True},
    ],
)  # fmt: skip
def test_what_is_no_plan_is_refused(document: Any) -> None:
    with pytest.raises(ValueError):
        RolloutPlan.from_json(document)


@given(st.text(max_size=20), st.floats(0.01, 0.9), st.floats(0.01, 0.99))
def test_assignment_is_sticky_as_the_share_grows(unit: str, share: float, more: float) -> None:
    small, large = STEADY.begun("b" * 12, share, 7), STEADY.begun("b" * 12, min(1.0, share + more), 7)
    first = assign(small, unit)
    assert first == assign(small, unit)
    assert not first.challenged or assign(large, unit).challenged
    assert first.propensity == pytest.approx(share if first.challenged else 1 - share)


def test_places_are_even_and_no_one_but_the_champion_answers_without_a_rollout() -> None:
    rng = random.Random(0)
    units = [str(rng.random()) for _ in range(20_000)]
    for share in (0.01, 0.1, 0.5):
        plan = STEADY.begun("b" * 12, share, 1)
        found = sum(assign(plan, unit).challenged for unit in units) / len(units)
        assert found == pytest.approx(share, abs=4 * (share / len(units)) ** 0.5)
    assert not any(assign(STEADY, unit).challenged for unit in units[:100])
    assert all(0 <= place("s" * 300, unit) < 1 for unit in units[:100])


def test_versions_are_named_once() -> None:
    assert STEADY.shadowed("a" * 12, 1).versions == {"a" * 12: "champion"}
    assert TRIED.shadowed("c" * 12, 1).versions == {
        "a" * 12: "champion", "b" * 12: "challenger", "c" * 12: "shadow",
    }  # fmt: skip
