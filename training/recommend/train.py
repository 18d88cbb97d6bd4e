"""Fit a sequence model to interactions: seeded, resumable, stopped by its validation metric or a time budget.

The same loop fits Playhead's encoder and the SASRec it is compared with. Each epoch's randomness comes from (seed,
epoch) alone, so that a run that was killed and resumed ends where an unbroken one does.

Several processes may share a fit (training.recommend.parallel): each has the whole state, takes its part of every
batch, and after each step all hold the same weights. What they must agree on goes through a Team; alone, there is
nothing to agree on.

Shapes: B batch, T time, N title rows (row 0 is padding), P predictions (all visits of a batch).
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.recommend.interactions import Interactions, Ints, Prefix
from training.recommend.metrics import Ranked, ndcg, rank_targets
from training.recommend.model import MASKED
from training.recommend.progress import ProgressReport, silent
from training.recommend.split import Split

FULL_SOFTMAX_TITLES: Final = 8192
"""Up to this many titles every title is a negative of every prediction; above it, NEGATIVES sampled ones are."""

NEGATIVES: Final = 4096


class SequenceModel(Protocol):
    """A module that predicts the next title of a history."""

    length: int
    """The most visits it takes."""
    members: int
    """Models side by side: each has an equal share of state and vector, and its own loss; their scores are averaged."""
    starts: bool
    """Whether it predicts the first title too, from an empty history."""

    def title_vectors(self) -> Tensor:
        """Vectors of all titles, (N, d)."""

    def states(self, titles: Tensor, actions: Tensor, times: Tensor, table: Tensor) -> Tensor:
        """States after each prefix, (B, T + 1, d)."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a model is fitted.

    Attributes:
        epochs: the most passes over the data.
        patience: stop after this many epochs without a better validation NDCG@10.
        batch: windows a step.
        learning_rate: of AdamW, after a warm-up.
        warmup: steps until the full learning rate; at most two epochs.
        weight_decay: of matrices.
        averaging: decay of the moving average of weights that is validated and kept; 0 for none.
        epoch_visits: an epoch of larger data is a random part of about this many visits.
        validation_users: the most users that validation looks at.
        budget_s: stop after the epoch that passes this wall time; None for no bound. A run that it ends is not
            repeatable on another machine.
    """

    epochs: int = 80
    patience: int = 6
    batch: int = 32
    learning_rate: float = 4e-3
    warmup: int = 100
    weight_decay: float = 0.0
    averaging: float = 0.99
    epoch_visits: int = 2_000_000
    validation_users: int = 5_000
    budget_s: float | None = None


class Team(Protocol):
    """Those who share a fit. Each calls the same methods in the same order."""

    @property
    def leads(self) -> bool:
        """Whether this one validates, writes the checkpoint and decides."""

    def seed(self, code: int) -> int:
        """Seed of this one's own randomness (dropout, sampled negatives), from one that all have."""

    def share(self, windows: list[Prefix]) -> list[Prefix]:
        """This one's part of a batch; maybe none of it."""

    def average(self, parameters: Iterable[nn.Parameter], predictions: int) -> int:
        """Make each gradient the mean over all predictions of the batch.

        Args:
            parameters: with the gradient of the mean loss of this one's predictions; None counts as zeros.
            predictions: how many those are, P.

        Returns:
            The predictions of all.
        """

    def decided(self, figure: Callable[[], float]) -> float:
        """What the leading one finds; the others don't look."""


class Alone:
    """A team of one."""

    leads: Final = True

    def seed(self, code: int) -> int:
        """The code itself."""
        return code

    def share(self, windows: list[Prefix]) -> list[Prefix]:
        """All of it."""
        return windows

    def average(self, parameters: Iterable[nn.Parameter], predictions: int) -> int:
        """They are the mean already."""
        del parameters
        return predictions

    def decided(self, figure: Callable[[], float]) -> float:
        """What it finds."""
        return figure()


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What became of a fit; the model holds the best epoch's weights.

    Attributes:
        best_epoch: epoch of the kept weights, from 1.
        epochs: epochs run.
        validation_ndcg: NDCG@10 of the kept weights on the validation targets.
        seconds: wall time of this run.
        curve: validation NDCG@10 by epoch.
    """

    best_epoch: int
    epochs: int
    validation_ndcg: float
    seconds: float
    curve: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of some histories: int64 (B, T), zeros after the last visit."""

    titles: Tensor
    actions: Tensor
    times: Tensor


def stack(interactions: Interactions, prefixes: Sequence[Prefix], length: int) -> Batch:
    """The newest `length` visits of each prefix."""
    longest = max(1, max((min(len(prefix), length) for prefix in prefixes), default=1))
    arrays = np.zeros((3, len(prefixes), longest), dtype=np.int64)
    for place, prefix in enumerate(prefixes):
        kept = slice(max(prefix.start, prefix.stop - length), prefix.stop)
        size = kept.stop - kept.start
        arrays[0, place, :size] = interactions.rows[kept]
        arrays[1, place, :size] = interactions.actions[kept]
        arrays[2, place, :size] = interactions.times[kept]
    titles, actions, times = torch.from_numpy(arrays)
    return Batch(titles=titles, actions=actions, times=times)


@torch.no_grad()
def final_states(model: Any, interactions: Interactions, prefixes: Sequence[Prefix]) -> Tensor:
    """States after whole prefixes, float32 (len(prefixes), d)."""
    model.eval()
    table = model.title_vectors()
    found = torch.empty(len(prefixes), table.shape[1])
    lengths = torch.tensor([min(len(prefix), model.length) for prefix in prefixes])
    for part in torch.split(lengths.argsort(stable=True), 64):  # of like length, so that little is padding
        batch = stack(interactions, [prefixes[place] for place in part.tolist()], model.length)
        states = model.states(batch.titles, batch.actions, batch.times, table)
        found[part] = states[torch.arange(len(part)), lengths[part]]
    return found


def fit(
    model: Any,
    interactions: Interactions,
    split: Split,
    settings: FitSettings,
    *,
    seed: int,
    stage: str = "encoder",
    progress: ProgressReport = silent,
    checkpoint: Path | None = None,
    team: Team | None = None,
    origin: str = "",
) -> Fit:
    """Fit a model in place; it ends with the best epoch's weights, in evaluation mode.

    Args:
        model: a SequenceModel that is an nn.Module; its weights are where the fit starts.
        interactions: the data.
        split: what trains and what validates.
        settings: how.
        seed: of everything random.
        stage: name for progress.
        progress: told after each epoch.
        checkpoint: file that holds the state after each epoch; where it is there and fits, the run goes on from it.
        team: those who share the fit, of which this is one; None: it is alone.
        origin: names what else sets this run apart from others with this data, model, settings and seed: weights to
            start from, a team. A checkpoint of another origin is not taken up.

    Returns:
        what happened.
    """
    started = time.monotonic()
    team = team or Alone()
    run = _Run(model, interactions, split, settings, seed, team)
    identity = _identity(model, interactions, settings, seed, origin)
    if checkpoint is not None and checkpoint.is_file():
        run.restore(checkpoint, identity)
    while not run.done():
        run.epoch()
        if checkpoint is not None and team.leads:
            run.store(checkpoint, identity)
        progress(stage, len(run.curve), settings.epochs, f"validation NDCG@10 {run.best:.4f}")
        if settings.budget_s is not None and team.decided(lambda: time.monotonic() - started) > settings.budget_s:
            break
    progress(stage, settings.epochs, settings.epochs, f"validation NDCG@10 {run.best:.4f}")
    model.load_state_dict(run.best_weights)
    model.eval()
    return Fit(
        best_epoch=run.best_epoch, epochs=len(run.curve), validation_ndcg=run.best,
        seconds=time.monotonic() - started, curve=tuple(run.curve),
    )  # fmt: skip


class _Run:
    """The state of one fit between epochs."""

    def __init__(
        self, model: Any, interactions: Interactions, split: Split, settings: FitSettings, seed: int, team: Team
    ) -> None:
        self.model, self.interactions, self.split, self.settings, self.seed = model, interactions, split, settings, seed
        self.team = team
        matrices = [value for value in model.parameters() if value.dim() >= 2]
        others = [value for value in model.parameters() if value.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
        )
        self.average = _copy(model)
        self.steps = 0
        self.curve: list[float] = []
        self.best = -1.0
        self.best_epoch = 0
        self.best_weights = _copy(model)
        counts = np.bincount(interactions.rows, minlength=len(interactions.titles) + 1)[1:].astype(np.float64)
        share = np.sqrt(counts + 1.0)
        self.proposal = torch.from_numpy(share / share.sum())  # (V,), of sampled negatives

    def done(self) -> bool:
        return len(self.curve) >= self.settings.epochs or len(self.curve) - self.best_epoch >= self.settings.patience

    def epoch(self) -> None:
        number = len(self.curve)
        code = int.from_bytes(hashlib.sha256(f"{self.seed}/{number}".encode()).digest()[:6], "big")
        torch.manual_seed(self.team.seed(code))
        random = np.random.default_rng(code)  # the same for all of the team
        self.model.train()
        batches = self._batches(random)
        warmup = max(1, min(self.settings.warmup, 2 * len(batches)))
        for windows in batches:
            self.steps += 1
            self._step(windows, self.settings.learning_rate * min(1.0, self.steps / warmup))
        kept = self.average if self.settings.averaging else _copy(self.model)
        self.curve.append(self.team.decided(lambda: self._validate(kept)))
        if self.curve[-1] > self.best:
            self.best, self.best_epoch = self.curve[-1], len(self.curve)
            self.best_weights = {name: value.clone() for name, value in kept.items()}

    def _batches(self, random: np.random.Generator) -> list[list[Prefix]]:
        """Windows of up to `length` visits, cut anew each epoch, batched with others of like length."""
        length = self.model.length
        windows: list[Prefix] = []
        visits = 0
        users = random.permutation(len(self.split.train))
        for user in users:
            whole = self.split.train[user]
            stop = whole.stop
            if len(whole) > length:
                windows.append(Prefix(whole.user, stop - length, stop))
                stop -= int(random.integers(0, length)) if random.random() < 0.5 else length
            while stop - whole.start > 0:
                windows.append(Prefix(whole.user, max(whole.start, stop - length), stop))
                stop -= length
            visits += len(whole)
            if visits >= self.settings.epoch_visits:
                break
        windows = [windows[place] for place in random.permutation(len(windows))]
        batch = self.settings.batch
        batches: list[list[Prefix]] = []
        for start in range(0, len(windows), batch * 8):
            near = sorted(windows[start : start + batch * 8], key=len)
            batches += [near[place : place + batch] for place in range(0, len(near), batch)]
        return [batches[place] for place in random.permutation(len(batches))]

    def _step(self, windows: list[Prefix], learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        own = self.team.share(windows)
        predictions = self._gradients(own) if own else 0
        if not self.team.average(self.model.parameters(), predictions):
            return
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if self.settings.averaging:
            keep = min(self.settings.averaging, (1 + self.steps) / (10 + self.steps))
            with torch.no_grad():
                for name, value in self.model.state_dict().items():
                    self.average[name].lerp_(value, 1 - keep)

    def _gradients(self, windows: list[Prefix]) -> int:
        """Gradients of the mean loss of the windows' predictions; how many those are, P."""
        batch = stack(self.interactions, windows, self.model.length)
        table = self.model.title_vectors()
        states = self.model.states(batch.titles, batch.actions, batch.times, table)[:, :-1]
        wanted = batch.titles > 0
        if not self.model.starts:
            wanted[:, 0] = False
        predictions = int(wanted.sum())
        if predictions:
            loss = self._loss(states[wanted], batch.titles[wanted], table)
            loss.backward()  # type: ignore[no-untyped-call]
        return predictions

    def _loss(self, states: Tensor, targets: Tensor, table: Tensor) -> Tensor:
        """Cross-entropy over all titles, or an unbiased estimate of it, summed over members.

        Members that shared one loss would become parts of one model; apart they make errors of their own, which
        averaging removes. The estimate is importance sampling: exp(negative) / (draws * probability) for each draw; the
        target stands uncorrected, as it is there with certainty (Khrylchenko et al. 2025, "Correcting the LogQ
        Correction").

        Args:
            states: (P, d).
            targets: int64 (P,).
            table: (N, d).
        """
        members = self.model.members
        own_states = (states * members).chunk(members, dim=-1)
        own_tables = table.chunk(members, dim=-1)
        losses = [self._member_loss(own, targets, part) for own, part in zip(own_states, own_tables, strict=True)]
        return torch.stack(losses).sum()

    def _member_loss(self, states: Tensor, targets: Tensor, table: Tensor) -> Tensor:
        if table.shape[0] <= FULL_SOFTMAX_TITLES:
            return F.cross_entropy(states @ table[1:].T, targets - 1)
        drawn = torch.multinomial(self.proposal, NEGATIVES, replacement=True)
        correction = torch.log(self.proposal[drawn] * NEGATIVES).to(torch.float32)
        negative = states @ table[drawn + 1].T - correction  # (P, NEGATIVES)
        negative = torch.where(targets.unsqueeze(1) == drawn + 1, MASKED, negative)
        positive = (states * table[targets]).sum(dim=1, keepdim=True)
        return F.cross_entropy(torch.cat([positive, negative], dim=1), torch.zeros_like(targets))

    def _validate(self, weights: dict[str, Tensor]) -> float:
        current = _copy(self.model)
        self.model.load_state_dict(weights)
        prefixes, targets = self.split.validation, self.split.validation_targets
        if len(prefixes) > self.settings.validation_users:
            chosen = np.random.default_rng(self.seed).permutation(len(prefixes))[: self.settings.validation_users]
            prefixes, targets = tuple(prefixes[user] for user in chosen), targets[chosen]
        ranks = rank_by_model(self.model, self.interactions, prefixes, targets).ranks
        self.model.load_state_dict(current)
        return ndcg(ranks)

    def store(self, path: Path, identity: str) -> None:
        """Write the state, whole or not at all."""
        state = {
            "identity": identity, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "average": self.average, "best_weights": self.best_weights, "steps": self.steps, "curve": self.curve,
            "best": self.best, "best_epoch": self.best_epoch,
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
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.best_weights = state["average"], state["best_weights"]
        self.steps, self.curve = state["steps"], state["curve"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]


def rank_by_model(model: Any, interactions: Interactions, prefixes: Sequence[Prefix], targets: Ints) -> Ranked:
    """Ranks of targets by a sequence model; see `rank_targets`."""
    states = final_states(model, interactions, prefixes)
    with torch.no_grad():
        table = model.title_vectors()
        return rank_targets(lambda part: states[part] @ table.T, interactions, prefixes, targets)


def _copy(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _identity(model: Any, interactions: Interactions, settings: FitSettings, seed: int, origin: str) -> str:
    """Names a run: the same data, model, settings, seed and origin."""
    digest = hashlib.sha256()
    for array in (interactions.offsets, interactions.rows, interactions.actions, interactions.times):
        digest.update(array.tobytes())
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    kept = {name: value for name, value in asdict(settings).items() if name not in {"epochs", "budget_s"}}
    named = [type(model).__name__, shapes, kept, seed, *([origin] if origin else [])]
    digest.update(json.dumps(named, sort_keys=True).encode())
    return digest.hexdigest()
