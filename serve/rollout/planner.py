"""Bitrate plans by the version that a session is assigned to."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from serve.bitrate.observations import Observations
from serve.bitrate.planner import BitratePlanner, Plan
from serve.bitrate.sessions import Session
from serve.logs import get
from serve.rollout.fleet import Fleet, Lineup

Ask = Callable[[BitratePlanner, Sequence[int]], Awaitable[Plan]]
"""A version's plan for some of the sessions, by their places."""

_CHALLENGER_S = 0.5
"""Share of the time that is left which a challenger may take; the champion has the rest, if it must."""


class FleetPlanner:
    """Plans by a fleet's lineup. Belongs to one event loop.

    Sessions without an id are the champion's: nobody could tell them again.

    What a challenger makes no plan for, the champion does, and the plan says so in `missing`.

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
        if lineup.plan.challenger is None:
            return await lineup.champion.plan(sessions, within_s)

        async def ask(planner: BitratePlanner, places: Sequence[int]) -> Plan:
            share = _CHALLENGER_S if planner is lineup.challenger else 1.0
            return await planner.plan([sessions[place] for place in places], within_s * share)

        units = [session.session_id for session in sessions]
        return await self._plan(lineup, units, ask, within_s * _CHALLENGER_S)

    async def plan_for(self, observations: Observations, units: Sequence[str | None]) -> Plan:
        """Plan for sessions that were laid out elsewhere.

        Args:
            observations: of B sessions.
            units: their ids (B,).

        Raises:
            NoPlan: the champion has no policy.
        """
        lineup = self._fleet.lineup
        if lineup.plan.challenger is None:
            return await lineup.champion.plan_for(observations)

        async def ask(planner: BitratePlanner, places: Sequence[int]) -> Plan:
            return await planner.plan_for(observations.take(np.array(places, np.intp)))

        return await self._plan(lineup, units, ask, None)

    async def _plan(
        self, lineup: Lineup[BitratePlanner], units: Sequence[str | None], ask: Ask, challenger_s: float | None
    ) -> Plan:
        challenged = [place for place, unit in enumerate(units) if unit and lineup.of(unit)[1].challenged]
        if not challenged:
            return await ask(lineup.champion, range(len(units)))
        trial = await self._tried(lineup, challenged, ask, challenger_s)
        if trial is None:
            missing = {str(lineup.plan.challenger): len(challenged)}
            return replace(await ask(lineup.champion, range(len(units))), missing=missing)
        if len(challenged) == len(units):
            return trial
        others = sorted(set(range(len(units))) - set(challenged))
        return _merged((others, await ask(lineup.champion, others)), (challenged, trial))

    async def _tried(
        self, lineup: Lineup[BitratePlanner], places: Sequence[int], ask: Ask, within_s: float | None
    ) -> Plan | None:
        """The challenger's plan; None where it made none, or is not loaded here."""
        if lineup.challenger is None:
            return None
        try:
            async with asyncio.timeout(within_s):
                return await ask(lineup.challenger, places)
        except Exception as error:  # noqa: BLE001 - whatever a challenger does, playback goes on
            told = {"version": lineup.challenger.version, "error": repr(error)[:300]}
            self._log.error("challenger failed", extra=told)
            return None


def _merged(of_champion: tuple[Sequence[int], Plan], of_challenger: tuple[Sequence[int], Plan]) -> Plan:
    """One plan of two parts, by their places."""
    places = [*of_champion[0], *of_challenger[0]]
    parts = of_champion[1], of_challenger[1]
    order = sorted(range(len(places)), key=places.__getitem__)

    def merged(name: str) -> list[object]:
        values = [value for part in parts for value in getattr(part, name)]
        return [values[place] for place in order]

    names = ("rungs", "safe_rungs", "rebuffer_probability", "throughput_kbps")
    lines: dict[str, list[object]] = {name: merged(name) for name in names}
    others = dict.fromkeys(of_challenger[0], of_challenger[1].version)
    return Plan(version=of_champion[1].version, others=others, **lines)  # type: ignore[arg-type]  # as they were
