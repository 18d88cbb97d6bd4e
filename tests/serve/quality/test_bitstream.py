"""Facts of bitstreams from real files of each codec, their bounds, and the features made of them."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import InvalidInput, NotFound
from serve.quality.bitstream import (
    CODECS,
    DISPOSABLE,
    FEATURES,
    KEY,
    KNOWN,
    MOST_FRAMES,
    OTHER,
    BitstreamFacts,
    features,
    read_facts,
    read_segments,
)

ENCODERS = {
    "h264": ["libx264", "-preset", "veryfast", "-bf", "2"],
    "hevc": ["libx265", "-preset", "ultrafast", "-x265-params", "log-level=none"],
    "av1": ["libsvtav1", "-preset", "12", "-crf", "50"],
    "vp9": ["libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "200k"],
}


def encode(
    path: Path, arguments: list[str], *, size: str = "192x108", seconds: float = 2.0, key_frames: int = 25
) -> Path:
    source = f"testsrc2=s={size}:r=25:d={seconds}"
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-loglevel",
        "error",
        "-y",
        "-f",
        "lavfi",
        "-i",
        source,
        "-c:v",
        *arguments,
    ]
    command += ["-g", str(key_frames), "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True, timeout=60, env={"SVT_LOG": "1"}, capture_output=True)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {codec: encode(folder / f"{codec}.mp4", arguments) for codec, arguments in ENCODERS.items()}


def facts(**changes: object) -> BitstreamFacts:
    given_: dict[str, object] = {
        "codec": "h264", "width": 640, "height": 360, "display_height": 720, "fps": 25.0, "duration_s": 2.0,
        "size_bytes": 60_000,
    }  # fmt: skip
    return BitstreamFacts(**{**given_, **changes})  # type: ignore[arg-type]


def with_frames(sizes: list[int], kinds: list[int] | None = None, **changes: object) -> BitstreamFacts:
    kinds = [KEY] + [OTHER] * (len(sizes) - 1) if kinds is None else kinds
    return facts(
        frame_bytes=np.array(sizes, np.int64), frame_kinds=np.array(kinds, np.int8), size_bytes=sum(sizes), **changes
    )


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_tells_codec_size_rate_and_frames(clips: dict[str, Path], codec: str) -> None:
    found = read_facts(clips[codec], 216)
    assert (found.codec, found.width, found.height, found.display_height) == (codec, 192, 108, 216)
    assert found.fps == pytest.approx(25)
    assert found.duration_s == pytest.approx(2)
    assert len(found.frame_bytes) == 50
    assert clips[codec].stat().st_size * 0.7 < found.size_bytes < clips[codec].stat().st_size
    assert found.bitrate_kbps == pytest.approx(found.size_bytes * 8 / 2000)
    assert found.frame_kinds[0] == KEY
    if codec != "hevc":  # x265 may place the second key frame elsewhere
        assert np.flatnonzero(found.frame_kinds == KEY).tolist() == [0, 25]


def test_bidirectional_frames_are_disposable(clips: dict[str, Path], tmp_path: Path) -> None:
    assert (read_facts(clips["h264"]).frame_kinds == DISPOSABLE).sum() > 10
    plain = encode(tmp_path / "plain.mp4", ["libx264", "-bf", "0"])
    assert not (read_facts(plain).frame_kinds == DISPOSABLE).any()


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_other_containers_tell_the_same(clips: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    other = tmp_path / f"clip.{suffix}"
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-loglevel",
        "error",
        "-i",
        str(clips["h264"]),
        "-c",
        "copy",
        str(other),
    ]
    subprocess.run(command, check=True, timeout=60)
    one, two = read_facts(clips["h264"]), read_facts(other)
    assert (one.frame_kinds == two.frame_kinds).all()
    assert two.fps == pytest.approx(25)
    assert two.size_bytes == pytest.approx(one.size_bytes, rel=0.05)  # start codes, parameter sets


def test_segments_start_at_key_frames(clips: dict[str, Path]) -> None:
    whole = read_facts(clips["h264"])
    parts = read_segments(clips["h264"], segment_s=1.0)
    assert [len(part.frame_bytes) for part in parts] == [25, 25]
    assert np.concatenate([part.frame_bytes for part in parts]).tolist() == whole.frame_bytes.tolist()
    assert all(part.frame_kinds[0] == KEY and part.duration_s == pytest.approx(1) for part in parts)


def test_playlists_and_addresses_are_not_opened(clips: dict[str, Path], tmp_path: Path) -> None:
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clips['h264']}\n#EXT-X-ENDLIST\n", "utf-8")
    with pytest.raises(InvalidInput):
        read_facts(playlist)
    script = tmp_path / "concat.mp4"
    script.write_text(f"ffconcat version 1.0\nfile '{clips['h264']}'\n", "utf-8")
    with pytest.raises(InvalidInput):
        read_facts(script)
    with pytest.raises(NotFound):
        read_facts(Path("http://127.0.0.1:9/clip.mp4"))


def test_a_file_without_video_is_refused(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", "sine=d=1", str(sound)]
    subprocess.run(command, check=True, timeout=60)
    with pytest.raises(InvalidInput, match="video"):
        read_facts(sound)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("codec", "mpeg2"), ("width", 8), ("height", 9000), ("height", 360.0), ("display_height", 240), ("fps", 0.0),
        ("fps", float("nan")), ("duration_s", 61.0), ("duration_s", 0.0), ("size_bytes", 0), ("size_bytes", True),
    ],
)  # fmt: skip
def test_facts_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidInput) as error:
        facts(**{name: value})
    assert name in error.value.field


@pytest.mark.parametrize(
    ("sizes", "kinds", "total"),
    [
        ([100, 0], [0, 1], 100), ([100, 50], [0, 3], 150), ([100, 50], [0], 150), ([100, 50], [0, 1], 149),
        ([1] * (MOST_FRAMES + 1), [0] * (MOST_FRAMES + 1), MOST_FRAMES + 1),
    ],
)  # fmt: skip
def test_frames_that_do_not_agree_are_refused(sizes: list[int], kinds: list[int], total: int) -> None:
    with pytest.raises(InvalidInput, match="frame_"):
        facts(frame_bytes=np.array(sizes, np.int64), frame_kinds=np.array(kinds, np.int8), size_bytes=total)


@given(
    st.lists(st.integers(1, 1 << 18), min_size=1, max_size=40), st.data(), st.sampled_from(CODECS),
    st.integers(16, 8192), st.floats(1, 240), st.floats(1e-3, 60),
)  # fmt: skip
def test_features_of_all_valid_facts_are_finite_and_small(
    sizes: list[int], data: st.DataObject, codec: str, height: int, fps: float, duration_s: float
) -> None:
    kinds = data.draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
    display = data.draw(st.integers(height, 8192))
    one = with_frames(
        sizes, kinds, codec=codec, width=640, height=height, display_height=display, fps=fps, duration_s=duration_s
    )
    row = features([one])
    assert row.shape == (1, len(FEATURES))
    assert row.dtype == np.float32
    assert np.isfinite(row).all()
    named = dict(zip(FEATURES, np.abs(row[0]), strict=True))
    keys_per_s = named.pop("keys_per_s")
    assert max(named.values()) <= 64
    assert keys_per_s <= len(sizes) / duration_s + 1


def test_a_segments_features_do_not_depend_on_the_batch() -> None:
    segments = [
        with_frames([9000, 300, 500, 400]), facts(), with_frames([7000] + [100] * 70, codec="av1"),
        with_frames([5], [1]),
    ]  # fmt: skip
    together = features(segments)
    for place, one in enumerate(segments):
        np.testing.assert_allclose(together[place], features([one])[0], rtol=1e-6, atol=1e-6)


def test_features_say_what_they_are_named_for() -> None:
    one = with_frames([8000, 200, 100, 50, 1650], [KEY, OTHER, DISPOSABLE, DISPOSABLE, OTHER])
    row = dict(zip(FEATURES, features([one])[0].tolist(), strict=True))
    assert row["codec_h264"] == 1
    assert row["codec_vp9"] == 0
    assert row["log2_enlargement"] == pytest.approx(1)
    assert row["frames_known"] == 1
    assert row["key_share"] == pytest.approx(0.8)
    assert row["disposable_share"] == pytest.approx(0.4)
    assert row["log2_disposable_ratio"] < 0
    assert row["log2_low_bits"] < row["log2_median_bits"] < row["log2_peak_bits"] < row["log2_key_bits"]
    twice = with_frames([16000, 400, 200, 100, 3300], [KEY, OTHER, DISPOSABLE, DISPOSABLE, OTHER])
    more = dict(zip(FEATURES, features([twice])[0].tolist(), strict=True))
    assert more["log2_bits_per_pixel"] - row["log2_bits_per_pixel"] == pytest.approx(0.5, abs=1e-3)


def test_unknown_frames_leave_their_features_0() -> None:
    known, unknown = (
        features([with_frames([9000, 300, 500])]),
        features([with_frames([9000, 300, 500]).without_frames()]),
    )
    assert (unknown[0, KNOWN:] == 0).all()
    np.testing.assert_array_equal(known[0, :KNOWN], unknown[0, :KNOWN])
