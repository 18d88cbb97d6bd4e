"""A profile's stored record: to and from the hash that Feast and the fast reader share."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any, Final

from google.protobuf.message import DecodeError

from features.errors import CorruptRecord
from features.history import KIND_CODES, Entry, History
from features.layout import Value, ValueKind, corrupt, decode, entity_key
from features.profiles import KINDS, ProfileFeatures, ProfileState, ProfileStats
from features.views import PROFILE_HISTORY, PROFILE_STATS

_READ_STATS: Final = ("counts", "first_ts_ms", "last_ts_ms", "my_list", "region", "device", "kids")
_FOLD_STATS: Final = ("region_ts_ms", "device_ts_ms", "mark_title_ids", "mark_ts_ms", "mark_added")

READ_FIELDS: Final = [*PROFILE_HISTORY.fields(), *PROFILE_STATS.fields(_READ_STATS)]
"""Hash fields of what a request reads, in the order that `decode_features` takes."""

STATE_FIELDS: Final = [*READ_FIELDS, *PROFILE_STATS.fields(_FOLD_STATS)]
"""Hash fields of all that events fold into, in the order that `decode_state` takes."""

READ_FEATURES: Final = {PROFILE_HISTORY.name: list(PROFILE_HISTORY.features), PROFILE_STATS.name: list(_READ_STATS)}
"""The same as Feast names them: view -> features."""

_CODES: Final = frozenset(KIND_CODES.values())
_N_READ: Final = len(READ_FIELDS)
_KIDS: Final = READ_FIELDS.index(PROFILE_STATS.field("kids"))
_entry = partial(tuple.__new__, Entry)


def profile_key(profile_id: str) -> bytes:
    """Redis key of a profile's record."""
    return entity_key({"profile_id": profile_id})


def decode_features(profile_id: str, values: Sequence[bytes | None]) -> ProfileFeatures:
    """The features in a record; not known where there is none.

    Args:
        profile_id: whose.
        values: what the hash holds in READ_FIELDS.

    Raises:
        CorruptRecord: the values are no record.
    """
    if values[4] is None:
        return ProfileFeatures(profile_id)
    parse = Value.FromString
    try:
        *remembered, counts, first, last, my_list, region, device, kids = map(parse, values)
        history = _history(*remembered)
        stats = ProfileStats(
            counts=dict(zip(KINDS, chain(counts.int64_list_val.val, (0,) * len(KINDS)), strict=False)),
            first_ts_ms=first.int64_val,
            last_ts_ms=last.int64_val,
            my_list=tuple(my_list.string_list_val.val),
            region=region.string_val,
            device=device.string_val,
            kids=kids.bool_val,
        )
    except (DecodeError, TypeError, ValueError) as error:
        raise corrupt(f"record of profile {profile_id}", str(error)) from None
    return ProfileFeatures(profile_id, known=True, history=history, stats=stats)


def _history(titles: Any, kinds: Any, times: Any, progress: Any, n_events: Any) -> History:
    """The history in five stored values; ValueError where they do not fit together."""
    codes = kinds.int32_list_val.val[:]  # slices: a list is walked much faster than a protobuf container
    if not _CODES.issuperset(codes):
        raise ValueError("unknown event kind")
    columns = (times.int64_list_val.val[:], codes, titles.string_list_val.val[:], progress.float_list_val.val[:])
    return History(list(map(_entry, zip(*columns, strict=True))), n_events.int64_val)


def decode_state(profile_id: str, values: Sequence[bytes | None]) -> ProfileState | None:
    """The state in a record; None where there is none.

    Args:
        profile_id: whose.
        values: what the hash holds in STATE_FIELDS.

    Raises:
        CorruptRecord: the values are no record.
    """
    features = decode_features(profile_id, values[:_N_READ])
    if not features.known:
        return None
    try:
        region_ts, device_ts, titles, times, added = map(Value.FromString, values[_N_READ:])
        marks = zip(titles.string_list_val.val, times.int64_list_val.val, added.bool_list_val.val, strict=True)
        list_marks = {title: (ts_ms, listed) for title, ts_ms, listed in marks}
    except (DecodeError, TypeError, ValueError) as error:
        raise corrupt(f"record of profile {profile_id}", str(error)) from None
    stats = features.stats
    return ProfileState(
        history=features.history,
        counts=list(stats.counts.values()),
        first_ts_ms=stats.first_ts_ms,
        last_ts_ms=stats.last_ts_ms,
        list_marks=list_marks,
        region=(region_ts.int64_val, stats.region),
        device=(device_ts.int64_val, stats.device),
        kids=stats.kids,
    )


def begun_anew(values: Sequence[bytes | None]) -> ProfileState:
    """What a record that cannot be read is replaced by: no past, but a kids profile stays one, as does a doubtful one.

    Args:
        values: what the hash holds in STATE_FIELDS.
    """
    try:
        return ProfileState(kids=decode(ValueKind.BOOL, values[_KIDS] or b""))
    except CorruptRecord:
        return ProfileState(kids=True)


def encode_state(state: ProfileState) -> list[bytes]:
    """A state as field, value, field, value, ..., for HSET."""
    entries = state.history.entries
    marks = state.list_marks
    history = {
        "title_ids": [entry.title_id for entry in entries],
        "kinds": [entry.kind for entry in entries],
        "ts_ms": [entry.ts_ms for entry in entries],
        "progress": [entry.progress for entry in entries],
        "n_events": state.history.n_events,
    }
    stats = {
        "counts": state.counts,
        "first_ts_ms": state.first_ts_ms,
        "last_ts_ms": state.last_ts_ms,
        "my_list": state.my_list(),
        "region": state.region[1],
        "device": state.device[1],
        "kids": state.kids,
        "region_ts_ms": state.region[0],
        "device_ts_ms": state.device[0],
        "mark_title_ids": list(marks),
        "mark_ts_ms": [ts_ms for ts_ms, _ in marks.values()],
        "mark_added": [added for _, added in marks.values()],
    }
    return [*PROFILE_HISTORY.row(history, state.last_ts_ms), *PROFILE_STATS.row(stats, state.last_ts_ms)]
