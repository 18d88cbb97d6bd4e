"""A steerer with an audience whose every session asks again each second and does as it is told."""

from collections import Counter
from collections.abc import Iterable, Mapping

from serve.steering.clients import Client, Inside
from serve.steering.pathways import Pathways
from serve.steering.plans import everyone
from serve.steering.steerer import Steerer
from serve.watchtower.outages import Outage, State

START_MS = 1_790_000_000_000
CONTEXTS: tuple[Mapping[str, str], ...] = (
    *[{"region": "eu", "asn": "64500"}] * 2,
    *[{"region": "eu", "asn": "64501"}] * 2,
    *[{"region": "us"}] * 3,
    *[{}] * 3,
)
"""Of ten clients each."""


def outage(state: State = "confirmed", **slice_: str) -> Outage:
    return Outage(
        outage_id="-".join(slice_.values()), state=state, slice=slice_, effects=(), started_ts=0, detected_ts=0,
        updated_ts=0,
    )  # fmt: skip


def share_of(inside: Inside) -> float:
    """Share of an audience of such clients."""
    return sum(map(inside, CONTEXTS)) / len(CONTEXTS)


class Audience:
    """Sessions, each with the pathway that it is on."""

    def __init__(
        self, config: Pathways, sessions: int = 400, context: Mapping[str, str] | None = None, *, mixed: bool = False
    ) -> None:
        self.steerer = Steerer(config)
        self.now_ms = START_MS
        self._mixed = mixed
        self._context = context or {}
        self.on: dict[str, str | None] = {f"s{number}": None for number in range(sessions)}
        self.homes: dict[str, str | None] = dict.fromkeys(self.on)
        self.moves: Counter[str] = Counter()

    def look(
        self, outages: Iterable[Outage] = (), after_s: float = 0.0, load: Mapping[str, float] | None = None
    ) -> None:
        """Time passes, news comes."""
        self.now_ms += int(after_s * 1000)
        self.steerer.update(
            outages,
            as_of_ms=self.now_ms,
            now_ms=self.now_ms,
            share_of=share_of if self._mixed else everyone,
            load=load,
        )

    def ask(self) -> None:
        """Everyone asks."""
        for number, (session, current) in enumerate(self.on.items()):
            context = CONTEXTS[number % len(CONTEXTS)] if self._mixed else self._context
            told = self.steerer.steer(
                Client(session=session, context=context, home=self.homes[session], current=current), self.now_ms
            )
            if current not in {None, told.priority[0]}:
                self.moves[session] += 1
            self.on[session], self.homes[session] = told.priority[0], told.home

    def shares(self) -> dict[str, float]:
        """Pathway -> share of the sessions that are on it."""
        counts = Counter(self.on.values())
        return {pathway.id: counts[pathway.id] / len(self.on) for pathway in self.steerer._config.pathways}
