"""Fit the models without reference: material as tensors, pinball loss, whole batches, a fixed seed.

Shapes: B segments, N patches, P their side, S statistics of a patch, F features, K facts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from serve.quality.bitstream import BitstreamFacts, features
from serve.quality.sampling import resolution_facts
from training.quality.encodes import Segment
from training.quality.noreference import BitstreamQuality, FrameQuality, PatchStatistics, pinball

_PART: int = 16
"""Segments whose patches are measured at once."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a model is fitted.

    Attributes:
        steps: of gradient.
        learning_rate: of AdamW at the start; it falls to 0 along a cosine.
        weight_decay: pull of weights to 0; there are few sources.
        noise: standard deviation of what is added to scaled inputs.
    """

    steps: int = 300
    learning_rate: float = 1e-2
    weight_decay: float = 1.0
    noise: float = 0.3


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """Labelled segments as tensors.

    Attributes:
        features: of bitstreams with frame sizes (B, F).
        size_features: of bitstreams without (B, F).
        statistics: of patches (B, N, S).
        facts: of resolution and rate (B, K).
        bare_facts: of resolution alone (B, K).
        truth: VMAF (B,).
        groups: content group of each.
        kinds: of the sources.
        sources: names of the sources.
    """

    features: Tensor
    size_features: Tensor
    statistics: Tensor
    facts: Tensor
    bare_facts: Tensor
    truth: Tensor
    groups: tuple[str, ...]
    kinds: tuple[str, ...]
    sources: tuple[str, ...]

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "Material":
        """Read and measure segments."""
        facts = [one.facts for one in segments]
        return cls(
            features=torch.from_numpy(features(facts)),
            size_features=torch.from_numpy(features([one.without_frames() for one in facts])),
            statistics=_measure(segments),
            facts=_facts(facts, rates=True),
            bare_facts=_facts(facts, rates=False),
            truth=torch.tensor([one.vmaf for one in segments], dtype=torch.float32),
            groups=tuple(one.group for one in segments),
            kinds=tuple(one.kind for one in segments),
            sources=tuple(one.source for one in segments),
        )

    def __len__(self) -> int:
        """Segments."""
        return len(self.groups)

    def rows_of(self, groups: Sequence[str], *, without: bool = False) -> Tensor:
        """Places of the segments of some groups, or of all others (rows,)."""
        chosen = set(groups)
        return torch.tensor([place for place, group in enumerate(self.groups) if (group in chosen) != without])


def _facts(segments: Sequence[BitstreamFacts], *, rates: bool) -> Tensor:
    """Facts beside the patches of all segments (B, K)."""
    rows = [
        resolution_facts(one.height, one.display_height, one.fps, bits_per_pixel=one.bits_per_pixel if rates else None)
        for one in segments
    ]
    return torch.stack([torch.from_numpy(row) for row in rows])


@torch.no_grad()
def _measure(segments: Sequence[Segment]) -> Tensor:
    """Statistics of all segments' patches (B, N, S)."""
    layers = PatchStatistics()
    parts = []
    for start in range(0, len(segments), _PART):
        patches = torch.stack([torch.from_numpy(one.patches) for one in segments[start : start + _PART]]).float()
        parts.append(layers(patches.flatten(0, 1)).reshape(*patches.shape[:2], -1))
    return torch.cat(parts)


def fit_bitstream(
    material: Material, rows: Tensor, *, seed: int, settings: FitSettings | None = None
) -> BitstreamQuality:
    """Fit the bitstream model on some segments, each once with frame sizes and once without.

    Args:
        material: the segments.
        rows: places of those to fit on.
        seed: of everything random.
        settings: how.
    """
    torch.manual_seed(seed)
    model = BitstreamQuality()
    inputs = torch.cat([material.features[rows], material.size_features[rows]])
    truth = material.truth[rows].repeat(2)
    model.scaled.fit(inputs)
    scaled = model.scaled(inputs)
    _descend(model.members, lambda noise: model.members(scaled + noise * torch.randn_like(scaled)), truth, settings)
    return model.eval()


def fit_frames(material: Material, rows: Tensor, *, seed: int, settings: FitSettings | None = None) -> FrameQuality:
    """Fit the frame model on some segments, with their rates and without; each step sees half of the patches.

    Args:
        material: the segments.
        rows: places of those to fit on.
        seed: of everything random.
        settings: how.
    """
    torch.manual_seed(seed)
    model = FrameQuality()
    statistics = material.statistics[rows]
    facts = torch.cat([material.facts[rows], material.bare_facts[rows]])
    model.scaled.fit(statistics.flatten(0, 1))
    model.facts.fit(facts)
    count = statistics.shape[1]

    def predict(noise: float) -> Tensor:
        seen = statistics[:, torch.randperm(count)[: count // 2]]
        bias = noise * torch.randn(len(seen), 1, seen.shape[2]) * model.scaled.get_buffer("deviation")
        return model.of_members((seen + bias).repeat(2, 1, 1), facts)

    _descend(model, predict, material.truth[rows].repeat(2), settings)
    return model.eval()


def _descend(
    module: nn.Module, predict: Callable[[float], Tensor], truth: Tensor, settings: FitSettings | None
) -> None:
    """Fit a module's parameters to scores by what it predicts of them, given an amount of noise."""
    settings = settings or FitSettings()
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for _ in range(settings.steps):
        loss = pinball(predict(settings.noise), truth)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()
        schedule.step()
