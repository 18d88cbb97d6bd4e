"""Keeping a fleet by its plan: what the store says, else what was known, else what this machine's folder says.

    models/NAME/champion       written by whoever makes versions: the one that should answer
    models/NAME/serving.json   written by the gateways of this machine: the champion that answered here last, and which
                               `champion` they had taken into account

Another version in `champion` than the one that was taken into account is a publication: it is made the champion of the
plan, so everywhere, once. A machine that comes anew, with whatever its folder holds, changes nothing. Without its store
a gateway begins with the champion that answered here last. A store that lost its plan, or its last changes, is told it
again by whoever knows it.
"""

import asyncio
from pathlib import Path
from typing import Any, Final

import hiredis
import orjson

from features.errors import StoreUnavailable
from features.link import StoreLink
from serve.artifacts import CHAMPION, Mark, mark_of, read_champion, replace_file
from serve.background import every
from serve.clock import now_ms
from serve.errors import ArtifactError
from serve.gateway.stages import ModelState
from serve.logs import get
from serve.metrics import Metrics
from serve.rollout import board
from serve.rollout.fleet import Fleet, HasModel
from serve.rollout.plans import RolloutPlan
from serve.rollout.standing import SERVING, read_serving

_DEADLINE_S: Final = 1.0


class Follower:
    """Follows the plan of one model. Belongs to one event loop.

    Args:
        fleet: what goes by the plan.
        model: name of the model.
        models: folder of model artifacts.
        redis_url: where the store is.
        poll_s: seconds between looks.
        metrics: where failures are counted.
    """

    def __init__(
        self, fleet: Fleet[Any], model: str, models: Path, redis_url: str, poll_s: float, metrics: Metrics
    ) -> None:
        self._fleet: Fleet[HasModel] = fleet
        self._model = model
        self._models = models
        self._link = StoreLink(redis_url)
        self._poll_s = poll_s
        self._metrics = metrics
        self._plan = RolloutPlan(model=model)
        self._named: str | None = None
        """The version in the folder's `champion`, as it was read last."""
        self._taken: str | None = None
        """The one that was taken into account."""
        self._written: tuple[str | None, str | None] | None = None
        self._marked: Mark = None
        self._trouble = ""
        self._log = get("rollout")

    @property
    def plan(self) -> RolloutPlan:
        """The plan that is followed."""
        return self._plan

    @property
    def states(self) -> tuple[ModelState, ...]:
        """The versions and what is wrong with them, the champion first."""
        if not self._trouble:
            return self._fleet.states
        champion, *others = self._fleet.states
        return (
            ModelState(
                name=champion.name, version=champion.version, loaded_ts=champion.loaded_ts, state="refused",
                detail=self._trouble, role=champion.role, share=champion.share,
            ),
            *others,
        )  # fmt: skip

    async def start(self) -> None:
        """Look for the first time, and wait for what has to be loaded."""
        serving = await asyncio.to_thread(read_serving, self._models / self._model / SERVING)
        await self._read_named()
        answers, (_, told) = serving.get("champion"), await self._read()
        first = self._named
        if serving:
            self._taken, self._written = serving.get("taken"), (serving.get("champion"), serving.get("taken"))
            if self._taken == self._named:
                first = answers or self._named
        else:
            self._taken = self._named  # whatever came with this machine is no publication
        self._plan = RolloutPlan(
            model=self._model, champion=first, previous=None if first == self._named else self._named
        )  # `previous` answers here where `first` can't be loaded; for the store it is no way back
        if told is not None:
            self._plan = told
        await self.look()
        await self._fleet.settled()
        await self._keep()

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        await every(self._poll_s, self.look)

    async def look(self) -> None:
        """Bring the fleet to the plan as it is now; what has to be loaded is loaded meanwhile."""
        is_heard, told = await self._read()
        if is_heard:
            await self._settle(told)
        if await self._read_named():
            self._fleet.forgive()
        if self._named is not None and self._named != self._taken:
            await self._publish(self._named, is_heard=is_heard)
        if self._plan != self._fleet.lineup.plan or self._fleet.is_due:
            self._fleet.follow(self._plan)
        await self._keep()

    async def close(self) -> None:
        """Load nothing more, and close the connection."""
        await self._fleet.close()
        await self._link.close()

    async def _settle(self, told: RolloutPlan | None) -> None:
        """Go by what the store tells, or tell it what it does not know any more."""
        if told is not None and told.revision >= self._plan.revision:
            self._plan = told
        elif self._plan.revision > 0:
            change = {"action": "restored", "by": "playhead", "reason": "the store had no plan, or an older one"}
            self._log.warning("plan restored", extra={"model": self._model, "revision": self._plan.revision})
            await self._change(self._plan, change, after=told.revision if told is not None else 0)

    async def _publish(self, version: str, *, is_heard: bool) -> None:
        """A version was named in the folder: the champion from now on.

        Without a plan it is so for each machine by itself. With one, the plan is changed, and this is tried again until
        the plan says that it was heard of, whoever told it.
        """
        plan = self._plan
        if plan.published == version:
            self._taken = version
        elif plan.revision == 0:
            self._plan = RolloutPlan(model=self._model, champion=version)
            self._taken = version if is_heard else self._taken  # a plan that cannot be read now may have to be changed
        elif is_heard:
            after = plan.told_of(version, now_ms())
            change = {"action": "published", "by": "playhead", "reason": "named in a machine's folder"}
            if await self._change(after, change, after=plan.revision):
                self._plan, self._taken = after, version

    async def _read(self) -> tuple[bool, RolloutPlan | None]:
        """Whether the store answered, and its plan; None where it has none."""
        try:
            return True, await board.read_plan(self._link, self._model, _DEADLINE_S)
        except (StoreUnavailable, hiredis.ReplyError) as error:
            self._metrics.stage_failure("rollout", type(error).__name__)
        except ValueError as error:
            self._metrics.stage_failure("rollout", "ValueError")
            self._log.error("plan refused", extra={"model": self._model, "error": str(error)[:300]})
        return False, None

    async def _change(self, plan: RolloutPlan, change: dict[str, Any], *, after: int) -> bool:
        payload = board.change_command(plan, change, after=after)
        try:
            (reply,) = await self._link.call(payload, deadline_s=_DEADLINE_S)
        except StoreUnavailable as error:
            self._metrics.stage_failure("rollout", type(error).__name__)
            return False
        return bool(reply == 1)

    async def _read_named(self) -> bool:
        """Read the version that the folder names; whether it was named again since, be it the same."""
        try:
            mark = await asyncio.to_thread(mark_of, self._models / self._model / CHAMPION)
            path = await asyncio.to_thread(read_champion, self._models, self._model)
        except ArtifactError as error:
            if not self._trouble:
                self._metrics.model_refused(self._model)
                self._log.error("pointer refused", extra={"model": self._model, "error": str(error)[:300]})
            self._trouble = str(error)
            return False
        before, self._marked = self._marked, mark
        self._named, self._trouble = None if path is None else path.name, ""
        return before != mark

    async def _keep(self) -> None:
        """Note which champion answers here, for a start without the store."""
        if self._fleet.lineup.champion.version != self._plan.champion or self._plan.champion is None:
            return
        kept = (self._plan.champion, self._taken)
        if kept == self._written:
            return
        content = orjson.dumps({"champion": kept[0], "taken": kept[1]})
        try:
            await asyncio.to_thread(replace_file, self._models / self._model / SERVING, content)
        except OSError as error:
            self._log.warning("what serves is not kept", extra={"model": self._model, "error": str(error)[:300]})
        self._written = kept
