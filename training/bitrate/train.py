"""Fit the policy: the predictor by supervision, then the corrections by proximal policy optimisation.

Sessions are played in the simulator, all anew in each round, with the randomness of (seed, round) alone, so that a run
that was killed and resumed ends where an unbroken one does. The critic sees what the policy can't, the throughput to
come: a trace does not depend on what is fetched, so the baseline stays unbiased and most of the variance goes (Mao et
al. 2019, "Variance Reduction for Reinforcement Learning in Input-Driven Environments").

Shapes: T steps, B sessions, R rungs, Q quantiles. A reward is measured in the range of the title's quality.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serve.bitrate.observations import LOOKAHEAD, RUNGS, Observations
from training.bitrate.compiled import compiled
from training.bitrate.model import CONTEXT, QUANTILES, RUNG, BitratePolicy, Features, describe_history
from training.bitrate.simulator import Outcome, Sessions, Titles, Traces, download, idle
from training.recommend.progress import ProgressReport, silent

FUTURE_SEGMENTS: Final = (0.5, 1, 2, 3, 5, 8, 13, 21, 34)
"""Ends of the spans whose true throughput the critic sees, in segments."""

HELD_SEGMENTS: Final = 16
"""Segments over which the critic is told what holding each rung would bring."""

RARE: Final = 6.0
"""An advantage counts for at most this many times the mean size: a long stall is no more than very bad."""

_WORST: Final = -100.0


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How the policy is fitted.

    Attributes:
        rounds: of reinforcement learning.
        predictor_rounds: of the predictor before it.
        steps: segments that each session of a round plays.
        epochs: passes over the decisions of a round.
        parts: gradient steps a pass.
        learning_rate: of Adam at the start; it falls to a tenth.
        discount: of a later reward, a segment.
        trace: lambda of generalised advantage estimation (Schulman et al. 2016).
        clip: of the probability ratio (Schulman et al. 2017).
        entropy: weight of the entropy at the start; it falls to a hundredth.
        averaging: decay of the moving average of weights that is kept.
        checkpoint_rounds: rounds between two states on disk.
    """

    rounds: int = 400
    predictor_rounds: int = 30
    steps: int = 48
    epochs: int = 2
    parts: int = 8
    learning_rate: float = 1e-3
    discount: float = 0.98
    trace: float = 0.8
    clip: float = 0.2
    entropy: float = 0.02
    averaging: float = 0.998
    checkpoint_rounds: int = 10


@compiled
def _hold(
    sessions: np.ndarray, traces: Traces, titles: Titles, units: np.ndarray, discount: float, worth: np.ndarray
) -> None:
    for i in range(len(sessions)):
        session = sessions[i]
        start, end = traces.offset[session["trace"]], traces.offset[session["trace"] + 1]
        times_s, kbps = traces.times_s[start:end], traces.kbps[start:end]
        video, measure = session["video"], session["measure"]
        low = titles.mean_quality[measure, video, 0]
        ends = min(session["segments"], session["segment"] + HELD_SEGMENTS)
        for rung in range(session["rungs"]):
            row, at_s, buffer_s = session["row"], session["at_s"], session["buffer_s"]
            last, total, factor = session["last_quality"], 0.0, 1.0
            for segment in range(session["segment"], ends):
                size = titles.segment_bytes[video, segment, rung]
                delay_s, row, at_s = download(times_s, kbps, row, at_s, size, session["payload"])
                delay_s += session["rtt_s"]
                stalled_s = max(delay_s - buffer_s, 0.0)
                buffer_s = max(buffer_s - delay_s, 0.0) + session["segment_s"]
                over_s = buffer_s - session["max_buffer_s"]
                if over_s > 0:
                    buffer_s -= over_s
                    row, at_s = idle(times_s, row, at_s, over_s)
                value = titles.quality[measure, video, segment, rung]
                change = 0.0 if segment == 0 else value - last
                last = value
                reward = session["quality"] * (value - low) + session["rebuffer"] * stalled_s
                reward += session["rise"] * max(change, 0.0) + session["fall"] * max(-change, 0.0)
                total += factor * reward / units[i]
                factor *= discount
            worth[i, rung] = total


class Critic(nn.Module):
    """Worth of what is to come, from the policy's features and the true future (B,).

    It starts from what the best rung would bring if it were held, so that stalls which nobody could avoid, most of a
    return's variance, are no error of it.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(CONTEXT + 2 * RUNG + FORESIGHT, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, features: Features, future: Tensor) -> Tensor:
        """The value of each session (B,); `future` is of `foresee`."""
        exists = features.exists[..., None]
        mean = (features.rungs * exists).sum(1) / exists.sum(1)
        centre = torch.softmax(features.plan * 3 + (features.exists - 1) * 1e3, dim=1)[..., None]
        picked = (features.rungs * centre).sum(1)
        values: Tensor = self.layers(torch.cat([features.context, mean, picked, future[:, 1:]], dim=1))
        return future[:, 0] + values[:, 0] * (1 + 0.1 * future[:, 0].abs())


FORESIGHT: Final = len(FUTURE_SEGMENTS) + RUNGS + 1


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """A round of one batch of sessions, flat: N = T * B decisions that were free.

    Attributes:
        features: of each.
        future: what the critic sees besides (N, len(FUTURE_SEGMENTS)).
        rungs: chosen (N,).
        log_probability: of the choice (N,).
        advantage: of the choice (N,).
        target: of the critic (N,).
    """

    features: Features
    future: Tensor
    rungs: Tensor
    log_probability: Tensor
    advantage: Tensor
    target: Tensor

    def take(self, index: Tensor) -> "Decisions":
        """Those of `index`."""
        return Decisions(
            features=Features(*(part[index] for part in self.features)), future=self.future[index],
            rungs=self.rungs[index], log_probability=self.log_probability[index], advantage=self.advantage[index],
            target=self.target[index],
        )  # fmt: skip

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


def foresee(sessions: Sessions, level: Tensor, discount: float) -> Tensor:
    """What the critic alone knows (B, 1 + FORESIGHT).

    The worth of the best held rung, as it is and dampened; the dampened loss of each other rung; ln of the true
    throughput in each span of FUTURE_SEGMENTS, relative to the past level.
    """
    ends = np.asarray(FUTURE_SEGMENTS, np.float64)
    state = sessions.state
    volume = _volume(sessions, ends * state["segment_s"][:, None]) / state["segment_s"][:, None]
    spans = np.diff(volume, axis=1, prepend=0) / np.diff(ends, prepend=0)
    logs = torch.from_numpy(np.log(np.maximum(spans, 1.0)).astype(np.float32))
    held = np.full((len(sessions), RUNGS), -np.inf)
    _hold(state, sessions.trace_rows, sessions.titles, Scale(sessions).unit, discount, held)
    best = held.max(1, keepdims=True)
    losses = np.where(np.isfinite(held), np.log1p(best - held), 5.0)
    seen = np.concatenate([best, np.sign(best) * np.log1p(np.abs(best)), losses], axis=1).astype(np.float32)
    return torch.cat([torch.from_numpy(seen), (logs - level).clamp(-6.0, 6.0)], dim=1)


class Scale:
    """What a reward is divided by: the range of the title's quality, in the QoE's unit."""

    def __init__(self, sessions: Sessions) -> None:
        state = sessions.state
        quality = sessions.titles.mean_quality[state["measure"], state["video"]]  # (B, R)
        rows = np.arange(len(state))
        self.low = state["quality"] * quality[rows, 0] + state["constant"]
        self.unit = np.maximum(state["quality"] * (quality[rows, state["rungs"] - 1] - quality[rows, 0]), 1e-3)

    def __call__(self, outcome: Outcome) -> Tensor:
        """Rewards (B,)."""
        return torch.from_numpy(np.maximum((outcome.reward - self.low) / self.unit, _WORST).astype(np.float32))


@torch.no_grad()
def play(
    policy: BitratePolicy, critic: Critic, sessions: Sessions, settings: FitSettings, random: torch.Generator
) -> Decisions:
    """Play `settings.steps` segments of each session, with rungs drawn by the policy."""
    columns = int(sessions.state["rungs"].max())
    kept: list[tuple[Features, Tensor, Tensor, Tensor]] = []
    rewards, values, ends, free = [], [], [], []
    for _ in range(settings.steps):
        features, future = _see(policy, sessions, columns, settings.discount)
        logs = torch.log_softmax(policy.scores(features), dim=1)
        drawn = torch.multinomial(logs.exp(), 1, generator=random)[:, 0]
        state = sessions.state
        forced = (state["segment"] == 0) & ~np.isnan(state["first_rung"])
        scale = Scale(sessions)
        outcome = sessions.step(drawn.numpy())
        rungs = torch.from_numpy(outcome.rung)
        kept.append((features, future, rungs, logs.gather(1, rungs[:, None])[:, 0]))
        values.append(critic(features, future))
        rewards.append(scale(outcome))
        ends.append(torch.from_numpy(outcome.done.astype(np.float32)))
        free.append(torch.from_numpy(~forced))
        sessions.reset(outcome.done)
    values.append(critic(*_see(policy, sessions, columns, settings.discount)))
    advantages = _advantages(rewards, values, ends, settings)
    advantage = torch.cat(advantages)
    target = advantage + torch.cat(values[:-1])
    flat = Decisions(
        features=Features(*(torch.cat(parts) for parts in zip(*(row[0] for row in kept), strict=True))),
        future=torch.cat([row[1] for row in kept]), rungs=torch.cat([row[2] for row in kept]),
        log_probability=torch.cat([row[3] for row in kept]), advantage=advantage, target=target,
    )  # fmt: skip
    return flat.take(torch.cat(free).nonzero()[:, 0])


def _see(policy: BitratePolicy, sessions: Sessions, columns: int, discount: float) -> tuple[Features, Tensor]:
    arguments = tensors(sessions.observe(), columns)
    features, near, _ = policy.describe(*arguments)
    return features, foresee(sessions, near[:, 3:4], discount)


def _advantages(
    rewards: Sequence[Tensor], values: Sequence[Tensor], ends: Sequence[Tensor], settings: FitSettings
) -> list[Tensor]:
    advantages: list[Tensor] = []
    running = torch.zeros_like(rewards[0])
    for step in reversed(range(len(rewards))):
        going = 1 - ends[step]
        error = rewards[step] + settings.discount * going * values[step + 1] - values[step]
        running = error + settings.discount * settings.trace * going * running
        advantages.append(running)
    return advantages[::-1]


Worlds = Callable[[int], Sequence[Sessions]]
"""Batches of sessions to play in a round, by the round's seed."""


def fit(
    policy: BitratePolicy,
    worlds: Worlds,
    settings: FitSettings,
    *,
    seed: int,
    progress: ProgressReport = silent,
    checkpoint: Path | None = None,
    identity: str = "",
    budget_s: float | None = None,
    validate: Callable[[BitratePolicy], float] | None = None,
) -> int:
    """Fit a policy in place; it ends with the averaged weights, in evaluation mode.

    Args:
        policy: what to fit.
        worlds: gives the sessions of a round.
        settings: how.
        seed: of everything random.
        progress: told after each round.
        checkpoint: file that holds the state; where it is there and of the same run, the run goes on from it.
        identity: names the data.
        budget_s: wall time after which learning rate and entropy have fallen and the fit ends; None: `rounds` rounds.
            A run that it ends is not repeatable on another machine.
        validate: a figure to show now and then.

    Returns:
        rounds played.
    """
    run = _Run(policy, worlds, settings, seed)
    identity = _identity(policy, settings, seed, identity)
    if checkpoint is not None and checkpoint.is_file():
        run.restore(checkpoint, identity)
    while run.predicted < settings.predictor_rounds:
        loss = run.predict()
        progress("throughput", run.predicted, settings.predictor_rounds, f"pinball {loss:.4f}")
    started, first = time.monotonic(), run.played
    note = ""
    while run.played < settings.rounds:
        done = run.played / settings.rounds
        if budget_s is not None:
            done = max(done, (time.monotonic() - started) / budget_s)
        if done >= 1:
            break
        run.improve(done)
        if run.played % settings.checkpoint_rounds == 0:
            if checkpoint is not None:
                run.store(checkpoint, identity)
            if validate is not None:
                kept = _copy(policy)
                policy.load_state_dict(run.average)
                note = f"validation {validate(policy):.4f}"
                policy.load_state_dict(kept)
        progress("policy", round(done * 1000), 1000, f"round {run.played}  reward {run.reward:.4f}  {note}")
    del first
    policy.load_state_dict(run.average)
    policy.eval()
    return run.played


class _Run:
    """A fit between rounds."""

    def __init__(self, policy: BitratePolicy, worlds: Worlds, settings: FitSettings, seed: int) -> None:
        self.policy, self.worlds, self.settings, self.seed = policy, worlds, settings, seed
        torch.manual_seed(seed)
        self.critic = Critic()
        self.predictor_optimizer = torch.optim.Adam(policy.predictor.parameters(), lr=2e-3)
        self.learned = [parameter for name, parameter in policy.named_parameters() if not name.startswith("predictor.")]
        self.optimizer = torch.optim.Adam(self.learned, lr=settings.learning_rate, eps=1e-5)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=settings.learning_rate)
        self.average = _copy(policy)
        self.predicted = self.played = self.updates = 0
        self.reward = 0.0

    def _random(self, stage: str, number: int) -> tuple[int, torch.Generator]:
        code = int.from_bytes(hashlib.sha256(f"{self.seed}/{stage}/{number}".encode()).digest()[:6], "big")
        return code, torch.Generator().manual_seed(code)

    def predict(self) -> float:
        """One round of the predictor: play by the plan, compare its quantiles with what then came."""
        code, _ = self._random("predict", self.predicted)
        share = self.predicted / self.settings.predictor_rounds
        for group in self.predictor_optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - 0.9 * share)
        levels = torch.tensor(QUANTILES)
        losses = []
        for sessions in self.worlds(code):
            columns = int(sessions.state["rungs"].max())
            for _ in range(self.settings.steps):
                arguments = tensors(sessions.observe(), columns)
                named = dict(zip(Observations.__slots__, arguments, strict=True))
                with torch.no_grad():
                    scores = self.policy.scores(self.policy.describe(*arguments)[0])
                far = _mean_ahead(sessions)
                outcome = sessions.step(scores.argmax(1).numpy())
                near = torch.log(torch.from_numpy(sessions.observe().throughput_kbps[:, -1]).clamp(min=1.0))
                history = describe_history(
                    *(
                        named[name]
                        for name in ("throughput_kbps", "download_s", "segment_s", "rungs_kbps", "prior_log_kbps")
                    )
                )
                loss = torch.zeros(())
                for quantiles, truth in zip(self.policy.predictor(history), (near, far), strict=True):
                    error = truth[:, None] - quantiles
                    loss = loss + torch.maximum(levels * error, (levels - 1) * error).mean()
                self.predictor_optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.policy.predictor.parameters(), 1.0)
                self.predictor_optimizer.step()
                losses.append(loss.item())
                sessions.reset(outcome.done)
        self.predicted += 1
        self.average = _copy(self.policy)
        return float(np.mean(losses))

    def improve(self, done: float) -> None:
        """One round of reinforcement; `done` is the share of the fit that is over."""
        settings = self.settings
        code, random = self._random("improve", self.played)
        rounds = [play(self.policy, self.critic, sessions, settings, random) for sessions in self.worlds(code)]
        self.reward = float(rounds[0].target.mean()) * (1 - settings.discount)
        rate = settings.learning_rate * (1 - 0.9 * done)
        for optimizer in (self.optimizer, self.critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = rate
        entropy = settings.entropy * 0.01**done
        for _ in range(settings.epochs):
            orders = [torch.randperm(len(batch), generator=random).chunk(settings.parts) for batch in rounds]
            for part in range(settings.parts):
                self._update([batch.take(order[part]) for batch, order in zip(rounds, orders, strict=True)], entropy)
        self.played += 1

    def _update(self, batches: Sequence[Decisions], entropy: float) -> None:
        total = sum(map(len, batches))
        self.optimizer.zero_grad()
        self.critic_optimizer.zero_grad()
        for batch in batches:
            logs = torch.log_softmax(self.policy.scores(batch.features), dim=1)
            ratio = (logs.gather(1, batch.rungs[:, None])[:, 0] - batch.log_probability).exp()
            usual = batch.advantage.abs().mean() + 1e-6
            advantage = (batch.advantage / usual).clamp(-RARE, RARE)
            clip = self.settings.clip
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
            spread = -(logs.exp() * logs.clamp(min=-50.0)).sum(1).mean()
            error = nn.functional.smooth_l1_loss(self.critic(batch.features, batch.future), batch.target)
            share = len(batch) / total
            loss = share * (error - gain - entropy * spread)
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.learned, 0.5)
        nn.utils.clip_grad_norm_(self.critic.parameters(), 1.0)
        self.optimizer.step()
        self.critic_optimizer.step()
        self.updates += 1
        keep = min(self.settings.averaging, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for name, value in self.policy.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)

    def store(self, path: Path, identity: str) -> None:
        """Write the state, whole or not at all."""
        state = {
            "identity": identity, "policy": self.policy.state_dict(), "critic": self.critic.state_dict(),
            "average": self.average, "optimizer": self.optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(), "predicted": self.predicted, "played": self.played,
            "updates": self.updates,
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save(state, fresh)
        fresh.replace(path)

    def restore(self, path: Path, identity: str) -> None:
        """Take up a stored state; one that is damaged or of another run is left alone."""
        try:
            state = torch.load(path, weights_only=True)
        except Exception:  # noqa: BLE001 - torch raises whatever its unpickler and zip reader raise
            return
        if state.get("identity") != identity:
            return
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.average = state["average"]
        self.predicted, self.played, self.updates = state["predicted"], state["played"], state["updates"]


def _mean_ahead(sessions: Sessions) -> Tensor:
    """The logarithm of the true mean payload throughput of the next LOOKAHEAD segments' time (B,)."""
    span_s = LOOKAHEAD * sessions.state["segment_s"]
    means = _volume(sessions, span_s[:, None])[:, 0] / span_s
    return torch.from_numpy(np.log(np.maximum(means * sessions.state["payload"], 1.0)).astype(np.float32))


_GRID_S: Final = (0.0, 0.5, 1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 65, 80, 100, 130, 160, 200, 260, 340, 600)


def _volume(sessions: Sessions, ends_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the network carries until `ends_s`, each session's own, in kbit; linear between _GRID_S (B, W)."""
    grid = np.asarray(_GRID_S)
    carried = np.concatenate([np.zeros((len(sessions), 1)), sessions.future_kbps(grid[1:]) * grid[1:]], axis=1)
    place = np.clip(np.searchsorted(grid, ends_s) - 1, 0, len(grid) - 2)
    low, high = (np.take_along_axis(carried, place + side, 1) for side in (0, 1))
    volume: NDArray[np.float64] = low + (high - low) * (ends_s - grid[place]) / (grid[place + 1] - grid[place])
    return volume


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _identity(policy: BitratePolicy, settings: FitSettings, seed: int, data: str) -> str:
    """Names a run: the same data, model, settings and seed."""
    shapes: dict[str, Any] = {name: list(value.shape) for name, value in policy.state_dict().items()}
    kept = {name: value for name, value in asdict(settings).items() if name != "checkpoint_rounds"}
    return hashlib.sha256(json.dumps([shapes, kept, seed, data], sort_keys=True).encode()).hexdigest()
