"""What is known of one profile: the state that events fold into, and the read-only features made from it.

`ProfileState` is the one fold for the online store (one event at a time) and the offline frames (whole logs). Like a
history it is a set of events: their order of arrival changes nothing. Being folded in twice does change the counts, so
whoever folds drops repeated event ids first.

Units: *_ts_ms are UTC milliseconds since the epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from features.events import Event, EventKind
from features.history import KIND_CODES, LIST_CAPACITY, Entry, History

KINDS: Final[tuple[EventKind, ...]] = (EventKind.IMPRESSION, *KIND_CODES)
"""Event kinds by the position of their count in the store: impressions first, then by stored code."""

COUNT_INDEX: Final[dict[EventKind, int]] = {kind: index for index, kind in enumerate(KINDS)}
"""Position of each kind's count."""


def no_counts() -> dict[EventKind, int]:
    """A count of zero for every kind."""
    return dict.fromkeys(KINDS, 0)


@dataclass(frozen=True, slots=True)
class ProfileStats:
    """Facts about a profile beside its history.

    Attributes:
        counts: how many events of each kind there were, every kind present; repeated event ids count once.
        first_ts_ms: time of its oldest event, impressions aside; 0 where there is none.
        last_ts_ms: time of its newest event, impressions aside; 0 where there is none.
        my_list: titles on the viewer's list, last added first.
        region: of the newest event that carries one, else the profile's own, else empty.
        device: of the newest event that carries one, else empty.
        kids: whether it is a kids profile.
    """

    counts: Mapping[EventKind, int] = field(default_factory=no_counts)
    first_ts_ms: int = 0
    last_ts_ms: int = 0
    my_list: tuple[str, ...] = ()
    region: str = ""
    device: str = ""
    kids: bool = False


@dataclass(frozen=True, slots=True)
class ProfileFeatures:
    """All that a request needs to know about a profile.

    Attributes:
        profile_id: whose.
        known: whether the store holds anything of this profile.
        history: its newest events; the reader may change its copy.
        stats: facts beside the history.
        degraded: why this is less than the store may hold ("features_timeout", "features_unavailable",
            "features_corrupt"); history and stats are then empty. Empty when all is well.
    """

    profile_id: str
    known: bool = False
    history: History = field(default_factory=History)
    stats: ProfileStats = field(default_factory=ProfileStats)
    degraded: tuple[str, ...] = ()


@dataclass(slots=True)
class ProfileState:
    """What events fold into: all that is stored of a profile.

    Attributes:
        history: the newest events.
        counts: events by position in KINDS.
        first_ts_ms: oldest event, impressions aside; 0 none.
        last_ts_ms: newest event, impressions aside; 0 none.
        list_marks: title_id -> (when, whether it was added or removed); the newest LIST_CAPACITY. Removals are kept so
            that an addition that arrives late does not undo a newer removal.
        region: (when, region); when is -1 for the profile's own.
        device: (when, device).
        kids: whether it is a kids profile.
    """

    history: History = field(default_factory=History)
    counts: list[int] = field(default_factory=lambda: [0] * len(KINDS))
    first_ts_ms: int = 0
    last_ts_ms: int = 0
    list_marks: dict[str, tuple[int, bool]] = field(default_factory=dict)
    region: tuple[int, str] = (-1, "")
    device: tuple[int, str] = (-1, "")
    kids: bool = False

    def apply(self, event: Event) -> None:
        """Fold in one event whose id was not folded in before."""
        self.fold(event.kind, event.title_id, event.ts, event.progress, event.region, event.device)

    def fold(
        self, kind: EventKind, title_id: str, ts_ms: int, progress: float, region: str | None, device: str | None
    ) -> None:
        """Fold in one event given by its fields; progress is exact in float32."""
        self.counts[COUNT_INDEX[kind]] += 1
        if region:
            self.region = max(self.region, (ts_ms, region))
        if device:
            self.device = max(self.device, (ts_ms, device))
        if kind is EventKind.IMPRESSION:
            return
        self.first_ts_ms = min(self.first_ts_ms, ts_ms) if self.history.n_events else ts_ms
        self.history.add(Entry(ts_ms, KIND_CODES[kind], title_id, progress))
        self.last_ts_ms = max(self.last_ts_ms, ts_ms)
        if kind is EventKind.ADD_TO_LIST or kind is EventKind.REMOVE_FROM_LIST:
            self.mark(title_id, ts_ms, added=kind is EventKind.ADD_TO_LIST)

    def merge(self, other: "ProfileState") -> None:
        """Fold in all events of another state; no event may be in both."""
        mine, theirs = self.history.n_events, other.history.n_events
        if theirs:
            self.first_ts_ms = min(self.first_ts_ms, other.first_ts_ms) if mine else other.first_ts_ms
            self.last_ts_ms = max(self.last_ts_ms, other.last_ts_ms)
        for entry in other.history.entries:
            self.history.add(entry)
        self.history.n_events = mine + theirs
        self.counts = [sum(pair) for pair in zip(self.counts, other.counts, strict=True)]
        for title_id, (ts_ms, added) in other.list_marks.items():
            self.mark(title_id, ts_ms, added=added)
        self.region = max(self.region, other.region)
        self.device = max(self.device, other.device)
        self.kids = self.kids or other.kids

    def mark(self, title_id: str, ts_ms: int, *, added: bool) -> None:
        """Remember that a title was added to or removed from the list; at the same instant the addition wins."""
        marks = self.list_marks
        marks[title_id] = max(marks.get(title_id, (-1, False)), (ts_ms, added))
        if len(marks) > LIST_CAPACITY:
            del marks[min(marks, key=lambda title: (marks[title], title))]

    def my_list(self) -> list[str]:
        """Titles on the list, last added first."""
        listed = sorted(((ts, title) for title, (ts, added) in self.list_marks.items() if added), reverse=True)
        return [title for _, title in listed]

    def features(self, profile_id: str) -> ProfileFeatures:
        """A copy of what is read, which later events do not change."""
        history = History(list(self.history.entries), self.history.n_events)
        return ProfileFeatures(profile_id, known=True, history=history, stats=self.stats())

    def stats(self) -> ProfileStats:
        """The facts that are read."""
        return ProfileStats(
            counts=dict(zip(KINDS, self.counts, strict=True)),
            first_ts_ms=self.first_ts_ms,
            last_ts_ms=self.last_ts_ms,
            my_list=tuple(self.my_list()),
            region=self.region[1],
            device=self.device[1],
            kids=self.kids,
        )
