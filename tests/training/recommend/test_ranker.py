"""The ranker's contract."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.ranking import CONTEXT_SIZE, STATISTICS_SIZE
from serve.tensors import ABSENT_SCORE
from training.recommend.ranker import Ranker, RankerConfig

N, D, K, B = 30, 8, 10, 3


def build(**weights):
    torch.manual_seed(0)
    ranker = Ranker(RankerConfig(width=D, candidates=K, **weights)).eval()
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return ranker


@torch.no_grad()
def rank(ranker, eligible, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    state, table = normal(B, D), normal(N, D)
    names = ("candidates", "score", "retrieval", "play", "finish", "thumbs_up")
    outputs = ranker(state, table, eligible, normal(N, STATISTICS_SIZE), normal(B, CONTEXT_SIZE))
    return dict(zip(names, outputs, strict=True)), state @ table.T


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=N, max_size=N), st.integers(0, 5))
def test_only_what_may_be_shown_is_ranked(flags, seed):
    eligible = torch.tensor([flags] * B)
    found, logits = rank(build(finish_weight=0.3, thumbs_up_weight=0.3), eligible, seed)
    allowed = {row for row, flag in enumerate(flags) if flag and row > 0}
    present = found["score"] > ABSENT_SCORE
    for place in range(B):
        rows = found["candidates"][place][present[place]].tolist()
        assert len(rows) == len(set(rows)) == min(K, len(allowed))
        best = sorted(allowed, key=lambda row: -float(logits[place, row]))[:K]
        assert set(rows) == set(best)
    assert (found["score"].diff(dim=1) <= 0).all()
    for name in ("play", "finish", "thumbs_up"):
        assert (found[name] >= 0).all()
        assert (found[name] <= 1).all()
        assert (found[name][~present] == 0).all()
    assert (found["play"].sum(dim=1) <= 1 + 1e-5).all()


def test_without_correction_and_weights_the_order_is_the_retrievals():
    ranker = build()
    ranker.gate.fill_(0.0)
    found, _ = rank(ranker, torch.ones(B, N, dtype=torch.bool))
    assert (found["retrieval"].diff(dim=1) <= 0).all()


def test_a_weight_lifts_what_is_liked():
    everything = torch.ones(B, N, dtype=torch.bool)
    plain, _ = rank(build(), everything)
    weighted, _ = rank(build(thumbs_up_weight=3.0), everything)
    places = torch.arange(K, 0, -1, dtype=torch.float32)
    assert (weighted["thumbs_up"] * places).sum() > (plain["thumbs_up"] * places).sum()


def test_play_is_the_softmax_over_all_titles():
    ranker = build()
    ranker.gate.fill_(0.0)
    found, logits = rank(ranker, torch.ones(B, N, dtype=torch.bool))
    logits[:, 0] = -torch.inf
    expected = logits.softmax(dim=1).gather(1, found["candidates"])
    torch.testing.assert_close(found["play"], expected, rtol=1e-4, atol=1e-6)


def test_nothing_eligible():
    found, _ = rank(build(), torch.zeros(B, N, dtype=torch.bool))
    assert (found["score"] <= ABSENT_SCORE).all()
    assert all(torch.isfinite(values.float()).all() for values in found.values())
