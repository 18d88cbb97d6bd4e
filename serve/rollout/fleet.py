"""The versions of a model that are loaded here, side by side, and which of them answers whom.

All that a request asks is one reference, the lineup, which is replaced as a whole: nothing waits for a change, and no
request sees half of one. What is new is loaded and tried out beside the requests before; what is no longer needed goes
when the last request that holds it is answered.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from serve.artifacts import MANIFEST
from serve.clock import now_ms
from serve.errors import ArtifactError
from serve.gateway.stages import ModelState
from serve.logs import get
from serve.metrics import Metrics
from serve.rollout.assignment import Assignment, assign
from serve.rollout.plans import RolloutPlan

_ERROR_LENGTH: Final = 500
_RETRY_S: Final = 30.0
"""A refused version is tried again after so many seconds."""


class HasModel(Protocol):
    """A stage that answers with one version of a model."""

    @property
    def version(self) -> str | None:
        """The version that answers; None without one."""
        ...

    async def load(self, path: Path) -> str:
        """Make the artifact in this folder answer; what it raises leaves the one before in its place."""
        ...


S = TypeVar("S", bound=HasModel)


@dataclass(frozen=True, slots=True, eq=False)
class Lineup(Generic[S]):
    """Who answers, at one moment.

    Attributes:
        plan: by which.
        champion: answers all that the challenger does not; it may still have the version before, or none.
        challenger: None where there is none, or it is not loaded here.
        shadow: likewise.
    """

    plan: RolloutPlan
    champion: S
    challenger: S | None = None
    shadow: S | None = None

    def of(self, unit: str) -> tuple[S, Assignment]:
        """The stage that answers a unit, and how it came to that; the champion where the challenger is not here."""
        assignment = assign(self.plan, unit)
        if assignment.challenged and self.challenger is not None:
            return self.challenger, assignment
        return self.champion, assignment


class Fleet(Generic[S]):
    """Loads what a plan needs. Belongs to one event loop.

    Args:
        model: name of the model.
        models: folder of model artifacts.
        champion: the first stage, without a version yet.
        make: another stage without a version.
        metrics: where versions and refusals are shown.

    Attributes:
        lineup: who answers now.
        states: the versions of the plan and what is wrong with them, the champion first.
    """

    def __init__(
        self, model: str, models: Path, champion: S, make: Callable[[], Awaitable[S]], metrics: Metrics
    ) -> None:
        self.lineup: Lineup[S] = Lineup(RolloutPlan(model=model), champion)
        self.states: tuple[ModelState, ...] = (
            ModelState(name=model, version=None, loaded_ts=None, state="missing", role="champion", share=1.0),
        )
        self._model = model
        self._models = models
        self._make = make
        self._metrics = metrics
        self._changing = asyncio.Lock()
        self._loaded_ts: dict[str, int] = {}
        self._refused: dict[str, tuple[str, float]] = {}
        self._log = get("rollout")

    def stages(self) -> Iterator[S]:
        """All stages of the lineup."""
        lineup = self.lineup
        yield lineup.champion
        for stage in (lineup.challenger, lineup.shadow):
            if stage is not None:
                yield stage

    async def apply(self, plan: RolloutPlan) -> None:
        """Make a plan the one that answers go by; versions that cannot be loaded are refused and tried again later."""
        async with self._changing:
            shares_only = replace(self.lineup, plan=plan)
            if plan.versions == self.lineup.plan.versions:
                self.lineup = shares_only  # at once: what follows may take seconds
            elif plan.challenger is None and plan.champion == self.lineup.champion.version:
                self.lineup = replace(shares_only, challenger=None)  # a roll-back waits for nothing
            loaded = {stage.version: stage for stage in self.stages() if stage.version is not None}
            before = set(loaded)
            ready = {version: await self._stage(version, loaded) for version in plan.versions}
            lineup = self.lineup
            champion = ready.get(plan.champion) if plan.champion else None
            self.lineup = Lineup(
                plan,
                champion or lineup.champion,
                ready.get(plan.challenger) if plan.challenger else None,
                ready.get(plan.shadow) if plan.shadow else None,
            )
            self._refused = {one: why for one, why in self._refused.items() if one in plan.versions}
            self._tell(before)

    @property
    def is_whole(self) -> bool:
        """Whether all versions of the plan are loaded, or were refused too lately to be tried again."""
        now_s = time.monotonic()
        return all(now_s < until_s for _, until_s in self._refused.values())

    def forgive(self) -> None:
        """Try what was refused again at the next change: it was published again."""
        self._refused = {version: (why, 0.0) for version, (why, _) in self._refused.items()}

    async def _stage(self, version: str, loaded: dict[str, S]) -> S | None:
        """A stage with a version: one that has it, else another one; None where it is refused."""
        if version in loaded:
            return loaded[version]
        _, until_s = self._refused.get(version, ("", 0.0))
        if time.monotonic() < until_s:
            return None
        try:
            path = await asyncio.to_thread(_folder, self._models / self._model / version)
            champion = self.lineup.champion
            stage = champion if champion.version is None and not loaded else await self._make()
            await stage.load(path)
        except Exception as error:  # noqa: BLE001 - whatever a model's files hold, the one before keeps answering
            detail = str(error)[:_ERROR_LENGTH]
            self._refused[version] = (detail, time.monotonic() + _RETRY_S)
            self._metrics.model_refused(self._model)
            still = self.lineup.champion.version
            self._log.error("model refused", extra={"model": self._model, "version": version, "still": still,
                                                    "error": detail})  # fmt: skip
            return None
        self._refused.pop(version, None)
        self._loaded_ts[version] = now_ms()
        loaded[version] = stage
        return stage

    def _tell(self, before: set[str]) -> None:
        """Show who answers."""
        plan, champion = self.lineup.plan, self.lineup.champion.version
        here = {stage.version for stage in self.stages() if stage.version is not None}
        for version in before - here:
            self._metrics.model_live(self._model, version, live=False)
        for version in here - before:
            self._metrics.model_live(self._model, version, live=True)
            self._log.info("model live", extra={"model": self._model, "version": version,
                                                    "role": plan.versions.get(version, "champion")})  # fmt: skip
        self._loaded_ts = {version: ts for version, ts in self._loaded_ts.items() if version in here}
        states = []
        for version, role in plan.versions.items():
            detail, _ = self._refused.get(version, ("", 0.0))
            share = {"champion": 1 - plan.share, "challenger": plan.share, "shadow": 0.0}[role]
            shown = champion if role == "champion" else version
            states.append(
                ModelState(
                    name=self._model,
                    version=shown,
                    loaded_ts=self._loaded_ts.get(shown) if shown else None,
                    state="refused" if detail else "live",
                    detail=detail,
                    role=role,
                    share=share,
                )
            )
        self.states = tuple(states) or self.states


def _folder(path: Path) -> Path:
    """The folder of a version that is there.

    Raises:
        ArtifactError: it is not.
    """
    if not (path / MANIFEST).is_file():
        raise ArtifactError(
            field="version", got=path.name, expected=f"an artifact in {path.parent}",
            next_step="Copy it there, or roll back.",
        )  # fmt: skip
    return path
