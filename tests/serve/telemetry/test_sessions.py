"""Sessions: what reports add up to in any order, what windows count, and a state that survives being written down."""

import random
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.telemetry.playback import MOST_BITRATES
from serve.telemetry.reports import DIMENSIONS, Report, context_of
from serve.telemetry.sessions import DEAD_MS, LINGER_MS, Sessions, Summary
from serve.telemetry.windows import ATTEMPTS, METRICS, WINDOW_MS, Window

T0 = 1_790_000_000_000
Row = tuple[int, dict[str, Any]]


def report(at: int, session: str = "a", *, late: int = 0, skew: int = 0, **values: Any) -> Report:
    """A report of something that happened `at` ms after T0, which arrived `late` ms later."""
    said = {"sid": session, "ts": T0 + at + skew, **values}
    return Report(session, T0 + at + late, said, context_of(said, {}))


PLAY: list[Row] = [
    (0, {"e": "ps", "sta": "s", "sn": 1, "cid": "t", "cdn": "north", "tb": {"v": 6000}}),
    (1_200, {"e": "ps", "sta": "p", "sn": 2, "br": {"v": 3000}}),
    (21_200, {"e": "bc", "sn": 3, "br": {"v": 6000}}),
    (30_000, {"e": "ps", "sta": "r", "sn": 4}),
    (34_000, {"e": "ps", "sta": "p", "sn": 5}),
    (40_000, {"e": "ps", "sta": "a", "sn": 6}),
    (50_000, {"e": "ps", "sta": "p", "sn": 7}),
    (55_000, {"e": "e", "ec": ["7"], "sn": 8}),
    (60_000, {"e": "ps", "sta": "e", "sn": 9}),
]


class Desk:
    """Sessions, with all that comes out of them."""

    def __init__(self, **more: Any) -> None:
        self.over: list[Summary] = []
        self.windows: list[Window] = []
        self.touched: set[str] = set()
        self.sessions = Sessions(T0, closed=self.over.append, **more)

    def hear(self, reports: Sequence[Report]) -> None:
        for one in reports:
            self.windows += self.sessions.advance(one.received_ms)
            self.sessions.take(one, one.received_ms)

    def wait_until(self, at: int) -> None:
        self.windows += self.sessions.advance(T0 + at)

    def count(self, metric: str) -> tuple[int, int]:
        column = 2 * METRICS.index(metric)
        rows = [row for window in self.windows for row in window.counts.values()]
        return sum(row[column] for row in rows), sum(row[column + 1] for row in rows)

    @property
    def attempts(self) -> int:
        return sum(row[ATTEMPTS] for window in self.windows for row in window.counts.values())


def reloaded(desk: Desk) -> Desk:
    """The same, after its sessions were written down and read again."""
    sessions = desk.sessions
    desk.touched |= sessions.touched
    each = [found.dump() for name in sorted(desk.touched) if (found := sessions.session(name))]
    dumped = orjson.loads(orjson.dumps([sessions.dump(), each]))
    desk.sessions = Sessions.load(dumped[0], dumped[1], closed=desk.over.append)
    return desk


def played(rows: Sequence[Row], **more: Any) -> list[Report]:
    return [report(at, **values, **more) for at, values in rows]


def summary_of(reports: Sequence[Report]) -> Summary:
    desk = Desk()
    desk.hear(reports)
    desk.wait_until(1_000_000)
    (found,) = desk.over
    return found


def test_a_session_adds_up() -> None:
    found = summary_of(played(PLAY))
    assert found.leaf == ("north", "", "", "", "", "t", "")
    assert found.started
    assert found.startup_ms == 1_200
    assert found.played_ms == 28_800 + 6_000 + 10_000
    assert (found.stalls, found.stall_ms) == (1, 4_000)
    assert found.rebuffer_ratio == pytest.approx(4 / 48.8)
    assert found.mean_kbps == pytest.approx((3000 * 20 + 6000 * 24.8) / 44.8)
    assert found.at_kbps == {3000: 20_000, 6000: 24_800}
    assert (found.switches, found.errors, found.end) == (1, 1, "ended")
    assert (found.first_ms, found.last_ms) == (T0, T0 + 60_000)


@given(st.randoms(use_true_random=False), st.integers(-(10**10), 10**10))
def test_order_repetition_and_clocks_do_not_matter(shuffle: random.Random, skew: int) -> None:
    first, *middle, last = played(PLAY, skew=skew)
    late = 61_000
    rows = [Report(one.session, T0 + late, one.values, one.context) for one in middle for _ in range(2)]
    shuffle.shuffle(rows)
    found = summary_of([first, *rows, Report(last.session, T0 + late, last.values, last.context), first])
    expected = summary_of(played(PLAY))
    for name in ("startup_ms", "played_ms", "stall_ms", "stalls", "switches", "errors", "end", "mean_kbps", "at_kbps"):
        assert getattr(found, name) == getattr(expected, name), name


def test_cumulative_figures_of_the_player_count_more() -> None:
    found = summary_of(
        played(
            [
                (0, {"e": "ps", "sta": "p", "msd": 700}),
                (30_000, {"e": "t", "sta": "p", "bsa": {"v": 3}, "bsda": {"v": 2500}}),
                (40_000, {"e": "ps", "sta": "q"}),
            ]
        )
    )
    assert (found.startup_ms, found.stalls, found.stall_ms, found.end) == (700, 3, 2500, "quit")


def test_requests_of_version_1_make_a_session_too() -> None:
    found = summary_of(
        played(
            [
                (0, {"ot": "m", "su": True}),
                (800, {"ot": "v", "br": 1000, "su": True}),
                (2_000, {"ot": "v", "br": 1000, "bl": 4000}),
                (6_000, {"ot": "v", "br": 2000, "bl": 100, "bs": True}),
            ]
        )
    )
    assert found.started
    assert found.startup_ms == 2_000
    assert (found.stalls, found.switches, found.end) == (1, 1, "vanished")


@pytest.mark.parametrize(
    ("rows", "starts", "failed"),
    [
        (PLAY, (1, 0), 0),
        ([(0, {"e": "ps", "sta": "s"}), (500, {"e": "ps", "sta": "q"})], (0, 0), 0),
        ([(0, {"e": "ps", "sta": "s"}), (5_000, {"e": "ps", "sta": "q"})], (1, 1), 0),
        ([(0, {"e": "ps", "sta": "s"}), (300, {"e": "e", "sta": "f", "ec": "drm"})], (1, 1), 0),
        ([(0, {"e": "ps", "sta": "s"})], (0, 0), 0),
        ([(0, {"e": "ps", "sta": "p"}), (9_000, {"e": "ps", "sta": "f"})], (1, 0), 1),
    ],
    ids=["fine", "left at once", "gave up", "no licence", "nothing ever", "broke"],
)
def test_windows_count_each_session_once(rows: list[Row], starts: tuple[int, int], failed: int) -> None:
    desk = Desk()
    desk.hear([one for one in played(rows) for _ in range(2)])
    desk.wait_until(1_000_000)
    assert (desk.count("start_failures"), desk.count("failures")[1], desk.attempts) == (starts, failed, 1)
    assert desk.count("start_timeouts")[1] == (rows == [(0, {"e": "ps", "sta": "s"})])
    assert len(desk.over) == 1
    assert len(desk.sessions) == 0


def test_windows_see_stalls_and_errors_when_they_are_there() -> None:
    desk = Desk()
    desk.hear(played(PLAY))
    desk.wait_until(70_000)
    stalls = 2 * METRICS.index("stalls")
    per_window = [next(iter(window.counts.values()))[stalls : stalls + 2] for window in desk.windows[:6]]
    assert per_window == [[1, 0], [1, 0], [1, 0], [1, 1], [0, 0], [1, 0]]
    assert desk.count("errors")[1] == 1
    assert desk.count("slow_starts") == (1, 0)


def test_low_bitrate_is_told_by_what_is_offered() -> None:
    desk = Desk()
    offered = {"tb": {"v": 6000}, "br": {"v": 600}}
    desk.hear(played([(0, {"e": "ps", "sta": "p", **offered}), (15_000, {"e": "bc", "br": {"v": 3000}})]))
    desk.wait_until(30_000)
    assert desk.count("low_bitrate") == (2, 1)


def test_silence_is_told_once_and_does_not_end_a_session_that_comes_back() -> None:
    desk = Desk()
    beats = [(at, {"e": "t", "sta": "p"}) for at in range(0, 120_001, 30_000)]
    desk.hear(played(beats))
    desk.wait_until(250_000)
    assert desk.count("silence")[1] == 1
    desk.hear([report(260_000, e="t", sta="p")])
    desk.wait_until(270_000)
    assert desk.over == []
    desk.wait_until(260_000 + DEAD_MS + 2 * WINDOW_MS)
    assert desk.count("silence")[1] == 2
    assert [one.end for one in desk.over] == ["vanished"]


def test_who_says_farewell_is_not_silent() -> None:
    desk = Desk()
    desk.hear(played(PLAY))
    desk.wait_until(600_000)
    assert desk.count("silence")[1] == 0


def test_an_id_that_plays_again_is_another_session() -> None:
    desk = Desk()
    desk.hear(played(PLAY))
    desk.hear([report(65_000, e="ps", sta="s"), report(66_000, e="ps", sta="p"), report(80_000, e="ps", sta="e")])
    desk.wait_until(80_000 + LINGER_MS + 2 * WINDOW_MS)
    assert [one.end for one in desk.over] == ["ended", "ended"]
    assert desk.attempts == 2


@pytest.mark.parametrize("delay", [10_000, LINGER_MS + 60_000, DEAD_MS - WINDOW_MS])
def test_what_is_sent_again_minutes_after_the_end_counts_once(delay: int) -> None:
    desk = Desk()
    failing: list[Row] = [(0, {"e": "ps", "sta": "s", "sn": 1}), (9_000, {"e": "e", "sta": "f", "sn": 2})]
    desk.hear(played(failing))
    desk.wait_until(9_000 + delay)
    desk = reloaded(desk)
    for at, values in failing:
        desk.hear([report(at, late=9_000 + delay - at, **values)])
    desk.wait_until(2_000_000)
    assert (desk.attempts, desk.count("start_failures"), len(desk.over)) == (1, (1, 1), 1)
    tally = desk.sessions.tally
    assert (tally.reports, tally.duplicates + tally.late) == (4, 2)
    assert len(desk.sessions) == 0


def test_an_id_that_was_told_of_plays_again_as_another_and_is_known_by_little() -> None:
    desk = Desk()
    desk.hear(played(PLAY))
    desk.wait_until(60_000 + LINGER_MS + 2 * WINDOW_MS)
    assert [one.end for one in desk.over] == ["ended"]
    known = desk.sessions.session("a")
    assert known is not None
    assert (known.recent, known.fold.at_kbps) == ([], {})
    desk.hear([report(200_000, e="ps", sta="s"), report(201_000, e="ps", sta="p"), report(280_000, e="ps", sta="e")])
    desk.wait_until(280_000 + LINGER_MS + 2 * WINDOW_MS)
    assert [one.end for one in desk.over] == ["ended", "ended"]
    assert desk.attempts == 2


SET_BACK = -3_600_000


def watched(minutes: int, *, set_back_at: int) -> list[Report]:
    """A viewing with a report every ten seconds; the player's clock is set back an hour in the middle."""
    rows: list[Row] = [(10_000 * place, {"e": "t", "sta": "p", "sn": place}) for place in range(6 * minutes)]
    end = 60_000 * minutes
    rows += [(end + 1, {"e": "e", "sn": 900}), (end + 5_000, {"e": "ps", "sta": "r", "sn": 901})]
    rows += [(end + 9_000, {"e": "ps", "sta": "p", "sn": 902}), (end + 20_000, {"e": "ps", "sta": "e", "sn": 903})]
    return [report(at, skew=SET_BACK if at >= set_back_at else 0, late=40, **values) for at, values in rows]


def test_a_clock_that_is_set_back_is_followed() -> None:
    desk = Desk()
    for one in watched(10, set_back_at=400_000):
        desk.hear([one])
        desk = reloaded(desk)  # whatever was lost so far is in the checkpoint
    desk.wait_until(2_000_000)
    (found,) = desk.over
    assert (found.end, found.errors, found.stalls, found.stall_ms) == ("ended", 1, 1, 4_000)
    assert found.played_ms == pytest.approx(600_000 + 5_000 + 11_000, abs=50)
    assert (found.first_ms, found.last_ms) == (T0 + 40, T0 + 620_040)
    assert desk.count("errors")[1] == 1
    assert desk.sessions.tally.late == 0


def test_reports_that_are_late_are_no_clock_that_was_set_back() -> None:
    desk = Desk()
    desk.hear(watched(10, set_back_at=10**9)[:50])
    kept = [report(1_000 * place, late=490_000, e="t", sta="p", sn=500 + place) for place in range(10)]
    desk.hear([Report("a", one.received_ms + place, one.values, {}) for place, one in enumerate(kept)])  # at once
    between = [report(60_000 + 10_000 * place, late=450_000, e="t", sn=600 + place) for place in range(8)]
    live = [report(505_000 + 10_000 * place, e="t", sta="p", sn=700 + place) for place in range(8)]
    desk.hear(sorted([*between, *live], key=lambda one: one.received_ms))
    session = desk.sessions.session("a")
    assert session is not None
    assert (session.offset, desk.sessions.tally.late) == (0, 18)


def test_memory_is_bounded_by_the_longest_silent() -> None:
    desk = Desk(most=100)
    desk.hear([report(place, f"s{place}", e="ps", sta="p") for place in range(100)])
    desk.hear([report(200, "s0", e="t"), report(201, "new", e="ps", sta="s")])
    assert len(desk.sessions) == 100
    assert "s0" in desk.sessions
    assert [one.session for one in desk.over] == ["s1"]
    assert desk.sessions.tally.evicted == 1


def test_the_cdn_of_a_session_may_change() -> None:
    desk = Desk()
    desk.hear([report(0, e="ps", sta="p", cdn="north"), report(5_000, e="t", cdn="south"), report(12_000, e="t")])
    desk.wait_until(20_000)
    places = [
        {leaf[DIMENSIONS.index("cdn")] for leaf, row in window.counts.items() if row[2 * METRICS.index("stalls")]}
        for window in desk.windows
    ]
    assert places == [{"south"}, {"south"}]


def noisy(seed: int, sessions: int = 40) -> list[Report]:
    random.seed(seed)
    reports = []
    for place in range(sessions):
        start = random.randrange(60_000)
        for at, values in PLAY:
            if random.random() < 0.95:
                late = random.choice((0, 0, 50, 4_000))
                reports.append(report(start + at, f"s{place}", late=late, **values))
    return sorted(reports, key=lambda one: one.received_ms)


def test_state_that_was_written_down_goes_on_as_if_nothing_had_been() -> None:
    reports = noisy(5)
    whole, halves = Desk(), Desk()
    whole.hear(reports)
    half = len(reports) // 2
    halves.hear(reports[:half])
    sessions = halves.sessions
    dumped = orjson.loads(orjson.dumps(sessions.dump()))
    each = [orjson.loads(orjson.dumps(found.dump())) for name in sessions.touched if (found := sessions.session(name))]
    halves.sessions = Sessions.load(dumped, each, closed=halves.over.append)
    halves.hear(reports[half:])
    for desk in (whole, halves):
        desk.wait_until(900_000)
    assert [window.dump() for window in halves.windows] == [window.dump() for window in whole.windows]
    assert sorted(halves.over, key=lambda one: one.session) == sorted(whole.over, key=lambda one: one.session)
    assert halves.sessions.tally == whole.sessions.tally


def test_windows_of_parts_add_up_to_those_of_the_whole() -> None:
    reports = noisy(6)
    whole, parts = Desk(), [Desk(), Desk()]
    whole.hear(reports)
    for one in reports:
        parts[len(one.session) % 2].hear([one])
    for desk in (whole, *parts):
        desk.wait_until(900_000)
    for place, window in enumerate(whole.windows):
        merged = Window.load(orjson.loads(orjson.dumps(parts[0].windows[place].dump())))
        merged.merge(parts[1].windows[place])
        assert merged.counts == window.counts


@given(st.lists(st.fixed_dictionaries({}, optional={
    "ts": st.integers(0, 10**13), "sta": st.sampled_from("spkrawefqd"), "e": st.sampled_from(["ps", "t", "e", "zz"]),
    "br": st.integers(0, 10**6) | st.fixed_dictionaries({"v": st.integers(0, 10**6)}), "bs": st.booleans(),
    "sn": st.integers(0, 9), "bsa": st.integers(0, 99), "bsda": st.integers(0, 10**9), "su": st.booleans(),
}), max_size=40))  # fmt: skip
def test_whatever_players_say_figures_stay_sane(said: list[dict[str, Any]]) -> None:
    desk = Desk()
    desk.hear([Report("a", T0 + 1000 * place, {"sid": "a", **one}, {}) for place, one in enumerate(said)])
    desk.wait_until(2_000_000)
    for one in desk.over:
        assert one.played_ms >= 0
        assert 0 <= one.rebuffer_ratio <= 1
        assert one.startup_ms >= 0
    for window in desk.windows:
        for row in window.counts.values():
            assert all(0 <= row[place + 1] <= row[place] for place in range(0, ATTEMPTS, 2))


DASH_JS: list[Row] = [
    # as dash.js 5.2.1 reports a start: a start-up time before anything is shown, waiting as stalling
    (3, {"e": "ps", "sta": "s", "sn": 1}),
    (9, {"e": "rr", "sta": "s", "sn": 2, "msd": 40, "rc": 200, "ttfb": 10, "ttlb": 34}),
    (0, {"e": "t", "sn": 0}),
    (90, {"e": "rr", "sta": "s", "sn": 3, "ttlb": 70, "br": {"v": 950, "a": 64}, "tb": {"v": 3000, "a": 64}}),
    (198, {"e": "ps", "sta": "r", "sn": 5, "br": {"v": 950, "a": 64}}),
    (600, {"e": "ps", "sta": "p", "sn": 9, "br": {"v": 950, "a": 64}}),
]


def test_a_start_up_time_told_before_anything_is_shown_is_none() -> None:
    found = summary_of([*played(DASH_JS), report(10_600, e="t", sta="p", sn=30)])
    assert (found.started, found.startup_ms, found.played_ms) == (True, 600, 10_000)
    assert (found.stalls, found.stall_ms) == (0, 0)
    told = summary_of(played([*DASH_JS[:-1], (600, {"e": "ps", "sta": "p", "sn": 9, "msd": 580})]))
    assert told.startup_ms == 580


def test_a_response_says_nothing_of_playback_at_the_time_of_its_request() -> None:
    # of what was cached dash.js tells the first request's time, with what is said now
    old = report(90, late=2_500, e="rr", sta="p", sn=12, br={"v": 3000}, bs=True, ttlb=70)
    found = summary_of([*played(DASH_JS), old, report(10_600, e="t", sta="p", sn=30)])
    assert (found.startup_ms, found.played_ms, found.stalls, found.switches) == (600, 10_000, 0, 0)
    assert found.mean_kbps == 950


def test_who_says_no_states_has_started_when_it_tells_how_long_that_took() -> None:
    # as the release build of Shaka Player 5.2.12 reports
    rows: list[Row] = [
        (0, {"e": "t", "sn": 0}),
        (80, {"e": "bc", "sn": 1, "br": [1014]}),
        (85, {"e": "rr", "sn": 2, "ttlb": 44}),
        (300, {"e": "rr", "sn": 8, "msd": 390, "ttlb": 93}),
        (10_393, {"e": "t", "sn": 17}),
    ]
    found = summary_of(played(rows))
    assert (found.started, found.startup_ms, found.played_ms) == (True, 390, 10_000)


def test_nobody_waits_while_a_player_preloads() -> None:
    desk = Desk()
    desk.hear([report(0, e="t", sn=0), report(5, e="ps", sta="d", sn=1), report(30_000, e="t", sta="d", sn=2)])
    desk.hear([report(60_000, e="t", sta="d", sn=3), report(70_000, e="ps", sta="s", sn=4)])
    desk.hear([report(70_900, e="ps", sta="p", sn=5), report(80_000, e="t", sta="p", sn=6)])
    desk.wait_until(90_000)
    assert desk.count("start_timeouts") == (1, 0)
    assert desk.count("slow_starts") == (1, 0)
    session = desk.sessions.session("a")
    assert session is not None
    assert session.summary().startup_ms == 900
    desk.hear([report(90_000, "b", e="ps", sta="d", sn=0), report(100_000, "b", e="ps", sta="s", sn=1)])
    desk.wait_until(160_000)
    assert desk.count("start_timeouts") == (2, 1)


def test_the_interval_is_between_reports_of_the_interval_whatever_else_is_told() -> None:
    desk = Desk()
    desk.hear([report(0, e="t", sta="s", sn=0), report(900, e="ps", sta="p", sn=1), report(28_000, e="bc", sn=2)])
    desk.hear([report(30_000, e="t", sta="p", sn=3)])
    session = desk.sessions.session("a")
    assert session is not None
    assert session.interval == 30_000
    desk.wait_until(100_000)
    assert desk.count("silence")[1] == 0
    desk.wait_until(120_000)
    assert desk.count("silence")[1] == 1


def test_what_version_1_asks_of_sound_is_neither_a_start_nor_the_bitrate() -> None:
    # as dash.js 5.2.1 asks
    rows: list[Row] = [
        (0, {"ot": "m"}),
        (40, {"ot": "i", "su": True}),
        (100, {"ot": "a", "br": 64, "tb": 64, "su": True}),
        (160, {"ot": "a", "br": 64, "tb": 64, "bs": True}),
        (165, {"ot": "v", "br": 950, "tb": 3000, "su": True}),
        (700, {"ot": "v", "br": 950, "tb": 3000}),
        (1_700, {"ot": "a", "br": 64, "tb": 64}),
        (2_700, {"ot": "v", "br": 950, "tb": 3000}),
    ]
    found = summary_of(played(rows))
    assert (found.startup_ms, found.played_ms, found.mean_kbps) == (700, 2_000, 950)
    assert (found.switches, found.stalls) == (0, 0)
    alone: list[Row] = [(at, {"ot": "a", "br": 64}) for at in range(0, 40_000, 2_000)]
    assert summary_of(played(alone)).started


def test_bitrates_that_are_measured_and_no_rungs_are_told_apart_within_bounds() -> None:
    rows: list[Row] = [(0, {"e": "ps", "sta": "p"})]
    rows += [(1_000 * place, {"e": "t", "sta": "p", "br": {"v": 1_000 + place}}) for place in range(1, 101)]
    found = summary_of(played([*rows, (101_000, {"e": "ps", "sta": "e"})]))
    assert len(found.at_kbps) == MOST_BITRATES
    assert sum(found.at_kbps.values()) == 100_000
    assert found.played_ms == 101_000, "of the first second no bitrate was told"
    assert 1_001 <= found.mean_kbps <= 1_100
