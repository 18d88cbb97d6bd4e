import json

import orjson
import pytest

from features.events import Event
from loadtests.bench import (
    ALONE,
    BUSY,
    FRESH,
    NAIVE,
    NOOP,
    PLAYHEAD,
    BenchReport,
    Round,
    fresh_home_pages,
    home_pages,
)
from loadtests.closed import ClosedResult
from loadtests.scenario import Audience

AUDIENCE = Audience([f"p{n}" for n in range(50)], ["t1", "t2"])


def result(p50_ms=1.0, rps=100.0, errors=None, degraded=0):
    latency = {"p50_ms": p50_ms, "p99_ms": p50_ms * 3}
    return ClosedResult(
        exchanges_rps=rps,
        exchanges=int(rps * 4),
        latencies=[latency],
        errors=errors or {},
        degraded=degraded,
        cpu_us_a_request=25.0,
    )


def one_round(*, slowdown=1.0, playhead_ms=2.0, fresh_ms=2.4, playhead_rps=650.0, errors=None, degraded=0):
    """Floor 1.0 + 0.3 + 0.2 + 0.1 = 1.6 ms, 1.3 without the encoder; naive 50 rps; a slow round slows all of it."""
    alone = {NOOP: 1.0, NAIVE: 25.0, PLAYHEAD: playhead_ms, FRESH: fresh_ms}
    busy = {NOOP: 3000.0, NAIVE: 50.0, PLAYHEAD: playhead_rps, FRESH: 400.0}
    results = {(name, ALONE): result(p50_ms=value * slowdown) for name, value in alone.items()}
    results |= {(name, BUSY): result(rps=value / slowdown) for name, value in busy.items()}
    results[PLAYHEAD, BUSY] = result(rps=playhead_rps / slowdown, errors=errors, degraded=degraded)
    return Round(results=results, encoder_ms=0.3 * slowdown, ranker_ms=0.2 * slowdown, redis_ms=0.1 * slowdown)


def met(report):
    return [one for *_, one in report.bars()]


def test_ratios_to_floor_and_naive():
    report = BenchReport(rounds=[one_round()])
    assert report.to_floor(PLAYHEAD) == pytest.approx(1.25)
    assert report.to_floor(FRESH) == pytest.approx(1.5)
    assert report.to_naive(PLAYHEAD) == pytest.approx(13)
    assert met(report) == [True, False, True, True, True]  # 13x meets 12, not 20


def test_a_slow_round_does_not_change_the_ratios():
    report = BenchReport(rounds=[one_round(slowdown=s) for s in (1.0, 3.0, 1.7)])
    assert report.to_floor(PLAYHEAD) == pytest.approx(1.25)
    assert report.to_naive(PLAYHEAD) == pytest.approx(13)


@pytest.mark.parametrize(
    ("wrong", "which"), [({"playhead_ms": 3.0}, 2), ({"playhead_rps": 500.0}, 0), ({"fresh_ms": 2.7}, 4)]
)
def test_what_falls_short_says_so(wrong, which):
    report = BenchReport(rounds=[one_round(**wrong)])
    assert not met(report)[which]
    assert any(line.startswith("fall short") for line in report.lines())


@pytest.mark.parametrize("wrong", [{"errors": {"http_5xx": 3}}, {"degraded": 40}])
def test_no_bar_of_a_target_is_met_by_its_bad_answers(wrong):
    report = BenchReport(rounds=[one_round(**wrong), one_round()])
    assert sum(report.errors.values()) > 0
    assert met(report) == [False, False, False, False, True]  # the last bar is another target's


def test_a_rare_degraded_answer_is_told_and_voids_nothing():
    report = BenchReport(rounds=[one_round(degraded=4)])
    assert report.errors == {"playhead: degraded": 4}
    assert met(report) == met(BenchReport(rounds=[one_round()]))


def test_markdown_and_json_hold_every_target():
    report = BenchReport(rounds=[one_round()], facts={"seed": 7, "commit": "abc"})
    text = report.markdown()
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {7}
    assert len(table) == 2 + 5
    assert "- seed: 7" in lines
    answer = json.loads(json.dumps(report.to_json()))
    assert set(answer["targets"]) == {NOOP, NAIVE, PLAYHEAD, FRESH}
    assert answer["floor_ms"] == pytest.approx(1.6)
    assert answer["to_floor_without_encoder"] == pytest.approx(2.0 / 1.3, abs=1e-3)
    assert answer["commit"] == "abc"


def test_pages_are_the_same_for_a_seed_and_cover_the_audience():
    assert home_pages(AUDIENCE, seed=1) == home_pages(AUDIENCE, seed=1) != home_pages(AUDIENCE, seed=2)
    assert len({exchange[0][1] for exchange in home_pages(AUDIENCE, seed=1)}) == 50


def test_each_fresh_page_follows_a_new_valid_event_of_its_profile():
    exchanges = fresh_home_pages(AUDIENCE, size=300, seed=1, run_id="r")
    ids = set()
    for (method, path, body), (_, page, _) in exchanges:
        assert (method, path) == ("POST", "/v1/events")
        (event,) = (Event.model_validate(one) for one in orjson.loads(body)["events"])
        assert page == f"/v1/home?profile_id={event.profile_id}"
        ids.add((event.event_id, event.ts))
    assert len(ids) == 300
