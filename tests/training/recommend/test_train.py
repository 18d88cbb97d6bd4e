"""The training loop: seeds, resuming, budgets, sampled negatives."""

from dataclasses import replace

import pytest
import torch

from tests.training.recommend import audience
from training.recommend import train
from training.recommend.evaluate import playhead
from training.recommend.split import Split
from training.recommend.train import FitSettings, fit, rank_by_model

SHORT = FitSettings(epochs=4, patience=9, warmup=10, batch=16, averaging=0.9)


@pytest.fixture(scope="module")
def interactions():
    return audience.interactions(users=40, length=8)


@pytest.fixture(scope="module")
def split(interactions):
    return Split.leave_one_out(interactions)


def fitted(interactions, split, settings=SHORT, *, seed=0, **options):
    torch.manual_seed(seed)
    model = playhead(interactions, None)
    return model, fit(model, interactions, split, settings, seed=seed, **options)


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_a_seed_gives_the_same_model_and_another_seed_another(interactions, split):
    first, outcome = fitted(interactions, split)
    again, repeated = fitted(interactions, split)
    other, _ = fitted(interactions, split, seed=1)
    assert torch.equal(weights(first), weights(again))
    assert outcome.curve == repeated.curve
    assert not torch.allclose(weights(first), weights(other))


class Killed(Exception):
    pass


def test_a_killed_run_ends_where_an_unbroken_one_does(interactions, split, tmp_path):
    whole, outcome = fitted(interactions, split)

    def kill(stage, done, total, note=""):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        fitted(interactions, split, checkpoint=tmp_path / "run.pt", progress=kill)
    ran = []
    resumed, rest = fitted(
        interactions,
        split,
        checkpoint=tmp_path / "run.pt",
        progress=lambda stage, done, total, note="": ran.append(done),
    )
    assert ran[0] == 3  # the first two epochs were not run again
    assert rest.curve == outcome.curve
    assert torch.equal(weights(resumed), weights(whole))


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_not_taken_up(interactions, split, tmp_path):
    path = tmp_path / "run.pt"
    fitted(interactions, split, seed=1, checkpoint=path)
    expected, _ = fitted(interactions, split)
    other, _ = fitted(interactions, split, checkpoint=path)
    path.write_bytes(b"damaged")
    damaged, _ = fitted(interactions, split, checkpoint=path)
    assert torch.equal(weights(other), weights(expected))
    assert torch.equal(weights(damaged), weights(expected))


def test_it_stops_when_validation_gets_no_better(interactions, split):
    _, outcome = fitted(interactions, split, replace(SHORT, epochs=50, patience=1, learning_rate=1e-9))
    assert outcome.epochs < 10
    assert outcome.validation_ndcg == max(outcome.curve) == outcome.curve[outcome.best_epoch - 1]


def test_it_stops_when_its_time_is_up(interactions, split):
    _, outcome = fitted(interactions, split, replace(SHORT, epochs=500, patience=500, budget_s=0.0))
    assert outcome.epochs == 1


def test_sampled_negatives_learn_what_all_titles_teach(interactions, split, monkeypatch):
    settings = replace(SHORT, epochs=12, averaging=0.0)
    monkeypatch.setattr(train, "FULL_SOFTMAX_TITLES", 1)
    monkeypatch.setattr(train, "NEGATIVES", 30)
    torch.manual_seed(0)
    model = playhead(interactions, None)
    untrained = rank_by_model(model, interactions, split.test, split.test_targets).metrics()["ndcg@10"]
    fit(model, interactions, split, settings, seed=0)
    trained = rank_by_model(model, interactions, split.test, split.test_targets).metrics()["ndcg@10"]
    assert trained > untrained + 0.1


def test_the_sampled_loss_estimates_the_full_one(interactions, split, monkeypatch):
    torch.manual_seed(0)
    model = playhead(interactions, None)
    run = train._Run(model, interactions, split, SHORT, 0, train.Alone())
    states, targets = torch.randn(200, model.config.vector_size), torch.randint(1, 41, (200,))
    table = torch.randn(41, model.config.vector_size) * 0.1
    full = float(run._loss(states, targets, table))
    monkeypatch.setattr(train, "FULL_SOFTMAX_TITLES", 1)
    monkeypatch.setattr(train, "NEGATIVES", 20_000)
    assert float(run._loss(states, targets, table)) == pytest.approx(full, rel=0.01)
