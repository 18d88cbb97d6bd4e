"""Fits that several workers share, on a real Ray: what they end with, and that being killed changes nothing of it."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from deployments import loopback
from tests.training.recommend import audience
from tests.waiting import wait_for
from training.jobs import Resources
from training.recommend.evaluate import playhead
from training.recommend.model import Retrieval
from training.recommend.parallel import fit_parallel
from training.recommend.split import Split
from training.recommend.train import FitSettings, fit

DRIVER = """
import json, sys
from pathlib import Path
from dataclasses import replace
from tests.training.recommend import audience
from tests.training.recommend.test_parallel import SETTINGS, shared
from training.jobs import RayPlace, connected
with connected(RayPlace(**json.loads(sys.argv[1])), "killed"):
    settings = replace(SETTINGS, epochs=100_000, patience=100_000)
    shared(audience.interactions(users=40, length=8), Path(sys.argv[2]), settings)
"""
"""A job that ends only when it is killed."""

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


def train_workers():
    """Processes of fits that several share, on this machine."""
    found = psutil.process_iter(["name", "username"])
    mine = psutil.Process().username()
    return {one.pid for one in found if "RayTrainWorker" in (one.info["name"] or "") and one.info["username"] == mine}


def test_a_worker_that_is_killed_changes_nothing(small_ray, interactions, tmp_path):
    """The second one dies after the first epoch; both start again from the checkpoint."""
    settings, checkpoint = replace(SETTINGS, epochs=40, patience=99), tmp_path / "run.pt"
    before, fitted, began = train_workers(), [], []

    def kill():
        wait_for(checkpoint.exists)
        began.append(train_workers() - before)
        os.kill(max(began[0], key=lambda pid: psutil.Process(pid).create_time()), signal.SIGKILL)
        fitted.append(len(torch.load(checkpoint, weights_only=True)["curve"]))
        wait_for(lambda: train_workers() - before - began[0])
        began.append(train_workers() - before - began[0])

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    model, outcome = shared(interactions, checkpoint, settings)
    killer.join(10)
    assert fitted[0] < settings.epochs
    assert began[1], "others took over"
    expected, unbroken = shared(interactions, tmp_path / "unbroken.pt", settings)
    assert outcome.curve == unbroken.curve
    assert torch.equal(weights(model), weights(expected))


def test_a_whole_job_that_is_killed_ends_as_an_unbroken_one_once_it_is_resumed(small_ray, interactions, tmp_path):
    """Its driver is: Ray ends the workers, which may have been an epoch or some ahead of what the driver was told."""
    fields = {"address": small_ray.get_runtime_context().gcs_address, "hook": loopback.HOOK}
    checkpoint, before = tmp_path / "run.pt", train_workers()
    with (tmp_path / "driver.log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(fields), str(checkpoint)], stdout=log, stderr=log, cwd=Path.cwd()
        )
    try:
        wait_for(lambda: checkpoint.exists() or driver.poll() is not None)
        assert driver.poll() is None, (tmp_path / "driver.log").read_text()[-2000:]
    finally:
        driver.kill()
        driver.wait()
    wait_for(lambda: not train_workers() - before)
    fitted = len(torch.load(checkpoint, weights_only=True)["curve"])
    assert fitted >= 1
    settings = replace(SETTINGS, epochs=fitted + 2, patience=100_000)
    told = []
    model, outcome = shared(interactions, checkpoint, settings, progress=lambda *one: told.append(one[1]))
    assert min(told) > fitted, "it went on where it was"
    expected, unbroken = shared(interactions, tmp_path / "unbroken.pt", settings)
    assert outcome.curve == unbroken.curve
    assert torch.equal(weights(model), weights(expected))
