"""VMAF's elementary features and their fusion as torch modules, for video of 8 or 10 bits and any size.

A row is a frame: the reference, the distorted picture, and the reference one frame before and after. Rows do not depend
on each other, so those of several clips go through in one batch, in any order, and a clip may be sampled.

Versions 0.6.1 and its NEG form are made of VmafFeatures, of luma alone, whose graph engines run. Version 1.0.16 is made
of ColourFeatures, which run in torch: CAMBI's window follows from the picture's size, which a graph of all sizes can't
express, and SpEED needs eigenvalues, which no engine has.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from serve.quality.fusion import Fusion
from training.quality.adm import Adm, Adm3, blended_sensitivities
from training.quality.cambi import Cambi
from training.quality.filters import HORIZONTAL, VERTICAL, gaussian, rounded, smoothed
from training.quality.speed import SpeedChroma
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


class Motion3(nn.Module):
    """As Motion, but frames are compared first and then blurred, and a great movement counts as `most`.

    Args:
        most: that it is cut to.
    """

    def __init__(self, most: float = 18.0) -> None:
        super().__init__()
        self.most = most
        self.register_buffer("taps", gaussian(_MOTION_TAPS), persistent=False)

    def forward(self, reference: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Mean of the blurred difference, in steps of 8-bit luma, 0 to `most` (B, 1); inputs are luma (B, H, W)."""
        differences = torch.stack([before - reference, reference - after], dim=1)
        for axis in (VERTICAL, HORIZONTAL):
            differences = rounded(smoothed(differences, self.get_buffer("taps"), axis))
        return differences.abs().mean((2, 3)).amin(1, keepdim=True).clamp(max=self.most)


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


class ColourFeatures(nn.Module):
    """COLOUR_FEATURES of each row; exports with a fixed size of pictures.

    Args:
        options: of a published model, libvmaf's name -> value.
        bit_depth: the greater of both clips', 8 or 10: banding is looked for in another way in 8 bits.

    Raises:
        InvalidInput: no sensitivities are known for the model's view.
    """

    def __init__(self, options: Mapping[str, float | str], bit_depth: int = 8) -> None:
        super().__init__()
        known = dict(options)
        view = (float(known["adm_norm_view_dist"]), int(known["adm_ref_display_height"]))
        adm = Adm(
            float(known["adm_enhn_gain_limit"]), blended_sensitivities(*view), noise=float(known["adm_noise_weight"])
        )
        self.adm = Adm3(adm, loss_weight=float(known["adm_dlm_weight"]), least=float(known["adm_min_val"]))
        self.cambi = Cambi(
            bit_depth, least_luminance=float(known["cambi_vis_lum_threshold"]), most=float(known["cambi_max_val"]),
            fast_from=int(known["cambi_high_res_speedup"]),
        )  # fmt: skip
        self.speed = SpeedChroma(
            noise=float(known["speed_sigma_nn"]), floor=float(known["speed_nn_floor"]),
            most=float(known["speed_max_val"]), scale=float(known.get("speed_prescale", 1.0)),
        )  # fmt: skip
        self.motion = Motion3(float(known["motion_max_val"]))

    def forward(
        self, reference: Tensor, distorted: Tensor, before: Tensor, after: Tensor, reference_chroma: Tensor,
        distorted_chroma: Tensor,
    ) -> Tensor:  # fmt: skip
        """Features in the order of COLOUR_FEATURES (B, 4).

        Args:
            reference: luma in steps of 8-bit video, with quarter steps for 10 bits (B, H, W).
            distorted: likewise, multiples of such steps.
            before: the reference one frame before; of a first frame, `after`.
            after: the reference one frame later; of a last frame, `before`.
            reference_chroma: Cb and Cr (B, 2, (H + 1) // 2, (W + 1) // 2).
            distorted_chroma: likewise.
        """
        lines, columns = (size // 2 for size in reference.shape[1:])  # as libvmaf: of odd sizes the last stays out
        planes = (chroma[..., :lines, :columns] for chroma in (reference_chroma, distorted_chroma))
        parts = (
            self.cambi(distorted), self.speed(*planes), self.adm(torch.stack([reference, distorted], dim=1)),
            self.motion(reference, before, after),
        )  # fmt: skip
        return torch.cat([part.to(reference.dtype) for part in parts], dim=1)


class Vmaf(nn.Module):
    """Whole VMAF of a clip.

    Args:
        fusion: the model's parameters.
        bit_depth: as of ColourFeatures.

    Raises:
        InvalidInput: as of ColourFeatures.
    """

    def __init__(self, fusion: Fusion, bit_depth: int = 8) -> None:
        super().__init__()
        self.coloured = fusion.needs_chroma
        self.features = ColourFeatures(fusion.options, bit_depth) if self.coloured else VmafFeatures(fusion.gain_limit)
        for name, value in _numbers(fusion).items():
            self.register_buffer(name, torch.from_numpy(value), persistent=False)
        self.gamma, self.rho, self.score_range = fusion.gamma, fusion.rho, fusion.score_range
        self.transform, self.chroma_from_detail = fusion.transform, fusion.chroma_from_detail

    def forward(self, reference: Tensor, distorted: Tensor, *chroma: Tensor) -> tuple[Tensor, Tensor]:
        """VMAF of each frame, float64 in the model's range (T,), and the features it is made of (T, F).

        Args:
            reference: luma of consecutive frames, as VmafFeatures (T, H, W).
            distorted: likewise.
            *chroma: of the reference and the distorted clip, as ColourFeatures; none for a model of luma alone.
        """
        first = reference[1:2] if self.coloured and len(reference) > 1 else reference[:1]
        before = torch.cat([first, reference[:-1]])
        after = torch.cat([reference[1:], before[-1:]])
        features = self.features(reference, distorted, before, after, *chroma)
        return self.fuse(features), features

    def fuse(self, features: Tensor) -> Tensor:
        """VMAF of frames from their features (T, F) -> float64 (T,); as serve.quality.fusion.Fusion.scores."""
        whole = features.double()
        if self.chroma_from_detail:
            cambi, chroma, detail, motion = whole.unbind(1)
            chroma = torch.where(chroma == 0, self.chroma_from_detail * (1 - detail), chroma)
            whole = torch.stack([cambi, chroma, detail, motion], dim=1)
        values = whole * self.get_buffer("slopes") + self.get_buffer("intercepts")
        away = (values[:, None] - self.get_buffer("vectors")).square().sum(2)
        raw = (-self.gamma * away).exp() @ self.get_buffer("coefficients") - self.rho
        plain = (raw - self.get_buffer("output")[1]) / self.get_buffer("output")[0]
        p0, p1, p2 = self.transform
        return (p0 + p1 * plain + p2 * plain * plain).clamp(*self.score_range)


def _numbers(fusion: Fusion) -> Mapping[str, np.ndarray]:
    return {
        "slopes": fusion.slopes, "intercepts": fusion.intercepts, "vectors": fusion.vectors,
        "coefficients": fusion.coefficients, "output": np.array(fusion.output),
    }  # fmt: skip
