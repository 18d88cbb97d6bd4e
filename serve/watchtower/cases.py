"""An open outage beside all that is kept to judge it by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from serve.telemetry.windows import WINDOW_MS
from serve.watchtower.alarms import MISSING, Slice, may_meet, slice_of
from serve.watchtower.drifts import LONGEST
from serve.watchtower.outages import Outage, as_json, from_json
from serve.watchtower.starts import UsualStarts

_ALARMED: Final = 6
"""Windows with an alarm that are remembered."""


@dataclass(slots=True)
class Case:
    """An outage and what is kept beside it.

    Attributes:
        outage: as it is told.
        votes: slice -> evidence that has spoken for it, in nats; older evidence counts less.
        usual: metric -> share of bad ones that was usual before it began; MISSING has no share.
        starts: what was usual before starts went missing; None: none have.
        alarmed: windows with an alarm, latest last.
        calm: windows as usual in a row.
        hurt: sessions with something bad beyond the usual.
        pace: bad ones a window beyond the usual, at the worst.
        slow: whether an alarm of many windows found it.
    """

    outage: Outage
    votes: dict[Slice, float] = field(default_factory=dict)
    usual: dict[str, float] = field(default_factory=dict)
    starts: UsualStarts | None = None
    alarmed: list[int] = field(default_factory=list)
    calm: int = 0
    hurt: float = 0.0
    pace: float = 0.0
    slow: bool = False

    @property
    def slice(self) -> Slice:
        """What it is told to be about."""
        return slice_of(self.outage.slice.items())

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that it shows in."""
        return tuple(self.usual) if self.starts is None else (*self.usual, MISSING)

    @property
    def best(self) -> Slice:
        """The slice that most evidence has spoken for."""
        return max(self.votes, key=lambda one: self.votes[one])

    def vote(self, slice_: Slice, nats: float) -> None:
        """Let evidence speak for a slice."""
        self.votes[slice_] = self.votes.get(slice_, 0.0) + nats

    def fade(self, keep: float) -> None:
        """Let what has spoken so far count less."""
        for name in self.votes:
            self.votes[name] *= keep

    def note_alarm(self, window_ms: int) -> None:
        """Note a window with an alarm."""
        if not self.alarmed or self.alarmed[-1] != window_ms:
            self.alarmed = [*self.alarmed[1 - _ALARMED :], window_ms]

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able."""
        starts = None if self.starts is None else self.starts.state()
        return {
            "outage": as_json(self.outage), "votes": list(self.votes.items()), "usual": self.usual, "starts": starts,
            "alarmed": self.alarmed, "calm": self.calm, "hurt": self.hurt, "pace": self.pace, "slow": self.slow,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The case that wrote this checkpoint."""
        starts = None if state["starts"] is None else UsualStarts.from_state(state["starts"])
        return cls(
            outage=from_json(state["outage"]), votes={slice_of(pairs): vote for pairs, vote in state["votes"]},
            usual=dict(state["usual"]), starts=starts, alarmed=list(state["alarmed"]), calm=state["calm"],
            hurt=state["hurt"], pace=state["pace"], slow=state["slow"],
        )  # fmt: skip


class Past:
    """Outages that were closed lately: sums over many windows remember them."""

    def __init__(self) -> None:
        self._over: list[tuple[Slice, tuple[str, ...], int]] = []  # slice, metrics and end

    def add(self, case: Case, now: int) -> None:
        """Remember one that is over now."""
        self._over.append((case.slice, case.metrics, now))

    def forget(self, now: int) -> None:
        """Forget what no sum can hold any more."""
        self._over = [one for one in self._over if now - one[2] < LONGEST * WINDOW_MS]

    def end(self, metric: str, slice_: Slice) -> int:
        """When the last of them with a metric that may be in a slice was closed, UTC ms; 0: there was none."""
        ends = (end for over, metrics, end in self._over if metric in metrics and may_meet(over, slice_))
        return max(ends, default=0)

    def state(self) -> list[Any]:
        """As JSON takes it."""
        return [list(one) for one in self._over]

    @classmethod
    def from_state(cls, state: Sequence[Any]) -> Self:
        """The reverse of `state`."""
        past = cls()
        past._over = [(slice_of(pairs), tuple(metrics), end) for pairs, metrics, end in state]
        return past
