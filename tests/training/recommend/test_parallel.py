"""Fits that several workers share, on a real Ray: what they end with, and that being killed changes nothing of it."""

import os
import signal
from dataclasses import replace

import psutil
import pytest
import torch

from tests.training.recommend import audience
from training.jobs import Resources
from training.recommend.evaluate import playhead
from training.recommend.model import Retrieval
from training.recommend.parallel import fit_parallel
from training.recommend.split import Split
from training.recommend.train import FitSettings, fit

SETTINGS = FitSettings(epochs=3, patience=9, warmup=5, batch=16, averaging=0.9)


@pytest.fixture(scope="module")
def interactions():
    return audience.interactions(users=40, length=8)


def fresh(interactions):
    """A model without dropout, in which two workers' steps are one worker's."""
    torch.manual_seed(0)
    config = replace(playhead(interactions, None).config, dropout=0.0, id_dropout=0.0)
    return Retrieval(config)


def shared(interactions, checkpoint, settings=SETTINGS, **options):
    model = fresh(interactions)
    outcome = fit_parallel(
        model, interactions, settings, seed=3, workers=2, checkpoint=checkpoint, resources=Resources(cpus=1), **options
    )
    return model, outcome


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


@pytest.fixture(scope="module")
def unbroken(small_ray, interactions, tmp_path_factory):
    return shared(interactions, tmp_path_factory.mktemp("unbroken") / "run.pt")


def test_two_workers_fit_as_one_does(interactions, unbroken):
    model, outcome = unbroken
    alone = fresh(interactions)
    expected = fit(alone, interactions, Split.leave_one_out(interactions), SETTINGS, seed=3)
    assert outcome.epochs == expected.epochs == SETTINGS.epochs
    assert outcome.curve == pytest.approx(expected.curve, abs=0.02)
    assert torch.allclose(weights(model), weights(alone), atol=2e-3)
    assert not torch.equal(weights(model), weights(fresh(interactions)))


def test_a_worker_that_is_killed_changes_nothing(small_ray, interactions, unbroken, tmp_path):
    """The second one dies after the first epoch; both start again from the checkpoint."""
    killed, ran = [], []

    def told(stage, done, total, note=""):
        ran.append(done)
        if not killed:
            workers = [one for one in psutil.process_iter(["name"]) if "RayTrainWorker" in (one.info["name"] or "")]
            mine = [one for one in workers if one.username() == psutil.Process().username()]
            killed.append(max(mine, key=lambda one: one.create_time()).pid)
            os.kill(killed[0], signal.SIGKILL)

    model, outcome = shared(interactions, tmp_path / "run.pt", progress=told)
    assert killed
    assert outcome.curve == unbroken[1].curve
    assert torch.equal(weights(model), weights(unbroken[0]))
