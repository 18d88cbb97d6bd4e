"""VMAF 1.0.16 in torch against libvmaf, frame by frame and feature by feature."""

import itertools
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from serve.errors import InvalidInput
from serve.quality.alignment import align
from serve.quality.fusion import COLOUR_FEATURES, Fusion
from serve.quality.libvmaf import score_pairs
from serve.quality.media import Limits
from serve.quality.pairing import Pair, pairs
from tests.serve.quality.conftest import Clip
from tests.training.quality.test_vmaf import ENCODERS, MOST_FRAME, MOST_MEAN
from training.quality import cambi
from training.quality.published import COLOUR_MODELS, read_published
from training.quality.speed import SpeedChroma
from training.quality.vmaf import ColourFeatures, Vmaf

STANDARD = COLOUR_MODELS[0]
MOST_FEATURE = {"cambi": 5e-6, "speed_chroma_uv": 1e-3, "adm3": 2e-4, "motion3": 1e-4}
NAMES = ("reference", "distorted", "reference_chroma", "distorted_chroma")

FILM = (
    "mandelbrot=s=800x600:rate=25:maxiter=150:start_scale=0.5:end_scale=0.02:end_pts=300,"
    "crop=480:360:x='160+90*sin(n/9)':y='120+60*sin(n/7+1)',noise=alls=8:allf=t:all_seed=7,format=yuv420p"
)
SHADES = (
    "color=c=gray:s=480x360:r=25,format=yuv420p10le,geq=lum='300+220*sin(X/140+N/9)*cos(Y/110+N/5)':"
    "cb='512+120*sin(X/90)':cr='512+100*cos(Y/70+N/8)'"
)
CONTENTS = {
    "film": FILM,
    "cartoon": "testsrc2=s=480x360:rate=25,format=yuv420p",
    "dark": FILM.replace("format=yuv420p", "eq=brightness=-0.3:contrast=0.4,format=yuv420p"),
    "grain": FILM.replace("alls=8", "alls=40"),
    "bands": f"{SHADES},format=yuv420p",
    "shades": SHADES,
    "grey": f"{FILM},format=gray",
    "odd": "mandelbrot=s=451x333:rate=25:maxiter=80,noise=alls=4:allf=t:all_seed=2,format=yuv420p",
    "small": "mandelbrot=s=240x178:rate=25:maxiter=80,noise=alls=12:allf=t:all_seed=3,format=yuv420p",
    "hd": "testsrc2=s=1280x720:rate=25,noise=alls=6:allf=t:all_seed=5,format=yuv420p",
    "full_hd": "mandelbrot=s=1920x1080:rate=25:maxiter=60,format=yuv420p",
}
FRAMES = {"film": 4, "shades": 3, "hd": 1, "full_hd": 1}
CASES = [
    (STANDARD, "film", "x264", 8, 30), (STANDARD, "film", "x265", 10, 36), (STANDARD, "cartoon", "av1", 8, 55),
    (STANDARD, "dark", "x264", 8, 30), (STANDARD, "dark", "x265", 10, 28), (STANDARD, "grain", "vp9", 8, 40),
    (STANDARD, "bands", "x264", 8, 30), (STANDARD, "bands", "x265", 8, 40), (STANDARD, "shades", "x265", 10, 24),
    (STANDARD, "grey", "x264", 8, 32), (STANDARD, "odd", "vp9", 8, 40), (STANDARD, "small", "x264", 8, 32),
    (STANDARD, "full_hd", "x265", 8, 38), *((model, "hd", "x264", 8, 35) for model in COLOUR_MODELS[1:]),
]  # fmt: skip

Encode = Callable[[str, str, int, int], list[Pair]]


@pytest.fixture(scope="module")
def encoded(clip: Clip) -> Encode:
    """Aligned pairs, with chroma, of some content and its encode."""

    def make(content: str, codec: str, depth: int, crf: int) -> list[Pair]:
        pixels = ["-pix_fmt", "yuv420p" if depth == 8 else "yuv420p10le"]
        frames = ["-frames:v", str(FRAMES.get(content, 2))]
        source = clip(
            f"colour-{content}{depth}.mkv", "-f", "lavfi", "-i", CONTENTS[content], *frames, *pixels, "-c:v", "ffv1"
        )
        name = f"colour-{content}-{codec}{depth}-{crf}.mkv"
        encode = clip(name, "-i", source, *pixels, *ENCODERS[codec], "-crf", str(crf), "-threads", "1")
        alignment = align(source, encode, Limits())
        with closing(pairs(source, encode, alignment, Limits(), with_chroma=True)) as stream:
            return list(stream)

    return make


def _stack(rows: list[Pair], name: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([getattr(row, name) for row in rows]))


def _scored(fusion: Fusion, depth: int, rows: list[Pair]) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        scores, features = Vmaf(fusion, depth)(*(_stack(rows, name) for name in NAMES))
    return scores.numpy(), features.numpy()


@pytest.mark.parametrize(("model", "content", "codec", "depth", "crf"), CASES)
def test_every_feature_of_every_frame_is_libvmafs(
    encoded: Encode, model: str, content: str, codec: str, depth: int, crf: int
):
    rows = encoded(content, codec, depth, crf)
    expected = score_pairs(rows, model=model, bit_depth=depth, features=COLOUR_FEATURES)
    scores, features = _scored(read_published(model), depth, rows)
    away = np.abs(features - expected.features).max(axis=0)
    for place, name in enumerate(COLOUR_FEATURES):
        told = f"{name}: {features[:, place]} where libvmaf says {expected.features[:, place]}"
        assert away[place] <= MOST_FEATURE[name], told
    error = np.abs(scores - expected.scores)
    assert error.mean() <= MOST_MEAN, (scores, expected.scores)
    assert error.max() <= MOST_FRAME, (scores, expected.scores)
    if content in {"film", "dark", "grain", "cartoon", "full_hd"}:
        assert expected.features[:, COLOUR_FEATURES.index("speed_chroma_uv")].min() > 0


def test_rows_do_not_depend_on_each_other(encoded: Encode):
    rows = encoded("film", "x264", 8, 30)
    fusion = read_published(STANDARD)
    _, whole = _scored(fusion, 8, rows)
    alone = ColourFeatures(fusion.options)
    last = rows[-1]
    frames = (last.reference, last.distorted, last.before, last.after, last.reference_chroma, last.distorted_chroma)
    with torch.no_grad():
        row = alone(*(torch.from_numpy(frame)[None] for frame in frames if frame is not None))
    assert np.allclose(row.numpy()[0], whole[-1], atol=1e-5)


def test_it_exports_with_a_fixed_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cambi, "_LEVELS_AT_ONCE", 128)  # a smaller graph: tracing takes most of the time
    random = torch.Generator().manual_seed(3)
    steps = (80 + torch.floor(torch.arange(216.0) / 40)).expand(1, 160, 216)
    luma = [steps + torch.randint(0, 3, (1, 160, 216), generator=random) * (row != 1) for row in range(4)]
    chroma = [torch.randint(100, 140, (1, 2, 80, 108), generator=random).float() for _ in range(2)]
    features = ColourFeatures(read_published(STANDARD).options, 10).eval()
    with torch.no_grad():
        exported = torch.export.export(features, (*luma, *chroma), strict=False).module()
        expected = features(*luma, *chroma)
        assert torch.allclose(exported(*luma, *chroma), expected, atol=1e-6)
    assert expected[0, 0] > 0


def test_levels_near_a_pixels_own_are_counted_one_by_one():
    random = np.random.default_rng(4)
    levels = random.integers(70, 100, (1, 23, 31)).astype(np.float32)
    levels[random.uniform(size=levels.shape) < 0.3] = cambi._NOWHERE
    reach = 4
    found = cambi._near(torch.from_numpy(levels), reach, 71, 95).numpy()
    for line, column in itertools.product(range(levels.shape[1]), range(levels.shape[2])):
        own = levels[0, line, column]
        if 71 <= own <= 95:
            lines = slice(max(0, line - reach), line + reach + 1)
            window = levels[0, lines, max(0, column - reach) : column + reach + 1]
            assert found[:, 0, line, column].tolist() == [int((window == own + step).sum()) for step in range(-4, 5)]


def test_a_band_is_seen_and_a_smooth_shade_is_not():
    columns = torch.arange(320.0)
    steps = (80 + torch.floor(columns / 64)).expand(1, 240, 320)
    seen, unseen = (cambi.Cambi(10)(frames) for frames in (steps, torch.full((1, 240, 320), 80.0)))
    assert float(seen) > 1
    assert float(unseen) == 0


def test_chroma_against_itself_has_lost_nothing_and_a_flat_plane_takes_the_others_score():
    random = torch.Generator().manual_seed(5)
    planes = torch.randint(90, 160, (1, 2, 320, 320), generator=random).float()
    noisy = (planes + torch.randint(-9, 10, planes.shape, generator=random)).round()
    speed = SpeedChroma()
    assert float(speed(planes, planes)) == 0
    both = speed(planes, noisy)
    one = speed(planes[:, :1].expand(-1, 2, -1, -1), noisy[:, :1].expand(-1, 2, -1, -1))
    planes[:, 1], noisy[:, 1] = 128, 128
    assert float(both) > 0
    assert float(speed(planes, noisy)) == pytest.approx(float(one), abs=1e-9)


def test_serving_fuses_as_torch_does():
    random = np.random.default_rng(2)
    features = random.uniform(0, 1, (50, len(COLOUR_FEATURES))) * [17, 10, 1, 18]
    features[::5, COLOUR_FEATURES.index("speed_chroma_uv")] = 0
    for model in COLOUR_MODELS:
        fusion = read_published(model)
        restored = Fusion.from_parameters(json.loads(json.dumps(fusion.parameters())))
        expected = Vmaf(fusion).fuse(torch.from_numpy(features)).numpy()
        assert np.allclose(restored.scores(features), expected, atol=1e-9)
        assert restored.least_sides == fusion.least_sides


def test_models_with_what_is_not_computed_here_are_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="motion_five_frame_window"):
        read_published("vmaf_v1.0.16_hfr_3d0h")
    fusion = read_published(STANDARD)
    with pytest.raises(InvalidInput, match="4 heights of 1080"):
        ColourFeatures({**fusion.options, "adm_norm_view_dist": 4.0})
