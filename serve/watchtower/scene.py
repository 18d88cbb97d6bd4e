"""What trackers look at: the recent windows, gaps of telemetry, the season of starts, and what trouble comes down to.

None of it depends on the detectors' settings, so trackers with different ones look at one scene: a search for causes,
which is what costs most, is made once a window however many ask for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from serve.telemetry.windows import REPORTS, Window
from serve.watchtower.alarms import MISSING, Alarm
from serve.watchtower.gaps import Gaps
from serve.watchtower.history import Excerpt, History
from serve.watchtower.localisation import Localisation, localise
from serve.watchtower.starts import StartWatch

Search = tuple[Excerpt, Localisation]
"""What was searched, and what it comes down to."""


class Scene:
    """Windows come in order, each once.

    Attributes:
        history: the recent windows.
        starts: how many starts are usual.
        gaps: slices whose telemetry is incomplete now.
    """

    def __init__(self) -> None:
        self.history = History()
        self.starts = StartWatch(self.history)
        self.gaps = Gaps()
        self._searches: dict[tuple[str, int], Search | None] = {}

    def see(self, window: Window, signs: Sequence[Alarm]) -> None:
        """Take a window in, and what is said of it."""
        self._searches = {}
        self.history.keep(window)
        reports = self.history.since((), window.start_ms)[0][REPORTS]
        self.gaps.see(window.start_ms, int(reports), signs)
        if () not in self.gaps.slices:
            self.starts.learn()

    def is_searched(self, metric: str, since_ms: int) -> bool:
        """Whether `search` would cost nothing."""
        return (metric, since_ms) in self._searches

    def search(self, metric: str, since_ms: int) -> Search | None:
        """What a metric's trouble since a moment comes down to; None where nothing is known of before."""
        key = metric, since_ms
        if key not in self._searches:
            excerpt = self.history.excerpt(metric, since_ms)
            self._searches[key] = None if excerpt is None else (excerpt, _localised(metric, excerpt))
        return self._searches[key]

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able."""
        return {"history": self.history.state(), "season": self.starts.state(), "gaps": self.gaps.state()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The scene that wrote this checkpoint.

        Raises:
            InvalidInput: another version wrote it.
        """
        scene = cls()
        scene.history = History.from_state(state["history"])
        scene.starts = StartWatch.from_state(state["season"], scene.history)
        scene.gaps = Gaps.from_state(state["gaps"])
        return scene


def _localised(metric: str, excerpt: Excerpt) -> Localisation:
    return localise(excerpt.table, metric="missing" if metric == MISSING else "bad", top=4)
