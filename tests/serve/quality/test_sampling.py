"""Which frames and patches of a segment are taken."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import InvalidInput
from serve.quality.sampling import (
    ALIGNMENT,
    FACTS,
    GRID,
    PAIRS,
    PATCHES,
    SIDE,
    SPAN,
    pair_times,
    patch_places,
    resolution_facts,
    sample_clip,
    sample_stream,
)

EACH = GRID[0] * GRID[1]


def numbered(frames: int, height: int = 72, width: int = 128) -> np.ndarray:
    """Luma in which each pixel is the number of its frame."""
    return np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None], (frames, height, width))


@given(st.integers(SIDE, 2160), st.integers(SIDE, 4096), st.integers(0, PAIRS - 1))
def test_patches_lie_inside_and_on_the_coding_grid(height: int, width: int, pair: int) -> None:
    places = patch_places(height, width, pair)
    assert len(places) == EACH
    for line, column in places:
        assert 0 <= line <= height - SIDE
        assert 0 <= column <= width - SIDE
        assert line % ALIGNMENT == column % ALIGNMENT == 0


def test_patches_of_a_large_frame_are_spread_and_differ_from_pair_to_pair() -> None:
    places = [place for pair in range(PAIRS) for place in patch_places(1080, 1920, pair)]
    assert len(set(places)) == PATCHES
    lines, columns = np.array(places).T
    for share in (0.25, 0.5, 0.75):
        assert (lines < share * 1080).any()
        assert (lines > share * 1080 - SIDE).any()
        assert abs((columns < share * 1920).mean() - share) < 0.15


def test_a_patch_is_a_frame_and_the_one_before() -> None:
    taken = sample_clip(numbered(50), 25.0)
    assert taken.shape == (PATCHES, 2, SIDE, SIDE)
    assert taken.dtype == np.float32
    current, before = taken[:, 0, 0, 0], taken[:, 1, 0, 0]
    assert (current - before == 1).all()
    assert (taken == taken[:, :, :1, :1]).all()
    expected = [int(np.ceil(time_s * 25 - 1e-6)) for time_s in pair_times(2.0)]
    assert current[::EACH].tolist() == expected


def test_no_more_frames_are_taken_than_needed() -> None:
    seen = []

    def frames() -> Iterator[tuple[float, np.ndarray]]:
        for place, frame in enumerate(numbered(100)):
            seen.append(place)
            yield place / 25, frame

    sample_stream(frames(), 4.0)
    assert max(seen) <= 100 * SPAN


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_short_segments_fill_all_patches(count: int) -> None:
    taken = sample_clip(numbered(count), 25.0)
    assert taken.shape == (PATCHES, 2, SIDE, SIDE)
    steps = taken[:, 0, 0, 0] - taken[:, 1, 0, 0]
    assert (steps == (0 if count == 1 else 1)).all()


def test_places_hold_the_pictures_own_pixels() -> None:
    random = np.random.default_rng(0)
    clip = random.integers(0, 1023, (12, 90, 160)).astype(np.float32) / 4
    taken = sample_clip(clip, 25.0)
    first = int(np.ceil(pair_times(12 / 25)[0] * 25 - 1e-6)) or 1
    for place, (line, column) in enumerate(patch_places(90, 160, 0)):
        np.testing.assert_array_equal(taken[place, 0], clip[first, line : line + SIDE, column : column + SIDE])
        np.testing.assert_array_equal(taken[place, 1], clip[first - 1, line : line + SIDE, column : column + SIDE])


def test_frames_that_cannot_be_sampled_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one"):
        sample_stream(iter(()), 2.0)
    with pytest.raises(InvalidInput, match="64x64"):
        sample_clip(numbered(4, height=56), 25.0)
    with pytest.raises(InvalidInput, match="one size"):
        sample_stream([(0.0, np.zeros((64, 64))), (0.04, np.zeros((64, 72)))], 2.0)


def test_facts_are_logarithms() -> None:
    facts = dict(zip(FACTS, resolution_facts(270, 1080, 30.0).tolist(), strict=True))
    assert facts == {
        "log2_enlargement": 2.0, "log2_display_lines": 1.0, "fps": 1.0, "log2_bits_per_pixel": 0.0, "rate_known": 0.0,
    }  # fmt: skip
    facts = dict(zip(FACTS, resolution_facts(270, 270, 30.0, bits_per_pixel=2.0**-3.5).tolist(), strict=True))
    assert (facts["log2_bits_per_pixel"], facts["rate_known"]) == (0.0, 1.0)
    more = dict(zip(FACTS, resolution_facts(270, 270, 30.0, bits_per_pixel=2.0**-1.5).tolist(), strict=True))
    assert more["log2_bits_per_pixel"] == 1.0
