"""Feast's Redis layout: which key and fields hold a view's row, and how values are encoded.

An entity's row is a Redis hash. Its key is Feast's serialised entity key followed by the project; each feature is a
field named by murmur3 of "view:feature" and holds a serialised feast.types.Value; "_ts:view" holds the row's event
time. This module computes the same bytes without importing Feast, whose import takes seconds that a starting replica
does not have; tests compare both, so that a Feast that changes its layout is noticed.
"""

import importlib.util
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Final

import mmh3
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from features.errors import CorruptRecord, FeaturesError

PROJECT: Final = "playhead"
"""Feast project; part of every key."""

_STRING_TYPE: Final = 2
"""feast.types.ValueType.STRING."""


class ValueKind(StrEnum):
    """Type of a feature, by the name of its member in feast.types.Value."""

    STRING = "string_val"
    INT64 = "int64_val"
    FLOAT64 = "double_val"
    FLOAT32 = "float_val"
    BOOL = "bool_val"
    STRINGS = "string_list_val"
    INT32S = "int32_list_val"
    INT64S = "int64_list_val"
    FLOAT32S = "float_list_val"
    BOOLS = "bool_list_val"


LISTS: Final = frozenset(
    {ValueKind.STRINGS, ValueKind.INT32S, ValueKind.INT64S, ValueKind.FLOAT32S, ValueKind.BOOLS},
)
"""Kinds whose values are sequences."""


def _load_value_message() -> Any:
    """feast.types.Value from Feast's own generated module, loaded by its path so that `feast` itself stays out."""
    package = importlib.util.find_spec("feast")
    if package is None or package.origin is None:
        raise FeaturesError(
            field="feast", got=None, expected="the feast package", next_step="Install the pinned dependencies."
        )
    path = Path(package.origin).parent / "protos" / "feast" / "types" / "Value_pb2.py"
    spec = importlib.util.spec_from_file_location("features.feast_value", path)
    if spec is None or spec.loader is None:
        raise FeaturesError(
            field="feast", got=str(path), expected="Feast's Value message", next_step="Install the pinned Feast."
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Value


Value: Final[Any] = _load_value_message()
"""The message class feast.types.Value."""


def entity_key(entities: Mapping[str, str]) -> bytes:
    """Redis key of an entity's row (entity key serialisation version 3).

    Args:
        entities: join key -> value; all of Playhead's entities have string values.
    """
    pairs = sorted((name.encode(), value.encode()) for name, value in entities.items())
    parts = [struct.pack("<I", len(pairs))]
    parts += [struct.pack("<II", _STRING_TYPE, len(name)) + name for name, _ in pairs]
    parts += [struct.pack("<II", _STRING_TYPE, len(value)) + value for _, value in pairs]
    return b"".join(parts) + PROJECT.encode()


@dataclass(frozen=True)
class View:
    """A feature view: one entity's features, as both Feast and the fast readers see it.

    Attributes:
        name: Feast's name of it.
        join_keys: names of the entity's keys.
        features: feature -> its kind.
        about: what it holds.
    """

    name: str
    join_keys: tuple[str, ...]
    features: Mapping[str, ValueKind]
    about: str

    def field(self, feature: str) -> bytes:
        """Hash field of a feature.

        Raises:
            KeyError: the view has no such feature.
        """
        if feature not in self.features:
            raise KeyError(feature)
        return _hashed(f"{self.name}:{feature}")

    def fields(self, features: Iterable[str] | None = None) -> list[bytes]:
        """Hash fields of some features, or of all in order."""
        return [self.field(feature) for feature in (self.features if features is None else features)]

    @property
    def ts_field(self) -> bytes:
        """Hash field of the row's event time."""
        return f"_ts:{self.name}".encode()

    def row(self, values: Mapping[str, object], ts_ms: int) -> list[bytes]:
        """A row as field, value, field, value, ..., for HSET.

        Args:
            values: a value for every feature of the view.
            ts_ms: event time, UTC milliseconds.
        """
        row = [self.ts_field, encode_ts(ts_ms)]
        for feature, kind in self.features.items():
            row += (self.field(feature), encode(kind, values[feature]))
        return row


@cache
def _hashed(name: str) -> bytes:
    """The field name that Feast makes of "view:feature"."""
    return struct.pack("<I", mmh3.hash(name, signed=False))


def encode(kind: ValueKind, value: Any) -> bytes:
    """A value as Feast stores it."""
    message = Value()
    if kind in LISTS:
        member = getattr(message, kind)
        member.SetInParent()  # so that an empty list is a list and not a missing value
        member.val.extend(value)
    else:
        setattr(message, kind, value)
    encoded: bytes = message.SerializeToString()
    return encoded


def decode(kind: ValueKind, encoded: bytes) -> Any:
    """A stored value: a scalar, or a list.

    Raises:
        CorruptRecord: the bytes are not a value of that kind.
    """
    try:
        message = Value.FromString(encoded)
    except DecodeError:
        raise corrupt(kind, encoded) from None
    if message.WhichOneof("val") != kind:
        raise corrupt(kind, encoded)
    member = getattr(message, kind)
    return member.val[:] if kind in LISTS else member


def corrupt(what: str, got: object) -> CorruptRecord:
    """The error for stored bytes that cannot be read."""
    return CorruptRecord(
        field=what,
        got=got,
        expected="a record that Playhead wrote",
        next_step="Materialise the data set again; the next event of the profile starts its record anew.",
    )


def encode_ts(ts_ms: int) -> bytes:
    """A row's event time as Feast stores it."""
    seconds, millis = divmod(ts_ms, 1000)
    encoded: bytes = Timestamp(seconds=seconds, nanos=millis * 1_000_000).SerializeToString()
    return encoded


def command(*arguments: bytes | str | float) -> bytes:
    """A Redis command in RESP, ready to be sent."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)
