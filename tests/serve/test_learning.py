"""Steps of updates as they lie in the store."""

import pytest
import redis

from serve.learning import STEP, STEPS, Step, load_steps, step_arguments

ONE = Step(model="recommend", update="17", name="gate", moment="failed", ts=5, text="parity", evidence={"ndcg": 0.1})


def test_a_step_is_read_as_it_was_told_and_what_is_none_is_left_out(store: redis.Redis) -> None:
    store.execute_command(*step_arguments(ONE))
    store.xadd(STEPS, {STEP: b"nonsense"})
    store.xadd(STEPS, {"other": b"{}"})
    assert load_steps(store.xrange(STEPS)) == [ONE]
    flat = [(name, [part for pair in fields.items() for part in pair]) for name, fields in store.xrange(STEPS)]
    assert load_steps(flat) == [ONE]


@pytest.mark.parametrize(
    "change", [{"name": "other"}, {"moment": "later"}, {"ts": "5"}, {"evidence": []}, {"more": 1}, {"model": None}]
)
def test_what_is_no_step_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no step"):
        Step.from_json({**ONE.as_json(), **change})
