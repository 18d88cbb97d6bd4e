"""The plan of one model's rollout: which versions there are and what each of them does.

Plans are values: a change is another plan, of the next revision.

    champion     answers, but for what the challenger answers
    challenger   answers a share of the units (profiles, sessions), which grows by stages
    shadow       works on requests beside the answer; what it makes is compared and not shown
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, Self

import orjson
from pydantic import TypeAdapter

from serve.errors import InvalidInput

STAGES: Final = (0.01, 0.1, 0.5)
"""Shares of a challenger, one after the other; after the last it is the champion."""

FORMAT: Final = 1

Role = Literal["champion", "challenger", "shadow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """Who does what.

    Attributes:
        model: the model.
        revision: counts changes; 0: nobody wrote a plan, the champion is what the model's folder says.
        champion: version; None: there is none yet.
        previous: the champion before, for a way back; None: there is none.
        challenger: version; None: no rollout goes on.
        share: of the challenger, 0 to 1.
        shadow: version; None: none.
        published: version that was last taken from a model's folder, where a trainer names what it made.
        paused: whether only people change the share.
        salt: of the assignment; another one each rollout, so that not always the same units try what is new.
        since_ts: when this revision began, UTC milliseconds.
        started_ts: when the rollout began, UTC milliseconds; 0 where none goes on.
    """

    model: str
    revision: int = 0
    champion: str | None = None
    previous: str | None = None
    challenger: str | None = None
    share: float = 0.0
    shadow: str | None = None
    published: str | None = None
    paused: bool = False
    salt: str = ""
    since_ts: int = 0
    started_ts: int = 0

    @property
    def versions(self) -> dict[str, Role]:
        """Version -> what it does, the champion first; one that does several things does the first of them."""
        named: tuple[tuple[str | None, Role], ...] = (
            (self.champion, "champion"), (self.challenger, "challenger"), (self.shadow, "shadow"),
        )  # fmt: skip
        found: dict[str, Role] = {}
        for version, role in named:
            if version is not None:
                found.setdefault(version, role)
        return found

    def begun(self, version: str, share: float, now_ms: int) -> Self:
        """The rollout of a version begins.

        Raises:
            InvalidInput: another rollout goes on, or the version is the champion, or the share is none.
        """
        if self.challenger is not None and self.challenger != version:
            raise InvalidInput(
                field="version", got=version, expected=f"{self.challenger}, whose rollout goes on",
                next_step="Roll it back or promote it first.",
            )  # fmt: skip
        if version == self.champion:
            raise InvalidInput(
                field="version",
                got=version,
                expected="another version than the champion",
                next_step="Name another one.",
            )
        salt = f"{self.model}:{version}:{now_ms}"
        return self._changed(
            now_ms, challenger=version, share=_share(share), paused=False, salt=salt, started_ts=now_ms
        )

    def shared(self, share: float, now_ms: int) -> Self:
        """The challenger gets another share.

        Raises:
            InvalidInput: there is no challenger, or the share is none.
        """
        self._needs_challenger()
        return self._changed(now_ms, share=_share(share))

    def promoted(self, now_ms: int) -> Self:
        """The challenger is the champion.

        Raises:
            InvalidInput: there is no challenger.
        """
        self._needs_challenger()
        return self._decided(champion=self.challenger, previous=self.champion, now_ms=now_ms)

    def rolled_back(self, now_ms: int, version: str | None = None) -> Self:
        """A version answers nobody any more: the champion does again, or the one before it.

        Args:
            now_ms: when, UTC milliseconds.
            version: the challenger, or the champion; None: the challenger.

        Raises:
            InvalidInput: that version is neither, or there is nothing to go back to.
        """
        if self.challenger is not None and version in {None, self.challenger}:
            return self._decided(champion=self.champion, previous=self.previous, now_ms=now_ms)
        if version is None or version != self.champion:
            raise InvalidInput(
                field="version", got=version,
                expected=f"the challenger, {self.challenger}, or the champion, {self.champion}" if self.challenger
                else f"the champion, {self.champion}, for no rollout goes on",
                next_step="Name the version that should not answer any more.",
            )  # fmt: skip
        if self.previous is None:
            raise InvalidInput(
                field="model", got=self.model, expected="a champion before this one",
                next_step="Promote the version that should answer.",
            )  # fmt: skip
        return self._decided(champion=self.previous, previous=None, now_ms=now_ms)

    def crowned(self, version: str, now_ms: int) -> Self:
        """A version is the champion at once; a rollout that goes on ends.

        Raises:
            InvalidInput: it is the champion already.
        """
        if version == self.champion:
            raise InvalidInput(
                field="version", got=version, expected="another version than the champion", next_step="Name another."
            )
        return self._decided(champion=version, previous=self.champion, now_ms=now_ms)

    def told_of(self, version: str, now_ms: int) -> Self:
        """A trainer named what it made in the model's folder: it is the champion at once."""
        plan = self if version == self.champion else self.crowned(version, now_ms)
        return replace(plan, published=version, revision=self.revision + 1, since_ts=now_ms)

    def held(self, *, paused: bool, now_ms: int) -> Self:
        """Only people change the share from now on, or not only they.

        Raises:
            InvalidInput: there is no challenger.
        """
        self._needs_challenger()
        return self._changed(now_ms, paused=paused)

    def shadowed(self, version: str | None, now_ms: int) -> Self:
        """A version works beside the answers; None: none does."""
        return self._changed(now_ms, shadow=version)

    def as_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The reverse of `as_json`.

        Raises:
            ValueError: it is something else, or of another format.
        """
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"no plan of format {FORMAT}")
        fields = {name: value for name, value in document.items() if name != "format"}
        if not fields.keys() <= set(cls.__slots__):
            raise ValueError(f"no plan: {sorted(fields.keys() - set(cls.__slots__))}")
        plan = TypeAdapter(cls).validate_json(orjson.dumps(fields), strict=True)
        if plan.revision < 0 or not 0 <= plan.share <= 1:
            raise ValueError("no plan: a number is out of its range")
        return plan

    def _decided(self, *, champion: str | None, previous: str | None, now_ms: int) -> Self:
        over: dict[str, Any] = {"challenger": None, "share": 0.0, "paused": False, "salt": "", "started_ts": 0}
        shadow = None if self.shadow == champion else self.shadow
        return self._changed(now_ms, champion=champion, previous=previous, shadow=shadow, **over)

    def _changed(self, now_ms: int, **fields: Any) -> Self:
        return replace(self, revision=self.revision + 1, since_ts=now_ms, **fields)

    def _needs_challenger(self) -> None:
        if self.challenger is None:
            raise InvalidInput(
                field="model", got=self.model, expected="a rollout that goes on",
                next_step="Begin one: promote a version.",
            )  # fmt: skip


def next_stage(share: float) -> float | None:
    """The share after this one; None after the last, when the challenger becomes the champion."""
    return next((stage for stage in STAGES if stage > share), None)


def _share(share: float) -> float:
    if not 0 < share <= 1:
        raise InvalidInput(field="share", got=share, expected="more than 0, at most 1", next_step="Correct the share.")
    return share
