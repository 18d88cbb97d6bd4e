"""Which Ray a job gets, and what is taken away of jobs that were killed."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deployments.rays import ray_place


def test_folders_of_killed_jobs_go_wherever_temporary_files_are_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait(60)
    folders = {number: Path(tempfile.mkdtemp(prefix=f"playhead-job-{number}-", dir="/tmp"))
               for number in (gone.pid, os.getpid())}  # fmt: skip
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        with ray_place(tmp_path / "home", environment={}) as (place, words):
            assert words == "a Ray of its own"
            assert Path(place.temporary).parent == Path("/tmp")
            assert {number for number, folder in folders.items() if folder.is_dir()} == {os.getpid()}
        assert not Path(place.temporary).exists()
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
