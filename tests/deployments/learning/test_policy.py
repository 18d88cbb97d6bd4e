"""When an update is due, and what the environment may say of it."""

from dataclasses import replace
from typing import Any

import pytest

from deployments.learning.policy import Facts, LearningPolicy, due
from serve.errors import InvalidInput

POLICY = LearningPolicy()
RESTED = Facts(now_ms=10**10, new_events=10_000, last_ms=10**10 - 4 * 3_600_000)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({}, None),
        ({"new_events": 20_000}, "events"),
        ({"last_ms": 10**10 - 86_400_000}, "schedule"),
        ({"drift_ms": 5, "drift_events": 1_500}, "drift"),
        ({"drift_ms": 5, "drift_events": 1_499}, None),
        ({"drift_ms": 5, "drift_events": 1_500, "trying": True}, None),
        ({"new_events": 20_000, "last_ms": 10**10 - 3_599_000}, None),
        ({"new_events": 20_000, "last_ms": 10**10 - 3_600_000}, "events"),
        ({"new_events": 20_000, "last_ms": 10**10 - 3_600_000, "failed": True}, None),
        ({"new_events": 20_000, "last_ms": 10**10 - 3 * 3_600_000, "failed": True}, "events"),
        ({"last_ms": 0, "new_events": 999, "drift_ms": 5, "drift_events": 1_500}, None),
    ],
)
def test_an_update_is_due_for_a_reason(changes: dict[str, Any], cause: str | None) -> None:
    trigger = due(POLICY, replace(RESTED, **changes))
    assert (None if trigger is None else trigger.cause) == cause


def test_a_drift_says_since_when_the_data_is_new() -> None:
    trigger = due(POLICY, replace(RESTED, drift_ms=77, drift_events=4_000))
    assert trigger is not None
    assert trigger.since_ms == 77
    assert "4,000" in trigger.reason


def test_what_is_switched_off_never_is_due() -> None:
    policy = replace(POLICY, every_s=0, new_events=0)
    assert due(policy, replace(RESTED, last_ms=0, new_events=10**9)) is None


def test_the_environment_sets_it() -> None:
    read = LearningPolicy.from_env({"PLAYHEAD_LEARN_EVERY_S": "60", "PLAYHEAD_LEARN_LEAST_EVENTS": "5"})
    assert read == replace(POLICY, every_s=60.0, least_events=5)


@pytest.mark.parametrize(
    ("name", "text"),
    [("HELD_OUT", "1"), ("HELD_OUT", "x"), ("FIRST_SHARE", "0"), ("LEAST_EVENTS", "1.5"), ("REST_S", "nan")],
)
def test_nonsense_in_the_environment_is_named(name: str, text: str) -> None:
    with pytest.raises(InvalidInput) as error:
        LearningPolicy.from_env({f"PLAYHEAD_LEARN_{name}": text})
    assert name in f"{error.value.field} {error.value.next_step}".upper()
