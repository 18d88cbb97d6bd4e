import json
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from serve.errors import InvalidInput, Unavailable
from serve.quality import libvmaf
from serve.quality.alignment import align
from serve.quality.media import Limits
from serve.quality.pairing import pairs
from tests.serve.quality.conftest import Clip


@pytest.fixture(scope="module")
def encode(clip: Clip, film: Path) -> Path:
    return clip("libvmaf.mkv", "-i", film, "-c:v", "libx264", "-crf", "35", "-preset", "veryfast")


def _scored(reference: Path, distorted: Path, **asked) -> libvmaf.LibvmafScores:
    with closing(pairs(reference, distorted, align(reference, distorted, Limits()), Limits())) as stream:
        return libvmaf.score_pairs(stream, **asked)


def test_scores_are_those_of_the_command_line(film: Path, encode: Path, tmp_path: Path):
    found = _scored(film, encode, model="vmaf_v0.6.1", bit_depth=8)
    filters = "[0:v]settb=AVTB,setpts=PTS-STARTPTS[d];[1:v]settb=AVTB,setpts=PTS-STARTPTS[r];"
    options = "model=version=vmaf_v0.6.1:log_fmt=json:log_path=log.json:ts_sync_mode=nearest"
    program = libvmaf.find_ffmpeg()
    assert program is not None
    inputs = ["-i", str(encode), "-i", str(film)]
    graph = f"{filters}[d][r]libvmaf={options}"
    subprocess.run([program, "-v", "error", *inputs, "-lavfi", graph, "-f", "null", "-"], cwd=tmp_path, check=True)
    expected = [frame["metrics"]["vmaf"] for frame in json.loads((tmp_path / "log.json").read_text())["frames"]]
    assert len(found.scores) == len(expected) == 80
    assert np.abs(found.scores - expected).max() < 1e-4
    assert found.indices.tolist() == list(range(80))
    assert np.isfinite(found.features).all()


def test_a_sample_has_the_scores_of_the_whole(film: Path, encode: Path):
    whole = _scored(film, encode, model="vmaf_v0.6.1neg", bit_depth=8)
    sample = _scored(film, encode, model="vmaf_v0.6.1neg", bit_depth=8, every=7)
    assert sample.indices.tolist() == list(range(0, 80, 7))
    assert np.abs(sample.scores - whole.scores[::7]).max() < 0.2  # libvmaf measures motion only where it scores


def test_no_pairs(film: Path):
    with pytest.raises(InvalidInput):
        libvmaf.score_pairs(iter(()), model="vmaf_v0.6.1", bit_depth=8)


def test_an_unknown_model_is_an_error_in_ffmpegs_words(film: Path, encode: Path):
    with pytest.raises(Unavailable, match="libvmaf"):
        _scored(film, encode, model="vmaf_v9", bit_depth=8)


def test_the_deadline_ends_it(film: Path, encode: Path):
    with pytest.raises(Unavailable, match="no end within"):
        _scored(film, encode, model="vmaf_v0.6.1", bit_depth=8, deadline_s=0.05)


def test_an_error_of_the_pairs_comes_through_and_leaves_nothing(film: Path, encode: Path):
    def broken():
        with closing(pairs(film, encode, align(film, encode, Limits()), Limits())) as stream:
            yield next(stream)
        raise InvalidInput(field="clip", got="broken", expected="whole", next_step="none")

    before = threading.active_count()
    with pytest.raises(InvalidInput, match="broken"):
        libvmaf.score_pairs(broken(), model="vmaf_v0.6.1", bit_depth=8)
    assert threading.active_count() <= before
