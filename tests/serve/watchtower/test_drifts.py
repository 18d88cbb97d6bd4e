"""Shares that rise too slowly for a window to show are alarmed, named and followed; what only varies is not."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from serve.telemetry.windows import METRICS, WIDTH, WINDOW_MS, Window
from serve.watchtower.alarms import Alarm
from serve.watchtower.drifts import DRIFTING, LONGEST, STEP, DriftWatch
from serve.watchtower.history import FINE
from serve.watchtower.settings import DEFAULTS
from serve.watchtower.tracker import OutageTracker

T0 = 1_790_000_000_000 // WINDOW_MS * WINDOW_MS
ROWS = np.arange(20)
BROKEN = 7
TOTAL = 200
USUAL = 2e-5
BURNS_AT = 1500
"""Windows: four hours, in which all spans have been tried."""

Share = Callable[[int], float]


def named(row: int) -> tuple[tuple[str, str], ...]:
    return (("region", f"r{row}"),)


KNOWN = {named(row): row for row in ROWS.tolist()}


def burning(window: int) -> float:
    """A share that grows for 100 minutes, to a hundred times what it was."""
    return USUAL * (1 + max(0, window - BURNS_AT) / 6)


def counted(windows: int, share: Share, seed: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Windows of slices of which one fails by `share` and the others as usual."""
    random = np.random.default_rng(seed)
    column = 2 * METRICS.index("failures")
    for window in range(windows):
        counts = np.zeros((len(ROWS), WIDTH), np.int64)
        shares = np.full(len(ROWS), USUAL)
        shares[BROKEN] = share(window)
        counts[:, column] = random.poisson(TOTAL, len(ROWS))
        counts[:, column + 1] = random.binomial(counts[:, column], np.minimum(shares, 1.0))
        yield T0 + window * WINDOW_MS, counts


def heard(windows: int, share: Share, watch: DriftWatch, seed: int = 0) -> list[Alarm]:
    signs = [sign for at, counts in counted(windows, share, seed) for sign in watch.see(at, ROWS, counts, KNOWN)]
    return DEFAULTS.alarms(signs)


def test_a_slow_rise_is_alarmed_while_windows_show_one_or_none() -> None:
    alarms = heard(BURNS_AT + 600, burning, DriftWatch())
    assert {alarm.slice for alarm in alarms} == {named(BROKEN)}
    first = alarms[0]
    after = (first.window_ms - T0) // WINDOW_MS - BURNS_AT
    assert 0 < after < 360  # before the hour is over, at some 2 in 100,000 a window
    assert first.metric == "failures"
    assert first.metric in DRIFTING
    assert STEP < first.windows <= LONGEST
    assert first.bad >= 8
    assert first.bad / first.total > 2 * first.expected


@pytest.mark.parametrize("seed", range(5))
def test_what_is_as_usual_is_not_alarmed(seed: int) -> None:
    assert heard(3000, lambda _: USUAL, DriftWatch(), seed) == []


def test_what_is_over_is_no_longer_alarmed() -> None:
    alarms = heard(BURNS_AT + 1200, lambda window: burning(window) if window < BURNS_AT + 600 else USUAL, DriftWatch())
    last = (alarms[-1].window_ms - T0) // WINDOW_MS
    assert BURNS_AT + 590 < last < BURNS_AT + 600 + 5 * STEP


def test_a_row_that_is_another_slices_is_learned_anew() -> None:
    watch = DriftWatch()
    alarms = []
    for at, counts in counted(BURNS_AT + 400, burning):
        if (at - T0) // WINDOW_MS == BURNS_AT + 100:
            watch.forget(np.array([BROKEN]))
        alarms += list(watch.see(at, ROWS, counts, KNOWN))
    assert alarms == []


def test_a_checkpoint_goes_on_where_it_was() -> None:
    one, alarms, again = DriftWatch(), [], []
    other = DriftWatch()
    for at, counts in counted(BURNS_AT + 500, burning):
        if (at - T0) // WINDOW_MS == BURNS_AT + 100:  # in the middle of a step
            other = DriftWatch.from_state(orjson.loads(orjson.dumps(one.state())))
        alarms += list(one.see(at, ROWS, counts, KNOWN))
        if at >= T0 + (BURNS_AT + 100) * WINDOW_MS:
            again += list(other.see(at, ROWS, counts, KNOWN))
    assert again
    assert again == [alarm for alarm in alarms if alarm.window_ms >= T0 + (BURNS_AT + 100) * WINDOW_MS]


LEAF = ("north", "1", "uk", "tv", "tv-1", "t1", "dash")
ELSEWHERE = ("north", "1", "us", "tv", "tv-1", "t1", "dash")
SLOW = Alarm(
    slice=(("region", "uk"),), metric="failures", window_ms=T0, evidence=9.0, expected=1e-5, total=30_000.0, bad=12.0,
    windows=LONGEST // 2,
)  # fmt: skip


def windows(count: int, failures: int = 0, since: int = 0) -> Iterator[Window]:
    column = 2 * METRICS.index("failures")
    for place in range(since, since + count):
        window = Window(T0 + place * WINDOW_MS)
        for leaf in (LEAF, ELSEWHERE):
            row = window.row(leaf)
            row[column] = 100
            row[column + 1] = failures if leaf == LEAF and place % 6 == 0 else 0
        yield window


def at(window: Window, **changes: Any) -> Alarm:
    """SLOW, as of a window, with some fields changed."""
    return replace(SLOW, window_ms=window.start_ms, **changes)


def test_an_alarm_of_many_windows_is_an_outage_until_its_metric_is_as_usual() -> None:
    tracker = OutageTracker()
    states = []
    for place, window in enumerate(windows(900, failures=1)):
        broken = 30 <= place < 400
        if place >= 400:
            window.counts[LEAF][2 * METRICS.index("failures") + 1] = 0
        alarms = [at(window)] if broken and place % STEP == 0 else []
        states += [(place, outage) for outage in tracker.see(window, alarms)]
    assert [outage.state for _, outage in states if outage.state != "confirmed"] == ["recovering", "closed"]
    first = states[0][1]
    assert (first.state, dict(first.slice)) == ("confirmed", {"region": "uk"})
    assert first.sessions_hurt in {12, 13}  # what the alarm counted beyond the usual, and this window's
    assert first.started_ts < first.detected_ts - FINE * WINDOW_MS
    (evidence,) = first.evidence
    assert (evidence["metric"], evidence["windows"]) == ("failures", LONGEST // 2)
    closed = states[-1][0]
    assert 400 + DEFAULTS.closed_after < closed < 400 + DEFAULTS.closed_after + 3 * STEP + FINE


def test_sums_that_remember_an_outage_that_is_over_open_no_other() -> None:
    tracker = OutageTracker()
    last = 0
    for place, window in enumerate(windows(300)):
        alarms = [at(window)] if place == 36 else []
        if tracker.see(window, alarms) and tracker.outages == []:
            last = place
    assert last
    remembered = next(windows(1, since=300))
    assert tracker.see(remembered, [at(remembered)]) == []
    again = OutageTracker.from_state(orjson.loads(orjson.dumps(tracker.state())))
    later = next(windows(1, since=301))
    assert again.see(later, [at(later)]) == []
    for window in windows(LONGEST, since=302):
        again.see(window, [])
    new = next(windows(1, since=302 + LONGEST))
    assert [outage.state for outage in again.see(new, [at(new)])] == ["confirmed"]


def test_an_open_outage_of_the_metric_explains_it() -> None:
    tracker = OutageTracker()
    opened = []
    for place, window in enumerate(windows(60)):
        wider = at(window, slice=())
        opened += tracker.see(window, [at(window)] if place == 36 else [wider] if place == 48 else [])
    assert len({outage.outage_id for outage in opened}) == 1


def test_wider_slices_whose_sums_hold_the_trouble_do_not_rename_it() -> None:
    tracker = OutageTracker()
    told = []
    for place, window in enumerate(windows(150)):
        wider = at(window, slice=())
        if place == 36:
            told += tracker.see(window, [wider, at(window, evidence=12.0)])
        else:
            told += tracker.see(window, [wider] if place % STEP == 0 and place > 72 else [])
    assert "recovering" in {outage.state for outage in told}
    assert {tuple(outage.slice.items()) for outage in told} == {(("region", "uk"),)}
    assert len({outage.outage_id for outage in told}) == 1
