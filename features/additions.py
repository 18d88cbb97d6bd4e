"""Titles that are put beside a data set while it serves: they can be recommended within seconds, with no new training.

playhead:titles:DATASET            title_id -> the title as JSON, a hash
playhead:titles:DATASET:revision   another value with each change; gateways look at it, and read the hash when it is new

A title of the data set's own that is put again is replaced; what is taken out is as the data set has it.
"""

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
from hiredis import ReplyError
from pydantic import ValidationError

from features.errors import CorruptRecord, InvalidBatch, StoreUnavailable
from features.layout import command
from features.link import StoreLink
from features.settings import Settings
from features.titles import Title

MOST_ADDED: Final = 100_000
"""Titles beside one data set."""

_CHUNK: Final = 1_000
_TIMEOUT_S: Final = 10.0


def added_key(dataset: str) -> str:
    """Key of the titles beside a data set."""
    return f"playhead:titles:{dataset}"


def revision_key(dataset: str) -> str:
    """Key of what tells that they changed."""
    return f"playhead:titles:{dataset}:revision"


@dataclass(frozen=True, slots=True)
class Put:
    """What a change did.

    Attributes:
        new: titles that were not beside the data set before.
        replaced: titles that were.
        total: titles that are there now.
    """

    new: int
    replaced: int
    total: int


def put_titles(settings: Settings, dataset: str, titles: Sequence[Title]) -> Put:
    """Put titles beside a data set, all or none; the same again changes nothing.

    Args:
        settings: where the store is.
        dataset: the data set that the catalogue is.
        titles: of titles with one id the last counts.

    Raises:
        InvalidBatch: there would be more than MOST_ADDED.
        StoreUnavailable: the store does not answer; put them again.
    """
    entries = {title.title_id: title.model_dump_json() for title in titles}
    key = added_key(dataset)
    try:
        with _client(settings) as client:
            before: Any = client.hlen(key)
            if before + len(entries) > MOST_ADDED and before + _unheld(client, key, entries) > MOST_ADDED:
                raise InvalidBatch(
                    field="titles", got=before + len(entries), expected=f"at most {MOST_ADDED} beside a data set",
                    next_step="Import them as a data set: `playhead data import`.",
                )  # fmt: skip
            with client.pipeline(transaction=True) as pipeline:
                for chunk in _chunks(list(entries.items())):
                    pipeline.hset(key, mapping=dict(chunk))
                pipeline.set(revision_key(dataset), secrets.token_hex(8))
                pipeline.hlen(key)
                (*added, _, total) = pipeline.execute()
    except redis.RedisError as error:
        raise _unavailable(error) from error
    new = sum(map(int, added))
    return Put(new=new, replaced=len(entries) - new, total=int(total))


def remove_titles(settings: Settings, dataset: str, title_ids: Sequence[str]) -> int:
    """Take titles out again; those of the data set's own stay, as it has them.

    Returns:
        How many were there.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    try:
        with _client(settings) as client, client.pipeline(transaction=True) as pipeline:
            for chunk in _chunks(list(title_ids)):
                pipeline.hdel(added_key(dataset), *chunk)
            pipeline.set(revision_key(dataset), secrets.token_hex(8))
            (*removed, _) = pipeline.execute()
    except redis.RedisError as error:
        raise _unavailable(error) from error
    return sum(map(int, removed))


def read_added(settings: Settings, dataset: str) -> list[Title]:
    """The titles beside a data set, by id.

    Raises:
        CorruptRecord: the store holds what is no title.
        StoreUnavailable: the store does not answer.
    """
    try:
        with _client(settings) as client:
            held: Any = client.hgetall(added_key(dataset))
    except redis.RedisError as error:
        raise _unavailable(error) from error
    return _titles(held.values())


class AddedTitles:
    """Reads the titles beside a data set as they change. Belongs to one event loop.

    Args:
        settings: where the store is.
        dataset: which.
    """

    def __init__(self, settings: Settings, dataset: str) -> None:
        self._link = StoreLink(settings.redis_url)
        self._dataset = dataset

    async def revision(self, deadline_s: float = 2.0) -> bytes | None:
        """Names what is there now; None where nothing ever was.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        revision: bytes | None = await self._call(command("GET", revision_key(self._dataset)), deadline_s)
        return revision

    async def read(self, deadline_s: float = 5.0) -> list[Title]:
        """All of them, by id.

        Raises:
            CorruptRecord: the store holds what is no title.
            StoreUnavailable: the store does not answer.
        """
        flat = await self._call(command("HGETALL", added_key(self._dataset)), deadline_s)
        return await asyncio.to_thread(_titles, flat[1::2])  # 7 ms a thousand, for which requests would wait

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    async def _call(self, payload: bytes, deadline_s: float) -> Any:
        (reply,) = await self._link.call(payload, deadline_s=deadline_s)
        if isinstance(reply, ReplyError):
            raise _unavailable(reply)
        return reply


def _titles(dumped: Iterable[bytes]) -> list[Title]:
    try:
        titles = [Title.model_validate_json(one) for one in dumped]
    except ValidationError as error:
        raise CorruptRecord(
            field="titles beside the data set", got=str(error.errors()[0]["loc"]), expected="titles",
            next_step="Put the titles again; another program may write to this key.",
        ) from error  # fmt: skip
    return sorted(titles, key=lambda title: title.title_id)


def _unheld(client: redis.Redis, key: str, entries: dict[str, str]) -> int:
    """How many are not there yet."""
    held: list[Any] = []
    for chunk in _chunks(list(entries)):
        some: Any = client.hmget(key, chunk)
        held += some
    return sum(one is None for one in held)


def _chunks(values: list[Any]) -> Iterable[list[Any]]:
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))


def _client(settings: Settings) -> redis.Redis:
    client: redis.Redis = redis.Redis.from_url(
        settings.redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
    )
    return client


def _unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(
        field="online store", got=str(error)[:200], expected="a store that answers",
        next_step="Start it (`playhead up`), or correct REDIS_URL; then do the same again.",
    )  # fmt: skip
