"""Who is answered by which version: by a hash, so that every replica says the same, and says it again."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from serve.rollout.plans import RolloutPlan

_SPACE: Final = float(1 << 64)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which version answers a unit.

    Attributes:
        challenged: whether it is the challenger.
        propensity: probability, over units, of the version that it is; above 0.
    """

    challenged: bool
    propensity: float


ALL: Final = Assignment(challenged=False, propensity=1.0)


def assign(plan: RolloutPlan, unit: str) -> Assignment:
    """The version of a unit: of one that got the challenger at a smaller share, the challenger at any larger one.

    Args:
        plan: whose shares count.
        unit: a profile, or a session.
    """
    if plan.challenger is None or plan.share <= 0:
        return ALL
    challenged = place(plan.salt, unit) < plan.share
    return Assignment(challenged, plan.share if challenged else 1 - plan.share)


def place(salt: str, unit: str) -> float:
    """Where a unit lies, 0 to 1: evenly over units, independent of other salts."""
    digest = blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, key=salt.encode()[-64:]).digest()
    return int.from_bytes(digest, "little") / _SPACE
