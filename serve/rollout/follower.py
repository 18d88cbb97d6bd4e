"""Keeping a fleet by its plan: what the store says, else what was known, else what the model's folder says.

The folder's pointer `champion` names the version that answers where there is no plan, and is kept the same as the
plan's champion: a machine that starts without its store goes on with the last good version. Whoever writes another
version there while Playhead runs, or since the plan was changed last, makes it the champion at once.
"""

import asyncio
from pathlib import Path
from typing import Any, Final

import hiredis

from features.errors import StoreUnavailable
from features.layout import command
from features.link import StoreLink
from serve.artifacts import CHAMPION, read_champion, set_champion
from serve.background import every
from serve.clock import now_ms
from serve.errors import ArtifactError
from serve.gateway.stages import ModelState
from serve.logs import get
from serve.metrics import Metrics
from serve.rollout import board
from serve.rollout.fleet import Fleet, HasModel
from serve.rollout.plans import RolloutPlan

_DEADLINE_S: Final = 1.0
_Mark = tuple[int, int, int] | None
"""What tells that a file is another one: modification time (ns), size, inode; None where there is none."""


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
        self._pointed: str | None = None
        self._mark: _Mark = None
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

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        await every(self._poll_s, self.look)

    async def look(self) -> None:
        """Bring the fleet to the plan as it is now."""
        told = await self._read()
        plan = await self._settled(told)
        if plan != self._fleet.lineup.plan or not self._fleet.is_whole:
            await self._fleet.apply(plan)
        self._plan = plan

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    async def _settled(self, told: RolloutPlan | None) -> RolloutPlan:
        """What to follow, of what the store tells, what was known, and what the folder says."""
        plan = self._plan
        if told is not None and told.revision >= plan.revision:
            plan = told
        elif plan.revision > 0:
            await self._put_back(told)
        pointed, is_new, written_ms = await self._pointer()
        if is_new:
            self._fleet.forgive()
        if pointed is not None and pointed != plan.champion:
            if plan.revision == 0:
                return RolloutPlan(model=self._model, champion=pointed)
            if is_new and written_ms > plan.since_ts:
                return await self._crown(plan, pointed)
        if plan.revision > 0 and plan.champion and pointed != plan.champion:
            await self._point(plan.champion)
        return plan

    async def _read(self) -> RolloutPlan | None:
        """The plan in the store; None where there is none, or the store does not answer."""
        try:
            (dumped,) = await self._link.call(command("GET", board.plan_key(self._model)), deadline_s=_DEADLINE_S)
            if isinstance(dumped, hiredis.ReplyError):
                raise dumped
            return None if dumped is None else board.load_plan(dumped)
        except (StoreUnavailable, hiredis.ReplyError) as error:
            self._metrics.stage_failure("rollout", type(error).__name__)
            return self._plan
        except ValueError as error:
            self._metrics.stage_failure("rollout", "ValueError")
            self._log.error("plan refused", extra={"model": self._model, "error": str(error)[:300]})
            return self._plan

    async def _put_back(self, told: RolloutPlan | None) -> None:
        """Tell a store that was lost, or that lost its last writes, the plan that is known here."""
        after = told.revision if told is not None else 0
        change = {"action": "restored", "by": "playhead", "reason": "the store had no plan, or an older one"}
        self._log.warning("plan restored", extra={"model": self._model, "revision": self._plan.revision})
        await self._change(self._plan, change, after=after)

    async def _crown(self, plan: RolloutPlan, version: str) -> RolloutPlan:
        """Another version was written into the folder: the champion from now on, on all replicas."""
        crowned = plan.crowned(version, now_ms())
        change = {"action": "published", "by": "playhead", "reason": "written into the model's folder"}
        return crowned if await self._change(crowned, change, after=plan.revision) else plan

    async def _change(self, plan: RolloutPlan, change: dict[str, Any], *, after: int) -> bool:
        payload = board.change_command(plan, change, after=after)
        try:
            (reply,) = await self._link.call(payload, deadline_s=_DEADLINE_S)
        except StoreUnavailable as error:
            self._metrics.stage_failure("rollout", type(error).__name__)
            return False
        return bool(reply == 1)

    async def _pointer(self) -> tuple[str | None, bool, int]:
        """The version in the folder's pointer, whether that is news, and when it was written, UTC milliseconds."""
        mark = await asyncio.to_thread(_mark, self._models / self._model / CHAMPION)
        is_new = mark != self._mark
        if is_new or self._trouble:
            try:
                path = await asyncio.to_thread(read_champion, self._models, self._model)
            except ArtifactError as error:
                if not self._trouble:
                    self._metrics.model_refused(self._model)
                    self._log.error("pointer refused", extra={"model": self._model, "error": str(error)[:300]})
                self._trouble = str(error)
                return self._pointed, False, 0
            self._trouble = ""
            self._mark = mark
            self._pointed = None if path is None else path.name
        return self._pointed, is_new, mark[0] // 1_000_000 if mark else 0

    async def _point(self, version: str) -> None:
        """Have the folder say what the plan says; a version that is not there is the fleet's to refuse."""
        try:
            await asyncio.to_thread(set_champion, self._models, self._model, version)
        except (ArtifactError, OSError):
            return
        self._pointed = version
        self._mark = await asyncio.to_thread(_mark, self._models / self._model / CHAMPION)


def _mark(path: Path) -> _Mark:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
