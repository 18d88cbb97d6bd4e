"""From a profile's history to the encoder's input: one function for training and serving.

Shapes: B batch, T time (visits, oldest first).
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.history import Entry

ACTION_BITS: Final = 8
"""Visit actions are a bit set over KIND_CODES: bit (code - 1)."""


class Visit(NamedTuple):
    """All that a profile did with one title, at the time it last touched it."""

    title: int
    actions: int
    time_s: int


def visits(entries: Sequence[Entry], rows: Mapping[str, int]) -> list[Visit]:
    """Merge a history's entries into one visit a title, oldest first.

    Titles that the vocabulary does not hold are left out.

    Args:
        entries: a history's entries, oldest first.
        rows: title_id -> row of the title table (1 and up).
    """
    merged: dict[int, Visit] = {}
    for entry in entries:
        title = rows.get(entry.title_id)
        if title is None:
            continue
        earlier = merged.pop(title, None)  # popped so that the dict stays ordered by last touch
        actions = 1 << (entry.kind - 1)
        if earlier is not None:
            actions |= earlier.actions
        merged[title] = Visit(title, actions, entry.ts_ms // 1000)
    return list(merged.values())


def encoder_inputs(batch: Sequence[Sequence[Visit]], length: int) -> dict[str, NDArray[np.int64]]:
    """Stack the newest visits of each profile, aligned left and padded at the end with zeros.

    Args:
        batch: B lists of visits, oldest first.
        length: the most visits that the encoder takes.

    Returns:
        titles, actions, times: int64 (B, T), T = the longest kept list, at least 1. times are UTC seconds.
    """
    kept = [list(profile)[-length:] for profile in batch]
    time = max(1, max((len(profile) for profile in kept), default=1))
    stacked = np.zeros((3, len(kept), time), dtype=np.int64)  # (3, B, T)
    for row, profile in enumerate(kept):
        if profile:
            stacked[:, row, : len(profile)] = np.array(profile, dtype=np.int64).T
    return {"titles": stacked[0], "actions": stacked[1], "times": stacked[2]}
