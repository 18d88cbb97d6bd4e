"""The quality models' gate on made-up segments: the same is no change, one that knows nothing is rejected."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from serve.artifacts import Artifact, Lineage
from serve.quality.bitstream import CODECS, BitstreamFacts, features
from serve.quality.sampling import PATCHES, SIDE
from training.gates.quality import SEED, QualitySettings, gate_quality, held_out_sources
from training.quality.encodes import Encode, Segment, make_segments
from training.quality.fit import FitSettings, Material, fit_bitstream
from training.quality.noreference import BitstreamQuality, FrameQuality
from training.quality.noreference_export import export_quality
from training.quality.scenes import generated_sources
from training.quality.validation import BITSTREAM, BOTH, FRAMES, MODELS


def segments(clips: int = 12) -> list[Segment]:
    """Segments whose score follows their rate."""
    random = np.random.default_rng(0)
    made = []
    for place in range(clips * 4):
        size = int(np.exp(random.uniform(8, 13))) // 50 * 50
        facts = BitstreamFacts(
            codec=CODECS[place % 4], width=640, height=360, display_height=360, fps=25.0, duration_s=2.0,
            size_bytes=size, frame_bytes=np.full(50, size // 50), frame_kinds=np.ones(50, np.int8),
        )  # fmt: skip
        score = 100 / (1 + np.exp(-(np.log(size) - 10.5) * 1.5))
        made.append(
            Segment(
                source=f"clip-{place // 4}", group=f"clip-{place // 4}", kind="generated",
                encode=Encode(codec=CODECS[place % 4], width=640, height=360, crf=30, kbps=None, key_s=10.0, preset=0),
                facts=facts, patches=random.integers(0, 255, (PATCHES, 2, SIDE, SIDE)).astype(np.uint8), vmaf=score,
                frame_vmaf=np.full(50, score, np.float32),
            )
        )  # fmt: skip
    return made


def exported(folder: Path, bitstream: BitstreamQuality) -> Artifact:
    torch.manual_seed(0)
    validation = SimpleNamespace(
        table={model: {"all": {"mae": 1.0}} for model in (BITSTREAM, FRAMES, BOTH)},
        widths=dict.fromkeys(MODELS, 2.0), metrics=dict,
    )  # fmt: skip
    made = export_quality(
        folder,
        bitstream,
        FrameQuality(),
        validation,
        report={},
        data_snapshot="test",
        seed=0,  # type: ignore[arg-type]
    )
    lineage = Lineage(dataset="made up", environment={"python": "3"})
    return Artifact(path=made.path, manifest=made.manifest.model_copy(update={"lineage": lineage}))


def test_what_knows_nothing_is_rejected_and_the_same_is_no_change(tmp_path: Path) -> None:
    clips = segments()
    facts = [one.facts for one in clips]
    nothing = torch.zeros(len(clips), 1)
    material = Material(
        features=torch.from_numpy(features(facts)), size_features=torch.from_numpy(features(facts)),
        statistics=nothing, facts=nothing, bare_facts=nothing, truth=torch.tensor([one.vmaf for one in clips]).float(),
        groups=tuple(one.group for one in clips), kinds=("generated",) * len(clips),
        sources=tuple(one.source for one in clips),
    )  # fmt: skip
    rows = material.rows_of((), without=True)
    champion = exported(tmp_path, fit_bitstream(material, rows, seed=0, settings=FitSettings(steps=60)))
    torch.manual_seed(1)
    blank = exported(tmp_path, BitstreamQuality())
    settings = QualitySettings(timed=20)
    verdict = gate_quality(blank, champion, cache=tmp_path, settings=settings, segments=clips)
    assert {"closeness", "closeness: codec h264"} <= {check.name for check in verdict.failed}
    same = gate_quality(champion, champion, cache=tmp_path, settings=settings, segments=clips)
    assert [check.name for check in same.failed] == ["no change"]
    better = gate_quality(champion, blank, cache=tmp_path, settings=settings, segments=clips)
    assert better.better
    assert json.dumps(better.as_json(), allow_nan=False)


def test_held_out_clips_are_none_that_training_draws() -> None:
    version = SimpleNamespace(manifest=SimpleNamespace(parameters={"seed": 0}))
    sources = held_out_sources(36, [version])  # type: ignore[list-item]
    assert len(sources) == pytest.approx(36, abs=4)
    assert not {one.identity for one in sources} & {one.identity for one in generated_sources(0)}


def test_clips_are_encoded_and_scored_by_libvmaf_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: generated clips, ffmpeg's encoders and libvmaf, both graphs; then all of it from the cache."""
    torch.manual_seed(1)
    candidate = exported(tmp_path, BitstreamQuality())
    torch.manual_seed(2)
    champion = exported(tmp_path, BitstreamQuality())
    settings, told = QualitySettings(clips=2, encodes=1, timed=20), []
    asked = {"cache": tmp_path / "cache", "settings": settings}
    verdict = gate_quality(candidate, champion, **asked, progress=lambda *one: told.append(one[1:3]))
    assert told == [(1, 2), (2, 2)]
    assert (verdict.facts["clips"], verdict.facts["segments"]) == (2, 2)
    passed = {check.name: check.passed for check in verdict.checks}
    assert passed["parity"]
    assert passed["no change"]
    assert not passed["closeness"], "two clips are too few to show anything"
    made = make_segments(held_out_sources(2, [candidate, champion]), tmp_path / "cache", count=1, seed=SEED)
    assert all(0 < one.vmaf <= 100 and len(one.frame_vmaf) > 40 for one in made)
    assert len({round(one.vmaf, 3) for one in made}) == 2

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("all of it is cached")

    monkeypatch.setattr("training.quality.encodes.run_ffmpeg", fail)
    again = gate_quality(candidate, champion, **asked)
    assert again.comparisons[0] == verdict.comparisons[0]
