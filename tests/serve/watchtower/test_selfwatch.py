"""Playhead watching itself, by simulated windows: what is called, when it is over, and that calm is left alone."""

import json
from typing import Any

import numpy as np
import orjson
import pytest

from serve.errors import InvalidInput
from serve.histograms import ERROR, Histogram, add
from serve.vitals import Age
from serve.watchtower import selfwatch
from serve.watchtower.health import dump_change, dump_health, load_change, load_health
from serve.watchtower.selfwatch import SelfWatch
from serve.watchtower.thresholds import LEARN_WINDOWS, SCORE_HIGH, SCORE_LOW, SLACK, SLOW, Threshold
from tests.serve.watchtower.service import T0, WARM, Service


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"slower": 2.0}, "slow:/v1/home"),
        ({"errors": 0.1}, "errors:/v1/home"),
        ({"degraded": 0.2}, "degraded:/v1/home"),
    ],
)
def test_trouble_of_a_route_is_one_episode_with_an_end(change: dict[str, float], what: str) -> None:
    service = Service()
    assert service.run(WARM, service.answers) == set()
    assert service.run(5, lambda: service.answers(**change)) == {(what, "")}
    assert service.run(40, lambda: service.answers(**change)) == {(what, "")}
    (route,) = service.watch.health().routes
    assert (route.route, route.status, route.judged, len(route.reasons)) == ("/v1/home", "suspect", True, 1)
    service.run(20, service.answers)
    assert service.open == []
    assert service.run(30, service.answers) == set()
    assert service.total(what) == 1
    assert [(one.what, one.is_open) for one in service.changes] == [(what, True), (what, False)], "once an episode"
    assert 2 <= (service.changes[0].at_ms - T0) / 10_000 - WARM <= 5
    assert service.changes[0].said.startswith(f"{what.partition(':')[0]}: ")


def test_a_lasting_shift_is_still_one_episode() -> None:
    """The detector adopts it after half an hour; the episode is about what was usual before."""
    service = Service(rate=60)
    service.run(WARM, service.answers)
    service.run(300, lambda: service.answers(errors=0.3))
    assert service.open == [("errors:/v1/home", "")]
    assert service.total("errors:/v1/home") == 1
    service.run(40, service.answers)
    assert service.open == []


@pytest.mark.parametrize(("change", "signal"), [({"fallbacks": 0.1}, "degraded"), ({"slower": 2.0}, "slow")])
def test_a_new_version_that_is_worse_is_suspect_and_the_other_is_not(change: dict[str, float], signal: str) -> None:
    service = Service(replicas=4)
    assert service.run(WARM, lambda: service.decisions("old")) == set()
    before = service.health("old")
    assert (before.status, before.judged, before.reasons) == ("ok", True, ())

    def both() -> None:
        service.decisions("old", rate=180)
        service.decisions("new", rate=20, **change)  # five a replica: none of them could tell

    assert service.run(15, both) == {(f"{signal}:recommend", "new")}
    found = service.health("new")
    assert found.status == "suspect"
    assert len(found.reasons) == 1
    (reading,) = [one for one in found.readings if one.signal == signal]
    assert reading.since_ts is not None
    assert reading.before_total > 0
    assert reading.now_bad / reading.now_total > 3 * reading.before_bad / reading.before_total
    assert service.health("old").status == "ok"
    service.run(60, lambda: service.decisions("old"))  # rolled back
    assert service.health("new").status == "ok", "a version that answers no more has no episode"


def test_a_new_version_that_is_as_good_is_no_news() -> None:
    service = Service()

    def both() -> None:
        service.decisions("old", rate=150)
        service.decisions("new", rate=50, mean=2.0, spread=0.5)  # scores of its own scale

    service.run(WARM, lambda: service.decisions("old"))
    assert service.run(150, both) == set()
    assert service.health("new").judged


@pytest.mark.parametrize("change", [{"mean": 0.8}, {"spread": 0.3}, {"spread": 0.0}])
def test_scores_that_drift_are_suspect(change: dict[str, float]) -> None:
    service = Service()
    assert service.run(WARM, lambda: service.decisions("one")) == set()
    seen = service.run(20, lambda: service.decisions("one", **change))
    assert {what for what, _ in seen} <= {"score_high:recommend", "score_low:recommend"}
    health = service.health("one")
    assert health.status == "suspect"
    ends = {one.signal: one.threshold for one in health.readings}
    assert ends["score_low"] == pytest.approx(0.6 - 0.128, rel=0.05)
    assert ends["score_high"] == pytest.approx(0.6 + 0.128, rel=0.05)


@pytest.mark.parametrize("rate", [1, 5, 40])
def test_a_thousand_calm_windows_call_nothing(rate: int) -> None:
    service = Service(seed=rate, rate=rate)

    def play() -> None:
        service.answers(errors=0.01, degraded=0.02)
        service.answers(errors=0.0, degraded=0.5, route="/v1/bitrate")
        service.decisions("one", fallbacks=0.01)
        service.decisions("two", fallbacks=0.05, model="bitrate")

    assert service.run(1000, play) == set()


def test_what_is_read_no_more_is_stale_until_it_is_read_again() -> None:
    service = Service()
    service.run(3, lambda: None)
    assert service.watch.health().parts == (), "what was never read is not judged"
    service.parts = {"title_stats": Age(59.0, 60.0), "catalogue": Age(1.0, 120.0)}
    assert service.run(3, lambda: None) == set()
    service.parts["title_stats"] = Age(61.0, 60.0)
    assert service.run(1, lambda: None) == set(), "one late read is none"
    assert service.run(1, lambda: None) == {("stale:title_stats", "")}
    assert {one.part: one.status for one in service.watch.health().parts} == {
        "title_stats": "suspect",
        "catalogue": "ok",
    }
    service.parts["title_stats"] = Age(5.0, 60.0)
    service.turn()
    assert service.open == []
    assert service.total("stale:title_stats") == 1


def play(service: Service, *, slower: float = 1.0) -> None:
    service.answers(slower=slower)
    service.decisions("a", fallbacks=0.1 if slower > 1 else 0.002)


def test_a_restored_watch_judges_the_same() -> None:
    one, other = Service(), Service()
    for service in (one, other):
        service.run(90, lambda service=service: play(service))
    for windows, slower in ((40, 1.0), (6, 3.0), (3, 1.0)):
        one.watch = SelfWatch.from_state(json.loads(json.dumps(one.watch.state())))
        for service in (one, other):
            service.run(windows, lambda service=service, slower=slower: play(service, slower=slower))
        assert one.watch.state() == other.watch.state()
    assert one.open == [("degraded:recommend", "a"), ("slow:/v1/home", "")]
    assert one.total("slow:/v1/home") == 1
    assert one.changes == other.changes
    told = one.watch.health()
    assert load_health(dump_health(told)) == told
    assert [load_change(dump_change(change)) for change in one.changes] == one.changes


@pytest.mark.parametrize(
    "dumped", [b"{", b"[]", b'{"layout": 2}', b'{"layout": 1}', b'{"layout": 1, "as_of_ms": null}']
)
def test_what_is_no_health_is_refused(dumped: bytes) -> None:
    with pytest.raises(ValueError, match=r"health|JSON|unexpected|EOF"):
        load_health(dumped)


def test_a_state_of_another_kind_is_refused() -> None:
    with pytest.raises(InvalidInput, match="selfwatch"):
        SelfWatch.from_state({"kind": "ratio", "version": 1})


def test_memory_is_bounded() -> None:
    service = Service(rate=30)
    sizes = []
    for version in range(40):
        service.run(15, lambda version=version: service.decisions(f"v{version}", fallbacks=0.5 * (version % 2)))
        sizes.append(len(orjson.dumps(service.watch.state())))
    health = service.watch.health()
    assert len(health.versions) <= selfwatch.MOST_VERSIONS
    assert {one.version for one in health.alarms} <= {one.version for one in health.versions}
    assert max(sizes[10:]) < 1.5 * max(sizes[:10])
    for route in range(500):
        service.vitals[0].answered(f"/{route}", 200, 0.001, ())
    service.turn()
    assert len(service.watch.state()["routes"]) <= selfwatch.MOST_ROUTES


def values_of(numbers: Any) -> Histogram:
    histogram: Histogram = {}
    for number in numbers:
        add(histogram, float(number))
    return histogram


@pytest.mark.parametrize(
    ("signal", "share", "slack"), [(SLOW, 0.95, SLACK), (SCORE_HIGH, 0.9, 1.0), (SCORE_LOW, 0.1, 1.0)]
)
def test_a_threshold_is_the_quantile_of_the_first_windows(signal: str, share: float, slack: float) -> None:
    numbers = np.random.default_rng(3).lognormal(0.0, 0.5, (LEARN_WINDOWS, 300))
    threshold = Threshold(signal)
    for window in numbers:
        assert threshold.reading().threshold is None
        threshold.see(values_of(window), T0)
    exact = float(np.quantile(numbers, share, method="lower")) * slack
    assert threshold.reading().threshold == pytest.approx(exact, rel=ERROR * 1.001)


def test_a_threshold_that_has_become_useless_is_learned_anew() -> None:
    source = np.random.default_rng(4)
    threshold = Threshold(SLOW)
    for _ in range(WARM):
        threshold.see(values_of(source.lognormal(0.0, 0.2, 50)), T0)
    usual = threshold.value
    assert usual is not None
    for _ in range(9000):  # a day is what an episode lasts at most
        threshold.see(values_of(source.lognormal(0.0, 0.2, 8) * 1.8), T0)
        if threshold.series.since_ms is None and threshold.value not in {usual, None}:
            break
    assert threshold.value == pytest.approx(1.8 * usual, rel=0.1)
