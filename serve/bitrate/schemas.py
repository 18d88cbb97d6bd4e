"""The HTTP contract of the bitrate routes, for OpenAPI, clients and tests; the hot path does not build these models.

Units: time s, bitrate and throughput kbit/s (1 kbit = 1000 bit), sizes bytes.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from serve.bitrate.observations import HISTORY, LOOKAHEAD, RUNGS

MAX_SESSIONS: Final = 1000
"""Most sessions of one POST /v1/bitrate."""

Kbps = Annotated[float, Field(ge=1, le=1e7)]
Text = Annotated[str, Field(min_length=1, max_length=128)]

SESSION_EXAMPLE: Final[JsonDict] = {
    "session_id": "s-81",
    "title_id": "242",
    "segment_index": 12,
    "segment_count": 48,
    "segment_s": 4,
    "buffer_s": 11.3,
    "max_buffer_s": 60,
    "last_rung": 2,
    "throughput_kbps": [2310, 1985, 2640, 2120],
    "download_s": [2.1, 2.4, 1.8, 2.3],
    "rungs_kbps": [300, 750, 1200, 1850, 2850, 4300],
    "cdn": "edge-eu",
    "asn": "3320",
}
_ANSWER_EXAMPLE: Final[JsonDict] = {"request_id": "9f1c2d7e5a", "versions": {"bitrate": "5d0c6f1a9b42"}}
_DECISION_EXAMPLE: Final[JsonDict] = {
    "session_id": "s-81",
    "rung": 3,
    "bitrate_kbps": 1850.0,
    "max_safe_kbps": 1850.0,
    "rebuffer_probability": 0.012,
    "expected_quality": 1.85,
    "throughput_kbps": {"p10": 1540.0, "p50": 2190.0, "p90": 2810.0},
    "degraded": [],
    "ttl_s": 4.0,
}


class QoeWeights(BaseModel):
    """What viewing is worth: quality * q + rebuffer * s + rise * |gain| + fall * |loss|, by segment.

    Attributes:
        rebuffer: per second of rebuffering, below 0.
        rise: per unit of quality gained since the segment before.
        fall: per unit lost.
        quality: per unit of quality, above 0.
        measure: unit of quality: Mbit/s or VMAF.
    """

    rebuffer: float = Field(lt=0, ge=-1000)
    rise: float = Field(ge=-1000, le=1000)
    fall: float = Field(ge=-1000, le=1000)
    quality: float = Field(gt=0, le=1000)
    measure: Literal["mbps", "vmaf"] = "mbps"


class BitrateSession(BaseModel):
    """One session that asks which rung to fetch next.

    What is missing or cannot be used is replaced by something safe and named in the answer's `degraded`; nothing here
    is refused. More names than these are ignored.

    Attributes:
        session_id: given back with the decision.
        title_id: sizes and quality of its segments are looked up where they are not given.
        segment_index: the segment to fetch next, from 0.
        segment_count: segments of the title; leave it out for live.
        segment_s: length of a segment.
        buffer_s: media in the buffer.
        max_buffer_s: the most that the player buffers.
        last_rung: index of the rung fetched last; leave it out before the first.
        throughput_kbps: throughput of the newest downloads, newest last; leave it out before the first.
        download_s: how long each of them took.
        rungs_kbps: the ladder in any order; answers are indexes into this list. Of more than 12 rungs, 12 are used.
        segment_bytes: size of the upcoming segments, the next first, each a list by rung.
        vmaf: quality of the same segments, 0 to 100, likewise.
        cdn: delivery network, for the throughput expected before the first sample.
        asn: the viewer's network, likewise.
        device: the player's kind of device; no decision depends on it so far.
        live_latency_s: live latency now.
        live_target_s: the latency that the player aims at.
        qoe: what to maximise: `linear` (Mbit/s), `perceptual` (VMAF), or weights.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [SESSION_EXAMPLE]})

    session_id: Text | None = None
    title_id: Text | None = None
    segment_index: int | None = Field(default=None, ge=0, le=10**6)
    segment_count: int | None = Field(default=None, ge=1, le=10**6)
    segment_s: float = Field(ge=0.05, le=120)
    buffer_s: float = Field(ge=0, le=3600)
    max_buffer_s: float = Field(default=60, ge=0.1, le=3600)
    last_rung: int | None = Field(default=None, ge=-1)
    throughput_kbps: list[Kbps] = Field(default=[], description=f"The newest {HISTORY} are used.")
    download_s: list[Annotated[float, Field(ge=0.001, le=600)]] = []
    rungs_kbps: list[Kbps] = Field(min_length=1, description=f"Of more than {RUNGS} rungs, {RUNGS} are used.")
    segment_bytes: list[list[Annotated[float, Field(ge=1, le=1e10)]]] | None = Field(
        default=None, description=f"The first {LOOKAHEAD} are used."
    )
    vmaf: list[list[Annotated[float, Field(ge=0, le=100)]]] | None = None
    cdn: Text | None = None
    asn: Text | None = None
    device: Text | None = None
    live_latency_s: float | None = Field(default=None, ge=0, le=600)
    live_target_s: float | None = Field(default=None, ge=0, le=600)
    qoe: Literal["linear", "perceptual"] | QoeWeights = "linear"


class BitrateBatch(BaseModel):
    """A controller's tick: many sessions at once."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"sessions": [SESSION_EXAMPLE]}]})

    sessions: list[BitrateSession] = Field(max_length=MAX_SESSIONS)


class ThroughputQuantiles(BaseModel):
    """Quantiles of the throughput of the next download."""

    p10: float = Field(ge=0)
    p50: float = Field(ge=0)
    p90: float = Field(ge=0)


class Decision(BaseModel):
    """What to fetch next.

    Attributes:
        session_id: as it came; null where none did.
        version: of the policy that decided; null where the simple rule did.
        rung: index into the request's rungs_kbps.
        bitrate_kbps: its bitrate; null where the request has no usable rung.
        max_safe_kbps: the highest rung whose fetching empties the buffer with a probability below 0.05, or the lowest.
        rebuffer_probability: that fetching the chosen rung empties the buffer.
        expected_quality: of the next segment at that rung: Mbit/s, or VMAF for the perceptual QoE.
        throughput_kbps: of the next download.
        degraded: why the decision is less than it could be: `model_missing`, `bad_field:buffer_s`, ...
        ttl_s: how long the decision holds: until the next segment.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_DECISION_EXAMPLE]})

    session_id: str | None
    version: str | None = None
    rung: int = Field(ge=0)
    bitrate_kbps: float | None
    max_safe_kbps: float | None
    rebuffer_probability: float = Field(ge=0, le=1)
    expected_quality: float | None
    throughput_kbps: ThroughputQuantiles
    degraded: tuple[str, ...]
    ttl_s: float = Field(gt=0)


class BitrateVersions(BaseModel):
    """Which versions made an answer.

    Attributes:
        bitrate: version of the policy, of several the one that decided most; absent where the simple rule answered.
    """

    bitrate: str | None = None


class BitrateDecision(Decision):
    """Answer of POST /v1/bitrate to one session."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_ANSWER_EXAMPLE, **_DECISION_EXAMPLE}]})

    request_id: str
    versions: BitrateVersions


class BitrateDecisions(BaseModel):
    """Answer of POST /v1/bitrate to a list, in its order.

    Attributes:
        request_id: names this answer.
        versions: which versions made it.
        degraded: all reasons of its decisions.
        decisions: one a session.
    """

    request_id: str
    versions: BitrateVersions
    degraded: tuple[str, ...]
    decisions: tuple[Decision, ...]
