"""Full-reference quality of a clip: align, pair, score by the backend that fits, pool."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve.artifacts import Artifact
from serve.engines import Device, load_engine
from serve.engines.base import BATCH, Engine
from serve.errors import InvalidInput
from serve.quality import libvmaf
from serve.quality.alignment import Alignment, align
from serve.quality.fusion import Fusion
from serve.quality.geometry import Area
from serve.quality.media import Limits
from serve.quality.pairing import Pair, pairs
from serve.quality.pooling import Pooled, pool

Floats = NDArray[np.float64]

ENGINE: Final = "engine"
BACKENDS: Final = (ENGINE, libvmaf.NAME)
DEFAULT_MODEL: Final = "vmaf_v0.6.1"
MOST_BATCH_PIXELS: Final = 4 << 20
"""Pixels of a frame times frames that go through the graph at once: more would not fit a CPU's memory bandwidth."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quality:
    """Scores of a clip.

    Attributes:
        model: such as `vmaf_v0.6.1`.
        backend: what scored it: `libvmaf`, or the engine's device, such as `engine cpu`.
        scores: of each scored frame, on the model's scale (T,).
        features: elementary features of each, in the order of the model's (T, F).
        times_s: of each in the reference clip (T,).
        indices: of each among all pairs (T,).
        pooled: figures of the clip.
        alignment: how the clips were brought together.
    """

    model: str
    backend: str
    scores: Floats
    features: Floats
    times_s: Floats
    indices: NDArray[np.int64]
    pooled: Pooled
    alignment: Alignment


class FullReferenceScorer:
    """VMAF of aligned clips.

    Args:
        artifact: of the features graphs and the models' parameters.
        device: where the graph runs: auto, cpu, cuda or torch (see serve.engines.load_engine).
    """

    def __init__(self, artifact: Artifact, device: Device = "auto") -> None:
        self._artifact = artifact
        self._device = device
        self._engines: dict[str, Engine] = {}
        models = artifact.manifest.parameters["models"]
        if not isinstance(models, dict):
            raise InvalidInput(
                field="parameters.models", got=type(models).__name__, expected="models by name",
                next_step="Publish the model again.",
            )  # fmt: skip
        self._models = {name: Fusion.from_parameters(entry) for name, entry in models.items()}  # type: ignore[arg-type]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it scores by."""
        return tuple(self._models)

    def backends(self, model: str) -> tuple[str, ...]:
        """Backends that can score by a model, the engine first where it has a graph of the model's features."""
        return BACKENDS if self._graph(model) is not None else (libvmaf.NAME,)

    def score(
        self, reference: Path, distorted: Path, *, model: str = DEFAULT_MODEL, backend: str = "auto", every: int = 1,
        limits: Limits | None = None, advance: Callable[[int], None] = lambda _: None,
    ) -> Quality:  # fmt: skip
        """Score a distorted clip against its reference.

        Args:
            reference: the clip as it should be, a local file.
            distorted: an encode of it.
            model: one of `models`.
            backend: engine, libvmaf, or auto: the faster on this machine.
            every: score one frame in so many.
            limits: of reading either.
            advance: told the number of pairs that went through.

        Raises:
            NotFound, InvalidInput, Misaligned: see serve.quality.alignment.align and serve.quality.pairing.pairs.
            InvalidInput: the common pictures are too small for the model; no graph makes its features, and the engine
                was asked for.
            Unavailable: the backend is not there or failed.
        """
        limits = limits or Limits()
        if model not in self._models:
            raise InvalidInput(
                field="model", got=model, expected=", ".join(self._models), next_step="Name one of these."
            )
        if backend not in {"auto", *BACKENDS}:
            raise InvalidInput(
                field="backend", got=backend, expected=", ".join(("auto", *BACKENDS)), next_step="Name one of these."
            )
        if every < 1:
            raise InvalidInput(field="every", got=str(every), expected="1 or more", next_step="Correct it.")
        fusion = self._models[model]
        alignment = align(reference, distorted, limits)
        _check_size(fusion, alignment.reference_area)
        chosen = self._fastest(model) if backend == "auto" else backend
        by_library = chosen == libvmaf.NAME
        # libvmaf is shown every pair: it measures motion from one to the next.
        shown = 1 if by_library else every
        found_pairs = pairs(reference, distorted, alignment, limits, every=shown, with_chroma=fusion.needs_chroma)
        with contextlib.closing(found_pairs) as read:
            stream = _counted(read, advance)
            if by_library:
                depth = max(alignment.reference.bit_depth, alignment.distorted.bit_depth)
                found = libvmaf.score_pairs(
                    stream, model=model, bit_depth=depth, features=fusion.features, every=every,
                    threads=limits.threads, deadline_s=limits.deadline_s,
                )  # fmt: skip
                scores, features, times_s, indices = found.scores, found.features, found.times_s, found.indices
                name = libvmaf.NAME
            else:
                engine = self._engine(model)
                features, times_s, indices = features_of(engine, stream)
                scores, name = fusion.scores(features), f"{ENGINE} {engine.device}"
        return Quality(
            model=model, backend=name, scores=scores, features=features, times_s=times_s, indices=indices,
            pooled=pool(scores, times_s, every), alignment=alignment,
        )  # fmt: skip

    def _fastest(self, model: str) -> str:
        """On a GPU the graph; on a CPU libvmaf's hand-written vector code, where it is there (docs/quality.md)."""
        if self._graph(model) is None:
            return libvmaf.NAME
        compiled = any(path.startswith("tensorrt/") for path in self._artifact.manifest.files)
        maybe_cuda = self._device == "cuda" or (self._device == "auto" and compiled)
        if maybe_cuda and self._engine(model).device.startswith("cuda"):  # else nothing is loaded only to be left
            return ENGINE
        return libvmaf.NAME if libvmaf.find_ffmpeg() else ENGINE

    def _engine(self, model: str) -> Engine:
        graph = self._graph(model)
        if graph is None:
            raise InvalidInput(
                field="backend", got=f"{ENGINE}, for {model}", expected=libvmaf.NAME,
                next_step="Ask for the backend libvmaf: no engine has a graph of this model's features.",
            )  # fmt: skip
        if graph not in self._engines:
            self._engines[graph] = load_engine(self._artifact, graph, self._device)
        return self._engines[graph]

    def _graph(self, model: str) -> str | None:
        """The graph that makes a model's features, if there is one."""
        entry: dict[str, Any] = self._artifact.manifest.parameters["models"][model]  # type: ignore[index,call-overload,assignment]
        return entry.get("graph")


def _check_size(fusion: Fusion, area: Area) -> None:
    least, sides = fusion.least_sides, sorted((area.width, area.height))
    if any(side < needed for side, needed in zip(sides, least, strict=True)):
        raise InvalidInput(
            field="pictures", got=f"{area.width}x{area.height} in common",
            expected=f"sides of {least[0]} and {least[1]} or more for {fusion.name}",
            next_step="Name a model for smaller pictures, such as vmaf_v0.6.1.",
        )  # fmt: skip


def features_of(engine: Engine, stream: Iterable[Pair]) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Elementary features (T, 6), times (T,) and indices (T,) of pairs of one size, by batches."""
    features: list[Floats] = []
    times_s: list[float] = []
    indices: list[int] = []
    for batch in _batches(stream, engine.spec.limits[BATCH][1]):
        inputs = {
            name: np.stack([getattr(pair, name) for pair in batch])
            for name in ("reference", "distorted", "before", "after")
        }
        features.append(engine(inputs)["features"].astype(np.float64))
        times_s += [pair.time_s for pair in batch]
        indices += [pair.index for pair in batch]
    return np.concatenate(features), np.array(times_s), np.array(indices)


def _batches(stream: Iterable[Pair], most: int) -> Iterator[list[Pair]]:
    batch: list[Pair] = []
    for pair in stream:
        batch.append(pair)
        if len(batch) >= min(most, max(1, MOST_BATCH_PIXELS // pair.reference.size)):
            yield batch
            batch = []
    if batch:
        yield batch


def _counted(stream: Iterable[Pair], advance: Callable[[int], None]) -> Iterator[Pair]:
    for count, pair in enumerate(stream, 1):
        yield pair
        advance(count)
