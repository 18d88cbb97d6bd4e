"""A profile's history: the one fold from watch events to profile features.

The online store applies it event by event and the offline frames fold whole logs, so the two cannot drift apart. A
history is a set: the order in which events arrive, and how often, does not change it.

Rules:
- an impression is not history;
- the same (title, kind, ts) twice is one entry, with the larger progress;
- of a title's progress events only the newest is kept, so that heartbeats do not push the past out;
- entries are ordered by (ts, kind, title) and only the newest CAPACITY are kept.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from features.events import Event, EventKind

CAPACITY: Final = 512
LIST_CAPACITY: Final = 500

KIND_CODES: Final[dict[EventKind, int]] = {
    EventKind.PLAY: 1,
    EventKind.PROGRESS: 2,
    EventKind.FINISH: 3,
    EventKind.THUMBS_UP: 4,
    EventKind.THUMBS_DOWN: 5,
    EventKind.ADD_TO_LIST: 6,
    EventKind.REMOVE_FROM_LIST: 7,
}
"""Stored code of each kind in profile_history; never renumber, only add."""

_PROGRESS: Final = KIND_CODES[EventKind.PROGRESS]


class Entry(NamedTuple):
    """One remembered event, in sort order.

    Attributes:
        ts_ms: UTC milliseconds.
        kind: a value of KIND_CODES.
        title_id: the title.
        progress: share of the title watched, 0 to 1, exact in float32.
    """

    ts_ms: int
    kind: int
    title_id: str
    progress: float


@dataclass(slots=True)
class History:
    """What is remembered of one profile.

    Attributes:
        entries: newest CAPACITY entries, oldest first.
        n_events: how many events were ever folded in; grows with each, so it names the history's version. Whoever folds
            drops repeated event ids first.
    """

    entries: list[Entry] = field(default_factory=list)
    n_events: int = 0

    def apply(self, event: Event) -> bool:
        """Fold one event in; True if it changed what is remembered."""
        if event.kind is EventKind.IMPRESSION:
            return False
        return self.add(Entry(event.ts, KIND_CODES[event.kind], event.title_id, event.progress))

    def add(self, entry: Entry) -> bool:
        """Fold one entry in; True if it changed what is remembered."""
        self.n_events += 1
        entries = self.entries
        if entry.kind == _PROGRESS:
            for index, old in enumerate(entries):
                if old.kind == _PROGRESS and old.title_id == entry.title_id:
                    if (old.ts_ms, old.progress) >= (entry.ts_ms, entry.progress):
                        return False
                    del entries[index]
                    break
        else:
            index = bisect_left(entries, entry[:3])  # a prefix sorts before all that it starts
            if index < len(entries) and entries[index][:3] == entry[:3]:
                if entries[index].progress >= entry.progress:
                    return False
                entries[index] = entry
                return True
        insort(entries, entry)
        return len(entries) <= CAPACITY or entries.pop(0) != entry
