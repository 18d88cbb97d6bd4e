"""Rounds of play: what a policy did in many sessions, and what every rung that it thought of would have brought.

The advantage of a decision has two parts (a control variate, as in Gu et al. 2017, "Q-Prop"): what the chosen rung and
each of its rivals bring by one step of the simulator and the critic, which holds for all of them without drawing any;
and, for the rung that was taken, what came later than the critic had thought. A rung that is hardly ever drawn is so
judged in each decision in which it is thinkable.

Shapes: T steps, B sessions, R rungs, N = T * B decisions that were free.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, Self

import numpy as np
import torch
from torch import Tensor

from serve.bitrate.observations import Observations
from training.bitrate.critic import Critic, Scale, foresee
from training.bitrate.model import BitratePolicy, Features
from training.bitrate.simulator import Sessions

THINKABLE: Final = 0.01
"""A rung of less than this probability is not tried out."""

OWN_SCALE: Final = 0.5
"""How far a session's advantages are measured in their own size: 1 wholly, 0 in that of the usual session."""

_LEAST_SPREAD: Final = 0.01


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """A round of one batch of sessions, flat.

    Attributes:
        features: of each decision.
        future: what the critic sees besides (N, 1 + FORESIGHT).
        rungs: chosen (N,).
        log_probabilities: of all rungs when it was chosen (N, R).
        gains: of each thinkable rung over the policy's mean, by one step and the critic; 0 elsewhere (N, R).
        later: of the chosen rung: what came after that step, over what the critic had thought (N,).
        target: of the critic (N,).
    """

    features: Features
    future: Tensor
    rungs: Tensor
    log_probabilities: Tensor
    gains: Tensor
    later: Tensor
    target: Tensor

    def take(self, index: Tensor) -> Self:
        """Those of `index`."""
        features = Features(*(part[index] for part in self.features))
        rest = {field.name: getattr(self, field.name)[index] for field in fields(self) if field.name != "features"}
        return type(self)(features=features, **rest)

    def __len__(self) -> int:
        """Decisions."""
        return len(self.rungs)


def tensors(observations: Observations, rungs: int) -> list[Tensor]:
    """The policy's arguments, with the first `rungs` columns of what is given for each rung."""
    wide = {"rungs_kbps", "segment_bytes", "quality"}
    return [
        torch.from_numpy(array[..., :rungs] if name in wide else array)
        for name, array in observations.as_inputs().items()
    ]


@torch.no_grad()
def play(
    policy: BitratePolicy,
    critic: Critic,
    sessions: Sessions,
    *,
    steps: int,
    discount: float,
    trace: float,
    random: torch.Generator,
) -> Decisions:
    """Play segments of each session, with rungs drawn by the policy.

    Gains and `later` are divided by the size of advantages in the usual session, and a little by that in their own:
    sessions that stall whatever is done would drown all others, as their rewards differ by hundreds of times as much;
    but measured in its own size alone, a rare long stall would count for little more than a change of rung.

    Args:
        policy: what decides.
        critic: what values are taken from.
        sessions: to play; they stand elsewhere afterwards.
        steps: segments that each plays; one that ends begins anew.
        discount: of a later reward, a segment.
        trace: lambda of generalised advantage estimation (Schulman et al. 2016).
        random: draws the rungs.
    """
    columns = int(sessions.state["rungs"].max())
    kept: list[tuple[Features, Tensor, Tensor, Tensor]] = []
    gains, rewards, values, ends, free = [], [], [], [], []
    for _ in range(steps):
        features, future = _see(policy, sessions, columns, discount)
        logs = torch.log_softmax(policy.scores(features), dim=1)
        value = critic(features, future)
        forced = torch.from_numpy((sessions.state["segment"] == 0) & ~np.isnan(sessions.state["first_rung"]))
        thinkable = (logs > np.log(THINKABLE)) & ~forced[:, None]
        worth = _try_out(policy, critic, sessions, thinkable, discount)
        probability = logs.exp() * thinkable
        mean = (probability * worth).sum(1, keepdim=True) / probability.sum(1, keepdim=True).clamp(min=1e-6)
        drawn = torch.multinomial(logs.exp(), 1, generator=random)[:, 0]
        scale = Scale(sessions)
        outcome = sessions.step(drawn.numpy())
        kept.append((features, future, torch.from_numpy(outcome.rung), logs))
        gains.append((worth - mean) * thinkable)
        values.append(value)
        rewards.append(scale(outcome))
        ends.append(torch.from_numpy(outcome.done.astype(np.float32)))
        free.append(~forced)
        sessions.reset(outcome.done)
    values.append(critic(*_see(policy, sessions, columns, discount)))
    advantages = torch.stack(_advantages(rewards, values, ends, discount, trace))  # (T, B)
    later = torch.zeros_like(advantages)
    later[:-1] = advantages[1:] * (1 - torch.stack(ends[:-1])) * discount * trace
    own = advantages.square().mean(0).sqrt() + _LEAST_SPREAD  # (B,)
    spread = own**OWN_SCALE * own.mean() ** (1 - OWN_SCALE)
    flat = Decisions(
        features=Features(*(torch.cat(parts) for parts in zip(*(row[0] for row in kept), strict=True))),
        future=torch.cat([row[1] for row in kept]), rungs=torch.cat([row[2] for row in kept]),
        log_probabilities=torch.cat([row[3] for row in kept]),
        gains=(torch.stack(gains) / spread[:, None]).flatten(0, 1), later=(later / spread).flatten(),
        target=(advantages + torch.stack(values[:-1])).flatten(),
    )  # fmt: skip
    return flat.take(torch.cat(free).nonzero()[:, 0])


def _see(policy: BitratePolicy, sessions: Sessions, columns: int, discount: float) -> tuple[Features, Tensor]:
    features, near, _ = policy.describe(*tensors(sessions.observe(), columns))
    return features, foresee(sessions, near[:, 3:4], discount)


def _try_out(policy: BitratePolicy, critic: Critic, sessions: Sessions, thinkable: Tensor, discount: float) -> Tensor:
    """What each thinkable rung would bring: its reward, and by the critic all after it; 0 elsewhere (B, R)."""
    worth = torch.zeros(thinkable.shape)
    rows, rungs = thinkable.nonzero(as_tuple=True)
    if len(rows):
        branches = sessions.branch(rows.numpy())
        scale = Scale(branches)
        outcome = branches.step(rungs.numpy())
        going = torch.from_numpy(1 - outcome.done.astype(np.float32))
        after = critic(*_see(policy, branches, thinkable.shape[1], discount))
        worth[rows, rungs] = scale(outcome) + discount * going * after
    return worth


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
