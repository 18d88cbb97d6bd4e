"""What the recommendation routes take and give: the HTTP contract, and the rendered answers that fulfil it.

The pydantic models describe the JSON for OpenAPI, clients and tests. The hot path does not build them: the ranker
renders a page straight to bytes (`Answer`), and a test holds the bytes to these models.

Units: *_ts are UTC milliseconds since the epoch, *_ms milliseconds; play, finish, thumbs_up and progress are 0 to 1.
"""

import re
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Final, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from features.events import Event

MAX_ROWS: Final = 20
"""Most rows of a page."""

MAX_ITEMS: Final = 50
"""Most titles of a row."""

MAX_EVENTS: Final = 500
"""Most events of one POST /v1/events."""

MODEL_FAILED: Final = "model_failed"
"""In `degraded`: the model raised, and popular titles answer."""

STALE_MODEL: Final = "stale_model"
"""In `degraded`: the version that should answer can't be loaded, and another one does, as good as it is."""

_SCORE: Final = re.compile(rb'"score":(-?\d[^,}]*)')
_CHANCE: Final = b'"play":'
_LONGEST_NUMBER: Final = 32

Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeQuery:
    """What a client asks of a home page or of similar titles.

    Attributes:
        region: where the player is; None: where the profile's last event came from.
        device: the player's kind of device; None: unknown.
        kids: True shows only titles for kids. A known kids profile stays one whatever this says. While the
            store cannot say what the profile is, False is believed and None counts as True.
        rows: most rows, 1 to MAX_ROWS.
        items: most titles of a row, 1 to MAX_ITEMS.
        now_ms: time of the request; None: the clock's.
        within_s: the longest that the caller waits, seconds; None: it did not say.
        request_id: names the answer, and so says whether and how it is explored; empty: it is not.
    """

    region: str | None = None
    device: str | None = None
    kids: bool | None = None
    rows: int = 10
    items: int = 20
    now_ms: int | None = None
    within_s: float | None = None
    request_id: str = ""


class Versions(BaseModel):
    """Which versions made an answer.

    Attributes:
        model: version of the recommend artifact; absent where none took part.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None


class Item(BaseModel):
    """One title of a row.

    Attributes:
        title_id: id.
        name: shown to viewers.
        year: release year; 0 unknown.
        genres: genre names, most telling first.
        rank: place in its row, from 0; send it back in the event's `rank`.
        score: what the row's candidates are ordered by, higher is better; null for a title that the model did not rank.
        play: probability that the viewer plays it; null where not estimated.
        finish: probability that the viewer finishes it; null where not estimated.
        thumbs_up: probability of a thumbs-up; null where not estimated.
        progress: share already watched, in the row `continue_watching` only.
    """

    title_id: str
    name: str
    year: int
    genres: tuple[str, ...]
    rank: int = Field(ge=0)
    score: float | None
    play: Probability | None
    finish: Probability | None
    thumbs_up: Probability | None
    progress: Probability | None = None


class Row(BaseModel):
    """One row of a home page, never empty.

    Attributes:
        id: names the row in events (`row`) and metrics, such as `top_picks` or `genre:Comedy`; unique on a page.
        title: the heading shown to the viewer.
        reason: why this row is there, in one sentence.
        items: the titles, best first.
    """

    id: str
    title: str
    reason: str
    items: tuple[Item, ...] = Field(min_length=1)


_ITEM_EXAMPLE: Final[JsonDict] = {
    "title_id": "242", "name": "Kolya", "year": 1996, "genres": ["Comedy"],
    "rank": 0, "score": 0.8312, "play": 0.412, "finish": 0.377, "thumbs_up": 0.31,
}  # fmt: skip
_ANSWER_EXAMPLE: Final[JsonDict] = {
    "request_id": "9f1c2d7e5a", "versions": {"model": "3b0f6c1d9a42"}, "degraded": [],
    "generated_ts": 1_767_225_600_000,
}  # fmt: skip


class HomePage(BaseModel):
    """Answer of GET /v1/home.

    Attributes:
        request_id: names this answer; send it back in the events that it leads to.
        profile_id: whose page it is.
        versions: which versions made it.
        degraded: why the page is less than it could be, such as `model_missing`; empty when all is well.
        generated_ts: when it was made.
        rows: the rows, top first; no title is on a page twice.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_ANSWER_EXAMPLE,
                    "profile_id": "196",
                    "rows": [
                        {
                            "id": "top_picks",
                            "title": "Top picks for you",
                            "reason": "Chosen for you from all that you watched",
                            "items": [_ITEM_EXAMPLE],
                        }
                    ],
                }
            ]
        }
    )

    request_id: str
    profile_id: str
    versions: Versions
    degraded: tuple[str, ...]
    generated_ts: int
    rows: tuple[Row, ...]


class SimilarTitles(BaseModel):
    """Answer of GET /v1/titles/{id}/similar.

    Attributes:
        request_id: names this answer.
        title_id: the title that was asked about.
        versions: which versions made it.
        degraded: why the answer is less than it could be; empty when all is well.
        generated_ts: when it was made.
        items: similar titles, most similar first; `score` is the cosine similarity plus up to 0.2 for popularity.
    """

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_ANSWER_EXAMPLE, "title_id": "50", "items": [_ITEM_EXAMPLE]}]}
    )

    request_id: str
    title_id: str
    versions: Versions
    degraded: tuple[str, ...]
    generated_ts: int
    items: tuple[Item, ...]


class EventBatch(BaseModel):
    """Body of POST /v1/events: what happened in a player, in any order.

    Attributes:
        events: 1 to MAX_EVENTS events; sending one again (same event_id) changes nothing.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "events": [
                        {
                            "event_id": "player-7-000123", "profile_id": "196", "title_id": "242", "kind": "play",
                            "ts": 1_767_225_600_000, "row": "top_picks", "rank": 0,
                        }
                    ]
                }
            ]
        },
    )  # fmt: skip

    events: tuple[Event, ...] = Field(min_length=1, max_length=MAX_EVENTS)


class EventReceipt(BaseModel):
    """Answer of POST /v1/events: these events are durable, and the next page knows them.

    Attributes:
        request_id: names this answer.
        accepted: events that were new.
        duplicates: events that had been accepted before.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"request_id": "51d0", "accepted": 1, "duplicates": 0}]})

    request_id: str
    accepted: int = Field(ge=0)
    duplicates: int = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Assigned:
    """Which version a profile belongs to in a rollout.

    Attributes:
        version: which.
        challenged: whether it is the challenger.
        propensity: probability of that, over profiles; above 0.
        salt: names the rollout.
        missed: whether it made nothing, and the champion answered.
    """

    version: str
    challenged: bool
    propensity: float
    salt: str
    missed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A rendered HomePage or SimilarTitles, ready but for its request_id: what a ranker hands to the gateway.

    Attributes:
        members: the JSON members of its own, without braces: `"profile_id":"196","rows":[...]`.
        versions: which versions made it.
        degraded: why it is less than it could be.
        generated_ts: when it was made.
        n_items: titles on it.
        timings_ms: wall time of each stage that made it, by stage name.
        assigned: who should have made it, in a rollout; None where none goes on.
        shown: row -> ids of its titles, in their order.
        slots: (title, its propensity in this slot given profile and candidates) of the first slots of the row that
            exploration may change, in their order; None where nothing would be explored: the page is degraded.
        explored: the slot that was explored, from 0; None: none was.
    """

    members: bytes
    versions: dict[str, str]
    degraded: tuple[str, ...]
    generated_ts: int
    n_items: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)
    assigned: Assigned | None = None
    shown: tuple[tuple[str, tuple[str, ...]], ...] = ()
    slots: tuple[tuple[str, float], ...] | None = None
    explored: int | None = None

    @classmethod
    def empty_home(cls, profile_id: str, degraded: tuple[str, ...], generated_ts: int) -> Self:
        """A home page with no rows: the last resort of a gateway that reached no ranker in time."""
        members = b'"profile_id":%b,"rows":[]' % orjson.dumps(profile_id)
        return cls(members=members, versions={}, degraded=degraded, generated_ts=generated_ts)

    def scores(self, most: int) -> list[float]:
        """Scores of the first titles on it, as they are shown; titles without one are left out.

        Args:
            most: so many at most.
        """
        return [float(found[1]) for found in islice(_SCORE.finditer(self.members), most)]

    def chances(self, most: int) -> list[float | None]:
        """Estimated chances that the first titles on it are played, as they are shown; None where none was estimated.

        Args:
            most: so many titles at most.
        """
        _, *found = self.members.split(_CHANCE, most)
        values = [one[:_LONGEST_NUMBER].partition(b",")[0].rstrip(b"}]") for one in found]
        return [None if value == b"null" else float(value) for value in values]

    def body(self, request_id: str) -> bytes:
        """The whole JSON answer, UTF-8."""
        head = {
            "request_id": request_id,
            "versions": self.versions,
            "degraded": self.degraded,
            "generated_ts": self.generated_ts,
        }
        return b"%b,%b}" % (orjson.dumps(head)[:-1], self.members)
