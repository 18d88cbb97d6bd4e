"""VMAF's last step: from a clip's elementary features to a score of each frame (Netflix's support vector regression).

Float64 throughout: coefficients of 4 and -4 by the hundred cancel out, and float32 would cost a hundredth of a point.
Shapes: T frames, F features, S support vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEATURES: Final = ("adm2", "motion2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3")
"""In the order of the features graph and of the published models."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fusion:
    """A published VMAF model's parameters.

    Attributes:
        name: such as `vmaf_v0.6.1`.
        gain_limit: most that a local gain counts for in the features; 1.0 is the NEG form.
        gamma: of the radial basis functions.
        rho: offset of the regression.
        slopes: that features are multiplied by (F,).
        intercepts: that are added then (F,).
        output: slope and intercept of the score.
        score_range: that scores are cut to.
        coefficients: of the support vectors (S,).
        vectors: the support vectors (S, F).
    """

    name: str
    gain_limit: float
    gamma: float
    rho: float
    slopes: Floats
    intercepts: Floats
    output: tuple[float, float]
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
        return cls(
            name=parameters["name"], gain_limit=parameters["gain_limit"], gamma=parameters["gamma"],
            rho=parameters["rho"], output=(slope, intercept), score_range=(least, most), **arrays,
        )  # fmt: skip

    def parameters(self) -> dict[str, Any]:
        """As JSON values, for a manifest."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in plain.items()}

    def scores(self, features: NDArray[np.floating]) -> Floats:
        """VMAF of each frame, in score_range (T,), from its features in the order of FEATURES (T, F)."""
        values = features.astype(np.float64) * self.slopes + self.intercepts
        away = np.square(values[:, None] - self.vectors).sum(axis=2)
        raw = np.exp(-self.gamma * away) @ self.coefficients - self.rho
        scores: Floats = ((raw - self.output[1]) / self.output[0]).clip(*self.score_range)
        return scores
