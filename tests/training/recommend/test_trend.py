"""The trend term: one definition for training and serving, nothing from the future, no gain no weight."""

import numpy as np
import polars as pl
import pytest
import torch

from features.offline import title_statistics as statistics_at
from features.ranking import CONTEXT_SIZE, STATISTICS_SIZE, TREND, title_statistics
from serve.tensors import ABSENT_SCORE
from tests.training.recommend import audience
from training.recommend.evaluate import evaluate, playhead
from training.recommend.frames import interactions_of
from training.recommend.interactions import Interactions
from training.recommend.ranker import Ranker, RankerConfig
from training.recommend.split import Split
from training.recommend.train import FitSettings, final_states
from training.recommend.trend import WEIGHTS, Trends, choose_weight, rank_with_trend

DAY = 86_400
WEIGHT = 3.0


@pytest.fixture(scope="module")
def events():
    """Plays at whole seconds, so that a visit's time is its play's; half of them."""
    return audience.events(users=30, length=8).filter((pl.col("kind") == "play") & (pl.col("ts") % 4 < 2))


@pytest.fixture(scope="module")
def interactions(events):
    return interactions_of(events, sorted(events["title_id"].unique()), "test")


def statistics(events, interactions, time_s):
    """Statistics by row as a request at that moment gets them."""
    found = statistics_at(events, int(time_s) * 1000, inclusive=False)
    return title_statistics([None, *(found.get(title) for title in interactions.titles)])


def everything(interactions):
    return [interactions.prefix(user, 0) for user in range(len(interactions))]


def test_trends_are_those_that_serving_reads(events, interactions):
    times = np.unique(np.quantile(interactions.times, [0, 0.01, 0.2, 0.5, 0.9, 1], method="lower"))
    trends = Trends(interactions, everything(interactions))
    found = trends.at(times)
    for column, time_s in zip(found, times.tolist(), strict=True):
        expected = statistics(events, interactions, time_s)[:, TREND]
        np.testing.assert_allclose(column[1:], expected[1:], atol=1e-6)
    assert not found[0].any()  # nothing was played before the first play
    assert len(np.unique(found[-1])) > 5
    late = np.array([int(times[-1]) + 5 * DAY])
    expected = statistics(events, interactions, late[0])[:, TREND]
    np.testing.assert_allclose(trends.at(late)[0, 1:], expected[1:], atol=1e-6)


def test_what_happens_later_and_what_is_held_out_changes_nothing(interactions):
    middle = int(np.median(interactions.times))
    before = Trends(interactions, everything(interactions)).at(np.array([middle]))
    past = interactions.times < middle
    shortened = [
        type(prefix)(prefix.user, prefix.start, prefix.start + int(past[prefix.start : prefix.stop].sum()))
        for prefix in everything(interactions)
    ]
    np.testing.assert_array_equal(Trends(interactions, shortened).at(np.array([middle])), before)
    some = Trends(interactions, shortened[:10]).at(np.array([middle]))
    assert (some != before).any()


def test_only_plays_count(interactions):
    judged = Interactions(
        **{name: getattr(interactions, name) for name in Interactions.__dataclass_fields__}
        | {"actions": np.full_like(interactions.actions, 1 << 3)}
    )
    assert not Trends(judged, everything(judged)).at(interactions.times.max(keepdims=True) + 1).any()


@torch.no_grad()
def test_the_evaluation_ranks_as_the_served_graph(events, interactions):
    """Each test target's rank is its place among the graph's candidates, with statistics as of the newest visit."""
    torch.manual_seed(0)
    split = Split.leave_one_out(interactions)
    model = playhead(interactions, None).eval()
    (ranked,) = rank_with_trend(model, interactions, split, split.test, split.test_targets, (WEIGHT,))
    (plain,) = rank_with_trend(model, interactions, split, split.test, split.test_targets, (0.0,))
    size = len(interactions.titles) + 1
    ranker = Ranker(RankerConfig(width=model.config.vector_size, candidates=size - 1, trend_weight=WEIGHT)).eval()
    table, states = model.title_vectors(), final_states(model, interactions, split.test)
    hidden = {(interactions.users[p.user], interactions.titles[int(interactions.rows[p.stop]) - 1]) for p in split.test}
    pairs = pl.struct("profile_id", "title_id").map_elements(
        lambda pair: (pair["profile_id"], pair["title_id"]) not in hidden, return_dtype=pl.Boolean
    )
    known = events.filter(pairs)
    for place, (prefix, target) in enumerate(zip(split.test, split.test_targets, strict=True)):
        eligible = torch.ones(1, size, dtype=torch.bool)
        eligible[0, interactions.rows[prefix.start : prefix.stop]] = False
        stats = torch.from_numpy(statistics(known, interactions, interactions.times[prefix.stop - 1]))
        candidates, score, *_ = ranker(states[place : place + 1], table, eligible, stats, torch.zeros(1, CONTEXT_SIZE))
        present = candidates[0][score[0] > ABSENT_SCORE].tolist()
        assert abs(present.index(int(target)) + 1 - ranked.ranks[place]) <= 1  # equal scores count half
    assert (ranked.ranks != plain.ranks).any()


@torch.no_grad()
def test_the_best_of_the_whole_catalogue_are_found_with_the_trend():
    """The trend is part of what retrieval is exact by: a trending title outside the encoder's best is a candidate."""
    generator = torch.Generator().manual_seed(0)
    size, best = 50, 5
    state, table = torch.randn(2, 8, generator=generator), torch.randn(size, 8, generator=generator)
    stats = torch.zeros(size, STATISTICS_SIZE)
    stats[:, TREND] = -torch.rand(size, generator=generator)
    ranker = Ranker(RankerConfig(width=8, candidates=best, trend_weight=WEIGHT)).eval()
    candidates, _, retrieval, *_ = ranker(
        state, table, torch.ones(2, size, dtype=torch.bool), stats, torch.zeros(2, CONTEXT_SIZE)
    )
    scores = state @ table.T + WEIGHT * stats[:, TREND]
    scores[:, 0] = -torch.inf
    expected = scores.topk(best, dim=1)
    assert [set(rows) for rows in candidates.tolist()] == [set(rows) for rows in expected.indices.tolist()]
    torch.testing.assert_close(retrieval.sort(descending=True).values, expected.values)
    assert (candidates.sort().values != (state @ table.T)[:, 1:].topk(best, dim=1).indices.add(1).sort().values).any()


class Indifferent(torch.nn.Module):
    """A model to which all titles are the same."""

    length, members, starts = 10, 1, True

    def __init__(self, titles):
        super().__init__()
        self.titles = titles

    def title_vectors(self):
        return torch.zeros(self.titles + 1, 4)

    def states(self, titles, actions, times, table):
        return torch.zeros(titles.shape[0], titles.shape[1] + 1, 4)


def test_a_weight_is_taken_where_validation_gains():
    data = audience.interactions(users=40, length=8)
    popular = Interactions.build(
        "popular",
        [(user, title if n % 3 else "hit", time_s) for n, (user, title, time_s) in enumerate(audience.chain(40, 8))],
    )
    split = Split.leave_one_out(popular)
    weight = choose_weight(Indifferent(len(popular.titles)), popular, split)
    assert weight > 0
    (with_it, without) = rank_with_trend(
        Indifferent(len(popular.titles)), popular, split, split.validation, split.validation_targets, (weight, 0.0)
    )
    assert with_it.metrics()["ndcg@10"] > without.metrics()["ndcg@10"]
    assert choose_weight(Indifferent(len(data.titles)), data.untimed(), Split.leave_one_out(data)) == 0


def test_without_times_nothing_changes():
    data = audience.interactions(users=30, length=6).untimed()
    report = evaluate(data, [0], models=["playhead"], settings=FitSettings(epochs=1))
    (run,) = report["runs"]["playhead"]
    assert run["trend_weight"] == WEIGHTS[0] == 0
    assert run["ndcg@10"] == run["ndcg@10_without_trend"]
