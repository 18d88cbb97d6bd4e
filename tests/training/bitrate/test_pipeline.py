"""From traces, or from nothing, to an artifact that evaluation and serving take."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.engines import load_engine
from serve.errors import InvalidInput
from training.bitrate import material as material_module
from training.bitrate.evaluate import ModelPolicy, play
from training.bitrate.export import GRAPH
from training.bitrate.material import HELD_OUT_FAMILIES, Material
from training.bitrate.pipeline import train_bitrate
from training.bitrate.rollouts import PlaySettings
from training.bitrate.traces import Trace
from training.bitrate.train import FitSettings
from training.bitrate.variations import vary

TINY = FitSettings(rounds=2, predictor_rounds=1, play=PlaySettings(steps=4), parts=1)


@pytest.fixture(scope="module")
def material() -> Material:
    return Material.read(None, None, None)


@pytest.fixture
def varied(monkeypatch: pytest.MonkeyPatch) -> list[Trace]:
    """All traces that were given to be varied."""
    seen: list[Trace] = []

    def keep(traces: Sequence[Trace], *given: Any, **named: Any) -> list[Trace]:
        seen.extend(traces)
        return vary(traces, *given, **named)

    monkeypatch.setattr(material_module, "vary", keep)
    return seen


def test_worlds_are_made_of_their_seed_and_of_nothing_held_out(material: Material) -> None:
    first, again, other = (material.worlds(seed) for seed in (1, 1, 2))
    for one, same, different in zip(first, again, other, strict=True):
        assert one.state.tobytes() == same.state.tobytes()  # it holds NaN
        assert one.state.tobytes() != different.state.tobytes()
    used = {trace.name for sessions in first for trace in sessions.traces}
    assert not any(name.startswith(HELD_OUT_FAMILIES) for name in used)
    assert {trace.name for trace in material.held_out}.isdisjoint(trace.name for trace in material.traces)
    assert len(material.held_out) == pytest.approx(len(material.traces) / 7, abs=1)


def test_validation_is_the_same_each_time_and_of_held_out_traces_alone(material: Material, varied: list[Trace]) -> None:
    first, again = material.validation(), material.validation()
    assert first.state.tobytes() == again.state.tobytes()
    assert {trace.name for trace in varied} == {trace.name for trace in material.held_out}
    lowest = max(title.rungs_kbps[0] for title in material.titles)
    assert min(trace.mean_kbps for trace in first.traces) > lowest


def test_more_families_can_be_held_out() -> None:
    one = Material.read(None, None, None, without=["wifi", "4g", "5g"])
    used = {trace.name.partition("-")[0] for trace in one.worlds(1)[1].traces}
    assert used == {"3g", "broadband", "variation"}
    assert one.name != Material.read(None, None, None).name
    for wrong in (["6g"], ["3g", "4g", "5g", "broadband", "wifi"]):
        with pytest.raises(InvalidInput, match="without"):
            Material.read(None, None, None, without=wrong)


def test_only_traces_that_train_are_varied(material: Material, varied: list[Trace]) -> None:
    material.worlds(1)
    assert {trace.name for trace in varied} == {trace.name for trace in material.traces}


def test_other_sessions_differ_in_all_that_a_policy_must_take(material: Material) -> None:
    state = np.concatenate([material.worlds(seed)[1].state for seed in range(4)])
    assert {2, 3, 11, 12} <= set(state["rungs"].tolist())
    assert state["segment_s"].min() < 2
    assert state["segment_s"].max() > 8
    assert (state["live_target_s"] > 0).any()
    assert (state["live_target_s"] == 0).mean() > 0.5
    assert len(np.unique(state["rebuffer"])) > 3
    assert state["max_buffer_s"].min() < 30
    assert state["max_buffer_s"].max() > 60


def test_published_material_keeps_its_ladder(abr_data: Path) -> None:
    published = Material.read(abr_data / "train", abr_data / "envivio" / "size", abr_data / "envivio" / "vmaf")
    assert published.titles[0].rungs_kbps.tolist() == [300, 750, 1200, 1850, 2850, 4300]
    assert len(published.traces) + len(published.held_out) == 127


def test_an_artifact_is_measured_resumable_and_serves(material: Material, tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    artifact = train_bitrate(material, tmp_path / "bitrate", settings=TINY, checkpoint=state)
    assert not state.exists()
    assert {"validation_lead", "validation_robust_mpc_relative_qoe"} <= set(artifact.manifest.metrics)
    assert artifact.manifest.data_snapshot == material.name
    policy = ModelPolicy(load_engine(artifact, GRAPH, batches=(1, 64)))
    sessions = material.worlds(0)[1]
    sessions.state["segments"] = np.minimum(sessions.state["segments"], 6)
    assert np.isfinite(play(policy, sessions).values).all()
