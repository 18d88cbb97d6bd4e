import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve.diversity import JITTER, diverse_order
from serve.shelves import directions


def titles(seed: int, count: int, width: int = 12) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    numbers = np.random.default_rng(seed)
    relevance = numbers.standard_normal(count).astype(np.float32)
    return relevance, directions(
        numbers.standard_normal((count, width)).astype(np.float32), np.ones(count, dtype=np.bool_)
    )


def greedy_by_definition(relevance: NDArray[np.float32], vectors: NDArray[np.float32], weight: float) -> list[int]:
    """Add the title that makes the determinant of the chosen kernel largest, from the definition."""
    quality = np.exp(weight / (2 * (1 - weight)) * relevance.astype(np.float64))
    wide = vectors.astype(np.float64)
    kernel = quality[:, None] * (1 + wide @ wide.T) * quality
    kernel[np.diag_indices_from(kernel)] *= 1 + JITTER
    chosen: list[int] = []
    while len(chosen) < len(relevance):
        rest = [title for title in range(len(relevance)) if title not in chosen]
        gains = [np.linalg.slogdet(kernel[np.ix_([*chosen, title], [*chosen, title])])[1] for title in rest]
        chosen.append(rest[int(np.argmax(gains))])
    return chosen


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9), weight=st.sampled_from([0.1, 0.4, 0.7]))
def test_each_pick_makes_the_determinant_largest(seed: int, count: int, weight: float) -> None:
    relevance, vectors = titles(seed, count)
    got = diverse_order(relevance, vectors, relevance_weight=weight)
    assert got.tolist() == greedy_by_definition(relevance, vectors, weight)


def test_full_weight_is_the_order_of_relevance() -> None:
    relevance, vectors = titles(1, 40)
    assert diverse_order(relevance, vectors, relevance_weight=1).tolist() == np.argsort(-relevance).tolist()


def test_less_weight_on_relevance_means_less_alike_and_less_relevant() -> None:
    alike, relevant = [], []
    for weight in (0.0, 0.5, 0.8, 0.95, 1.0):
        likeness, sums = [], []
        for seed in range(30):
            relevance, vectors = titles(seed, 60)
            first = diverse_order(relevance, vectors, relevance_weight=weight)[:10]
            likeness.append(np.triu(vectors[first] @ vectors[first].T, 1).sum() / 45)
            sums.append(relevance[first].sum())
        alike.append(np.mean(likeness))
        relevant.append(np.mean(sums))
    assert alike == sorted(alike)
    assert relevant == sorted(relevant)
    assert alike[0] < alike[-1] - 0.03


def test_copies_of_one_title_come_last() -> None:
    _, vectors = titles(3, 5)
    vectors = vectors[[0, 0, 0, 1, 2, 3, 4]]
    order = diverse_order(np.zeros(7, dtype=np.float32), vectors, relevance_weight=0.5).tolist()
    assert sorted(order) == list(range(7))
    assert set(order[:5]) >= {3, 4, 5, 6}


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.999])
def test_scores_far_apart_lose_no_title(weight: float) -> None:
    relevance, vectors = titles(4, 60)
    order = diverse_order(relevance * 1000, vectors, relevance_weight=weight)
    assert sorted(order.tolist()) == list(range(60))
