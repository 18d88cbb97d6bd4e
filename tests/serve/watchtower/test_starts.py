"""Starts that do not come: an absence is found and closed again, a shift to another CDN is none."""

import math
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import orjson
import pytest

from serve.telemetry.windows import ATTEMPTS, COLUMN, REPORTS, WINDOW_MS, Window
from serve.watchtower.alarms import Slice
from serve.watchtower.history import History
from serve.watchtower.outages import Outage
from serve.watchtower.settings import DEFAULTS
from serve.watchtower.slices import SliceWatch
from serve.watchtower.starts import StartWatch
from serve.watchtower.tracker import OutageTracker

T0: Final = 1_790_000_000_000 // WINDOW_MS * WINDOW_MS
CDNS: Final = {"north": 0.38, "west": 0.4, "delta": 0.22}
STEERED: Final = {"north": 0.0, "west": 0.62, "delta": 0.38}
CHANGES_AT: Final = 330
"""Windows: starts are judged from 55 minutes on."""

Shares = Callable[[int, str], dict[str, float]]
"""Of the starts, by window and region: CDN -> share, of what is usual in the region."""


def windows(count: int, shares: Shares, *, starts: float = 60.0, seed: int = 1) -> Iterator[Window]:
    """Windows of an audience with `starts` of two regions in each, with nothing wrong but what `shares` says."""
    random = np.random.default_rng(seed)
    for place in range(count):
        window = Window(T0 + place * WINDOW_MS)
        for region in ("eu", "us"):
            for cdn, share in shares(place, region).items():
                began, there = (int(random.poisson(share * mean / 2)) for mean in (starts, starts * 20))
                if began or there:
                    row = window.row((cdn, "", region, "tv", "", "", ""))
                    row[ATTEMPTS], row[REPORTS] = began, there
                    for metric, total in (("start_failures", began), ("errors", there), ("silence", there)):
                        row[COLUMN[metric]], row[COLUMN[metric] + 1] = total, random.binomial(total, 0.005)
        yield window


def told(stream: Iterator[Window]) -> tuple[OutageTracker, list[Outage]]:
    """The tracker at the end and what it told; from half a dozen minutes into the change on it is one restored."""
    watch, tracker, changes = SliceWatch(), OutageTracker(), []
    for window in stream:
        alarms = watch.see(window)
        changed = tracker.see(window, alarms)
        if window.start_ms == T0 + (CHANGES_AT + 36) * WINDOW_MS:
            again = OutageTracker.from_state(orjson.loads(orjson.dumps(tracker.state())))
            assert orjson.dumps(again.state()) == orjson.dumps(tracker.state())
            tracker = again
        changes += changed
    return tracker, changes


@pytest.mark.parametrize("starts", [12.0, 60.0])
def test_viewers_who_are_steered_to_other_cdns_are_not_missing(starts: float) -> None:
    def steered(place: int, _: str) -> dict[str, float]:
        return STEERED if CHANGES_AT <= place < CHANGES_AT + 150 else CDNS

    assert told(windows(CHANGES_AT + 250, steered, starts=starts))[1] == []


def test_viewers_of_a_region_who_are_steered_to_other_cdns_are_not_missing() -> None:
    def steered(place: int, region: str) -> dict[str, float]:
        return STEERED if place >= CHANGES_AT and region == "eu" else CDNS

    assert told(windows(CHANGES_AT + 150, steered))[1] == []


@pytest.mark.parametrize(
    ("slice_", "kept", "starts"),
    [
        ((), {"eu": {}, "us": {}}, 180.0),
        ((("region", "eu"),), {"eu": {}, "us": CDNS}, 24.0),
        ((("cdn", "north"),), {region: {**CDNS, "north": 0.0} for region in ("eu", "us")}, 24.0),
        ((("cdn", "north"), ("region", "eu")), {"eu": {**CDNS, "north": 0.0}, "us": CDNS}, 180.0),
    ],
    ids=["everyone", "region", "cdn", "cdn and region"],
)
def test_starts_that_come_nowhere_are_an_outage_until_they_come_again(
    slice_: Slice, kept: dict[str, dict[str, float]], starts: float
) -> None:
    over = CHANGES_AT + 60

    def broken(place: int, region: str) -> dict[str, float]:
        return kept[region] if CHANGES_AT <= place < over else CDNS

    stream = windows(over + 3 * DEFAULTS.closed_after, broken, starts=starts)
    if not slice_:  # those who play still report
        stream = (with_players(window) for window in stream)
    tracker, changes = told(stream)
    first = next(outage for outage in changes if outage.state == "confirmed")
    assert first.detected_ts - T0 <= (CHANGES_AT + 18) * WINDOW_MS
    (effect,) = first.effects
    assert (effect.metric, effect.expected) == ("missing_starts", 0.0)
    assert effect.now == pytest.approx(effect.bad / effect.total, abs=0.2)
    assert effect.now > 0.5
    assert {tuple(outage.slice.items()) for outage in changes if outage.state == "closed"} == {slice_}
    assert tracker.outages == []
    states = [outage.state for outage in changes]
    assert states.count("recovering") == 1, "it does not flap"
    closed = changes[-1].closed_ts
    assert closed is not None
    assert (over + DEFAULTS.closed_after) * WINDOW_MS <= closed - T0 <= (over + 80) * WINDOW_MS


def with_players(window: Window) -> Window:
    row = window.row(("west", "", "us", "tv", "", "", ""))
    for column in (COLUMN["errors"], COLUMN["silence"], REPORTS):
        row[column] += 500
    return window


def test_what_is_usual_moves_with_the_time_of_day() -> None:
    history, step_ms = History(), 60_000  # a window of each minute, to be quick
    day = 86_400_000 // step_ms
    watch = StartWatch(history)
    random = np.random.default_rng(2)
    evening = None
    for place in range(2 * day + day // 2):
        window = Window(T0 + place * step_ms)
        usual = 40.0 + 35.0 * math.sin(2 * math.pi * place / day)
        gone = place >= 2 * day + day // 4
        if gone and evening is None:
            evening = watch.before((("region", "eu"),), window.start_ms)
        for region in ("eu", "us"):
            window.row(("north", "", region, "tv", "", "", ""))[ATTEMPTS] = 0 if gone else random.poisson(usual)
        history.keep(window)
        watch.learn()
    assert evening is not None, "the peak"
    night = watch.since(evening, history.latest_ms)
    assert night.usual == pytest.approx(evening.own * 40 / 75, rel=0.05)
    assert night.are_missing
    again = StartWatch.from_state(orjson.loads(orjson.dumps(watch.state())), history)
    assert again.since(evening, history.latest_ms) == night
