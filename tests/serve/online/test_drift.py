"""Drift: what chance makes of the index is taken off, a change is seen, and a watch goes on where it was."""

import math
import random

import numpy as np
import orjson
import pytest

from serve.online.adaptive import FIRST, MOST, AdaptiveMean
from serve.online.drift import DRIFT, ENOUGH, LEAST, WARN, DriftWatch, stability_index
from serve.online.reference import Play, Reference

SHARES = {f"g{n}": share for n, share in enumerate((0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05))}
AT = 179_000_000


def test_the_index_of_the_same_shares_is_none_however_few_the_plays() -> None:
    rng = np.random.default_rng(0)
    for plays in (LEAST, ENOUGH, 5_000):
        draws = rng.multinomial(plays, list(SHARES.values()), 2_000)
        found = [stability_index(dict(zip(SHARES, one, strict=True)), SHARES) for one in draws.tolist()]
        assert np.mean(found) < 0.012, "what chance makes is taken off"
        assert max(found) < WARN


def test_the_index_of_others_is_what_the_formula_says() -> None:
    moved = dict(zip(SHARES, reversed(SHARES.values()), strict=True))
    exact = sum((moved[one] - SHARES[one]) * math.log(moved[one] / SHARES[one]) for one in SHARES)
    assert stability_index({one: 1e6 * share for one, share in moved.items()}, SHARES) == pytest.approx(exact, rel=1e-3)
    assert stability_index({"unheard-of": 500.0}, SHARES) > DRIFT


def reference() -> Reference:
    genres = {f"t{n}": (f"g{n}",) for n in range(8)}
    return Reference({"genre": SHARES}, genres, {f"t{n}": 100 - n for n in range(8)})


def fed(watch: DriftWatch, at: int, buckets: int, rng: random.Random, weights: list[float]) -> int:
    for one in range(at, at + buckets):
        for number in range(30):
            (title,) = rng.choices(range(8), weights)
            watch.played(one, Play(profile_id=f"p{one}-{number}", title_id=f"t{title}", ts=one * 10_000))
        watch.shown(100)
        for _ in range(30):
            watch.first_played(0.5)
        watch.close(one)
    return at + buckets


def test_a_change_of_taste_is_noticed_within_minutes_and_its_end_too() -> None:
    rng, watch = random.Random(1), DriftWatch("a" * 12, reference())
    usual = list(SHARES.values())
    at = fed(watch, AT, 60, rng, usual)
    assert watch.told(at - 1)["status"] == "steady"
    changed, at = at, fed(watch, at, 18, rng, usual[::-1])
    watch = DriftWatch.from_state(orjson.loads(orjson.dumps(watch.state())), reference())
    told = watch.told(at - 1)
    assert (told["status"], told["signals"][0]["from_start"]) == ("drifting", False)
    assert 0 < told["since_ts"] - changed * 10_000 <= 180_000
    at = fed(watch, at, 30, rng, usual)
    assert watch.told(at - 1)["status"] == "steady"


def test_one_that_was_never_alike_says_so() -> None:
    watch = DriftWatch("a" * 12, reference())
    at = fed(watch, AT, 20, random.Random(1), list(SHARES.values())[::-1])
    assert watch.told(at - 1)["signals"][0]["from_start"]


def test_few_plays_and_one_busy_viewer_are_not_judged() -> None:
    watch = DriftWatch("a" * 12, reference())
    for at in range(AT, AT + 200):
        for _ in range(30):
            watch.played(at, Play(profile_id="busy", title_id="t7", ts=at * 10_000))
        watch.close(at)
    (genre, *_) = watch.told(at)["signals"]
    assert (genre["state"], genre["value"]) == ("waiting", None)


def series(rng: random.Random, mean: float, count: int) -> list[float]:
    return [min(max(rng.gauss(mean, 0.04), 0.0), 1.0) for _ in range(count)]


def test_a_mean_that_falls_is_told_with_what_it_was_and_recovers() -> None:
    rng, mean = random.Random(2), AdaptiveMean()
    for place, value in enumerate(series(rng, 0.3, 300)):
        mean.see(value, place)
    assert mean.since_ts is None
    for place, value in enumerate(series(rng, 0.2, 60)):
        mean.see(value, 300 + place)
    assert mean.since_ts is not None
    assert mean.since_ts < 345
    assert mean.before == pytest.approx(0.3, abs=0.03)
    assert mean.mean == pytest.approx(0.2, abs=0.03)
    for value in series(rng, 0.3, 150):
        mean.see(value, 400)
    assert mean.since_ts is None


def test_a_rise_and_noise_are_no_fall() -> None:
    rng, mean = random.Random(3), AdaptiveMean()
    for place, value in enumerate([*series(rng, 0.2, 1_500), *series(rng, 0.3, 200)]):
        mean.see(value, place)
        assert mean.since_ts is None


def test_a_mean_goes_on_where_it_was_and_remembers_no_more_than_it_may() -> None:
    rng, one = random.Random(4), AdaptiveMean()
    values = [*series(rng, 0.3, MOST + 400), *series(rng, 0.24, 60)]
    other = AdaptiveMean()
    for place, value in enumerate(values):
        one.see(value, place)
        other.see(value, place)
        assert len(other.state()["values"]) <= MOST
        if place % 300 == 0:
            other = AdaptiveMean.from_state(orjson.loads(orjson.dumps(other.state())))
        assert (one.since_ts, one.before, one.count) == (other.since_ts, other.before, other.count)
    assert one.since_ts is not None
    assert AdaptiveMean().mean is None
    assert FIRST > 1
