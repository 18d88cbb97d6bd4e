"""Rows of slices are few: values that somebody invents do not keep out what is new, nor drive out what is known."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import orjson

from serve.telemetry.windows import ATTEMPTS, COLUMN, REPORTS, WINDOW_MS, Window
from serve.watchtower.alarms import Alarm
from serve.watchtower.slices import SliceWatch

T0: Final = 1_790_000_000_000 // WINDOW_MS * WINDOW_MS
MOST: Final = 200
RELEASED_AT: Final = 60
BROKEN_AT: Final = 200


def windows(count: int, invented: int) -> Iterator[Window]:
    """Windows in which CDNs and titles that nobody has heard of are named, and a new app version comes and breaks."""
    random = np.random.default_rng(4)
    for place in range(count):
        window = Window(T0 + place * WINDOW_MS)
        for app in ("tv-1", "tv-2", *(["tv-3"] if place >= RELEASED_AT else [])):
            for cdn in ("north", "west"):
                broken = place >= BROKEN_AT and (app == "tv-3" or cdn == "west")
                row, there = window.row((cdn, "", "eu", "tv", app, "", "")), int(random.poisson(60))
                row[COLUMN["errors"]], row[COLUMN["errors"] + 1] = (
                    there,
                    random.binomial(there, 0.5 if broken else 0.01),
                )
                row[ATTEMPTS], row[REPORTS] = 6, there
        for number in range(invented):
            row = window.row((f"c{place}-{number}", "", "eu", "tv", "tv-1", f"t{place}-{number}", ""))
            row[COLUMN["errors"]] = row[ATTEMPTS] = row[REPORTS] = 1
        yield window


def alarmed(alarms: list[Alarm]) -> set[tuple[tuple[str, str], ...]]:
    return {alarm.slice for alarm in alarms}


def test_a_new_version_is_watched_and_an_old_cdn_stays_watched_whatever_is_invented() -> None:
    watch = SliceWatch(most=MOST)
    alarms = []
    for window in windows(BROKEN_AT + 6, invented=60):
        alarms += watch.see(window)
        assert len(watch) <= MOST
    assert {(("app", "tv-3"),), (("cdn", "west"),)} <= alarmed(alarms)
    assert min(alarm.window_ms for alarm in alarms) >= T0 + BROKEN_AT * WINDOW_MS


def test_what_makes_room_is_the_same_after_a_checkpoint() -> None:
    one, other = SliceWatch(most=MOST), None
    for place, window in enumerate(windows(BROKEN_AT + 6, invented=40)):
        alarms = one.see(window)
        if other is not None:
            assert other.see(window) == alarms
        if place == BROKEN_AT - 20:
            other = SliceWatch.from_state(orjson.loads(orjson.dumps(one.state())))
    assert other is not None
    assert orjson.dumps(other.state()) == orjson.dumps(one.state())
