"""Each mistake made with two clips, made on purpose: corrected to the same pairs, or refused in the right words."""

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
import pytest

from serve.quality.alignment import Alignment, Misaligned, align
from serve.quality.geometry import Area
from serve.quality.media import Limits
from serve.quality.offsets import pair_up
from serve.quality.pairing import Pair, pairs
from serve.quality.placement import scaled_luma

Clip = Callable[..., Path]

LIMITS = Limits()
WHOLE = Area(left=0, top=0, width=320, height=180)
HARSH = ("-c:v", "libx264", "-crf", "45", "-preset", "veryfast", "-pix_fmt", "yuv420p")


def aligned(reference: Path, distorted: Path) -> tuple[Alignment, list[Pair]]:
    alignment = align(reference, distorted, LIMITS)
    made = list(pairs(reference, distorted, alignment, LIMITS))
    assert [pair.index for pair in made] == list(range(len(made)))
    for pair in made:
        assert pair.reference.dtype == pair.before.dtype == pair.distorted.dtype == np.float32
        assert pair.reference.shape == pair.before.shape == pair.distorted.shape
    for previous, pair in itertools.pairwise(made):
        assert np.array_equal(pair.before, previous.reference)
    assert made[0].before is made[0].reference
    return alignment, made


def assert_same(made: list[Pair], steps: float = 0.0) -> None:
    worst = max(float(np.abs(pair.reference - pair.distorted).max()) for pair in made)
    assert worst <= steps


def refused(reference: Path, distorted: Path) -> Misaligned:
    with pytest.raises(Misaligned) as caught:
        align(reference, distorted, LIMITS)
    assert caught.value.expected
    assert caught.value.next_step
    return caught.value


def test_a_clip_against_itself_needs_nothing(film: Path) -> None:
    alignment, made = aligned(film, film)
    assert alignment.corrections == ()
    assert alignment.notes == ()
    assert alignment.reference_area == alignment.distorted_area == WHOLE
    assert len(made) == 80
    assert made[-1].time_s == pytest.approx(79 / 25)
    assert_same(made)


@pytest.mark.parametrize("frames", [1, 2, 7, 30])
def test_a_late_start_is_found(film: Path, changed: Clip, frames: int) -> None:
    late = changed(f"late{frames}", f"trim=start_frame={frames},setpts=PTS-STARTPTS")
    words = f"{frames} frame{'s' * (frames > 1)}"
    alignment, made = aligned(film, late)
    assert alignment.corrections == (
        f"distorted starts {words} late: its frame 0 is the reference's frame {frames}",
    )  # fmt: skip
    assert len(made) == 80 - frames
    assert made[0].time_s == pytest.approx(frames / 25)
    assert_same(made)
    alignment, made = aligned(late, film)
    assert alignment.corrections == (
        f"distorted starts {words} early: its frame {frames} is the reference's frame 0",
    )  # fmt: skip
    assert len(made) == 80 - frames
    assert_same(made)


@pytest.mark.parametrize("frames", [-30, -3, -1, 0, 1, 12])
def test_a_harsh_encode_at_half_size_is_placed_as_well(film: Path, changed: Clip, clip: Clip, frames: int) -> None:
    early = changed(f"late{-frames}", f"trim=start_frame={-frames},setpts=PTS-STARTPTS") if frames < 0 else film
    filters = f"trim=start_frame={max(frames, 0)},setpts=PTS-STARTPTS,scale=160:90"
    harsh = clip(f"harsh{max(frames, 0)}.mp4", "-i", film, "-vf", filters, *HARSH)
    alignment = align(early, harsh, LIMITS)
    assert round(alignment.late_s * 25, 6) == frames
    assert alignment.scaled == (320, 180)
    assert alignment.reference_area == alignment.distorted_area == WHOLE
    assert alignment.corrections[-1] == "distorted is 160x90: scaled to 320x180 (bicubic)"


def test_container_start_times_do_not_count(film: Path, clip: Clip) -> None:
    moved = clip("moved.mkv", "-i", film, "-c", "copy", "-output_ts_offset", "5")
    alignment, made = aligned(film, moved)
    assert alignment.corrections == ()
    assert len(made) == 80
    assert_same(made)


def test_an_offset_out_of_reach_is_refused(film: Path, changed: Clip) -> None:
    error = refused(film, changed("late40", "trim=start_frame=40,setpts=PTS-STARTPTS"))
    assert "no offset within 30 frames fits" in error.got
    assert "frames" in error.expected or "content" in error.expected


def test_other_content_is_refused(film: Path, clip: Clip) -> None:
    other = clip("other.mp4", "-f", "lavfi", "-i", "testsrc2=s=320x180:r=25", "-frames:v", "60", *HARSH)
    assert "different content" in refused(film, other).got


@pytest.mark.parametrize(("top", "left"), [(44, 0), (0, 40), (13, 0)])
def test_bars_in_one_are_cut_off(film: Path, changed: Clip, top: int, left: int) -> None:
    barred = changed(f"bars{top}_{left}", f"pad=iw+{2 * left}:ih+{2 * top}:{left}:{top},format=yuv420p")
    top -= top % 2  # ffmpeg puts pictures of 4:2:0 on even lines
    alignment, made = aligned(film, barred)
    assert alignment.reference_area == WHOLE
    assert (alignment.distorted_area.left, alignment.distorted_area.top) == (left, top)
    assert any("that the reference lacks" in words for words in alignment.corrections)
    assert_same(made)
    alignment, made = aligned(barred, film)
    assert alignment.distorted_area == WHOLE
    assert (alignment.reference_area.left, alignment.reference_area.top) == (left, top)
    assert_same(made)


def test_bars_drawn_over_the_picture_are_left_out(film: Path, changed: Clip) -> None:
    covered = changed("covered", "drawbox=w=iw:h=20:c=black:t=fill,drawbox=y=ih-20:w=iw:h=20:c=black:t=fill")
    alignment, made = aligned(film, covered)
    assert alignment.reference_area == alignment.distorted_area
    assert alignment.reference_area.top == 20
    assert 136 <= alignment.reference_area.height <= 140
    assert_same(made)


def test_bars_in_both_need_nothing(changed: Clip, clip: Clip) -> None:
    letterboxed = changed("letterboxed", "crop=320:140,pad=320:180:0:20")
    harsh = clip("letterboxed.mp4", "-i", letterboxed, *HARSH)
    alignment = align(letterboxed, harsh, LIMITS)
    assert alignment.corrections == ()
    assert alignment.reference_area == alignment.distorted_area == WHOLE


@pytest.mark.parametrize(
    ("crop", "area"),
    [
        ("320:164:0:16", Area(left=0, top=16, width=320, height=164)),
        ("240:180:40:0", Area(left=40, top=0, width=240, height=180)),
        ("304:180:16:0", Area(left=16, top=0, width=304, height=180)),
    ],
)
def test_a_part_of_the_picture_is_compared_with_that_part(film: Path, changed: Clip, crop: str, area: Area) -> None:
    part = changed(f"crop{crop.replace(':', '_')}", f"crop={crop}")
    alignment, made = aligned(film, part)
    assert alignment.reference_area == area
    assert any("distorted lacks" in words for words in alignment.corrections)
    assert_same(made)
    alignment, made = aligned(part, film)
    assert alignment.distorted_area == area
    assert_same(made)


def test_a_late_half_size_part_all_at_once(film: Path, changed: Clip) -> None:
    part = changed("all", "trim=start_frame=5,setpts=PTS-STARTPTS,crop=240:180,scale=120:90:flags=bicubic")
    alignment, made = aligned(film, part)
    assert round(alignment.late_s * 25, 6) == 5
    assert alignment.scaled == (240, 180)
    assert alignment.reference_area == Area(left=40, top=0, width=240, height=180)
    assert len(alignment.corrections) == 3
    assert np.mean([np.abs(pair.reference - pair.distorted).mean() for pair in made]) < 8


@pytest.mark.parametrize(
    ("ranges", "words", "gain"),
    [
        ("in_range=limited:out_range=full", "distorted luma is full range", 219 / 255),
        ("in_range=full:out_range=limited", "distorted luma is limited range", 255 / 219),
    ],
)
def test_the_colour_range_is_converted(film: Path, changed: Clip, ranges: str, words: str, gain: float) -> None:
    wrong = changed(f"range{gain:.2f}", f"scale={ranges},format=yuv420p,setparams=range=limited")
    alignment, made = aligned(film, wrong)
    assert alignment.gain == pytest.approx(gain)
    assert len(alignment.corrections) == 1
    assert alignment.corrections[0].startswith(words)
    errors = np.concatenate([np.abs(pair.reference - pair.distorted).ravel() for pair in made])
    assert np.quantile(errors, 0.9) <= 1.5  # what lies outside of the range is lost


def test_a_wrong_range_mark_alone_changes_nothing(film: Path, clip: Clip) -> None:
    plain = clip("harsh_whole.mp4", "-i", film, *HARSH)
    marked = clip("marked.mp4", "-i", plain, "-c", "copy", "-bsf:v", "h264_metadata=video_full_range_flag=1")
    alignment, made = aligned(plain, marked)
    assert alignment.distorted.colour_range == "full"
    assert alignment.corrections == ()
    assert "marked as limited range" in alignment.notes[0]
    assert_same(made)


@pytest.mark.parametrize(
    ("name", "filters", "words"),
    [
        ("mirrored", "hflip", "mirrored"),
        ("upside_down", "vflip", "upside down"),
        ("half_turn", "hflip,vflip", "rotated by 180 degrees"),
        ("clockwise", "transpose=clock", "rotated by 90 degrees clockwise"),
        ("counterclockwise", "transpose=cclock", "rotated by 90 degrees counterclockwise"),
    ],
)
def test_turned_pictures_are_named(film: Path, changed: Clip, name: str, filters: str, words: str) -> None:
    assert words in refused(film, changed(name, f"trim=start_frame=4,setpts=PTS-STARTPTS,{filters}")).got


def test_a_squeezed_picture_is_refused_unless_its_pixels_undo_it(film: Path, changed: Clip) -> None:
    squeezed = changed("squeezed", "scale=240:180:flags=bicubic,setsar=1")
    assert "squeezed" in refused(film, squeezed).got
    anamorphic = changed("anamorphic", "scale=240:180:flags=bicubic,setsar=4/3")
    alignment = align(film, anamorphic, LIMITS)
    assert alignment.scaled == (320, 180)
    assert alignment.reference_area == alignment.distorted_area == WHOLE


def test_half_and_double_the_rate(film: Path, changed: Clip) -> None:
    half = changed("half_rate", "select='not(mod(n,2))'", "-r", "12.5")
    alignment, made = aligned(film, half)
    assert "12.5 against 25 frames/s" in alignment.corrections[0]
    assert len(made) == 40
    assert_same(made)
    alignment, made = aligned(half, film)
    assert len(made) == 40
    assert_same(made)


def test_nearly_the_same_rate_is_paired_by_time(film: Path, clip: Clip) -> None:
    near = clip("near_rate.mp4", "-i", film, "-vf", "fps=25025/1000", "-c:v", "libx264", "-qp", "0")
    alignment, made = aligned(film, near)
    assert alignment.late_s == 0
    assert "rates nearly the same" in alignment.notes[0]
    assert_same(made[:35])


def test_clocks_that_run_apart_are_refused(film: Path, clip: Clip) -> None:
    fast = clip("fast.mkv", "-i", film, "-vf", "setpts=PTS*0.92", "-r", "25/0.92", "-c:v", "ffv1")
    assert "clocks that run apart" in refused(film, fast).got


def test_ten_bits_are_taken_in_quarter_steps(film: Path, changed: Clip) -> None:
    deep = changed("deep", "format=yuv420p10le")
    alignment, made = aligned(film, deep)
    assert alignment.corrections == ("10 against 8 bits: both are taken in 8-bit steps",)
    assert_same(made)
    _, made = aligned(changed("deeper", "format=yuv420p10le,lut=y=val+1"), deep)
    assert made[0].reference[90, 160] - made[0].distorted[90, 160] == 0.25


def test_a_still_picture_is_not_moved_and_said_so(film: Path, clip: Clip) -> None:
    still = clip("still.mkv", "-i", film, "-vf", "select=eq(n\\,20),loop=60:1,setpts=N/25/TB", "-c:v", "ffv1")
    harsh = clip("still.mp4", "-i", still, *HARSH)
    alignment = align(still, harsh, LIMITS)
    assert alignment.corrections == ()
    assert "offset is ambiguous (nothing moves" in alignment.notes[0]


def test_a_black_beginning_is_not_moved_and_said_so(clip: Clip) -> None:
    black = clip("black.mkv", "-f", "lavfi", "-i", "color=black:s=320x180:r=25", "-frames:v", "40", "-c:v", "ffv1")
    alignment = align(black, black, LIMITS)
    assert alignment.corrections == ()
    assert any("blank" in note for note in alignment.notes)


def test_five_frames_are_enough(film: Path, clip: Clip) -> None:
    few = clip("few.mp4", "-i", film, "-vf", "trim=start_frame=3,setpts=PTS-STARTPTS", "-frames:v", "5", *HARSH)
    alignment = align(film, few, LIMITS)
    assert round(alignment.late_s * 25, 6) == 3
    assert len(list(pairs(film, few, alignment, LIMITS))) == 5
    same = clip("same.mkv", "-i", film, "-frames:v", "5", "-c", "copy")
    assert align(same, same, LIMITS).late_s == 0


@pytest.mark.parametrize(
    ("name", "filters", "crf"),
    [
        ("dark", "lut=y=16+(val-16)/5", "42"),
        ("grain", "noise=alls=30:allf=t+u", "51"),
        ("repeated", "select='not(mod(n,3))',fps=25:round=near", "51"),
        ("cuts", "select='lt(mod(n,50),25)',setpts=N/25/TB", "51"),
    ],
)
def test_hard_material_needs_no_correction(changed: Clip, clip: Clip, name: str, filters: str, crf: str) -> None:
    hard = changed(name, filters)
    harsh = clip(
        f"{name}.mp4", "-i", hard, "-c:v", "libx264", "-crf", crf, "-preset", "veryfast", "-vf", "scale=160:90"
    )
    alignment = align(hard, harsh, LIMITS)
    assert alignment.late_s == 0
    assert alignment.corrections == ("distorted is 160x90: scaled to 320x180 (bicubic)",)


def test_a_short_overlap_is_noted(film: Path, changed: Clip) -> None:
    ends = changed("ends", "trim=end_frame=60,setpts=PTS-STARTPTS")
    late = changed("late25", "trim=start_frame=25:end_frame=85,setpts=PTS-STARTPTS")
    alignment, made = aligned(ends, late)
    assert len(made) == 35
    assert alignment.notes == ("the clips overlap for 1.40 s, 64% of the shorter one",)
    assert_same(made)


def test_subsampled_pairs_keep_the_true_frame_before(film: Path, changed: Clip) -> None:
    late = changed("late7", "trim=start_frame=7,setpts=PTS-STARTPTS")
    alignment, made = aligned(film, late)
    some = list(pairs(film, late, alignment, LIMITS, every=5))
    assert [pair.index for pair in some] == list(range(0, 73, 5))
    for pair in some:
        assert np.array_equal(pair.reference, made[pair.index].reference)
        assert np.array_equal(pair.before, made[pair.index].before)
        assert np.array_equal(pair.distorted, made[pair.index].distorted)


def test_clips_without_a_common_time_are_refused(film: Path) -> None:
    alignment = align(film, film, LIMITS)
    apart = Alignment(**{**vars(alignment), "late_s": 60.0})
    with pytest.raises(Misaligned, match="clips that overlap"):
        list(pairs(film, film, apart, LIMITS))


def test_pairs_close_their_files(film: Path) -> None:
    def descriptors() -> int:
        return sum(link.resolve() == film.resolve() for link in Path("/proc/self/fd").iterdir() if link.exists())

    made = pairs(film, film, align(film, film, LIMITS), LIMITS)
    next(made)
    assert descriptors() == 2
    made.close()
    assert descriptors() == 0


@pytest.mark.parametrize("size", [(640, 360), (240, 136), (366, 206)])
def test_scaling_is_that_of_ffmpeg(film: Path, size: tuple[int, int]) -> None:
    """At most one step from `-vf scale=W:H:flags=bicubic`."""
    width, height = size
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(film), "-frames:v", "2", "-vf",
               f"scale={width}:{height}:flags=bicubic", "-pix_fmt", "yuv420p", "-f", "rawvideo", "-"]  # fmt: skip
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    frame_bytes = len(raw) // 2
    with av.open(str(film)) as container:
        for number, frame in zip(range(2), container.decode(video=0), strict=False):
            plane = np.frombuffer(raw, np.uint8, width * height, number * frame_bytes).reshape(height, width)
            assert np.abs(scaled_luma(frame, size) - plane).max() <= 1


def test_the_earlier_of_two_that_are_as_near() -> None:
    slow, fast = np.arange(4) / 12.5, np.arange(8) / 25
    left, right = pair_up(slow, fast, 0.02, by_reference=True, period_s=0.04)
    assert left.tolist() == [0, 1, 2, 3]
    assert right.tolist() == [0, 1, 3, 5]
