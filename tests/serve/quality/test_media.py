"""Reading files that come from others: what they hold, and how each that can't be used is refused."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from serve.errors import InvalidInput, NotFound
from serve.quality import media
from serve.quality.media import LEAST_SIDE, Limits, Luma, decode, probe

Clip = Callable[..., Path]

LIMITS = Limits()
PATTERN = ("-f", "lavfi", "-i", "testsrc2=s=320x180:r=25")
SECOND = (*PATTERN, "-t", "1")


def everything(path: Path, limits: Limits = LIMITS, **options: int) -> list[Luma]:
    return list(decode(path, probe(path, limits), limits, **options))


def until_broken(path: Path, limits: Limits = LIMITS) -> tuple[int, InvalidInput]:
    seen: list[Luma] = []
    facts = probe(path, limits)
    with pytest.raises(InvalidInput) as caught:
        seen.extend(decode(path, facts, limits))  # keeps what came before the error
    assert [frame.index for frame in seen] == list(range(len(seen)))
    return len(seen), caught.value


def cut_short(path: Path, share: float, name: str) -> Path:
    short = path.with_name(name)
    data = path.read_bytes()
    short.write_bytes(data[: int(len(data) * share)])
    return short


def test_facts_and_frames(clip: Clip) -> None:
    path = clip("plain.mp4", *SECOND, "-c:v", "libx264", "-pix_fmt", "yuv420p")
    facts = probe(path, LIMITS)
    assert facts == media.VideoFacts(
        codec="h264", width=320, height=180, bit_depth=8, pixel_format="yuv420p", frames_per_s=Fraction(25),
        duration_s=1.0, frames=25, colour_range="limited", sample_aspect=Fraction(1), rotation_deg=0,
        size_bytes=path.stat().st_size,
    )  # fmt: skip
    frames = everything(path)
    assert [frame.index for frame in frames] == list(range(25))
    assert [frame.time_s for frame in frames] == pytest.approx([index / 25 for index in range(25)])
    assert all(frame.pixels.shape == (180, 320) and frame.pixels.dtype == np.uint8 for frame in frames)
    assert all(frame.pixels.flags.owndata for frame in frames)
    assert [frame.index for frame in everything(path, first=3, every=10)] == [3, 13, 23]


@pytest.mark.parametrize(
    ("name", "options", "depth", "codec"),
    [
        ("gray.mkv", ("-c:v", "ffv1", "-pix_fmt", "gray"), 8, "ffv1"),
        ("gray10.mkv", ("-c:v", "ffv1", "-pix_fmt", "gray10le"), 10, "ffv1"),
        ("nv12.mkv", ("-c:v", "rawvideo", "-pix_fmt", "nv12"), 8, "rawvideo"),
        ("444.mkv", ("-c:v", "ffv1", "-pix_fmt", "yuv444p10le"), 10, "ffv1"),
        ("422.mkv", ("-c:v", "ffv1", "-pix_fmt", "yuv422p"), 8, "ffv1"),
        ("raw.y4m", ("-pix_fmt", "yuv420p"), 8, "rawvideo"),
        ("vp9.ivf", ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-lossless", "1"), 8, "vp9"),
        (
            "hevc.mp4",
            ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "lossless=1:log-level=none"),
            8,
            "hevc",
        ),
    ],
)
def test_luma_is_the_same_in_every_format(
    clip: Clip, name: str, options: tuple[str, ...], depth: int, codec: str
) -> None:
    lossless = clip("wanted.mkv", "-f", "lavfi", "-i", "mandelbrot=s=322x182", "-frames:v", "3", "-c:v", "ffv1",
                    "-pix_fmt", "yuv420p")  # fmt: skip
    wanted = everything(lossless)
    path = clip(name, "-i", lossless, *options)
    facts = probe(path, LIMITS)
    assert (facts.bit_depth, facts.codec) == (depth, codec)
    frames = everything(path)
    assert len(frames) == 3
    for frame, other in zip(frames, wanted, strict=True):
        assert frame.pixels.dtype == (np.uint16 if depth == 10 else np.uint8)
        scale = 4 if depth == 10 else 1
        low, span = (16, 255 / 219) if name.startswith("gray") else (0, 1.0)  # ffmpeg makes grey full range
        expected = (other.pixels.astype(float) - low) * span * scale
        assert np.abs(frame.pixels - np.clip(expected, 0, None)).max() <= scale


def test_ten_bits_in_the_upper_ones_of_sixteen() -> None:
    values = np.arange(96 * 64, dtype=np.uint16).reshape(96, 64) % 1024
    frame = av.VideoFrame.from_ndarray(values, format="yuv420p10le")
    assert np.array_equal(media.luma(frame), values[:64])
    assert np.array_equal(media.luma(frame.reformat(format="p010le")), values[:64])


def test_full_range_and_rotation_are_told(clip: Clip) -> None:
    full = clip("full.mp4", *SECOND, "-vf", "scale=out_range=full,format=yuvj420p", "-c:v", "libx264", "-crf", "30")
    assert probe(full, LIMITS).colour_range == "full"
    plain = clip("plain.mp4", *SECOND, "-c:v", "libx264", "-pix_fmt", "yuv420p")
    turned = clip("turned.mp4", "-display_rotation", "90", "-i", plain, "-c", "copy")
    assert probe(turned, LIMITS).rotation_deg == 90


def test_times_start_at_zero_in_order_of_display(clip: Clip) -> None:
    path = clip("late.ts", *SECOND, "-c:v", "libx264", "-bf", "3", "-output_ts_offset", "7")
    times_s = [frame.time_s for frame in everything(path)]
    assert times_s[0] == 0
    assert times_s == sorted(times_s)
    assert len(times_s) == 25


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("whole.mp4", ("-c:v", "libx264", "-movflags", "+faststart")),
        ("whole.mkv", ("-c:v", "libx264", "-g", "10")),
        ("whole.ts", ("-c:v", "libx264")),
        ("whole.y4m", ()),
        ("fragments.mp4", ("-c:v", "libx264", "-g", "5", "-movflags", "frag_keyframe+empty_moov")),
    ],
)
def test_a_file_that_was_cut_off_says_where_it_breaks(clip: Clip, name: str, options: tuple[str, ...]) -> None:
    whole = clip(name, *SECOND, *options, "-pix_fmt", "yuv420p")
    assert len(everything(whole)) == 25
    seen, error = until_broken(cut_short(whole, 0.6, f"short_{name}"))
    assert 0 < seen < 25
    assert f"frame {seen}, 0." in error.got
    assert "Fetch or write the file again" in error.next_step


def test_a_damaged_picture_is_no_picture(clip: Clip) -> None:
    whole = clip("whole.mp4", *SECOND, "-c:v", "libx264", "-movflags", "+faststart", "-pix_fmt", "yuv420p")
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xa5" * 200
    broken = whole.with_name("damaged.mp4")
    broken.write_bytes(data)
    seen, error = until_broken(broken)
    assert 0 < seen < 25
    assert "damaged" in error.got


def test_an_index_that_is_missing_is_refused(clip: Clip) -> None:
    whole = clip("index_last.mp4", *SECOND, "-c:v", "libx264", "-pix_fmt", "yuv420p")
    with pytest.raises(InvalidInput, match="no readable media"):
        probe(cut_short(whole, 0.6, "no_index.mp4"), LIMITS)


def test_what_is_no_video_is_refused(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.mp4"):
        probe(tmp_path / "nothing.mp4", LIMITS)
    with pytest.raises(InvalidInput, match="no regular file"):
        probe(tmp_path, LIMITS)
    for name, content in (("empty.mp4", b""), ("text.mp4", b"This is a text about films.\n" * 50)):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match="no readable media"):
            probe(path, LIMITS)
    with pytest.raises(InvalidInput, match="no video stream"):
        probe(clip("audio.mp4", "-f", "lavfi", "-i", "sine", "-t", "1"), LIMITS)
    with pytest.raises(InvalidInput, match=r"no video stream|no frame"):
        probe(clip("zero.mp4", *PATTERN, "-frames:v", "0", "-c:v", "libx264"), LIMITS)
    headers = tmp_path / "headers.y4m"
    headers.write_bytes(b"YUV4MPEG2 W320 H180 F25:1 Ip A1:1 C420jpeg\n")
    with pytest.raises(InvalidInput, match=r"no video stream|cut off"):
        probe(headers, LIMITS)


@pytest.mark.parametrize("ending", ["m3u8", "mp4", "mkv", "ffconcat"])
def test_files_that_name_other_files_are_refused(clip: Clip, tmp_path: Path, ending: str) -> None:
    video = clip("whole.ts", *SECOND, "-c:v", "libx264", "-pix_fmt", "yuv420p")
    playlists = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{video}'\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
    )
    for content in playlists:
        path = tmp_path / f"list.{ending}"
        path.write_text(content)
        with pytest.raises(InvalidInput, match="no playlist"):
            probe(path, LIMITS)


@pytest.mark.parametrize("name", ["concat:whole.ts", "http:", "pipe:0", "file:whole.ts"])
def test_protocols_in_names_are_only_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound):
        probe(tmp_path / name, LIMITS)
    with pytest.raises(NotFound):
        probe(Path(name), LIMITS)


def test_a_film_that_refers_to_another_file_stays_closed(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container is given no way to open a second file, whatever a demuxer may wish."""
    seen: list[object] = []
    opened = av.open

    def spy(*arguments: object, **options: object) -> object:
        seen.append(options["io_open"])
        return opened(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(av, "open", spy)
    probe(clip("whole.ts", *SECOND, "-c:v", "libx264", "-pix_fmt", "yuv420p"), LIMITS)
    (refuse,) = seen
    assert callable(refuse)
    with pytest.raises(PermissionError):
        refuse("file:/etc/passwd", 0, {})


def test_sizes_are_checked_before_anything_is_decoded(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = tmp_path / "bomb.y4m"
    bomb.write_bytes(b"YUV4MPEG2 W16384 H16384 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(1000))
    path = clip("whole.ts", *SECOND, "-c:v", "libx264", "-pix_fmt", "yuv420p")

    def never(*_: object) -> Iterator[object]:
        raise AssertionError("decoded")

    monkeypatch.setattr(media, "_pictures", never)
    with pytest.raises(InvalidInput, match="16384x16384 pixels"):
        probe(bomb, LIMITS)
    with pytest.raises(InvalidInput, match="320x180 pixels"):
        probe(path, replace(LIMITS, max_pixels=320 * 179))


def test_a_header_that_claims_less_than_the_stream_holds(clip: Clip) -> None:
    """The container's 320x180 hides a stream of more pixels than allowed: the decoder holds the limit too."""
    big = clip("big.mp4", "-f", "lavfi", "-i", "testsrc2=s=1280x720", "-frames:v", "3", "-c:v", "libx264", "-crf", "40")
    lying = big.with_name("lying.mp4")
    lying.write_bytes(big.read_bytes().replace(struct.pack(">HH", 1280, 720), struct.pack(">HH", 320, 180)))
    with pytest.raises(InvalidInput):
        everything(lying, replace(LIMITS, max_pixels=320 * 180))


def test_limits_are_kept(clip: Clip) -> None:
    path = clip("plain.mp4", *SECOND, "-c:v", "libx264", "-pix_fmt", "yuv420p")
    for limits, words in (
        (replace(LIMITS, max_bytes=100), "bytes"),
        (replace(LIMITS, max_duration_s=0.5), r"1\.0 s"),
        (replace(LIMITS, max_frames=24), "25 frames"),
    ):
        with pytest.raises(InvalidInput, match=words):
            probe(path, limits)
    unknown = clip("fragments.mp4", *SECOND, "-c:v", "libx264", "-movflags", "frag_keyframe+empty_moov", "-g", "5")
    facts = probe(unknown, LIMITS)
    for limits in (replace(LIMITS, max_frames=9), replace(LIMITS, max_duration_s=0.35)):
        with pytest.raises(InvalidInput, match="frame 10"):
            list(decode(unknown, facts, limits))
    with pytest.raises(InvalidInput, match="s of decoding"):
        list(decode(unknown, facts, replace(LIMITS, deadline_s=0.0)))
    with pytest.raises(InvalidInput, match=f"sides of {LEAST_SIDE}"):
        probe(clip("small.mp4", "-f", "lavfi", "-i", "testsrc2=s=128x78", "-t", "1", "-c:v", "libx264"), LIMITS)


@pytest.mark.parametrize(
    ("name", "options", "words", "way_out"),
    [
        ("12.mkv", ("-c:v", "ffv1", "-pix_fmt", "yuv420p12le"), "yuv420p12le samples", "yuv420p10le"),
        ("rgb.mkv", ("-c:v", "ffv1", "-pix_fmt", "bgr0"), "pixel format bgr0", "-pix_fmt yuv420p"),
        ("interlaced.mp4", ("-vf", "interlace", "-c:v", "libx264", "-flags", "+ilme+ildct"), "interlaced", "bwdif"),
    ],
)
def test_pictures_that_cannot_be_measured(
    clip: Clip, name: str, options: tuple[str, ...], words: str, way_out: str
) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        probe(clip(name, *SECOND, *options), LIMITS)
    assert way_out in caught.value.next_step


def test_pictures_that_change_size_are_refused(clip: Clip) -> None:
    vp9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-frames:v", "5")
    small, large = (
        clip(f"part{width}.ivf", "-f", "lavfi", "-i", f"testsrc2=s={width}x180:r=25", *vp9).read_bytes()
        for width in (320, 352)
    )
    later = bytearray(large[32:])
    at = 0
    while at < len(later):
        size, time = struct.unpack_from("<IQ", later, at)
        struct.pack_into("<IQ", later, at, size, time + 5)
        at += 12 + size
    joined = clip("part320.ivf").with_name("joined.ivf")
    joined.write_bytes(small + later)
    seen, error = until_broken(joined)
    assert seen == 5
    assert "352x180 yuv420p from frame 5, 0.160 s" in error.got
    assert "320x180" in error.expected


def test_a_reader_that_stops_early_leaves_nothing_open(clip: Clip) -> None:
    path = clip("plain.mp4", *SECOND, "-c:v", "libx264", "-pix_fmt", "yuv420p")
    facts = probe(path, LIMITS)

    def descriptors() -> int:
        return sum(link.resolve() == path.resolve() for link in Path("/proc/self/fd").iterdir() if link.exists())

    frames = decode(path, facts, LIMITS)
    next(frames)
    assert descriptors() == 1
    frames.close()
    assert descriptors() == 0
