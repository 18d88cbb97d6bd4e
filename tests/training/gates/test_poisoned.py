"""Candidates that must not pass, each stopped for the reason it has; and one that must."""

import copy
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import nn

from serve.artifacts import set_champion
from serve.errors import NotFound
from tests.training.gates import world as worlds
from training.gates import recommend
from training.gates.exposed import Page, estimate, would_show
from training.gates.gate import gate, reports_of
from training.gates.report import write_report


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.make(tmp_path_factory.mktemp("world"))


def failed(verdict):
    return {check.name for check in verdict.failed}


def reason(verdict, name):
    return next(check.text for check in verdict.checks if check.name == name)


def parquet(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def permuted(content):
    """The vocabulary with every title at another's row."""
    table = pq.read_table(pa.BufferReader(content))
    return parquet(table.set_column(0, "title_id", pa.array(np.roll(np.array(table["title_id"].to_pylist()), 7))))


def broken(content):
    """Weights with NaN in the middle of the largest part: the title embedding."""
    weights = np.frombuffer(content[: len(content) // 4 * 4], np.float32).copy()
    weights[len(weights) // 2 : len(weights) // 2 + 64] = np.nan
    return weights.tobytes() + content[len(content) // 4 * 4 :]


def test_an_exact_copy_is_no_change_and_not_better(world, tmp_path):
    verdict = world.gate(worlds.edited(world.champion, tmp_path, metrics=world.champion.manifest.metrics | {"x": 1}))
    assert failed(verdict) == {"no change"}
    assert not verdict.passed
    assert not verdict.better
    write_report(verdict, tmp_path)
    told = json.loads((tmp_path / "gate.json").read_text())
    assert told["failed"] == ["no change"]
    assert told["better"] is False
    page = (tmp_path / "gate.html").read_text()
    assert page.count("<svg") >= 3
    assert "no change" in page
    assert "<script" not in page
    assert "http" not in page


def test_a_swapped_vocabulary_is_seen_by_its_content(world, tmp_path):
    poisoned = worlds.edited(world.champion, tmp_path, {"vocabulary.parquet": permuted})
    verdict = world.gate(poisoned)
    assert {"vocabulary rows", "ndcg@10"} <= failed(verdict)
    assert "order is not that of the weights" in reason(verdict, "vocabulary rows")


def test_nan_weights_are_found_before_anything_is_served(world, tmp_path):
    poisoned = worlds.edited(world.champion, tmp_path, {"openvino/titles.bin": broken})
    verdict = world.gate(poisoned)
    assert failed(verdict) == {"finite", "parity"}
    assert "titles.vectors" in reason(verdict, "finite")


def test_stale_features_are_told_by_lineage_and_service(world, tmp_path):
    old = world.champion.manifest.lineage.model_copy(update={"last_ts_ms": world.cut_ms - 20 * worlds.DAY_MS})
    poisoned = worlds.edited(world.champion, tmp_path, lineage=old, feature_service="recommend_v0")
    verdict = world.gate(poisoned)
    assert {"freshness", "feature service"} <= failed(verdict)
    assert "480.0 h" in reason(verdict, "freshness")
    assert "recommend_v0" in reason(verdict, "feature service")


def test_a_leaked_future_is_told_by_lineage_or_by_a_score_too_good(world, tmp_path):
    told = world.champion.manifest.lineage.model_copy(update={"last_ts_ms": world.dataset.last_ts_ms})
    verdict = world.gate(worlds.edited(world.champion, tmp_path, lineage=told))
    assert "leakage: lineage" in failed(verdict)
    own = float(world.reference.answers.ndcg.mean()) / 2.5
    poorer = world.champion.manifest.metrics | {"served_final_ndcg@10": own}
    verdict = world.gate(worlds.edited(world.champion, tmp_path / "silent", metrics=poorer))
    assert "leakage: score" in failed(verdict)


def test_without_lineage_and_with_too_few_starts(world, tmp_path):
    verdict = world.gate(worlds.edited(world.champion, tmp_path, lineage=None))
    assert "lineage" in failed(verdict)
    late = world.gate(world.champion, reference=None, cut_ms=world.dataset.last_ts_ms - worlds.DAY_MS)
    assert "held-out starts" in failed(late)
    assert "at least 200 of 50 are needed" in reason(late, "held-out starts")


@pytest.fixture(scope="module")
def shuffled(world):
    """Fitted to starts that got the title of another one: popularity stays, taste goes."""
    before = world.before
    titles = np.random.default_rng(0).permutation(before["title_id"].to_numpy())
    return world.export(world.train(before.with_columns(pl.Series("title_id", titles))), int(before["ts"].max()))


def test_shuffled_labels_are_worse(world, shuffled):
    verdict = world.gate(shuffled)
    assert "ndcg@10" in failed(verdict)
    assert not verdict.better
    assert verdict.comparisons[0].difference.high < 0


def test_a_good_candidate_passes_and_leaves_its_report(world, shuffled):
    """The true labels against the shuffled ones, by the function that whoever rolls out calls."""
    set_champion(world.settings.models, "recommend", shuffled.version)
    verdict = gate("recommend", world.champion.version, world.settings, dataset=world.dataset, cut_ms=world.cut_ms)
    assert failed(verdict) <= {"latency"}  # this machine may be busy
    assert verdict.better
    told = json.loads((reports_of(world.settings, "recommend", world.champion.version) / "gate.json").read_text())
    assert told["passed"] is verdict.passed
    assert told["champion"] == shuffled.version
    for version, error in (("../x", "version"), ("0" * 12, "version")):
        with pytest.raises(NotFound, match=error):
            gate("recommend", version, world.settings, dataset=world.dataset)


class Twice(nn.Module):
    """An encoder that does its work twice, and says the same but for what float32 can't hold."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, titles, actions, times, table):
        again = self.encoder(titles, actions, times, table * 0.5)
        return self.encoder(titles, actions, times, table) + 1e-12 * again


def test_a_slower_engine_is_rejected_for_that(world):
    slow = copy.deepcopy(world.trained.retrieval)
    slow.encoder = Twice(slow.encoder)
    candidate = world.export(replace(world.trained, retrieval=slow), world.cut_ms - 1)
    verdict = world.gate(candidate)
    assert "latency" in failed(verdict)
    assert "ndcg@10" not in failed(verdict)


def test_five_per_cent_less_ndcg_is_rejected(world, monkeypatch):
    monkeypatch.setattr(recommend, "time_pair", lambda *_, **__: (np.ones(40), np.ones(40)))
    answers = world.reference.answers
    drop = np.flatnonzero(answers.ranks <= 10)
    ranks = answers.ranks.copy()
    gains = answers.ndcg
    target, order = 0.95 * gains.sum(), np.random.default_rng(0).permutation(drop)
    for place in order:
        if np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).sum() <= target:
            break
        ranks[place] = np.inf
    worse = replace(answers, ranks=ranks)
    monkeypatch.setattr(recommend.Answerer, "answer", lambda _: worse)
    verdict = world.gate(world.champion)
    assert "ndcg@10" in failed(verdict)
    assert worse.ndcg.mean() / gains.mean() == pytest.approx(0.95, abs=0.01)


def test_logged_pages_are_made_again_as_serving_makes_them(world):
    held = world.reference.held
    pages = [
        Page(
            profile_id=held.features[place].profile_id, ts_ms=int(held.times_ms[place]), request=(None, None),
            titles=("t1", "t2"), propensities=(0.9, 0.9), played=(place % 2 == 0, False),
        )
        for place in range(12)
    ]  # fmt: skip
    rows = would_show(world.champion, pages, world.dataset)
    watched = [{entry.title_id for entry in held.features[place].history.entries} for place in range(12)]
    assert all(len(row) >= 5 and not seen & set(row) for row, seen in zip(rows, watched, strict=True))
    first = np.array([title.title_id for title in held.titles])[world.reference.answers.top[:12, 0]]
    agree = sum(row[0] in (best, target) for row, best, target in zip(rows, first, held.targets, strict=False))
    assert agree >= 9  # the start's own title was a candidate of the gate's, whatever its region says
    told = [replace(page, titles=row[:2]) for page, row in zip(pages, rows, strict=True)]
    found = estimate(told, rows, rows)
    assert found.advantage.value == 0
    assert found.estimates[0].effective == pytest.approx(24)
    assert found.estimates[1].interval.value == pytest.approx(0.25)
