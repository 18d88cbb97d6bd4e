"""Diversity: greedy MAP inference of a determinantal point process (DPP).

Chen, Zhang and Zhou, "Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation Diversity",
NeurIPS 2018. Their algorithm 1 picks, again and again, the title with the largest remaining diagonal of the kernel's
Cholesky factorisation. That is Cholesky with diagonal pivoting, so LAPACK's `pstrf` returns the picks as its pivots.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpstrf

JITTER: Final = 1e-5
"""Relative rise of the kernel's diagonal: two titles with one vector keep a positive determinant."""

_LEAST_LOG_QUALITY: Final = np.float32(-30.0)
"""Below it the square of the quality would leave float32; titles that far behind are told apart by variety alone."""


def diverse_order(
    relevance: NDArray[np.float32], vectors: NDArray[np.float32], *, relevance_weight: float
) -> NDArray[np.int64]:
    """Order titles so that each prefix is relevant and varied.

    Maximises, title by title, the tradeoff of the paper's section 6: theta * sum(r_i) + (1 - theta) * log det(S), with
    the kernel L = diag(q) S diag(q), q_i = exp(theta / (2 (1 - theta)) * r_i) and S_ij = 1 + cosine_ij (the paper's
    0.5 in front of it changes no pick).

    Args:
        relevance: float32 (n,), n at least 1, higher is better, on a scale of about one standard deviation; of equals
            the first wins.
        vectors: float32 (n, d), each of length 1.
        relevance_weight: theta, 0 (variety only) to 1 (relevance only).

    Returns:
        int64 (n,), the places of all n titles, first pick first.
    """
    if relevance_weight >= 1:
        return np.argsort(-relevance, kind="stable")
    tilt = np.float32(relevance_weight / (2 * (1 - relevance_weight)))
    quality = np.exp(np.maximum(tilt * (relevance - relevance.max()), _LEAST_LOG_QUALITY))
    scaled = vectors * quality[:, None]  # (n, d)
    kernel = scaled @ scaled.T  # (n, n)
    kernel += quality[:, None] * quality
    kernel = kernel.astype(np.float64)
    kernel.reshape(-1)[:: len(kernel) + 1] *= 1 + JITTER
    _, pivots, _, _ = dpstrf(kernel.T, lower=1, tol=0.0, overwrite_a=1)
    order: NDArray[np.int64] = pivots.astype(np.int64) - 1
    return order
