"""The published traces and logs where they lie on disk, and small worlds that need none."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def abr_data() -> Path:
    """Published traces, sizes and logs; a test that asks for them is skipped where there are none."""
    default = Path(__file__).parents[4] / "shared" / "data"
    folder = Path(os.environ.get("PLAYHEAD_DATA", default)) / "abr"
    if not folder.is_dir():
        pytest.skip(f"no published traces at {folder}")
    return folder
