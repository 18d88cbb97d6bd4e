"""Views of which each row is one small record: how its readers ask for rows, and how its writers put them there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import redis
from hiredis import ReplyError
from redis.client import Pipeline

from features.errors import CorruptRecord, StoreUnavailable
from features.layout import View, command, decode
from features.link import StoreLink
from features.settings import Settings

_TIMEOUT_S: Final = 10.0


class Dated(Protocol):
    """A record that says how new it is."""

    @property
    def last_ts_ms(self) -> int:
        """UTC milliseconds."""
        ...


K = TypeVar("K")
V = TypeVar("V", bound=Dated)


@dataclass(frozen=True, slots=True)
class Rows(Generic[K, V]):
    """Rows of a view as records.

    Attributes:
        view: of which each feature is an attribute of the record.
        key: Redis key of an entity's row.
        make: the record of the view's features, in their order.
        is_usable: whether a record's numbers are within their ranges; one that is not is read as none.
        kept_s: a row that is not written for so long is forgotten, with all that is known of its entity; None: never.
    """

    view: View
    key: Callable[[K], bytes]
    make: Callable[..., V]
    is_usable: Callable[[V], bool]
    kept_s: int | None = None

    async def read(self, link: StoreLink, entities: Sequence[K], deadline_ms: float) -> dict[K, V | None]:
        """Records of entities, in one round trip; None where there is none, or none that is usable.

        Args:
            link: to the store.
            entities: which.
            deadline_ms: longest wait in milliseconds.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        if not entities:
            return {}
        fields = self.view.fields()
        payload = b"".join([command("HMGET", self.key(entity), *fields) for entity in entities])
        rows = await link.call(payload, count=len(entities), deadline_s=deadline_ms / 1000)
        return {entity: self._record(values) for entity, values in zip(entities, rows, strict=True)}

    def put(self, pipe: Pipeline, records: Mapping[K, V]) -> None:
        """Have a pipeline write records, each in the place of what was known before."""
        for entity, record in records.items():
            row = {name: getattr(record, name) for name in self.view.features}
            fields = self.view.row(row, record.last_ts_ms)
            key = self.key(entity)
            pipe.hset(key, items=fields)  # type: ignore[arg-type]  # keys are binary
            if self.kept_s is not None:
                pipe.expire(key, self.kept_s)

    def _record(self, values: Any) -> V | None:
        if isinstance(values, ReplyError) or values[0] is None:
            return None
        kinds = self.view.features.values()
        try:
            record = self.make(*[decode(kind, value or b"") for kind, value in zip(kinds, values, strict=True)])
        except CorruptRecord:
            return None
        return record if self.is_usable(record) else None


@contextmanager
def writing(settings: Settings, *, transaction: bool = False, timeout_s: float = _TIMEOUT_S) -> Iterator[Pipeline]:
    """A pipeline that is sent when the block ends.

    Args:
        settings: where the store is.
        transaction: whether all of it is written at once.
        timeout_s: longest wait for the store.

    Raises:
        StoreUnavailable: the store does not answer; write them again.
    """
    client = redis.Redis.from_url(settings.redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
    try:
        with client, client.pipeline(transaction=transaction) as pipe:
            yield pipe
            pipe.execute()
    except redis.RedisError as error:
        raise StoreUnavailable(
            field="online store",
            got=str(error),
            expected="a Redis or Valkey server that answers",
            next_step="Start the store or correct REDIS_URL; write them again.",
        ) from error
