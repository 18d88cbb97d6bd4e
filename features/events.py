"""The watch event: what a player client reports, stores and learns from.

Units: ts is UTC milliseconds since the epoch; position_s and duration_s are seconds.
"""

import struct
from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

MAX_TS_MS: Final = 4_102_444_800_000
"""2100-01-01T00:00:00Z; a later event is a unit mistake, not a plan."""

_FLOAT32: Final = struct.Struct("<f")

CLOCK_TOLERANCE_MS: Final = 3_600_000
"""How far ahead of ours a client's clock may be: an event from further in the future would lead every trend."""

Identifier = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]
"""A printable ASCII id without spaces, 1 to 128 characters."""


class EventKind(StrEnum):
    """What the viewer did."""

    IMPRESSION = "impression"
    PLAY = "play"
    PROGRESS = "progress"
    FINISH = "finish"
    THUMBS_UP = "thumbs_up"
    THUMBS_DOWN = "thumbs_down"
    ADD_TO_LIST = "add_to_list"
    REMOVE_FROM_LIST = "remove_from_list"


class Event(BaseModel):
    """One thing that one viewer did to one title, idempotent by event_id."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    event_id: Identifier
    profile_id: Identifier
    title_id: Identifier
    kind: Annotated[EventKind, Field(strict=False)]
    ts: Annotated[int, Field(ge=0, le=MAX_TS_MS, description="UTC milliseconds since the epoch")]
    position_s: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    duration_s: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    request_id: Annotated[str, Field(max_length=128)] | None = None
    row: Annotated[str, Field(max_length=128)] | None = None
    rank: Annotated[int, Field(ge=0, le=10_000)] | None = None
    device: Annotated[str, Field(max_length=64)] | None = None
    region: Annotated[str, Field(max_length=64)] | None = None

    @property
    def progress(self) -> float:
        """Share of the title watched, 0 to 1; 0 where the duration is unknown.

        Rounded to float32, as the store keeps it, so that an event looks the same before and after it was stored.
        """
        share = min(self.position_s / self.duration_s, 1.0) if self.duration_s > 0 else 0.0
        return float(_FLOAT32.unpack(_FLOAT32.pack(share))[0])
