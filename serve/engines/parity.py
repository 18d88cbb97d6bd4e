"""How far an engine's outputs are from torch's, output by output."""

import math
from collections.abc import Mapping

import numpy as np

from serve.tensors import ABSENT_SCORE, Array, GraphSpec

MIN_COMMON_ITEMS = 0.98
"""Share of a ranked list's items that must be the same: near-ties at the last places may fall in or out."""


def differences(spec: GraphSpec, expected: Mapping[str, Array], actual: Mapping[str, Array]) -> dict[str, float]:
    """Greatest error of each output; 0 is equal, infinity is no agreement at all (shapes, NaN, other items).

    Float errors are relative to max(1, |expected|). Integers and booleans must be equal. Where the spec says that the
    outputs are a ranked list, the scores are compared place by place and everything else item by item.

    Args:
        spec: the graph's spec.
        expected: torch's outputs.
        actual: the engine's outputs.
    """
    if spec.ranking is None:
        return {tensor.name: _error(expected[tensor.name], actual[tensor.name]) for tensor in spec.outputs}
    items, score = spec.ranking.items, spec.ranking.score
    errors = {tensor.name: 0.0 for tensor in spec.outputs}
    errors[score] = _error(expected[score], actual[score])
    if any(expected[name].shape != actual[name].shape for name in errors):
        return dict.fromkeys(errors, math.inf)
    for row in range(len(expected[items])):
        real_expected = expected[score][row] > ABSENT_SCORE
        real_actual = actual[score][row] > ABSENT_SCORE
        common, place_expected, place_actual = np.intersect1d(
            expected[items][row][real_expected], actual[items][row][real_actual], return_indices=True
        )
        total = max(int(real_expected.sum()), int(real_actual.sum()))
        if len(common) < math.floor(MIN_COMMON_ITEMS * total):
            errors[items] = math.inf
        for tensor in spec.outputs:
            if tensor.name == items:
                continue
            if len(tensor.shape) < 2 or expected[tensor.name].shape[:2] != expected[items].shape:
                error = _error(expected[tensor.name][row], actual[tensor.name][row])
            else:
                error = _error(
                    expected[tensor.name][row][real_expected][place_expected],
                    actual[tensor.name][row][real_actual][place_actual],
                )
            errors[tensor.name] = max(errors[tensor.name], error)
    return errors


def _error(expected: Array, actual: Array) -> float:
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return math.inf
    if expected.size == 0:
        return 0.0
    if not np.issubdtype(expected.dtype, np.floating):
        return 0.0 if np.array_equal(expected, actual) else math.inf
    wide = expected.astype(np.float64)
    error = np.abs(wide - actual.astype(np.float64)) / np.maximum(1.0, np.abs(wide))
    worst = float(error.max())
    return math.inf if math.isnan(worst) else worst
