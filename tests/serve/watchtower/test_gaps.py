"""Reports that do not come are a gap for as long as they do not; an audience that is gone is an outage."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import orjson

from serve.telemetry.reports import Report
from serve.telemetry.windows import ATTEMPTS, COLUMN, REPORTS, WINDOW_MS, Window
from serve.watchtower.alarms import GAP, Alarm
from serve.watchtower.gaps import AFTERMATH, Gaps
from serve.watchtower.slices import SliceWatch
from serve.watchtower.tower import Watchtower
from serve.watchtower.tracker import OutageTracker

T0: Final = 1_790_000_000_000 // WINDOW_MS * WINDOW_MS
MINUTE_MS: Final = 60_000
DARK_MS: Final = range(35 * MINUTE_MS, 43 * MINUTE_MS)
GONE_AT: Final = 330
"""Windows: starts are judged from 55 minutes on."""


def reports(until_ms: int) -> Iterator[Report]:
    """A session begins every two seconds and tells of itself every ten; in DARK_MS nothing comes in."""
    random = np.random.default_rng(3)
    said = []
    for number, began in enumerate(random.uniform(0, until_ms, until_ms // 2000).astype(int).tolist()):
        cdn, region = ("north", "north", "west", "south")[number % 4], ("eu", "us")[number // 4 % 2]
        end = began + int(random.integers(60_000, 300_000))
        told = [
            (began, {"e": "ps", "sta": "s"}), (began + 900, {"e": "ps", "sta": "p", "br": {"v": 3000}}),
            *((at, {"e": "t", "sta": "p", "br": {"v": 3000}}) for at in range(began + 10_000, end, 10_000)),
            (end, {"e": "ps", "sta": "e"}),
        ]  # fmt: skip
        for place, (at, values) in enumerate(told):
            if at < until_ms and at not in DARK_MS:
                context = {"cdn": cdn, "region": region}
                said.append(Report(f"s{number}", T0 + at, {**values, "ts": T0 + at, "sn": place}, context))
    return iter(sorted(said, key=lambda one: (one.received_ms, one.session)))


def test_minutes_without_any_report_are_no_outage() -> None:
    tower = Watchtower(T0)
    changed, dark = [], set()
    for report in reports(DARK_MS.stop + 5 * MINUTE_MS):
        for window in tower.sessions.advance(report.received_ms):
            changed += tower.see(window)
            if () in tower.tracker.gaps:
                dark.add(window.start_ms - T0)
        tower.sessions.take(report, report.received_ms)
    assert changed == []
    assert dark >= set(DARK_MS[::WINDOW_MS]), "a gap from its first window to its last"
    assert max(dark) == DARK_MS.stop + (AFTERMATH - 2) * WINDOW_MS


def test_an_audience_that_is_gone_is_an_outage_although_few_who_remain_report() -> None:
    random = np.random.default_rng(1)
    watch, tracker = SliceWatch(), OutageTracker()
    changed = []
    for place in range(GONE_AT + 40):
        window = Window(T0 + place * WINDOW_MS)
        gone = place >= GONE_AT
        there = int(
            random.poisson(40 if place >= GONE_AT + 8 else 1200)
        )  # who left without a word is missed for a while
        for region in ("eu", "us"):
            row = window.row(("north", "", region, "tv", "", "", ""))
            row[COLUMN["errors"]] = row[COLUMN["silence"]] = there
            row[ATTEMPTS] = 0 if gone else int(random.poisson(30))
            row[REPORTS] = int(random.poisson(40 if gone else 1200))
        changed += tracker.see(window, watch.see(window))
    assert [outage.state for outage in changed][:2] == ["suspected", "confirmed"]
    assert changed[0].slice == {}
    assert changed[0].effects[0].metric == "missing_starts"


def test_windows_that_nobody_saw_are_a_gap() -> None:
    gaps = Gaps()
    gaps.see(T0, 100, [])
    assert gaps.slices == []
    gaps.see(T0 + 5 * WINDOW_MS, 100, [])
    assert gaps.slices == [()]
    assert gaps.may_hold((("cdn", "north"),))


def test_gaps_go_on_where_they_were() -> None:
    eu = Alarm(
        slice=(("region", "eu"),), metric=GAP, window_ms=T0, evidence=9.0, expected=50.0, total=5.0, bad=45.0
    )  # fmt: skip
    one, told = Gaps(), []
    for place in range(200):
        if place == 100:
            one = Gaps.from_state(orjson.loads(orjson.dumps(one.state())))
        at = T0 + place * WINDOW_MS
        one.see(at, 0 if 90 <= place < 120 else 100, [eu] if place == 95 else [])
        told.append((place, one.slices))
    assert [place for place, slices in told if () in slices] == list(range(90, 120 + AFTERMATH - 1))
    assert [place for place, slices in told if eu.slice in slices] == list(range(95, 95 + AFTERMATH))
