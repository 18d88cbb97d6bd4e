"""What the Watchtower says of Playhead itself, as each gateway reads it once a second and shows it."""

from typing import Final, Literal

from pydantic import BaseModel

from features.errors import StoreUnavailable
from features.layout import command
from features.link import StoreLink
from features.settings import Settings
from serve.clock import now_ms
from serve.logs import get
from serve.metrics import Metrics
from serve.watchtower.health import HEALTH, Health, VersionHealth, load_health

_DEADLINE_S: Final = 2.0


class SignalReading(BaseModel):
    """One signal of a version, in counts of decisions or of samples of them, over all replicas.

    Attributes:
        signal: `degraded`: something simpler decided, or nobody in time; `slow`: above what is usual of nearly all;
            `score_high` and `score_low`: what was chosen is beyond, or below, what it nearly always was.
        threshold: what is slow (seconds), high or low; null where nothing is measured, or it is not learned yet.
        before_bad: bad ones in the past that it is judged by; older ones count less.
        before_total: of so many.
        now_bad: bad ones in the latest minute with any.
        now_total: of so many.
        p_value: probability of what is seen now, given the past; 1 where it cannot be judged yet.
        since_ts: since when it is not as usual, UTC milliseconds; null while it is.
    """

    signal: str
    threshold: float | None
    before_bad: float
    before_total: float
    now_bad: int
    now_total: int
    p_value: float
    since_ts: int | None


class ModelHealth(BaseModel):
    """How a version does on all replicas.

    Attributes:
        state: `suspect` while any signal is not as usual; `unknown` where the Watchtower has not said anything of it
            lately.
        judged: whether there is enough of a past to judge by; `ok` says nothing before.
        reasons: what is not as usual, in words.
        readings: each signal.
    """

    state: Literal["ok", "suspect", "unknown"]
    judged: bool
    reasons: tuple[str, ...]
    readings: tuple[SignalReading, ...]


class HealthBoard:
    """What the Watchtower said last. Belongs to one event loop.

    Args:
        settings: where the store is.
        metrics: where alarms are shown.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._link = StoreLink(settings.redis_url)
        self._metrics = metrics
        self._dumped: bytes | None = None
        self._known: Health | None = None
        self._shown: set[tuple[str, str]] = set()

    async def look(self) -> None:
        """Read what there is now; what was known stays where the store does not answer."""
        try:
            (dumped,) = await self._link.call(command("GET", HEALTH), deadline_s=_DEADLINE_S)
            if dumped is None or dumped == self._dumped:
                return
            known = load_health(dumped)
        except StoreUnavailable as error:
            self._metrics.stage_failure("health", type(error).__name__)
            return
        except (TypeError, ValueError):
            get("health").exception("failed", extra={"work": "reading health"})
            return
        self._dumped, self._known = dumped, known
        self._metrics.refreshed("health", known.as_of_ms / 1000)
        alarms = {(one.what, one.version): one for one in known.alarms}
        for what, version in self._shown - alarms.keys():
            self._metrics.self_alarm_over(what, version)
        for one in known.alarms:
            self._metrics.self_alarm(one.what, one.version, total=one.total, is_open=one.is_open)
        self._shown = set(alarms)

    def version(self, model: str, version: str) -> VersionHealth | None:
        """How a version does; None where nothing was said of it lately."""
        if self._known is None or self._known.is_stale(now_ms()):
            return None
        return self._known.version(model, version)

    def shown(self, model: str, version: str) -> dict[str, object]:
        """The same as GET /v1/models has it: a ModelHealth."""
        known = self.version(model, version)
        if known is None:
            return {"state": "unknown", "judged": False, "reasons": (), "readings": ()}
        return {
            "state": known.status, "judged": known.judged, "reasons": known.reasons, "readings": known.readings
        }  # fmt: skip

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()
