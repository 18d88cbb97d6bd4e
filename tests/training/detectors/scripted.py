"""Days of a small audience with incidents by a script: windows as test_tower's, watched by the real detectors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from serve.telemetry.windows import WINDOW_MS, Leaf, Window
from serve.watchtower.alarms import Alarm
from serve.watchtower.slices import SliceWatch
from tests.serve.watchtower.test_tower import T0, Rates, windows
from training.detectors.days import Called, DayScore, Found

EVERY: Final = 60
"""Windows between the beginnings of two incidents."""
FIRST: Final = 120
LASTS: Final = 20
AFTER: Final = 30
"""Windows from an incident's end, in which an outage is still about it."""


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong for a while: an incident, or where it hurts nobody to speak of, a flicker."""

    slice: dict[str, str]
    where: Callable[[Leaf], bool]
    rates: Rates
    lasts: int = LASTS
    hurts: bool = True


LARGE: Final = Trouble({"cdn": "north"}, lambda leaf: leaf[0] == "north", {"stalls": 0.15, "start_failures": 0.2})
ISP: Final = Trouble({"asn": "10"}, lambda leaf: leaf[1] == "10", {"stalls": 0.12})
SMALL: Final = Trouble({"app": "tv-2"}, lambda leaf: leaf[4] == "tv-2", {"errors": 0.03})
FLICKER: Final = Trouble(
    {"region": "us"}, lambda leaf: leaf[2] == "us", {"errors": 0.055}, lasts=1, hurts=False
)  # fmt: skip
SCRIPT: Final = (LARGE, FLICKER, ISP, SMALL, FLICKER, ISP, SMALL, LARGE, FLICKER)


@cache
def scripted_days() -> list["ScriptedDay"]:
    """Four of them, made once a process."""
    return [ScriptedDay(seed) for seed in (1, 2, 3, 4)]


class ScriptedDay:
    """See training.detectors.days.Day."""

    def __init__(self, seed: int, script: Sequence[Trouble] = SCRIPT) -> None:
        self._seed = seed
        self._script = script
        watch = SliceWatch()
        self._seen = [
            (window, watch.see(window)) for window in windows(FIRST + EVERY * len(script), self._change, seed)
        ]

    @property
    def name(self) -> str:
        return f"scripted {self._seed}"

    def seen(self) -> Iterator[tuple[Window, Sequence[Alarm]]]:
        yield from self._seen

    def score(self, called: Sequence[Called]) -> DayScore:
        confirmed = [one for one in called if one.confirmed_ms is not None]
        dropped = [one for one in called if one.confirmed_ms is None]
        about = {place: [one for one in confirmed if self._is_about(one, place)] for place in range(len(self._script))}
        found = []
        for place, trouble in enumerate(self._script):
            if trouble.hurts:
                own, began = about[place], self._began(place)
                found.append(
                    Found(
                        incident_id=f"{self._seed}-{place}", kind="incident", counts=True,
                        suspected_s=min(one.outage.detected_ts - began for one in own) / 1000 if own else None,
                        confirmed_s=min(one.confirmed_ms or 0 for one in own) / 1000 - began / 1000 if own else None,
                        first=any(dict(one.outage.slice) == trouble.slice for one in own),
                    )
                )  # fmt: skip

        def is_false(one: Called) -> bool:
            return not any(
                trouble.hurts and self._is_about(one, place) for place, trouble in enumerate(self._script)
            )  # fmt: skip

        return DayScore(
            day=self.name, false_alarms=sum(map(is_false, confirmed)), false_suspicions=sum(map(is_false, dropped)),
            found=tuple(found), states={one.outage.outage_id: one.outage.state for one in called},
        )  # fmt: skip

    def _began(self, place: int) -> int:
        return T0 + (FIRST + EVERY * place) * WINDOW_MS

    def _is_about(self, one: Called, place: int) -> bool:
        return 0 <= one.outage.detected_ts - self._began(place) <= (LASTS + AFTER) * WINDOW_MS

    def _change(self, leaf: Leaf, window: int, rates: Rates) -> None:
        place, since = divmod(window - FIRST, EVERY)
        if place >= 0 and since < self._script[place].lasts and self._script[place].where(leaf):
            rates.update(self._script[place].rates)
