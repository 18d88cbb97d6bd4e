"""Rounds of play: sessions go their way, and some of their decisions are judged by trying every thinkable rung out.

A rung is tried out on a branch of the session: it is fetched, then the policy decides as it would in earnest for some
segments, and the critic values where that ends. All rungs of a decision meet the same network, so what differs between
them is their own doing (rollouts, as in Bertsekas 2013, "Rollout algorithms"). What the session itself then draws
teaches the critic alone.

Shapes: T steps, B sessions, R rungs, N decisions that were judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from serve.bitrate.observations import Observations
from training.bitrate.critic import Critic, Scale, foresee
from training.bitrate.model import BitratePolicy, Features
from training.bitrate.simulator import Sessions

THINKABLE: Final = 0.01
"""A rung of less than this probability is not tried out."""

_LEAST_SPREAD: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class PlaySettings:
    """How a round is played.

    Attributes:
        steps: segments that each session plays; one that ends begins anew.
        judged: share of the decisions that are judged.
        depth: segments that a tried-out rung is followed for before the critic values the rest.
        discount: of a later reward, a segment.
        trace: lambda of generalised advantage estimation (Schulman et al. 2016), for the critic's targets.
    """

    steps: int = 48
    judged: float = 0.25
    depth: int = 6
    discount: float = 0.98
    trace: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The judged decisions of a round, from which the policy learns.

    Attributes:
        features: of each (N, ...).
        log_probabilities: of all rungs when it was made (N, R).
        gains: of each thinkable rung over the policy's mean; 0 elsewhere (N, R).
    """

    features: Features
    log_probabilities: Tensor
    gains: Tensor

    def take(self, index: Tensor) -> "Judged":
        """Those of `index`."""
        return Judged(
            features=self.features.take(index), log_probabilities=self.log_probabilities[index], gains=self.gains[index]
        )

    def __len__(self) -> int:
        """Decisions."""
        return len(self.gains)


@dataclass(frozen=True, kw_only=True)
class Valued:
    """All moments of a round, from which the critic learns.

    Attributes:
        features: of each (T * B, ...).
        future: what the critic sees besides (T * B, 1 + FORESIGHT).
        target: what it should have said (T * B,).
    """

    features: Features
    future: Tensor
    target: Tensor

    def take(self, index: Tensor) -> "Valued":
        """Those of `index`."""
        return Valued(features=self.features.take(index), future=self.future[index], target=self.target[index])

    def __len__(self) -> int:
        """Moments."""
        return len(self.target)


def tensors(observations: Observations, rungs: int) -> list[Tensor]:
    """The policy's arguments, with the first `rungs` columns of what is given for each rung."""
    wide = {"rungs_kbps", "segment_bytes", "quality"}
    return [
        torch.from_numpy(array[..., :rungs] if name in wide else array)
        for name, array in observations.as_inputs().items()
    ]


@torch.no_grad()
def play(
    policy: BitratePolicy, critic: Critic, sessions: Sessions, settings: PlaySettings, random: torch.Generator
) -> tuple[Judged, Valued]:
    """Play segments of each session, with rungs drawn by the policy.

    Gains are divided by the size of advantages in the usual session, and half by that in their own: sessions that stall
    whatever is done would drown all others, as their rewards differ by hundreds of times as much; but measured in its
    own size alone, a rare long stall would count for little more than a change of rung.

    Args:
        policy: what decides.
        critic: what values are taken from.
        sessions: to play; they stand elsewhere afterwards.
        settings: how far, and what is judged.
        random: draws the rungs, and which decisions are judged.
    """
    columns = int(sessions.state["rungs"].max())
    kept: list[tuple[Features, Tensor, Tensor]] = []
    rewards, values, ends, judged, branches = [], [], [], [], []
    for _ in range(settings.steps):
        features, future = _see(policy, sessions, columns, settings.discount)
        logs = torch.log_softmax(policy.scores(features), dim=1)
        forced = torch.from_numpy((sessions.state["segment"] == 0) & ~np.isnan(sessions.state["first_rung"]))
        chosen = (torch.rand(len(logs), generator=random) < settings.judged) & ~forced
        thinkable = (logs > np.log(THINKABLE)) & chosen[:, None]
        branches.append(sessions.branch(thinkable.nonzero(as_tuple=True)[0].numpy()))
        drawn = torch.multinomial(logs.exp(), 1, generator=random)[:, 0]
        scale = Scale(sessions)
        outcome = sessions.step(drawn.numpy())
        kept.append((features, future, logs))
        values.append(critic(features, future))
        rewards.append(scale(outcome))
        ends.append(torch.from_numpy(outcome.done.astype(np.float32)))
        judged.append(thinkable)
        sessions.reset(outcome.done)
    values.append(critic(*_see(policy, sessions, columns, settings.discount)))
    advantages = torch.stack(_advantages(rewards, values, ends, settings.discount, settings.trace))  # (T, B)
    own = advantages.square().mean(0).sqrt() + _LEAST_SPREAD  # (B,)
    spread = (own * own.mean()).sqrt()
    thinkable, logs = torch.cat(judged), torch.cat([row[2] for row in kept])  # (T * B, R)
    worth = _try_out(policy, critic, Sessions.joined(branches), thinkable, settings)
    valued = Valued(
        features=Features(*(torch.cat(parts) for parts in zip(*(row[0] for row in kept), strict=True))),
        future=torch.cat([row[1] for row in kept]), target=(advantages + torch.stack(values[:-1])).flatten(),
    )  # fmt: skip
    gains = _gains(worth, thinkable, logs) / spread.repeat(settings.steps)[:, None]
    chosen = thinkable.any(1).nonzero()[:, 0]
    judgements = Judged(
        features=valued.features.take(chosen), log_probabilities=logs[chosen], gains=gains[chosen]
    )  # fmt: skip
    return judgements, valued


def _see(policy: BitratePolicy, sessions: Sessions, columns: int, discount: float) -> tuple[Features, Tensor]:
    features, near, _ = policy.describe(*tensors(sessions.observe(), columns))
    return features, foresee(sessions, near[:, 3:4], discount)


def _try_out(
    policy: BitratePolicy, critic: Critic, branches: Sessions, thinkable: Tensor, settings: PlaySettings
) -> Tensor:
    """What each thinkable rung brings: rewards until `depth` segments later, then the critic; 0 elsewhere (N, R).

    `branches` are one session for each thinkable rung, in order. All are played in lockstep: the graph's many small
    operations cost the same for a hundred sessions as for some.
    """
    worth = torch.zeros(thinkable.shape)
    rows, tried = thinkable.nonzero(as_tuple=True)
    if not len(rows):
        return worth
    columns, scale = thinkable.shape[1], Scale(branches)
    rungs, total, going, factor = tried, torch.zeros(len(rows)), torch.ones(len(rows)), 1.0
    for depth in range(settings.depth + 1):
        if depth:
            features, _, _ = policy.describe(*tensors(branches.observe(), columns))
            rungs = policy.scores(features).argmax(1)
        outcome = branches.step(rungs.numpy())
        total += factor * going * scale(outcome)
        going = torch.from_numpy(1 - outcome.done.astype(np.float32))
        factor *= settings.discount
    total += factor * going * critic(*_see(policy, branches, columns, settings.discount))
    worth[rows, tried] = total
    return worth


def _gains(worth: Tensor, thinkable: Tensor, logs: Tensor) -> Tensor:
    """What each thinkable rung brings over the policy's mean; 0 elsewhere (N, R)."""
    probability = logs.exp() * thinkable
    mean = (probability * worth).sum(1, keepdim=True) / probability.sum(1, keepdim=True).clamp(min=1e-6)
    gains: Tensor = (worth - mean) * thinkable
    return gains


def _advantages(
    rewards: Sequence[Tensor], values: Sequence[Tensor], ends: Sequence[Tensor], discount: float, trace: float
) -> list[Tensor]:
    """Generalised advantages of T steps, each (B,); there is one value more than there are rewards."""
    advantages: list[Tensor] = []
    running = torch.zeros_like(rewards[0])
    for step in reversed(range(len(rewards))):
        going = 1 - ends[step]
        error = rewards[step] + discount * going * values[step + 1] - values[step]
        running = error + discount * trace * going * running
        advantages.append(running)
    return advantages[::-1]
