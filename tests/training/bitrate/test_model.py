"""The policy graph: free of scale, blind to padding, and planning as a plain loop does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from serve.bitrate.observations import LOOKAHEAD, PERCEPTUAL_WEIGHTS, RUNGS, Observations
from tests.contracts.policy_contract import ladder
from training.bitrate.export import example_observations
from training.bitrate.model import (
    QUANTILES,
    SCENARIOS,
    BitratePolicy,
    describe_history,
    play_out,
    probability_below,
    read_scene,
)
from training.bitrate.rollouts import tensors

SCENE = (
    "buffer_s", "max_buffer_s", "segment_s", "last_rung", "last_quality", "rungs_kbps", "segment_bytes", "quality",
    "weights",
)  # fmt: skip


@pytest.fixture(scope="module")
def policy() -> BitratePolicy:
    """Weights at random, so that every feature has a say."""
    torch.manual_seed(0)
    model = BitratePolicy()
    torch.nn.init.normal_(model.score.weight, std=0.1)
    return model.eval()


@torch.no_grad()
def decide(policy: BitratePolicy, seen: Observations, columns: int = RUNGS) -> tuple[np.ndarray, ...]:
    return tuple(part.numpy() for part in policy(*tensors(seen, columns)))


def scaled(seen: Observations, **factors: float) -> Observations:
    copy = seen.take(slice(None))
    return replace(copy, **{name: getattr(copy, name) * np.float32(factor) for name, factor in factors.items()})


def test_columns_without_a_rung_can_be_left_out(policy: BitratePolicy) -> None:
    seen = ladder(6, batch=3)
    wide, narrow = decide(policy, seen), decide(policy, seen, columns=6)
    np.testing.assert_allclose(wide[0][:, :6], narrow[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(wide[2][:, :6], narrow[2], atol=1e-6)


def test_a_network_and_a_ladder_ten_times_as_fast_are_the_same_problem(policy: BitratePolicy) -> None:
    seen = example_observations(12, 10)
    seen.prior_log_kbps[:] = 0
    faster = scaled(seen, throughput_kbps=10, rungs_kbps=10, segment_bytes=10)
    before, after = decide(policy, seen), decide(policy, faster)
    np.testing.assert_allclose(after[0], before[0], rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(after[1], 10 * before[1], rtol=1e-3)
    np.testing.assert_allclose(after[2], before[2], atol=1e-4)


def test_quality_in_another_unit_is_the_same_problem(policy: BitratePolicy) -> None:
    seen = example_observations(12, 10)
    other = scaled(seen, quality=1000, last_quality=1000)
    other.weights[:, 1:] /= 1000
    np.testing.assert_allclose(decide(policy, other)[0], decide(policy, seen)[0], rtol=1e-3, atol=2e-3)


def test_quantiles_ascend_and_the_distribution_passes_through_them(policy: BitratePolicy) -> None:
    quantiles = torch.from_numpy(decide(policy, example_observations(12, 10))[1]).log()
    assert (quantiles.diff(dim=1) > 0).all()
    torch.testing.assert_close(
        probability_below(quantiles, quantiles), torch.tensor(QUANTILES).expand(12, -1), atol=1e-4, rtol=0
    )
    far = torch.tensor([[-50.0, 50.0]]).expand(12, -1)
    torch.testing.assert_close(
        probability_below(far, quantiles), torch.tensor([[0.0, 1.0]]).expand(12, -1), atol=1e-4, rtol=0
    )


def test_the_planner_plays_as_a_plain_loop_does(policy: BitratePolicy) -> None:
    """The worth of holding each rung, against arithmetic on one session at a time."""
    seen = example_observations(12, 11)
    named = dict(zip(Observations.__slots__, tensors(seen, RUNGS), strict=True))
    history = describe_history(
        *(named[name] for name in ("throughput_kbps", "download_s", "segment_s", "rungs_kbps", "prior_log_kbps"))
    )
    with torch.no_grad():
        near, far = (part[:, list(SCENARIOS)] for part in policy.predictor(history))
        scene = read_scene(*(named[name] for name in SCENE))
        outlook = play_out(scene, near, far)
    compared = 0
    for session in range(12):
        rungs = int((seen.rungs_kbps[session] > 0).sum())
        ahead = int((seen.segment_bytes[session, :, 0] > 0).sum())
        values = seen.quality[session, :ahead, :rungs].astype(float) * float(seen.weights[session, 3])
        stall, rise, fall, factor = (float(weight) for weight in seen.weights[session])
        for scenario in range(len(SCENARIOS)):
            worth = []
            for rung in range(rungs):
                buffer_s, last, total = float(seen.buffer_s[session]), float(seen.last_quality[session]) * factor, 0.0
                for step in range(ahead):
                    kbps = float((far if step else near)[session, scenario].exp())
                    took_s = float(seen.segment_bytes[session, step, rung]) / 125 / kbps
                    total += stall * max(took_s - buffer_s, 0)
                    buffer_s = min(
                        max(buffer_s - took_s, 0) + float(seen.segment_s[session]), float(seen.max_buffer_s[session])
                    )
                    change = (values[step, rung] - last) / factor if step or seen.last_rung[session] >= 0 else 0.0
                    total += values[step, rung] + rise * max(change, 0) + fall * max(-change, 0)
                    last = values[step, rung]
                worth.append(total)
            unit = np.ptp(values.mean(0))
            relative = np.clip((np.array(worth) - max(worth)) / unit, -10, 10)
            got = outlook.steady[session, scenario, :rungs].numpy()
            sure = (relative > -9) & (got > -9)  # stalls are bounded below that
            np.testing.assert_allclose(got[sure], relative[sure], atol=2e-3)
            compared += int(sure.sum())
    assert compared > 100
    assert (outlook.best >= outlook.steady - 10).all()


def test_the_lookahead_matters(policy: BitratePolicy) -> None:
    seen = ladder(6)
    heavy = seen.take(slice(None))
    heavy.segment_bytes[:, LOOKAHEAD - 1] *= 3
    assert np.abs(decide(policy, heavy)[0] - decide(policy, seen)[0])[:, :6].max() > 1e-3


def test_on_a_network_that_carries_no_rung_the_lowest_is_taken() -> None:
    """Every rung stalls beyond all bounds of the features: what the network learned must not choose among them."""
    seen = ladder(6, batch=1)
    seen.throughput_kbps[:, -3:], seen.download_s[:, -3:], seen.buffer_s[:] = 20, 60, 4
    seen.quality[:] = 95 + seen.rungs_kbps[:, None] / 1000
    seen.weights[:] = PERCEPTUAL_WEIGHTS
    for seed in range(8):
        torch.manual_seed(seed)
        policy = BitratePolicy()
        torch.nn.init.normal_(policy.score.weight, std=1.0)
        scores, _, _ = policy(*tensors(seen, RUNGS))
        assert int(scores.argmax()) == 0
