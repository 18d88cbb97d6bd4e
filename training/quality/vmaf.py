"""VMAF's elementary features and their fusion as torch modules, for luma of 8 or 10 bits and any size.

A row is a frame: the reference, the distorted picture, and the reference one frame before and after. Rows do not depend
on each other, so those of several clips go through in one batch, in any order, and a clip may be sampled.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from serve.quality.fusion import Fusion
from training.quality.adm import Adm
from training.quality.filters import HORIZONTAL, VERTICAL, gaussian, rounded, smoothed
from training.quality.vif import SIZES, Vif

_MOTION_TAPS: Final = SIZES[2]


class Motion(nn.Module):
    """How much the reference moves from the frame before or to the next, the less of both: a scene cut is no motion."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taps", gaussian(_MOTION_TAPS), persistent=False)

    def forward(self, reference: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Mean difference of blurred frames, in steps of 8-bit luma, 0 and more (B, 1); inputs are luma (B, H, W)."""
        frames = torch.stack([reference, before, after], dim=1)
        for axis in (VERTICAL, HORIZONTAL):
            frames = rounded(smoothed(frames, self.get_buffer("taps"), axis))
        return (frames[:, 1:] - frames[:, :1]).abs().mean((2, 3)).amin(1, keepdim=True)


class VmafFeatures(nn.Module):
    """The graph that engines run: FEATURES of each row.

    Args:
        gain_limit: of VIF and ADM; 1.0 is the NEG form, in which enhancement earns nothing.
    """

    def __init__(self, gain_limit: float = 100.0) -> None:
        super().__init__()
        self.vif, self.adm, self.motion = Vif(gain_limit), Adm(gain_limit), Motion()

    def forward(self, reference: Tensor, distorted: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Features in the order of FEATURES (B, 6).

        Args:
            reference: luma in steps of 8-bit video, 0 to 255.75 with quarter steps for 10 bits (B, H, W).
            distorted: likewise.
            before: the reference one frame before; of a first frame, the frame itself.
            after: the reference one frame later; of a last frame, `before`.
        """
        frames = torch.stack([reference, distorted], dim=1)
        return torch.cat([self.adm(frames), self.motion(reference, before, after), self.vif(frames)], dim=1)


class Vmaf(nn.Module):
    """Whole VMAF of a clip.

    Args:
        fusion: the model's parameters.
    """

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.features = VmafFeatures(fusion.gain_limit)
        for name, value in _numbers(fusion).items():
            self.register_buffer(name, torch.from_numpy(value), persistent=False)
        self.gamma, self.rho, self.score_range = fusion.gamma, fusion.rho, fusion.score_range

    def forward(self, reference: Tensor, distorted: Tensor) -> tuple[Tensor, Tensor]:
        """VMAF of each frame, float64 in the model's range (T,), and the features it is made of (T, 6).

        Args:
            reference: luma of consecutive frames, as VmafFeatures (T, H, W).
            distorted: likewise.
        """
        before = torch.cat([reference[:1], reference[:-1]])
        after = torch.cat([reference[1:], before[-1:]])
        features = self.features(reference, distorted, before, after)
        return self.fuse(features), features

    def fuse(self, features: Tensor) -> Tensor:
        """VMAF of frames from their features (T, 6) -> float64 (T,); as serve.quality.fusion.Fusion.scores."""
        values = features.double() * self.get_buffer("slopes") + self.get_buffer("intercepts")
        away = (values[:, None] - self.get_buffer("vectors")).square().sum(2)
        raw = (-self.gamma * away).exp() @ self.get_buffer("coefficients") - self.rho
        score = (raw - self.get_buffer("output")[1]) / self.get_buffer("output")[0]
        return score.clamp(*self.score_range)


def _numbers(fusion: Fusion) -> Mapping[str, np.ndarray]:
    return {
        "slopes": fusion.slopes, "intercepts": fusion.intercepts, "vectors": fusion.vectors,
        "coefficients": fusion.coefficients, "output": np.array(fusion.output),
    }  # fmt: skip
