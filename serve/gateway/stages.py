"""The stages behind the gateway as it sees them, wherever they run, and what happens when one does not answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from features.events import Event
from features.profiles import ProfileFeatures
from serve.bitrate.decisions import Lookups
from serve.bitrate.planner import Planner
from serve.schemas import Answer, Assigned, HomeQuery
from serve.telemetry.log import Said


class FeatureReader(Protocol):
    """What is known of a profile."""

    async def read(self, profile_id: str, deadline_ms: float | None = None) -> ProfileFeatures:
        """The profile's features; never raises for the store's trouble but says so in `degraded`."""
        ...


class Receipt(Protocol):
    """What became of a batch of events."""

    @property
    def accepted(self) -> int:
        """Events that were new."""
        ...

    @property
    def duplicates(self) -> int:
        """Events that had been accepted before."""
        ...


class EventSink(Protocol):
    """Where events go."""

    async def write(self, events: Sequence[Event]) -> Receipt:
        """Store the events and apply them to the online features.

        Raises:
            StoreUnavailable: they cannot be acknowledged.
        """
        ...


class TelemetrySink(Protocol):
    """Where what players say goes."""

    async def write(self, said: Said, deadline_s: float) -> None:
        """Append; all of it is durable when this returns.

        Raises:
            StoreUnavailable: not all of it is.
        """
        ...


class Recommender(Protocol):
    """What makes pages."""

    async def home(self, profile: ProfileFeatures, query: HomeQuery) -> Answer:
        """A home page."""
        ...

    async def similar(self, title_id: str, query: HomeQuery) -> Answer:
        """Titles like a title.

        Raises:
            NotFound: the catalogue does not hold it.
        """
        ...


@runtime_checkable
class Assigns(Protocol):
    """A recommender that knows which version a profile belongs to before it answers."""

    def assigned(self, profile_id: str) -> Assigned | None:
        """Who should make a profile's page now; None where no rollout goes on."""
        ...


class StageUnreachable(Exception):
    """A stage that runs elsewhere gave no answer in time, or none at all.

    Args:
        reason: goes into the answer's `degraded`, such as `ranker_timeout`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ExposureSink(Protocol):
    """Told of pages that are shown and of what comes of them; never waits."""

    def shown(
        self, request_id: str, profile_id: str, answer: Answer, *, degraded: bool, where: Mapping[str, str | int]
    ) -> None:
        """A page is about to be answered."""
        ...

    def happened(self, events: Sequence[Event]) -> None:
        """Events were accepted."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One model as this replica sees it.

    Attributes:
        name: the model.
        version: the version that answers; None while there is none.
        loaded_ts: when it went live here, UTC milliseconds; None while there is none.
        state: `live`; `loading`;
            `missing` (no version; popular titles, or the simple bitrate rule, instead); `refused` (a newer
            version was published that cannot be loaded; an older one or what stands in answers); `unreachable` (its
            stage does not answer).
        detail: what is wrong, for operators; empty when nothing is.
        role: `champion`, `challenger` or `shadow`: see serve.rollout.plans.
        share: of the units that it answers, 0 to 1.
    """

    name: str
    version: str | None
    loaded_ts: int | None
    state: str
    detail: str = ""
    role: str = "champion"
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """All stages that the gateway's routes call.

    Attributes:
        features: reads profiles.
        events: takes events.
        ranker: makes pages.
        stand_in: makes pages when the ranker does not answer; None where the ranker runs in this process.
        prepare: readies the ranker for a profile whose events were just written, so that its next page costs less; None
            where pages may be made elsewhere.
        planner: decides which rung to fetch next; a simple rule stands in where it does not answer.
        lookups: what is known of titles and networks, for the planner and the rule.
        telemetry: takes what players say.
        exposures: told of what was shown, and of what came of it.
        models: which models answer, as last known.
        not_ready: what this replica still waits for, empty when it may take traffic.
    """

    features: FeatureReader
    events: EventSink
    ranker: Recommender
    stand_in: Recommender | None
    prepare: Callable[[ProfileFeatures], None] | None
    planner: Planner
    lookups: Lookups
    telemetry: TelemetrySink
    exposures: ExposureSink
    models: Callable[[], Sequence[ModelState]]
    not_ready: Callable[[], Sequence[str]]

    def version(self, model: str) -> str | None:
        """The version of a model that answers, as last known."""
        return next((state.version for state in self.models() if state.name == model), None)
