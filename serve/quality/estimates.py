"""Estimates of VMAF from what bitstreams tell, each with an interval: no video is read here, so decisions can ask.

Shapes: B segments, Q quantiles.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from serve.artifacts import Artifact, read_artifact
from serve.engines import Device, load_engine
from serve.engines.base import Engine
from serve.errors import ArtifactError, InvalidInput, Unavailable
from serve.quality.bitstream import BitstreamFacts, features

Floats = NDArray[np.float64]
Method = Literal["bitstream", "both"]

MODEL: Final = "quality"
GRAPH: Final = "bitstream"
BATCH: Final = 1024
"""Segments of one engine call; more are several calls."""

_EXAMPLE: Final = BitstreamFacts(
    codec="h264", width=1280, height=720, display_height=1080, fps=25.0, duration_s=4.0, size_bytes=900_000
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one segment, or a clip, is estimated at, in points of VMAF.

    Attributes:
        vmaf: median, 0 to 100.
        low: lower end of the interval.
        high: upper end.
    """

    vmaf: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class BitstreamModel:
    """The bitstream half of an artifact `quality`, loaded. Immutable; any number of threads may use it.

    Attributes:
        version: of the artifact.
        coverage: share of segments of unseen content that lie in their intervals, as held-out content showed.
        use_both: whether frames, where there are any, make estimates better.
        widths: method -> points that both ends of an interval move outward by.
        engine: of the graph.
    """

    version: str
    coverage: float
    use_both: bool
    widths: dict[str, float]
    engine: Engine

    @classmethod
    def load(cls, artifact: Artifact, device: Device = "auto") -> Self:
        """Load the graph and try it; takes a second, so keep it off the event loop.

        Args:
            artifact: of the model.
            device: where the graph runs.

        Raises:
            ArtifactError: the artifact is damaged, or of another kind; names the field.
            Unavailable: the device is not there.
        """
        parameters: dict[str, Any] = dict(artifact.manifest.parameters)
        try:
            model = cls(
                version=artifact.version,
                coverage=float(parameters["coverage"]),
                use_both=bool(parameters["use_both"]),
                widths={name: float(width) for name, width in parameters["widths"].items()},
                engine=load_engine(artifact, GRAPH, device),
            )
            model.estimate([_EXAMPLE])
        except (AttributeError, InvalidInput, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                field=f"graphs.{GRAPH}", got=str(error), expected="an artifact of the model `quality`",
                next_step="Make it anew: playhead train quality.",
            ) from error  # fmt: skip
        return model

    def quantiles(self, segments: Sequence[BitstreamFacts]) -> Floats:
        """Lower, median and upper quantile of each segment (B, Q), as the graph has them."""
        table = features(segments)
        parts = [table[start : start + BATCH] for start in range(0, len(table), BATCH)]
        return np.concatenate([self.engine({"features": part})["quantiles"] for part in parts]).astype(np.float64)

    def rated(self, quantiles: Floats, method: Method) -> tuple[Estimate, ...]:
        """Estimates of quantiles (B, Q) that were made by a method."""
        lows, highs = intervals(quantiles, self.widths[method])
        rows = zip(quantiles[:, 1].clip(0.0, 100.0).tolist(), lows.tolist(), highs.tolist(), strict=True)
        return tuple(Estimate(vmaf=middle, low=low, high=high) for middle, low, high in rows)

    def estimate(self, segments: Sequence[BitstreamFacts]) -> tuple[Estimate, ...]:
        """Estimates of segments, at least one, from their bitstreams alone."""
        return self.rated(self.quantiles(segments), "bitstream")


class BitstreamEstimator:
    """A version of the bitstream model, or none; see serve.rollout.fleet.HasModel.

    Args:
        device: where its graph runs.
    """

    def __init__(self, device: Device = "auto") -> None:
        self._device = device
        self._model: BitstreamModel | None = None

    @property
    def version(self) -> str | None:
        """The version that answers; None without one."""
        return None if self._model is None else self._model.version

    async def load(self, path: Path) -> str:
        """Make the artifact in this folder answer.

        Raises:
            ArtifactError, Unavailable: see BitstreamModel.load; the model before keeps answering.
        """
        self._model = await asyncio.to_thread(lambda: BitstreamModel.load(read_artifact(path), self._device))
        return self._model.version

    @property
    def model(self) -> BitstreamModel:
        """The model that answers.

        Raises:
            Unavailable: there is none.
        """
        if self._model is None:
            raise no_model("none")
        return self._model


def no_model(got: str) -> Unavailable:
    """The problem of a service without the model `quality`."""
    return Unavailable(
        field=MODEL, got=got, expected="a live model `quality`",
        next_step="Train it with `playhead train quality`, then ask again; or name a `reference`.",
    )  # fmt: skip


def intervals(quantiles: Floats, width: float | Floats) -> tuple[Floats, Floats]:
    """Lower and upper ends (B,), 0 to 100, the median always inside.

    Args:
        quantiles: lower, median and upper (B, Q).
        width: that both ends move outward by, one for all or of each (B,); negative: inward.
    """
    middle = quantiles[:, 1]
    low = np.minimum(quantiles[:, 0] - width, middle).clip(0.0, 100.0)
    high = np.maximum(quantiles[:, -1] + width, middle).clip(0.0, 100.0)
    return low, high


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Means of medians and of ends; of a clip's segments, its interval is cautious."""
    return Estimate(
        **{name: float(np.mean([getattr(one, name) for one in estimates])) for name in ("vmaf", "low", "high")}
    )
