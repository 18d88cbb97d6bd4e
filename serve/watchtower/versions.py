"""Which settings the detectors go by: those of the champion of `detectors`, followed as gateways follow their models.

What is in force stays so until another version was read and found right: one that is missing or damaged changes
nothing, and is told. Without any version the defaults hold.

playhead:watchtower:detectors   what is in force, what is tried beside it, what is wrong; JSON, for TTL_S
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import orjson
from pydantic import TypeAdapter

from features.settings import Settings
from serve.artifacts import read_artifact
from serve.errors import ArtifactError
from serve.gateway.stages import ModelState
from serve.rollout.board import load_plan, plan_key
from serve.rollout.plans import RolloutPlan
from serve.rollout.standing import champion_of
from serve.watchtower.board import Store
from serve.watchtower.settings import DEFAULTS, MODEL, DetectorSettings

TOLD: Final = "playhead:watchtower:detectors"
TTL_S: Final = 60
LOOK_S: Final = 2.0
"""Between two looks at the plan."""
RETRY_S: Final = 30.0
"""After so long a version that could not be used is read again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """Settings, and whose they are.

    Attributes:
        version: that they are of; None: the defaults.
        settings: the settings.
        since_ms: when they were taken up, UTC ms; 0 for the defaults.
    """

    version: str | None = None
    settings: DetectorSettings = DEFAULTS
    since_ms: int = 0

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able."""
        return {"version": self.version, "settings": self.settings.model_dump(), "since_ms": self.since_ms}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "InForce":
        """The reverse of `state`.

        Raises:
            ArtifactError: the settings are out of their ranges.
            KeyError: it is something else.
        """
        settings = DetectorSettings.read(state["settings"])
        return cls(version=state["version"], settings=settings, since_ms=int(state["since_ms"]))


class Versions:
    """Follows the plan of `detectors`.

    Args:
        store: where the plan is.
        settings: where the models are.
        known: what was in force when the role was left; None: the defaults.
        clock: seconds that never go back.

    Attributes:
        champion: in force.
        beside: version -> settings and role of those that are tried beside.
        troubles: version -> what is wrong with it; empty text as version: with the plan or the folder.
    """

    def __init__(
        self, store: Store, settings: Settings, known: InForce | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.champion = known or InForce()
        self.beside: dict[str, tuple[DetectorSettings, Literal["challenger", "shadow"]]] = {}
        self.troubles: dict[str, str] = {}
        self._store = store
        self._settings = settings
        self._clock = clock
        self._looked_s: float | None = None
        self._read: dict[str, DetectorSettings] = {}
        self._retry_s: dict[str, float] = {}
        self._wanted: str | None = self.champion.version
        self._roles: dict[str, str] = {}  # of versions that are tried, be they usable or not

    def look(self, now_ms: int) -> bool:
        """Look at the plan, if the last look is LOOK_S old, and take up what it names; whether it was looked at.

        Args:
            now_ms: by the store's clock.

        Raises:
            redis.RedisError: the store does not answer.
        """
        at_s = self._clock()
        if self._looked_s is not None and at_s - self._looked_s < LOOK_S:
            return False
        self._looked_s = at_s
        plan = self._plan()
        if plan is None:
            return True
        wanted = {version: role for version, role in plan.versions.items() if version != self.champion.version}
        self._read = {version: settings for version, settings in self._read.items() if version in wanted}
        self.troubles = {version: text for version, text in self.troubles.items() if version in wanted}
        self._wanted = plan.champion or self.champion.version
        self._roles = {version: role for version, role in wanted.items() if role != "champion"}
        for version in wanted:
            self._take(version, at_s)
        if (settings := self._read.get(plan.champion or "")) is not None:
            _log.info("outages: the detectors go by %s from now on, by %s before", plan.champion, self.champion.version)
            self.champion = InForce(version=plan.champion, settings=settings, since_ms=now_ms)
        self.beside = {
            version: (self._read[version], role)
            for version, role in wanted.items()
            if role != "champion" and version in self._read
        }
        return True

    def told(self, troubles: Mapping[str, str] | None = None) -> list[ModelState]:
        """The versions and what is wrong with them, the champion first.

        Args:
            troubles: version -> what else is wrong with it.
        """
        found = {**self.troubles, **(troubles or {})}
        refused = "; ".join(text for version, text in found.items() if version in {"", self._wanted} and text)
        version = self.champion.version
        state = "refused" if refused else "live" if version else "missing"
        detail = refused or ("" if version else "no version yet: the defaults hold")
        states = [
            ModelState(
                name=MODEL, version=version, loaded_ts=self.champion.since_ms or None, state=state, detail=detail
            )
        ]
        for other, role in self._roles.items():
            trouble = found.get(other, "")
            states.append(
                ModelState(
                    name=MODEL, version=other, loaded_ts=None, state="refused" if trouble else "live", detail=trouble,
                    role=role, share=0.0,
                )
            )  # fmt: skip
        return states

    def _plan(self) -> RolloutPlan | None:
        """The plan, or what the folder makes of none; None where neither can be read."""
        try:
            dumped: Any = self._store.get(plan_key(MODEL))
            plan = RolloutPlan(model=MODEL) if dumped is None else load_plan(dumped)
            champion = champion_of(self._settings, MODEL, None if dumped is None else plan)
        except (ArtifactError, ValueError) as error:
            self._complain("", str(error))
            return None
        self.troubles.pop("", None)
        return RolloutPlan(model=MODEL, champion=champion, challenger=plan.challenger, shadow=plan.shadow)

    def _take(self, version: str, at_s: float) -> None:
        """Read a version, unless it is known, or was refused a moment ago."""
        if version in self._read or (version in self.troubles and at_s < self._retry_s.get(version, 0.0)):
            return
        self._retry_s[version] = at_s + RETRY_S
        try:
            self._read[version] = DetectorSettings.of(read_artifact(self._settings.models / MODEL / version))
        except (ArtifactError, OSError) as error:
            self._complain(version, str(error))
            return
        self.troubles.pop(version, None)

    def _complain(self, version: str, text: str) -> None:
        if self.troubles.get(version) != text:
            _log.error("outages: %s of the detectors cannot be used, %s stay in force: %s", version or "the champion",
                       self.champion.version or "the defaults", text)  # fmt: skip
        self.troubles[version] = text


def told_command(states: Sequence[ModelState]) -> list[Any]:
    """The command that tells which settings are in force."""
    return ["SET", TOLD, orjson.dumps([asdict(state) for state in states]), "EX", TTL_S]


def read_told(dumped: bytes) -> list[ModelState]:
    """The reverse of `told_command`.

    Raises:
        ValueError: it is something else.
    """
    return TypeAdapter(list[ModelState]).validate_json(dumped)
