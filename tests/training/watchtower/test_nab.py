"""The benchmark's rules against published figures, small cases worked by hand, and a plain reading of the rules."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from serve.errors import InvalidInput
from training.watchtower.detection import evaluate, playhead, standard_absolute_deviation
from training.watchtower.nab import (
    NEVER,
    PROFILES,
    Labelled,
    Rules,
    probation,
    read_corpus,
    report,
    reward,
    row_rewards,
)
from training.watchtower.series import Series

STANDARD, LOW_FP, LOW_FN = PROFILES
BAR = 60.0


@pytest.fixture(scope="session")
def nab() -> Path:
    default = Path(__file__).parents[4] / "shared" / "data"
    folder = Path(os.environ.get("PLAYHEAD_DATA", default)) / "nab"
    if not folder.is_dir():
        pytest.skip(f"no benchmark at {folder}")
    return folder


def labelled(rows, windows, name="group/one.csv"):
    times = np.arange(rows, dtype=np.float64) * 300
    series = Series(
        timestamps=tuple(str(one) for one in times), times=(times * 1e6).astype(np.int64).astype("datetime64[us]"),
        times_s=times, values=np.zeros(rows),
    )  # fmt: skip
    return Labelled(name=name, series=series, windows=tuple(windows))


def spoken(rows, *at):
    scores = np.zeros(rows)
    scores[list(at)] = 0.9
    return scores


def test_the_sigmoid_at_the_places_that_its_authors_name():
    got = reward(np.array([-1.0, -0.5, 0.0, 1.0, 3.0, 30.0]))
    assert got == pytest.approx([0.98661, 0.84828, 0.0, -0.98661, -1.0, -1.0], abs=1e-5)


def test_probation_is_15_percent_of_at_most_5000_rows():
    assert [probation(rows) for rows in (1000, 4032, 5000, 22000)] == [150, 604, 750, 750]


def test_a_published_row():
    """NAB's results/numenta/realTraffic/numenta_speed_7578.csv, 2015-09-12 00:16:00: 32 rows past a window of 29."""
    worth, window_of = row_rewards(1127, [(303, 331)])
    assert worth[363] * STANDARD.false_alarm == pytest.approx(-0.109276714495, abs=1e-12)
    assert worth[363] * LOW_FP.false_alarm == pytest.approx(-0.21855342899, abs=1e-11)
    assert worth[363] * LOW_FN.false_alarm == pytest.approx(-0.109276714495, abs=1e-12)
    assert window_of[[302, 303, 331, 332]].tolist() == [-1, 0, 0, -1]
    assert (STANDARD.miss, LOW_FP.miss, LOW_FN.miss) == (1.0, 1.0, 2.0)


def test_rewards_fall_within_a_window_and_after_it_and_are_whole_at_its_first_row():
    worth, _ = row_rewards(1000, [(300, 399)])
    assert worth[300] == pytest.approx(1.0)
    assert np.all(np.diff(worth[300:700]) <= 0)
    assert np.all(worth[:300] == -1.0)
    assert worth[-1] == -1.0


@pytest.mark.parametrize("profile", PROFILES, ids=lambda one: one.name)
def test_perfect_is_100_and_null_is_0(profile):
    corpus = [labelled(1000, [(300, 399), (600, 699)]), labelled(500, []), labelled(800, [(200, 279)])]
    rules = Rules(corpus)
    perfect = rules.best([spoken(1000, 300, 600), spoken(500), spoken(800, 200)], profile)
    assert perfect.score == pytest.approx(100.0)
    assert (perfect.hits, perfect.misses, perfect.false_alarms) == (3, 0, 0)
    null = rules.best([np.full(one, 0.5) for one in (1000, 500, 800)], profile)
    assert null.score == 0.0
    assert null.threshold == NEVER


def test_a_case_by_hand():
    """Two windows of 100; one found at its middle, one missed; one alarm far off, one just after the first window."""
    rules = Rules([labelled(1000, [(300, 399), (600, 699)])])
    scores = [spoken(1000, 350, 380, 200, 409)]
    middle = (2 / (1 + math.exp(-5 * 50 / 100)) - 1) / (2 / (1 + math.exp(-5)) - 1)
    after = 2 / (1 + math.exp(5 * 10 / 99)) - 1
    # against the null detector: what is won on the hit, and what the alarms cost; over what a perfect one wins
    for profile, miss in ((STANDARD, 1.0), (LOW_FP, 1.0), (LOW_FN, 2.0)):
        won = middle + miss + profile.false_alarm * (-1.0 + after)
        assert rules.at(scores, profile, 0.5).score == pytest.approx(100 * won / (2 * (1 + miss)))
    outcome = rules.at(scores, STANDARD, 0.5)
    assert (outcome.hits, outcome.misses, outcome.false_alarms) == (1, 1, 2)


def test_probation_counts_for_nothing():
    rules = Rules([labelled(1000, [(300, 399)])])
    early = spoken(1000, *range(150))
    assert rules.at([early], STANDARD, 0.5).score == 0.0
    assert rules.at([early], STANDARD, 0.5).false_alarms == 0


def test_only_the_earliest_in_a_window_counts():
    rules = Rules([labelled(1000, [(300, 399)])])
    once, often = spoken(1000, 320), spoken(1000, *range(320, 400))
    assert rules.at([once], STANDARD, 0.5).score == rules.at([often], STANDARD, 0.5).score


def plainly(corpus, scores, profile, threshold):
    """The rules read off the paper, row by row."""
    total = possible = 0.0
    for one, found in zip(corpus, scores, strict=True):
        rows = len(found)
        for first, last in one.windows:
            width = last - first + 1
            inside = [row for row in range(max(first, one.probation), last + 1) if found[row] >= threshold]
            gains = [2 / (1 + math.exp(-5 * (last - row + 1) / width)) - 1 for row in inside]
            total += max(gains) / (2 / (1 + math.exp(-5)) - 1) * profile.hit + profile.miss if gains else 0.0
            possible += profile.hit + profile.miss
        for row in range(one.probation, rows):
            if found[row] < threshold or any(first <= row <= last for first, last in one.windows):
                continue
            before = [(first, last) for first, last in one.windows if last < row]
            cost = 1.0
            if before:
                first, last = before[-1]
                place = (row - last) / (last - first)
                cost = 1.0 if place >= 3 else 1 - 2 / (1 + math.exp(5 * place))
            total -= cost * profile.false_alarm
    return 100 * total / possible


def test_the_sweep_agrees_with_a_plain_reading():
    random = np.random.default_rng(7)
    corpus = [
        labelled(700, [(200, 260), (400, 430)], "a/1"), labelled(400, [(100, 180)], "a/2"), labelled(300, [], "b/3"),
    ]  # fmt: skip
    scores = [np.round(random.random(len(one.series.values)) ** 4, 2) for one in corpus]
    scores[0][210] = scores[1][130] = scores[0][405] = 0.99
    rules = Rules(corpus)
    thresholds = [NEVER, *sorted({score for one in scores for score in one.tolist()}, reverse=True)]
    for profile in PROFILES:
        by_hand = {threshold: plainly(corpus, scores, profile, threshold) for threshold in thresholds}
        best = rules.best(scores, profile)
        assert best.score == pytest.approx(max(by_hand.values()))
        assert by_hand[best.threshold] == pytest.approx(best.score)
        for threshold in thresholds[::20]:
            assert rules.at(scores, profile, threshold).score == pytest.approx(by_hand[threshold])


def test_groups_are_judged_by_the_others_threshold():
    corpus = [labelled(1000, [(300, 399)], "a/1"), labelled(1000, [(300, 399)], "b/2")]
    loud, quiet = spoken(1000, 300), spoken(1000, 300) / 3
    told = report(corpus, {"a/1": loud, "b/2": quiet})["groups"]
    assert told["a"]["own_threshold"] == told["b"]["own_threshold"] == pytest.approx(100.0)
    assert told["a"]["others_threshold"] == pytest.approx(100.0)  # a lower threshold finds it too
    assert told["b"]["others_threshold"] == 0.0


def test_a_folder_that_is_no_benchmark(tmp_path):
    with pytest.raises(InvalidInput) as refused:
        read_corpus(tmp_path)
    assert refused.value.field == "--nab"
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "combined_windows.json").write_text(json.dumps({"a/b.csv": []}))
    with pytest.raises(InvalidInput, match="none of 1"):
        read_corpus(tmp_path)
    (tmp_path / "labels" / "combined_windows.json").write_text("[1]")
    with pytest.raises(InvalidInput):
        read_corpus(tmp_path)


def test_the_bar(nab):
    """Playhead holds its bar on the published part, and does far better than the best of River's."""
    corpus = read_corpus(nab)
    ours, scores = evaluate(corpus, playhead, "playhead")
    rivals, _ = evaluate(corpus, standard_absolute_deviation, "sad")
    assert ours["standard"] >= BAR
    assert ours["reward_low_fp"] >= 50.0
    assert ours["reward_low_fn"] >= BAR
    assert ours["standard"] > rivals["standard"] + 10
    held_out = [one["others_threshold"] for one in ours["groups"].values()]
    assert min(held_out) >= 50.0  # no folder lives off a threshold of its own
    assert all(one.min() >= 0.0 and one.max() < 1.0 for one in scores.values())
