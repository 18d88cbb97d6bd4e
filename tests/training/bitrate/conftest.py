"""The published traces and logs where they lie on disk, and small worlds that need none."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from training.bitrate.synthetic import generate_videos
from training.bitrate.video import Video


def _short(title: Video) -> Video:
    assert title.vmaf is not None
    return replace(title, segment_bytes=title.segment_bytes[:24], vmaf=title.vmaf[:24])


SHORT_TITLES = [_short(title) for title in generate_videos(4, seed=3)]
"""Titles of at most 24 segments."""


@pytest.fixture(scope="session")
def abr_data() -> Path:
    """Published traces, sizes and logs; a test that asks for them is skipped where there are none."""
    default = Path(__file__).parents[4] / "shared" / "data"
    folder = Path(os.environ.get("PLAYHEAD_DATA", default)) / "abr"
    if not folder.is_dir():
        pytest.skip(f"no published traces at {folder}")
    return folder
