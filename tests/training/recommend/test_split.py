"""What is new trains, old histories are rehearsed beside it, and who is held out trains nothing."""

import numpy as np
import pytest

from training.recommend.evaluate import playhead
from training.recommend.interactions import Interactions
from training.recommend.split import HELD_OUT, LEAST_NEW, Split, split_since
from training.recommend.train import Alone, FitSettings, _Run

SINCE_S = 1_000


def audience(users: int, new: int) -> Interactions:
    """Each user has four old visits; the first `new` of them have two new ones."""
    triples = []
    for user in range(users):
        triples += [(f"u{user}", f"t{(user + step) % 30}", float(100 + step)) for step in range(4)]
        if user < new:
            triples += [(f"u{user}", f"t{(user + 10 + step) % 30}", float(SINCE_S + 1 + step)) for step in range(2)]
    return Interactions.build("test", triples)


def test_users_with_something_new_train_validate_or_test_and_as_many_old_ones_are_rehearsed():
    interactions = audience(users=900, new=400)
    split = Split.newer(interactions, SINCE_S, seed=0)
    held = round(HELD_OUT * 400)
    assert len(split.validation) == len(split.test) == held
    trained = {prefix.user for prefix in split.train}
    rehearsed = {user for user in trained if user >= 400}
    assert (len(trained - rehearsed), len(rehearsed)) == (400 - 2 * held, 400 - 2 * held)
    validates, tests = ({prefix.user for prefix in part} for part in (split.validation, split.test))
    assert not trained & validates
    assert not trained & tests
    assert not validates & tests
    for prefix, target in zip(split.test, split.test_targets, strict=True):
        newest = interactions.offsets[prefix.user + 1] - 1
        assert (prefix.stop, target) == (newest, interactions.rows[newest])
    assert all(len(prefix) in {4, 6} for prefix in split.train), "whole histories"
    assert Split.newer(interactions, SINCE_S, seed=0).train == split.train
    assert Split.newer(interactions, SINCE_S, seed=1).train != split.train


@pytest.mark.parametrize(("new", "since_s", "is_newer"), [(LEAST_NEW, SINCE_S, True), (LEAST_NEW - 60, SINCE_S, False),
                                                          (LEAST_NEW, 0, False), (0, SINCE_S, False)])  # fmt: skip
def test_too_little_that_is_new_is_no_split_of_its_own(new, since_s, is_newer):
    split = split_since(audience(users=LEAST_NEW + 5, new=new), since_s, seed=0)
    assert (split.since_s > 0) is is_newer


def test_of_a_history_that_goes_on_only_what_is_new_is_fitted_and_of_an_old_one_all():
    interactions = audience(users=60, new=30)
    split = Split.newer(interactions, SINCE_S, seed=0)
    run = _Run(playhead(interactions, None), interactions, split, FitSettings(), 0, Alone())
    fresh = [prefix for prefix in split.train if len(prefix) == 6]
    old = [prefix for prefix in split.train if len(prefix) == 4]
    assert run._gradients(fresh) == 2 * len(fresh)
    assert run._gradients(old) == 4 * len(old)
    assert run._gradients([fresh[0], old[0]]) == 2 + 4


def test_nobody_with_something_new_holds_nobody_out():
    split = Split.newer(audience(users=5, new=0), SINCE_S, seed=0)
    assert (split.train, split.validation, split.test) == ((), (), ())
    assert isinstance(split.test_targets, np.ndarray)
