"""Clients: who asks, where each belongs, and what a sample of them says of the whole audience."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

_MS: Final = 1000

Inside = Callable[[Mapping[str, str]], bool]
"""Whether clients of a context (dimension -> value) are meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A player that asks where to fetch from.

    Attributes:
        session: names the viewing.
        context: dimension (region, asn, protocol, ...) -> value, of those that are known.
        home: the pathway that this viewing was given when it began; None where it begins now.
        current: the pathway that it says to be on; None where it does not say.
    """

    session: str
    context: Mapping[str, str]
    home: str | None = None
    current: str | None = None


def place(*names: str) -> float:
    """A number above 0 and below 1 that is the same for ever for the same names, and even over all names."""
    digest = blake2b("\0".join(names).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**64


def ranked(weights: Mapping[str, float], *names: str) -> list[str]:
    """Pathways in an order of their own for whoever is named, each first as often as its weight says.

    Weighted rendezvous hashing: -ln(place) / weight, least first, is a race of exponential clocks. A change of one
    weight moves only those who win or lose by it. Weights of 0 come last.
    """

    def clock(pathway: str) -> tuple[bool, float]:
        time = -math.log(place(*names, pathway))
        return (False, time / weights[pathway]) if weights[pathway] > 0 else (True, time)

    return sorted(weights, key=clock)


class SeenClients:
    """A fair sample of the sessions that asked lately, in bounded memory.

    Sessions are kept by their hash: all of them at first, and half of them less each time there are too many; so those
    that ask often count no more than others.

    Args:
        most: sessions that are kept.
        least: with fewer than so many nothing is said of the audience.
        window_s: how long a session is kept after it asked; above the longest TTL.
    """

    def __init__(self, *, most: int = 1024, least: int = 100, window_s: float = 360.0) -> None:
        self._most = most
        self._least = least
        self._window_ms = window_s * _MS
        self._below = 1.0
        self._seen: dict[str, tuple[int, float, Mapping[str, str], str | None]] = {}
        """Session -> when, its hash, context, pathway; in the order in which they asked."""

    def note(self, client: Client, now_ms: int) -> None:
        """Take one that asks into account."""
        hashed = place("seen", client.session)
        if hashed >= self._below:
            return
        self._seen.pop(client.session, None)
        self._seen[client.session] = (now_ms, hashed, client.context, client.current)
        if len(self._seen) > self._most:
            self.forget(now_ms)
        if len(self._seen) > self._most:
            self._below /= 2
            self._seen = {session: one for session, one in self._seen.items() if one[1] < self._below}

    def forget(self, now_ms: int) -> None:
        """Leave out those that have not asked for long."""
        for session, (asked_ms, *_) in list(self._seen.items()):
            if now_ms - asked_ms <= self._window_ms:
                break
            del self._seen[session]
        if len(self._seen) < self._most // 4:
            self._below = min(1.0, self._below * 2)

    def share(self, inside: Inside) -> float:
        """Share of the audience that is meant, 0 to 1; 1 while too few were seen to tell."""
        if len(self._seen) < self._least:
            return 1.0
        return sum(inside(context) for _, _, context, _ in self._seen.values()) / len(self._seen)

    def load(self) -> dict[str, float]:
        """Pathway -> share of the audience on it, of those who say where they are; empty while too few do."""
        counts: dict[str, int] = {}
        for _, _, _, pathway in self._seen.values():
            if pathway is not None:
                counts[pathway] = counts.get(pathway, 0) + 1
        total = sum(counts.values())
        return {pathway: count / total for pathway, count in counts.items()} if total >= self._least else {}


def is_in(context: Mapping[str, str], scope: Mapping[str, str]) -> bool:
    """Whether a context is known to lie in a scope: dimension -> value that all in it have; empty: everyone."""
    return all(context.get(name) == value for name, value in scope.items())
