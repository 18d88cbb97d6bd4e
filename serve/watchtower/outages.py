"""Outages: what alarms add up to, in the form that operators, steering and webhooks see."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

State = Literal["suspected", "confirmed", "recovering", "closed"]
OPEN: Final[tuple[State, ...]] = ("suspected", "confirmed", "recovering")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """How far one metric is from what was expected.

    Of `missing_starts` there is nothing to see, so `total` is how many starts are usual at this time, `bad` how many of
    those did not come, neither in the slice nor on another CDN or protocol in its stead, `now` their share, and
    `expected` 0: none is expected to be missing.

    Attributes:
        metric: such as `start_failures`.
        expected: share of bad ones that was expected, 0 to 1.
        now: share that was seen, 0 to 1.
        total: how many were seen.
        bad: how many of them were bad.
    """

    metric: str
    expected: float
    now: float
    total: int
    bad: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """Something is broken for a slice of the audience.

    Attributes:
        outage_id: names it for ever.
        state: suspected (an alarm or two), confirmed, recovering (no alarm for a while), closed.
        slice: dimension -> value that all that are hurt have in common; empty: everyone.
        effects: worst metric first.
        started_ts: when it began, as far as can be told, UTC milliseconds.
        detected_ts: when the first alarm was raised.
        updated_ts: when this was last changed.
        closed_ts: when it was over; None before.
        sessions_hurt: sessions with a bad event in excess of what was expected.
        severity: share of all sessions that are hurt, 0 to 1.
        evidence: causes in order, as serve.watchtower.localisation has them.
    """

    outage_id: str
    state: State
    slice: Mapping[str, str]
    effects: tuple[Effect, ...]
    started_ts: int
    detected_ts: int
    updated_ts: int
    closed_ts: int | None = None
    sessions_hurt: int = 0
    severity: float = 0.0
    evidence: tuple[Mapping[str, Any], ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it goes on."""
        return self.state in OPEN


def as_json(outage: Outage) -> dict[str, Any]:
    """An outage as JSON takes it: what GET /v1/outages shows."""
    return asdict(outage)


def from_json(document: Mapping[str, Any]) -> Outage:
    """The reverse of `as_json`."""
    return Outage(**{
        **document, "slice": dict(document["slice"]), "effects": tuple(Effect(**one) for one in document["effects"]),
        "evidence": tuple(dict(one) for one in document["evidence"]),
    })  # fmt: skip
