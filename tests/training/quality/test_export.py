"""The exported VMAF graph: on OpenVINO, on TensorRT's builder, in the scorer and through the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from serve.artifacts import Artifact, Manifest, set_champion
from serve.engines import load_engine
from serve.errors import InvalidInput
from serve.quality.alignment import Misaligned
from serve.quality.scorer import FullReferenceScorer
from tests.contracts.small_model import resealed_artifact
from tests.contracts.tensorrt_build import build_engine
from tests.serve.quality.conftest import Clip
from training.quality.export import example_frames, export_vmaf, graph_name, graph_spec
from training.quality.published import SERVED, read_published
from training.quality.vmaf import VmafFeatures

GRAPH = "features_100"
NEG = "vmaf_v0.6.1neg"
LIMITED = 8
"""Gains that the limit cuts: at four levels of ADM and four scales of VIF."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def artifact(home: Path) -> Artifact:
    """As the commands make it, but for the NEG form's graph; the export compares OpenVINO with torch at all limits."""
    exported = export_vmaf(home / "exported", [model for model in SERVED if model != NEG])
    artifact = resealed_artifact(exported, home / "models" / "vmaf", with_neg)
    set_champion(home / "models", "vmaf", artifact.version)
    return artifact


def with_neg(path: Path, manifest: Manifest) -> Manifest:
    """The NEG form too, by libvmaf alone: the commands export again where a model is missing."""
    models = {**manifest.parameters["models"], NEG: read_published(NEG).parameters() | {"graph": None}}
    return manifest.model_copy(update={"parameters": {"models": models}})


@pytest.fixture(scope="module")
def encode(clip: Clip, film: Path) -> Path:
    """Of half the size, seven frames late, in another frame rate's clock."""
    filters = "trim=start_frame=7,setpts=PTS-STARTPTS,scale=160:90:flags=bicubic"
    return clip("late-half.mp4", "-i", film, "-vf", filters, "-c:v", "libx264", "-crf", "30", "-preset", "veryfast")


def test_the_neg_form_is_the_same_graph_with_another_limit():
    """So that the export of one proves what that of the other would, which takes a minute."""
    limits = [read_published(model).gain_limit for model in ("vmaf_v0.6.1", NEG)]
    assert limits == [100.0, 1.0]
    assert graph_name(read_published(NEG)) == "features_1"
    frames = {name: torch.from_numpy(array) for name, array in example_frames().items()}
    graphs = [torch.export.export(VmafFeatures(limit), (), kwargs=frames, strict=False).graph for limit in limits]
    usual, neg = ([(node.target, str(node.args)) for node in graph.nodes] for graph in graphs)
    assert [target for target, _ in usual] == [target for target, _ in neg]
    differing = [(one, other) for one, other in zip(usual, neg, strict=True) if one != other]
    assert len(differing) == LIMITED
    assert all((target, given.replace("100.0", "1.0")) == other for (target, given), other in differing)


@pytest.mark.timeout(600)  # with the export, two minutes of one core
def test_tensorrt_builds_it_for_its_greatest_sizes(artifact: Artifact):
    """One GPU, and the greatest of its buckets: more of either take a minute each, and ask for no more."""
    assert build_engine(artifact, GRAPH, ("sm89",), greatest=True)


def test_sizes_that_occur_in_no_bucket_are_refused(artifact: Artifact):
    engine = load_engine(artifact, GRAPH, "cpu")
    with pytest.raises(InvalidInput, match="bucket"):
        engine(example_frames(3, 1090, 200))
    with pytest.raises(InvalidInput, match="H"):
        engine(example_frames(1, 79, 200))
    assert graph_spec().bucket({"B": 2, "H": 2160, "W": 4096}) is not None


def test_the_engine_scores_as_libvmaf_does(artifact: Artifact, film: Path, encode: Path):
    scorer = FullReferenceScorer(artifact, "cpu")
    ours = scorer.score(film, encode, backend="engine")
    theirs = scorer.score(film, encode, backend="libvmaf")
    assert (ours.backend, theirs.backend) == ("engine cpu", "libvmaf")
    assert ours.indices.tolist() == theirs.indices.tolist() == list(range(73))
    assert np.abs(ours.scores - theirs.scores).max() < 0.1
    assert np.abs(ours.scores - theirs.scores).mean() < 0.02
    said = " ".join(ours.alignment.corrections)
    assert "7 frames late" in said
    assert "160" in said


def test_a_sample_of_frames_scores_as_in_the_whole(artifact: Artifact, film: Path, encode: Path):
    scorer = FullReferenceScorer(artifact, "cpu")
    whole = scorer.score(film, encode, backend="engine")
    sample = scorer.score(film, encode, backend="engine", every=6)
    assert sample.indices.tolist() == list(range(0, 73, 6))
    assert np.allclose(sample.scores, whole.scores[::6], atol=1e-3)
    assert sample.pooled.margin > 0


def test_other_content_is_never_scored(artifact: Artifact, clip: Clip, film: Path):
    other = clip("other.mkv", "-f", "lavfi", "-i", "testsrc2=s=320x180:rate=25", "-frames:v", "60", "-c:v", "ffv1")
    with pytest.raises(Misaligned):
        FullReferenceScorer(artifact, "cpu").score(film, other)


def test_unknown_names_are_refused(artifact: Artifact, film: Path):
    scorer = FullReferenceScorer(artifact, "cpu")
    for wrong in ({"model": "vmaf_v9"}, {"backend": "guess"}, {"every": 0}):
        with pytest.raises(InvalidInput):
            scorer.score(film, film, **wrong)


def _playhead(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli", *map(str, arguments)],
        env={**os.environ, "PLAYHEAD_HOME": str(home)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_command_prints_both_and_their_difference(artifact: Artifact, home: Path, film: Path, encode: Path):
    done = _playhead(home, "eval", "quality", film, encode, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert {"mean", "harmonic_mean", "p5", "worst_second", "frames"} <= set(report["vmaf"])
    assert len(report["vmaf"]["frames"]) == len(report["libvmaf"]["frames"]) == 73
    assert report["difference"]["max_absolute"] < 0.1
    assert report["corrections"]


def test_the_command_says_what_is_wrong(artifact: Artifact, home: Path, film: Path, tmp_path: Path):
    (tmp_path / "notes.mp4").write_text("not a film")
    done = _playhead(home, "eval", "quality", film, tmp_path / "notes.mp4", "--json")
    assert done.returncode != 0
    assert "notes.mp4" in done.stdout + done.stderr
