"""The recommend model at work: its three engines, and the same bound to one moment of the catalogue.

Shapes: B batch, N rows of the catalogue (row 0 is padding), d width, S statistics, C context features, K candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from features.ranking import context_vector
from features.sequences import Visit, encoder_inputs
from serve.artifacts import Artifact, read_artifact, read_table
from serve.catalogue import Catalogue
from serve.engines import Device, load_engine
from serve.engines.base import Engine
from serve.errors import ArtifactError, InvalidInput
from serve.pages import ESTIMATES, Ranking
from serve.tensors import ABSENT_SCORE

GROUP: Final = 4
"""Viewers that are ranked in one call, where as many wait."""

_LEAST_GROUP: Final = 3  # fewer are ranked faster one by one than filled up to GROUP
_LENGTHS: Final = (16, 32, 64)


@dataclass(frozen=True, kw_only=True, eq=False)
class RankingModel:
    """A recommend artifact, loaded and warmed up. Immutable.

    Each shape that is called has an engine of its own, since an engine whose input shapes change from call to call
    spends as long on preparing for them as on the work. Inputs are padded to the next of these shapes.

    Attributes:
        version: version of the artifact.
        vocabulary: title_id -> row of the title table, 1 to V.
        titles: engine of graph `titles`.
        encoders: padded length T of a history -> engine of graph `encoder`, shortest first.
        rankers: number of viewers B -> engine of graph `ranker`.
    """

    version: str
    vocabulary: Mapping[str, int]
    titles: Engine
    encoders: Mapping[int, Engine]
    rankers: Mapping[int, Engine]

    @classmethod
    def load(cls, path: Path, *, device: Device = "auto", threads: int = 1) -> Self:
        """Check an artifact and load its engines; takes seconds, so keep it off the event loop.

        Args:
            path: the artifact's folder.
            device: where the engines run.
            threads: CPU threads that one call may use.

        Raises:
            ArtifactError: the artifact is damaged, or is no recommend model; names the field.
            Unavailable: the device is not there.
        """
        artifact = read_artifact(path)
        length = _length(artifact)
        lengths = (*(short for short in _LENGTHS if short < length), length)

        def load(graph: str) -> Engine:
            return load_engine(artifact, graph, device, threads=threads, batches=())

        return cls(
            version=artifact.version,
            vocabulary=_vocabulary(artifact),
            titles=load("titles"),
            encoders=_for_shapes(load("encoder"), lengths),
            rankers=_for_shapes(load("ranker"), (1, GROUP)),
        )

    def table(self, catalogue: Catalogue) -> NDArray[np.float32]:
        """Vectors of all titles, float32 (N, d); titles beyond the vocabulary by their content.

        Args:
            catalogue: laid out with this model's vocabulary.
        """
        outputs = self.titles({"content": catalogue.content, "ids": catalogue.embedded})
        vectors: NDArray[np.float32] = outputs["vectors"]
        return vectors

    def bind(self, table: NDArray[np.float32], statistics: NDArray[np.float32]) -> "Scorer":
        """The model over one moment of the catalogue, tried out once.

        Args:
            table: (N, d), from `table`.
            statistics: (N, S), from features.ranking.title_statistics.

        Raises:
            ArtifactError: the model does not take what this code gives it; names the input.
        """
        try:
            scorer = Scorer(
                version=self.version,
                encoders={length: engine.bind({"table": table}) for length, engine in self.encoders.items()},
                rankers={
                    batch: engine.bind({"table": table, "title_stats": statistics})
                    for batch, engine in self.rankers.items()
                },
            )
            for length in self.encoders:
                state = scorer.encode([Visit(0, 0, 0)] * length)
            for batch in self.rankers:
                eligible = np.ones((batch, len(table)), dtype=np.bool_)
                scorer.rank(np.stack([state] * batch), eligible, np.stack([_cold_context()] * batch))
        except InvalidInput as error:
            raise ArtifactError(
                field=error.field,
                got=error.got,
                expected=error.expected,
                next_step="Train the model again with this version of Playhead.",
            ) from error
        return scorer


def _for_shapes(engine: Engine, sizes: Sequence[int]) -> dict[int, Engine]:
    """One for each size: the engine itself, and siblings."""
    first, *others = sizes
    return {first: engine, **{size: engine.sibling() for size in others}}


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """A model bound to a title table and statistics. Immutable; any number of threads may use it.

    Attributes:
        version: version of the artifact.
        encoders: as in RankingModel, table bound.
        rankers: as in RankingModel, table and statistics bound.
    """

    version: str
    encoders: Mapping[int, Engine]
    rankers: Mapping[int, Engine]

    def rebind(self, statistics: NDArray[np.float32]) -> Self:
        """The same with other statistics, float32 (N, S)."""
        bound = {batch: engine.bind({"title_stats": statistics}) for batch, engine in self.rankers.items()}
        return replace(self, rankers=bound)

    def encode(self, history: Sequence[Visit]) -> NDArray[np.float32]:
        """State of a history, float32 (d,).

        Args:
            history: visits, oldest first; the newest that the encoder takes count.
        """
        padded = self._padded_length(len(history))
        state: NDArray[np.float32] = self.encoders[padded](_padded(encoder_inputs([history], padded), padded))["state"]
        first: NDArray[np.float32] = state[0]
        return first

    def encode_beside(self, histories: Sequence[Sequence[Visit]]) -> NDArray[np.float32]:
        """States of histories that nobody waits for, float32 (B, d), see Engine.run_beside.

        Args:
            histories: B of them, as in `encode`.

        Raises:
            InvalidInput: one of them does not fit the encoder.
            RuntimeError: the process that was to work them out failed.
        """
        padded = self._padded_length(max(map(len, histories)))
        engine = self.encoders[padded]
        _, most = engine.spec.limits["B"]
        if not engine.is_beside or most < len(histories):
            return np.stack([self.encode(history) for history in histories])
        states: NDArray[np.float32] = engine.run_beside(_padded(encoder_inputs(histories, padded), padded))["state"]
        return states

    def _padded_length(self, visits: int) -> int:
        return next((length for length in self.encoders if length >= visits), max(self.encoders))

    def rank(
        self, states: NDArray[np.float32], eligible: NDArray[np.bool_], contexts: NDArray[np.float32]
    ) -> list[Ranking]:
        """The best candidates of each viewer.

        Args:
            states: (B, d).
            eligible: (B, N), which titles may be candidates.
            contexts: (B, C), from features.ranking.

        Returns:
            B rankings of eligible titles only, at most K each; fewer where fewer are eligible.
        """
        rankings: list[Ranking] = []
        while len(rankings) < len(states):
            start = len(rankings)
            waiting = len(states) - start
            batch = GROUP if waiting >= _LEAST_GROUP else 1
            taken = np.minimum(np.arange(start, start + batch), len(states) - 1)  # filled up with the last viewer
            outputs = self.rankers[batch](
                {"state": states[taken], "eligible": eligible[taken], "context": contexts[taken]}
            )
            rankings += [_ranking(outputs, line) for line in range(min(batch, waiting))]
        return rankings


def _padded(inputs: Mapping[str, NDArray[np.int64]], length: int) -> dict[str, NDArray[np.int64]]:
    """Encoder inputs (B, T) with zeros up to (B, length)."""
    filled = {name: np.zeros((len(array), length), dtype=np.int64) for name, array in inputs.items()}
    for name, array in inputs.items():
        filled[name][:, : array.shape[1]] = array
    return filled


def _ranking(outputs: Mapping[str, NDArray[Any]], line: int) -> Ranking:
    """One viewer's ranking from the ranker's outputs (B, K)."""
    present = int(np.count_nonzero(outputs[ESTIMATES[0]][line] > ABSENT_SCORE))  # the absent come last
    values = [outputs[name][line, :present] for name in ESTIMATES]
    return Ranking.build(outputs["candidates"][line, :present], values, personal=True)


def _cold_context() -> NDArray[np.float32]:
    return context_vector(titles=0, gap_s=0.0, now_ms=0, finishes=0, thumbs_up=0, thumbs_down=0, kids=False)


def _vocabulary(artifact: Artifact) -> dict[str, int]:
    table = read_table(artifact, "vocabulary")
    field = "files.vocabulary.parquet"
    next_step = "Train or publish the model again."
    if not {"title_id", "row"} <= set(table.column_names):
        raise ArtifactError(
            field=field, got=table.column_names, expected="columns title_id and row", next_step=next_step
        )
    title_ids, rows = table["title_id"].to_pylist(), table["row"].to_pylist()
    if sorted(rows) != list(range(1, len(rows) + 1)) or len(set(title_ids)) != len(rows):
        raise ArtifactError(
            field=field,
            got=f"{len(set(title_ids))} titles in {len(rows)} rows",
            expected="each title once, with the rows 1 to their number",
            next_step=next_step,
        )
    return dict(zip(title_ids, rows, strict=True))


def _length(artifact: Artifact) -> int:
    length = artifact.manifest.parameters.get("length")
    if not isinstance(length, int) or length < 1:
        raise ArtifactError(
            field="parameters.length",
            got=length,
            expected="the most visits that the encoder takes, at least 1",
            next_step="Train or publish the model again.",
        )
    return length
