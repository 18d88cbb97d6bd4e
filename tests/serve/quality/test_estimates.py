"""The bitstream model as it is served: many segments, intervals, and artifacts that are none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serve.artifacts import read_artifact
from serve.errors import ArtifactError, Unavailable
from serve.quality.bitstream import BitstreamFacts, features
from serve.quality.estimates import BATCH, BitstreamEstimator, BitstreamModel, mean
from tests.serve.quality.small_quality import small_quality
from tests.serve.quality.small_vmaf import small_vmaf


def segment(size_bytes: int) -> BitstreamFacts:
    return BitstreamFacts(
        codec="h264", width=1280, height=720, display_height=1080, fps=25.0, duration_s=4.0, size_bytes=size_bytes
    )


@pytest.fixture(scope="module")
def model() -> BitstreamModel:
    return BitstreamModel.load(read_artifact(small_quality()), "cpu")


def test_more_segments_than_a_call_takes_are_each_what_they_are_alone(model: BitstreamModel) -> None:
    segments = [segment(100_000 + 1000 * place) for place in range(BATCH + 5)]
    assert features(segments).shape[0] > BATCH
    found = model.estimate(segments)
    assert len(found) == BATCH + 5
    for place in (0, BATCH - 1, BATCH, BATCH + 4):
        (alone,) = model.estimate([segments[place]])
        assert found[place].vmaf == pytest.approx(alone.vmaf, abs=1e-3)
        assert (found[place].low, found[place].high) == pytest.approx((alone.low, alone.high), abs=1e-3)
        assert 0 <= found[place].low <= found[place].vmaf <= found[place].high <= 100


def test_intervals_are_as_wide_as_the_method_says(model: BitstreamModel) -> None:
    quantiles = np.array([[40.0, 50.0, 60.0]])
    (one,), (both,) = model.rated(quantiles, "bitstream"), model.rated(quantiles, "both")
    assert (one.low, one.vmaf, one.high) == (36, 50, 64)
    assert (both.low, both.high) == (37.5, 62.5)
    assert mean([one, both]).low == pytest.approx(36.75)


async def test_what_is_no_such_model_leaves_the_one_before(tmp_path: Path) -> None:
    estimator = BitstreamEstimator("cpu")
    with pytest.raises(Unavailable, match="playhead train quality"):
        _ = estimator.model
    await estimator.load(small_quality())
    version = estimator.version
    assert version == small_quality().name
    with pytest.raises(ArtifactError):
        await estimator.load(small_vmaf())
    with pytest.raises(ArtifactError):
        await estimator.load(tmp_path)
    assert estimator.version == estimator.model.version == version


def test_an_artifact_without_its_parameters_is_refused() -> None:
    artifact = read_artifact(small_quality())
    manifest = artifact.manifest
    for parameters in ({}, {**manifest.parameters, "widths": None}, {**manifest.parameters, "coverage": "much"}):
        damaged = replace(artifact, manifest=manifest.model_copy(update={"parameters": parameters}))
        with pytest.raises(ArtifactError, match="playhead train quality"):
            BitstreamModel.load(damaged, "cpu")
