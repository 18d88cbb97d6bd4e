"""Common Media Client Data, CTA-5004 (version 1) and CTA-5004-B (version 2): what a player says with each request.

It comes as the query parameter `CMCD` or in the headers `CMCD-Request`, `CMCD-Object`, `CMCD-Status`, `CMCD-Session`,
as a dictionary of structured fields (RFC 8941): `bl=21300,br=3200,bs,ot=v,sid="6e2f"`. Version 2 gives some numbers by
object type, as inner lists: `br=(3200;v 128;a)`. Version 1 may write `bs=false`.

Reading refuses nothing: what does not fit is left out and named. Keys of the table below are checked for their type and
tokens, of which error codes may be numbers, too; custom keys (with a hyphen) and keys of later versions are kept as
they are.

Units: bitrate and throughput kbit/s, time ms, unless the table says otherwise.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

HEADERS: Final = ("cmcd-request", "cmcd-object", "cmcd-status", "cmcd-session")
"""The four headers, in lower case."""

MAX_LENGTH: Final = 8192
"""Longer values are not read beyond this."""

MAX_TEXT: Final = 128
"""Longest content, session and other ids (CTA-5004-B; version 1 allows 64)."""

UNREADABLE: Final = "?"
"""Named in `malformed` where not even a key can be read."""


class Token(str):
    """A word written without quotes, such as the `v` of `ot=v`."""

    __slots__ = ()


Bare = int | float | str | bool
"""A value: integer, decimal, string, token (`Token`) or boolean."""


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of an inner list, or a value with parameters.

    Attributes:
        value: the value.
        parameters: what was said about it, such as {"v": True}.
    """

    value: Bare
    parameters: Mapping[str, Bare] = field(default_factory=dict)


Value = Bare | Item | tuple[Item, ...]
"""What a key may hold; a tuple is an inner list."""


class Kind(Enum):
    """Type of a key's value."""

    INTEGER = "an integer of at least 0"
    DECIMAL = "a decimal of at least 0"
    BOOLEAN = "a boolean"
    TEXT = "a string"
    TOKEN = "a token"  # noqa: S105 - a type, not a secret
    INTEGERS = "an integer, or a list of integers by object type"
    TEXTS = "a string, or a list of strings"


OBJECT_TYPES: Final = frozenset({"m", "a", "v", "av", "i", "c", "tt", "k", "o"})
_FORMATS: Final = frozenset({"d", "h", "s", "o"})
_STREAMS: Final = frozenset({"v", "l", "ll"})
_STATES: Final = frozenset({"s", "p", "k", "r", "a", "w", "e", "f", "q", "d"})

TOKENS: Final[Mapping[str, frozenset[str]]] = {
    "ot": OBJECT_TYPES,
    "sf": _FORMATS,
    "st": _STREAMS,
    "sta": _STATES,
}
"""Tokens that a key allows, where the standard closes the list."""

KINDS: Final[Mapping[str, Kind]] = {
    # bitrates and throughput, kbit/s
    **dict.fromkeys(("br", "ab", "lb", "lab", "pb", "tb", "tab", "tpb", "mtp"), Kind.INTEGERS),
    "rtp": Kind.INTEGER,  # requested maximum throughput
    # durations, ms
    **dict.fromkeys(("bl", "tbl", "bsd", "bsda"), Kind.INTEGERS),
    **dict.fromkeys(("d", "dl", "ltc", "msd", "pt", "ttfb", "ttfbb", "ttlb", "ts"), Kind.INTEGER),
    # counts
    "bsa": Kind.INTEGERS,  # buffer starvations so far
    **dict.fromkeys(("dfa", "sn", "rc", "v"), Kind.INTEGER),
    # how playback goes
    **dict.fromkeys(("bs", "su", "bg", "nr"), Kind.BOOLEAN),
    "pr": Kind.DECIMAL,  # playback rate, 1 is real time
    **dict.fromkeys(("ot", "sf", "st", "sta", "e"), Kind.TOKEN),
    # names
    **dict.fromkeys(("cid", "sid", "cdn", "cs", "cen", "h", "url", "smrt", "cmsdd", "cmsds"), Kind.TEXT),
    **dict.fromkeys(("nor", "ec"), Kind.TEXTS),
    "nrr": Kind.TEXT,
}
"""Type of each key that the standards define."""

_IDS: Final = frozenset({"cid", "sid", "cdn", "h"})

_DIGITS: Final = 15
_KNOWN_LENGTH: Final = 64
_KNOWN_MOST: Final = 8192
_known: dict[str, tuple[str, Value]] = {}
"""Members as they are written -> key and value: those that are neither plain numbers nor plain strings, so few."""

_KEY: Final = r"[A-Za-z*][A-Za-z0-9_.*-]*"
_OPENED: Final = r'"(?:[^"\\\x00-\x1f]|\\["\\])*+'
_STRING: Final = _OPENED + '"'
_WORD: Final = r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*"
_BARE: Final = rf"-?\d{{1,{_DIGITS}}}(?:\.\d{{1,6}})?(?![\w.])|{_STRING}|\?[01]|{_WORD}"
_PARAMETERS: Final = rf"(?:;[ ]*{_KEY}(?:=(?:{_BARE}))?)*"
_MEMBER: Final = re.compile(
    rf"[ \t]*(?P<key>{_KEY})"
    rf'(?:=(?:(?P<list>\((?:{_STRING}|[^"()\\])*+\))|(?P<bare>{_BARE})))?'
    rf"(?P<parameters>{_PARAMETERS})[ \t]*(?:,|$)"
)
_ENTRY: Final = re.compile(rf"[ ]*(?P<bare>{_BARE})(?P<parameters>{_PARAMETERS})(?=[ ]|$)")
_PARAMETER: Final = re.compile(rf";[ ]*(?P<key>{_KEY})(?:=(?P<bare>{_BARE}))?")
_NAMED: Final = re.compile(rf"[ \t]*(?P<key>{_KEY})?")
_UNQUOTED: Final = re.compile(r'[^,"]*+')
_QUOTED: Final = re.compile(_OPENED)


@dataclass(frozen=True, slots=True)
class Cmcd:
    """What a player said.

    Attributes:
        values: key -> value, all of the right type where the standards say one.
        malformed: keys whose values could not be used, each once.
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    malformed: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """Version of the standard: 1 unless `v` says another."""
        version = self.values.get("v", 1)
        return version if isinstance(version, int) else 1

    def text(self, key: str) -> str:
        """A string or token; empty where there is none."""
        value = self.values.get(key)
        return str(value) if isinstance(value, str) else ""

    def flag(self, key: str) -> bool:
        """A boolean; False where there is none."""
        return self.values.get(key) is True

    def number(self, key: str, object_type: str = "") -> float | None:
        """A number; of a list by object type that of the type, else the first; None where there is none.

        Args:
            key: the key.
            object_type: such as `v`.
        """
        value = self.values.get(key)
        if isinstance(value, tuple):
            value = next((item for item in value if object_type in item.parameters), value[0] if value else None)
        if isinstance(value, Item):
            value = value.value
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def read(texts: Iterable[str]) -> Cmcd:
    """What was said in one or more values: the decoded query parameter, and the headers that came.

    Args:
        texts: dictionaries of structured fields; of a key that comes twice the last counts.
    """
    values: dict[str, Value] = {}
    malformed: dict[str, None] = {}
    for text in texts:
        if not _read_plainly(text, values):
            _read_closely(text, values, malformed)
    return Cmcd(values, tuple(malformed))


def _read_plainly(text: str, values: dict[str, Value]) -> bool:
    """The usual text: members without commas of their own, all well formed, no key twice. False where it is another.

    What cannot hold a comma and ends with the piece that a comma leaves is the member that `_read_closely` finds there.
    Most members come again and again, as they are, with every report.
    """
    if len(text) > MAX_LENGTH:
        return False
    before = len(values)
    pieces = text.split(",")
    if not pieces[-1]:
        pieces.pop()
    for piece in pieces:
        member = _known.get(piece) or _member_of(piece)
        if member is None:
            return False
        values[member[0]] = member[1]
    return len(values) == before + len(pieces)


def _member_of(piece: str) -> tuple[str, Value] | None:
    """Key and value of one well-formed member that fits; None of others."""
    key, _, said = piece.partition("=")
    kind = KINDS.get(key)
    if kind in _NUMBERS and said.isdigit() and said.isascii() and len(said) <= _DIGITS:
        return key, int(said)
    if kind is Kind.TEXT and _is_plainly_quoted(said) and len(said) <= MAX_TEXT:
        return key, said[1:-1]
    found = _MEMBER.match(piece)
    if found is None or found.end() != len(piece):
        return None
    key = found["key"]
    value = _checked(key, _value(found))
    if value is None:
        return None
    if len(piece) <= _KNOWN_LENGTH:
        if len(_known) >= _KNOWN_MOST:
            _known.clear()
        _known[piece] = key, value
    return key, value


def _is_plainly_quoted(said: str) -> bool:
    return said[:1] == '"' and said.find('"', 1) == len(said) - 1 and "\\" not in said and said.isprintable()


def _read_closely(text: str, values: dict[str, Value], malformed: dict[str, None]) -> None:
    position, end = 0, min(len(text), MAX_LENGTH)
    barren = 0
    while position < end:
        found = _MEMBER.match(text, position, end)
        if found is None:
            named = _NAMED.match(text, position, end)
            assert named is not None  # it matches anything
            malformed[named["key"] or UNREADABLE] = None
            position, barren = _past_broken(text, named.end(), end, barren)
            continue
        position = found.end()
        key = found["key"]
        value = _checked(key, _value(found))
        if value is None:
            malformed[key] = None
        else:
            values.pop(key, None)
            values[key] = value
    if len(text) > MAX_LENGTH:
        malformed[UNREADABLE] = None


def _past_broken(text: str, position: int, end: int, barren: int) -> tuple[int, int]:
    """Where to go on after a member that cannot be read: past its comma, which no string that is closed holds.

    A string that is not closed is looked through once: the quotes in it are escaped, so that what begins at one of
    them is not closed either. Without this a text of such quotes would be read again from each.

    Args:
        text: what was said.
        position: where in the member to begin.
        end: of what is read.
        barren: up to where no string begins that is closed, as this said before of the same text.

    Returns:
        The position, and up to where no such string begins.
    """
    while (position := _end_of(_UNQUOTED, text, position, end)) < end:
        if text[position] == ",":
            return position + 1, barren
        if position >= barren:
            closing = _end_of(_QUOTED, text, position, end)
            if text[closing : min(closing + 1, end)] == '"':
                position = closing + 1
                continue
            barren = closing
        comma = text.find(",", position, barren)
        if comma >= 0:
            return comma + 1, barren
        position = max(barren, position + 1)
    return end, barren


def _end_of(pattern: re.Pattern[str], text: str, position: int, end: int) -> int:
    found = pattern.match(text, position, end)
    return found.end() if found else position


def written(values: Mapping[str, Value]) -> str:
    """A dictionary as text, keys in order, as the standards ask: the reverse of `read`.

    Args:
        values: key -> value; strings without control characters.

    Raises:
        ValueError: a key, number, token or string that cannot be written.
    """
    return ",".join(_member(key, values[key]) for key in sorted(values))


def _value(found: re.Match[str]) -> Value | None:
    """A member's value; None where its inner list cannot be read."""
    inner = found["list"]
    parameters = _parameters(found["parameters"])
    if inner is not None:
        return None if parameters else _entries(inner[1:-1])
    bare = True if found["bare"] is None else _bare(found["bare"])
    return Item(bare, parameters) if parameters else bare


def _entries(text: str) -> tuple[Item, ...] | None:
    entries = []
    position, text = 0, text.rstrip(" ")
    while position < len(text):
        found = _ENTRY.match(text, position)
        if found is None:
            return None
        entries.append(Item(_bare(found["bare"]), _parameters(found["parameters"])))
        position = found.end()
    return tuple(entries)


def _parameters(text: str) -> dict[str, Bare]:
    return (
        {found["key"]: True if found["bare"] is None else _bare(found["bare"]) for found in _PARAMETER.finditer(text)}
        if text
        else {}
    )


def _bare(text: str) -> Bare:
    first = text[0]
    if first == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1]) if "\\" in text else text[1:-1]
    if first == "?":
        return text == "?1"
    if first.isdigit() or first == "-":
        return float(text) if "." in text else int(text)
    return Token(text)


def _checked(key: str, value: Value | None) -> Value | None:
    """The value, if it is of the key's type; version 1 writes booleans as words."""
    kind = KINDS.get(key)
    if kind is None or value is None:
        return value
    fits = _FITS[kind]
    if key == "ec":
        value = _codes(value)
    if kind in _LISTS:
        items = value if isinstance(value, tuple) else (value,)
        sound = items and all(fits(item.value if isinstance(item, Item) else item) for item in items)
        return value if sound else None
    if kind is Kind.BOOLEAN and isinstance(value, Token) and value in {"true", "false"}:
        return value == "true"
    if not fits(value) or (key in TOKENS and value not in TOKENS[key]):
        return None
    return None if key in _IDS and len(str(value)) > MAX_TEXT else value


def _codes(value: Value) -> Value:
    """Error codes, of which dash.js 5 writes numbers without quotes (`ec=27`)."""
    if isinstance(value, tuple):
        return tuple(Item(str(item.value), item.parameters) if _is_integer(item.value) else item for item in value)
    return str(value) if _is_integer(value) else value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not isinstance(value, Token)


_NUMBERS: Final = frozenset({Kind.INTEGER, Kind.INTEGERS})
_LISTS: Final = frozenset({Kind.INTEGERS, Kind.TEXTS})
_FITS: Final[Mapping[Kind, Callable[[object], bool]]] = {
    Kind.INTEGER: _is_integer,
    Kind.INTEGERS: _is_integer,
    Kind.DECIMAL: lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value >= 0,
    Kind.BOOLEAN: lambda value: isinstance(value, bool),
    Kind.TEXT: _is_text,
    Kind.TEXTS: _is_text,
    Kind.TOKEN: lambda value: isinstance(value, Token),
}


def _member(key: str, value: Value) -> str:
    if not re.fullmatch(_KEY, key):
        raise ValueError(f"no key: {key!r}")
    if value is True:
        return key
    if isinstance(value, tuple):
        return f"{key}=({' '.join(map(_item, value))})"
    return f"{key}={_item(value if isinstance(value, Item) else Item(value))}"


def _item(item: Item) -> str:
    text = _plain(item.value)
    for name, value in item.parameters.items():
        if not re.fullmatch(_KEY, name):
            raise ValueError(f"no key: {name!r}")
        text += f";{name}" if value is True else f";{name}={_plain(value)}"
    return text


def _plain(value: Bare) -> str:
    if isinstance(value, bool):
        return "?1" if value else "?0"
    if isinstance(value, Token):
        if not re.fullmatch(_WORD, value):
            raise ValueError(f"no token: {value!r}")
        return value
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        if not re.fullmatch(_STRING, f'"{quoted}"'):
            raise ValueError(f"a string with control characters: {value!r}")
        return f'"{quoted}"'
    if not math.isfinite(value) or abs(value) >= 10**15:
        raise ValueError(f"no number of at most 15 digits: {value!r}")
    return str(value) if isinstance(value, int) else f"{value:.6f}".rstrip("0") + ("0" if value == int(value) else "")
