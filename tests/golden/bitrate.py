"""Writes bitrate.json, the golden log of the session simulator. Run: .venv/bin/python tests/golden/bitrate.py

It holds what the sessions are made of and what came of them, so that no generator or data set is needed to check it.
Run it again only where a change of the simulator's rules is meant; the replays of published logs hold the rules of the
setting PENSIEVE themselves.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from training.bitrate.qoe import LINEAR, PERCEPTUAL, Qoe
from training.bitrate.simulator import LIVE, PENSIEVE, Sessions, Settings
from training.bitrate.traces import Trace
from training.bitrate.video import Video

GOLDEN = Path(__file__).with_name("bitrate.json")
APART = Settings(max_buffer_s=12, sleep_s=0.25, first_rung=None, startup_s=6, startup_weight=-0.5, rtt_s=0.03)


def play(case):
    """The rows of one session: rung, delay, sleep, rebuffering, start-up, buffer, latency, reward."""
    trace = Trace("golden", np.array(case["times_s"]), np.array(case["kbps"]))
    video = Video(
        "golden", case["segment_s"], np.array(case["rungs_kbps"]), np.array(case["segment_bytes"], float),
        np.array(case["vmaf"]),
    )  # fmt: skip
    sessions = Sessions([trace], video, Qoe(**case["qoe"]), Settings(**case["settings"]))
    rows = []
    for rung in case["rungs"]:
        outcome = sessions.step(np.array([rung]))
        state = sessions.state[0]
        rows.append([
            int(outcome.rung[0]), outcome.delay_s[0], outcome.sleep_s[0], outcome.rebuffer_s[0], outcome.startup_s[0],
            float(state["buffer_s"]), float(state["latency_s"]), outcome.reward[0],
        ])  # fmt: skip
    assert sessions.state["done"].all()
    return rows


def _write():
    random = np.random.default_rng(3)
    cases = []
    for qoe, settings in ((LINEAR, PENSIEVE), (PERCEPTUAL, APART), (LINEAR, LIVE)):
        rungs_kbps, segments = np.array([300.0, 750.0, 1500.0, 3000.0]), 16
        kbps = np.exp(random.normal(7.2, 0.8, 40))
        kbps[20:24] = 0
        size = rungs_kbps * 2 * 125 * random.uniform(0.7, 1.4, (segments, 1))
        case = {
            "qoe": asdict(qoe),
            "settings": asdict(settings),
            "times_s": [0.0, *np.cumsum(random.uniform(0.4, 1.6, 39)).round(3).tolist()],
            "kbps": kbps.round(3).tolist(),
            "segment_s": 2.0,
            "rungs_kbps": rungs_kbps.tolist(),
            "segment_bytes": size.round().astype(int).tolist(),
            "vmaf": np.sort(random.uniform(20, 99, size.shape).round(2), axis=1).tolist(),
            "rungs": random.integers(0, 4, segments).tolist(),
        }
        cases.append({**case, "rows": play(case)})
    GOLDEN.write_text(json.dumps(cases) + "\n", "utf-8")


if __name__ == "__main__":
    _write()
