"""From watch events to an artifact whose engines answer as torch does."""

from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from features.events import Event
from features.history import History
from features.profiles import ProfileStats
from features.ranking import request_context, title_statistics
from features.sequences import encoder_inputs, visits
from features.titles import Title, content_features
from serve.engines.openvino import OpenVinoEngine
from serve.errors import InvalidInput
from serve.online.reference import read_grounds
from tests.contracts.tensorrt_build import build_engine
from tests.training.recommend import audience
from training.datasets.dataset import write_dataset
from training.recommend.export import export_graphs
from training.recommend.frames import frames_at, interactions_of
from training.recommend.pipeline import content_of, train, train_recommend
from training.recommend.train import FitSettings

QUICK = FitSettings(epochs=10, patience=10, warmup=10, batch=16)


@pytest.fixture(scope="module")
def events():
    return audience.events()


@pytest.fixture(scope="module")
def trained(events):
    return train(events, audience.titles(), settings=QUICK)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, events):
    folder = tmp_path_factory.mktemp("recommend")
    titles = pl_titles(audience.titles())
    write_dataset(folder / "chain", source="test", events=events, titles=titles)
    checkpoint = folder / "run.pt"
    made = train_recommend(
        folder / "chain", folder / "models", settings=replace(QUICK, epochs=2), checkpoint=checkpoint
    )
    assert not checkpoint.exists()
    return made


def pl_titles(titles):
    return pl.DataFrame([title.model_dump() for title in titles])


def test_visits_are_those_that_serving_folds(events):
    vocabulary = sorted(events["title_id"].unique())
    rows = {title: row for row, title in enumerate(vocabulary, start=1)}
    interactions = interactions_of(events, vocabulary, "test")
    for user in (0, 7, 33):
        history = History()
        for row in events.filter(events["profile_id"] == interactions.users[user]).iter_rows(named=True):
            history.apply(Event.model_validate(row))
        start, stop = interactions.offsets[user : user + 2]
        columns = (interactions.rows, interactions.actions, interactions.times)
        ours = list(zip(*(column[start:stop].tolist() for column in columns), strict=True))
        assert ours == [tuple(visit) for visit in visits(history.entries, rows)]


def test_a_frame_holds_what_was_known_before(events):
    vocabulary = sorted(events["title_id"].unique())
    rows = {title: row for row, title in enumerate(vocabulary, start=1)}
    interactions = interactions_of(events, vocabulary, "test")
    own = interactions.rows[: interactions.offsets[1]]
    asked = [(interactions.users[0], vocabulary[row - 1]) for row in own]
    frames = frames_at(events, None, rows, asked, length=20)
    for place, row in enumerate(own.tolist()):
        assert frames.titles[place, :place].tolist() == own[:place].tolist()
        assert not frames.titles[place, place:].any()
        assert not bool(frames.eligible(torch.tensor([place]))[0, own[:place]].any())
        assert int(frames.targets[place]) == row
        assert float(frames.liked[place]) == float(int(vocabulary[row - 1][1:]) % 2 == 0)


def test_it_learns_who_finishes_and_likes_what(trained):
    """Even titles are finished and liked, odd ones are not."""
    model, ranker = trained.retrieval, trained.ranker
    size = len(trained.vocabulary) + 1
    state = model.encoder(*(torch.zeros(1, 1, dtype=torch.int64) for _ in range(3)), model.title_vectors())
    statistics = torch.from_numpy(title_statistics([None] * size))
    context = torch.from_numpy(request_context(History(), ProfileStats(), 0)).unsqueeze(0)
    with torch.no_grad():
        rows, _, _, _, finish, thumbs_up = ranker(
            state, model.title_vectors(), torch.ones(1, size, dtype=torch.bool), statistics, context
        )
    even = torch.tensor([int(trained.vocabulary[row - 1][1:]) % 2 == 0 for row in rows[0].tolist()])
    for probability in (finish[0], thumbs_up[0]):
        assert probability[even].mean() > probability[~even].mean() + 0.3


def test_the_final_order_is_measured(trained):
    assert trained.metrics["ndcg@10"] > 0.3
    assert trained.metrics["served_final_ndcg@10"] >= trained.metrics["served_retrieval_ndcg@10"] * 0.9


def test_a_new_title_is_found_by_its_content(trained):
    """A title that nobody has watched is nearer to titles of its own genre than of the other."""
    titles = audience.titles()
    content = content_of(titles, trained.vocabulary)
    new = Title(title_id="new", name="Title 98", year=2001, genres=("Comedy",))
    table = torch.from_numpy(np.concatenate([content, content_features([new])]))
    ids = torch.cat([torch.arange(len(content)), torch.zeros(1, dtype=torch.int64)])
    model = trained.retrieval
    with torch.no_grad():
        vectors = model.titles(table, ids)
        state = model.encoder(*(torch.zeros(1, 1, dtype=torch.int64) for _ in range(3)), vectors)
        size = len(vectors)
        eligible = torch.zeros(1, size, dtype=torch.bool)
        eligible[0, -1] = True
        found = trained.ranker(
            state, vectors, eligible, torch.from_numpy(title_statistics([None] * size)), torch.zeros(1, 11)
        )
    assert int(found[0][0, 0]) == size - 1
    assert float(found[1][0, 0]) > -1e30


def test_the_artifact_holds_the_contract(artifact):
    manifest = artifact.manifest
    assert manifest.name == "recommend"
    assert set(manifest.graphs) == {"titles", "encoder", "ranker"}
    assert {"length", "candidates", "width"} <= set(manifest.parameters)
    assert 0 <= manifest.metrics["served_final_ndcg@10"] <= 1
    vocabulary = pq.read_table(artifact.path / "vocabulary.parquet").to_pydict()
    assert vocabulary["row"] == list(range(1, len(vocabulary["row"]) + 1))
    assert len(set(vocabulary["title_id"])) == len(vocabulary["title_id"])
    grounds = read_grounds(artifact.path)
    assert grounds.titles == len(vocabulary["title_id"])
    assert set(grounds.reference.shares) == {"history", "gap", "hour", "genre", "popularity"}


def test_the_graphs_answer_with_a_grown_catalogue(artifact):
    """Titles beyond the vocabulary, another batch and other lengths than the example's."""
    titles, encoder, ranker = (OpenVinoEngine.load(artifact, name) for name in ("titles", "encoder", "ranker"))
    names = pq.read_table(artifact.path / "vocabulary.parquet").to_pydict()["title_id"]
    rows = {name: row for row, name in enumerate(names, start=1)}
    grown = [*audience.titles(), *(Title(title_id=f"n{n}", name=f"New {n}", genres=("Drama",)) for n in range(25))]
    by_id = {title.title_id: title for title in grown}
    order = [*names, *(title.title_id for title in grown if title.title_id not in rows)]
    content = np.concatenate([np.zeros((1, 116), np.float32), content_features([by_id[name] for name in order])])
    ids = np.array([0, *(rows.get(name, 0) for name in order)])
    table = titles({"content": content, "ids": ids})["vectors"]
    inputs = encoder_inputs(
        [[], [(1, 1, 1_700_000_000), (5, 5, 1_700_000_100)]], artifact.manifest.parameters["length"]
    )
    state = encoder({**inputs, "table": table})["state"]
    eligible = np.ones((2, len(table)), dtype=bool)
    eligible[1, [1, 5]] = False
    found = ranker(
        {
            "state": state, "table": table, "eligible": eligible,
            "title_stats": title_statistics([None] * len(table)),
            "context": np.stack([request_context(History(), ProfileStats(), 0)] * 2),
        }
    )  # fmt: skip
    assert found["candidates"].shape == (2, artifact.manifest.parameters["candidates"])
    assert not {0, 1, 5} & set(found["candidates"][1][found["score"][1] > -1e30].tolist())
    assert found["candidates"].max() >= len(names)  # a title that nobody watched is among the candidates


def test_the_same_run_makes_the_same_version(trained):
    first, again = export_graphs(trained.retrieval, trained.ranker), export_graphs(trained.retrieval, trained.ranker)
    for name, graph in first.items():
        for key, value in graph.example.items():
            np.testing.assert_array_equal(value, again[name].example[key])


def test_too_little_data_is_refused(events):
    with pytest.raises(InvalidInput, match="three titles"):
        train(events.head(3), audience.titles())
    with pytest.raises(InvalidInput, match="plays"):
        train(events.filter(pl.col("ts") < 0), audience.titles())


@pytest.mark.parametrize("graph", ["titles", "encoder", "ranker"])
def test_tensorrt_compiles_the_graphs_for_all_their_sizes(artifact, graph):
    pytest.importorskip("tensorrt_rtx_bindings")
    assert build_engine(artifact, graph)
