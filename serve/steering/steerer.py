"""The steerer: each client's order of pathways.

The default is a split by weight that keeps every session where it is. Who is moved from there is the plan's business; a
suspected outage keeps new sessions away and moves nobody.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from serve.steering.clients import Client, place, ranked
from serve.steering.detours import Detour
from serve.steering.pathways import Pathways
from serve.steering.plans import Plan, ShareOf, Trouble, everyone
from serve.watchtower.outages import Outage

_WELL, _DOUBTED, _HURT = range(3)
"""How a pathway does for a client: well; doubted (suspected, or on its way back); hurt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """What one client is told.

    Attributes:
        priority: ids of pathways, best first; never empty.
        ttl_s: after how long it should ask again.
        home: the pathway that its viewing belongs to from now on.
        stale: whether what is known of outages is too old.
    """

    priority: tuple[str, ...]
    ttl_s: int
    home: str
    stale: bool


class Steerer:
    """Decides for all clients; the same for the same calls of `update`, or for the same state.

    Args:
        config: what may be steered to.
    """

    def __init__(self, config: Pathways) -> None:
        self._config = config
        self._pathways = config.by_id
        self._weights = config.weights
        self._plan = Plan(config)

    @property
    def plan(self) -> Plan:
        """Where it goes by."""
        return self._plan

    def update(
        self,
        outages: Iterable[Outage],
        *,
        as_of_ms: int,
        now_ms: int,
        share_of: ShareOf = everyone,
        load: Mapping[str, float] | None = None,
    ) -> None:
        """Take what is known now into account: see Plan.update."""
        self._plan.update(outages, as_of_ms=as_of_ms, now_ms=now_ms, share_of=share_of, load=load)

    def state(self) -> dict[str, Any]:
        """All that decides, as plain data: for a checkpoint, or for another replica."""
        return self._plan.state()

    @classmethod
    def from_state(cls, config: Pathways, state: Mapping[str, Any]) -> Self:
        """A steerer that goes on from there.

        Raises:
            InvalidInput: no state of this version.
        """
        steerer = cls(config)
        steerer._plan = Plan.from_state(config, state)
        return steerer

    def steer(self, client: Client, now_ms: int) -> Steering:
        """What a client should be told."""
        served = [name for name, pathway in self._pathways.items() if pathway.serves(client.context)]
        served = served or list(self._pathways)
        weights = {name: self._weights[name] for name in served}
        default = ranked(weights, self._config.salt, client.session)[0]
        if client.home in served:
            default = client.home
        detours = {name: self._plan.detour_of(name, client.context) for name in served}
        troubles = {name: self._plan.trouble_of(name, client.context) for name in served}
        health = {name: _health(detours[name], troubles[name]) for name in served}
        avoided = {name for name in served if self._avoids(client, name, detours[name], troubles[name])}
        order = self._ranked(client, served, self._plan.free())
        usable = {name: health[name] for name in order if name not in avoided}
        first = self._follow(client, default, detours, usable)
        rest = sorted(
            (name for name in order if name != first), key=lambda name: _HURT if name in avoided else health[name]
        )
        concerned = {default, first, client.current}
        stale = self._plan.is_stale(now_ms)
        hurry = not stale and any(health[name] != _WELL for name in served if name in concerned)
        around = detours[default]
        moved = around is not None and self._place(client, default) < around.moved
        stays = client.home is None and health[default] == _DOUBTED and not moved
        return Steering(
            priority=(first, *rest),
            ttl_s=self._config.outage_ttl_s if hurry else self._config.ttl_s,
            home=first if stays else default,
            stale=stale,
        )

    def _follow(
        self, client: Client, default: str, detours: Mapping[str, Detour | None], usable: Mapping[str, int]
    ) -> str:
        """Where a client goes: to its own pathway, else where the bands that it is in lead.

        One that is in no band and should not be on its own pathway stays where it is, or goes where it is best.

        Args:
            client: who.
            default: its own pathway.
            detours: pathways that serve it -> the detour around each.
            usable: those that it need not avoid -> their health, in the order that suits it.
        """
        first = default
        passed: set[str] = set()
        while first not in usable:
            passed.add(first)
            detour = detours[first]
            band = detour.band_at(self._place(client, first)) if detour else None
            onward = [name for name in (band.to if band else ()) if name in detours and name not in passed]
            if band is None or not onward:
                break
            first = self._ranked(client, onward, band.to, first)[0]
        if first in usable:
            return first
        well = [name for name, rank in usable.items() if rank < _HURT] or list(usable)
        if client.home is not None and client.current in well:
            return client.current
        return min(well, key=lambda name: usable[name], default=default)

    def _avoids(self, client: Client, name: str, detour: Detour | None, trouble: Trouble | None) -> bool:
        """Whether a client should not be on a pathway.

        Besides those that are moved away: one that went elsewhere by itself comes back no sooner than others, and a new
        one does not begin there if others have room.
        """
        where = self._place(client, name)
        if detour is not None:
            left = client.home is not None and client.current not in {None, name}
            if where < (max(detour.moved, 1 - detour.level) if left else detour.moved):
                return True
        return client.home is None and trouble is not None and where < trouble.spare

    def _place(self, client: Client, name: str) -> float:
        return place(self._config.salt, "away", client.session, name)

    def _ranked(self, client: Client, names: Iterable[str], weights: Mapping[str, float], away: str = "") -> list[str]:
        return ranked({name: weights[name] for name in names}, self._config.salt, "to", client.session, away)


def _health(detour: Detour | None, trouble: Trouble | None) -> int:
    """How a pathway does for a client: well, doubted (suspected, or on its way back), or hurt."""
    if trouble is not None and trouble.state == "confirmed":
        return _HURT
    if detour is not None and detour.level <= 0:
        return _HURT
    if trouble is not None or (detour is not None and detour.level < 1):
        return _DOUBTED
    return _WELL
