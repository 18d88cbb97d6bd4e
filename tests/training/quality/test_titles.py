"""Renditions of a title, measured and read back as bitrate decisions read them."""

import asyncio
import shutil
from pathlib import Path

import pytest

from deployments.jobs import measure_renditions
from deployments.progress import Notice
from features.renditions import Rendition, RenditionReader
from features.settings import Settings
from serve.artifacts import read_artifact, set_champion
from serve.errors import InvalidInput, NotFound
from serve.quality.scorer import FullReferenceScorer
from tests.serve.quality.conftest import Clip
from tests.serve.quality.small_vmaf import small_vmaf


class Silent:
    def tell(self, notice: Notice) -> None:
        pass


@pytest.fixture(scope="module")
def folder(clip: Clip, film: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two renditions with a key frame each second."""
    made = tmp_path_factory.mktemp("title")
    for name, crf, size in (("high", 24, "320:180"), ("low", 38, "160:90")):
        keys = ["-g", "25", "-keyint_min", "25", "-sc_threshold", "0"]
        path = clip(
            f"{name}.mp4", "-i", film, "-vf", f"scale={size}:flags=bicubic", "-c:v", "libx264", "-crf", str(crf), *keys
        )
        shutil.copy(path, made)
    return made


@pytest.fixture
def ready(settings: Settings) -> Settings:
    """Settings of a home whose model `vmaf` is live."""
    version = small_vmaf()
    shutil.copytree(version, settings.models / "vmaf" / version.name)
    set_champion(settings.models, "vmaf", version.name)
    return settings


def _measured(folder: Path, reference: Path, settings: Settings, segment_s: float = 1.0) -> list[Rendition]:
    return measure_renditions(
        folder, reference, "film", settings, Silent(), segment_s=segment_s, every=1, model="vmaf_v0.6.1", ts_ms=1
    )


def _stored(settings: Settings) -> tuple[Rendition, ...]:
    async def read() -> tuple[Rendition, ...]:
        reader = RenditionReader(settings)
        try:
            return (await reader.read(["film"], 2000))["film"]
        finally:
            await reader.close()

    return asyncio.run(read())


def test_what_was_measured_is_what_decisions_read(folder: Path, film: Path, ready: Settings):
    ladder = _measured(folder, film, ready)
    stored = _stored(ready)
    assert [round(one.bitrate_kbps) for one in stored] == [round(one.bitrate_kbps) for one in ladder]
    assert stored[0].bitrate_kbps < stored[1].bitrate_kbps
    for one, measured in zip(stored, ladder, strict=True):
        assert len(one.vmaf) == len(one.sizes_bytes) == 4  # 80 frames: three seconds and a fifth
        assert list(one.sizes_bytes) == list(measured.sizes_bytes)
        assert list(one.vmaf) == pytest.approx(list(measured.vmaf), abs=0.01)
    assert min(stored[1].vmaf) > max(stored[0].vmaf)


def test_a_segment_is_worth_the_mean_of_its_frames(folder: Path, film: Path, ready: Settings):
    ladder = _measured(folder, film, ready)
    whole = FullReferenceScorer(read_artifact(small_vmaf()), "cpu").score(film, folder / "high.mp4")
    assert ladder[1].vmaf[0] == pytest.approx(whole.scores[:25].mean(), abs=1e-6)
    assert ladder[1].vmaf[3] == pytest.approx(whole.scores[75:].mean(), abs=1e-6)
    assert sum(ladder[1].sizes_bytes) < (folder / "high.mp4").stat().st_size


def test_segments_of_another_length_are_refused_and_nothing_is_written(folder: Path, film: Path, ready: Settings):
    with pytest.raises(InvalidInput, match="segment-s"):
        _measured(folder, film, ready, segment_s=0.6)
    assert _stored(ready) == ()


def test_a_folder_with_no_video(film: Path, ready: Settings, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound):
        _measured(tmp_path / "empty", film, ready)
