"""The evaluation's report."""

import json

import numpy as np
import pytest

from features.titles import CONTENT_SIZE
from serve.errors import InvalidInput
from tests.training.recommend import audience
from training.recommend.evaluate import MODELS, evaluate, sequence_length
from training.recommend.interactions import Interactions
from training.recommend.train import FitSettings

METRICS = {"hr@1", "hr@5", "hr@10", "hr@50", "ndcg@5", "ndcg@10", "mrr", "coverage@10"}
ONE_EPOCH = FitSettings(epochs=1)


def test_the_shape_of_the_report():
    told = []
    report = evaluate(
        audience.interactions(users=30, length=6), [0, 1], settings=ONE_EPOCH,
        progress=lambda stage, done, total, note="": told.append((stage, done, total)),
    )  # fmt: skip
    assert set(report["models"]) == set(MODELS) == {"playhead", "sasrec", "item_knn", "popularity"}
    for metrics in report["models"].values():
        assert set(metrics) == METRICS
        assert all(set(value) == {"mean", "std"} for value in metrics.values())
        assert all(0 <= value["mean"] <= 1 and value["std"] >= 0 for value in metrics.values())
    assert report["models"]["popularity"]["hr@10"]["std"] == 0
    values = [run["hr@10"] for run in report["runs"]["playhead"]]
    assert report["models"]["playhead"]["hr@10"] == {"mean": np.mean(values), "std": np.std(values, ddof=1)}
    assert report["seeds"] == [0, 1]
    assert report["data"]["users"] == report["data"]["test_users"] == 30
    assert report["data"]["timestamps"]
    assert json.loads(json.dumps(report)) == report
    assert ("playhead seed 1", 1, 1) in told


def test_it_does_without_times_and_with_content():
    interactions = audience.interactions(users=30, length=6).untimed()
    content = np.random.default_rng(0).normal(size=(len(interactions.titles) + 1, CONTENT_SIZE)).astype(np.float32)
    report = evaluate(interactions, [0], content=content, models=["playhead"], settings=ONE_EPOCH)
    assert not report["data"]["timestamps"]
    assert set(report["models"]) == {"playhead"}


def test_repeated_titles_are_allowed():
    triples = [(f"u{u}", f"t{(u + step) % 3}", float(step)) for u in range(6) for step in range(8)]
    report = evaluate(Interactions.build("loop", triples), [0], settings=ONE_EPOCH)
    assert report["data"]["repeats"] == 6 * 5


@pytest.mark.parametrize(
    ("triples", "seeds", "models", "field"),
    [
        ([("a", "x", None), ("a", "y", None)], [0], MODELS, "short"),
        ([("a", t, None) for t in "xyz"], [], MODELS, "seeds"),
        ([("a", t, None) for t in "xyz"], [0], ["oracle"], "models"),
    ],
)
def test_what_can_not_be_evaluated_is_refused(triples, seeds, models, field):
    with pytest.raises(InvalidInput) as raised:
        evaluate(Interactions.build("short", triples), seeds, models=models)
    assert raised.value.field == field


def test_a_budget_ends_a_fit():
    report = evaluate(audience.interactions(users=20, length=5), [0], models=["sasrec"], budget_s=0.0)
    assert report["runs"]["sasrec"][0]["epochs"] == 1


def test_a_single_user_is_enough():
    report = evaluate(Interactions.build("x", [("a", t, None) for t in "pqr"]), [0], settings=ONE_EPOCH)
    assert report["data"]["test_users"] == 1


def test_the_length_fits_the_data():
    assert sequence_length(audience.interactions(users=10, length=8)) == 8
    assert sequence_length(Interactions.build("x", [("a", f"t{n}", None) for n in range(900)])) == 100
