"""The plan: which detours are open and how far they have gone, by open outages and by what each pathway has free.

A confirmed outage of a pathway opens a detour around it; steps away are bounded by what the other pathways have free,
steps back follow a ramp, and a pathway that breaks again is left alone twice as long. An outage that names no pathway
does nothing. Where nothing new is known, what was last known stands.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

from serve.errors import InvalidInput
from serve.steering.clients import Inside, is_in
from serve.steering.detours import NOTHING, Detour, finite, scope_of, shares_of
from serve.steering.pathways import Pathways
from serve.watchtower.outages import Outage

STATE_VERSION: Final = 1

_CDN: Final = "cdn"
_PASSES: Final = 3
"""Around one broken pathway clients may come to another: sizes of detours depend on each other, so many in a row."""

_HALVINGS: Final = 10
"""How exactly a step back that has not enough room is made smaller."""

ShareOf = Callable[[Inside], float]
"""Share of the audience that is meant, 0 to 1."""


def everyone(_: Inside) -> float:
    """The share where nothing is known of the audience: the most that it can be."""
    return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """An open outage of a pathway.

    Attributes:
        pathway: which.
        scope: the rest of the outage's slice.
        state: of the outage.
        spare: share of the new sessions in its scope for which others have room, 0 to 1.
    """

    pathway: str
    scope: Mapping[str, str]
    state: str
    spare: float = 1.0

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """From plain data.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: it is none of ours.
        """
        return cls(
            pathway=str(stored["pathway"]),
            scope=scope_of(stored["scope"]),
            state=str(stored["state"]),
            spare=finite(stored["spare"]),
        )


class Plan:
    """What is known of outages and what is done about them; the same for the same calls of `update`.

    Args:
        config: what may be steered to.
    """

    def __init__(self, config: Pathways) -> None:
        self._config = config
        self._pathways = config.by_id
        self._weights = config.weights
        self._as_of_ms = 0
        self._stepped_ms = 0
        self._troubles: tuple[Trouble, ...] = ()
        self._detours: dict[tuple[str, ...], Detour] = {}
        self._load: dict[str, float] = {}
        self._base = self._split(everyone)

    def update(
        self,
        outages: Iterable[Outage],
        *,
        as_of_ms: int,
        now_ms: int,
        share_of: ShareOf = everyone,
        load: Mapping[str, float] | None = None,
    ) -> None:
        """Take what is known now into account, and take the steps that are due.

        Args:
            outages: all that are open; those that were and are not among them are over.
            as_of_ms: when that was known, UTC milliseconds; too old: nothing changes.
            now_ms: now; where it is below that of an earlier call, on another machine or before a clock was put back,
                waiting begins anew.
            share_of: of the audience; overestimating it moves fewer at a time.
            load: pathway -> share of the audience that is on it, 0 to 1, as measured; what is planned counts where it
                is more.
        """
        if self._is_old(as_of_ms, now_ms):
            return
        self._as_of_ms = as_of_ms
        self._load = {pathway: share for pathway, share in (load or {}).items() if pathway in self._pathways}
        self._base = self._split(share_of)
        self._troubles = tuple(
            Trouble(
                pathway=outage.slice[_CDN],
                scope={name: value for name, value in sorted(outage.slice.items()) if name != _CDN},
                state=outage.state,
            )
            for outage in outages
            if outage.is_open and outage.slice.get(_CDN) in self._pathways
        )
        self._stepped_ms = min(self._stepped_ms, now_ms)
        self._detours = {key: detour.as_of(now_ms) for key, detour in self._detours.items()}
        going_on = self._confirm(now_ms)
        inside = {key: share_of(_within(detour.scope)) for key, detour in self._detours.items()}
        self._measure(inside)
        begun = self.shares()
        if now_ms - self._stepped_ms >= self._config.damping.step_s * 1000 and self._step_away(going_on, inside):
            self._stepped_ms = now_ms
        self._step_back(begun, inside, now_ms)
        self._measure(inside)
        self._troubles = tuple(self._spared(trouble, share_of) for trouble in self._troubles)

    @property
    def as_of_ms(self) -> int:
        """When the outages that it goes by were known, UTC milliseconds; 0: none ever were."""
        return self._as_of_ms

    @property
    def detours(self) -> tuple[Detour, ...]:
        """All that are open or remembered."""
        return tuple(self._detours.values())

    def shares(self) -> dict[str, float]:
        """Pathway -> share of the audience that is meant to be on it, 0 to 1, as planned."""
        shares = dict(self._base)
        for key, flows in self._flows().items():
            for pathway, share in flows.items():
                shares[pathway] += share
                shares[self._detours[key].pathway] -= share
        return {name: max(0.0, share) for name, share in shares.items()}

    def free(self) -> dict[str, float]:
        """Pathway -> share of the audience that it may still receive, 0 to 1."""
        planned = self.shares()
        return {
            name: max(0.0, pathway.capacity - max(planned[name], self._load.get(name, 0.0)))
            for name, pathway in self._pathways.items()
        }

    def is_stale(self, now_ms: int) -> bool:
        """Whether what is known of outages is too old."""
        return self._is_old(self._as_of_ms, now_ms)

    def detour_of(self, name: str, context: Mapping[str, str]) -> Detour | None:
        """The widest detour around a pathway that a client is in."""
        found = [one for one in self._detours.values() if one.pathway == name and is_in(context, one.scope)]
        return max(found, key=lambda one: (one.moved, -one.level), default=None)

    def trouble_of(self, name: str, context: Mapping[str, str]) -> Trouble | None:
        """The worst open outage of a pathway that covers a client."""
        found = [one for one in self._troubles if one.pathway == name and is_in(context, one.scope)]
        return max(found, key=lambda one: (one.state == "confirmed", one.spare), default=None)

    def state(self) -> dict[str, Any]:
        """All that decides, as plain data: for a checkpoint, or for another replica."""
        return {
            "version": STATE_VERSION,
            "as_of_ms": self._as_of_ms,
            "stepped_ms": self._stepped_ms,
            "load": self._load,
            "base": self._base,
            "troubles": [asdict(trouble) for trouble in self._troubles],
            "detours": [detour.as_json() for detour in self._detours.values()],
        }

    @classmethod
    def from_state(cls, config: Pathways, state: Mapping[str, Any]) -> Self:
        """A plan that goes on from there; pathways that the configuration no longer has are left out.

        Raises:
            InvalidInput: no state of this version.
        """
        plan = cls(config)
        known = plan._pathways.keys()
        try:
            version = state["version"]
            detours = [Detour.from_json(one) for one in state["detours"]]
            troubles = [Trouble.from_json(one) for one in state["troubles"]]
            plan._as_of_ms = int(state["as_of_ms"])
            plan._stepped_ms = int(state["stepped_ms"])
            plan._load = {name: share for name, share in shares_of(state["load"]).items() if name in known}
            if (base := shares_of(state["base"])).keys() == known:
                plan._base = {name: base[name] for name in plan._pathways}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise _unusable(error) from error
        if version != STATE_VERSION:
            raise _unusable(version)
        plan._troubles = tuple(one for one in troubles if one.pathway in known)
        plan._detours = {
            _key(one.pathway, one.scope): one
            for one in detours
            if one.pathway in known and all(band.to.keys() <= known for band in one.bands)
        }
        return plan

    def _is_old(self, as_of_ms: int, now_ms: int) -> bool:
        return now_ms - as_of_ms > self._config.stale_s * 1000

    def _split(self, share_of: ShareOf) -> dict[str, float]:
        """Shares of the default split: by weight, and by how much of the audience each may serve at all."""
        reached = {
            name: pathway.weight * (share_of(pathway.serves) if pathway.only else 1.0)
            for name, pathway in self._pathways.items()
        }
        total = sum(reached.values())
        weights, total = (reached, total) if total > NOTHING else (self._weights, sum(self._weights.values()))
        return {name: weight / total for name, weight in weights.items()}

    def _flows(self) -> dict[tuple[str, ...], dict[str, float]]:
        """Detour -> pathway -> share of the audience that it has from there; of clients in several from the widest."""
        return {
            key: detour.received(max((one.moved for one in self._around(detour)), default=0.0))
            for key, detour in self._detours.items()
        }

    def _around(self, detour: Detour) -> Iterable[Detour]:
        """The detours around the same pathway that all clients of a detour are in as well."""
        return (
            one
            for one in self._detours.values()
            if one.pathway == detour.pathway and len(one.scope) < len(detour.scope) and is_in(detour.scope, one.scope)
        )

    def _confirm(self, now_ms: int) -> list[tuple[str, ...]]:
        """Open detours around what is broken, and note of those that are open that it still is; which those are."""
        going_on = []
        confirmed = [trouble for trouble in self._troubles if trouble.state == "confirmed"]
        for trouble in confirmed:
            key = _key(trouble.pathway, trouble.scope)
            if key not in self._detours:
                self._detours[key] = Detour(pathway=trouble.pathway, scope=trouble.scope, size=0.0, confirmed_ms=now_ms)
        for key, detour in self._detours.items():
            if any(_covers(trouble, detour) for trouble in confirmed):
                widest = max(self._around(detour), key=lambda one: one.moved, default=detour)
                bands = widest.bands if widest.moved > detour.moved else detour.bands
                self._detours[key] = replace(detour, bands=bands).confirmed(now_ms)
                going_on.append(key)
        return going_on

    def _measure(self, inside: Mapping[tuple[str, ...], float]) -> None:
        """Say of each detour which share of the audience it is about.

        Args:
            inside: detour -> share of the audience in its scope.
        """
        for _ in range(_PASSES):
            flows = self._flows()
            for key, detour in self._detours.items():
                name = detour.pathway
                came = sum(
                    to.get(name, 0.0) for other, to in flows.items() if _meet(self._detours[other].scope, detour.scope)
                )
                self._detours[key] = replace(detour, size=(self._base[name] + came) * inside[key])

    def _step_away(self, going_on: Iterable[tuple[str, ...]], inside: Mapping[tuple[str, ...], float]) -> bool:
        """Move more clients away from what is confirmed to be broken now; whether any were moved.

        Args:
            going_on: the detours around it.
            inside: as of `_measure`, for each step changes how many come to the pathways of other detours.
        """
        received = dict.fromkeys(self._pathways, 0.0)
        moved = False
        for key in going_on:
            detour = self._detours[key]
            if detour.moved >= 1:
                continue
            free = self.free()
            limits = {
                name: min(free[name], self._config.damping.step_share - received[name])
                for name in self._receivers(detour)
            }
            wider = detour.widened({name: max(0.0, limit) for name, limit in limits.items()})
            if wider is not detour:
                before = detour.received()
                for name, share in wider.received().items():
                    received[name] += share - before.get(name, 0.0)
                self._detours[key] = wider
                self._measure(inside)
                moved = True
        return moved

    def _step_back(self, begun: Mapping[str, float], inside: Mapping[tuple[str, ...], float], now_ms: int) -> None:
        """Let clients back to what has been well for long enough.

        Args:
            begun: shares before this look's steps.
            inside: as of `_measure`.
            now_ms: now.
        """
        damping = self._config.damping
        for key in list(self._detours):
            detour = self._detours[key]
            if any(_covers(trouble, detour) for trouble in self._troubles):
                continue
            if detour.level >= 1:
                if now_ms - detour.returned_ms >= damping.calm_s * 1000:
                    del self._detours[key]
                continue
            since, wait_ms = (
                (detour.returned_ms, damping.ramp_step_s * 1000)
                if detour.returned_ms
                else (detour.confirmed_ms, damping.hold_ms(detour.breaks))
            )
            if now_ms - since >= wait_ms:
                level = next(level for level in damping.ramp if level > detour.level + NOTHING or level == 1)
                self._let_back(key, level, begun, inside, now_ms)

    def _let_back(
        self,
        key: tuple[str, ...],
        level: float,
        begun: Mapping[str, float],
        inside: Mapping[tuple[str, ...], float],
        now_ms: int,
    ) -> None:
        """One step back of a detour, as far as there is room.

        Of those who may come back, a narrower detour around the same pathway may hold some: they go where that one has
        them, so it is a step away for those pathways.

        Args:
            key: of the detour.
            level: share of its clients that may be back after it.
            begun: shares before this look's steps.
            inside: as of `_measure`.
            now_ms: now.
        """
        kept, detour, before, room = self._detours, self._detours[key], self.shares(), self.free()
        for name in room.keys() - {detour.pathway}:
            room[name] = min(room[name], max(0.0, self._config.damping.step_share - (before[name] - begun[name])))

        def fits(back: Detour) -> bool:
            self._detours = {**kept, key: back}
            self._measure(inside)
            return all(share - before[name] <= room[name] + NOTHING for name, share in self.shares().items())

        most = room[detour.pathway]
        if fits(detour.let_back(level, most, now_ms)):
            return
        best, least, most = kept, 0.0, min(most, detour.moved * detour.size)
        for _ in range(_HALVINGS):
            middle = (least + most) / 2
            if fits(detour.let_back(level, middle, now_ms)):
                best, least = self._detours, middle
            else:
                most = middle
        self._detours = best

    def _receivers(self, detour: Detour) -> list[str]:
        """Who may take clients of a detour: those that are well for its whole scope, else for a part of it."""
        others = [
            name for name, pathway in self._pathways.items() if name != detour.pathway and pathway.serves(detour.scope)
        ]
        well = [name for name in others if not self._is_hurt(name, detour.scope)]
        sound = [name for name in well if not self._is_in_trouble(name, detour.scope)] or well
        return [name for name in sound if self._pathways[name].only.keys() <= detour.scope.keys()] or sound

    def _is_in_trouble(self, name: str, scope: Mapping[str, str]) -> bool:
        return any(trouble.pathway == name and _meet(trouble.scope, scope) for trouble in self._troubles)

    def _is_hurt(self, name: str, scope: Mapping[str, str]) -> bool:
        """Whether some clients of a scope should not be on a pathway now."""
        return any(
            detour.pathway == name and (detour.moved or detour.level < 1) and _meet(detour.scope, scope)
            for detour in self._detours.values()
        )

    def _spared(self, trouble: Trouble, share_of: ShareOf) -> Trouble:
        size = self.shares()[trouble.pathway] * share_of(_within(trouble.scope))
        free = self.free()
        room = sum(
            free[name]
            for name, pathway in self._pathways.items()
            if name != trouble.pathway and pathway.serves(trouble.scope) and not self._is_hurt(name, trouble.scope)
        )
        spare = min(1.0, room / size) if size > NOTHING else 1.0
        return Trouble(pathway=trouble.pathway, scope=trouble.scope, state=trouble.state, spare=spare)


def _key(pathway: str, scope: Mapping[str, str]) -> tuple[str, ...]:
    return (pathway, *(part for item in sorted(scope.items()) for part in item))


def _covers(trouble: Trouble, detour: Detour) -> bool:
    """Whether an outage hurts all clients of a detour."""
    return trouble.pathway == detour.pathway and is_in(detour.scope, trouble.scope)


def _meet(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a client may be in both scopes."""
    return all(other[name] == value for name, value in one.items() if name in other)


def _unusable(got: object) -> InvalidInput:
    return InvalidInput(
        field="steering state",
        got=got,
        expected=f"what Steerer.state() gives, version {STATE_VERSION}",
        next_step="Begin without one: clients keep the default split until outages are known again.",
    )


def _within(scope: Mapping[str, str]) -> Inside:
    return lambda context: is_in(context, scope)
