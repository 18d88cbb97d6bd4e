"""From material to an artifact that serves: fit, measure, export."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from serve.artifacts import Artifact
from serve.bitrate.observations import Observations
from serve.engines.torch import load_program
from serve.errors import InvalidInput
from training.bitrate.critic import Scale
from training.bitrate.evaluate import play
from training.bitrate.export import GRAPH, NAME, export_bitrate
from training.bitrate.material import Material
from training.bitrate.model import BitratePolicy
from training.bitrate.policies import Policy
from training.bitrate.references import Mpc
from training.bitrate.rollouts import tensors
from training.bitrate.simulator import Sessions
from training.bitrate.train import FitSettings, fit
from training.lineage import lineage_of
from training.recommend.progress import ProgressReport, silent

MOST_GAINED: Final = 0.2
"""What a session may count for at most when weights are chosen: few that stall for minutes would rule the mean."""


@dataclass(frozen=True, eq=False)
class Greedy:
    """A policy in torch that takes the rung of the highest score."""

    policy: BitratePolicy
    name: str = "playhead"

    def start(self, n: int) -> None:
        """Nothing to forget."""

    @torch.no_grad()
    def choose(self, observations: Observations, sessions: Sessions) -> np.ndarray:
        """Rung of each session (B,)."""
        arguments = tensors(observations, int(sessions.state["rungs"].max()))
        return self.policy.scores(self.policy.describe(*arguments)[0]).argmax(1).numpy()


def relative_qoe(policy: Policy, sessions: Sessions) -> NDArray[np.float64]:
    """QoE per segment of each session, in the range of its title's quality (B,)."""
    qoe: NDArray[np.float64] = play(policy, sessions).values / Scale(sessions).unit
    return qoe


def _lead(reached: NDArray[np.float64], rival: NDArray[np.float64]) -> float:
    """Mean of what each session gained, bounded by MOST_GAINED."""
    return float((reached - rival).clip(-MOST_GAINED, MOST_GAINED).mean())


def train_bitrate(
    material: Material,
    destination: Path,
    seed: int = 0,
    progress: ProgressReport = silent,
    *,
    settings: FitSettings | None = None,
    budget_s: float | None = None,
    checkpoint: Path | None = None,
    parent: Artifact | None = None,
    run: str = "",
) -> Artifact:
    """Train and write the artifact `destination/<version>`; the champion is not changed.

    The weights kept are those with the largest lead over RobustMPC on held-out traces, in the range of the quality.

    Args:
        material: what sessions are made of.
        destination: folder of the model's versions, such as `.playhead/models/bitrate`.
        seed: of everything random.
        progress: told how far it is.
        settings: of the fit.
        budget_s: as training.bitrate.train.fit.
        checkpoint: file of the resumable state; it is removed once the artifact is there.
        parent: version whose weights the policy starts from, for few and small steps; None: it starts cold. Where no
            step is better on held-out traces, the parent's weights are what is written.
        run: id of the tracked run.

    Raises:
        InvalidInput: the parent is of another model or architecture.
        ArtifactError: the parent is damaged, or the export failed.
    """
    settings = settings or FitSettings()
    torch.manual_seed(seed)
    policy = BitratePolicy()
    if parent is not None:
        take_over(policy, parent)
        settings = warm_settings(settings)
    rival = relative_qoe(Mpc(), material.validation())

    identity = material.name if parent is None else f"{material.name}/{parent.version}"
    rounds = fit(
        policy, material.worlds, settings, seed=seed, progress=progress, checkpoint=checkpoint, budget_s=budget_s,
        identity=identity, judged_first=parent is not None,
        validate=lambda now: _lead(relative_qoe(Greedy(now), material.validation()), rival),
    )  # fmt: skip
    reached = relative_qoe(Greedy(policy), material.validation())
    metrics = {
        "validation_relative_qoe": float(reached.mean()),
        "validation_robust_mpc_relative_qoe": float(rival.mean()),
        "validation_lead": _lead(reached, rival),
    }
    report = {"rounds": rounds} if parent is None else {"rounds": rounds, "parent": parent.version}
    lineage = lineage_of(None, seed=seed, parent="" if parent is None else parent.version, run=run)
    artifact = export_bitrate(
        destination, policy, metrics=metrics, report=report, data_snapshot=material.name, seed=seed, lineage=lineage
    )
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return artifact


def take_over(policy: BitratePolicy, parent: Artifact) -> None:
    """Give a policy the weights of a version, in place.

    Raises:
        InvalidInput: it is a version of another model, or of another architecture.
        ArtifactError: its file is damaged, or holds more than a graph and plain tensors.
    """
    if parent.manifest.name == NAME:
        program = load_program(parent.read_bytes(f"{GRAPH}.pt2"), field=f"files.{GRAPH}.pt2")
        state = {name: value.detach().clone() for name, value in program.state_dict.items()}
        own = policy.state_dict()
        if {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in state.items()}:
            policy.load_state_dict(state)
            return
    raise InvalidInput(
        field="parent", got=f"{parent.manifest.name} {parent.version}",
        expected=f"a version of {NAME} of this code's architecture", next_step="Start cold: train without --warm.",
    )  # fmt: skip


def warm_settings(settings: FitSettings) -> FitSettings:
    """Settings for a policy that starts from weights: a sixth of the rounds, a third of the learning rate."""
    return replace(
        settings,
        predictor_rounds=0,
        rounds=max(1, settings.rounds // 6) if settings.rounds else 0,
        learning_rate=settings.learning_rate / 3,
        validation_rounds=max(1, settings.validation_rounds // 2),
    )
