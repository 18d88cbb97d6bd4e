"""The models without reference: what their layers measure, the fit, calibration, and the artifact with its engines."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from serve.artifacts import Artifact
from serve.engines.openvino import OpenVinoEngine
from serve.engines.torch import TorchEngine
from serve.errors import InvalidInput
from serve.quality.bitstream import FEATURES
from serve.quality.estimates import intervals
from serve.quality.noreference import NoReferenceScorer, patches_of
from serve.quality.sampling import FACTS, PATCHES, SIDE, sample_stream
from tests.contracts.tensorrt_build import build_engine
from tests.serve.quality.conftest import Clip
from training.quality.calibration import (
    COVERAGE,
    WIDEST,
    folds,
    held_out,
    held_out_widths,
    nonconformity,
    widening,
)
from training.quality.fit import FitSettings, Material, fit_bitstream, fit_frames
from training.quality.noreference import (
    LEVELS,
    STATISTICS,
    BitstreamQuality,
    FrameQuality,
    PatchStatistics,
    pinball,
)
from training.quality.noreference_export import BITSTREAM_GRAPH, FRAMES_GRAPH, example_features, example_patches
from training.quality.noreference_pipeline import gather_sources, train_quality
from training.quality.validation import BITSTREAM, CURVE, FRAMES, MODELS, SIZE, figures, fit_curve, validate


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The models are small: threads that share a core with other work wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


QUICK = FitSettings(steps=40)


def made_up(groups: int = 12, each: int = 8) -> Material:
    """Segments whose score follows the rate, the height and a bias of each group, which the key frames' share tells."""
    random = torch.Generator().manual_seed(4)
    count = groups * each
    features = torch.randn(count, len(FEATURES), generator=random) * 0.3
    rate, key = FEATURES.index("log2_bits_per_display_pixel"), FEATURES.index("key_share")
    bias = torch.randn(groups, generator=random).repeat_interleave(each)
    features[:, rate] = torch.randn(count, generator=random)
    features[:, key] = bias
    truth = 100 * torch.sigmoid(features[:, rate] + 1.5 * bias)
    unknown = features.clone()
    unknown[:, FEATURES.index("frames_known") :] = 0
    statistics = torch.randn(count, PATCHES, STATISTICS, generator=random) * 0.3 + truth[:, None, None] / 30
    facts = torch.zeros(count, len(FACTS))
    names = tuple(f"group-{place // each}" for place in range(count))
    return Material(
        features=features, size_features=unknown, statistics=statistics, facts=facts, bare_facts=facts,
        truth=truth, groups=names, kinds=("generated",) * count, sources=names,
    )  # fmt: skip


def ascending(quantiles: torch.Tensor) -> bool:
    return bool((quantiles.diff(dim=-1) >= 0).all() and (quantiles >= 0).all() and (quantiles <= 100).all())


class TestModels:
    def test_quantiles_ascend_within_the_scale(self) -> None:
        torch.manual_seed(0)
        assert ascending(BitstreamQuality()(torch.randn(64, len(FEATURES)) * 20))
        patches = torch.rand(5, PATCHES, 2, SIDE, SIDE) * 255
        assert ascending(FrameQuality()(patches, torch.randn(5, len(FACTS)) * 9))

    def test_a_rows_answer_does_not_depend_on_the_others(self) -> None:
        torch.manual_seed(0)
        model = FrameQuality()
        patches, facts = torch.rand(4, PATCHES, 2, SIDE, SIDE) * 255, torch.randn(4, len(FACTS))
        with torch.no_grad():
            torch.testing.assert_close(
                model(patches, facts)[2:3], model(patches[2:3], facts[2:3]), rtol=1e-4, atol=1e-3
            )

    def test_the_order_of_patches_does_not_matter(self) -> None:
        model = FrameQuality()
        patches, facts = torch.rand(2, PATCHES, 2, SIDE, SIDE) * 255, torch.zeros(2, len(FACTS))
        with torch.no_grad():
            turned = model(patches.flip(1), facts)
            torch.testing.assert_close(model(patches, facts), turned, rtol=1e-4, atol=1e-3)

    def test_pinball_is_least_at_the_quantiles(self) -> None:
        truth = torch.from_numpy(np.random.default_rng(0).uniform(0, 100, 20_000)).float()
        right = torch.tensor(LEVELS) * 100
        for place in range(len(LEVELS)):
            for move in (-4.0, 4.0):
                moved = right.clone()
                moved[place] += move
                assert pinball(moved.expand(len(truth), -1), truth) > pinball(right.expand(len(truth), -1), truth)


class TestStatistics:
    layers = PatchStatistics()

    def of(self, current: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
        pair = np.stack([current, current if before is None else before])[None].astype(np.float32)
        found = self.layers(torch.from_numpy(pair))
        assert found.shape == (1, STATISTICS)
        return np.asarray(found[0])

    def test_noise_has_more_of_each_band_than_a_ramp(self) -> None:
        ramp = np.broadcast_to(np.linspace(50, 200, SIDE), (SIDE, SIDE))
        noise = ramp + np.random.default_rng(0).normal(0, 12, (SIDE, SIDE))
        assert (self.of(noise)[:8] > self.of(ramp)[:8]).all()
        assert (self.of(noise)[8:16] < self.of(ramp)[8:16]).all()

    def test_blocks_show_at_their_borders(self) -> None:
        random = np.random.default_rng(1)
        blocks = np.kron(random.uniform(40, 200, (8, 8)), np.ones((8, 8)))
        edges = STATISTICS - 4
        assert (self.of(blocks)[edges : edges + 2] > 2).all()
        assert np.abs(self.of(random.uniform(40, 200, (SIDE, SIDE)))[edges : edges + 2]).max() < 0.3

    def test_a_repeated_frame_shows(self) -> None:
        picture = np.random.default_rng(2).uniform(0, 255, (SIDE, SIDE))
        still = STATISTICS - 7
        assert self.of(picture)[still] == pytest.approx(1)
        assert self.of(picture, picture[::-1])[still] < 0.1


class TestCalibration:
    def test_segments_of_new_groups_are_covered_as_asked(self) -> None:
        """Groups with a bias of their own and unequal sizes; a quantile over segments alone covers too few."""
        random = np.random.default_rng(0)
        covered = []
        for _ in range(400):
            sizes = random.integers(1, 12, 30)
            names = np.repeat(np.arange(30), sizes).astype(str).tolist()
            errors = np.abs(np.repeat(random.normal(0, 8, 30), sizes) + random.normal(0, 3, len(names)))
            width = widening(errors, names)
            fresh = np.abs(random.normal(0, 8) + random.normal(0, 3, 5))
            covered.append((fresh <= width).mean())
        assert COVERAGE - 0.01 <= float(np.mean(covered)) < COVERAGE + 0.06

    def test_too_few_groups_promise_nothing(self) -> None:
        names = [str(place) for place in range(8)]
        assert widening(np.zeros(8), names) == WIDEST
        assert widening(np.zeros(9), [*names, "8"]) == 0

    def test_each_group_counts_once(self) -> None:
        errors = np.array([50.0] * 500 + [1.0] * 40)
        names = ["large"] * 500 + [f"small-{place}" for place in range(40)]
        assert widening(errors, names) == 1

    def test_intervals_hold_their_median_and_the_scale(self) -> None:
        quantiles = np.array([[40.0, 50.0, 60.0], [1.0, 5.0, 99.0]])
        low, high = intervals(quantiles, 3.0)
        assert (low.tolist(), high.tolist()) == ([37, 0], [63, 100])
        low, high = intervals(quantiles, -30.0)
        assert (low.tolist(), high.tolist()) == ([50, 5], [50, 69])

    def test_nonconformity_is_the_widening_that_is_needed(self) -> None:
        quantiles, truth = np.array([[40.0, 50.0, 60.0]] * 3), np.array([35.0, 55.0, 72.0])
        assert nonconformity(quantiles, truth).tolist() == [5, -5, 12]

    def test_no_group_judges_itself(self) -> None:
        names = [f"{place % 12}" for place in range(48)]
        errors = np.where(np.array(names) == "3", 90.0, 1.0)
        widths = held_out_widths(errors, names)
        assert (widths[np.array(names) == "3"] == 1).all()
        seen = []

        def predict(out: object) -> np.ndarray:
            seen.append(out)
            return np.full((48, 3), len(seen), float)

        found = held_out(names, predict, lambda done, total: None)
        assert len(seen) == 12
        assert all(len(set(found[np.array(names) == name, 0])) == 1 for name in set(names))
        assert sorted(name for part in folds(names, most=5) for name in part) == sorted(set(names))


class TestFit:
    def test_a_seed_gives_the_same_model(self) -> None:
        material = made_up(4)
        rows = torch.arange(len(material))
        one, two, other = (fit_bitstream(material, rows, seed=seed, settings=QUICK) for seed in (0, 0, 1))
        with torch.no_grad():
            assert torch.equal(one(material.features), two(material.features))
            assert not torch.equal(one(material.features), other(material.features))

    def test_models_learn_what_the_curve_cannot(self) -> None:
        material = made_up()
        found = validate(material, settings=FitSettings(steps=150))
        assert set(found.table) == set(MODELS)
        mae = {model: rows["all"]["mae"] for model, rows in found.table.items()}
        assert mae[BITSTREAM] < 0.6 * mae[CURVE]
        assert mae[FRAMES] < 0.6 * mae[CURVE]
        assert mae[BITSTREAM] < mae[SIZE]
        assert found.table[BITSTREAM]["all"]["width"] < found.table[CURVE]["all"]["width"]
        for rows in found.table.values():
            assert 0.75 <= rows["all"]["coverage"] <= 1
        json.dumps(found.metrics())
        assert len(found.text().splitlines()) == 1 + len(MODELS)

    def test_frames_fit_without_the_held_out_group(self) -> None:
        material = made_up(6)
        rows = material.rows_of(["group-2"], without=True)
        assert len(rows) == 40
        assert set(rows.tolist()).isdisjoint(material.rows_of(["group-2"]).tolist())
        model = fit_frames(material, rows, seed=0, settings=QUICK)
        assert not model.training

    def test_the_curve_never_falls(self) -> None:
        random = np.random.default_rng(0)
        rates = random.normal(size=60)
        curve = fit_curve(rates, 100 / (1 + np.exp(-2 * rates)))
        np.testing.assert_allclose(curve(np.array([-1.0, 0, 1])), [11.92, 50, 88.08], atol=0.1)
        assert (np.diff(fit_curve(rates, 60 - 10 * rates)(np.linspace(-3, 3, 9))) >= 0).all()

    def test_figures_of_a_perfect_model(self) -> None:
        truth = np.linspace(10, 90, 9)
        row = figures(np.repeat(truth[:, None], 3, axis=1), truth, np.full(9, 2.0))
        assert row == pytest.approx({"segments": 9, "plcc": 1, "srocc": 1, "mae": 0, "coverage": 1, "width": 4})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[str]]:
    """The whole way from sources to an artifact, small."""
    folder = tmp_path_factory.mktemp("home")
    stages: list[str] = []
    artifact = train_quality(
        folder / "models" / "quality", 0, lambda stage, done, total, note="": stages.append(stage), natural=False,
        generated=3, encodes=4, settings=QUICK,
    )  # fmt: skip
    assert list((folder / "cache" / "quality").glob("*.npz"))
    return artifact, stages


class TestArtifact:
    def test_it_tells_a_host_all_it_needs(self, trained: tuple[Artifact, list[str]]) -> None:
        artifact, stages = trained
        manifest = artifact.manifest
        assert manifest.name == "quality"
        assert manifest.parameters["features"] == list(FEATURES)
        assert manifest.parameters["widths"] == dict.fromkeys(
            (name for name in MODELS if name != CURVE), WIDEST
        )  # 3 groups
        assert manifest.parameters["training"]["groups"] == 3
        assert manifest.metrics["bitstream.all"]["segments"] == 12
        assert {"encode and label", "export"} < set(stages)

    @pytest.mark.parametrize("batch", [1, 5])
    def test_openvino_answers_as_torch(self, trained: tuple[Artifact, list[str]], batch: int) -> None:
        examples = {BITSTREAM_GRAPH: example_features(batch), FRAMES_GRAPH: example_patches(batch)}
        for graph, inputs in examples.items():
            expected = TorchEngine.load(trained[0], graph)(inputs)["quantiles"]
            found = OpenVinoEngine.load(trained[0], graph)(inputs)["quantiles"]
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)
            assert ascending(torch.from_numpy(np.asarray(found)))

    @pytest.mark.parametrize("graph", [BITSTREAM_GRAPH, FRAMES_GRAPH])
    def test_tensorrt_compiles_it_for_every_batch(self, trained: tuple[Artifact, list[str]], graph: str) -> None:
        pytest.importorskip("tensorrt_rtx_bindings")
        assert build_engine(trained[0], graph)


def test_one_group_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="at least 2"):
        gather_sources(tmp_path, natural=False, generated=1)


class TestScorer:
    def test_a_clip_of_two_segments_has_two_estimates_and_their_mean(
        self, trained: tuple[Artifact, list[str]], clip: Clip, film: Path
    ) -> None:
        keys = ["-g", "100", "-keyint_min", "100", "-sc_threshold", "0"]
        long = clip("long.mp4", "-stream_loop", "1", "-i", film, "-c:v", "libx264", "-crf", "34", *keys)
        found = NoReferenceScorer(trained[0], "cpu").score(long, display_height=360)
        assert len(found.segments) == 2  # 160 frames, a key frame at the hundredth
        for one in (*found.segments, found.clip):
            assert 0 <= one.low <= one.vmaf <= one.high <= 100
        assert found.clip.vmaf == pytest.approx(sum(one.vmaf for one in found.segments) / 2)
        assert found.method in {"both", "bitstream"}
        assert found.coverage == COVERAGE

    def test_frames_belong_to_the_segment_that_they_are_shown_in(self) -> None:
        random = np.random.default_rng(3)
        frames = [(place / 10, random.integers(0, 256, (90, 160)).astype(np.float32)) for place in range(80)]
        found = dict(patches_of(iter(frames), [5.2, 2.8]))
        assert list(found) == [0, 1]
        assert np.array_equal(found[0], sample_stream(frames[:52], 5.2))
        assert np.array_equal(
            found[1], sample_stream([(time_s - 5.2 + 1e-6, luma) for time_s, luma in frames[52:]], 2.8)
        )

    def test_what_is_no_video_is_refused(self, trained: tuple[Artifact, list[str]], tmp_path: Path) -> None:
        (tmp_path / "notes.mp4").write_text("no film", "utf-8")
        with pytest.raises(InvalidInput, match=r"notes\.mp4"):
            NoReferenceScorer(trained[0], "cpu").score(tmp_path / "notes.mp4")
