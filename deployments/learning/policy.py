"""When a model is to be updated: decided by facts alone, so that it can be told and tested.

An update is due when the audience drifts, when enough new plays have come, or when the last is long ago; never while a
rollout of the model goes on (what is tried would be judged against a champion that changes), never sooner than a rest
after the last, and never with too little that is new to judge a candidate by.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

from serve.errors import InvalidInput
from serve.rollout.plans import STAGES

Cause = Literal["drift", "events", "schedule", "operator"]

_PREFIX: Final = "PLAYHEAD_LEARN_"
_LONGEST_S: Final = 366 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningPolicy:
    """When to update, and how. Each number may be set in the environment: PLAYHEAD_LEARN_EVERY_S and so on.

    Events are plays: they are what is learned from and judged by. What is only shown, and what follows a play, counts
    for nothing here.

    Attributes:
        every_s: longest time between updates, if there is anything new; 0: no schedule.
        new_events: so many new plays make one due; 0: they never do.
        drift_events: so many that came since the drift began suffice for an update because of it.
        least_events: with fewer new ones none is due for whatever reason.
        rest_s: shortest time between the ends of two updates; three times that after a failed one.
        held_out: share of the new plays, the newest, that the gate judges by and nothing is trained on.
        first_share: of a challenger that passed the gate.
    """

    every_s: float = 86_400.0
    new_events: int = 20_000
    drift_events: int = 1_500
    least_events: int = 1_000
    rest_s: float = 3_600.0
    held_out: float = 0.3
    first_share: float = STAGES[0]

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            InvalidInput: a number out of range.
        """
        ranges = {
            "every_s": (0, _LONGEST_S), "rest_s": (0, _LONGEST_S), "new_events": (0, 1e12), "drift_events": (1, 1e12),
            "least_events": (1, 1e12), "held_out": (0.05, 0.9), "first_share": (1e-4, 1.0),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            got = getattr(self, name)
            if not low <= got <= high:
                raise InvalidInput(
                    field=name, got=got, expected=f"{low:g} to {high:g}",
                    next_step=f"Correct {_PREFIX}{name.upper()}.",
                )  # fmt: skip

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Self:
        """Read it; what is not set is as by default.

        Raises:
            InvalidInput: something else than a number, or out of range.
        """
        given: dict[str, float] = {}
        for name in cls.__slots__:
            text = env.get(f"{_PREFIX}{name.upper()}")
            if text is None:
                continue
            try:
                given[name] = int(text) if name.endswith("_events") else float(text)
            except ValueError as error:
                raise InvalidInput(
                    field=f"{_PREFIX}{name.upper()}",
                    got=text,
                    expected="a number",
                    next_step="Correct it, or unset it.",
                ) from error
        return cls(**given)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a model.

    Attributes:
        now_ms: the store's time, UTC milliseconds.
        new_events: plays that came since the last update took its snapshot.
        last_ms: when the last update ended, or the learner first saw the model.
        failed: whether the last update failed, at whatever step.
        trying: whether a rollout of the model goes on.
        drift_ms: since when its audience drifts; None: it does not.
        drift_events: new plays since then.
    """

    now_ms: int
    new_events: int
    last_ms: int
    failed: bool = False
    trying: bool = False
    drift_ms: int | None = None
    drift_events: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """Why an update is due.

    Attributes:
        cause: in a word.
        reason: in words.
        since_ms: what is new began then, UTC milliseconds; None: at the champion's last event.
    """

    cause: Cause
    reason: str
    since_ms: int | None = None


def due(policy: LearningPolicy, facts: Facts) -> Trigger | None:
    """Why an update of a model is due now; None: none is.

    Args:
        policy: when to update.
        facts: of the model.
    """
    rested_s = (facts.now_ms - facts.last_ms) / 1000
    rest_s = policy.rest_s * (3 if facts.failed else 1)
    if facts.trying or rested_s < rest_s or facts.new_events < policy.least_events:
        return None
    if facts.drift_ms is not None and facts.drift_events >= policy.drift_events:
        return Trigger(
            cause="drift", reason=f"the audience drifts; {facts.drift_events:,} plays since", since_ms=facts.drift_ms
        )
    if policy.new_events and facts.new_events >= policy.new_events:
        return Trigger(cause="events", reason=f"{facts.new_events:,} new plays")
    if policy.every_s and rested_s >= policy.every_s:
        return Trigger(cause="schedule", reason=f"{rested_s / 3600:.1f} h since the last")
    return None
