"""How well quality is predicted for content that was never seen: each content group held out once.

Shapes: B segments, Q quantiles.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.stats import pearsonr, spearmanr

from serve.quality.bitstream import FEATURES
from serve.quality.estimates import intervals
from training.quality.calibration import COVERAGE, Floats, held_out, held_out_widths, nonconformity, widening
from training.quality.fit import FitSettings, Material, fit_bitstream, fit_frames
from training.recommend.progress import ProgressReport, silent

CURVE: Final = "bitrate_curve"
"""The baseline: a logistic curve of the logarithm of bits per pixel of the display."""
SIZE: Final = "bitstream_size"
"""The bitstream model where frame sizes are unknown."""
BITSTREAM: Final = "bitstream"
FRAMES_ALONE: Final = "frames_alone"
"""The frame model where the rate is unknown."""
FRAMES: Final = "frames"
BOTH: Final = "both"
"""The mean of the bitstream and the frame model's quantiles."""
MODELS: Final = (CURVE, SIZE, BITSTREAM, FRAMES_ALONE, FRAMES, BOTH)

_RATE: Final = FEATURES.index("log2_bits_per_display_pixel")


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """What held-out groups showed.

    Attributes:
        quantiles: model -> of each segment by a model that did not see its group (B, Q).
        widths: model -> conformal widening, from all groups, for content that comes.
        table: model -> subset (all, or a kind of source) -> figure; see `figures`.
    """

    quantiles: Mapping[str, Floats]
    widths: Mapping[str, float]
    table: Mapping[str, Mapping[str, Mapping[str, float]]]

    def metrics(self) -> dict[str, Any]:
        """As a manifest holds them, rounded."""
        return {
            f"{model}.{subset}": {name: round(value, 4) for name, value in row.items()}
            for model, subsets in self.table.items()
            for subset, row in subsets.items()
        }

    def text(self) -> str:
        """As a table to read."""
        head = f"{'model':16} {'subset':10} {'n':>4} {'PLCC':>6} {'SROCC':>6} {'MAE':>6} {'cover':>6} {'width':>6}"
        lines = [
            f"{model:16} {subset:10} {row['segments']:4.0f} {row['plcc']:6.3f} {row['srocc']:6.3f} {row['mae']:6.2f} "
            f"{row['coverage']:6.3f} {row['width']:6.2f}"
            for model, subsets in self.table.items()
            for subset, row in subsets.items()
        ]
        return "\n".join([head, *lines])


def fit_curve(rates: Floats, truth: Floats) -> Callable[[Floats], Floats]:
    """The baseline: score = 100 / (1 + exp(-(a + b rate))), b at least 0, by least absolute errors.

    Args:
        rates: logarithm of bits per pixel (B,).
        truth: scores (B,).

    Returns:
        The curve.
    """

    def curve(at: Floats, weights: Floats) -> Floats:
        scores: Floats = 100.0 / (1.0 + np.exp(-(weights[0] + weights[1] * at)))
        return scores

    def errors(weights: Floats) -> Floats:
        return curve(rates, weights) - truth

    found = least_squares(errors, [0.0, 1.0], bounds=([-20, 0], [20, 20]), loss="soft_l1")
    weights = np.asarray(found.x, np.float64)
    return lambda at: curve(at, weights)


def figures(quantiles: Floats, truth: Floats, widths: Floats) -> dict[str, float]:
    """Figures of some held-out segments.

    Args:
        quantiles: (B, Q).
        truth: scores (B,).
        widths: that intervals are widened by (B,).

    Returns:
        segments; plcc and srocc, correlation by value and by rank, -1 to 1, higher is better, 0 where one side does not
        vary; mae, points of VMAF, lower is better; coverage, share of intervals that hold the score, COVERAGE is
        right; width, mean length of intervals in points, lower is better.
    """
    low, high = intervals(quantiles, widths)
    middle = quantiles[:, 1]
    varied = len(truth) > 2 and float(np.ptp(middle)) > 0 and float(np.ptp(truth)) > 0
    return {
        "segments": float(len(truth)),
        "plcc": float(pearsonr(middle, truth).statistic) if varied else 0.0,
        "srocc": float(spearmanr(middle, truth).statistic) if varied else 0.0,
        "mae": float(np.abs(middle - truth).mean()),
        "coverage": float(((low <= truth) & (truth <= high)).mean()),
        "width": float((high - low).mean()),
    }


def validate(
    material: Material, *, seed: int = 0, settings: FitSettings | None = None, progress: ProgressReport = silent
) -> Validation:
    """Hold each content group out once, and measure every model on it; intervals come from the other groups.

    Args:
        material: segments of two groups or more.
        seed: of the fits.
        settings: of the fits.
        progress: told after each fold.
    """
    truth = material.truth.numpy().astype(np.float64)
    rates = material.size_features[:, _RATE].numpy().astype(np.float64)

    def of_curve(out: Sequence[str]) -> Floats:
        rows = material.rows_of(out, without=True).numpy()
        return np.repeat(fit_curve(rates[rows], truth[rows])(rates)[:, None], 3, axis=1)

    @torch.no_grad()
    def of_bitstream(out: Sequence[str]) -> Floats:
        with torch.enable_grad():
            model = fit_bitstream(material, material.rows_of(out, without=True), seed=seed, settings=settings)
        both = torch.cat([model(material.features), model(material.size_features)], dim=1)
        return both.numpy().astype(np.float64)

    @torch.no_grad()
    def of_frames(out: Sequence[str]) -> Floats:
        with torch.enable_grad():
            model = fit_frames(material, material.rows_of(out, without=True), seed=seed, settings=settings)
        both = [model.of_members(material.statistics, facts).mean(0) for facts in (material.facts, material.bare_facts)]
        return torch.cat(both, dim=1).numpy().astype(np.float64)

    def tell(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(f"hold out, {stage}", done, total)

    quantiles = {CURVE: held_out(material.groups, of_curve, tell(CURVE))}
    pair = held_out(material.groups, of_bitstream, tell(BITSTREAM))
    quantiles[SIZE], quantiles[BITSTREAM] = pair[:, 3:], pair[:, :3]
    pair = held_out(material.groups, of_frames, tell(FRAMES))
    quantiles[FRAMES_ALONE], quantiles[FRAMES] = pair[:, 3:], pair[:, :3]
    quantiles[BOTH] = (quantiles[BITSTREAM] + quantiles[FRAMES]) / 2
    return judge(quantiles, truth, material.groups, material.kinds)


def judge(quantiles: Mapping[str, Floats], truth: Floats, groups: Sequence[str], kinds: Sequence[str]) -> Validation:
    """The table and the widths of held-out predictions.

    Args:
        quantiles: model -> (B, Q).
        truth: scores (B,).
        groups: content group of each.
        kinds: of the source of each.
    """
    subsets = {"all": np.ones(len(truth), bool)}
    if len(set(kinds)) > 1:
        subsets |= {kind: np.asarray(kinds) == kind for kind in sorted(set(kinds))}
    widths, table = {}, {}
    for model, predicted in quantiles.items():
        errors = nonconformity(predicted, truth)
        each = held_out_widths(errors, groups, COVERAGE)
        widths[model] = widening(errors, groups, COVERAGE)
        table[model] = {name: figures(predicted[rows], truth[rows], each[rows]) for name, rows in subsets.items()}
    return Validation(quantiles=quantiles, widths=widths, table=table)
