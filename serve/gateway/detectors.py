"""The model `detectors` as the gateway sees it: kept by its plan here, gone by in the Watchtower, which tells of it.

A gateway checks versions and takes publications up as of any other model; whether they are in force is the Watchtower's
word, and where it says nothing, nobody judges.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Final

import hiredis

from features.errors import StoreUnavailable
from features.layout import command
from features.link import StoreLink
from features.settings import Settings
from serve.artifacts import read_artifact
from serve.gateway.stages import ModelState
from serve.metrics import Metrics
from serve.rollout.follower import Follower
from serve.schemas import STALE_MODEL
from serve.watchtower.settings import DetectorSettings
from serve.watchtower.versions import TOLD, read_told

_DEADLINE_S: Final = 1.0
_SILENT: Final = "the Watchtower does not say what it goes by"


class SettingsStage:
    """A version of the detectors' settings, or none; see serve.rollout.fleet.HasModel."""

    def __init__(self) -> None:
        self.version: str | None = None

    async def load(self, path: Path) -> str:
        """See that the artifact in this folder holds settings.

        Raises:
            ArtifactError: it does not; the version before stays.
        """
        artifact = await asyncio.to_thread(read_artifact, path)
        DetectorSettings.of(artifact)
        self.version = artifact.version
        return artifact.version


class DetectorsBoard:
    """Which settings the Watchtower goes by. Belongs to one event loop.

    Args:
        settings: where the store is.
        follower: keeps the plan.
        metrics: where failures are counted.
    """

    def __init__(self, settings: Settings, follower: Follower, metrics: Metrics) -> None:
        self._link = StoreLink(settings.redis_url)
        self._follower = follower
        self._metrics = metrics
        self._told: list[ModelState] = []

    @property
    def states(self) -> tuple[ModelState, ...]:
        """The versions and what is wrong with them, the champion first."""
        if self._told:
            return tuple(self._told)
        champion, *others = self._follower.states
        if champion.state == "live":
            champion = replace(champion, state="unreachable", detail=_SILENT)
        return (champion, *others)

    @property
    def degraded(self) -> tuple[str, ...]:
        """Why what the detectors find is less than it could be, as the Watchtower tells."""
        return (STALE_MODEL,) if self._told and self._told[0].state == "refused" else ()

    async def look(self) -> None:
        """Read what the Watchtower tells; call it each second or two."""
        try:
            (dumped,) = await self._link.call(command("GET", TOLD), deadline_s=_DEADLINE_S)
            if isinstance(dumped, hiredis.ReplyError):
                raise dumped
            self._told = [] if dumped is None else read_told(dumped)
        except (StoreUnavailable, hiredis.ReplyError, ValueError) as error:
            self._metrics.stage_failure("detectors", type(error).__name__)

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()
