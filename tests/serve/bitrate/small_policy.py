"""A small policy with the inputs and outputs of the real one, made by the real exporter."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from serve.bitrate.observations import RUNGS, SHAPES, Observations
from serve.bitrate.sessions import Session, observe
from serve.tensors import GraphSpec, TensorSpec
from training.export import ExportGraph, export_artifact

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
OUTPUTS = {"scores": RUNGS, "throughput_quantiles_kbps": len(QUANTILES), "rebuffer_probability": RUNGS}


class SmallPolicy(nn.Module):
    """Log-normal throughput around the mean of the samples, or the prior; the highest rung that rarely stalls."""

    def __init__(self) -> None:
        super().__init__()
        normal = torch.distributions.Normal(0.0, 1.0)
        self.register_buffer("steps", normal.icdf(torch.tensor(QUANTILES)))

    def forward(
        self,
        throughput_kbps: Tensor,
        download_s: Tensor,
        buffer_s: Tensor,
        max_buffer_s: Tensor,
        segment_s: Tensor,
        last_rung: Tensor,
        last_quality: Tensor,
        remaining: Tensor,
        rungs_kbps: Tensor,
        segment_bytes: Tensor,
        quality: Tensor,
        weights: Tensor,
        prior_log_kbps: Tensor,
        latency_s: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        known = (throughput_kbps > 0).float()  # (B, HISTORY)
        count = known.sum(1)
        mean = (torch.log(throughput_kbps.clamp(min=1)) * known).sum(1) / count.clamp(min=1)
        prior = torch.where(prior_log_kbps[:, 1] > 0, prior_log_kbps[:, 0], 7.0)
        mean = torch.where(count > 0, mean, prior)[:, None]  # (B, 1)
        kbps = torch.exp(mean + 0.4 * self.steps)  # (B, 7)
        patience = torch.maximum(buffer_s, 0.5 * segment_s)[:, None]
        needed = torch.log((0.008 * segment_bytes[:, 0]).clamp(min=1e-3) / patience)
        chance = torch.sigmoid((needed - mean) / 0.25)  # (B, RUNGS)
        unused = max_buffer_s + last_rung + last_quality + remaining + download_s.sum(1) + latency_s.sum(1)
        scores = weights[:, 3:] * quality[:, 0] + 4 * weights[:, :1] * chance + 0.0 * unused[:, None]
        present = rungs_kbps > 0
        return torch.where(present, scores, -1e9), kbps, torch.where(present, chance, 0.0)


def spec(limit: int = 1024) -> GraphSpec:
    """As the real policy's: dynamic batch, all float32."""
    return GraphSpec(
        inputs=tuple(TensorSpec(name, "float32", ("B", *shape)) for name, shape in SHAPES.items()),
        outputs=tuple(TensorSpec(name, "float32", ("B", width)) for name, width in OUTPUTS.items()),
        limits={"B": (1, limit)},
    )


def example() -> Observations:
    """Three sessions that differ."""
    rungs = (300.0, 750.0, 1200.0, 1850.0)
    sessions = [Session(rungs_kbps=rungs, places=range(4), buffer_s=4.0 * place) for place in range(3)]
    for place, session in enumerate(sessions):
        session.throughput_kbps = [900.0 + 100 * place] * place
        session.download_s = [2.0] * place
        session.last_rung = place - 1
    return observe(sessions)


def export_policy(destination: Path, metrics: dict[str, JsonValue] | None = None) -> Path:
    """Export it; other metrics make another version."""
    inputs = {name: np.ascontiguousarray(array) for name, array in example().as_inputs().items()}
    artifact = export_artifact(
        destination,
        name="bitrate",
        graphs={"policy": ExportGraph(module=SmallPolicy(), example=inputs, spec=spec())},
        tables={},
        parameters={},
        metrics=metrics or {},
        feature_service="bitrate_v1",
    )
    return artifact.path


@functools.cache
def _exported(seed: int) -> tuple[tempfile.TemporaryDirectory[str], Path]:
    folder = tempfile.TemporaryDirectory(prefix="playhead-small-policy-")
    return folder, export_policy(Path(folder.name), {"seed": seed} if seed else {})


def small_policy(seed: int = 0) -> Path:
    """Folder of the small policy, exported once a process and seed, each another version. Do not change it."""
    return _exported(seed)[1]
