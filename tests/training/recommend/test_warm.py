"""Warm starts: whose weights, for which titles, and what they are worth."""

from dataclasses import replace

import polars as pl
import pytest
import torch

from serve.artifacts import read_artifact
from serve.errors import InvalidInput
from tests.training.recommend import audience
from tests.training.recommend.test_pipeline import pl_titles
from training.datasets.dataset import write_dataset
from training.recommend.evaluate import playhead
from training.recommend.frames import interactions_of
from training.recommend.pipeline import train_recommend
from training.recommend.train import FitSettings
from training.recommend.warm import read_parent, take_over, warm_settings

SETTINGS = FitSettings(epochs=24, patience=24, warmup=10, batch=16)
NEW = "t39"
"""A title that the parent does not know."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    return write_dataset(folder / "chain", source="test", events=audience.events(), titles=pl_titles(audience.titles()))


@pytest.fixture(scope="module")
def until_ms(dataset):
    return int(dataset.frame("events")["ts"].quantile(0.75))


@pytest.fixture(scope="module")
def parent(tmp_path_factory, dataset, until_ms):
    return train_recommend(
        dataset.path, tmp_path_factory.mktemp("models"), settings=replace(SETTINGS, epochs=6), until_ms=until_ms
    )


def test_only_events_before_the_end_are_used(dataset, parent, until_ms):
    lineage = parent.manifest.lineage
    used = dataset.frame("events").filter(pl.col("ts") < until_ms)
    assert lineage.last_ts_ms == used["ts"].max() < until_ms
    assert lineage.rows == used.height < dataset.rows["events"]
    assert parent.manifest.data_snapshot != dataset.snapshot


def test_weights_follow_titles(parent):
    events = audience.events()
    known = read_parent(parent)
    vocabulary = ["new", *reversed(known.vocabulary)]
    interactions = interactions_of(events, vocabulary, "events")
    model = playhead(interactions, None, length=known.length)
    assert take_over(model, vocabulary, known) == len(known.vocabulary)
    table, theirs = model.titles.embedding.weight, known.titles["embedding.weight"]
    assert torch.equal(table[1], theirs[0])  # new: as serving has it
    assert torch.equal(table[2:].flip(0), theirs[1:])
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, known.encoder[name])


def test_a_parent_that_does_not_fit_is_refused_and_changes_nothing(parent):
    interactions = audience.interactions(users=20, length=8)
    model = playhead(interactions, None, length=read_parent(parent).length + 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidInput, match="architecture"):
        take_over(model, interactions.titles, read_parent(parent))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_warm_start_has_the_parent_in_its_lineage_and_learns_in_fewer_epochs(dataset, parent, tmp_path):
    settings = replace(SETTINGS, epochs=12)
    begun = train_recommend(dataset.path, tmp_path, settings=settings, parent=parent)
    again = train_recommend(dataset.path, tmp_path, settings=settings, parent=read_artifact(parent.path))
    assert begun.version == again.version
    assert begun.manifest.lineage.parent == parent.version
    report = begun.manifest.parameters["training"]
    assert report["epochs"] <= warm_settings(settings).epochs < settings.epochs
    cold = train_recommend(dataset.path, tmp_path, settings=replace(settings, epochs=report["epochs"]))
    assert begun.manifest.metrics["ndcg@10"] > cold.manifest.metrics["ndcg@10"]
