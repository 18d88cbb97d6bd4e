"""The graph: which stages there are, and where each of them runs.

    Gateway (HTTP) -> features -> ranker         placement `fused`: all in the gateway's process
                   -> events                     placement `split`: Features, Ranker and Planner are deployments of
                   -> lookups -> planner         their own, behind handles with deadlines; a stand-in answers when they
                                                 do not: popular titles, the simple bitrate rule
                   -> quality jobs               in child processes of the gateway's, in either placement

Serve config: import_path `serve.app:build`, args as in serve.arguments.Arguments. How many replicas, on what, is the
config's business (deployments/serve/*.yaml). Stages know nothing of Ray; only this module does.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from ray import serve as ray_serve

from features.additions import AddedTitles
from features.online import OnlineFeatures
from features.popularity import TitleStatistics
from features.profiles import ProfileFeatures
from features.stream import EventWriter
from serve import logs
from serve.arguments import Arguments
from serve.background import every, keep_responsive, running
from serve.bitrate.observations import Observations
from serve.bitrate.planner import NoPlan, Plan
from serve.bitrate.segments import FeatureLookups
from serve.errors import PlayheadError
from serve.exploration import Exploration
from serve.gateway.application import create
from serve.gateway.entrance import Entrance
from serve.gateway.feedback import FeedbackRoutes
from serve.gateway.health import HealthBoard
from serve.gateway.online import LOOK_S as ONLINE_LOOK_S
from serve.gateway.online import OnlineRoutes
from serve.gateway.outages import POLL_S, STALE_MS, OutageBoard
from serve.gateway.quality import QualityStage
from serve.gateway.remote import RemoteFeatures, RemotePlanner, RemoteRanker, RemoteStage
from serve.gateway.rollouts import RolloutRoutes
from serve.gateway.stages import ModelState, Stages
from serve.gateway.steering import OutageSource, SteeringStage
from serve.live import LiveRanker, Sources
from serve.metrics import Metrics
from serve.models import serve_bitrate, serve_detectors, serve_quality, serve_recommend
from serve.quality.estimates import BitstreamEstimator
from serve.quality.intake import Intake, IntakeSettings, Live
from serve.quality.jobs import JobStore
from serve.quality.runner import QualityRunner
from serve.ranking import RankerSettings
from serve.rollout.asked import AskedWriter
from serve.rollout.comparisons import FLUSH_S as COMPARED_S
from serve.rollout.comparisons import EstimateComparison
from serve.rollout.exposures import FLUSH_S, ExposureWriter
from serve.rollout.fleet import Fleet
from serve.rollout.follower import Follower
from serve.rollout.watch import PlanWatch
from serve.schemas import Answer, HomeQuery
from serve.steering.pathways import read_pathways
from serve.steering.sharing import SharedPlan
from serve.telemetry.log import TelemetryWriter
from serve.vitals import LOOK_S, Vitals, VitalsWriter

_FLUSH_S: Final = 1.0
_STATES_S: Final = 2.0


def build(arguments: Arguments) -> ray_serve.Application:
    """Bind the stages into the graph."""
    quiet = {"enable_access_log": False}  # serve.logs writes the notable requests
    gateway = ray_serve.deployment(GatewayReplica, name="Gateway", logging_config=quiet)
    if arguments.placement == "fused":
        return gateway.bind(arguments)
    features = ray_serve.deployment(FeaturesReplica, name="Features", logging_config=quiet)
    ranker = ray_serve.deployment(RankerReplica, name="Ranker", logging_config=quiet)
    planner = ray_serve.deployment(PlannerReplica, name="Planner", logging_config=quiet)
    return gateway.bind(arguments, features.bind(arguments), ranker.bind(arguments), planner.bind(arguments))


class Closable(Protocol):
    """What has a connection."""

    async def close(self) -> None:
        """Close it."""
        ...


async def open_gateway(
    arguments: Arguments,
    features: Any = None,
    ranker: Any = None,
    planner: Any = None,
    *,
    server_echoes_id: bool = False,
    outages: OutageSource | None = None,
) -> Entrance:
    """The gateway's ASGI application, ready to answer; its lifespan runs and ends what works beside the requests.

    Args:
        arguments: how it runs.
        features: handle of the Features deployment, in the split placement.
        ranker: handle of the Ranker deployment, in the split placement.
        planner: handle of the Planner deployment, in the split placement.
        server_echoes_id: whether the server around the application answers with X-Request-ID.
        outages: what steering goes by; None: what the Watchtower tells.

    Raises:
        InvalidInput: the catalogue or the steering file is missing or damaged, or a token is needed and not set.
    """
    entrance = arguments.entrance(server_echoes_id=server_echoes_id)
    settings = arguments.settings()
    metrics = Metrics()
    told_outages, told_health = OutageBoard(settings, metrics), HealthBoard(settings, metrics)
    vitals, fresh_within_s, replica = Vitals(), _fresh_within_s(arguments), secrets.token_hex(8)
    vitals_writer = VitalsWriter(vitals, metrics, settings.redis_url, replica, fresh_within_s)
    steering = SteeringStage(read_pathways(arguments.steering), outages or told_outages) if arguments.steering else None
    steered = SharedPlan(steering, settings.redis_url, replica, metrics) if steering else None
    live = _live_ranker(arguments, metrics)
    await live.start()
    reader, writer, lookups = OnlineFeatures(settings), EventWriter(settings), FeatureLookups(settings)
    telemetry, exposures, asked = (
        TelemetryWriter(settings), ExposureWriter(settings.redis_url, arguments.model, metrics),
        AskedWriter(settings.redis_url, metrics),
    )  # fmt: skip
    ranking = await serve_recommend(arguments, live, metrics, vitals)
    policies, estimates, detectors = (
        serve_bitrate(arguments, metrics), serve_quality(arguments, metrics), serve_detectors(arguments, metrics)
    )  # fmt: skip
    stages = Stages(
        features=reader,
        events=writer,
        ranker=ranking.stage,
        stand_in=None,
        prepare=ranking.stage.prepare if arguments.encode_ahead else None,
        planner=policies.stage,
        lookups=lookups,
        telemetry=telemetry,
        exposures=exposures,
        asked=asked,
        models=lambda: [state for part in told for state in part()],
        not_ready=lambda: [] if live.ranker.n_titles else ["titles"],
    )
    quality = _quality(
        arguments, estimates.stage, EstimateComparison(estimates.stage, settings.redis_url, replica, metrics)
    )
    beside = [
        live.run, quality.runner.run, lambda: every(_FLUSH_S, metrics.flush), lambda: every(POLL_S, told_outages.look),
        lambda: every(POLL_S, told_health.look), lambda: every(LOOK_S, vitals_writer.look),
        lambda: every(FLUSH_S, exposures.flush), lambda: every(FLUSH_S, asked.flush),
        lambda: every(COMPARED_S, quality.compared.flush), lambda: every(POLL_S, detectors.stage.look),
    ]  # fmt: skip
    beside += [lambda: every(POLL_S, steered.look)] if steered else []
    closed: list[Closable] = [live, reader, writer, lookups, telemetry, exposures, asked]
    closed += [told_outages, told_health, detectors.stage, vitals_writer, quality.compared]
    told: list[Callable[[], Sequence[ModelState]]] = []
    followers = [one.follower for one, remote in ((ranking, ranker), (policies, planner)) if remote is None]
    followers += [estimates.follower, detectors.follower]
    if ranker is not None:
        pages, watch = await _remote_pages(arguments, ranker, metrics)
        closed.append(watch)
        stages = replace(
            stages,
            features=RemoteFeatures(RemoteStage("features", features, arguments.stage_deadline_ms)),
            ranker=pages,
            stand_in=live.ranker,
            prepare=None,
        )
        told.append(lambda: pages.states)
        beside += [
            lambda: every(_STATES_S, pages.ask_states), lambda: every(arguments.champion_poll_s, watch.look)
        ]  # fmt: skip
    if planner is not None:
        plans = RemotePlanner(RemoteStage("planner", planner, arguments.stage_deadline_ms), arguments.bitrate_model)
        stages = replace(stages, planner=plans)
        told.append(lambda: plans.states)
        beside.append(lambda: every(_STATES_S, plans.ask_states))
    for follower in followers:
        await follower.start()
        told.append(partial(getattr, detectors.stage if follower is detectors.follower else follower, "states"))
        beside.append(follower.run)
    operations = _operations(arguments, stages, metrics, followers, quality, told_outages)
    beside.append(lambda: every(ONLINE_LOOK_S, operations[1].look))
    closed += [*operations, *followers, *([steered] if steered else [])]

    @asynccontextmanager
    async def background() -> AsyncIterator[None]:
        if steered is not None:
            await steered.look()  # the first answers go by what was stored
        async with running(*beside):
            yield
        await asyncio.gather(*[one.close() for one in closed])
        metrics.close()

    return create(
        stages,
        metrics,
        quality=quality,
        outages=told_outages,
        detectors=detectors.stage,
        health=told_health,
        vitals=vitals,
        operations=operations,
        recommend_model=arguments.model,
        bitrate_model=arguments.bitrate_model,
        steering=steering,
        entrance=entrance,
        request_log=arguments.request_log(),
        store_deadline_ms=settings.store_deadline_ms,
        background=background,
    )


@ray_serve.ingress()
class GatewayReplica:
    """A replica of the gateway."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, arguments: Arguments, features: Any = None, ranker: Any = None, planner: Any = None
    ) -> None:
        logs.configure(arguments.log_level)
        self._entrance = await open_gateway(arguments, features, ranker, planner, server_echoes_id=True)
        self._responsive = asyncio.create_task(keep_responsive())

    def __serve_build_asgi_app__(self) -> Entrance:
        return self._entrance


class FeaturesReplica:
    """A replica of the features stage."""

    def __init__(self, arguments: Arguments) -> None:
        self._reader = OnlineFeatures(arguments.settings())

    async def read(self, profile_id: str, deadline_ms: float) -> ProfileFeatures:
        """The features of a profile."""
        return await self._reader.read(profile_id, deadline_ms)


class RankerReplica:
    """A replica of the ranking stage. Errors of ours are returned, so that they arrive as they were."""

    async def __init__(self, arguments: Arguments) -> None:  # type: ignore[misc]  # Serve awaits it
        logs.configure(arguments.log_level)
        self._metrics = Metrics()
        self._live = _live_ranker(arguments, self._metrics)
        await self._live.start()
        self._served = await serve_recommend(arguments, self._live, self._metrics, None)
        await self._served.follower.start()
        self._background = asyncio.create_task(self._run())

    async def home(self, profile: ProfileFeatures, query: HomeQuery) -> Answer:
        """A home page."""
        return await self._served.stage.home(profile, query)

    async def similar(self, title_id: str, query: HomeQuery) -> Answer | PlayheadError:
        """Titles like a title."""
        try:
            return await self._served.stage.similar(title_id, query)
        except PlayheadError as error:
            return error

    async def model_states(self) -> tuple[ModelState, ...]:
        """The versions that answer here."""
        return self._served.follower.states

    async def _run(self) -> None:
        async with running(keep_responsive, self._live.run, self._served.follower.run):
            await every(_FLUSH_S, self._metrics.flush)

    async def close(self) -> None:
        """End what works beside the requests."""
        self._background.cancel()
        await asyncio.gather(self._background, return_exceptions=True)
        await asyncio.gather(self._live.close(), self._served.follower.close())
        self._metrics.close()

    async def __del__(self) -> None:
        await self.close()


class PlannerReplica:
    """A replica of the bitrate planner. Reasons for having no plan are returned, so that they arrive as they were."""

    async def __init__(self, arguments: Arguments) -> None:  # type: ignore[misc]  # Serve awaits it
        logs.configure(arguments.log_level)
        self._metrics = Metrics()
        self._served = serve_bitrate(arguments, self._metrics)
        await self._served.follower.start()
        self._background = asyncio.create_task(self._run())

    async def plan(self, observations: Observations, units: Sequence[str | None]) -> Plan | str:
        """The plan for a batch of sessions, given their ids as well, or why there is none."""
        try:
            return await self._served.stage.plan_for(observations, units)
        except NoPlan as error:
            return error.reason

    async def model_states(self) -> tuple[ModelState, ...]:
        """The versions that answer here."""
        return self._served.follower.states

    async def _run(self) -> None:
        async with running(keep_responsive, self._served.follower.run):
            await every(_FLUSH_S, self._metrics.flush)

    async def close(self) -> None:
        """End what works beside the requests."""
        self._background.cancel()
        await asyncio.gather(self._background, return_exceptions=True)
        await self._served.follower.close()
        self._metrics.close()

    async def __del__(self) -> None:
        await self.close()


def _quality(arguments: Arguments, estimators: Fleet[BitstreamEstimator], compared: EstimateComparison) -> QualityStage:
    """The quality jobs of this home folder, what works on them here, and what estimates."""
    settings, limits = arguments.settings(), arguments.quality
    store = JobStore(settings.home / "quality", limits)
    given = IntakeSettings(media=settings.media, models=settings.models, device=arguments.device, limits=limits)

    def live() -> Live:
        lineup = estimators.lineup
        return Live(lineup.champion.version, lineup.stale)

    return QualityStage(
        store=store,
        intake=Intake(given, store, live),
        runner=QualityRunner(store, limits.running),
        lineup=lambda: estimators.lineup,
        compared=compared,
        limits=limits,
    )


def _fresh_within_s(arguments: Arguments) -> dict[str, float]:
    """Largest ages of what answers are made from, seconds; several reads may fail before one is trouble."""
    return {
        "title_stats": max(60.0, 6 * arguments.title_stats_poll_s),
        "catalogue": max(120.0, 4 * arguments.catalogue_poll_s),
        "outages": STALE_MS / 1000,
    }


def _operations(
    arguments: Arguments,
    stages: Stages,
    metrics: Metrics,
    followers: Sequence[Follower],
    quality: QualityStage,
    outages: OutageBoard,
) -> tuple[RolloutRoutes, OnlineRoutes, FeedbackRoutes]:
    """Routes of those who run the service."""
    settings, followed = arguments.settings(), {follower.plan.model: follower for follower in followers}
    return (
        RolloutRoutes(settings, stages, lambda model: followed[model].plan if model in followed else None),
        OnlineRoutes(settings, stages, metrics, arguments.model),
        FeedbackRoutes(
            settings, quality.store, lambda: [outage.outage_id for outage in outages.current()[0]], arguments.model,
            arguments.bitrate_model,
        ),
    )  # fmt: skip


async def _remote_pages(arguments: Arguments, ranker: Any, metrics: Metrics) -> tuple[RemoteRanker, PlanWatch]:
    """The ranking stage behind its handle, and what tells whose page a page is."""
    watch = PlanWatch(arguments.model, arguments.settings().redis_url, metrics)
    await watch.look()
    stage = RemoteStage("ranker", ranker, arguments.stage_deadline_ms)
    return RemoteRanker(stage, arguments.model, watch.assigned), watch


def _live_ranker(arguments: Arguments, metrics: Metrics) -> LiveRanker:
    settings = arguments.settings()
    sources = Sources(
        titles=settings.datasets / arguments.dataset / "titles.parquet",
        catalogue_poll_s=arguments.catalogue_poll_s,
        title_stats_poll_s=arguments.title_stats_poll_s,
    )
    exploration = Exploration(epsilon=arguments.exploration, slots=arguments.exploration_slots)
    ranking = RankerSettings(device=arguments.device, threads=arguments.threads, exploration=exploration)
    added = AddedTitles(settings, arguments.dataset)
    return LiveRanker(ranking, sources, TitleStatistics(settings), added, metrics)
