"""Viewers who browse: each asks for a home page, plays what it likes of what is shown, and else what it searches for.

An open loop: visits begin at random times at a steady rate (Poisson), whatever became of the ones before. What a
viewer likes is a taste over genres, which nobody tells the service; a shift of taste takes hold of everybody at once.

Shapes: P viewers, G genres. Times are seconds since the browsing began.
"""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self
from uuid import uuid4

import httpx
import numpy as np
from numpy.typing import NDArray

from serve.clock import now_ms
from serve.errors import InvalidInput

MOST_IN_FLIGHT: Final = 256

_EXAMINED: Final = 0.78
"""A viewer who has looked at a title without liking it looks at the next with this probability (cascade model, Craswell
et al. 2008)."""

_ROW_PASSED: Final = 6
"""Titles of a row that are looked at before the next row is."""

_FINISHED: Final = 0.6
_THUMBED: Final = 0.15
_APART_MS: Final = 1
"""Between events of a viewer, so that their order is told."""
_CONNECT_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewers:
    """Who browses.

    Attributes:
        profiles: their ids, P.
        regions: where each of them is, P.
        devices: what each of them watches on, P.
        genres: names of the genres, G.
        taste: (P, G), rows sum to 1.
        titles: by genre, the titles that somebody who searches finds, best known first; a genre without titles is
            searched for in vain.
    """

    profiles: Sequence[str]
    regions: Sequence[str]
    devices: Sequence[str]
    genres: Sequence[str]
    taste: NDArray[np.float64]
    titles: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        """Refuse what does not fit together.

        Raises:
            InvalidInput: tastes of other viewers or genres, or nobody.
        """
        expected = (len(self.profiles), len(self.genres))
        if self.taste.shape != expected or not len(self.profiles) or not self._is_whole():
            raise InvalidInput(
                field="taste", got=self.taste.shape, expected=f"{expected}, at least one viewer",
                next_step="Give each viewer a region, a device and a taste for each genre.",
            )  # fmt: skip

    def _is_whole(self) -> bool:
        return len(self.regions) == len(self.devices) == len(self.profiles)

    def shifted(self, moves: Sequence[int]) -> Self:
        """The same viewers after a shift of taste: who liked genre g now likes genre moves[g] as much.

        Args:
            moves: a permutation of the genres' places.

        Raises:
            InvalidInput: it is no permutation.
        """
        if sorted(moves) != list(range(len(self.genres))):
            raise InvalidInput(
                field="moves", got=list(moves), expected=f"each of 0 to {len(self.genres) - 1} once",
                next_step="Name a place for each genre.",
            )  # fmt: skip
        taste = np.empty_like(self.taste)
        taste[:, list(moves)] = self.taste
        return replace(self, taste=taste)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowsingSettings:
    """How they browse.

    Attributes:
        url: of the service.
        pages_per_s: visits a second, on average.
        eagerness: probability that a viewer plays a title of its only genre once it looks at it, above 0, up to 1.
        searches: probability that a viewer who found nothing searches, and plays what it finds.
        timeout_s: longest wait for an answer.
        headers: sent with every request.
        seed: of whoever comes, and of what they do.
    """

    url: str
    pages_per_s: float = 40.0
    eagerness: float = 0.6
    searches: float = 0.5
    timeout_s: float = 5.0
    headers: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Visit:
    """What became of one visit.

    Attributes:
        at_s: when it began.
        version: of the model that made the page; empty: none.
        played: whether something on the page was played.
        latency_ms: of the page.
        error: empty, or what went wrong: `timeout`, `connect`, `http_429`, ...; of the page or of the events.
        degraded: whether the page said so.
    """

    at_s: float
    version: str = ""
    played: bool = False
    latency_ms: float = 0.0
    error: str = ""
    degraded: bool = False


class Browsing:
    """Visits of an audience to a running Playhead. Belongs to one event loop.

    Args:
        settings: how they browse.
        viewers: who does; may be replaced while they browse.

    Attributes:
        visits: what became of them, in the order of their ends.
    """

    def __init__(self, settings: BrowsingSettings, viewers: Viewers) -> None:
        self._settings = settings
        self.viewers = viewers
        self.visits: list[Visit] = []
        self._random = random.Random(settings.seed)
        self._began = time.perf_counter()
        self._free: list[httpx.AsyncClient] = []
        self._tls = ssl.create_default_context()

    async def run(self, stopped: Callable[[], bool]) -> None:
        """Browse until told to stop.

        Args:
            stopped: asked before each visit.
        """
        visiting: set[asyncio.Task[None]] = set()
        self._began = time.perf_counter()
        at_s = 0.0
        try:
            while not stopped():
                at_s += self._random.expovariate(self._settings.pages_per_s)
                await asyncio.sleep(max(0.0, at_s - self._elapsed_s()))
                if len(visiting) >= MOST_IN_FLIGHT:
                    self.visits.append(Visit(self._elapsed_s(), error="overload"))
                    continue
                task = asyncio.create_task(self._visit(self._random.randrange(len(self.viewers.profiles))))
                visiting.add(task)
                task.add_done_callback(visiting.discard)
            await asyncio.gather(*visiting)
        finally:
            await asyncio.gather(*[client.aclose() for client in self._free])
            self._free.clear()

    def _client(self) -> httpx.AsyncClient:
        """A connection that nobody uses now: a shared pool would look at all of its for each request."""
        if self._free:
            return self._free.pop()
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        timeout = httpx.Timeout(self._settings.timeout_s, connect=_CONNECT_S)
        return httpx.AsyncClient(
            base_url=self._settings.url, limits=limits, timeout=timeout, headers=dict(self._settings.headers),
            trust_env=False, verify=self._tls,
        )  # fmt: skip

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    async def _visit(self, viewer: int) -> None:
        client = self._client()
        try:
            self.visits.append(await self._made(client, viewer))
        finally:
            self._free.append(client)

    async def _made(self, client: httpx.AsyncClient, viewer: int) -> Visit:
        viewers, at_s = self.viewers, self._elapsed_s()
        query = {
            "profile_id": viewers.profiles[viewer], "region": viewers.regions[viewer],
            "device": viewers.devices[viewer],
        }  # fmt: skip
        page, error = await _answer(client.get("/v1/home", params=query))
        latency_ms = (self._elapsed_s() - at_s) * 1000
        if page is None:
            return Visit(at_s, latency_ms=latency_ms, error=error)
        taste = dict(zip(viewers.genres, viewers.taste[viewer].tolist(), strict=True))
        choice = self.choose(page, taste)
        events = [] if choice is None else self._watched(viewer, page, *choice)
        if choice is None and self._random.random() < self._settings.searches:
            events = self._searched(viewer, taste)
        if events:
            _, error = await _answer(client.post("/v1/events", json={"events": events}))
        version = str(page["versions"].get("model") or "")
        return Visit(at_s, version, choice is not None, latency_ms, error, degraded=bool(page["degraded"]))

    def choose(self, page: Mapping[str, Any], taste: Mapping[str, float]) -> tuple[Mapping[str, Any], str] | None:
        """What a viewer plays of a page: the title and its row's id; None: nothing.

        Titles are looked at row by row, each with less probability than the one before, and played as the viewer likes
        their first genre.

        Args:
            page: the answer of GET /v1/home.
            taste: genre -> share.
        """
        for row in page["rows"]:
            for item in row["items"][:_ROW_PASSED]:
                liked = taste.get(item["genres"][0], 0.0) if item["genres"] else 0.0
                if self._random.random() < self._settings.eagerness * liked:
                    return item, row["id"]
                if self._random.random() > _EXAMINED:
                    return None
        return None

    def _watched(self, viewer: int, page: Mapping[str, Any], item: Mapping[str, Any], row: str) -> list[dict[str, Any]]:
        """A play, and perhaps a finish and a thumbs-up, that name the page."""
        where = {"request_id": page["request_id"], "row": row, "rank": item["rank"]}
        return self._events(viewer, item["title_id"], where)

    def _searched(self, viewer: int, taste: Mapping[str, float]) -> list[dict[str, Any]]:
        """The same of a title of a genre that the viewer likes, which no page showed."""
        (genre,) = self._random.choices(list(taste), list(taste.values()))
        titles = self.viewers.titles.get(genre, ())
        if not titles:
            return []
        place = min(int(self._random.expovariate(4.0 / len(titles))), len(titles) - 1)
        return self._events(viewer, titles[place], {})

    def _events(self, viewer: int, title_id: str, where: Mapping[str, Any]) -> list[dict[str, Any]]:
        kinds = ["play"]
        if self._random.random() < _FINISHED:
            kinds += ["finish"] + ["thumbs_up"] * (self._random.random() < _THUMBED)
        ts = now_ms()
        return [
            {
                "event_id": uuid4().hex, "profile_id": self.viewers.profiles[viewer], "title_id": title_id,
                "kind": kind, "ts": ts + place * _APART_MS, "region": self.viewers.regions[viewer],
                "device": self.viewers.devices[viewer], **where,
            }
            for place, kind in enumerate(kinds)
        ]  # fmt: skip


async def _answer(asked: Any) -> tuple[dict[str, Any] | None, str]:
    """An answer's JSON object, or None and what went wrong."""
    try:
        response = await asked
        if not response.is_success:
            return None, f"http_{response.status_code}"
        return response.json(), ""
    except httpx.TimeoutException:
        return None, "timeout"
    except httpx.HTTPError as error:
        return None, "connect" if isinstance(error, httpx.ConnectError) else "protocol"
    except ValueError:
        return None, "bad_body"
