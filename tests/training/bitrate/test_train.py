"""The fit: what the critic is told is true, advantages add up, a killed run ends where an unbroken one does."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.bitrate.model import BitratePolicy
from training.bitrate.pipeline import Greedy, mean_qoe
from training.bitrate.qoe import LINEAR, PERCEPTUAL
from training.bitrate.simulator import Sessions, Settings
from training.bitrate.synthetic import FAMILIES, generate_traces, generate_videos
from training.bitrate.train import (
    HELD_SEGMENTS,
    Critic,
    FitSettings,
    Scale,
    _advantages,
    _hold,
    _mean_ahead,
    fit,
    play,
    tensors,
)

SHORT = FitSettings(rounds=4, predictor_rounds=2, steps=8, parts=2, checkpoint_rounds=1)
TITLES = [
    replace(title, segment_bytes=title.segment_bytes[:24], vmaf=title.vmaf[:24]) for title in generate_videos(4, seed=3)
]


def worlds(seed: int) -> Sequence[Sessions]:
    return [Sessions(generate_traces(8, seed=seed), TITLES, [LINEAR, PERCEPTUAL], batch=16, seed=seed)]


def weights(policy: BitratePolicy) -> torch.Tensor:
    return torch.cat([value.flatten() for value in policy.state_dict().values()])


def fitted(settings: FitSettings = SHORT, seed: int = 0, **options: object) -> torch.Tensor:
    torch.manual_seed(seed)
    policy = BitratePolicy()
    fit(policy, worlds, settings, seed=seed, **options)  # type: ignore[arg-type]
    return weights(policy)


def test_holding_a_rung_is_worth_what_the_simulator_then_gives() -> None:
    discount = 0.9
    sessions = Sessions(
        generate_traces(12, seed=1), TITLES, [LINEAR, PERCEPTUAL], Settings(sleep_s=0.0, first_rung=None), seed=1
    )
    for _ in range(3):
        sessions.step(np.ones(12, int))
    scale = Scale(sessions)
    worth = np.zeros((12, 12))
    _hold(sessions.state, sessions.trace_rows, sessions.titles, scale.unit, discount, worth)
    before = sessions.state.copy()
    for rung in (0, 1):
        sessions.state[:] = before
        total = np.zeros(12)
        for step in range(HELD_SEGMENTS):
            going = ~sessions.state["done"]
            outcome = sessions.step(np.full(12, rung))
            total += np.where(going, discount**step * (outcome.reward - scale.low) / scale.unit, 0.0)
        np.testing.assert_allclose(worth[:, rung], total, rtol=1e-6, atol=1e-6)


def test_the_predictor_is_taught_the_true_mean() -> None:
    sessions = worlds(5)[0]
    truth = [
        sessions.future_kbps([5 * length])[place, 0] * 0.95 for place, length in enumerate(sessions.state["segment_s"])
    ]
    np.testing.assert_allclose(_mean_ahead(sessions).exp().numpy(), truth, rtol=0.15)


def test_advantages_are_returns_where_nothing_decays() -> None:
    rewards = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])]
    values = [torch.tensor([0.5, 0.5])] * 4
    ends = [torch.zeros(2), torch.tensor([1.0, 0.0]), torch.zeros(2)]
    settings = FitSettings(discount=1.0, trace=1.0)
    advantages = torch.stack(_advantages(rewards, values, ends, settings))
    expected = torch.tensor([[1 + 3, 2 + 4 + 6 + 0.5], [3, 4 + 6 + 0.5], [5 + 0.5, 6 + 0.5]]) - 0.5
    torch.testing.assert_close(advantages, expected)


def test_forced_first_rungs_teach_nothing() -> None:
    policy, random = BitratePolicy(), torch.Generator().manual_seed(0)
    forced = Sessions(generate_traces(4, seed=1), TITLES, batch=6, seed=0)
    free = Sessions(generate_traces(4, seed=1), TITLES, LINEAR, Settings(first_rung=None), batch=6, seed=0)
    settings = FitSettings(steps=3)
    counts = [len(play(policy, Critic(), sessions, settings, random)) for sessions in (forced, free)]
    assert counts == [12, 18]


def test_a_seed_gives_the_same_policy_and_another_seed_another() -> None:
    first = fitted()
    assert torch.equal(first, fitted())
    assert not torch.allclose(first, fitted(seed=1))


class Killed(Exception):
    pass


def test_a_killed_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    rounds = []

    def kill(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "policy" and len(rounds) == 1:
            raise Killed
        rounds.extend([note] if stage == "policy" else [])

    whole = fitted()
    with pytest.raises(Killed):
        fitted(checkpoint=tmp_path / "run.pt", progress=kill)
    played = []
    resumed = fitted(checkpoint=tmp_path / "run.pt", progress=lambda stage, *_: played.append(stage))
    assert torch.equal(resumed, whole)
    assert played == ["policy"] * 2


def test_a_state_of_another_run_or_a_damaged_one_is_left_alone(tmp_path: Path) -> None:
    state = tmp_path / "run.pt"
    whole = fitted()
    fitted(seed=1, checkpoint=state)
    assert torch.equal(fitted(checkpoint=state), whole)
    state.write_bytes(b"no state")
    assert torch.equal(fitted(checkpoint=state), whole)


def test_a_budget_ends_the_fit() -> None:
    torch.manual_seed(0)
    settings = FitSettings(rounds=10_000, predictor_rounds=1, steps=4, parts=1)
    assert 1 <= fit(BitratePolicy(), worlds, settings, seed=0, budget_s=0.5) < 1000


def test_a_little_training_is_better_than_none() -> None:
    slow = [family for family in FAMILIES if family.name == "3g"]

    def world(seed: int, batch: int = 128) -> Sequence[Sessions]:
        return [Sessions(generate_traces(64, seed=seed, families=slow), TITLES, batch=batch, seed=seed)]

    torch.manual_seed(0)
    policy = BitratePolicy()
    before = mean_qoe(Greedy(policy), world(99, 256)[0])
    fit(policy, world, FitSettings(rounds=10, predictor_rounds=4, steps=24, parts=4), seed=0)
    after = mean_qoe(Greedy(policy), world(99, 256)[0])
    assert after > before + 0.05


def test_tensors_share_the_columns_that_are_used() -> None:
    sessions = worlds(0)[0]
    shapes = [tuple(tensor.shape) for tensor in tensors(sessions.observe(), 7)]
    assert (16, 7) in shapes
    assert (16, 5, 7) in shapes
