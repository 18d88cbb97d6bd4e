"""Evenings that were watched: kept as they are, made anew where they are damaged, scored by the audience's truth."""

from dataclasses import replace
from pathlib import Path

import pytest

from deployments import evenings
from deployments.evenings import Evening, gate_evenings, training_evenings, watch_evening
from loadtests.audience.world import FIRST_DAY_MS, HOUR_MS
from serve.watchtower.outages import Outage
from serve.watchtower.settings import DEFAULTS
from training.detectors.days import Called, replay

START = FIRST_DAY_MS + 18 * HOUR_MS


@pytest.fixture(scope="module")
def evening() -> Evening:
    return watch_evening(3, START, viewers=100, lasts_ms=HOUR_MS, incidents=1, quiet_ms=HOUR_MS // 4)


def test_a_file_gives_the_same_evening(evening: Evening) -> None:
    again = Evening.load(evening.dump(3))
    assert list(again.seen()) == list(evening.seen())
    assert replay(again, [DEFAULTS]) == replay(evening, [DEFAULTS])
    dumped = evening.dump(3)
    first = dumped.index(b"told.npy") + 60  # among the first compressed bytes
    for damaged in (b"", dumped[:-200], dumped[:first] + b"\xff" * 40 + dumped[first + 40 :]):
        with pytest.raises(ValueError, match="no evening"):
            Evening.load(damaged)


def test_calls_are_scored_by_what_is_true(evening: Evening) -> None:
    (truth,) = evening._truths
    incident, began = truth.incident, truth.incident.start_ms
    right = Outage(
        outage_id="a", state="closed", slice=dict(incident.slice), effects=(), started_ts=began,
        detected_ts=began + 20_000, updated_ts=began,
    )  # fmt: skip
    early = replace(right, outage_id="b", detected_ts=began - 60_000)
    score = evening.score([
        Called(outage=right, confirmed_ms=began + 50_000), Called(outage=early, confirmed_ms=began),
        Called(outage=replace(early, outage_id="c"), confirmed_ms=None),
    ])  # fmt: skip
    (found,) = score.found
    assert (found.suspected_s, found.confirmed_s, found.first) == (20.0, 50.0, True)
    assert (score.false_alarms, score.false_suspicions) == (1, 1)
    assert evening.score([]).found[0].confirmed_s is None


def test_evenings_are_kept_and_gates_ask_about_later_ones_that_no_training_draws(
    tmp_path: Path, evening: Evening, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []

    def watch(seed: int, start_ms: int) -> Evening:
        made.append((seed, start_ms))
        return evening

    monkeypatch.setattr(evenings, "watch_evening", watch)
    told: list[tuple[str, int, int]] = []
    training_evenings(7, tmp_path, lambda *one: told.append(one), count=2)
    assert told[-1] == ("evenings", 2, 2)
    trained = list(made)
    training_evenings(7, tmp_path, lambda *_: None, count=2)
    assert made == trained, "they were kept"
    (path, _) = sorted(tmp_path.iterdir())
    path.write_bytes(b"damaged")
    training_evenings(7, tmp_path, lambda *_: None, count=2)
    assert len(made) == 3
    made.clear()
    gate_evenings(tmp_path, lambda *_: None)
    assert len(made) == evenings.GATE_EVENINGS
    assert min(start for _, start in made) > max(start for _, start in trained)
    most = evenings.TRAINING_SEEDS * 1000 + 100
    assert not {seed for seed, _ in made} & set(range(most))
