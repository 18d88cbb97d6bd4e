"""The bitrate policy: one graph from raw observations to a score of each rung.

Three parts. A predictor gives quantiles of the throughput to come. A planner without weights plays each rung out under
scenarios of those quantiles, held or followed by a rung beside it or the lowest. A small network, the same for each
rung, corrects the plan by what it has learned. Every feature is free of scale (throughput relative to the ladder, time
to the segment, quality to the range of the title's qualities), so that one set of weights serves any ladder of 1 to
RUNGS rungs, any segment length and any QoE.

Shapes: B batch, H HISTORY, L LOOKAHEAD, R RUNGS, S scenarios, Q quantiles.
"""

from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve.bitrate.observations import HISTORY, LOOKAHEAD, RUNGS

QUANTILES: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""Of the next download's throughput, and of the mean until LOOKAHEAD segments later."""

SCENARIOS: Final = (1, 2, 3, 4)
"""Places in QUANTILES that the planner plays out: .1, .25, .5, .75."""

MISSING: Final = -1e9
"""Score of a rung that isn't there."""

BYTES_PER_KBIT: Final = 125.0
_BOUND: Final = 10.0
_WORST_STALL: Final = 50.0
_MOST_HOPELESS: Final = 1e5


class Features(NamedTuple):
    """What the scoring network reads.

    Attributes:
        context: of the session (B, CONTEXT).
        rungs: of each rung (B, R, RUNG).
        plan: worth of each rung by the planner, relative to the best one (B, R).
        exists: 1 where there is a rung (B, R).
        hopeless: worth of what each rung stalls beyond what the other features can tell, 0 or more (B, R).
    """

    context: Tensor
    rungs: Tensor
    plan: Tensor
    exists: Tensor
    hopeless: Tensor

    def take(self, index: Tensor) -> "Features":
        """Those of some sessions."""
        return Features(*(part[index] for part in self))


class History(NamedTuple):
    """What the predictor reads.

    Attributes:
        features: scale-free (B, HISTORY_FEATURES).
        level: ln(kbit/s) that they, and the prediction, are relative to (B, 1).
        seen: 1 where there was a download (B, 1).
    """

    features: Tensor
    level: Tensor
    seen: Tensor


HISTORY_FEATURES: Final = 3 * HISTORY + 11
_SESSION_FEATURES: Final = 19
CONTEXT: Final = HISTORY_FEATURES + _SESSION_FEATURES
RUNG: Final = 16 + 5 * len(SCENARIOS)


def _bounded(values: Tensor) -> Tensor:
    return values.clamp(-_BOUND, _BOUND)


def describe_history(
    throughput_kbps: Tensor, download_s: Tensor, segment_s: Tensor, rungs_kbps: Tensor, prior_log_kbps: Tensor
) -> History:
    """Features of the past downloads.

    Args:
        throughput_kbps: newest last, 0 for none (B, H).
        download_s: likewise (B, H).
        segment_s: (B,).
        rungs_kbps: (B, R).
        prior_log_kbps: mean and deviation of ln(kbit/s) before any sample (B, 2).
    """
    seen = (throughput_kbps > 0).float()
    logs = throughput_kbps.clamp(1.0, 1e8).log()
    top = rungs_kbps.amax(1, keepdim=True).clamp(1.0, 1e8).log()
    count = seen.sum(1, keepdim=True)
    any_seen = count.clamp(max=1.0)
    has_prior = (prior_log_kbps[:, 1:] > 0).float()
    prior = has_prior * prior_log_kbps[:, :1].clamp(0.0, 18.0) + (1 - has_prior) * (top - 0.7)

    age = torch.arange(HISTORY - 1, -1, -1, dtype=torch.float32)

    def mean(weight: Tensor) -> Tensor:
        weight = weight * seen
        return (weight * logs).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1e-6)

    newest = seen * (age < 5)
    harmonic = newest.sum(1, keepdim=True).clamp(min=1e-6) / (newest * (-logs).exp()).sum(1, keepdim=True).clamp(
        min=1e-12
    )
    level = any_seen * mean(0.7**age) + (1 - any_seen) * prior
    relative = _bounded((logs - level) * seen)
    steps = (relative[:, 1:] - relative[:, :-1]) * seen[:, :-1]
    variance = (relative.square() * newest).sum(1, keepdim=True) / newest.sum(1, keepdim=True).clamp(min=1.0)
    features = torch.cat(
        [
            relative,
            seen,
            (download_s.clamp(0.0, 1e4) / segment_s.clamp(0.1, 60.0)[:, None]).log1p(),
            _bounded(level - top),
            any_seen * _bounded(harmonic.clamp(1.0, 1e8).log() - level),
            any_seen * _bounded(mean(0.9**age) - level),
            any_seen * _bounded(mean(0.4**age) - level),
            (relative + (1 - newest) * _BOUND).amin(1, keepdim=True) * any_seen,
            (relative - (1 - newest) * _BOUND).amax(1, keepdim=True) * any_seen,
            (variance + 1e-6).sqrt(),
            steps.abs().mean(1, keepdim=True),
            has_prior * _bounded(prior - level),
            has_prior * prior_log_kbps[:, 1:].clamp(0.0, 5.0),
            segment_s.clamp(0.1, 60.0)[:, None].log(),
        ],
        dim=1,
    )
    return History(features, level, any_seen)


class Predictor(nn.Module):
    """Quantiles of ln(kbit/s) of the next download and of the mean over the next LOOKAHEAD segments."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(HISTORY_FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 2 * len(QUANTILES)),
        )  # fmt: skip

    def forward(self, history: History) -> tuple[Tensor, Tensor]:
        """Ascending quantiles of ln(kbit/s), each (B, Q)."""
        raw = self.layers(history.features)
        near, far = raw.chunk(2, dim=1)
        return self._ascending(near, history.level), self._ascending(far, history.level)

    def _ascending(self, raw: Tensor, level: Tensor) -> Tensor:
        middle = len(QUANTILES) // 2
        steps = F.softplus(raw - 2.0) + 0.005
        below = -torch.stack([steps[:, place:middle].sum(1) for place in range(middle)], dim=1)
        above = torch.stack(
            [steps[:, middle + 1 : place + 1].sum(1) for place in range(middle + 1, len(QUANTILES))], dim=1
        )
        centre = level + _bounded(raw[:, middle : middle + 1])
        return torch.cat([centre + below, centre, centre + above], dim=1)


def probability_below(logs: Tensor, quantiles: Tensor) -> Tensor:
    """Probability that ln(throughput) is below `logs` (B, R), interpolated between its quantiles (B, Q)."""
    gaps = quantiles[:, 1:] - quantiles[:, :-1]
    lows = quantiles[:, None, :-1]
    within = ((logs[:, :, None] - lows) / gaps[:, None, :]).clamp(0.0, 1.0)
    shares = torch.tensor([high - low for low, high in pairwise(QUANTILES)])
    middle = QUANTILES[0] + (within * shares).sum(2)
    under = (quantiles[:, :1] - logs).clamp(min=0.0) / gaps[:, :1]
    over = (logs - quantiles[:, -1:]).clamp(min=0.0) / gaps[:, -1:]
    tail = QUANTILES[0]
    return middle - tail * (1 - (-under.clamp(max=50.0)).exp()) + tail * (1 - (-over.clamp(max=50.0)).exp())


class Scene(NamedTuple):
    """Where a session stands, bounded and free of scale; the best rung's quality is worth 1 more than the worst's.

    Attributes:
        exists: 1 where there is a rung (B, R).
        there: 1 where there is a segment (B, L).
        kbit: sizes (B, L, R).
        worth: of the quality of each segment (B, L, R).
        segment: length in s (B, 1).
        buffer: in s (B, 1).
        room: cap of the buffer in s (B, 1).
        stall: worth of a second of rebuffering (B, 1).
        rise: factor of a rise in worth (B, 1).
        fall: factor of a fall (B, 1).
        started: 1 after the first segment (B, 1).
        last: worth of the last segment's quality (B, 1).
        change: from it to each rung (B, R).
        switch: worth of that change (B, R).
    """

    exists: Tensor
    there: Tensor
    kbit: Tensor
    worth: Tensor
    segment: Tensor
    buffer: Tensor
    room: Tensor
    stall: Tensor
    rise: Tensor
    fall: Tensor
    started: Tensor
    last: Tensor
    change: Tensor
    switch: Tensor


def read_scene(
    buffer_s: Tensor,
    max_buffer_s: Tensor,
    segment_s: Tensor,
    last_rung: Tensor,
    last_quality: Tensor,
    rungs_kbps: Tensor,
    segment_bytes: Tensor,
    quality: Tensor,
    weights: Tensor,
) -> Scene:
    """Bound the inputs and take their scale away; the next segment's size is the nominal one where it is not known."""
    exists = (rungs_kbps > 0).float()
    segment = segment_s.clamp(0.1, 60.0)[:, None]
    kbit = segment_bytes.clamp(0.0, 1e10) / BYTES_PER_KBIT
    first = torch.where(kbit[:, 0] > 0, kbit[:, 0], rungs_kbps.clamp(0.0, 1e8) * segment).clamp(min=1e-3)
    kbit = torch.cat([first[:, None], kbit[:, 1:]], dim=1)
    there = (kbit.amax(2) > 0).float()
    value = quality.clamp(-1e6, 1e6) * weights[:, None, 3:4].clamp(-1e6, 1e6)
    mean = value.sum(1) / there.sum(1, keepdim=True)
    most = (mean - (1 - exists) * 1e12).amax(1, keepdim=True)
    least = (mean + (1 - exists) * 1e12).amin(1, keepdim=True)
    unit = torch.maximum(most - least, 1e-3 * most.abs()).clamp(min=1e-6)
    scale = weights[:, 3:4].abs().clamp(min=1e-9)
    worth = _bounded((value - least[:, None]) / unit[:, None]) * exists[:, None]
    rise, fall = _bounded(weights[:, 1:2] / scale), _bounded(weights[:, 2:3] / scale)
    started = (last_rung >= 0).float()[:, None]
    last = _bounded((last_quality.clamp(-1e6, 1e6)[:, None] * weights[:, 3:4].clamp(-1e6, 1e6) - least) / unit)
    change = (worth[:, 0] - last) * started
    return Scene(
        exists=exists, there=there, kbit=kbit, worth=worth, segment=segment, buffer=buffer_s.clamp(0.0, 1e4)[:, None],
        room=torch.maximum(max_buffer_s.clamp(0.0, 1e4)[:, None], segment),
        stall=(weights[:, 0:1].clamp(-1e9, 0.0) / unit).clamp(min=-1e3), rise=rise, fall=fall, started=started,
        last=last, change=change, switch=rise * F.relu(change) + fall * F.relu(-change),
    )  # fmt: skip


class Outlook(NamedTuple):
    """What each rung leads to under each scenario.

    Attributes:
        after: buffer after the next segment (B, S, R).
        stalled: rebuffering of the next segment (B, S, R).
        best: worth with the best that can follow, relative to the best rung (B, S, R).
        steady: worth with the same rung held, likewise (B, S, R).
        plan: mean of `best` over scenarios, relative to the best rung (B, R).
        hopeless: worth of the next segment's rebuffering beyond _BOUND, mean over scenarios, 0 or more (B, R). Where
            even the lowest rung stalls that long all other features are at their bounds, and this alone tells how much
            worse a higher one is.
    """

    after: Tensor
    stalled: Tensor
    best: Tensor
    steady: Tensor
    plan: Tensor
    hopeless: Tensor


FOLLOWERS: Final = 4
"""What may follow the next segment, until LOOKAHEAD: the lowest rung, the one below, the same, the one above."""


def _followers(values: Tensor) -> Tensor:
    """Values of the rungs that may follow each rung (..., R) -> (..., R, FOLLOWERS)."""
    below = torch.cat([values[..., :1], values[..., :-1]], dim=-1)
    above = torch.cat([values[..., 1:], values[..., -1:]], dim=-1)
    return torch.stack([values[..., :1].expand(values.shape), below, values, above], dim=-1)


def play_out(scene: Scene, near: Tensor, far: Tensor) -> Outlook:
    """Play each rung and its followers (K) for LOOKAHEAD segments.

    Args:
        scene: where the sessions stand.
        near: ln(kbit/s) of the next download in each scenario (B, S).
        far: of the mean until LOOKAHEAD segments later (B, S).
    """
    worth, there = scene.worth, scene.there
    spare = scene.buffer[:, None] - scene.kbit[:, None, 0] / near.exp()[..., None]  # (B, S, R)
    room, stall = scene.room[:, None], scene.stall[:, None]
    stalled = F.relu(-spare)
    after = torch.minimum(F.relu(spare) + scene.segment[:, None], room)
    now = (worth[:, 0] + scene.switch)[:, None] + (stall * stalled).clamp(min=-_WORST_STALL)

    kbit = _followers(scene.kbit[:, 1:])  # (B, L - 1, R, K)
    pace = 1 / far.exp()[:, :, None, None]
    lengths = (scene.segment * there)[:, :, None, None, None]
    level = after[..., None].expand(-1, -1, -1, FOLLOWERS)
    halted = torch.zeros_like(level)
    for step in range(1, LOOKAHEAD):
        left = level - kbit[:, None, step - 1] * pace
        halted = halted + F.relu(-left)
        level = torch.minimum(F.relu(left) + lengths[:, step], room[..., None])

    def swing(change: Tensor, present: Tensor) -> Tensor:
        rise, fall = (factor.reshape(-1, *(1,) * (change.dim() - 1)) for factor in (scene.rise, scene.fall))
        return (rise * F.relu(change) + fall * F.relu(-change)) * present

    later = _followers(worth) * there[:, :, None, None]  # (B, L, R, K)
    turned = swing(later[:, 1] - worth[:, 0, :, None], there[:, 1, None, None])
    wandered = swing(later[:, 2:] - later[:, 1:-1], there[:, 2:, None, None]).sum(1)
    exists = scene.exists
    possible = torch.stack([exists, exists, exists, F.pad(exists[:, 1:], (0, 1))], dim=-1)
    flow = later[:, 1:].sum(1) + turned + wandered - (1 - possible) * 1e6
    total = flow[:, None] + (stall[..., None] * halted).clamp(min=-_WORST_STALL)
    best, steady = now + total.amax(3), now + total[..., 2]
    absent = (1 - exists)[:, None] * 1e6

    def relative(values: Tensor) -> Tensor:
        return _bounded(values - (values - absent).amax(2, keepdim=True))

    hopeless = F.relu(-stall * stalled - _BOUND).mean(1).clamp(max=_MOST_HOPELESS)
    return Outlook(
        after, stalled, relative(best), relative(steady), relative(best.mean(1, keepdim=True))[:, 0], hopeless
    )  # fmt: skip


class BitratePolicy(nn.Module):
    """The policy graph; its arguments are the fields of serve.bitrate.observations.Observations.

    Args:
        width: of the hidden layers.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.width = width
        self.predictor = Predictor()
        self.context = nn.Sequential(nn.Linear(CONTEXT, width), nn.ReLU(), nn.Linear(width, width))
        self.rung = nn.Linear(RUNG, width)
        self.hidden = nn.Linear(width, width)
        self.pooled = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        self.trust = nn.Parameter(torch.tensor(-1.2))  # ln of the plan's weight; more, and nothing else is tried
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(
        self,
        throughput_kbps: Tensor,
        download_s: Tensor,
        buffer_s: Tensor,
        max_buffer_s: Tensor,
        segment_s: Tensor,
        last_rung: Tensor,
        last_quality: Tensor,
        remaining: Tensor,
        rungs_kbps: Tensor,
        segment_bytes: Tensor,
        quality: Tensor,
        weights: Tensor,
        prior_log_kbps: Tensor,
        latency_s: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (B, R), throughput quantiles in kbit/s (B, Q) and rebuffer probabilities (B, R)."""
        features, near, probability = self.describe(
            throughput_kbps, download_s, buffer_s, max_buffer_s, segment_s, last_rung, last_quality, remaining,
            rungs_kbps, segment_bytes, quality, weights, prior_log_kbps, latency_s,
        )  # fmt: skip
        return self.scores(features), near.clamp(max=18.0).exp(), probability

    def scores(self, features: Features) -> Tensor:
        """Preference for each rung; MISSING where there is none (B, R)."""
        exists = features.exists
        first = F.relu(self.rung(features.rungs) + self.context(features.context)[:, None])
        around = (first * exists[..., None]).sum(1) / exists.sum(1, keepdim=True).clamp(min=1.0)
        second = F.relu(self.hidden(first) + self.pooled(around)[:, None])
        correction = self.score(second)[..., 0]
        scores = correction + self.trust.exp() * features.plan - features.hopeless
        return torch.where(exists > 0, scores, MISSING)

    def describe(
        self,
        throughput_kbps: Tensor,
        download_s: Tensor,
        buffer_s: Tensor,
        max_buffer_s: Tensor,
        segment_s: Tensor,
        last_rung: Tensor,
        last_quality: Tensor,
        remaining: Tensor,
        rungs_kbps: Tensor,
        segment_bytes: Tensor,
        quality: Tensor,
        weights: Tensor,
        prior_log_kbps: Tensor,
        latency_s: Tensor,
    ) -> tuple[Features, Tensor, Tensor]:
        """Features, ln of the throughput quantiles (B, Q) and rebuffer probabilities (B, R)."""
        scene = read_scene(
            buffer_s, max_buffer_s, segment_s, last_rung, last_quality, rungs_kbps, segment_bytes, quality, weights
        )
        history = describe_history(throughput_kbps, download_s, segment_s, rungs_kbps, prior_log_kbps)
        near, far = self.predictor(history)
        probability = probability_below(scene.kbit[:, 0].log() - scene.buffer.clamp(min=1e-6).log(), near)
        probability = probability * scene.exists
        outlook = play_out(scene, near[:, list(SCENARIOS)], far[:, list(SCENARIOS)])
        rungs = _describe_rungs(scene, outlook, near, probability, rungs_kbps, last_rung)
        session = _describe_session(scene, near, far, rungs_kbps, remaining, latency_s)
        context = torch.cat([history.features, session], dim=1)
        return Features(context, rungs, outlook.plan, scene.exists, outlook.hopeless), near, probability


def _describe_rungs(
    scene: Scene, outlook: Outlook, near: Tensor, probability: Tensor, rungs_kbps: Tensor, last_rung: Tensor
) -> Tensor:
    """Features of each rung (B, R, RUNG)."""
    exists, worth, there, started = scene.exists, scene.worth, scene.there, scene.started
    size = scene.kbit[:, 0].log()
    count = there.sum(1, keepdim=True)
    has_above, has_below = F.pad(exists[:, 1:], (0, 1)), F.pad(exists[:, :-1], (1, 0))
    steps = torch.arange(rungs_kbps.shape[1]) - last_rung[:, None]
    one_each = [
        exists,
        _bounded(size - near[:, 3:4] - scene.segment.log()),
        _bounded(size - near[:, 3:4] - (scene.buffer + 0.1).log()),
        _bounded(scene.kbit.sum(1).clamp(min=1e-3).log() - count.log() - size),
        probability,
        _bounded(worth[:, 0]),
        _bounded((worth * there[..., None]).sum(1) / count),
        _bounded(scene.change),
        _bounded(scene.switch),
        _bounded(worth[:, 0] - F.pad(worth[:, 0, :-1], (1, 0))) * has_below,
        _bounded(F.pad(worth[:, 0, 1:], (0, 1)) - worth[:, 0]) * has_above,
        has_above,
        started * (steps == 0).float(),
        started * steps.clamp(-RUNGS, RUNGS) / 4,
        _bounded(size - (rungs_kbps.clamp(0.0, 1e8) * scene.segment + 1e-3).log()) * exists,
        outlook.plan,
    ]
    one_each_scenario = [
        outlook.best,
        outlook.steady,
        (outlook.after / scene.segment[:, None]).log1p(),
        (outlook.stalled / scene.segment[:, None]).log1p(),
        _bounded(scene.stall[:, None] * outlook.stalled),
    ]
    features = [torch.stack(one_each, dim=2), *(part.transpose(1, 2) for part in one_each_scenario)]
    return torch.cat(features, dim=2) * exists[..., None]


def _describe_session(
    scene: Scene, near: Tensor, far: Tensor, rungs_kbps: Tensor, remaining: Tensor, latency_s: Tensor
) -> Tensor:
    """Features of the session beside its history (B, _SESSION_FEATURES)."""
    buffer, room, segment = scene.buffer, scene.room, scene.segment
    rates = rungs_kbps.clamp(0.0, 1e8)
    top = rates.amax(1, keepdim=True).clamp(1.0)
    bottom = (rates + (1 - scene.exists) * 1e9).amin(1, keepdim=True).clamp(1.0)
    live = (latency_s[:, 1:] > 0).float()
    parts = [
        (buffer / segment).log1p(),
        (buffer / 10).clamp(max=6.0),
        (F.relu(room - buffer) / segment).log1p(),
        (buffer / room).clamp(max=2.0),
        segment.log(),
        (remaining.clamp(0.0, 1e6)[:, None] + 1).log() / 4,
        (remaining[:, None] / LOOKAHEAD).clamp(0.0, 1.0),
        scene.started,
        _bounded(scene.last) * scene.started,
        _bounded((-scene.stall * segment + 1e-6).log()),
        scene.rise,
        scene.fall,
        scene.exists.sum(1, keepdim=True) / RUNGS,
        _bounded((top / bottom).log()),
        _bounded(near[:, 3:4] - top.log()),
        _bounded(far[:, 3:4] - near[:, 3:4]),
        near[:, 5:6] - near[:, 1:2],
        far[:, 5:6] - far[:, 1:2],
        live * _bounded((latency_s[:, :1] - latency_s[:, 1:]) / segment),
    ]
    return torch.cat(parts, dim=1)
