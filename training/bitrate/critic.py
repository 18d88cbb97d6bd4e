"""The critic of the fit: what sessions are still worth, told the throughput to come.

A trace does not depend on what is fetched, so a baseline that knows it stays unbiased and most of the variance goes
(Mao et al. 2019, "Variance Reduction for Reinforcement Learning in Input-Driven Environments").

Shapes: B sessions, R rungs. A reward is measured in the range of the title's quality.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from serve.bitrate.observations import LOOKAHEAD, RUNGS
from training.bitrate.compiled import compiled
from training.bitrate.model import CONTEXT, RUNG, Features
from training.bitrate.simulator import Outcome, Sessions, Titles, Traces, download, idle

FUTURE_SEGMENTS: Final = (0.5, 1, 2, 3, 5, 8, 13, 21, 34)
"""Ends of the spans whose true throughput the critic sees, in segments."""

HELD_SEGMENTS: Final = 16
"""Segments over which the critic is told what holding each rung would bring."""

FORESIGHT: Final = len(FUTURE_SEGMENTS) + RUNGS + 1
"""Numbers of `foresee` that the critic's network reads."""

_WORST: Final = -100.0


class Critic(nn.Module):
    """Worth of what is to come, from the policy's features and the true future (B,).

    It starts from what the best rung would bring if it were held, so that stalls which nobody could avoid, most of a
    return's variance, are no error of it.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(CONTEXT + 2 * RUNG + FORESIGHT, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, features: Features, future: Tensor) -> Tensor:
        """The value of each session (B,); `future` is of `foresee`."""
        exists = features.exists[..., None]
        mean = (features.rungs * exists).sum(1) / exists.sum(1)
        centre = torch.softmax(features.plan * 3 + (features.exists - 1) * 1e3, dim=1)[..., None]
        picked = (features.rungs * centre).sum(1)
        values: Tensor = self.layers(torch.cat([features.context, mean, picked, future[:, 1:]], dim=1))
        return future[:, 0] + values[:, 0] * (1 + 0.1 * future[:, 0].abs())


def foresee(sessions: Sessions, level: Tensor, discount: float) -> Tensor:
    """What the critic alone knows (B, 1 + FORESIGHT).

    The worth of the best held rung, as it is and dampened; the dampened loss of each other rung; ln of the true
    throughput in each span of FUTURE_SEGMENTS, relative to the past level.
    """
    ends = np.asarray(FUTURE_SEGMENTS, np.float64)
    state = sessions.state
    volume = _volume(sessions, ends * state["segment_s"][:, None]) / state["segment_s"][:, None]
    spans = np.diff(volume, axis=1, prepend=0) / np.diff(ends, prepend=0)
    logs = torch.from_numpy(np.log(np.maximum(spans, 1.0)).astype(np.float32))
    held = np.full((len(sessions), RUNGS), -np.inf)
    _hold(state, sessions.trace_rows, sessions.titles, Scale(sessions).unit, discount, held)
    best = held.max(1, keepdims=True)
    losses = np.where(np.isfinite(held), np.log1p(best - held), 5.0)
    seen = np.concatenate([best, np.sign(best) * np.log1p(np.abs(best)), losses], axis=1).astype(np.float32)
    return torch.cat([torch.from_numpy(seen), (logs - level).clamp(-6.0, 6.0)], dim=1)


class Scale:
    """What a reward is divided by: the range of the title's quality, in the QoE's unit."""

    def __init__(self, sessions: Sessions) -> None:
        state = sessions.state
        quality = sessions.titles.mean_quality[state["measure"], state["video"]]  # (B, R)
        rows = np.arange(len(state))
        self.low = state["quality"] * quality[rows, 0] + state["constant"]
        self.unit = np.maximum(state["quality"] * (quality[rows, state["rungs"] - 1] - quality[rows, 0]), 1e-3)

    def __call__(self, outcome: Outcome) -> Tensor:
        """Rewards (B,)."""
        return torch.from_numpy(np.maximum((outcome.reward - self.low) / self.unit, _WORST).astype(np.float32))


def mean_ahead(sessions: Sessions) -> Tensor:
    """The logarithm of the true mean payload throughput of the next LOOKAHEAD segments' time (B,)."""
    span_s = LOOKAHEAD * sessions.state["segment_s"]
    means = _volume(sessions, span_s[:, None])[:, 0] / span_s
    return torch.from_numpy(np.log(np.maximum(means * sessions.state["payload"], 1.0)).astype(np.float32))


@compiled
def _hold(
    sessions: np.ndarray, traces: Traces, titles: Titles, units: np.ndarray, discount: float, worth: np.ndarray
) -> None:
    for i in range(len(sessions)):
        session = sessions[i]
        start, end = traces.offset[session["trace"]], traces.offset[session["trace"] + 1]
        times_s, kbps = traces.times_s[start:end], traces.kbps[start:end]
        video, measure = session["video"], session["measure"]
        low = titles.mean_quality[measure, video, 0]
        ends = min(session["segments"], session["segment"] + HELD_SEGMENTS)
        for rung in range(session["rungs"]):
            row, at_s, buffer_s = session["row"], session["at_s"], session["buffer_s"]
            last, total, factor = session["last_quality"], 0.0, 1.0
            for segment in range(session["segment"], ends):
                size = titles.segment_bytes[video, segment, rung]
                delay_s, row, at_s = download(times_s, kbps, row, at_s, size, session["payload"])
                delay_s += session["rtt_s"]
                stalled_s = max(delay_s - buffer_s, 0.0)
                buffer_s = max(buffer_s - delay_s, 0.0) + session["segment_s"]
                over_s = buffer_s - session["max_buffer_s"]
                if over_s > 0:
                    buffer_s -= over_s
                    row, at_s = idle(times_s, row, at_s, over_s)
                value = titles.quality[measure, video, segment, rung]
                change = 0.0 if segment == 0 else value - last
                last = value
                reward = session["quality"] * (value - low) + session["rebuffer"] * stalled_s
                reward += session["rise"] * max(change, 0.0) + session["fall"] * max(-change, 0.0)
                total += factor * reward / units[i]
                factor *= discount
            worth[i, rung] = total


_GRID_S: Final = (0.0, 0.5, 1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 65, 80, 100, 130, 160, 200, 260, 340, 600)


def _volume(sessions: Sessions, ends_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the network carries until `ends_s`, each session's own, in kbit; linear between _GRID_S (B, W)."""
    grid = np.asarray(_GRID_S)
    carried = np.concatenate([np.zeros((len(sessions), 1)), sessions.future_kbps(grid[1:]) * grid[1:]], axis=1)
    place = np.clip(np.searchsorted(grid, ends_s) - 1, 0, len(grid) - 2)
    low, high = (np.take_along_axis(carried, place + side, 1) for side in (0, 1))
    volume: NDArray[np.float64] = low + (high - low) * (ends_s - grid[place]) / (grid[place + 1] - grid[place])
    return volume
