"""The simulator against its own golden log, and against every published log."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from training.bitrate.simulator import Sessions
from training.bitrate.traces import read_traces
from training.bitrate.video import read_video

GOLDEN = Path(__file__).parents[2] / "golden"
LADDER = (300.0, 750.0, 1200.0, 1850.0, 2850.0, 4300.0)
ALGORITHMS = ("rb", "bb", "bola", "mpc", "hyb", "quetra", "rl", "ppo", "cmc")
MEANS = {"ppo": 0.9859, "cmc": 0.9843, "rl": 0.9250, "mpc": 0.9245, "hyb": 0.8605, "quetra": 0.8495, "bola": 0.8177}


def _golden_module():
    spec = importlib.util.spec_from_file_location("golden_bitrate", GOLDEN / "bitrate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", json.loads((GOLDEN / "bitrate.json").read_text()), ids=["pensieve", "apart", "live"])
def test_golden_log_is_replayed(case):
    np.testing.assert_allclose(_golden_module().play(case), case["rows"], rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def published(abr_data):
    return read_traces(abr_data / "norway"), read_video(abr_data / "envivio/size", ladder_kbps=LADDER)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_published_log_is_replayed_to_the_last_digit(abr_data, published, algorithm):
    traces, video = published
    assert len(traces) == 142
    logs = []
    for trace in traces:
        lines = (abr_data / "logs" / algorithm / trace.name).read_text().splitlines()
        words = [line.split() for line in lines if line.strip()]
        logs.append([[*map(float, row[1:6]), float(row[-1])] for row in words])
    bitrate, buffer_s, rebuffer_s, size, delay_ms, reward = np.moveaxis(np.array(logs), 2, 0)
    sessions = Sessions(traces, video)
    assert bitrate.shape == (142, 48)
    for chunk in range(48):
        rungs = np.searchsorted(LADDER, bitrate[:, chunk])
        np.testing.assert_array_equal(video.segment_bytes[chunk, rungs], size[:, chunk])
        outcome = sessions.step(rungs)
        np.testing.assert_allclose(outcome.reward, reward[:, chunk], rtol=0, atol=1e-9)
        np.testing.assert_allclose(outcome.delay_s * 1000, delay_ms[:, chunk], rtol=0, atol=1e-6)
        np.testing.assert_allclose(outcome.rebuffer_s, rebuffer_s[:, chunk], rtol=0, atol=1e-9)
        np.testing.assert_allclose(sessions.state["buffer_s"], buffer_s[:, chunk], rtol=0, atol=1e-9)
    assert sessions.state["done"].all()
    if algorithm in MEANS:
        assert reward[:, 1:].mean() == pytest.approx(MEANS[algorithm], abs=6e-5)
