"""Whoever is alike is rarely rejected, whoever is worse by the margin nearly always."""

import numpy as np
import pytest

from tests.training.gates.test_intervals import gains
from training.gates.noninferiority import FALSE_SLICES, Margin, is_better, judge

MARGIN = Margin(overall=0.05, slices=0.15)


def ask(random, profiles, *, slices=12, **how):
    candidate, champion, units = gains(random, profiles, **how)
    parts = random.integers(0, slices, profiles)[units]
    return judge(
        "ndcg@10", candidate, champion, units, {f"slice {n}": parts == n for n in range(slices)}, MARGIN,
        unit="profiles",
    )  # fmt: skip


@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_slices_reject_a_candidate_that_is_alike_as_rarely_as_stated(alike):
    random = np.random.default_rng(5)
    runs = 400
    rejected = sum(any(not check.passed for check in ask(random, 600, alike=alike)[0][1:]) for _ in range(runs))
    assert rejected / runs <= FALSE_SLICES + 3 * (FALSE_SLICES / runs) ** 0.5


def test_a_slice_that_is_much_worse_stops_a_candidate_that_is_as_good_overall():
    random = np.random.default_rng(6)
    candidate, champion, units = gains(random, 1500, alike=0.97)
    ill = units % 8 == 0
    candidate = np.where(ill, candidate * 0.6, candidate * 1.02)
    checks, _ = judge("ndcg@10", candidate, champion, units, {"ill": ill, "well": ~ill}, MARGIN, unit="profiles")
    assert [check.name for check in checks if not check.passed] == ["ndcg@10: ill"]


def test_five_per_cent_worse_is_rejected_however_few_there_are():
    random = np.random.default_rng(7)
    for profiles in (60, 600):
        passed = sum(ask(random, profiles, worse=0.05, alike=0.95)[0][0].passed for _ in range(200))
        assert passed <= 200 * 0.025 + 9  # 4 standard errors


def test_enough_units_are_enough():
    """An equal candidate is told how many profiles are needed; with as many it passes."""
    random = np.random.default_rng(8)
    needed = []
    for _ in range(20):
        first = ask(random, 150, alike=0.8)[0][0]
        if not first.passed:
            assert "too few" in first.text
            needed.append(int(first.text.split("about ")[1].split(" ")[0]))
    assert len(needed) > 5
    passed = sum(ask(random, int(np.median(needed)), alike=0.8)[0][0].passed for _ in range(100))
    assert passed >= 85


def test_small_slices_are_not_looked_at_and_better_must_be_shown():
    random = np.random.default_rng(9)
    checks, comparisons = ask(random, 100, slices=12, alike=0.5)
    assert len(checks) == 1  # each slice has about 8 profiles
    candidate, champion, units = gains(random, 800, alike=0.9)
    _, comparisons = judge("ndcg@10", candidate * 1.2, champion, units, {}, MARGIN, unit="profiles")
    assert is_better(comparisons[0])
    _, comparisons = judge("ndcg@10", champion, champion, units, {}, MARGIN, unit="profiles")
    assert not is_better(comparisons[0])
