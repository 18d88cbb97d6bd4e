"""Reports as bodies of POST /v1/telemetry: CMCD's event mode, or JSON.

A body whose reports share their context carries it once (query parameters, or `context`); in a mixed body every report
carries what the standard has no key for as custom keys (`com.playhead-region="eu-west"`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlencode

import orjson

from serve.telemetry.cmcd import TOKENS, Item, Token, Value, written
from serve.telemetry.reports import CUSTOM, DIMENSIONS, Report

Form = Literal["cmcd", "json"]
CMCD_TYPE: Final = "application/cmcd"
JSON_TYPE: Final = "application/json"
_STANDARD: Final = frozenset({"cdn", "title", "protocol"})
"""Dimensions that players say with the standard's own keys (`cdn`, `cid`, `sf`)."""

_TOKENS: Final = frozenset({*TOKENS, "e"})


@dataclass(frozen=True, slots=True)
class Body:
    """One request.

    Attributes:
        query: the query string, without `?`; empty: none.
        content_type: of the body.
        content: the body.
        reports: how many are in it.
    """

    query: str
    content_type: str
    content: bytes
    reports: int


def body(reports: Sequence[Report], form: Form = "cmcd") -> Body:
    """Reports as one request, in order, whatever their contexts.

    Args:
        reports: at least one; the service takes 1,000 at most.
        form: `cmcd`, one report a line, or `json`.
    """
    shared = reports[0].context if all(one.context == reports[0].context for one in reports) else None
    said = [one.values if shared is not None else {**one.values, **_custom(one.context)} for one in reports]
    if form == "json":
        document: dict[str, Any] = {"events": said}
        if shared is not None:
            document["context"] = dict(shared)
        return Body("", JSON_TYPE, orjson.dumps(document), len(reports))
    lines = "\n".join(line(values) for values in said)
    query = urlencode({name: shared[name] for name in DIMENSIONS if name in shared}) if shared is not None else ""
    return Body(query, CMCD_TYPE, lines.encode(), len(reports))


def bodies(reports: Sequence[Report], form: Form = "cmcd", *, most: int = 100, mixed: bool = True) -> Iterator[Body]:
    """Reports as requests.

    Args:
        reports: any number.
        form: as of `body`.
        most: reports in one.
        mixed: whether one request may hold several contexts, as from a relay; else as from players, one each.
    """
    groups: list[Sequence[Report]] = [reports]
    if not mixed:
        by_context: dict[tuple[tuple[str, str], ...], list[Report]] = {}
        for one in reports:
            by_context.setdefault(tuple(sorted(one.context.items())), []).append(one)
        groups = list(by_context.values())
    for group in groups:
        for first in range(0, len(group), most):
            yield body(group[first : first + most], form)


def line(values: Mapping[str, Any]) -> str:
    """A report in the plain form (serve.telemetry.reports) as a line of CMCD's event mode."""
    return written({key: _value(key, value) for key, value in values.items()})


def _value(key: str, value: Any) -> Value:
    if isinstance(value, dict):
        return tuple(Item(number, {kind: True}) for kind, number in value.items())
    if isinstance(value, list):
        return tuple(Item(text) for text in value)
    plain: Value = Token(value) if key in _TOKENS else value
    return plain


def _custom(context: Mapping[str, str]) -> dict[str, str]:
    return {CUSTOM + name: context[name] for name in DIMENSIONS if name in context and name not in _STANDARD}
