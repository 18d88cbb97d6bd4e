import json
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from serve.errors import InvalidInput, Unavailable
from serve.quality import libvmaf
from serve.quality.alignment import align
from serve.quality.fusion import COLOUR_FEATURES
from serve.quality.media import Limits
from serve.quality.pairing import pairs
from serve.quality.scorer import FullReferenceScorer
from serve.tensors import GraphSpec, TensorSpec
from tests.serve.quality.conftest import Clip
from tests.serve.quality.small_vmaf import Double
from training.export import ExportGraph, export_artifact
from training.quality.export import graph_name
from training.quality.published import read_published


@pytest.fixture(scope="module")
def encode(clip: Clip, film: Path) -> Path:
    return clip("libvmaf.mkv", "-i", film, "-c:v", "libx264", "-crf", "35", "-preset", "veryfast")


def _scored(reference: Path, distorted: Path, **asked) -> libvmaf.LibvmafScores:
    with closing(pairs(reference, distorted, align(reference, distorted, Limits()), Limits())) as stream:
        return libvmaf.score_pairs(stream, **asked)


def test_scores_are_those_of_the_command_line(film: Path, encode: Path, tmp_path: Path):
    found = _scored(film, encode, model="vmaf_v0.6.1", bit_depth=8)
    filters = "[0:v]settb=AVTB,setpts=PTS-STARTPTS[d];[1:v]settb=AVTB,setpts=PTS-STARTPTS[r];"
    options = "model=version=vmaf_v0.6.1:log_fmt=json:log_path=log.json:ts_sync_mode=nearest"
    program = libvmaf.find_ffmpeg()
    assert program is not None
    inputs = ["-i", str(encode), "-i", str(film)]
    graph = f"{filters}[d][r]libvmaf={options}"
    subprocess.run([program, "-v", "error", *inputs, "-lavfi", graph, "-f", "null", "-"], cwd=tmp_path, check=True)
    expected = [frame["metrics"]["vmaf"] for frame in json.loads((tmp_path / "log.json").read_text())["frames"]]
    assert len(found.scores) == len(expected) == 80
    assert np.abs(found.scores - expected).max() < 1e-4
    assert found.indices.tolist() == list(range(80))
    assert np.isfinite(found.features).all()


def test_a_sample_has_the_scores_of_the_whole(film: Path, encode: Path):
    whole = _scored(film, encode, model="vmaf_v0.6.1neg", bit_depth=8)
    sample = _scored(film, encode, model="vmaf_v0.6.1neg", bit_depth=8, every=7)
    assert sample.indices.tolist() == list(range(0, 80, 7))
    assert np.abs(sample.scores - whole.scores[::7]).max() < 0.2  # libvmaf measures motion only where it scores


def test_no_pairs(film: Path):
    with pytest.raises(InvalidInput):
        libvmaf.score_pairs(iter(()), model="vmaf_v0.6.1", bit_depth=8)


def test_an_unknown_model_is_an_error_in_ffmpegs_words(film: Path, encode: Path):
    with pytest.raises(Unavailable, match="libvmaf"):
        _scored(film, encode, model="vmaf_v9", bit_depth=8)


def test_the_deadline_ends_it(film: Path, encode: Path):
    with pytest.raises(Unavailable, match="no end within"):
        _scored(film, encode, model="vmaf_v0.6.1", bit_depth=8, deadline_s=0.05)


def test_an_error_of_the_pairs_comes_through_and_leaves_nothing(film: Path, encode: Path):
    def broken():
        with closing(pairs(film, encode, align(film, encode, Limits()), Limits())) as stream:
            yield next(stream)
        raise InvalidInput(field="clip", got="broken", expected="whole", next_step="none")

    before = threading.active_count()
    with pytest.raises(InvalidInput, match="broken"):
        libvmaf.score_pairs(broken(), model="vmaf_v0.6.1", bit_depth=8)
    assert threading.active_count() <= before


COLOURED = "vmaf_v1.0.16_3d0h"


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> FullReferenceScorer:
    """Of an artifact with version 1.0.16's parameters and no graph of its features."""
    spec = GraphSpec(
        inputs=(TensorSpec("x", "float32", ("B", 2)),), outputs=(TensorSpec("y", "float32", ("B", 2)),),
        limits={"B": (1, 4)}, tolerance=1e-6,
    )  # fmt: skip
    graph = ExportGraph(module=Double(), example={"x": torch.ones(3, 2)}, spec=spec)
    fusion = read_published(COLOURED)
    models = {COLOURED: fusion.parameters() | {"graph": graph_name(fusion)}}
    folder = tmp_path_factory.mktemp("coloured")
    return FullReferenceScorer(
        export_artifact(
            folder, name="vmaf", graphs={"double": graph}, tables={}, metrics={}, parameters={"models": models}
        )
    )


def _command_line(reference: Path, distorted: Path, changes: tuple[str, str], folder: Path) -> dict[str, np.ndarray]:
    """Version 1.0.16 by ffmpeg alone, with filters on the distorted clip and on the reference."""
    program = libvmaf.find_ffmpeg()
    assert program is not None
    start = "settb=AVTB,setpts=PTS-STARTPTS"
    filters = f"[0:v]{start},{changes[0]}[d];[1:v]{start},{changes[1]}[r]"
    options = f"model=version={COLOURED}:log_fmt=json:log_path=log.json:ts_sync_mode=nearest"
    command = [program, "-v", "error", "-i", str(distorted), "-i", str(reference), "-lavfi"]
    subprocess.run(
        [*command, f"{filters};[d][r]libvmaf={options}", "-f", "null", "-"], cwd=folder, check=True, timeout=60
    )
    frames = [frame["metrics"] for frame in json.loads((folder / "log.json").read_text())["frames"]]
    names = ("vmaf", *(next(key for key in frames[0] if name in key) for name in COLOUR_FEATURES))
    return {short: np.array([row[name] for row in frames]) for short, name in zip(RESULTS, names, strict=True)}


RESULTS = ("vmaf", *COLOUR_FEATURES)
COLOURFUL = (
    "mandelbrot=s=800x600:rate=25:maxiter=150:start_scale=0.5:end_scale=0.02:end_pts=300,"
    "crop=480:360:x='160+90*sin(n/9)':y='120+60*sin(n/7+1)',noise=alls=10:allf=t:all_seed=5,format=yuv444p,format="
)
PLAIN = ("null", "null")
LEFT = "flags=bicubic:in_chroma_loc=left:out_chroma_loc=left"


@pytest.mark.parametrize(
    ("pixels", "encoded", "changes"),
    [
        ("yuv420p", "format=yuv420p", PLAIN),
        ("yuv420p10le", "format=yuv420p10le", PLAIN),
        ("yuv420p", "scale=320:240:flags=bicubic", (f"scale=480:360:{LEFT}", "null")),
        ("yuv420p", "crop=432:324:24:18", ("null", "crop=432:324:24:18")),
        ("yuv422p", "format=yuv422p", ("format=yuv420p", "format=yuv420p")),
    ],
    ids=["8", "10", "scaled", "cut", "422"],
)  # fmt: skip
def test_chroma_goes_along(
    scorer: FullReferenceScorer, clip: Clip, tmp_path: Path, request: pytest.FixtureRequest, pixels: str, encoded: str,
    changes: tuple[str, str],
):  # fmt: skip
    source = clip(f"{pixels}-colour.mkv", "-f", "lavfi", "-i", COLOURFUL + pixels, "-frames:v", "30", "-c:v", "ffv1")
    encode = clip(
        f"{request.node.callspec.id}-colour.mp4", "-i", source, "-vf", encoded, "-c:v", "libx264", "-crf", "32",
        "-preset", "veryfast",
    )  # fmt: skip
    found = scorer.score(source, encode, model=COLOURED)
    expected = _command_line(source, encode, changes, tmp_path)
    assert found.backend == "libvmaf"
    away = {"vmaf": np.abs(found.scores - expected["vmaf"]).max()}
    away |= {
        name: np.abs(found.features[:, place] - expected[name]).max() for place, name in enumerate(COLOUR_FEATURES)
    }
    assert max(away.values()) < 1e-4, (away, found.alignment.corrections)
    assert expected["speed_chroma_uv"].min() > 0.05
    fused = read_published(COLOURED).scores(found.features)
    assert np.abs(fused - found.scores).max() < 1e-3


def _colour_planes(reference: Path, distorted: Path) -> tuple[np.ndarray, np.ndarray]:
    with closing(
        pairs(reference, distorted, align(reference, distorted, Limits()), Limits(), with_chroma=True)
    ) as stream:
        rows = list(stream)
    return tuple(np.stack([getattr(row, f"{name}_chroma") for row in rows]) for name in ("reference", "distorted"))


@pytest.mark.parametrize(("less", "more"), [("limited", "full"), ("full", "limited")])
def test_chroma_of_another_range_is_converted(clip: Clip, less: str, more: str):
    kinds = {"limited": ("yuv420p", "tv"), "full": ("yuvj420p", "pc")}
    source = clip("range-source.mkv", "-f", "lavfi", "-i", COLOURFUL + "yuv420p", "-frames:v", "30", "-c:v", "ffv1")
    ranged = {}
    for name, (pixels, said) in kinds.items():
        change = f"scale=in_range=limited:out_range={name},format={pixels}"
        encoder = ["-c:v", "libx264", "-qp", "0", "-preset", "ultrafast", "-color_range", said]
        ranged[name] = clip(f"range-{name}.mp4", "-i", source, "-vf", change, *encoder)
    reference, distorted = _colour_planes(ranged[less], ranged[more])
    assert np.abs(distorted - reference).max() <= 2
    assert np.abs(distorted - reference).mean() < 0.5
    assert np.array_equal(distorted, np.rint(distorted))


def test_chroma_that_moved_by_an_odd_number_of_pixels_lies_between_samples(clip: Clip):
    detailed = clip("odd-444.mkv", "-f", "lavfi", "-i", COLOURFUL + "yuv444p", "-frames:v", "30", "-c:v", "ffv1")
    source = clip("odd-source.mkv", "-i", detailed, "-pix_fmt", "yuv420p", "-c:v", "ffv1")
    change = "crop=432:320:25:25:exact=1,format=yuv420p"
    moved = clip("odd.mkv", "-i", detailed, "-vf", change, "-c:v", "ffv1")
    reference, distorted = _colour_planes(source, moved)
    assert reference.shape == distorted.shape == (30, 2, 160, 216)
    away = np.abs(distorted - reference)[..., 2:-2, 2:-2].mean()
    a_sample_off = np.abs(distorted[..., 1:] - reference[..., :-1]).mean()
    assert away < a_sample_off / 2.5


def test_a_sample_of_version_1_has_the_scores_of_the_whole(scorer: FullReferenceScorer, clip: Clip):
    source = clip("yuv420p-colour.mkv", "-f", "lavfi", "-i", COLOURFUL + "yuv420p", "-frames:v", "30", "-c:v", "ffv1")
    encode = clip("8-colour.mp4", "-i", source, "-c:v", "libx264", "-crf", "32", "-preset", "veryfast")
    whole, sample = (scorer.score(source, encode, model=COLOURED, every=every) for every in (1, 7))
    assert sample.indices.tolist() == list(range(0, 30, 7))
    unmoved = [COLOUR_FEATURES.index(name) for name in ("cambi", "speed_chroma_uv", "adm3")]
    assert np.abs(sample.features - whole.features[::7])[:, unmoved].max() < 1e-5
    assert np.abs(sample.scores - whole.scores[::7]).max() < 1.0, (sample.features, whole.features[::7])


def test_grey_video_has_its_chroma_told_from_its_detail(scorer: FullReferenceScorer, clip: Clip):
    source = clip("grey.mkv", "-f", "lavfi", "-i", COLOURFUL + "gray", "-frames:v", "6", "-c:v", "ffv1")
    encode = clip("grey.mp4", "-i", source, "-c:v", "libx264", "-crf", "32", "-pix_fmt", "yuv420p")
    found = scorer.score(source, encode, model=COLOURED)
    assert not found.features[:, COLOUR_FEATURES.index("speed_chroma_uv")].any()
    assert np.abs(read_published(COLOURED).scores(found.features) - found.scores).max() < 1e-3


def test_pictures_that_a_model_has_no_features_of_are_refused(scorer: FullReferenceScorer, clip: Clip):
    for size in ("640x158", "214x200"):
        source = clip(
            f"{size}.mkv", "-f", "lavfi", "-i", f"testsrc2=s={size}:rate=25", "-frames:v", "30", "-c:v", "ffv1"
        )
        with pytest.raises(InvalidInput, match="160 and 216"):
            scorer.score(source, source, model=COLOURED)


def test_a_backend_with_no_graph_of_the_model_is_refused(scorer: FullReferenceScorer, film: Path, encode: Path):
    with pytest.raises(InvalidInput, match="libvmaf"):
        scorer.score(film, encode, model=COLOURED, backend="engine")
