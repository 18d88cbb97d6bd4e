"""Rounds of play: gains are what the simulator gives, advantages add up, forced choices teach nothing."""

import numpy as np
import pytest
import torch

from tests.training.bitrate.conftest import SHORT_TITLES
from training.bitrate.critic import Critic, Scale
from training.bitrate.model import BitratePolicy
from training.bitrate.qoe import LINEAR, PERCEPTUAL
from training.bitrate.rollouts import Decisions, _advantages, _try_out, play, tensors
from training.bitrate.simulator import Sessions, Settings
from training.bitrate.synthetic import generate_traces

FREE = Settings(first_rung=None)


def sessions_of(*settings: Settings, batch: int = 16) -> Sessions:
    return Sessions(
        generate_traces(8, seed=5), SHORT_TITLES, [LINEAR, PERCEPTUAL], settings or FREE, batch=batch, seed=5
    )


def played(sessions: Sessions, steps: int, *, discount: float = 0.9, seed: int = 0) -> Decisions:
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    return play(BitratePolicy(), Critic(), sessions, steps=steps, discount=discount, trace=0.8, random=random)


@torch.no_grad()
def test_each_rung_is_worth_what_the_simulator_gives_and_the_critic_makes_of_it() -> None:
    torch.manual_seed(0)
    policy, critic, sessions = BitratePolicy(), Critic(), sessions_of(Settings(first_rung=None, noise=0.3))
    sessions.step(np.zeros(16, int))
    before = sessions.state.copy()
    thinkable = torch.from_numpy(sessions.observe().rungs_kbps > 0)
    myopic = _try_out(policy, critic, sessions, thinkable, discount=0.0)
    assert sessions.state.tobytes() == before.tobytes()  # nothing was really fetched
    assert (myopic[~thinkable] == 0).all()
    sessions.state["noise"] = 0.0
    for rung in (0, 1):
        sessions.state[:] = before
        sessions.state["noise"] = 0.0
        scale = Scale(sessions)
        torch.testing.assert_close(myopic[:, rung], scale(sessions.step(np.full(16, rung))))
    sessions.state[:] = before
    far_sighted = _try_out(policy, critic, sessions, thinkable, discount=0.9)
    assert not torch.allclose(far_sighted[thinkable], myopic[thinkable])


def test_gains_of_a_decision_cancel_out_under_the_policy_and_differ_by_rung() -> None:
    decisions = played(sessions_of(), 4)
    probabilities = decisions.log_probabilities.exp()
    thinkable = probabilities > 0.01
    mean = (probabilities * thinkable * decisions.gains).sum(1)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-3, rtol=0.0)
    several = thinkable.sum(1) > 1
    assert several.float().mean() > 0.5
    assert (decisions.gains[several].abs().amax(1) > 0).float().mean() > 0.9
    assert (decisions.gains[~thinkable] == 0).all()


def test_a_session_on_a_hopeless_network_does_not_drown_the_others() -> None:
    """The others' gains are measured by the usual session, whatever happens in one."""
    usual, mixed = (sessions_of(batch=9) for _ in range(2))
    mixed.state["rebuffer"][0] *= 1e6
    sizes = []
    for sessions in (usual, mixed):
        gains = played(sessions, 6).gains.reshape(6, 9, -1)
        sizes.append(gains[:, 1:].abs().mean())
    assert sizes[1] == pytest.approx(float(sizes[0]), rel=0.5)


def test_advantages_are_returns_where_nothing_decays() -> None:
    rewards = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])]
    values = [torch.tensor([0.5, 0.5])] * 4
    ends = [torch.zeros(2), torch.tensor([1.0, 0.0]), torch.zeros(2)]
    advantages = torch.stack(_advantages(rewards, values, ends, 1.0, 1.0))
    expected = torch.tensor([[1 + 3, 2 + 4 + 6 + 0.5], [3, 4 + 6 + 0.5], [5 + 0.5, 6 + 0.5]]) - 0.5
    torch.testing.assert_close(advantages, expected)


@pytest.mark.parametrize(("settings", "expected"), [(Settings(), 12), (FREE, 18)])
def test_forced_first_rungs_teach_nothing(settings: Settings, expected: int) -> None:
    assert len(played(sessions_of(settings, batch=6), 3)) == expected


def test_tensors_share_the_columns_that_are_used() -> None:
    sessions = sessions_of()
    shapes = [tuple(tensor.shape) for tensor in tensors(sessions.observe(), 7)]
    assert (16, 7) in shapes
    assert (16, 5, 7) in shapes
