"""VMAF's last step: from a clip's elementary features to a score of each frame (Netflix's support vector regression).

Float64 throughout: coefficients of 4 and -4 by the hundred cancel out, and float32 would cost a hundredth of a point.
Shapes: T frames, F features, S support vectors.

Version 1.0.16 adds two steps: where chroma shows no loss at all, as in grey video, its feature is told from luma's
detail, and the regression's answer goes through a polynomial.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEATURES: Final = ("adm2", "motion2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3")
"""Of version 0.6.1, in the order of the features graph and of the published models."""
COLOUR_FEATURES: Final = ("cambi", "speed_chroma_uv", "adm3", "motion3")
"""Of version 1.0.16, likewise."""
_CHROMA: Final = COLOUR_FEATURES.index("speed_chroma_uv")
_DETAIL: Final = COLOUR_FEATURES.index("adm3")


@dataclass(frozen=True, kw_only=True, eq=False)
class Fusion:
    """A published VMAF model's parameters.

    Attributes:
        name: such as `vmaf_v0.6.1`.
        features: names of what it is made of, FEATURES or COLOUR_FEATURES.
        options: that the features are computed with, where they are not the usual ones: libvmaf's name -> value.
        gain_limit: most that a local gain counts for in the features; 1.0 is the NEG form.
        gamma: of the radial basis functions.
        rho: offset of the regression.
        slopes: that features are multiplied by (F,).
        intercepts: that are added then (F,).
        output: slope and intercept of the score.
        transform: p0, p1 and p2 of the polynomial that the score then goes through.
        chroma_from_detail: a chroma feature of 0 becomes so much times the detail that `adm3` says is lost; 0: never.
        score_range: that scores are cut to.
        coefficients: of the support vectors (S,).
        vectors: the support vectors (S, F).
    """

    name: str
    features: tuple[str, ...] = FEATURES
    options: Mapping[str, float | str] = field(default_factory=dict)
    gain_limit: float
    gamma: float
    rho: float
    slopes: Floats
    intercepts: Floats
    output: tuple[float, float]
    transform: tuple[float, float, float] = (0.0, 1.0, 0.0)
    chroma_from_detail: float = 0.0
    score_range: tuple[float, float]
    coefficients: Floats
    vectors: Floats

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """What `parameters` wrote into a manifest."""
        arrays = {
            name: np.array(parameters[name], np.float64) for name in ("slopes", "intercepts", "coefficients", "vectors")
        }
        slope, intercept = parameters["output"]
        least, most = parameters["score_range"]
        p0, p1, p2 = parameters.get("transform", (0.0, 1.0, 0.0))  # artifacts from before version 1.0.16 have none
        return cls(
            name=parameters["name"], features=tuple(parameters.get("features", FEATURES)),
            options=dict(parameters.get("options", {})), gain_limit=parameters["gain_limit"],
            gamma=parameters["gamma"], rho=parameters["rho"], output=(slope, intercept), transform=(p0, p1, p2),
            chroma_from_detail=parameters.get("chroma_from_detail", 0.0), score_range=(least, most), **arrays,
        )  # fmt: skip

    @property
    def needs_chroma(self) -> bool:
        """Whether features are made of chroma too."""
        return self.features == COLOUR_FEATURES

    @property
    def least_sides(self) -> tuple[int, int]:
        """Pixels that the smaller and the larger side of pictures have at least, for CAMBI and SpEED to be defined."""
        if not self.needs_chroma:
            return 0, 0
        smaller = 2 * math.ceil(79.5 / float(self.options.get("speed_prescale", 1.0)))
        return smaller, max(smaller, 216)

    def parameters(self) -> dict[str, Any]:
        """As JSON values, for a manifest."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        plain["options"] = dict(self.options)
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in plain.items()}

    def scores(self, features: NDArray[np.floating]) -> Floats:
        """VMAF of each frame, in score_range (T,), from its features in the order of `features` (T, F)."""
        whole = features.astype(np.float64)
        if self.chroma_from_detail:
            told = self.chroma_from_detail * (1 - whole[:, _DETAIL])
            whole[:, _CHROMA] = np.where(whole[:, _CHROMA] == 0, told, whole[:, _CHROMA])
        values = whole * self.slopes + self.intercepts
        away = np.square(values[:, None] - self.vectors).sum(axis=2)
        raw = np.exp(-self.gamma * away) @ self.coefficients - self.rho
        plain = (raw - self.output[1]) / self.output[0]
        p0, p1, p2 = self.transform
        scores: Floats = (p0 + p1 * plain + p2 * plain * plain).clip(*self.score_range)
        return scores
