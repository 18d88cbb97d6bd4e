"""Bitrate plans by the version that a session is assigned to."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from serve.bitrate.observations import Observations
from serve.bitrate.planner import BitratePlanner, Plan
from serve.bitrate.sessions import Session
from serve.logs import get
from serve.rollout.fleet import Fleet, Lineup
from serve.rollout.patience import in_time

Ask = Callable[[BitratePlanner, Sequence[int]], Awaitable[Plan]]
"""A version's plan for some of the sessions, by their places."""

_CHALLENGER_S: Final = 0.5
"""Share of the time that is left which a challenger may take; the champion has the rest, if it must."""

_LEAST_S: Final = 0.001


class FleetPlanner:
    """Plans by a fleet's lineup. Belongs to one event loop.

    Sessions without an id are the champion's: nobody could tell them again.

    What a challenger makes no plan for, the champion does, and the plan says so in `missing`. In a batch with sessions
    of both, they plan side by side.

    Args:
        fleet: the versions.
    """

    def __init__(self, fleet: Fleet[BitratePlanner]) -> None:
        self._fleet = fleet
        self._log = get("rollout")

    async def plan(self, sessions: Sequence[Session], within_s: float) -> Plan:
        """Plan for sessions with at least one rung each.

        Args:
            sessions: 1 to max(BATCHES).
            within_s: longest wait, seconds.

        Raises:
            NoPlan: the champion has no policy.
            TimeoutError: the champion gave no answer in time.
        """
        lineup = self._fleet.lineup
        if not lineup.tries:
            return _told(await lineup.champion.plan(sessions, within_s), lineup)

        until_s = time.monotonic() + within_s

        async def ask(planner: BitratePlanner, places: Sequence[int]) -> Plan:
            # a challenger's own, shorter limit is `in_time`: a planner's is strict
            return await planner.plan([sessions[place] for place in places], max(until_s - time.monotonic(), _LEAST_S))

        units = [session.session_id for session in sessions]
        return _told(await self._plan(lineup, units, ask, within_s * _CHALLENGER_S), lineup)

    async def plan_for(self, observations: Observations, units: Sequence[str | None]) -> Plan:
        """Plan for sessions that were laid out elsewhere.

        Args:
            observations: of B sessions.
            units: their ids (B,).

        Raises:
            NoPlan: the champion has no policy.
        """
        lineup = self._fleet.lineup
        if not lineup.tries:
            return _told(await lineup.champion.plan_for(observations), lineup)

        async def ask(planner: BitratePlanner, places: Sequence[int]) -> Plan:
            return await planner.plan_for(observations.take(np.array(places, np.intp)))

        return _told(await self._plan(lineup, units, ask, None), lineup)

    async def _plan(
        self, lineup: Lineup[BitratePlanner], units: Sequence[str | None], ask: Ask, challenger_s: float | None
    ) -> Plan:
        challenged = [place for place, unit in enumerate(units) if unit and lineup.of(unit)[1].challenged]
        if not challenged:
            return await ask(lineup.champion, range(len(units)))
        if lineup.challenger is None:
            plan = await ask(lineup.champion, range(len(units)))
            return replace(plan, missing={str(lineup.plan.challenger): len(challenged)})
        others = sorted(set(range(len(units))) - set(challenged))
        if not others:
            trial = await self._tried(lineup, challenged, ask, challenger_s)
            return trial or await _instead(lineup, challenged, ask)
        trying = asyncio.create_task(self._tried(lineup, challenged, ask, challenger_s))
        try:
            rest = await _timed(lineup.champion, others, ask)
            trial = await trying
        finally:
            trying.cancel()  # where the champion has none either; else it is over
        return _merged((others, rest), (challenged, trial or await _instead(lineup, challenged, ask)))

    async def _tried(
        self, lineup: Lineup[BitratePlanner], places: Sequence[int], ask: Ask, within_s: float | None
    ) -> Plan | None:
        """The challenger's plan; None where it made none, or is not loaded here."""
        if lineup.challenger is None:
            return None
        try:
            return await in_time(_timed(lineup.challenger, places, ask), within_s)
        except Exception as error:  # noqa: BLE001 - whatever a challenger does, playback goes on
            told = {"version": lineup.challenger.version, "error": repr(error)[:300]}
            self._log.error("challenger failed", extra=told)
            return None


def _told(plan: Plan, lineup: Lineup[BitratePlanner]) -> Plan:
    """A plan that says by which rollout its versions were chosen, and whether another answers as the champion."""
    stale = lineup.stale and plan.version == lineup.champion.version
    if not lineup.tries:
        return replace(plan, stale=True) if stale else plan
    return replace(plan, salt=lineup.plan.salt, share=lineup.plan.share, stale=stale)


async def _timed(planner: BitratePlanner, places: Sequence[int], ask: Ask) -> Plan:
    """A version's plan that says what it took."""
    started_s = time.perf_counter()
    plan = await ask(planner, places)
    return plan if plan.seconds else replace(plan, seconds={plan.version: time.perf_counter() - started_s})


async def _instead(lineup: Lineup[BitratePlanner], places: Sequence[int], ask: Ask) -> Plan:
    """The champion's plan for sessions of the challenger."""
    return replace(await _timed(lineup.champion, places, ask), missing={str(lineup.plan.challenger): len(places)})


def _merged(of_champion: tuple[Sequence[int], Plan], of_challenger: tuple[Sequence[int], Plan]) -> Plan:
    """One plan of two parts, by their places; the champion may have made both."""
    places = [*of_champion[0], *of_challenger[0]]
    parts = of_champion[1], of_challenger[1]
    order = sorted(range(len(places)), key=places.__getitem__)

    def merged(name: str) -> list[object]:
        values = [value for part in parts for value in getattr(part, name)]
        return [values[place] for place in order]

    names = ("rungs", "safe_rungs", "rebuffer_probability", "throughput_kbps")
    lines: dict[str, list[object]] = {name: merged(name) for name in names}
    champions, trial = parts
    others = {} if trial.version == champions.version else dict.fromkeys(of_challenger[0], trial.version)
    seconds = {**trial.seconds}
    for version, took_s in champions.seconds.items():
        seconds[version] = seconds.get(version, 0.0) + took_s
    told = {"others": others, "missing": trial.missing, "seconds": seconds}
    return Plan(version=champions.version, **lines, **told)  # type: ignore[arg-type]  # as they were
