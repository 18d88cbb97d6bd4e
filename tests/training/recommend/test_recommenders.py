"""Every recommender learns what there is to learn from a small audience."""

import numpy as np
import pytest
import torch

from tests.training.recommend import audience
from training.recommend.baselines import ItemKnn, popularity
from training.recommend.evaluate import playhead, sasrec
from training.recommend.split import Split
from training.recommend.train import FitSettings, fit, rank_by_model

QUICK = FitSettings(epochs=12, patience=12, warmup=10, batch=16)


@pytest.fixture(scope="module")
def interactions():
    return audience.interactions()


@pytest.fixture(scope="module")
def split(interactions):
    return Split.leave_one_out(interactions)


class RecommenderContract:
    """What a new recommender's test inherits.

    Attributes:
        expected_ndcg: floor of NDCG@10 on the small audience; a shuffled order has 0.11.
    """

    expected_ndcg: float

    @classmethod
    def rank(cls, interactions, split):
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def ranked(cls, interactions, split):
        return cls.rank(interactions, split)

    def test_its_quality_is_above_its_floor(self, ranked):
        assert ranked.metrics()["ndcg@10"] >= self.expected_ndcg

    def test_it_ranks_every_target_among_the_titles(self, ranked, interactions, split):
        assert len(ranked.ranks) == len(split.test)
        assert ranked.ranks.min() >= 1
        assert ranked.ranks.max() <= len(interactions.titles)

    def test_padding_is_never_shown(self, ranked):
        assert not ranked.shown[0]

    def test_it_is_the_same_again(self, ranked, interactions, split):
        np.testing.assert_allclose(self.rank(interactions, split).ranks, ranked.ranks)


class SequenceContract(RecommenderContract):
    """A recommender that is fitted by training.recommend.train.fit."""

    expected_ndcg = 0.6

    @classmethod
    def build(cls, interactions):
        raise NotImplementedError

    @classmethod
    def rank(cls, interactions, split):
        torch.manual_seed(3)
        model = cls.build(interactions)
        fit(model, interactions, split, QUICK, seed=3)
        return rank_by_model(model, interactions, split.test, split.test_targets)


class TestPlayhead(SequenceContract):
    @classmethod
    def build(cls, interactions):
        return playhead(interactions, None)


class TestSasRec(SequenceContract):
    @classmethod
    def build(cls, interactions):
        return sasrec(interactions)


class TestItemKnn(RecommenderContract):
    expected_ndcg = 0.2

    @classmethod
    def rank(cls, interactions, split):
        return ItemKnn.fit(interactions, split).rank(interactions, split.test, split.test_targets)


class TestPopularity(RecommenderContract):
    expected_ndcg = 0.1

    @classmethod
    def rank(cls, interactions, split):
        return popularity(interactions, split)
