"""The versions of a model that are loaded here, side by side, and which of them answers whom.

All that a request asks is one reference, the lineup, which is replaced as a whole: nothing waits for a change, and no
request sees half of one. What is new is loaded and tried out beside the requests before; what is no longer needed goes
a little later, when no request holds it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from serve.artifacts import MANIFEST
from serve.clock import now_ms
from serve.engines.compiler import Compiler, compiling_by, load_niceness
from serve.errors import ArtifactError
from serve.gateway.stages import ModelState
from serve.logs import get
from serve.metrics import Metrics
from serve.rollout.assignment import Assignment, assign
from serve.rollout.plans import RolloutPlan

LOADING_MS: Final = 120_000
"""A challenger that is not loaded so long after its rollout began counts as one that fails."""

_ERROR_LENGTH: Final = 500
_DRAIN_S: Final = 2.0
"""A version that is gone is kept for so long: requests that it was to answer may still hold it."""

_LOOK_S: Final = 0.2
"""Between looks whether what is being warmed up is still needed."""

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
        refused: whether the challenger could not be loaded here.
        stale: whether the champion could not, and another version answers in its place.
    """

    plan: RolloutPlan
    champion: S
    challenger: S | None = None
    shadow: S | None = None
    refused: bool = False
    stale: bool = False

    @property
    def tries(self) -> bool:
        """Whether a rollout goes on here: while its challenger is loaded, for LOADING_MS at most, it does not yet.

        What it does not make until then is no fault of its, and the champion's pages are no evidence without it.
        """
        if self.plan.challenger is None:
            return False
        is_here = self.challenger is not None or self.refused
        return is_here or now_ms() >= self.plan.started_ts + LOADING_MS

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
        champion: the first stage, without a version; it answers until there is one that has one.
        make: another stage without a version.
        metrics: where versions and refusals are shown.
        warm_up: what else a stage needs once it is loaded, before it answers beside one that does already.

    Attributes:
        lineup: who answers now.
        states: the versions of the plan and what is wrong with them, the champion first.
    """

    def __init__(
        self,
        model: str,
        models: Path,
        champion: S,
        make: Callable[[], Awaitable[S]],
        metrics: Metrics,
        warm_up: Callable[[S], Awaitable[object]] | None = None,
    ) -> None:
        self.lineup: Lineup[S] = Lineup(RolloutPlan(model=model), champion)
        self.states: tuple[ModelState, ...] = (
            ModelState(name=model, version=None, loaded_ts=None, state="missing", role="champion", share=1.0),
        )
        self._model = model
        self._models = models
        self._make = make
        self._metrics = metrics
        self._warm_up = warm_up
        self._loaded: dict[str, S] = {}
        self._loaded_ts: dict[str, int] = {}
        self._refused: dict[str, tuple[str, float]] = {}
        self._loading: asyncio.Task[None] | None = None
        self._retiring = set[asyncio.Task[None]]()
        self._log = get("rollout")

    def follow(self, plan: RolloutPlan) -> None:
        """Make a plan the one that answers go by, at once, with the versions that are here; load what is missing.

        Versions that cannot be loaded are refused, and tried again the next time that this is called after a while.
        """
        self._arrange(plan)
        if self._missing() and (self._loading is None or self._loading.done()):
            self._loading = asyncio.create_task(self._load())

    @property
    def is_due(self) -> bool:
        """Whether something is missing that nobody is loading, such as what was refused a while ago."""
        return self._missing() is not None and (self._loading is None or self._loading.done())

    async def settled(self) -> None:
        """Until nothing is being loaded."""
        if self._loading is not None:
            await asyncio.shield(self._loading)

    async def close(self) -> None:
        """Load nothing more."""
        ending = [*self._retiring, *([] if self._loading is None else [self._loading])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def forgive(self) -> None:
        """Try what was refused again at the next change: it was published again."""
        self._refused = {version: (why, 0.0) for version, (why, _) in self._refused.items()}

    def _wanted(self) -> list[str]:
        """Versions that the plan needs; where no champion can be loaded, the one before it as well."""
        plan = self.lineup.plan
        wanted = list(plan.versions)
        champion_is_refused = plan.champion is not None and plan.champion in self._refused
        if champion_is_refused and self.lineup.champion.version is None and plan.previous is not None:
            wanted.insert(0, plan.previous)
        return wanted

    def _missing(self) -> str | None:
        """The next version to load."""
        now_s = time.monotonic()
        for version in self._wanted():
            _, until_s = self._refused.get(version, ("", 0.0))
            if version not in self._loaded and now_s >= until_s:
                return version
        return None

    async def _load(self) -> None:
        """Load what is missing, one after the other, by the plan as it is then."""
        while (version := self._missing()) is not None:
            try:
                path = await asyncio.to_thread(_folder, self._models / self._model / version)
                stage = await self._make()
                answers = self.lineup.champion.version is not None
                async with _compiling_beside() if answers else nullcontext():
                    await stage.load(path)
                    if answers and self._warm_up is not None:
                        await self._warmed_up(version, self._warm_up(stage))
            except Exception as error:  # noqa: BLE001 - whatever a model's files hold, the one before keeps answering
                self._refuse(version, error)
            else:
                self._refused.pop(version, None)
                self._loaded[version] = stage
                self._loaded_ts[version] = now_ms()
            self._arrange(self.lineup.plan)

    async def _warmed_up(self, version: str, warming: Awaitable[object]) -> None:
        """Until a version is warmed up, or the plan does not need it any more: another may wait to be loaded."""
        task = asyncio.ensure_future(warming)
        try:
            while not task.done() and version in self._wanted():
                await asyncio.wait([task], timeout=_LOOK_S)
        finally:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(ended, Exception):  # it answers all the same, only slower at first
            self._log.error("not warmed up", extra={"version": version, "error": str(ended)[:_ERROR_LENGTH]})

    def _refuse(self, version: str, error: Exception) -> None:
        detail, still = str(error)[:_ERROR_LENGTH], self.lineup.champion.version
        self._refused[version] = (detail, time.monotonic() + _RETRY_S)
        self._metrics.model_refused(self._model)
        told = {"model": self._model, "version": version, "still": still, "error": detail}
        self._log.error("model refused", extra=told)

    def _arrange(self, plan: RolloutPlan) -> None:
        """The lineup of a plan, of what is loaded; the champion before stays until there is another."""
        before = {stage.version for stage in self.stages() if stage.version is not None}
        champion = self.lineup.champion
        for version in (plan.champion, plan.previous if champion.version is None else None):
            if version is not None and version in self._loaded:
                champion = self._loaded[version]
                break
        refused = plan.challenger in self._refused
        stale = plan.champion in self._refused and champion.version is not None
        self.lineup = Lineup(plan, champion, self._have(plan.challenger), self._have(plan.shadow), refused, stale)
        wanted = {*self._wanted(), champion.version}
        if gone := [stage for version, stage in self._loaded.items() if version not in wanted]:
            task = asyncio.create_task(_let_go(gone))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        self._loaded = {version: stage for version, stage in self._loaded.items() if version in wanted}
        self._refused = {version: why for version, why in self._refused.items() if version in wanted}
        self._tell(before)

    def _have(self, version: str | None) -> S | None:
        return None if version is None else self._loaded.get(version)

    def stages(self) -> Iterator[S]:
        """All stages of the lineup."""
        lineup = self.lineup
        yield lineup.champion
        for stage in (lineup.challenger, lineup.shadow):
            if stage is not None:
                yield stage

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
                    state="refused" if detail else "live" if shown in here else "loading",
                    detail=detail,
                    role=role,
                    share=share,
                )
            )
        self.states = tuple(states) or self.states


@asynccontextmanager
async def _compiling_beside() -> AsyncIterator[None]:
    """What is loaded in the block is compiled by a process of its own, which also runs it until the block ends.

    Its end is waited for off the event loop.
    """
    compiler = Compiler(load_niceness())
    try:
        with compiling_by(compiler):
            yield
    finally:
        await asyncio.shield(asyncio.to_thread(compiler.close))


async def _let_go(stages: list[S]) -> None:
    """Let go of versions once they are drained, off the event loop: freeing engines takes tens of milliseconds."""
    await asyncio.sleep(_DRAIN_S)
    await asyncio.to_thread(stages.clear)


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
