"""From material to an artifact that serves: fit, measure, export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from serve.artifacts import Artifact
from serve.bitrate.observations import Observations
from training.bitrate.critic import Scale
from training.bitrate.evaluate import play
from training.bitrate.export import export_bitrate
from training.bitrate.material import Material
from training.bitrate.model import BitratePolicy
from training.bitrate.policies import Policy
from training.bitrate.references import Mpc
from training.bitrate.rollouts import tensors
from training.bitrate.simulator import Sessions
from training.bitrate.train import FitSettings, fit
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

    Raises:
        ArtifactError: the export failed.
    """
    settings = settings or FitSettings()
    torch.manual_seed(seed)
    policy = BitratePolicy()
    rival = relative_qoe(Mpc(), material.validation())

    rounds = fit(
        policy, material.worlds, settings, seed=seed, progress=progress, checkpoint=checkpoint, budget_s=budget_s,
        identity=material.name,
        validate=lambda now: _lead(relative_qoe(Greedy(now), material.validation()), rival),
    )  # fmt: skip
    reached = relative_qoe(Greedy(policy), material.validation())
    metrics = {
        "validation_relative_qoe": float(reached.mean()),
        "validation_robust_mpc_relative_qoe": float(rival.mean()),
        "validation_lead": _lead(reached, rival),
    }
    artifact = export_bitrate(
        destination, policy, metrics=metrics, report={"rounds": rounds}, data_snapshot=material.name, seed=seed
    )
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return artifact
