"""Checkpoints of detectors: plain JSON, versioned, checked when read."""

from collections.abc import Mapping
from typing import Any, Final

from serve.errors import InvalidInput

KIND: Final = "kind"
VERSION: Final = "version"


def stamped(kind: str, version: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint: what it is of, in which layout, and its fields (numbers, text, lists and dicts of them)."""
    return {KIND: kind, VERSION: version, **fields}


def checked(state: Mapping[str, Any], kind: str, version: int) -> Mapping[str, Any]:
    """The same checkpoint, if it is one of this kind and version.

    Raises:
        InvalidInput: it is of another detector or another version.
    """
    found = (state.get(KIND), state.get(VERSION))
    if found != (kind, version):
        raise InvalidInput(
            field="state", got=f"kind {found[0]!r}, version {found[1]!r}", expected=f"kind {kind!r}, version {version}",
            next_step="Restore the detector that wrote it, with the release that wrote it, or begin anew.",
        )  # fmt: skip
    return state
