"""Fit the policy: the predictor by supervision, then the corrections by proximal policy optimisation.

Sessions are played in the simulator, all anew in each round, with the randomness of (seed, round) alone, so that a run
that was killed and resumed ends where an unbroken one does. What a round is made of: training.bitrate.rollouts.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from serve.bitrate.observations import Observations
from training.bitrate.critic import Critic, mean_ahead
from training.bitrate.model import QUANTILES, BitratePolicy, describe_history
from training.bitrate.rollouts import Judged, PlaySettings, Valued, play, tensors
from training.bitrate.simulator import Sessions
from training.recommend.progress import ProgressReport, silent

RARE: Final = 30.0
"""An advantage counts for at most this many times the usual size."""

ENTROPY_LEFT: Final = 0.3
"""Share of the entropy's weight that is left at the end. With none the policy settles on habits of the given traces."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How the policy is fitted.

    Attributes:
        rounds: of reinforcement learning.
        predictor_rounds: of the predictor before it.
        play: how a round is played.
        epochs: passes over the decisions of a round.
        parts: gradient steps a pass.
        learning_rate: of Adam at the start; it falls to a tenth.
        clip: of the probability ratio (Schulman et al. 2017).
        entropy: weight of the entropy at the start; it falls to ENTROPY_LEFT of it.
        averaging: decay of the moving average of weights that is kept.
        checkpoint_rounds: rounds between two states on disk.
        validation_rounds: rounds between two looks at the validation figure.
    """

    rounds: int = 240
    predictor_rounds: int = 30
    play: PlaySettings = field(default_factory=PlaySettings)
    epochs: int = 2
    parts: int = 8
    learning_rate: float = 1e-3
    clip: float = 0.2
    entropy: float = 0.01
    averaging: float = 0.998
    checkpoint_rounds: int = 10
    validation_rounds: int = 20


_Batch = TypeVar("_Batch", Judged, Valued)

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
    judged_first: bool = False,
) -> int:
    """Fit a policy in place; it ends in evaluation mode with the averaged weights of the best validation figure.

    After some millions of decisions a policy gets worse on networks that it was not trained on, so the last one is
    seldom the best.

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
        validate: a figure of how good a policy is, higher is better; None: the last averaged weights are taken.
        judged_first: whether the weights that it starts with may be those that are kept.

    Returns:
        Rounds played until the weights that were taken.
    """
    run = _Run(policy, worlds, settings, seed)
    identity = _identity(policy, settings, seed, identity)
    if checkpoint is not None and checkpoint.is_file():
        run.restore(checkpoint, identity)
    while run.predicted < settings.predictor_rounds:
        loss = run.predict()
        progress("throughput", run.predicted, settings.predictor_rounds, f"pinball {loss:.4f}")
    started = time.monotonic() - run.spent_s
    note = ""
    if judged_first and validate is not None and run.played == 0:
        run.judge(validate)
    while run.played < settings.rounds:
        done = run.played / settings.rounds
        if budget_s is not None:
            done = max(done, (time.monotonic() - started) / budget_s)
        if done >= 1:
            break
        run.improve(done)
        if validate is not None and run.played % settings.validation_rounds == 0:
            note = f"validation {run.judge(validate):.4f}, best {run.best:.4f}"
        run.spent_s = time.monotonic() - started
        if checkpoint is not None and run.played % settings.checkpoint_rounds == 0:
            run.store(checkpoint, identity)
        progress("policy", round(done * 1000), 1000, f"round {run.played}  reward {run.reward:.4f}  {note}")
    if validate is not None and run.played != run.judged:
        run.judge(validate)
    policy.load_state_dict(run.average if validate is None else run.kept)
    policy.eval()
    return run.played if validate is None else run.kept_round


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
        self.reward = self.spent_s = 0.0
        self.best, self.kept, self.kept_round, self.judged = -math.inf, self.average, 0, -1

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
            for _ in range(self.settings.play.steps):
                arguments = tensors(sessions.observe(), columns)
                named = dict(zip(Observations.__slots__, arguments, strict=True))
                with torch.no_grad():
                    scores = self.policy.scores(self.policy.describe(*arguments)[0])
                far = mean_ahead(sessions)
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
        rounds = [play(self.policy, self.critic, sessions, settings.play, random) for sessions in self.worlds(code)]
        self.reward = float(rounds[0][1].target.mean()) * (1 - settings.play.discount)
        rate = settings.learning_rate * (1 - 0.9 * done)
        for optimizer in (self.optimizer, self.critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = rate
        entropy = settings.entropy * ENTROPY_LEFT**done
        for _ in range(settings.epochs):
            parts = [
                (_shuffled(one, settings.parts, random), _shuffled(two, settings.parts, random)) for one, two in rounds
            ]
            for part in range(settings.parts):
                self._learn([judged[part] for judged, _ in parts], entropy)
                self._learn_values([valued[part] for _, valued in parts])
        self.played += 1

    def judge(self, validate: Callable[[BitratePolicy], float]) -> float:
        """The figure of the averaged weights, which are kept if none was better."""
        now = _copy(self.policy)
        self.policy.load_state_dict(self.average)
        figure = validate(self.policy)
        self.policy.load_state_dict(now)
        self.judged = self.played
        if figure > self.best:
            self.best, self.kept, self.kept_round = figure, _copy_of(self.average), self.played
        return figure

    def _learn(self, batches: Sequence[Judged], entropy: float) -> None:
        """One step of the policy."""
        total = sum(map(len, batches))
        self.optimizer.zero_grad()
        for batch in batches:
            logs = torch.log_softmax(self.policy.scores(batch.features), dim=1)
            ratios = (logs - batch.log_probabilities).clamp(-20.0, 20.0).exp()
            gain = (batch.log_probabilities.exp() * self._clipped(ratios, batch.gains)).sum(1).mean()
            spread = -(logs.exp() * logs.clamp(min=-50.0)).sum(1).mean()
            loss = -len(batch) / total * (gain + entropy * spread)
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.learned, 0.5)
        self.optimizer.step()
        self.updates += 1
        keep = min(self.settings.averaging, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for name, value in self.policy.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)

    def _learn_values(self, batches: Sequence[Valued]) -> None:
        """One step of the critic."""
        total = sum(map(len, batches))
        self.critic_optimizer.zero_grad()
        for batch in batches:
            error = nn.functional.smooth_l1_loss(self.critic(batch.features, batch.future), batch.target)
            loss = len(batch) / total * error
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.critic.parameters(), 1.0)
        self.critic_optimizer.step()

    def _clipped(self, ratios: Tensor, advantages: Tensor) -> Tensor:
        """What a change of probability brings, as far as it is rewarded (Schulman et al. 2017, eq. 7)."""
        advantages, clip = advantages.clamp(-RARE, RARE), self.settings.clip
        return torch.minimum(ratios * advantages, ratios.clamp(1 - clip, 1 + clip) * advantages)

    def store(self, path: Path, identity: str) -> None:
        """Write the state, whole or not at all."""
        state = {
            "identity": identity, "policy": self.policy.state_dict(), "critic": self.critic.state_dict(),
            "average": self.average, "optimizer": self.optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(), "predicted": self.predicted, "played": self.played,
            "updates": self.updates, "best": self.best, "kept": self.kept, "kept_round": self.kept_round,
            "judged": self.judged, "spent_s": self.spent_s,
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
        for name in ("predicted", "played", "updates", "best", "kept", "kept_round", "judged", "spent_s"):
            setattr(self, name, state[name])


def _shuffled(batch: _Batch, parts: int, random: torch.Generator) -> list[_Batch]:
    return [batch.take(order) for order in torch.randperm(len(batch), generator=random).chunk(parts)]


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return _copy_of(module.state_dict())


def _copy_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def _identity(policy: BitratePolicy, settings: FitSettings, seed: int, data: str) -> str:
    """Names a run: the same data, model, settings and seed."""
    shapes: dict[str, Any] = {name: list(value.shape) for name, value in policy.state_dict().items()}
    kept = {name: value for name, value in asdict(settings).items() if name != "checkpoint_rounds"}
    return hashlib.sha256(json.dumps([shapes, kept, seed, data], sort_keys=True).encode()).hexdigest()
