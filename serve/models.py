"""The models as they are served: the versions of each that are loaded here, and what keeps them by their plan."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from serve.arguments import Arguments
from serve.bitrate.planner import BitratePlanner
from serve.gateway.detectors import DetectorsBoard, SettingsStage
from serve.live import LiveRanker
from serve.logs import get
from serve.metrics import Metrics
from serve.quality.estimates import MODEL, BitstreamEstimator
from serve.ranking import Ranker
from serve.rollout.fleet import Fleet, HasModel
from serve.rollout.follower import Follower
from serve.rollout.planner import FleetPlanner
from serve.rollout.recommender import FleetRanker, acquaint
from serve.schemas import Answer
from serve.vitals import Vitals
from serve.watchtower.settings import MODEL as DETECTORS

S = TypeVar("S", bound=HasModel)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Served(Generic[T]):
    """A model as it is served.

    Attributes:
        stage: answers.
        follower: keeps its versions by the plan.
    """

    stage: T
    follower: Follower


async def serve_recommend(
    arguments: Arguments, live: LiveRanker, metrics: Metrics, vitals: Vitals | None
) -> Served[FleetRanker]:
    """The ranker's model.

    Args:
        arguments: how the application runs.
        live: makes rankers of the catalogue, and keeps them current.
        metrics: where versions, and what a shadow makes, are shown.
        vitals: told of a shadow's pages; None: they are counted elsewhere, or not at all.
    """
    settings = arguments.settings()

    def compared(version: str, answer: Answer, overlap: float) -> None:
        metrics.shadowed(version, overlap)
        if vitals is not None:
            vitals.model(arguments.model, lambda: None).answered(answer)

    async def acquainted(ranker: Ranker) -> None:
        met = await acquaint(ranker, fleet.lineup.champion)
        get("rollout").info("acquainted", extra={"model": arguments.model, "version": ranker.version, "viewers": met})

    fleet = Fleet(arguments.model, settings.models, await live.another(), live.another, metrics, acquainted)
    return Served(FleetRanker(fleet, compared), _follower(fleet, arguments, arguments.model, metrics))


def serve_bitrate(arguments: Arguments, metrics: Metrics) -> Served[FleetPlanner]:
    """The bitrate policy."""

    def planner() -> BitratePlanner:
        return BitratePlanner(arguments.device, arguments.threads, lambda seconds: metrics.observe("planner", seconds))

    async def another() -> BitratePlanner:
        return planner()

    fleet = Fleet(arguments.bitrate_model, arguments.settings().models, planner(), another, metrics)
    return Served(FleetPlanner(fleet), _follower(fleet, arguments, arguments.bitrate_model, metrics))


def serve_quality(arguments: Arguments, metrics: Metrics) -> Served[Fleet[BitstreamEstimator]]:
    """The no-reference model; its champion estimates."""

    async def another() -> BitstreamEstimator:
        return BitstreamEstimator(arguments.device)

    fleet = Fleet(MODEL, arguments.settings().models, BitstreamEstimator(arguments.device), another, metrics)
    return Served(fleet, _follower(fleet, arguments, MODEL, metrics))


def serve_detectors(arguments: Arguments, metrics: Metrics) -> Served[DetectorsBoard]:
    """The detectors' settings; the Watchtower goes by them."""

    async def another() -> SettingsStage:
        return SettingsStage()

    settings = arguments.settings()
    fleet = Fleet(DETECTORS, settings.models, SettingsStage(), another, metrics)
    follower = _follower(fleet, arguments, DETECTORS, metrics)
    return Served(DetectorsBoard(settings, follower, metrics), follower)


def _follower(fleet: Fleet[S], arguments: Arguments, model: str, metrics: Metrics) -> Follower:
    settings = arguments.settings()
    return Follower(fleet, model, settings.models, settings.redis_url, arguments.champion_poll_s, metrics)
