"""Ladders, and labelled segments from real encoders and libvmaf."""

from pathlib import Path

import numpy as np
import pytest

from serve.quality.bitstream import CODECS
from serve.quality.sampling import PATCHES, SIDE
from training.quality import encodes as module
from training.quality.encodes import CRF, Encode, Segment, label, ladder, make_segments
from training.quality.scenes import Scene, generated_sources
from training.quality.sources import Source, run_ffmpeg

COUNT = 4


def sources() -> list[Source]:
    names = [
        Scene(name="small-pan", height=144, speed=(1.5, 0.5), objects=1),
        Scene(name="small-grain", height=144, grain=6),
    ]
    return [scene.source(0, 0.6) for scene in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Segment]]:
    cache = tmp_path_factory.mktemp("cache")
    return cache, make_segments(sources(), cache, count=COUNT)


@pytest.mark.parametrize("source", generated_sources(0), ids=lambda one: one.name)
def test_a_ladder_is_in_bounds_and_repeatable(source: Source) -> None:
    found = ladder(source, count=12, seed=1)
    assert found == ladder(source, count=12, seed=1)
    assert found != ladder(source, count=12, seed=2)
    assert {one.codec for one in found} == set(CODECS)
    assert len({one.height for one in found}) > 1
    for one in found:
        assert source.height / 4 <= one.height <= source.height
        assert one.width % 2 == one.height % 2 == 0
        assert min(one.width, one.height) >= SIDE
        assert (one.crf is None) != (one.kbps is None)
        best, worst = CRF[one.codec]
        assert one.crf is None or best <= one.crf <= worst


def test_segments_are_labelled_read_and_sampled(made: tuple[Path, list[Segment]]) -> None:
    cache, segments = made
    assert len(segments) == 2 * COUNT
    for one in segments:
        assert 0 <= one.vmaf <= 100
        assert one.facts.codec == one.encode.codec
        assert (one.facts.width, one.facts.height, one.facts.display_height) == (
            one.encode.width,
            one.encode.height,
            144,
        )
        assert len(one.frame_vmaf) == len(one.facts.frame_bytes) == 15
        assert one.vmaf == pytest.approx(float(one.frame_vmaf.mean()))
        assert one.patches.shape == (PATCHES, 2, SIDE, SIDE)
        assert one.patches.std() > 1
    assert not [path for path in cache.iterdir() if path.suffix != ".npz"], "temporary files were left"


def test_a_second_run_takes_all_from_the_cache(
    made: tuple[Path, list[Segment]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, segments = made

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("ffmpeg was called")

    monkeypatch.setattr(module, "run_ffmpeg", refuse)
    told = []
    again = make_segments(
        sources(),
        cache,
        count=COUNT,
        workers=2,
        progress=lambda stage, done, total, note="": told.append((done, total)),
    )
    assert told == [(place + 1, 2 * COUNT) for place in range(2 * COUNT)]
    for one, two in zip(segments, again, strict=True):
        assert (one.vmaf, one.encode, one.source) == (two.vmaf, two.encode, two.source)
        np.testing.assert_array_equal(one.patches, two.patches)
        np.testing.assert_array_equal(one.facts.frame_bytes, two.facts.frame_bytes)


def test_a_damaged_or_missing_segment_is_made_again(made: tuple[Path, list[Segment]]) -> None:
    cache, segments = made
    kept = sorted(cache.glob("*.npz"))
    kept[0].write_bytes(kept[0].read_bytes()[:2000])
    kept[1].unlink()
    again = make_segments(sources(), cache, count=COUNT)
    assert [one.vmaf for one in again] == pytest.approx([one.vmaf for one in segments], abs=0.01)
    assert sorted(cache.glob("*.npz")) == kept


def test_labels_fall_with_quality_and_are_high_without_loss(tmp_path: Path) -> None:
    source = sources()[0]
    pristine = tmp_path / "source.mp4"
    source.write(pristine)
    scores = [float(label(pristine, pristine, source, tmp_path).mean())]
    for crf in (20, 32, 44):
        encode = Encode(codec="h264", width=128, height=72, crf=crf, kbps=None, key_s=10, preset=0)
        rendition = tmp_path / "rendition.mp4"
        run_ffmpeg(
            ["-i", str(pristine), "-vf", "scale=128:72", *module.encoder_arguments(encode, 25.0), str(rendition)],
            folder=tmp_path,
        )
        scores.append(float(label(rendition, pristine, source, tmp_path).mean()))
    assert scores[0] > 95
    assert scores == sorted(scores, reverse=True)
    assert scores[0] - scores[-1] > 30
