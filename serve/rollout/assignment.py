"""Who is answered by which version: by a hash, so that every replica says the same, and says it again."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from serve.rollout.plans import RolloutPlan
from serve.schemas import Assigned

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


def told_as(plan: RolloutPlan, assignment: Assignment, *, missed: bool) -> Assigned:
    """An assignment as answers and exposures tell it.

    Args:
        plan: of a rollout.
        assignment: by it.
        missed: whether the version made nothing.
    """
    version = plan.challenger if assignment.challenged else plan.champion
    return Assigned(
        version=version or "", challenged=assignment.challenged, propensity=assignment.propensity, salt=plan.salt,
        missed=missed,
    )  # fmt: skip


def place(salt: str, unit: str) -> float:
    """Where a unit lies, 0 to 1: evenly over units, independent of other salts."""
    digest = blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, key=salt.encode()[-64:]).digest()
    return int.from_bytes(digest, "little") / _SPACE
