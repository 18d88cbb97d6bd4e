"""How fast sessions are simulated. Run: .venv/bin/python tests/training/bitrate/benchmark_simulator.py

One thread. A batch of sessions plays generated titles over generated traces to their end, at random rungs; and the 142
x 48 segments of the published test where PLAYHEAD_DATA names them. `observe` is timed apart: a policy needs both. The
last line is one JSON object.
"""

import json
import os
import time
from pathlib import Path

import numpy as np

from serve.bitrate.observations import RUNGS
from training.bitrate.qoe import LINEAR, PERCEPTUAL
from training.bitrate.simulator import LIVE, PENSIEVE, PENSIEVE_TRAINING, Sessions
from training.bitrate.synthetic import generate_traces, generate_videos
from training.bitrate.traces import read_traces
from training.bitrate.video import read_video


def run(sessions, rounds):
    """Sessions and segments a second, and segments a second with observations built too; the best of the rounds."""
    random = np.random.default_rng(0)
    best = np.zeros(3)
    for seen in (False, True) * rounds:
        sessions.reset()
        chunks, spent_s = 0, 0.0
        while not sessions.state["done"].all():
            rungs = random.integers(0, RUNGS, len(sessions))
            chunks += int((~sessions.state["done"]).sum())
            begin = time.perf_counter()
            if seen:
                sessions.observe()
            sessions.step(rungs)
            spent_s += time.perf_counter() - begin
        rates = [0, 0, chunks / spent_s] if seen else [len(sessions) / spent_s, chunks / spent_s, 0]
        best = np.maximum(best, rates)
    return dict(
        zip(("sessions_per_s", "segments_per_s", "observed_segments_per_s"), best.round().tolist(), strict=True)
    )


def main():
    begin = time.perf_counter()
    traces = generate_traces(2000, seed=0)
    figures = {"first_traces_s": round(time.perf_counter() - begin, 2)}
    begin = time.perf_counter()
    figures["traces_per_s"] = round(len(generate_traces(5000, seed=1)) / (time.perf_counter() - begin))
    begin = time.perf_counter()
    videos = generate_videos(500, seed=0)
    figures["videos_per_s"] = round(len(videos) / (time.perf_counter() - begin))
    begin = time.perf_counter()
    first = Sessions(traces[:2], videos[0])
    first.observe()
    first.step(np.zeros(2, int))
    figures["first_step_s"] = round(time.perf_counter() - begin, 2)

    settings = (PENSIEVE, PENSIEVE_TRAINING, LIVE)
    figures["mixed"] = run(Sessions(traces, videos, (LINEAR, PERCEPTUAL), settings, batch=2000), 2)
    data = Path(os.environ.get("PLAYHEAD_DATA", "../shared/data")) / "abr"
    if data.is_dir():
        video = read_video(data / "envivio/size")
        figures["published"] = run(Sessions(read_traces(data / "norway"), video, batch=2000), 5)
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    main()
