"""VMAF in torch against libvmaf, frame by frame."""

import itertools
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from serve.quality.alignment import align
from serve.quality.fusion import FEATURES, Fusion
from serve.quality.libvmaf import score_pairs
from serve.quality.media import Limits
from serve.quality.pairing import Pair, pairs
from tests.serve.quality.conftest import FILM, Clip
from training.quality.published import MODELS, read_published
from training.quality.vmaf import Vmaf, VmafFeatures

MOST_MEAN = 0.02
MOST_FRAME = 0.1

CONTENTS = {
    "film": FILM,
    "odd": "mandelbrot=s=322x182:rate=25:maxiter=80,format=yuv420p",
    "small": "testsrc2=s=112x88:rate=25,noise=alls=12:allf=t:all_seed=3,format=yuv420p",
    "cartoon": "testsrc2=s=640x360:rate=25,format=yuv420p",
    "dark": FILM.replace("format=yuv420p", "eq=brightness=-0.3:contrast=0.4,format=yuv420p"),
    "grain": FILM.replace("alls=8", "alls=40"),
    "flat": "color=c=gray:s=320x180:r=25,geq=lum='128+60*sin(X/40)*cos(Y/30+N/5)':cb=128:cr=128,format=yuv420p",
    "hd": "testsrc2=s=1280x720:rate=25,noise=alls=6:allf=t:all_seed=5,format=yuv420p",
    "full_hd": "mandelbrot=s=1920x1080:rate=25:maxiter=60,format=yuv420p",
    "fifty": FILM.replace("rate=25", "rate=50"),
}
FRAMES = {"hd": 3, "full_hd": 2}
ENCODERS = {
    "x264": ("-c:v", "libx264", "-preset", "veryfast"),
    "x265": ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error"),
    "av1": ("-c:v", "libsvtav1", "-preset", "10", "-svtav1-params", "lp=1"),
    "vp9": ("-c:v", "libvpx-vp9", "-b:v", "0", "-deadline", "realtime", "-cpu-used", "8"),
}
CASES = [
    ("film", "x264", 8, 30), ("film", "x265", 10, 36), ("film", "vp9", 8, 50), ("film", "av1", 10, 50),
    ("odd", "x264", 8, 26), ("small", "x264", 8, 32), ("small", "x265", 10, 24), ("cartoon", "av1", 8, 55),
    ("cartoon", "x264", 8, 40), ("dark", "x264", 8, 30), ("dark", "x265", 10, 28), ("grain", "x264", 8, 32),
    ("grain", "vp9", 8, 40), ("flat", "x264", 8, 30), ("flat", "x265", 10, 20), ("hd", "x264", 8, 35),
    ("full_hd", "x265", 8, 38), ("fifty", "x264", 8, 44),
]  # fmt: skip


def _encoded(clip: Clip, content: str, codec: str, depth: int, crf: int) -> tuple[Path, Path]:
    pixels = ["-pix_fmt", "yuv420p" if depth == 8 else "yuv420p10le"]
    frames = ["-frames:v", str(FRAMES.get(content, 8))]
    source = clip(f"{content}{depth}.mkv", "-f", "lavfi", "-i", CONTENTS[content], *frames, *pixels, "-c:v", "ffv1")
    encode = clip(
        f"{content}-{codec}{depth}-{crf}.mkv",
        "-i",
        source,
        *pixels,
        *ENCODERS[codec],
        "-crf",
        str(crf),
        "-threads",
        "1",
    )
    return source, encode


def _pairs(reference: Path, distorted: Path) -> list[Pair]:
    with closing(pairs(reference, distorted, align(reference, distorted, Limits()), Limits())) as stream:
        return list(stream)


def _stack(rows: list[Pair], name: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([getattr(row, name) for row in rows]))


@pytest.mark.parametrize(("content", "codec", "depth", "crf"), CASES)
def test_every_frame_is_libvmafs(clip: Clip, content: str, codec: str, depth: int, crf: int):
    rows = _pairs(*_encoded(clip, content, codec, depth, crf))
    for model in MODELS:
        expected = score_pairs(rows, model=model, bit_depth=depth)
        with torch.no_grad():
            scores, features = Vmaf(read_published(model))(_stack(rows, "reference"), _stack(rows, "distorted"))
        away = np.abs(scores.numpy() - expected.scores)
        worst = int(away.argmax())
        place = int(np.abs(features.numpy() - expected.features)[worst].argmax())
        told = (
            f"{model} of {content}, {codec}, {depth} bits, crf {crf}: frame {worst} is {scores[worst]:.4f}, libvmaf "
            f"says {expected.scores[worst]:.4f}; farthest is {FEATURES[place]}, {features[worst, place]:.6f} against "
            f"{expected.features[worst, place]:.6f}; mean error {away.mean():.4f}"
        )
        assert away.mean() <= MOST_MEAN, told
        assert away[worst] <= MOST_FRAME, told


def test_a_clip_against_itself_scores_as_libvmaf_says(film: Path):
    rows = _pairs(film, film)[:4]
    expected = score_pairs(rows, model=MODELS[0], bit_depth=8)
    with torch.no_grad():
        scores, _ = Vmaf(read_published(MODELS[0]))(_stack(rows, "reference"), _stack(rows, "reference"))
    assert np.abs(scores.numpy() - expected.scores).max() < 0.01
    assert scores.min() > 95


def test_rows_do_not_depend_on_each_other(clip: Clip):
    rows = _pairs(*_encoded(clip, "film", "x264", 8, 30))
    fusion = read_published(MODELS[0])
    names = ("reference", "distorted", "before", "after")
    with torch.no_grad():
        _, whole = Vmaf(fusion)(_stack(rows, "reference"), _stack(rows, "distorted"))
        single = torch.cat(
            [VmafFeatures(fusion.gain_limit)(*(_stack([row], name) for name in names)) for row in reversed(rows)]
        )
    assert torch.allclose(whole, single.flip(0), atol=1e-6)


def test_enhancement_earns_nothing_in_the_neg_form(clip: Clip, film: Path, changed: Clip):
    sharper = changed("sharper", "unsharp=5:5:1.2")
    rows = _pairs(film, sharper)[:3]
    scores = {}
    with torch.no_grad():
        for model in MODELS:
            found, _ = Vmaf(read_published(model))(_stack(rows, "reference"), _stack(rows, "distorted"))
            scores[model] = float(found.mean())
    assert scores["vmaf_v0.6.1neg"] < scores["vmaf_v0.6.1"] - 2


def test_serving_fuses_as_torch_does():
    random = np.random.default_rng(2)
    features = random.uniform(0, 1, (50, len(FEATURES))) * [1, 20, 1, 1, 1, 1]
    for model in MODELS:
        fusion = read_published(model)
        restored = Fusion.from_parameters(fusion.parameters())
        expected = Vmaf(fusion).fuse(torch.from_numpy(features)).numpy()
        assert np.allclose(restored.scores(features), expected, atol=1e-9)


@pytest.mark.parametrize(("lines", "columns"), list(itertools.product((80, 97), (80, 113))))
def test_any_size_from_the_least_on(lines: int, columns: int):
    frames = torch.rand(4, 1, lines, columns, generator=torch.Generator().manual_seed(lines)) * 255
    with torch.no_grad():
        features = VmafFeatures()(*torch.round(frames * 4) / 4)
    assert features.shape == (1, len(FEATURES))
    assert torch.isfinite(features).all()
