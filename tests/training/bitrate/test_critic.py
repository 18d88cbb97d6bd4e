"""The critic: what it is told of the future is true."""

import numpy as np

from tests.training.bitrate.conftest import SHORT_TITLES
from training.bitrate.critic import HELD_SEGMENTS, Scale, _hold, mean_ahead
from training.bitrate.qoe import LINEAR, PERCEPTUAL
from training.bitrate.simulator import Sessions, Settings
from training.bitrate.synthetic import generate_traces


def test_holding_a_rung_is_worth_what_the_simulator_then_gives() -> None:
    discount = 0.9
    sessions = Sessions(
        generate_traces(12, seed=1), SHORT_TITLES, [LINEAR, PERCEPTUAL], Settings(sleep_s=0.0, first_rung=None), seed=1
    )
    for _ in range(3):
        sessions.step(np.ones(12, int))
    scale = Scale(sessions)
    worth = np.zeros((12, 12))
    _hold(sessions.state, sessions.trace_rows, sessions.titles, scale.unit, discount, worth)
    before = sessions.state.copy()
    for rung in (0, 1):
        sessions.state[:] = before
        total = np.zeros(12)
        for step in range(HELD_SEGMENTS):
            going = ~sessions.state["done"]
            outcome = sessions.step(np.full(12, rung))
            total += np.where(going, discount**step * (outcome.reward - scale.low) / scale.unit, 0.0)
        np.testing.assert_allclose(worth[:, rung], total, rtol=1e-6, atol=1e-6)


def test_the_predictor_is_taught_the_true_mean() -> None:
    sessions = Sessions(generate_traces(8, seed=5), SHORT_TITLES, [LINEAR, PERCEPTUAL], batch=16, seed=5)
    truth = [
        sessions.future_kbps([5 * length])[place, 0] * 0.95 for place, length in enumerate(sessions.state["segment_s"])
    ]
    np.testing.assert_allclose(mean_ahead(sessions).exp().numpy(), truth, rtol=0.15)
