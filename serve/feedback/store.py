"""Feedback in the store: taken once by its id, listed newest first, counted by version."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final

import orjson
from hiredis import ReplyError

from features.errors import StoreUnavailable
from features.layout import command
from features.link import StoreLink
from features.settings import Settings
from serve.feedback.records import COUNTS, FIELD, MOST_ENTRIES, STREAM, Feedback, id_key, read_feedback

REMEMBERED_S: Final = 30 * 86_400
"""How long an id is known to be taken."""

OTHERS: Final = "(others)"
"""Version under which is counted what comes once there are too many versions."""

_MOST_COUNTED: Final = 5_000
_CHUNK: Final = 500
_MOST_SCANNED: Final = 20_000


class IdTaken(Exception):
    """The id is another judgement's."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a judgement.

    Attributes:
        accepted: whether it is new; False: it had been taken before.
        version: that it is put down to.
    """

    accepted: bool
    version: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """Some of what the log holds.

    Attributes:
        feedback: newest first, each with its `position` in the log.
        complete: whether no older one of this kind is in the log.
    """

    feedback: list[dict[str, Any]]
    complete: bool


class FeedbackStore:
    """Feedback in the store. Belongs to one event loop.

    Args:
        settings: where the store is.
    """

    def __init__(self, settings: Settings) -> None:
        self._link = StoreLink(settings.redis_url)
        self._script = files("serve.feedback").joinpath("append.lua").read_text(encoding="utf-8")
        self._digest = sha1(self._script.encode(), usedforsecurity=False).hexdigest()

    async def append(self, feedback: Feedback, deadline_s: float) -> Taken:
        """Take a judgement once; it is in the log when this returns.

        Raises:
            IdTaken: its id was given to another one.
            StoreUnavailable: nothing was promised: the caller may send the same again.
        """
        field = _count_field(feedback.model, feedback.version, feedback)
        arguments: list[bytes | str | float] = [
            3, id_key(feedback.feedback_id), STREAM, COUNTS, feedback.judgement.digest, feedback.version or "",
            REMEMBERED_S, MOST_ENTRIES, feedback.dump(), field, _count_field(feedback.model, OTHERS, feedback),
            _MOST_COUNTED,
        ]  # fmt: skip
        try:
            (reply,) = await self._call(command("EVALSHA", self._digest, *arguments), deadline_s)
        except StoreUnavailable as error:
            if "NOSCRIPT" not in error.got:
                raise
            (reply,) = await self._call(command("EVAL", self._script, *arguments), deadline_s)
        outcome = int(reply[0])
        if outcome == -1:
            raise IdTaken
        if outcome < -1:
            raise StoreUnavailable(
                field="feedback", got=f"{MOST_ENTRIES} entries that nothing has read yet",
                expected="a sink that keeps up", next_step="Start the sinks (`playhead up` does); then send it again.",
            )  # fmt: skip
        return Taken(bool(outcome), feedback.version if outcome else reply[1].decode() or None)

    async def newest(self, wanted: Mapping[str, Any], *, before: str | None, limit: int, deadline_s: float) -> Listed:
        """The newest that have these values.

        Args:
            wanted: field -> value.
            before: only what came before this position of the log; None: all.
            limit: so many at most.
            deadline_s: longest wait for one chunk of the log.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        found: list[dict[str, Any]] = []
        if before is not None and not before.strip("0-"):
            return Listed([], complete=True)  # nothing is before the first position, and the store refuses to look
        end = "+" if before is None else f"({before}"
        for _ in range(_MOST_SCANNED // _CHUNK):
            (entries,) = await self._call(command("XREVRANGE", STREAM, end, "-", "COUNT", _CHUNK), deadline_s)
            for position, fields in entries:
                document = _read(dict(zip(fields[::2], fields[1::2], strict=True)).get(FIELD, b""))
                if document is None or any(document[name] != value for name, value in wanted.items()):
                    continue
                if len(found) == limit:
                    return Listed(found, complete=False)
                found.append({"position": position.decode(), **document})
            if len(entries) < _CHUNK:
                return Listed(found, complete=True)
            end = f"({entries[-1][0].decode()}"
            await asyncio.sleep(0)
        return Listed(found, complete=False)

    async def counts(self, wanted: Mapping[str, Any], deadline_s: float) -> list[dict[str, Any]]:
        """How many of each verdict, by model, version and kind; whatever ever was taken counts.

        Args:
            wanted: of `model`, `version`, `kind`: only those with these values.
            deadline_s: longest wait.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        (flat,) = await self._call(command("HGETALL", COUNTS), deadline_s)
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for field, count in zip(flat[::2], flat[1::2], strict=True):
            model, version, kind, verdict = orjson.loads(field)
            told = {"model": model, "version": version, "kind": kind}
            if all(told[name] == value for name, value in wanted.items()):
                group = groups.setdefault((model, version, kind), told | {"good": 0, "bad": 0, "unsure": 0})
                group[verdict] += int(count)
        return sorted(groups.values(), key=lambda one: tuple(str(one[name]) for name in ("model", "version", "kind")))

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    async def _call(self, payload: bytes, deadline_s: float) -> list[Any]:
        replies = await self._link.call(payload, deadline_s=deadline_s)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise StoreUnavailable(
                    field="online store", got=str(reply), expected="a store that takes what it is told",
                    next_step="See the store's log (memory, disk, read-only replica); send the same again.",
                )  # fmt: skip
        return replies


def _count_field(model: str | None, version: str | None, feedback: Feedback) -> bytes:
    return orjson.dumps([model, version, feedback.judgement.kind, feedback.judgement.verdict])


def _read(dumped: bytes) -> dict[str, Any] | None:
    try:
        return read_feedback(dumped)
    except ValueError:
        return None  # the sink puts it aside
