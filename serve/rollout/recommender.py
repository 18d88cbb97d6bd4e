"""Home pages by the version that a profile is assigned to, and a shadow's beside them."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Final

from features.profiles import ProfileFeatures
from serve.inheritance import Inheritance
from serve.logs import get
from serve.ranking import Ranker
from serve.rollout.assignment import place, told_as
from serve.rollout.fleet import Fleet, Lineup
from serve.rollout.patience import in_time
from serve.schemas import MODEL_FAILED, STALE_MODEL, Answer, Assigned, HomeQuery

SHADOW_SHARE: Final = 0.1
"""Of the profiles, whose pages a shadow makes as well."""

CHALLENGER_S: Final = 0.3
"""How long a challenger may take for a page; half of what the caller waits at most. Then the champion makes it."""

ACQUAINT_S: Final = 15.0
"""How long a version that was loaded gets acquainted with viewers before it answers."""

_AT_ONCE: Final = 8
"""Viewers between two rests."""

_MOST_SHADOWED: Final = 2
"""At a time; a shadow that is slower leaves pages out."""

_COMPARED: Final = 20
"""First titles of a page that are compared."""

_TITLE: Final = re.compile(rb'"title_id":"((?:[^"\\]|\\.)*)"')

Compared = Callable[[str, Answer, float], None]
"""Told of a shadow's page: its version, the page, and the share of the first titles that the shown page has, too."""


async def acquaint(ranker: Ranker, before: Ranker) -> int:
    """Have a ranker that does not answer yet encode the histories that another one knows, so that nobody waits for it.

    To a version that has just been loaded all viewers are strangers, and to encode a history costs as much as a page:
    where answers take most of a machine, they would all be late until the last one is known. So this keeps its thread
    busy half of the time at most, and not beyond ACQUAINT_S.

    Args:
        ranker: has its model.
        before: answers.

    Returns:
        How many it knows by then; none where the catalogue changes meanwhile: to either version all are strangers then.
    """
    inheritance = ranker.inheritance(before)
    if inheritance is None:
        return 0
    until_s = time.monotonic() + ACQUAINT_S
    while len(inheritance) and ranker.memory is inheritance.memory and time.monotonic() < until_s:
        busy_s = await asyncio.to_thread(_encode, inheritance)
        await asyncio.sleep(busy_s)
    return inheritance.hand_over() if ranker.memory is inheritance.memory else 0


def _encode(inheritance: Inheritance) -> float:
    """Encode some; how many seconds that kept this thread busy."""
    began_s = time.thread_time()
    inheritance.encode(_AT_ONCE)
    return time.thread_time() - began_s


class FleetRanker:
    """Makes pages by a fleet's lineup. Belongs to one event loop.

    Args:
        fleet: the versions.
        compared: told of what a shadow makes.
    """

    def __init__(self, fleet: Fleet[Ranker], compared: Compared = lambda _version, _answer, _overlap: None) -> None:
        self._fleet = fleet
        self._compared = compared
        self._beside: set[asyncio.Task[None]] = set()
        self._log = get("rollout")

    async def home(self, profile: ProfileFeatures, query: HomeQuery) -> Answer:
        """A home page by the version that answers this profile; never raises.

        Args:
            profile: who asks.
            query: what for.
        """
        lineup = self._fleet.lineup
        ranker, assignment = lineup.of(profile.profile_id)
        answer = None if ranker is lineup.champion else await self._tried(ranker, profile, query)
        if answer is None:
            ranker, answer = lineup.champion, _told(lineup, await lineup.champion.home(profile, query))
        if lineup.shadow is not None and place("shadow", profile.profile_id) < SHADOW_SHARE:
            self._shadow(lineup.shadow, profile, query, answer)
        if not lineup.tries:
            return answer
        missed = assignment.challenged and ranker.version != lineup.plan.challenger
        return replace(answer, assigned=told_as(lineup.plan, assignment, missed=missed))

    def assigned(self, profile_id: str) -> Assigned | None:
        """Who should make a profile's page now; None where no rollout goes on, or its challenger is being loaded."""
        lineup = self._fleet.lineup
        if not lineup.tries:
            return None
        return told_as(lineup.plan, lineup.of(profile_id)[1], missed=False)

    async def _tried(self, challenger: Ranker, profile: ProfileFeatures, query: HomeQuery) -> Answer | None:
        """The challenger's page; None where it made none in time."""
        within_s = CHALLENGER_S if query.within_s is None else min(CHALLENGER_S, query.within_s / 2)
        try:
            answer = await in_time(challenger.home(profile, query), within_s)
        except Exception as error:  # noqa: BLE001 - whatever a challenger does, the champion makes the page
            told = {"version": challenger.version, "error": repr(error)[:300]}
            self._log.error("challenger failed", extra=told)
            return None
        return None if MODEL_FAILED in answer.degraded else answer

    async def similar(self, title_id: str, query: HomeQuery) -> Answer:
        """Titles like a title, by the champion: nobody is asked for.

        Raises:
            NotFound: the catalogue does not hold it.
        """
        lineup = self._fleet.lineup
        return _told(lineup, await lineup.champion.similar(title_id, query))

    def prepare(self, profile: ProfileFeatures) -> None:
        """Ready the version that answers this profile for its next page."""
        ranker, _ = self._fleet.lineup.of(profile.profile_id)
        ranker.prepare(profile)

    def _shadow(self, shadow: Ranker, profile: ProfileFeatures, query: HomeQuery, shown: Answer) -> None:
        if len(self._beside) >= _MOST_SHADOWED:
            return
        task = asyncio.create_task(self._compare(shadow, profile, query, shown))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _compare(self, shadow: Ranker, profile: ProfileFeatures, query: HomeQuery, shown: Answer) -> None:
        try:
            made = await shadow.home(profile, replace(query, request_id=""))  # what it would show by itself
        except Exception:  # noqa: BLE001 - nobody waits for it
            self._log.exception("shadow failed", extra={"version": shadow.version})
            return
        if shadow.version is not None:
            self._compared(shadow.version, made, overlap(shown, made))


def _told(lineup: Lineup[Ranker], answer: Answer) -> Answer:
    """An answer of who answers as champion, which says so where that is another version."""
    return replace(answer, degraded=(*answer.degraded, STALE_MODEL)) if lineup.stale else answer


def overlap(shown: Answer, made: Answer) -> float:
    """Share of a page's first titles that another page has among its first, 0 to 1; 1 where both are empty."""
    one, other = (_first_titles(answer) for answer in (shown, made))
    return len(one & other) / max(len(one), len(other)) if one or other else 1.0


def _first_titles(answer: Answer) -> set[bytes]:
    found = (match[1] for match in _TITLE.finditer(answer.members))
    return set(islice(dict.fromkeys(found), _COMPARED))
