"""A model's plan, as it is known where none of its versions is loaded: whose page it is follows from the plan alone."""

from typing import Final

import hiredis

from features.errors import StoreUnavailable
from features.link import StoreLink
from serve.metrics import Metrics
from serve.rollout import board
from serve.rollout.assignment import assign, told_as
from serve.rollout.plans import RolloutPlan
from serve.schemas import Assigned

_DEADLINE_S: Final = 1.0


class PlanWatch:
    """Reads the plan of one model now and then. Belongs to one event loop.

    What was read last stays where the store does not answer, holds no plan any more, or holds none that can be read:
    whoever serves the versions does the same, and tells the store again.

    Args:
        model: name of the model.
        redis_url: where the store is.
        metrics: where failures are counted.

    Attributes:
        plan: as it was read last; one without versions before.
    """

    def __init__(self, model: str, redis_url: str, metrics: Metrics) -> None:
        self.plan = RolloutPlan(model=model)
        self._model = model
        self._link = StoreLink(redis_url)
        self._metrics = metrics

    def assigned(self, unit: str) -> Assigned | None:
        """Which version a unit belongs to now; None where no rollout goes on, or nothing is known of one.

        Args:
            unit: a profile.
        """
        if self.plan.challenger is None:
            return None
        return told_as(self.plan, assign(self.plan, unit), missed=False)

    async def look(self) -> None:
        """Read the plan."""
        try:
            found = await board.read_plan(self._link, self._model, _DEADLINE_S)
        except (StoreUnavailable, hiredis.ReplyError, ValueError) as error:
            self._metrics.stage_failure("rollout", type(error).__name__)
            return
        if found is not None:
            self.plan = found

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()
