"""Stages that run as deployments of their own, behind handles, with the interface they have in the gateway's process.

A call to a deployment without live replicas would wait for ever, and one to a busy deployment waits its turn: so each
call has a deadline, a call that is given up is cancelled, and after some failures in a row calls fail at once, but for
a probe now and then, until one succeeds.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from features.profiles import ProfileFeatures
from serve.bitrate.planner import NoPlan, Plan
from serve.bitrate.sessions import Session, observe
from serve.errors import PlayheadError
from serve.gateway.stages import ModelState, StageUnreachable
from serve.logs import get
from serve.schemas import Answer, Assigned, HomeQuery

_STORE_SHARE: Final = 0.8
"""Share of a remote read's deadline that the store has; the rest is for the hop."""


_FAIR_MS: Final = 10.0
"""A call that was given less may fail for its caller's impatience: that says nothing of the stage to others."""


class Breaker:
    """Tells whether it is worth calling a stage.

    Args:
        failures: that many in a row open it.
        pause_s: while open, one call is let through every so many seconds.
        clock: monotonic seconds.
    """

    def __init__(self, failures: int = 5, pause_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._pause_s = pause_s
        self._clock = clock
        self._failures = 0
        self._probe_at = 0.0

    @property
    def open(self) -> bool:
        """Whether calls fail at once."""
        return self._failures >= self._limit

    def admits(self) -> bool:
        """Whether a call may be made now; while open, True is the probe and is given once a pause."""
        if not self.open:
            return True
        now = self._clock()
        if now < self._probe_at:
            return False
        self._probe_at = now + self._pause_s
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self._failures = 0

    def failed(self) -> None:
        """A call was not answered."""
        self._failures += 1
        if self._failures == self._limit:
            self._probe_at = self._clock() + self._pause_s


class RemoteStage:
    """Calls methods of one deployment.

    Args:
        name: goes into `degraded`: `<name>_timeout`, `<name>_unreachable`.
        handle: a ray.serve DeploymentHandle.
        deadline_ms: longest wait for an answer, milliseconds.
    """

    def __init__(self, name: str, handle: Any, deadline_ms: float) -> None:
        self.name = name
        self.deadline_ms = deadline_ms
        self.breaker = Breaker()
        self._handle = handle
        self._log = get("stages")

    async def call(self, method: str, *arguments: Any, deadline_ms: float | None = None) -> Any:
        """The method's result.

        Raises:
            StageUnreachable: no answer in time, or none at all.
            PlayheadError: the method returned it: errors cross processes as values, so that they arrive as they were.
        """
        if not self.breaker.admits():
            raise StageUnreachable(f"{self.name}_unreachable")
        within_ms = self.deadline_ms if deadline_ms is None else min(deadline_ms, self.deadline_ms)
        response = getattr(self._handle, method).remote(*arguments)
        answered = False
        try:
            async with asyncio.timeout(within_ms / 1000) as timer:
                result = await response
            answered = True
        except Exception as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # Ray has turned the cancellation into an error of its own
                raise asyncio.CancelledError from error
            if within_ms >= _FAIR_MS or not timer.expired():
                self._note_failure(error)
            raise StageUnreachable(f"{self.name}_{'timeout' if timer.expired() else 'unreachable'}") from error
        finally:
            if not answered:  # given up by us or by the caller: a call that waits for a replica would wait on
                response.cancel()
        self.breaker.succeeded()
        if isinstance(result, PlayheadError):
            raise result
        return result

    def _note_failure(self, error: BaseException) -> None:
        was_open = self.breaker.open
        self.breaker.failed()
        if self.breaker.open and not was_open:
            self._log.error(
                "stage unreachable", extra={"stage": self.name, "error": f"{type(error).__name__}: {error}"[:300]}
            )


class RemoteFeatures:
    """Reads profiles through the Features deployment; never raises, like the reader there."""

    def __init__(self, stage: RemoteStage) -> None:
        self._stage = stage

    async def read(self, profile_id: str, deadline_ms: float | None = None) -> ProfileFeatures:
        """The features; empty with the reason in `degraded` where the deployment does not answer."""
        within_ms = self._stage.deadline_ms if deadline_ms is None else min(deadline_ms, self._stage.deadline_ms)
        try:
            found: ProfileFeatures = await self._stage.call(
                "read", profile_id, within_ms * _STORE_SHARE, deadline_ms=within_ms
            )
        except StageUnreachable as error:
            return ProfileFeatures(profile_id, degraded=(error.reason,))
        return found


class RemoteModel:
    """A deployment that answers with a model.

    Args:
        stage: the deployment.
        model: name of the model.

    Attributes:
        states: which version answers there, as last heard.
    """

    def __init__(self, stage: RemoteStage, model: str) -> None:
        self._stage = stage
        self._model = model
        self.states: tuple[ModelState, ...] = (self._unreachable("not asked yet"),)

    async def ask_states(self) -> None:
        """Ask which version answers there; it is unreachable where nobody says."""
        try:
            self.states = tuple(await self._stage.call("model_states"))
        except StageUnreachable as error:
            self.states = (self._unreachable(error.reason),)

    def _unreachable(self, why: str) -> ModelState:
        return ModelState(name=self._model, version=None, loaded_ts=None, state="unreachable", detail=why)


class RemoteRanker(RemoteModel):
    """Makes pages through the Ranker deployment.

    Args:
        stage: the deployment.
        model: name of the model.
        assigned: who should make a profile's page, by the plan: so that whose page it was is known also where the
            deployment gives none.
    """

    def __init__(
        self, stage: RemoteStage, model: str, assigned: Callable[[str], Assigned | None] = lambda _: None
    ) -> None:
        super().__init__(stage, model)
        self._assigned = assigned

    def assigned(self, profile_id: str) -> Assigned | None:
        """Who should make a profile's page now; None where no rollout goes on."""
        return self._assigned(profile_id)

    async def home(self, profile: ProfileFeatures, query: HomeQuery) -> Answer:
        """A home page.

        Raises:
            StageUnreachable: the deployment does not answer.
        """
        deadline_s = self._stage.deadline_ms / 1000
        within_s = deadline_s if query.within_s is None else min(query.within_s, deadline_s)
        answer: Answer = await self._stage.call("home", profile, replace(query, within_s=within_s))
        return answer

    async def similar(self, title_id: str, query: HomeQuery) -> Answer:
        """Titles like a title.

        Raises:
            NotFound: the catalogue does not hold it.
            StageUnreachable: the deployment does not answer.
        """
        answer: Answer = await self._stage.call("similar", title_id, query)
        return answer


class RemotePlanner(RemoteModel):
    """Plans through the Planner deployment; the sessions are read and laid out here."""

    async def plan(self, sessions: Sequence[Session], within_s: float) -> Plan:
        """Plan for sessions with at least one rung each.

        Raises:
            NoPlan: the deployment has no policy, or does not answer.
        """
        try:
            units = [session.session_id for session in sessions]
            plan: Plan | str = await self._stage.call("plan", observe(sessions), units, deadline_ms=within_s * 1000)
        except StageUnreachable as error:
            raise NoPlan(error.reason) from error
        if isinstance(plan, str):
            raise NoPlan(plan)
        return plan
