"""From windows to outages: broken slices are named, followed and closed; what only looks like trouble is not."""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import orjson
import pytest

from serve.telemetry.windows import ATTEMPTS, METRICS, REPORTS, WIDTH, WINDOW_MS, Leaf, Window
from serve.watchtower.alarms import GAP, Alarm
from serve.watchtower.outages import Outage, as_json, from_json
from serve.watchtower.settings import DEFAULTS
from serve.watchtower.slices import SliceWatch
from serve.watchtower.tracker import OutageTracker

T0: Final = 1_790_000_000_000 // WINDOW_MS * WINDOW_MS
USUAL: Final = {
    "start_failures": 0.01, "start_timeouts": 0.005, "slow_starts": 0.05, "stalls": 0.01, "errors": 0.003,
    "failures": 0.01, "low_bitrate": 0.05, "silence": 0.002,
}  # fmt: skip
BROKEN_AT: Final = 120

Rates = dict[str, float]
Change = Callable[[Leaf, int, Rates], None]


def leaves() -> list[tuple[Leaf, float]]:
    """Leaves and how many sessions are there."""
    found = []
    for c, cdn in enumerate(("north", "south", "west")):
        for r, region in enumerate(("eu", "us", "as")):
            for a in range(2):
                for d, device in enumerate(("tv", "phone")):
                    size = 8.0 / ((c + 1) * (r + 1) * (a + 1) * (d + 1))
                    leaf = (cdn, f"{r}{a}", region, device, f"{device}-1", f"t{(c + r + a + d) % 5}", "dash")
                    found += [(leaf, size), ((*leaf[:4], f"{device}-2", *leaf[5:]), size / 2)]
    return found


def windows(count: int, change: Change = lambda *_: None, seed: int = 0) -> Iterator[Window]:
    """Windows of an audience of about 330 sessions, 1 start a second, with what `change` does to its rates."""
    random = np.random.default_rng(seed)
    known = leaves()
    for place in range(count):
        window = Window(T0 + place * WINDOW_MS)
        for leaf, size in known:
            rates = {**USUAL, "crowd": 1.0, "heard": 1.0, "starts": 1.0, "here": 1.0}
            change(leaf, place, rates)
            size *= rates["here"]  # noqa: PLW2901 - of this window
            there = random.poisson(8 * size * rates["crowd"] ** 0.2)
            begun = random.poisson(0.25 * size * rates["crowd"] * rates["starts"])
            row = [0] * WIDTH
            for metric, total in (
                ("start_failures", begun), ("start_timeouts", begun), ("slow_starts", begun), ("stalls", there),
                ("errors", there), ("failures", random.poisson(0.2 * size)), ("low_bitrate", there), ("silence", there),
            ):  # fmt: skip
                column = 2 * METRICS.index(metric)
                row[column], row[column + 1] = total, random.binomial(total, min(rates[metric], 1.0))
            row[ATTEMPTS] = begun
            row[REPORTS] = random.poisson((there / 3 + 2 * begun) * rates["heard"])
            if any(row):
                window.counts[leaf] = row
        yield window


def run(stream: Iterator[Window]) -> tuple[OutageTracker, list[Outage]]:
    watch, tracker = SliceWatch(), OutageTracker()
    return tracker, [outage for window in stream for outage in tracker.see(window, watch.see(window))]


def last_of(outages: list[Outage]) -> list[Outage]:
    """The last that was told of each."""
    return list({outage.outage_id: outage for outage in outages}.values())


def broken(where: Callable[[Leaf], bool], until: int = 10**9, **rates: float) -> Change:
    def change(leaf: Leaf, place: int, known: Rates) -> None:
        if BROKEN_AT <= place < until and where(leaf):
            known.update(rates)

    return change


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("name", "where", "rates"),
    [
        ({"cdn": "north"}, lambda leaf: leaf[0] == "north", {"stalls": 0.2, "start_failures": 0.3}),
        ({"cdn": "north", "region": "eu"}, lambda leaf: leaf[0] == "north" and leaf[2] == "eu", {"stalls": 0.3}),
        ({"app": "tv-2"}, lambda leaf: leaf[4] == "tv-2", {"failures": 0.9, "errors": 0.1}),
        ({"asn": "10"}, lambda leaf: leaf[1] == "10", {"low_bitrate": 0.6, "stalls": 0.12}),
        ({"title": "t3"}, lambda leaf: leaf[5] == "t3", {"stalls": 0.3}),
        ({}, lambda leaf: True, {"start_failures": 0.5}),
    ],
    ids=["cdn", "cdn and region", "app", "asn", "title", "everyone"],
)
def test_a_broken_slice_is_named_followed_and_closed(
    name: dict[str, str], where: Callable[[Leaf], bool], rates: Rates, seed: int
) -> None:
    until = BROKEN_AT + 60
    _, told = run(windows(until + DEFAULTS.closed_after + 30, broken(where, until, **rates), seed))
    confirmed = [outage for outage in told if outage.state == "confirmed"]
    assert confirmed, told
    (outage,) = last_of(confirmed)
    began = T0 + BROKEN_AT * WINDOW_MS
    assert 0 < outage.detected_ts - began <= 6 * WINDOW_MS
    assert abs(outage.started_ts - began) <= 6 * WINDOW_MS
    assert dict(outage.slice) == name
    worst = max(confirmed, key=lambda one: one.severity)
    assert worst.effects[0].metric in rates
    assert worst.effects[0].now > 2 * worst.effects[0].expected
    assert outage.sessions_hurt > 3
    (end,) = [one for one in last_of(told) if one.outage_id == outage.outage_id]
    assert end.state == "closed"
    assert end.closed_ts is not None
    assert 0 <= end.closed_ts - (T0 + until * WINDOW_MS) <= (DEFAULTS.closed_after + 12) * WINDOW_MS
    states = [one.state for one in told if one.outage_id == outage.outage_id]
    changes = [state for place, state in enumerate(states) if place == 0 or states[place - 1] != state]
    assert changes in (
        ["suspected", "confirmed", "recovering", "closed"],
        ["suspected", "confirmed", "recovering", "confirmed", "recovering", "closed"],
    )


def test_viewers_who_come_back_after_an_outage_are_no_other() -> None:
    """Steered away, they leave no windows: when they are back, the sums of the slice remember the outage."""

    def change(leaf: Leaf, place: int, rates: Rates) -> None:
        if leaf[0] == "north" and place >= BROKEN_AT:
            since = place - BROKEN_AT
            rates["here"] = 1.0 if since < 4 else 0.25 if since < 6 else 0.0 if since < 36 else 0.1
            if since < 6:
                rates.update(failures=0.9, start_failures=0.5, errors=0.4)

    for seed in (0, 1):  # with 1 it was called another
        _, outages = run(windows(BROKEN_AT + 80, change, seed))
        told = last_of(outages)
        assert [(dict(one.slice), one.state) for one in told] == [({"cdn": "north"}, "closed")], seed


def test_two_at_once_are_two() -> None:
    def change(leaf: Leaf, place: int, rates: Rates) -> None:
        if place >= BROKEN_AT and leaf[0] == "south":
            rates["stalls"] = 0.4
        if place >= BROKEN_AT + 5 and leaf[4] == "tv-2":
            rates["failures"] = 0.9

    tracker, _ = run(windows(BROKEN_AT + 40, change))
    assert sorted(str(dict(outage.slice)) for outage in tracker.outages) == ["{'app': 'tv-2'}", "{'cdn': 'south'}"]


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_called_an_outage_where_nothing_is_wrong(seed: int) -> None:
    _, told = run(windows(1500, seed=seed))
    assert [outage for outage in told if outage.state == "confirmed"] == []
    assert len({outage.outage_id for outage in told}) <= 1, "a suspicion in four hours, at most"


@pytest.mark.parametrize("where", [lambda leaf: True, lambda leaf: leaf[2] == "eu"], ids=["all", "one region"])
def test_a_gap_of_telemetry_is_no_outage(where: Callable[[Leaf], bool]) -> None:
    def change(leaf: Leaf, place: int, rates: Rates) -> None:
        if BROKEN_AT <= place < BROKEN_AT + 20 and where(leaf):
            rates.update(heard=0.2, starts=0.2, stalls=0.15, start_timeouts=0.6)
            if place > BROKEN_AT + 7:
                rates["silence"] = 0.6

    tracker, told = run(windows(BROKEN_AT + 15, change))
    assert told == []
    assert tracker.gaps
    _, told = run(windows(BROKEN_AT + 90, change))
    assert told == []


def test_a_flash_crowd_is_no_outage() -> None:
    def change(leaf: Leaf, place: int, rates: Rates) -> None:
        if BROKEN_AT <= place < BROKEN_AT + 60 and leaf[5] == "t2":
            rates["crowd"] = 20.0

    _, told = run(windows(BROKEN_AT + 120, change))
    assert told == []


def test_starts_that_do_not_come_are_an_outage() -> None:
    def change(leaf: Leaf, place: int, rates: Rates) -> None:
        rates["starts"] = 0.0 if place >= 330 and leaf[3] == "tv" else 1.0

    tracker, told = run(windows(345, change))
    assert told
    (outage,) = tracker.outages
    assert outage.slice["device"] == "tv"
    assert outage.effects[0].metric == "missing_starts"
    assert outage.effects[0].now > 0.5


def test_state_goes_on_where_it_was() -> None:
    change = broken(lambda leaf: leaf[0] == "north", BROKEN_AT + 30, stalls=0.3)
    watch, tracker = SliceWatch(), OutageTracker()
    again: tuple[SliceWatch, OutageTracker] | None = None
    for place, window in enumerate(windows(BROKEN_AT + 80, change)):
        alarms = watch.see(window)
        told = tracker.see(window, alarms)
        if again is not None:
            assert again[0].see(window) == alarms
            assert again[1].see(window, alarms) == told
        if place == BROKEN_AT + 10:
            again = (
                SliceWatch.from_state(orjson.loads(orjson.dumps(watch.state()))),
                OutageTracker.from_state(orjson.loads(orjson.dumps(tracker.state()))),
            )
    assert again is not None
    assert orjson.dumps(again[1].state()) == orjson.dumps(tracker.state())


def test_shards_raise_the_alarms_of_the_whole() -> None:
    change = broken(lambda leaf: leaf[0] == "north", stalls=0.3, starts=0.2)
    whole, shards = SliceWatch(), [SliceWatch(shard, 3) for shard in range(3)]

    def told(alarms: list[Alarm]) -> set[tuple[object, ...]]:
        return {(alarm.slice, alarm.metric, alarm.evidence) for alarm in alarms}

    raised = 0
    for window in windows(BROKEN_AT + 10, change):
        expected = told(whole.see(window))
        assert told([alarm for shard in shards for alarm in shard.see(window)]) == expected
        raised += len(expected)
    assert raised > 10
    assert sum(map(len, shards)) == len(whole)
    assert all(len(shard) > 10 for shard in shards)


def test_outages_as_json() -> None:
    tracker, _ = run(windows(BROKEN_AT + 10, broken(lambda leaf: leaf[0] == "north", stalls=0.3)))
    (outage,) = tracker.outages
    assert from_json(orjson.loads(orjson.dumps(as_json(outage)))) == outage
    assert GAP not in orjson.dumps(as_json(outage)).decode()
