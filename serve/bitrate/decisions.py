"""Decisions for sessions: what is known of their titles and networks, then the planner, else the simple rule."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from serve.bitrate.planner import INLINE, PLANNER_FAILED, PLANNER_TIMEOUT, NoPlan, Plan, Planner
from serve.bitrate.rules import choose
from serve.bitrate.sessions import Session, expected_vmaf
from serve.logs import get
from serve.metrics import Metrics
from serve.schemas import STALE_MODEL
from serve.vitals import ModelVitals

_LOG_EVERY_S: Final = 10.0
"""A planner that fails is logged so often, not at each request."""

_MIN_WAIT_S: Final = 0.001


Asked = Callable[[str, float, Sequence[str | None]], None]
"""Told of the ids of sessions, with the salt and the share of the rollout by which their versions were chosen."""


class Lookups(Protocol):
    """What fills in what sessions do not say."""

    async def fill(self, sessions: Sequence[Session], within_s: float) -> None:
        """Add sizes, quality and expected throughput where they are missing; never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What one session is told.

    Attributes:
        session: whose.
        rung: index into the session's rungs_kbps.
        safe_rung: the highest that is safe.
        rebuffer_probability: of `rung`, 0 to 1.
        throughput_kbps: quantiles .1, .5, .9 of the next download's throughput.
        version: of the policy that decided; None: the simple rule did.
    """

    session: Session
    rung: int
    safe_rung: int
    rebuffer_probability: float
    throughput_kbps: Sequence[float]
    version: str | None

    @property
    def bitrate_kbps(self) -> float | None:
        """Bitrate of the rung; None where there is no usable rung."""
        rungs = self.session.rungs_kbps
        return rungs[self.rung] if rungs else None

    def members(self) -> dict[str, Any]:
        """The JSON members."""
        session, rung = self.session, self.rung
        rungs, quantiles = session.rungs_kbps, self.throughput_kbps
        kbps = quality = safe_kbps = None
        if rungs:
            kbps, safe_kbps = rungs[rung], rungs[self.safe_rung]
            quality = 0.001 * kbps
            if session.perceptual:
                quality = session.vmaf[0][rung] if session.vmaf else float(expected_vmaf(rungs)[rung])
        return {
            "session_id": session.session_id,
            "version": self.version,
            "rung": session.place(rung),
            "bitrate_kbps": kbps,
            "max_safe_kbps": safe_kbps,
            "rebuffer_probability": round(self.rebuffer_probability, 4),
            "expected_quality": None if quality is None else round(quality, 4),
            "throughput_kbps": {
                "p10": round(quantiles[0], 1),
                "p50": round(quantiles[1], 1),
                "p90": round(quantiles[2], 1),
            },
            "degraded": session.reasons,
            "ttl_s": session.segment_s,
        }


def decisions_of(sessions: Sequence[Session], plan: Plan | str | None) -> list[Decision]:
    """The planner's decisions, and the simple rule's for sessions that it does not decide.

    Args:
        sessions: in order; those that were not to be asked for are `simple`.
        plan: for all others in their order, or why there is none.
    """
    decisions = []
    lines = iter(range(len(sessions)))
    for session in sessions:
        if not session.simple and isinstance(plan, Plan):
            line = next(lines)
            rung = plan.rungs[line]
            if rung >= 0:
                found = plan.safe_rungs[line], plan.rebuffer_probability[line], plan.throughput_kbps[line]
                version = plan.version_of(line)
                if plan.stale and version == plan.version:
                    session.note(STALE_MODEL)
                decisions.append(Decision(session, rung, *found, version=version))
                continue
            session.note(PLANNER_FAILED)
        elif not session.simple and isinstance(plan, str):
            session.note(plan)
        choice = choose(session)
        ruled = choice.safe_rung, choice.rebuffer_probability, choice.throughput_kbps
        decisions.append(Decision(session, choice.rung, *ruled, version=None))
    return decisions


class Decider:
    """Decides. Belongs to one event loop; never raises.

    Args:
        planner: asked first.
        lookups: what is known of titles and networks.
        metrics: where decisions and failures are counted.
        vitals: told of each plan.
        asked: told of the sessions that were decided for while a rollout goes on; never waits.
    """

    def __init__(
        self,
        planner: Planner,
        lookups: Lookups,
        metrics: Metrics,
        vitals: ModelVitals,
        asked: Asked = lambda _salt, _share, _sessions: None,
    ) -> None:
        self._planner = planner
        self._vitals = vitals
        self._lookups = lookups
        self._asked = asked
        self._metrics = metrics
        self._log = get("bitrate")
        self._log_at_s = 0.0
        self._left_out = 0

    async def decide(self, sessions: Sequence[Session], within_s: float) -> tuple[list[Decision], str | None]:
        """A decision for each session.

        Args:
            sessions: at most MAX_SESSIONS.
            within_s: longest wait, seconds.

        Returns:
            The decisions in order; the version of the policy that decided most, None where none did.
        """
        started_s = time.perf_counter()
        await self._lookups.fill(sessions, within_s / 3)
        for session in sessions:
            session.simple = session.simple or not session.rungs_kbps
        asked = [session for session in sessions if not session.simple]
        plan: Plan | str | None = None
        if asked:
            left_s = within_s - (time.perf_counter() - started_s)
            plan = await self._plan(asked, max(left_s, _MIN_WAIT_S))
        if len(sessions) > INLINE:
            decisions = await asyncio.to_thread(decisions_of, sessions, plan)
        else:
            decisions = decisions_of(sessions, plan)
        planned = sum(decision.version is not None for decision in decisions)
        self._metrics.decisions(model=planned, rule=len(decisions) - planned)
        self._metrics.observe("bitrate", time.perf_counter() - started_s)
        if not isinstance(plan, Plan) or not planned:
            return decisions, None
        by_version = plan.by_version()
        return decisions, max(by_version, key=lambda version: len(by_version[version]))

    async def _plan(self, sessions: Sequence[Session], within_s: float) -> Plan | str:
        """The plan, or the reason why there is none."""
        started_s = time.perf_counter()
        try:
            plan = await self._planner.plan(sessions, within_s)
        except NoPlan as error:
            reason = error.reason
        except TimeoutError:
            reason = PLANNER_TIMEOUT
        except Exception as error:  # noqa: BLE001 - whatever a policy does, playback goes on
            reason = PLANNER_FAILED
            self._report(error)
        else:
            self._count(sessions, plan, time.perf_counter() - started_s)
            if plan.salt:
                self._asked(plan.salt, plan.share, [session.session_id for session in sessions])
            return plan
        self._metrics.stage_failure("bitrate", reason)
        self._vitals.failed(len(sessions))
        return reason

    def _count(self, sessions: Sequence[Session], plan: Plan, seconds: float) -> None:
        """Tell of a plan: its decisions, what it took by the measure of a small one, and how high it chose.

        Each version took its own time, where the plan says it; else the whole.
        """
        for version, count in plan.missing.items():
            self._vitals.decided(version, count, count)
        for version, places in plan.by_version().items():
            failed = sum(plan.rungs[place] == -1 for place in places)
            own_s = plan.seconds.get(version, seconds) * INLINE / max(len(places), INLINE)
            sampled = self._vitals.decided(version, len(places), failed, own_s)
            rung, highest = plan.rungs[places[0]], len(sessions[places[0]].rungs_kbps) - 1
            if sampled and rung >= 0 and highest > 0:
                self._vitals.scored(version, rung / highest)

    def _report(self, error: Exception) -> None:
        now_s = time.monotonic()
        if now_s < self._log_at_s:
            self._left_out += 1
            return
        self._log.error("planner failed", extra={"left_out": self._left_out}, exc_info=error)
        self._log_at_s, self._left_out = now_s + _LOG_EVERY_S, 0
