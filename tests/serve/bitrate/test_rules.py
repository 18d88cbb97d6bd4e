"""The simple rule: cautious, and never a surprise."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.bitrate.rules import SAFE_REBUFFER, choose
from serve.bitrate.sessions import Session

LADDER = (300.0, 750.0, 1200.0, 1850.0, 2850.0, 4300.0)


def steady(kbps: float, *, buffer_s: float = 20.0, last_rung: int = 5, samples: int = 6) -> Session:
    return Session(
        rungs_kbps=LADDER,
        places=range(6),
        throughput_kbps=[kbps] * samples,
        download_s=[1.0] * samples,
        buffer_s=buffer_s,
        last_rung=last_rung,
    )


def test_it_takes_the_highest_rung_within_its_share_of_the_throughput() -> None:
    assert [choose(steady(kbps)).rung for kbps in (200, 400, 1001, 1601, 2500, 4000, 6000)] == [0, 0, 1, 2, 3, 4, 5]


def test_a_short_buffer_holds_it_back() -> None:
    assert choose(steady(4000, buffer_s=30)).rung == 4
    assert choose(steady(4000, buffer_s=2)).rung < 4
    assert choose(steady(4000, buffer_s=0.1)).rung == 0
    assert choose(steady(4000, buffer_s=0.1)).rebuffer_probability > 0.9


def test_it_goes_up_one_rung_at_a_time() -> None:
    assert choose(steady(9000, last_rung=1)).rung == 2
    assert choose(steady(9000, last_rung=-1)).rung == 5


def test_without_samples_it_goes_by_the_prior_and_is_modest_without_one() -> None:
    fresh = replace(steady(1000, samples=0, last_rung=-1, buffer_s=0.0))
    assert choose(fresh).rung == 0
    fresh.prior_log_kbps = (9.0, 0.3)  # about 8 Mbit/s
    assert choose(fresh).rung == 5
    assert choose(fresh).throughput_kbps[1] == pytest.approx(8103, rel=1e-3)


def test_the_safe_rung_is_the_highest_below_the_stated_limit() -> None:
    session = steady(1500, buffer_s=5.0)
    safe = choose(session).safe_rung
    chances = []
    for rung in range(6):
        only = replace(session, rungs_kbps=LADDER[rung : rung + 1], places=(0,), last_rung=-1)
        chances.append(choose(only).rebuffer_probability)
    assert chances == sorted(chances)
    assert chances[safe] < SAFE_REBUFFER <= chances[safe + 1]


@given(st.floats(1, 1e5), st.floats(1.0, 4.0), st.floats(0, 60))
def test_more_throughput_never_lowers_the_rung(kbps: float, factor: float, buffer_s: float) -> None:
    slower, faster = (choose(steady(value, buffer_s=buffer_s)) for value in (kbps, kbps * factor))
    assert slower.rung <= faster.rung
    assert slower.safe_rung <= faster.safe_rung
