"""Reports of players: what one said at one moment, in one form whichever way it came.

A report is CMCD (CTA-5004, CTA-5004-B) in a plain form: key -> number, text, boolean; numbers by object type as
{"v": 3200, "a": 128}; several texts as a list. Beside it stands a context that players cannot know or need not repeat:
which network, region, device, app they are on. The same form is the JSON body of POST /v1/telemetry and what lies in
the log.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from serve.telemetry.cmcd import KINDS, MAX_TEXT, OBJECT_TYPES, TOKENS, UNREADABLE, Bare, Cmcd, Item, Kind, Value, read

DIMENSIONS: Final = ("cdn", "asn", "region", "device", "app", "title", "protocol")
"""What a session is told apart by; a value that is not known is the empty text."""

CUSTOM: Final = "com.playhead-"
"""Prefix of custom CMCD keys that carry a dimension, such as `com.playhead-region="eu"`."""

EVENTS: Final = frozenset(
    {"abe", "abs", "ae", "as", "b", "bc", "c", "ce", "e", "h", "m", "pc", "pe", "pr", "ps", "rr", "sk", "t", "um"}
)
"""Tokens of the key `e` in CTA-5004-B; others are kept and mean no more than that the session lives."""

FORMATS: Final[Mapping[str, str]] = {"d": "dash", "h": "hls", "s": "smooth", "o": "other"}

MAX_KEYS: Final = 64
"""Keys of one report; those beyond are left out and named."""

_STANDARD: Final = {"cdn": "cdn", "title": "cid", "protocol": "sf"}
_SAID: Final = tuple((dimension, CUSTOM + dimension, _STANDARD.get(dimension)) for dimension in DIMENSIONS)
"""Each dimension, the custom key and the standard's own key that say it."""

Plain = int | float | str | bool | dict[str, int | float] | list[str]


@dataclass(frozen=True, slots=True)
class Report:
    """What a player said at one moment.

    Attributes:
        session: its `sid`.
        received_ms: when it came, UTC milliseconds by this service's clock.
        values: what it said, plain.
        context: dimension -> value, of those that are known.
    """

    session: str
    received_ms: int
    values: Mapping[str, Any]
    context: Mapping[str, str]

    @property
    def event(self) -> str:
        """The event that it tells (`e`); empty for one that came with a media request."""
        event = self.values.get("e", "")
        return event if isinstance(event, str) else ""

    def number(self, key: str, object_type: str = "v") -> float | None:
        """A number; of several by object type that of the type, else the first; None where there is none."""
        value = self.values.get(key)
        if isinstance(value, dict):
            value = value.get(object_type, next(iter(value.values()), None))
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def text(self, key: str) -> str:
        """A text; empty where there is none."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""


def plain(cmcd: Cmcd) -> dict[str, Plain]:
    """What was said, in the plain form."""
    return {key: _plain(value) for key, value in cmcd.values.items()}


def read_lines(text: str, most: int) -> tuple[list[dict[str, Plain]], list[tuple[str, ...]], int]:
    """Reports of a body of CMCD's event mode, one a line.

    Args:
        text: the body.
        most: lines that are read.

    Returns:
        Values of each line that is not blank, keys that could not be used of each, and how many lines were left out.
    """
    lines = [line for line in text.splitlines() if line and not line.isspace()]
    said = [read((line,)) for line in lines[:most]]
    return [plain(one) for one in said], [one.malformed for one in said], max(0, len(lines) - most)


def read_plain(said: Mapping[str, object]) -> tuple[dict[str, Plain], tuple[str, ...]]:
    """A report of a JSON body: the values that are of their keys' types, and the keys of the others."""
    values: dict[str, Plain] = {}
    malformed = []
    for place, (key, value) in enumerate(said.items()):
        checked = _checked(key, value) if place < MAX_KEYS else None
        if checked is None:
            malformed.append(key[:MAX_TEXT] or UNREADABLE)
        else:
            values[key] = checked
    return values, tuple(malformed)


def context_of(values: Mapping[str, Plain], given: Mapping[str, str]) -> dict[str, str]:
    """The dimensions of a report.

    Args:
        values: what the player said: its custom keys count most, then what is given, then the standard's own keys.
        given: of the request that it came with, such as an edge's parameters.
    """
    found: dict[str, str] = {}
    for dimension, custom, standard in _SAID:
        value = values.get(custom)
        if not value or not isinstance(value, str):
            value = given.get(dimension)
            if not value and standard:
                value = values.get(standard)
                if dimension == "protocol":
                    value = FORMATS.get(str(value))
        if value and isinstance(value, str):
            found[dimension] = value[:MAX_TEXT]
    return found


def _plain(value: Value) -> Plain:
    if isinstance(value, tuple):
        by_type = {name: one.value for one in value for name in one.parameters if name in OBJECT_TYPES}
        if by_type and all(isinstance(number, int | float) for number in by_type.values()):
            return by_type  # type: ignore[return-value]  # checked a line above
        return [str(one.value) for one in value] if any(_is_text(one.value) for one in value) else _first(value)
    if isinstance(value, Item):
        return _bare(value.value)
    return _bare(value)


def _first(items: Sequence[Item]) -> Plain:
    return _bare(items[0].value) if items else ""


def _bare(value: Bare) -> Plain:
    return str(value) if isinstance(value, str) else value


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 10**15


def _checked(key: str, value: object) -> Plain | None:
    """A JSON value, if it is of the key's type; of keys that the standards do not know, any plain one."""
    check = _CHECKS.get(type(value))
    return value if check is not None and check(key, value, KINDS.get(key)) else None  # type: ignore[return-value]


def _bool_fits(_: str, __: Any, kind: Kind | None) -> bool:
    return kind in {None, Kind.BOOLEAN}


def _number_fits(_: str, value: Any, kind: Kind | None) -> bool:
    if kind is Kind.DECIMAL or kind is None:
        return _is_number(value)
    return kind in {Kind.INTEGER, Kind.INTEGERS} and isinstance(value, int) and _is_number(value)


def _text_fits(key: str, value: Any, kind: Kind | None) -> bool:
    if kind not in {None, Kind.TEXT, Kind.TEXTS, Kind.TOKEN} or len(value) > MAX_TEXT:
        return False
    return key not in TOKENS or value in TOKENS[key]


def _numbers_fit(_: str, value: Any, kind: Kind | None) -> bool:
    known = kind in {None, Kind.INTEGERS} and len(value) > 0 and value.keys() <= OBJECT_TYPES
    return known and all(_is_number(number) for number in value.values())


def _texts_fit(_: str, value: Any, kind: Kind | None) -> bool:
    return kind in {None, Kind.TEXTS} and len(value) <= MAX_KEYS and all(_is_short_text(one) for one in value)


def _is_short_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


_CHECKS: Final[Mapping[type, Callable[[str, Any, Kind | None], bool]]] = {
    bool: _bool_fits,
    int: _number_fits,
    float: _number_fits,
    str: _text_fits,
    dict: _numbers_fit,
    list: _texts_fit,
}


def counted(malformed: Iterable[Sequence[str]]) -> dict[str, int]:
    """How often each key could not be used."""
    counts: dict[str, int] = {}
    for keys in malformed:
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
    return counts
