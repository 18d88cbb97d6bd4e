import numpy as np
import pytest

from serve.errors import InvalidInput, NotFound
from training.bitrate.video import Video, read_video

SIZES = np.array([[100, 250, 500], [110, 240, 520], [90, 260, 480], [20, 60, 99]]) * 1000
VMAF = np.array([[30, 60, 90.5], [35, 66, 92], [28, 58, 88], [70, 80, 97]])


def write(folder, columns, name, first):
    folder.mkdir(parents=True)
    for i, column in enumerate(columns, first):
        (folder / f"{name}{i}").write_text("\n".join(map(str, column)) + "\n\n")
    return folder


@pytest.fixture
def sizes(tmp_path):
    return write(tmp_path / "film" / "size", SIZES.T, "video_size_", 0)


@pytest.fixture
def vmaf(tmp_path):
    return write(tmp_path / "film" / "vmaf", VMAF.T[::-1], "video", 1)  # the highest rung first, as Comyco publishes


def test_title_is_read_without_its_short_rest(sizes, vmaf):
    video = read_video(sizes, vmaf, (300, 600, 1100), 4.0)
    assert (video.name, video.segment_s) == ("film", 4.0)
    np.testing.assert_array_equal(video.segment_bytes, SIZES[:3])
    np.testing.assert_array_equal(video.vmaf, VMAF[:3])
    np.testing.assert_array_equal(video.quality("vmaf"), VMAF[:3])
    np.testing.assert_allclose(video.quality("mbps"), [[0.3, 0.6, 1.1]] * 3)
    np.testing.assert_allclose(video.quality("log")[0], np.log([1, 2, 1100 / 300]))


def test_ladder_comes_from_mean_sizes_and_all_segments_on_demand(sizes):
    video = read_video(sizes, segment_s=2.0, segments=4)
    np.testing.assert_allclose(video.rungs_kbps, SIZES.mean(0) / 250)
    assert video.vmaf is None
    with pytest.raises(InvalidInput, match="vmaf"):
        video.quality("vmaf")


def test_rungs_are_in_the_order_of_their_numbers(tmp_path):
    ladder = np.arange(1, 13) * 1000
    video = read_video(write(tmp_path / "many", np.stack([ladder, ladder], 1), "video_size_", 0), segment_s=1.0)
    np.testing.assert_array_equal(video.segment_bytes[0], ladder)


def test_envivio_is_read_as_published(abr_data):
    video = read_video(abr_data / "envivio/size", abr_data / "envivio/vmaf")
    assert video.name == "envivio"
    assert video.segment_bytes.shape == (48, 6)
    np.testing.assert_allclose(video.rungs_kbps, [300, 750, 1200, 1850, 2850, 4300], rtol=0.02)
    assert (np.diff(video.vmaf.mean(0)) > 5).all()
    assert video.vmaf[0].tolist() == [28.809932, 64.858346, 75.043369, 84.117964, 94.602386, 99.823203]


def test_misfits_are_refused(sizes, vmaf, tmp_path):
    with pytest.raises(InvalidInput, match="segment_bytes"):
        read_video(sizes, ladder_kbps=(300, 600))
    with pytest.raises(InvalidInput, match="ascending"):
        read_video(sizes, ladder_kbps=(300, 600, 500))
    with pytest.raises(InvalidInput, match="segments"):
        read_video(sizes, segments=5)
    with pytest.raises(NotFound):
        read_video(tmp_path / "none")
    (vmaf / "video2").write_text("50\nx\n50\n50\n")
    with pytest.raises(InvalidInput, match="video2:2"):
        read_video(sizes, vmaf)
    (vmaf / "video2").write_text("50\n50\n50\n")
    with pytest.raises(InvalidInput, match="video2"):
        read_video(sizes, vmaf)
    (vmaf / "video2").write_text("50\n50\n101\n50\n")
    with pytest.raises(InvalidInput, match=r"0\.\.100"):
        read_video(sizes, vmaf)
    (sizes / "video_size_1").write_text("9\n0\n9\n9\n")
    with pytest.raises(InvalidInput, match="above 0"):
        read_video(sizes)
    for i in range(3, 13):
        (sizes / f"video_size_{i}").write_text("9\n")
    with pytest.raises(InvalidInput, match="13 files"):
        read_video(sizes)


@pytest.mark.parametrize("segment_s", [0, -1, np.nan, 61])
def test_absurd_segment_lengths_are_refused(segment_s):
    with pytest.raises(InvalidInput, match="segment_s"):
        Video("bad", segment_s, np.array([1.0, 2.0]), np.ones((3, 2)))
