"""How playback goes by network and title: sums that forget, shares that lean on the whole audience's, and bounds."""

import random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.qoe import Qoe
from serve.telemetry.reports import DIMENSIONS
from serve.telemetry.windows import COLUMN, METRICS, WINDOW_MS, Leaf, Window
from serve.watchtower.networks import KEEP
from serve.watchtower.qoe import FORGOTTEN, LEAST_WEIGHT, PRIOR, QoeSums

T0 = 1_790_000_000_000 // WINDOW_MS * WINDOW_MS
HALF_LIFE = 180
"""Windows in half an hour."""

Counts = dict[str, tuple[int, int]]
"""Metric -> total and bad."""

SHARES = ("start_failures", "slow_starts", "stalls", "failures", "low_bitrate")


def leaf(cdn: str = "", asn: str = "", title: str = "", device: str = "tv") -> Leaf:
    named = {"cdn": cdn, "asn": asn, "title": title, "device": device}
    return tuple(named.get(dimension, "") for dimension in DIMENSIONS)


def window(leaves: dict[Leaf, Counts], number: int = 0) -> Window:
    made = Window(T0 + number * WINDOW_MS)
    for one, counts in leaves.items():
        row = made.row(one)
        for metric, (total, bad) in counts.items():
            row[COLUMN[metric]], row[COLUMN[metric] + 1] = total, bad
    return made


def random_windows(count: int, seed: int = 0, titles: int = 6) -> list[Window]:
    rng = random.Random(seed)
    made = []
    for number in range(count):
        leaves: dict[Leaf, Counts] = {}
        for _ in range(12):
            counts = {metric: (total := rng.randrange(30), rng.randint(0, total)) for metric in METRICS}
            one = leaf(rng.choice(("a", "b", "")), rng.choice(("1", "2", "")), f"t{rng.randrange(titles)}")
            leaves[one] = counts
        made.append(window(leaves, number))
    return made


def shrunk(bad: float, total: float, usual: float) -> float:
    return (bad + PRIOR * usual) / (total + PRIOR)


def test_what_windows_count_becomes_shares() -> None:
    sums = QoeSums()
    sums.add(
        window(
            {
                leaf("a", "1", "t"): {
                    "errors": (300, 9), "start_failures": (40, 6), "start_timeouts": (37, 3), "slow_starts": (34, 17),
                    "stalls": (200, 10), "failures": (250, 5), "low_bitrate": (100, 40), "silence": (300, 30),
                },
                leaf("a", "1", "u", device="phone"): {"errors": (100, 0), "stalls": (100, 0)},
                leaf("b", "", ""): {"errors": (600, 0), "stalls": (700, 90)},
            }
        )
    )  # fmt: skip
    (network,) = sums.networks().values()
    assert sums.networks() == {("a", "1"): network}
    assert network == Qoe(
        weight=406,
        start_failures=pytest.approx(shrunk(9, 43, 9 / 43)),
        slow_starts=pytest.approx(0.5),
        stalls=pytest.approx(shrunk(10, 300, 0.1)),
        failures=pytest.approx(0.02),
        low_bitrate=pytest.approx(0.4),
        last_ts_ms=T0 + WINDOW_MS,
    )
    titles = sums.titles()
    assert set(titles) == {"t", "u"}
    assert titles["t"].stalls == pytest.approx(shrunk(10, 200, 0.1))
    assert titles["u"].stalls == pytest.approx(shrunk(0, 100, 0.1))
    assert titles["u"].low_bitrate == pytest.approx(0.4), "nothing was counted: as everyone"


def test_a_title_that_never_starts_is_known() -> None:
    sums = QoeSums()
    sums.add(window({leaf(title="broken"): {"start_failures": (50, 50)}, leaf(): {"start_failures": (950, 0)}}))
    assert sums.titles()["broken"].weight == 50
    assert sums.titles()["broken"].start_failures == pytest.approx(shrunk(50, 50, 0.05))


def test_half_is_forgotten_in_half_an_hour_and_in_the_end_all() -> None:
    sums = QoeSums()
    sums.add(window({leaf(title="t"): {"errors": (160, 0), "stalls": (160, 40)}}))
    newest = T0 + WINDOW_MS
    for number in range(1, HALF_LIFE + 1):
        sums.add(window({}, number))
    found = sums.titles()["t"]
    assert found.weight == pytest.approx(80)
    assert found.stalls == pytest.approx(shrunk(20, 80, 0.25))
    assert found.last_ts_ms == newest, "nothing was heard since"
    sums.add(window({leaf(title="t"): {"errors": (80, 0), "stalls": (80, 80)}}, HALF_LIFE + 1))
    assert sums.titles()["t"].weight == pytest.approx(80 * KEEP + 80)
    assert sums.titles()["t"].stalls == pytest.approx((20 * KEEP + 80) / (80 * KEEP + 80))
    for number in range(HALF_LIFE + 2, 12 * HALF_LIFE):
        sums.add(window({}, number))
    assert sums.titles() == {}
    assert orjson.loads(orjson.dumps(sums.dump()))[1:] == [[[], [], []], [[], [], []]]


def test_little_is_not_told() -> None:
    sums = QoeSums()
    sums.add(window({leaf(title=f"t{count}"): {"errors": (count, 0)} for count in (1, 19, 20, 21)}))
    assert LEAST_WEIGHT == 20
    assert set(sums.titles()) == {"t20", "t21"}


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 1000), st.integers(0, 1000))
def test_a_share_lies_between_what_was_heard_and_what_is_usual(bad: int, good: int, others: int, more: int) -> None:
    sums = QoeSums()
    total, of_others = bad + good, others + more
    sums.add(
        window(
            {
                leaf(title="t"): {"errors": (20, 0), "stalls": (total, bad)},
                leaf(title="other"): {"stalls": (of_others, others)},
            }
        )
    )
    share = sums.titles()["t"].stalls
    everyone = total + of_others
    usual = (bad + others) / everyone if everyone else 0.0
    heard = bad / total if total else usual
    assert min(heard, usual) - 1e-12 <= share <= max(heard, usual) + 1e-12
    assert 0 <= share <= 1
    assert abs(share - heard) * (total + PRIOR) == pytest.approx(abs(usual - heard) * PRIOR, abs=1e-9)


def test_it_is_bounded_and_the_smallest_are_forgotten_first() -> None:
    sums = QoeSums(most=3)
    sums.add(window({leaf(f"c{count}", "1", f"t{count}"): {"errors": (count, 0)} for count in (40, 90, 25, 60, 30)}))
    assert set(sums.titles()) == {"t90", "t60", "t40"}
    assert set(sums.networks()) == {("c90", "1"), ("c60", "1"), ("c40", "1")}
    sums.add(window({leaf(title="new"): {"errors": (50, 0)}, leaf(title="small"): {"errors": (25, 0)}}, 1))
    assert set(sums.titles()) == {"t90", "t60", "new"}
    ties = QoeSums(most=2)
    ties.add(window({leaf(title=name): {"errors": (30, 0)} for name in ("c", "a", "d", "b")}))
    assert set(ties.titles()) == {"a", "b"}
    assert set(ties.dump()[2][0]) == {"a", "b"}
    forgotten = QoeSums()
    forgotten.add(window({leaf(title="t"): {"errors": (1, 0)}}))
    for number in range(1, HALF_LIFE + 2):
        forgotten.add(window({}, number))
    assert FORGOTTEN == 0.5
    assert forgotten.dump()[2][0] == []


@pytest.mark.parametrize("most", [4, 100])
def test_it_goes_on_exactly_where_it_was_left(most: int) -> None:
    whole, broken = QoeSums(most=most), QoeSums(most=most)
    for number, one in enumerate(random_windows(50)):
        whole.add(one)
        shuffled = Window(one.start_ms, dict(random.Random(number).sample(list(one.counts.items()), len(one.counts))))
        broken.add(shuffled)
        if number % 7 == 0:
            broken = QoeSums.load(orjson.loads(orjson.dumps(broken.dump())), most=most)
    assert whole.networks() == broken.networks()
    assert whole.titles() == broken.titles()
    assert len(whole.networks()) == 4
    assert len(whole.titles()) == min(most, 6)


def test_it_is_what_adding_up_by_hand_gives() -> None:
    sums, windows = QoeSums(), random_windows(40, seed=3)
    for one in windows:
        sums.add(one)
    place = DIMENSIONS.index("title")
    for metric in SHARES[1:]:
        bad, total, usual_bad, usual_total = 0.0, 0.0, 0.0, 0.0
        for age, one in enumerate(reversed(windows)):
            for key, row in one.counts.items():
                faded = KEEP**age
                usual_total += faded * row[COLUMN[metric]]
                usual_bad += faded * row[COLUMN[metric] + 1]
                if key[place] == "t2":
                    total += faded * row[COLUMN[metric]]
                    bad += faded * row[COLUMN[metric] + 1]
        assert getattr(sums.titles()["t2"], metric) == pytest.approx(shrunk(bad, total, usual_bad / usual_total))


def test_no_window_at_all_says_nothing() -> None:
    sums = QoeSums()
    sums.add(window({}))
    assert (sums.networks(), sums.titles()) == ({}, {})
    assert QoeSums.load(sums.dump()).titles() == {}
