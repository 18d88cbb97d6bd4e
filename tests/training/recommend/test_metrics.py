"""Ranks among all titles."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.recommend.interactions import Interactions, Prefix
from training.recommend.metrics import rank_targets
from training.recommend.split import Split


def one_user(titles, v=6):
    """A user who took these rows, among v titles."""
    filler = [("other", f"t{row}", None) for row in range(1, v + 1)]
    return Interactions.build("one", [*filler, *(("me", f"t{row}", None) for row in titles)])


def rank(scores, history, target):
    interactions = one_user(history, v=len(scores) - 1)
    prefix = Prefix(1, len(scores) - 1, len(scores) - 1 + len(history))
    return rank_targets(lambda part: torch.tensor([scores]), interactions, [prefix], np.array([target]))


def test_seen_titles_and_padding_do_not_count():
    assert rank([99.0, 5.0, 4.0, 3.0, 2.0], history=[1, 2], target=4).ranks == [2]


def test_equal_scores_count_half():
    assert rank([0.0, 1.0, 1.0, 1.0], history=[], target=2).ranks == [2]


def test_a_target_that_was_seen_takes_part():
    assert rank([0.0, 3.0, 2.0, 1.0], history=[1, 2], target=1).ranks == [1]


def test_figures_of_known_ranks():
    ranked = rank([0.0, 3.0, 2.0, 1.0], history=[], target=2)
    metrics = ranked.metrics()
    assert metrics["hr@1"] == 0
    assert metrics["hr@5"] == 1
    assert metrics["ndcg@10"] == pytest.approx(1 / np.log2(3))
    assert metrics["mrr"] == pytest.approx(0.5)
    assert metrics["coverage@10"] == 1


@given(st.permutations(list(range(1, 7))), st.integers(1, 6))
def test_the_rank_is_the_place_in_the_sorted_list(order, target):
    scores = [0.0] * 7
    for place, row in enumerate(order):
        scores[row] = float(-place)
    assert rank(scores, history=[], target=target).ranks == [order.index(target) + 1]


def test_leave_one_out():
    interactions = Interactions.build("x", [("a", t, None) for t in "pqrs"] + [("b", t, None) for t in "pq"])
    split = Split.leave_one_out(interactions)
    assert [(p.user, len(p)) for p in split.train] == [(0, 2), (1, 2)]
    assert [(p.user, len(p)) for p in split.validation] == [(0, 2)]
    assert [(p.user, len(p)) for p in split.test] == [(0, 3)]
    assert [interactions.titles[row - 1] for row in (*split.validation_targets, *split.test_targets)] == ["r", "s"]
