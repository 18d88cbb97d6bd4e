"""Rounds of play: gains are what the simulator gives, advantages add up, forced choices teach nothing."""

import numpy as np
import pytest
import torch

from tests.training.bitrate.conftest import SHORT_TITLES
from training.bitrate.critic import Critic, Scale, foresee
from training.bitrate.model import BitratePolicy
from training.bitrate.qoe import LINEAR, PERCEPTUAL
from training.bitrate.rollouts import Judged, PlaySettings, Valued, _advantages, _try_out, play, tensors
from training.bitrate.simulator import Sessions, Settings
from training.bitrate.synthetic import generate_traces

FREE = Settings(first_rung=None)


def sessions_of(*settings: Settings, batch: int = 16) -> Sessions:
    return Sessions(
        generate_traces(8, seed=5), SHORT_TITLES, [LINEAR, PERCEPTUAL], settings or FREE, batch=batch, seed=5
    )


def played(sessions: Sessions, settings: PlaySettings, seed: int = 0) -> tuple[Judged, Valued]:
    torch.manual_seed(seed)
    return play(BitratePolicy(), Critic(), sessions, settings, torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("depth", [0, 3])
def test_a_rung_is_worth_what_the_simulator_then_gives_and_the_critic_makes_of_the_rest(depth: int) -> None:
    torch.manual_seed(0)
    policy, critic, sessions = BitratePolicy(), Critic(), sessions_of(Settings(first_rung=None, noise=0.3))
    for _ in range(21):  # of 24 or fewer segments: some branches end on the way
        sessions.step(np.zeros(16, int))
    before = sessions.state.copy()
    thinkable = torch.from_numpy(sessions.observe().rungs_kbps > 0)
    settings = PlaySettings(depth=depth, discount=0.9)
    branches = [sessions.branch(np.array([row])) for row in thinkable.nonzero(as_tuple=True)[0].tolist()]
    worth = _try_out(policy, critic, Sessions.joined(branches), thinkable, settings)
    assert all((sessions.state[name] == before[name]).all() for name in ("segment", "buffer_s", "row", "at_s"))
    assert (worth[~thinkable] == 0).all()
    for rung in (0, 1):
        branch = sessions.branch(np.arange(16))
        assert branch.state["done"].sum() == 0
        scale, total, going, rungs = Scale(branch), torch.zeros(16), torch.ones(16), np.full(16, rung)
        for step in range(depth + 1):
            outcome = branch.step(rungs)
            total += 0.9**step * going * scale(outcome)
            going = torch.from_numpy(~outcome.done).float()
            scores, quantiles, _ = policy(*tensors(branch.observe(), 12))
            rungs = scores.argmax(1).numpy()
        features, near, _ = policy.describe(*tensors(branch.observe(), 12))
        total += 0.9 ** (depth + 1) * going * critic(features, foresee(branch, near[:, 3:4], 0.9))
        torch.testing.assert_close(worth[:, rung], total, rtol=1e-4, atol=1e-4)
        assert bool((going == 0).any()) == (depth > 0)
        assert quantiles.shape == (16, 7)


def test_gains_of_a_decision_cancel_out_under_the_policy_and_differ_by_rung() -> None:
    decisions, _ = played(sessions_of(), PlaySettings(steps=4, judged=1.0))
    probabilities = decisions.log_probabilities.exp()
    thinkable = probabilities > 0.01
    mean = (probabilities * thinkable * decisions.gains).sum(1)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-3, rtol=0.0)
    several = thinkable.sum(1) > 1
    assert several.float().mean() > 0.5
    assert (decisions.gains[several].abs().amax(1) > 0).float().mean() > 0.9
    assert (decisions.gains[~thinkable] == 0).all()


def test_only_a_share_of_the_decisions_is_judged() -> None:
    judged, valued = played(sessions_of(), PlaySettings(steps=20, judged=0.25))
    assert len(judged) == pytest.approx(80, rel=0.3)
    assert len(valued) == 320  # the critic learns from all


def test_sessions_whose_rewards_differ_by_much_count_nearly_alike() -> None:
    """A session that stalls whatever is done has a hundred times the rewards of others, not of their gains."""
    usual, mixed = (sessions_of(batch=16) for _ in range(2))
    mixed.state["rebuffer"][:8] *= 100.0
    sizes = []
    for sessions in (usual, mixed):
        gains = played(sessions, PlaySettings(steps=6, judged=1.0))[0].gains.reshape(6, 16, -1).abs().mean((0, 2))
        sizes.append(float(gains[:8].mean() / gains[8:].mean()))
    assert sizes[1] < 30 * sizes[0]
    assert sizes[1] > sizes[0]  # they still count for more


def test_advantages_are_returns_where_nothing_decays() -> None:
    rewards = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])]
    values = [torch.tensor([0.5, 0.5])] * 4
    ends = [torch.zeros(2), torch.tensor([1.0, 0.0]), torch.zeros(2)]
    advantages = torch.stack(_advantages(rewards, values, ends, 1.0, 1.0))
    expected = torch.tensor([[1 + 3, 2 + 4 + 6 + 0.5], [3, 4 + 6 + 0.5], [5 + 0.5, 6 + 0.5]]) - 0.5
    torch.testing.assert_close(advantages, expected)


@pytest.mark.parametrize(("settings", "expected"), [(Settings(), 12), (FREE, 18)])
def test_forced_first_rungs_teach_nothing(settings: Settings, expected: int) -> None:
    judged, _ = played(sessions_of(settings, batch=6), PlaySettings(steps=3, judged=1.0))
    assert len(judged) == expected


def test_tensors_share_the_columns_that_are_used() -> None:
    sessions = sessions_of()
    shapes = [tuple(tensor.shape) for tensor in tensors(sessions.observe(), 7)]
    assert (16, 7) in shapes
    assert (16, 5, 7) in shapes
